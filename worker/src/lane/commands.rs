//! What operators ask of lanes.
//!
//! Each command takes effect by the commit that holds its result and moves the COMMANDS position behind it: what follows
//! from it is held until then. It is conditional on the state that it names; what is not so is `not_applicable`.

use jiff::Timestamp;
use weft_proto::{
    ids::{EventId, Run, StreamSeq, SubscriptionUid},
    v1,
};

use super::{
    action::Action,
    expiry::Burial,
    flaw::{Flaw, has},
    input::{Command, CommandAction, HeadRef, LaneCommand, LaneKey, RedriveItem, ReplayCommand, Work},
    lane::{AttemptState, Lane, PendingRun, Target},
    lanes::Lanes,
    settle::Death,
    state::{Subscription, outcome_of},
};

/// Who asked, and why.
struct Wish<'a> {
    command: Run,
    operator: &'a str,
    reason: &'a str,
}

impl Lanes {
    pub(super) fn command_received(&mut self, command: Command, now: Timestamp, actions: &mut Vec<Action>) {
        let Command { command, request_id, operator, reason, order } = command;
        self.commands_cursor = self.commands_cursor.max(command.0);
        let wish = Wish { command, operator: &operator, reason: &reason };
        let items = match order {
            CommandAction::Redrive(items) => {
                self.each(items, |lanes, item| item.applicable && lanes.begin_run(command, item))
            }
            CommandAction::Replay(items) => {
                self.each(items, |lanes, item| lanes.is_settled(item) && lanes.begin_run(command, item))
            }
            CommandAction::Close { kind, items } => self.each(items, |lanes, item| lanes.close(&wish, kind, item, now)),
            CommandAction::Lane { lane, order } => {
                let seq = match order {
                    LaneCommand::Retry { head } | LaneCommand::Skip { head, .. } => head.seq,
                    LaneCommand::Pause | LaneCommand::Resume => StreamSeq(0),
                };
                // Of a subscription that is not ordered, the head has a lane of its own, or waits in its workflow's.
                let event = lane.of_event(seq);
                let lane = if self.state.lanes.contains_key(&event) { event } else { lane };
                let taken = self.order_lane(&wish, &lane, order, now);
                self.advance(&lane, now, actions);
                vec![result(lane.subscription, seq, taken)]
            }
            CommandAction::DiscardSubscription { uid } => {
                vec![result(uid, StreamSeq(0), self.discard_subscription(uid, &operator, &reason, actions))]
            }
            CommandAction::Runs { run, order } => {
                self.order_replay(&wish, run, order, now, actions);
                vec![]
            }
        };
        self.pending.result(v1::CommandResult { command: command.0, request_id, items });
    }

    fn each(
        &mut self,
        items: Vec<RedriveItem>,
        mut take: impl FnMut(&mut Self, &RedriveItem) -> bool,
    ) -> Vec<v1::ItemResult> {
        items.iter().map(|item| result(item.lane.subscription, item.seq, take(self, item))).collect()
    }

    /// Whether an event has come to its end in its lane. What has not been matched yet, or waits, is delivered anyway.
    fn is_settled(&self, item: &RedriveItem) -> bool {
        let (key, seq) = (&item.lane, item.seq);
        let waits =
            |key: &LaneKey| self.state.lanes.get(key).is_some_and(|lane| (lane.first()..=lane.last).contains(&seq));
        seq <= self.detached_through(key.subscription).unwrap_or(self.cursor)
            && !waits(key)
            && !waits(&key.of_event(seq))
    }

    /// The event is to be delivered in a run of its own, unless another run of it is under way.
    fn begin_run(&mut self, command: Run, item: &RedriveItem) -> bool {
        let RedriveItem { lane: workflow, subscription_name, seq, event, dead_run, .. } = item;
        let key = &self.lane_of(workflow, *seq);
        if !self.takes_commands(key.subscription) || self.is_running(key, *seq) {
            return false;
        }
        let lane = self.state.lane_mut(key);
        let pending = PendingRun {
            event_id: *event,
            dead_run: *dead_run,
            subscription_name: subscription_name.clone(),
            event: None,
            loading: false,
            paused: false,
            attempts: AttemptState::default(),
        };
        lane.runs.insert((*seq, command), pending);
        lane.hold = Some(self.pending.open());
        lane.touched = self.pending.open();
        self.pending.run(key, *seq, command);
        true
    }

    /// Whether a run of the event is under way, or has ended and is not committed: until then nobody can say how its dead
    /// letter stands.
    fn is_running(&self, key: &LaneKey, seq: StreamSeq) -> bool {
        let waits = |lane: &Lane| lane.runs.keys().any(|(other, _)| *other == seq);
        let runs = self.pending.is_settling(key.subscription, seq) || self.state.lanes.get(key).is_some_and(waits);
        runs && !has(Flaw::SecondRun)
    }

    /// An open dead letter has come to its end by an operator's word.
    fn close(&mut self, wish: &Wish, kind: v1::OutcomeKind, item: &RedriveItem, now: Timestamp) -> bool {
        let lane = self.lane_of(&item.lane, item.seq);
        // What a closed subscription had has ended with it.
        let reopening = |subscription: &Subscription| subscription.reopening;
        let is_closed = self.state.subscriptions.get(&lane.subscription).is_none_or(reopening);
        if !item.applicable || is_closed || self.is_running(&lane, item.seq) {
            return false;
        }
        let work = Work { lane, seq: item.seq, run: wish.command };
        let outcome = v1::Outcome {
            kind: kind.into(),
            event_id: item.event.to_vec(),
            at_ms: now.as_millisecond(),
            operator: wish.operator.to_owned(),
            ..outcome_of(&work)
        };
        self.pending.outcome(None, outcome, None);
        true
    }

    fn order_lane(&mut self, wish: &Wish, key: &LaneKey, order: LaneCommand, now: Timestamp) -> bool {
        if !self.takes_commands(key.subscription) {
            return false;
        }
        match order {
            LaneCommand::Retry { head } => self.retry(key, head),
            LaneCommand::Skip { head, event } => self.skip(wish, key, head, event, now),
            LaneCommand::Pause => self.pause_lane(key, true),
            LaneCommand::Resume => self.pause_lane(key, false),
        }
    }

    /// The head is attempted as soon as this is committed, and has all its retries before it again. Nothing to do for
    /// one that is being attempted.
    fn retry(&mut self, key: &LaneKey, head: HeadRef) -> bool {
        let Some(lane) = self.state.lanes.get_mut(key) else { return false };
        if !is_head(lane, head) || matches!(lane.in_flight, Some((_, Target::Head))) {
            return false;
        }
        lane.blocked = false;
        lane.head.not_before = None;
        lane.head.uncounted = lane.head.ended;
        self.hold(key);
        true
    }

    /// The head becomes a dead letter, also while it is being attempted: however that ends, it is settled.
    fn skip(&mut self, wish: &Wish, key: &LaneKey, head: HeadRef, event_id: EventId, now: Timestamp) -> bool {
        let Some(lane) = self.state.lanes.get_mut(key) else { return false };
        if !is_head(lane, head) {
            return false;
        }
        let seq = head.seq;
        if let Some((attempt, Target::Head)) = lane.in_flight {
            lane.in_flight = Some((attempt, Target::Cancelled { event: event_id, number: lane.head.ended + 1 }));
        }
        let (work, attempts) = (Work { lane: key.clone(), seq, run: Run::LIVE }, lane.head.clone());
        let error = match wish.reason {
            "" => format!("skipped by {}", wish.operator),
            reason => format!("skipped by {}: {reason}", wish.operator),
        };
        let reason = v1::DeadLetterReason::Skipped;
        if let Some(event) = lane.buffer.front().cloned() {
            let death = Death { reason, error, status: 0 };
            self.settle(&work, Target::Head, &event, &attempts, Some(death), now);
            return true;
        }
        lane.settle_unread(seq);
        self.bury(key, Burial { seq, event: event_id, attempts, reason, error }, now);
        true
    }

    fn pause_lane(&mut self, key: &LaneKey, paused: bool) -> bool {
        if self.state.lanes.get(key).is_some_and(|lane| lane.paused) == paused {
            return false;
        }
        let lane = self.state.lane_mut(key);
        lane.paused = paused;
        if paused {
            self.memory.give_back(key.subscription, lane.park());
            self.park_events_of(key);
        }
        self.hold(key);
        true
    }

    /// Nothing of the lane is attempted before the open draft is committed, which tells of the lane.
    fn hold(&mut self, key: &LaneKey) {
        if let Some(lane) = self.state.lanes.get_mut(key) {
            lane.hold = Some(self.pending.open());
            lane.touched = self.pending.open();
            self.pending.force(key);
        }
    }

    fn order_replay(&mut self, wish: &Wish, run: Run, order: ReplayCommand, now: Timestamp, actions: &mut Vec<Action>) {
        let of_run = |(key, lane): (&LaneKey, &Lane)| {
            let seqs: Vec<StreamSeq> =
                lane.runs.keys().filter(|(_, other)| *other == run).map(|(seq, _)| *seq).collect();
            (key.clone(), seqs)
        };
        let found: Vec<_> = self.state.lanes.iter().map(of_run).filter(|(_, seqs)| !seqs.is_empty()).collect();
        for (key, seqs) in found {
            for seq in seqs {
                match order {
                    ReplayCommand::Pause | ReplayCommand::Resume => {
                        self.pause_run(&key, seq, run, order == ReplayCommand::Pause);
                    }
                    ReplayCommand::Cancel => self.cancel_run(wish, &key, seq, run, now),
                }
            }
            self.advance(&key, now, actions);
        }
    }

    fn pause_run(&mut self, key: &LaneKey, seq: StreamSeq, run: Run, paused: bool) {
        let Some(lane) = self.state.lanes.get_mut(key) else { return };
        if let Some(pending) = lane.runs.get_mut(&(seq, run)) {
            pending.paused = paused;
            lane.hold = Some(self.pending.open());
            lane.touched = self.pending.open();
            self.pending.run(key, seq, run);
        }
    }

    fn cancel_run(&mut self, wish: &Wish, key: &LaneKey, seq: StreamSeq, run: Run, now: Timestamp) {
        let Some(lane) = self.state.lanes.get_mut(key) else { return };
        let Some(pending) = lane.runs.remove(&(seq, run)) else { return };
        if let Some((attempt, target)) = lane.in_flight
            && target == Target::Run(seq, run)
        {
            let gone = Target::Cancelled { event: pending.event_id, number: pending.attempts.ended + 1 };
            lane.in_flight = Some((attempt, gone));
        }
        let outcome = v1::Outcome {
            kind: v1::OutcomeKind::Discarded.into(),
            event_id: pending.event_id.to_vec(),
            attempts: pending.attempts.ended,
            at_ms: now.as_millisecond(),
            operator: wish.operator.to_owned(),
            ..outcome_of(&Work { lane: key.clone(), seq, run })
        };
        lane.hold = Some(self.pending.open());
        lane.touched = self.pending.open();
        self.pending.outcome(Some(key), outcome, None);
    }
}

/// Whether the lane's oldest unsettled event is this one.
fn is_head(lane: &Lane, head: HeadRef) -> bool {
    let first = lane.first();
    let unread = lane.buffer.is_empty() && (head.next..=head.seq).contains(&first);
    !lane.is_settled() && head.seq <= lane.last && (first == head.seq || unread)
}

fn result(subscription: SubscriptionUid, seq: StreamSeq, taken: bool) -> v1::ItemResult {
    let status = if taken { v1::CommandStatus::Taken } else { v1::CommandStatus::NotApplicable };
    v1::ItemResult { subscription: subscription.to_vec(), sequence: seq.0, status: status.into() }
}
