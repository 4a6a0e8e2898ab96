//! The lanes and subscriptions that drafts tell of, and how they are written into log records.

use std::{
    collections::{BTreeMap, HashMap},
    sync::Arc,
};

use jiff::Timestamp;
use weft_nats::catalog::{Filters, apply_change};
use weft_proto::{
    ids::{EventId, Run, StreamSeq, SubscriptionUid, WorkflowId},
    v1::{self, subscription_change::Change},
};

use super::{
    Restored,
    circuit::{Cause, Condition},
    detached::Detached,
    flaw::{Flaw, has},
    input::{AttemptEnd, LaneKey, SubscriptionPolicy, Work},
    lane::{AttemptState, Lane, PendingRun, instant, millis, restored_wait},
    pending_commits::RecordSource,
};

/// What the machine knows of a subscription.
#[derive(Debug, Default)]
pub(super) struct Subscription {
    /// The committed record, with what is drafted. `detached` is kept beside it.
    state: v1::SubscriptionState,
    /// The filters of `state`.
    filters: Arc<Filters>,
    /// None until the catalog tells them.
    pub policy: Option<SubscriptionPolicy>,
    /// The catalog has been read, and has no such subscription.
    pub orphaned: bool,
    /// The draft with its newest filter, until that is committed. Nothing is attempted before: an owner that takes over
    /// would match the same events by another filter, and might find one to deliver before those already delivered.
    pub awaits: Option<u64>,
    /// It was closed before, and that it is opened again is not committed yet: the ledger still shows what ended with it.
    pub reopening: bool,
    /// While it reads on its own.
    pub detached: Option<Detached>,
    /// The revision of the rules whose receiver has said that it wants nothing any more. Nothing is attempted by them.
    pub gone: Option<u64>,
}

impl Subscription {
    fn of(state: v1::SubscriptionState) -> Self {
        let detached = state.detached.map(|next| Detached::behind(StreamSeq(next)));
        Self { filters: Arc::new(Filters::of(&state)), state, detached, ..Self::default() }
    }

    /// The committed record, with what is drafted.
    pub fn state(&self) -> &v1::SubscriptionState {
        &self.state
    }

    /// The filters that it has had, by the places that they count from.
    pub fn filters(&self) -> &Arc<Filters> {
        &self.filters
    }

    /// Whether its lanes may do anything.
    pub fn is_active(&self) -> bool {
        self.is_enabled() && (self.awaits.is_none() || has(Flaw::FilterNotCommitted))
    }

    /// Whether its lanes may do anything once its filter is committed.
    pub fn is_enabled(&self) -> bool {
        let may = |policy: &SubscriptionPolicy| {
            (!policy.paused || has(Flaw::PausedSubscription)) && self.gone != Some(policy.revision)
        };
        !self.orphaned && self.policy.as_ref().is_some_and(may)
    }
}

/// The state that drafts tell of.
#[derive(Debug, Default)]
pub(super) struct State {
    pub lanes: BTreeMap<LaneKey, Lane>,
    pub subscriptions: HashMap<SubscriptionUid, Subscription>,
    /// Subscriptions that have ended, and up to where everything of them has, if that is known.
    closed: HashMap<SubscriptionUid, Option<StreamSeq>>,
    /// The newest position of the catalog that a change of a subscription was decided at.
    catalog: v1::CatalogPosition,
    /// How many lanes there are of each subscription.
    lane_counts: HashMap<SubscriptionUid, usize>,
    /// Lanes of single events that wait to be delivered live, by subscription.
    event_lanes: HashMap<SubscriptionUid, usize>,
}

impl State {
    /// The world as the ledger left it.
    pub fn restored(restored: &Restored, now: Timestamp) -> Self {
        let mut state = State::default();
        for record in &restored.subscriptions {
            state.note_catalog(record.catalog.as_ref());
            let Some(uid) = SubscriptionUid::from_slice(&record.subscription) else { continue };
            if record.closed {
                state.closed.insert(uid, record.closed_through.map(StreamSeq));
            } else {
                state.subscriptions.insert(uid, Subscription::of(record.clone()));
            }
        }
        for lane in &restored.lanes {
            if let Some(key) = key_of(&lane.subscription, &lane.workflow_id, lane.unordered.then_some(lane.last)) {
                *state.lane_mut(&key) = Lane::restored(lane, now);
                state.take_slot(&key);
            }
        }
        for run in &restored.runs {
            let (Some(key), Some(event_id)) = (
                key_of(&run.subscription, &run.workflow_id, run.unordered.then_some(run.sequence)),
                EventId::from_slice(&run.event_id),
            ) else {
                continue;
            };
            let pending = PendingRun {
                event_id,
                dead_run: Run(run.dead_run),
                subscription_name: run.subscription_name.clone(),
                event: None,
                loading: false,
                paused: run.paused,
                attempts: AttemptState {
                    ended: run.attempts,
                    uncounted: run.uncounted,
                    not_before: restored_wait(run.next_attempt_at_ms, run.wait_ms, now),
                    wait_ms: run.wait_ms,
                    first_failed_at: instant(run.first_failed_at_ms),
                },
            };
            state.lane_mut(&key).runs.insert((StreamSeq(run.sequence), Run(run.run)), pending);
        }
        state
    }

    /// Takes note of a change that is drafted. One that opens or closes a subscription makes it or takes it out.
    pub fn change(&mut self, uid: SubscriptionUid, change: &v1::SubscriptionChange) {
        self.note_catalog(change.catalog.as_ref());
        match &change.change {
            Some(Change::Closed(closed)) => {
                self.subscriptions.remove(&uid);
                self.closed.insert(uid, Some(StreamSeq(closed.up_to)));
            }
            Some(Change::Opened(_) | Change::Revised(_)) => {
                self.closed.remove(&uid);
                let subscription = self.subscriptions.entry(uid).or_default();
                apply_change(&mut subscription.state, change);
                subscription.filters = Arc::new(Filters::of(&subscription.state));
            }
            Some(Change::Detached(_)) | None => {}
        }
    }

    fn note_catalog(&mut self, position: Option<&v1::CatalogPosition>) {
        let order = |position: &v1::CatalogPosition| (position.created_ns, position.sequence);
        if let Some(position) = position.filter(|position| order(position) > order(&self.catalog)) {
            self.catalog = *position;
        }
    }

    /// The newest position of the catalog that a change of a subscription was decided at.
    pub fn catalog(&self) -> v1::CatalogPosition {
        self.catalog
    }

    /// Up to where everything of a closed subscription has ended, if that is known; `None`: it is not closed.
    pub fn closed_through(&self, uid: SubscriptionUid) -> Option<Option<StreamSeq>> {
        self.closed.get(&uid).copied()
    }

    pub fn lanes_of(&self, uid: SubscriptionUid) -> impl Iterator<Item = (&LaneKey, &Lane)> {
        LaneKey::first_of(uid)
            .into_iter()
            .flat_map(|first| self.lanes.range(first..))
            .take_while(move |(key, _)| key.subscription == uid)
    }

    /// Whether a subscription's lanes may do anything.
    pub fn is_active(&self, uid: SubscriptionUid) -> bool {
        self.subscriptions.get(&uid).is_some_and(Subscription::is_active)
    }

    /// Whether a lane may do anything, as far as its subscription and operators are concerned.
    pub fn may_deliver(&self, key: &LaneKey) -> bool {
        self.parent_allows(key) && !self.lanes.get(key).is_some_and(Lane::is_stopped)
    }

    /// As [`may_deliver`](Self::may_deliver), but for the lane itself. Who stops a workflow stops the lanes of its events.
    pub fn parent_allows(&self, key: &LaneKey) -> bool {
        let held = |key: LaneKey| self.lanes.get(&key).is_some_and(|lane| lane.is_stopped() || lane.hold.is_some());
        self.is_active(key.subscription) && !(key.event.is_some() && held(key.workflow_lane()))
    }

    /// The lane, which is made where there is none.
    pub fn lane_mut(&mut self, key: &LaneKey) -> &mut Lane {
        self.lanes.entry(key.clone()).or_insert_with(|| {
            *self.lane_counts.entry(key.subscription).or_default() += 1;
            Lane::settled()
        })
    }

    /// A lane has taken an event: of those of single events there are only so many. Redrives and replays are not counted,
    /// so that they keep nothing waiting.
    pub fn take_slot(&mut self, key: &LaneKey) {
        if key.event.is_some()
            && let Some(lane) = self.lanes.get_mut(key).filter(|lane| !lane.has_slot)
        {
            lane.has_slot = true;
            *self.event_lanes.entry(key.subscription).or_default() += 1;
        }
    }

    /// Takes a lane out.
    pub fn remove_lane(&mut self, key: &LaneKey) -> Option<Lane> {
        let lane = self.lanes.remove(key)?;
        count_down(&mut self.lane_counts, key.subscription);
        if lane.has_slot {
            count_down(&mut self.event_lanes, key.subscription);
        }
        Some(lane)
    }

    /// Lanes of a subscription, whatever they wait for.
    pub fn lanes_in_memory(&self, uid: SubscriptionUid) -> usize {
        self.lane_counts.get(&uid).copied().unwrap_or_default()
    }

    /// How a subscription stands, if it reads on its own.
    pub fn detached(&self, uid: SubscriptionUid) -> Option<Detached> {
        self.subscriptions.get(&uid)?.detached
    }

    /// Lanes of single events that a subscription has waiting.
    pub fn event_lanes(&self, uid: SubscriptionUid) -> usize {
        self.event_lanes.get(&uid).copied().unwrap_or_default()
    }
}

impl RecordSource for State {
    fn lane(&mut self, key: &LaneKey) -> Option<v1::Lane> {
        let lane = self.lanes.get_mut(key).filter(|lane| !lane.is_settled() || lane.paused)?;
        lane.recorded_next = lane.first();
        Some(v1::Lane {
            subscription: key.subscription.to_vec(),
            workflow_id: key.workflow.as_str().to_owned(),
            next: lane.first().0,
            last: lane.last.0,
            attempts: lane.head.ended,
            next_attempt_at_ms: millis(lane.head.not_before),
            state: if lane.blocked { v1::LaneState::Blocked } else { v1::LaneState::Open }.into(),
            first_failed_at_ms: millis(lane.head.first_failed_at),
            uncounted: lane.head.uncounted,
            paused: lane.paused,
            unordered: key.event.is_some(),
            wait_ms: lane.head.wait_ms,
        })
    }

    fn run(&self, work: &Work) -> Option<v1::PendingRun> {
        let pending = self.lanes.get(&work.lane)?.runs.get(&(work.seq, work.run))?;
        Some(v1::PendingRun {
            subscription: work.lane.subscription.to_vec(),
            sequence: work.seq.0,
            run: work.run.0,
            workflow_id: work.lane.workflow.as_str().to_owned(),
            event_id: pending.event_id.to_vec(),
            attempts: pending.attempts.ended,
            next_attempt_at_ms: millis(pending.attempts.not_before),
            dead_run: pending.dead_run.0,
            subscription_name: pending.subscription_name.clone(),
            first_failed_at_ms: millis(pending.attempts.first_failed_at),
            uncounted: pending.attempts.uncounted,
            paused: pending.paused,
            unordered: work.lane.event.is_some(),
            wait_ms: pending.attempts.wait_ms,
        })
    }

    fn detached(&self, uid: SubscriptionUid) -> u64 {
        State::detached(self, uid).map_or(0, |detached| detached.through.next().0)
    }
}

fn count_down(counts: &mut HashMap<SubscriptionUid, usize>, uid: SubscriptionUid) {
    if let Some(count) = counts.get_mut(&uid) {
        *count -= 1;
        if *count == 0 {
            counts.remove(&uid);
        }
    }
}

fn key_of(subscription: &[u8], workflow: &str, event: Option<u64>) -> Option<LaneKey> {
    let lane = LaneKey::of_workflow(SubscriptionUid::from_slice(subscription)?, WorkflowId::new(workflow).ok()?);
    Some(match event {
        Some(seq) => lane.of_event(StreamSeq(seq)),
        None => lane,
    })
}

/// An outcome with what names its work.
pub(super) fn outcome_of(work: &Work) -> v1::Outcome {
    v1::Outcome {
        subscription: work.lane.subscription.to_vec(),
        sequence: work.seq.0,
        run: work.run.0,
        workflow_id: work.lane.workflow.as_str().to_owned(),
        unordered: work.lane.event.is_some(),
        ..Default::default()
    }
}

/// How a receiver stands, for the log.
pub(super) fn receiver_record(uid: SubscriptionUid, condition: Option<&Condition>) -> v1::ReceiverState {
    let subscription = uid.to_vec();
    let Some(condition) = condition else {
        return v1::ReceiverState {
            subscription,
            condition: v1::ReceiverCondition::Available.into(),
            ..Default::default()
        };
    };
    let of = match condition.cause {
        Cause::Away => v1::ReceiverCondition::Away,
        Cause::Held => v1::ReceiverCondition::Held,
    };
    v1::ReceiverState {
        subscription,
        condition: of.into(),
        since_ms: condition.since.as_millisecond(),
        reason: condition.reason.clone(),
        next_attempt_at_ms: condition.next_probe.as_millisecond(),
    }
}

pub(super) fn attempt_record(
    work: &Work,
    event: EventId,
    number: u32,
    end: &AttemptEnd,
    uncounted: bool,
    next_attempt: Option<Timestamp>,
) -> v1::Attempt {
    v1::Attempt {
        subscription: work.lane.subscription.to_vec(),
        sequence: work.seq.0,
        run: work.run.0,
        number,
        started_at_ms: end.started_at.as_millisecond(),
        ended_at_ms: end.ended_at.as_millisecond(),
        class: end.class.into(),
        status: u32::from(end.status),
        error: end.error.clone(),
        response: end.response.to_vec(),
        next_attempt_at_ms: millis(next_attempt),
        event_id: event.to_vec(),
        workflow_id: work.lane.workflow.as_str().to_owned(),
        uncounted,
    }
}

pub(super) fn ceil_millisecond(at: Timestamp) -> Timestamp {
    if at.as_nanosecond() % 1_000_000 == 0 {
        return at;
    }
    Timestamp::from_millisecond(at.as_millisecond().saturating_add(1)).unwrap_or(at)
}
