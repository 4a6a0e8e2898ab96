//! Operators' commands: redrives, replays, closed dead letters, and commands to single lanes and replays.
//!
//! A command takes effect with the commit that holds its result and moves the COMMANDS cursor past it; its consequences are
//! held until that commit is stored. Each item is conditional on the state that it names: one that no longer matches is
//! `not_applicable`.

use std::time::Duration;

use jiff::Timestamp;
use weft_nats::commands::skip_error;
use weft_proto::{
    ids::{EventId, Run, StreamSeq, SubscriptionUid},
    internal, v1,
};

use super::Lanes;
use crate::lane::{
    action::Action,
    input::{Command, CommandAction, HeadRef, LaneCommand, LaneKey, RedriveItem, ReplayCommand, Work},
    lane::{AttemptState, Lane, PendingRun, Target},
    records::{DeadLetter, outcome_of},
    state::Subscription,
};

impl Lanes {
    pub(super) fn command_received(&mut self, command: &Command, now: Timestamp, actions: &mut Vec<Action>) {
        self.commands_cursor = self.commands_cursor.max(command.run.0);
        let run = command.run;
        let items = match &command.action {
            CommandAction::Redrive(items) => {
                self.each(items, |lanes, item| item.applicable && lanes.start_run(run, item, None))
            }
            CommandAction::Replay { items, min_interval } => {
                self.forget_paces();
                self.each(items, |lanes, item| lanes.is_settled(item) && lanes.start_run(run, item, *min_interval))
            }
            CommandAction::Close { kind, items } => {
                self.each(items, |lanes, item| lanes.close_dead_letter(command, *kind, item, now))
            }
            CommandAction::Lane { lane, command: lane_command } => {
                let seq = match lane_command {
                    LaneCommand::Retry { head } | LaneCommand::Skip { head, .. } => head.seq,
                    LaneCommand::Pause | LaneCommand::Resume => StreamSeq(0),
                };
                // The head of an unordered subscription is in its event lane, or still in its workflow's lane.
                let event = lane.of_event(seq);
                let lane = if self.state.lanes.contains_key(&event) { &event } else { lane };
                let taken = self.lane_command(command, lane, *lane_command, now);
                self.advance(lane, now, actions);
                vec![result(lane.subscription, seq, taken)]
            }
            CommandAction::DiscardSubscription { uid } => {
                let taken = self.discard_subscription(*uid, &command.operator, &command.reason, actions);
                vec![result(*uid, StreamSeq(0), taken)]
            }
            CommandAction::Runs { run, command: replay_command } => {
                self.replay_command(command, *run, *replay_command, now, actions);
                vec![]
            }
        };
        let request_id = command.request_id.clone();
        self.pending.result(internal::CommandResult { command: run.0, request_id, items });
    }

    fn each(
        &mut self,
        items: &[RedriveItem],
        mut take: impl FnMut(&mut Self, &RedriveItem) -> bool,
    ) -> Vec<internal::ItemResult> {
        items.iter().map(|item| result(item.lane.subscription, item.seq, take(self, item))).collect()
    }

    /// Whether an event is settled. An event that is not matched yet, or is pending, is delivered without a replay.
    fn is_settled(&self, item: &RedriveItem) -> bool {
        let (key, seq) = (&item.lane, item.seq);
        let is_pending =
            |key: &LaneKey| self.state.lanes.get(key).is_some_and(|lane| (lane.first()..=lane.last).contains(&seq));
        seq <= self.detached_through(key.subscription).unwrap_or(self.cursor)
            && !is_pending(key)
            && !is_pending(&key.of_event(seq))
    }

    /// Adds a run of the event, unless it has one already. Whether it was added.
    fn start_run(&mut self, run: Run, item: &RedriveItem, min_interval: Option<Duration>) -> bool {
        let RedriveItem { lane: workflow, subscription_name, seq, event, dead_run, .. } = item;
        let key = &self.lane_of(workflow, *seq);
        if !self.takes_commands(key.subscription) || self.has_run(key, *seq) {
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
            cancelled_by: String::new(),
            min_interval,
            slot: None,
            attempts: AttemptState::default(),
        };
        lane.runs.insert((*seq, run), pending);
        self.pending.hold(key, lane);
        self.pending.run(key, *seq, run);
        true
    }

    /// Whether the event has a run that is pending, or settled and not committed: until the commit the state of its dead
    /// letter is unknown.
    fn has_run(&self, key: &LaneKey, seq: StreamSeq) -> bool {
        let is_pending = |lane: &Lane| lane.runs.keys().any(|(other, _)| *other == seq);
        self.pending.is_settling(key.subscription, seq) || self.state.lanes.get(key).is_some_and(is_pending)
    }

    /// Resolves or discards an open dead letter. Whether it was open.
    fn close_dead_letter(
        &mut self,
        command: &Command,
        kind: internal::OutcomeKind,
        item: &RedriveItem,
        now: Timestamp,
    ) -> bool {
        let lane = self.lane_of(&item.lane, item.seq);
        // The dead letters of a closed subscription were closed with it.
        let reopening = |subscription: &Subscription| subscription.reopening;
        let is_closed = self.state.subscriptions.get(&lane.subscription).is_none_or(reopening);
        if !item.applicable || is_closed || self.has_run(&lane, item.seq) {
            return false;
        }
        let work = Work { lane, seq: item.seq, run: command.run };
        let outcome = internal::Outcome {
            kind: kind.into(),
            event_id: item.event.to_vec(),
            at_ms: now.as_millisecond(),
            operator: command.operator.clone(),
            ..outcome_of(&work)
        };
        self.pending.outcome(outcome, None);
        true
    }

    fn lane_command(&mut self, command: &Command, key: &LaneKey, lane_command: LaneCommand, now: Timestamp) -> bool {
        if !self.takes_commands(key.subscription) {
            return false;
        }
        match lane_command {
            LaneCommand::Retry { head } => self.retry_head(key, head),
            LaneCommand::Skip { head, event } => self.skip_head(command, key, head, event, now),
            LaneCommand::Pause => self.pause_lane(key, true),
            LaneCommand::Resume => self.pause_lane(key, false),
        }
    }

    /// Makes the head due as soon as this is committed, with all its retries. Not applicable while it is being attempted.
    fn retry_head(&mut self, key: &LaneKey, head: HeadRef) -> bool {
        let Some(lane) = self.state.lanes.get_mut(key) else { return false };
        if !is_head(lane, head) || lane.is_attempting_head() {
            return false;
        }
        lane.blocked = false;
        lane.head.not_before = None;
        lane.head.uncounted = lane.head.ended;
        self.hold_and_record(key);
        true
    }

    /// Makes the head a dead letter, also while it is being attempted: the end of that attempt settles nothing.
    fn skip_head(
        &mut self,
        command: &Command,
        key: &LaneKey,
        head: HeadRef,
        event_id: EventId,
        now: Timestamp,
    ) -> bool {
        let Some(lane) = self.state.lanes.get_mut(key) else { return false };
        if !is_head(lane, head) {
            return false;
        }
        let seq = head.seq;
        let attempts = lane.head.clone();
        let error = skip_error(&command.operator, &command.reason);
        let operator = command.operator.clone();
        let dead = DeadLetter { reason: v1::DeadLetterReason::Skipped, error, status: 0, operator };
        if let Some(event) = lane.buffer.front().cloned() {
            let work = Work { lane: key.clone(), seq, run: Run::LIVE };
            self.settle(&work, Target::Head, &event, &attempts, Some(dead), now);
            return true;
        }
        lane.settle_unread(seq);
        self.record_dead_letter(key, seq, event_id, &attempts, dead, now);
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
        self.hold_and_record(key);
        true
    }

    /// Holds the lane until the open commit is stored, which records it even where it is settled.
    fn hold_and_record(&mut self, key: &LaneKey) {
        if let Some(lane) = self.state.lanes.get_mut(key) {
            self.pending.hold(key, lane);
            self.pending.force(key, lane);
        }
    }

    fn replay_command(
        &mut self,
        command: &Command,
        run: Run,
        replay_command: ReplayCommand,
        now: Timestamp,
        actions: &mut Vec<Action>,
    ) {
        let of_run = |(key, lane): (&LaneKey, &Lane)| {
            let seqs: Vec<StreamSeq> =
                lane.runs.keys().filter(|(_, other)| *other == run).map(|(seq, _)| *seq).collect();
            (key.clone(), seqs)
        };
        let found: Vec<_> = self.state.lanes.iter().map(of_run).filter(|(_, seqs)| !seqs.is_empty()).collect();
        for (key, seqs) in found {
            for seq in seqs {
                match replay_command {
                    ReplayCommand::Pause => self.pause_run(&key, seq, run, true),
                    ReplayCommand::Resume => self.pause_run(&key, seq, run, false),
                    ReplayCommand::Cancel => {
                        let kind = internal::OutcomeKind::Discarded;
                        self.cancel_run(&key, seq, run, kind, &command.operator, now);
                    }
                    ReplayCommand::Reopen => self.reopen_run(&key, seq, run, &command.operator, now),
                }
            }
            self.advance(&key, now, actions);
        }
    }

    fn pause_run(&mut self, key: &LaneKey, seq: StreamSeq, run: Run, paused: bool) {
        let Some(lane) = self.state.lanes.get_mut(key) else { return };
        if let Some(pending) = lane.runs.get_mut(&(seq, run)) {
            pending.paused = paused;
            self.pending.hold(key, lane);
            self.pending.run(key, seq, run);
        }
    }

    /// Ends a run by an operator's command, with an outcome of this kind.
    fn cancel_run(
        &mut self,
        key: &LaneKey,
        seq: StreamSeq,
        run: Run,
        kind: internal::OutcomeKind,
        operator: &str,
        now: Timestamp,
    ) {
        let Some(lane) = self.state.lanes.get_mut(key) else { return };
        let Some(pending) = lane.runs.remove(&(seq, run)) else { return };
        let outcome = internal::Outcome {
            kind: kind.into(),
            event_id: pending.event_id.to_vec(),
            attempts: pending.attempts.ended,
            at_ms: now.as_millisecond(),
            operator: operator.to_owned(),
            ..outcome_of(&Work { lane: key.clone(), seq, run })
        };
        self.record_outcome(key, outcome);
    }

    /// Ends a run of a redrive. Of one that is being attempted the receiver may have the event already: the end of that
    /// attempt decides, so that another redrive does not deliver it a second time.
    fn reopen_run(&mut self, key: &LaneKey, seq: StreamSeq, run: Run, operator: &str, now: Timestamp) {
        let Some(lane) = self.state.lanes.get_mut(key) else { return };
        if lane.in_flight.is_none_or(|in_flight| in_flight.target != Target::Run(seq, run)) {
            return self.cancel_run(key, seq, run, internal::OutcomeKind::Cancelled, operator, now);
        }
        if let Some(pending) = lane.runs.get_mut(&(seq, run)) {
            operator.clone_into(&mut pending.cancelled_by);
            self.pending.touch(key, lane);
            self.pending.run(key, seq, run);
        }
    }

    /// An attempt of a run has ended without settling it: it was the last, if its redrive has been cancelled.
    pub(super) fn end_cancelled_run(&mut self, key: &LaneKey, target: Target, now: Timestamp) {
        let Target::Run(seq, run) = target else { return };
        let pending = self.state.lanes.get(key).and_then(|lane| lane.runs.get(&(seq, run)));
        let operator = pending.map(|pending| pending.cancelled_by.clone()).filter(|operator| !operator.is_empty());
        if let Some(operator) = operator {
            self.cancel_run(key, seq, run, internal::OutcomeKind::Cancelled, &operator, now);
        }
    }
}

/// Whether the lane's oldest unsettled event is this one.
fn is_head(lane: &Lane, head: HeadRef) -> bool {
    let first = lane.first();
    let is_unread = lane.buffer.is_empty() && (head.next..=head.seq).contains(&first);
    !lane.is_settled() && head.seq <= lane.last && (first == head.seq || is_unread)
}

fn result(subscription: SubscriptionUid, seq: StreamSeq, taken: bool) -> internal::ItemResult {
    let status = if taken { internal::CommandStatus::Taken } else { internal::CommandStatus::NotApplicable };
    internal::ItemResult { subscription: subscription.to_vec(), sequence: seq.0, status: status.into() }
}
