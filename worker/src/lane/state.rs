//! The lanes and subscriptions that commits record.

use std::{
    collections::{BTreeMap, HashMap},
    sync::Arc,
};

use jiff::Timestamp;
use weft_catalog::{Filters, apply_change};
use weft_proto::{
    ids::{EventId, Run, StreamSeq, SubscriptionUid, WorkflowId},
    internal::{self, subscription_change::Change},
};

use super::{
    Restored,
    input::{LaneKey, SubscriptionPolicy, Work},
    lane::{AttemptState, Lane, PendingRun, instant, interval, millis, restored_wait},
    pending_commits::RecordSource,
};

/// The position of a detached subscription, which reads EVENTS with its own reader.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Detached {
    /// It has taken everything up to here.
    pub through: StreamSeq,
    /// The next message is an event that it had no room for.
    pub waits: bool,
}

impl Detached {
    /// A subscription that reads from `next` on.
    pub fn from(next: StreamSeq) -> Self {
        Self { through: StreamSeq(next.0.saturating_sub(1)), waits: false }
    }
}

/// A subscription that is not closed.
#[derive(Debug, Default)]
pub(super) struct Subscription {
    /// The committed record with the pending changes, but for `detached`.
    state: internal::SubscriptionState,
    /// The filters of `state`.
    filters: Arc<Filters>,
    /// `None` until the catalog has been read.
    pub policy: Option<SubscriptionPolicy>,
    /// The catalog has been read and lacks it.
    pub orphaned: bool,
    /// Number of the commit with its newest filter, until that is stored. Nothing is attempted before: an owner that takes
    /// over would match the same events by another filter, and might deliver one after events that follow it.
    pub awaits: Option<u64>,
    /// It was closed before, and its reopening is not committed: the ledger still has the records of that time.
    pub reopening: bool,
    /// Its position while it is detached.
    pub detached: Option<Detached>,
    /// Revision of the policy whose endpoint has retired. Nothing is attempted by that revision.
    pub retired: Option<u64>,
}

impl Subscription {
    fn of(state: internal::SubscriptionState) -> Self {
        let detached = state.detached.map(|next| Detached::from(StreamSeq(next)));
        Self { filters: Arc::new(Filters::of(&state)), state, detached, ..Self::default() }
    }

    /// The committed record with the pending changes.
    pub fn state(&self) -> &internal::SubscriptionState {
        &self.state
    }

    /// The filters that it has had, each with the sequence that it counts from.
    pub fn filters(&self) -> &Arc<Filters> {
        &self.filters
    }

    /// Whether its lanes may attempt and read.
    pub fn is_active(&self) -> bool {
        self.is_enabled() && self.awaits.is_none()
    }

    /// Whether its lanes may attempt and read once its filter is committed.
    pub fn is_enabled(&self) -> bool {
        let may = |policy: &SubscriptionPolicy| !policy.paused && self.retired != Some(policy.revision);
        !self.orphaned && self.policy.as_ref().is_some_and(may)
    }
}

/// The lanes and subscriptions of a shard.
#[derive(Debug, Default)]
pub(super) struct State {
    pub lanes: BTreeMap<LaneKey, Lane>,
    pub subscriptions: HashMap<SubscriptionUid, Subscription>,
    /// Closed subscriptions, and up to where each had taken events, if that is known.
    pub closed: HashMap<SubscriptionUid, Option<StreamSeq>>,
    /// The newest position of the catalog that a change of a subscription was decided at.
    catalog: internal::CatalogPosition,
    /// Number of lanes of each subscription.
    lane_counts: HashMap<SubscriptionUid, usize>,
}

impl State {
    /// The state that the ledger has.
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
                cancelled_by: run.cancelled_by.clone(),
                min_interval: interval(run.interval_us),
                slot: None,
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

    /// Applies a pending change. One that opens or closes a subscription adds or removes it.
    pub fn change(&mut self, uid: SubscriptionUid, change: &internal::SubscriptionChange) {
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

    fn note_catalog(&mut self, position: Option<&internal::CatalogPosition>) {
        let order = |position: &internal::CatalogPosition| (position.created_ns, position.sequence);
        if let Some(position) = position.filter(|position| order(position) > order(&self.catalog)) {
            self.catalog = *position;
        }
    }

    /// The newest position of the catalog that a change of a subscription was decided at.
    pub fn catalog(&self) -> internal::CatalogPosition {
        self.catalog
    }

    /// The policy of a subscription, once the catalog has been read.
    pub fn policy(&self, uid: SubscriptionUid) -> Option<&SubscriptionPolicy> {
        self.subscriptions.get(&uid)?.policy.as_ref()
    }

    /// Up to where a closed subscription had taken events, if that is known; `None`: it is not closed.
    pub fn closed_through(&self, uid: SubscriptionUid) -> Option<Option<StreamSeq>> {
        self.closed.get(&uid).copied()
    }

    /// The lanes of a subscription.
    pub fn lanes_of(&self, uid: SubscriptionUid) -> impl Iterator<Item = (&LaneKey, &Lane)> {
        LaneKey::first_of(uid)
            .into_iter()
            .flat_map(|first| self.lanes.range(first..))
            .take_while(move |(key, _)| key.subscription == uid)
    }

    /// Whether a subscription's lanes may attempt and read.
    pub fn is_active(&self, uid: SubscriptionUid) -> bool {
        self.subscriptions.get(&uid).is_some_and(Subscription::is_active)
    }

    /// Whether a lane may attempt and read, as far as its subscription and operators are concerned.
    pub fn may_deliver(&self, key: &LaneKey) -> bool {
        self.parent_allows(key) && !self.lanes.get(key).is_some_and(|lane| lane.paused)
    }

    /// As [`may_deliver`](Self::may_deliver), without the lane's own pause. The lane of a workflow that is paused or held
    /// stops its event lanes.
    pub fn parent_allows(&self, key: &LaneKey) -> bool {
        let stops = |key: LaneKey| self.lanes.get(&key).is_some_and(|lane| lane.paused || lane.hold.is_some());
        self.is_active(key.subscription) && !(key.event.is_some() && stops(key.workflow_lane()))
    }

    /// The lane, inserted where there is none.
    pub fn lane_mut(&mut self, key: &LaneKey) -> &mut Lane {
        self.lanes.entry(key.clone()).or_insert_with(|| {
            *self.lane_counts.entry(key.subscription).or_default() += 1;
            Lane::settled()
        })
    }

    /// Removes a lane.
    pub fn remove_lane(&mut self, key: &LaneKey) -> Option<Lane> {
        let lane = self.lanes.remove(key)?;
        if let Some(count) = self.lane_counts.get_mut(&key.subscription) {
            *count -= 1;
            if *count == 0 {
                self.lane_counts.remove(&key.subscription);
            }
        }
        Some(lane)
    }

    /// Number of a subscription's lanes in memory.
    pub fn lanes_in_memory(&self, uid: SubscriptionUid) -> usize {
        self.lane_counts.get(&uid).copied().unwrap_or_default()
    }

    /// The position of a subscription, if it is detached.
    pub fn detached(&self, uid: SubscriptionUid) -> Option<Detached> {
        self.subscriptions.get(&uid)?.detached
    }
}

impl RecordSource for State {
    fn lane(&mut self, key: &LaneKey) -> Option<internal::Lane> {
        let lane = self.lanes.get_mut(key).filter(|lane| !lane.is_settled() || lane.paused)?;
        lane.recorded_next = lane.first();
        Some(internal::Lane {
            subscription: key.subscription.to_vec(),
            workflow_id: key.workflow.as_str().to_owned(),
            next: lane.first().0,
            last: lane.last.0,
            attempts: lane.head.ended,
            next_attempt_at_ms: millis(lane.head.not_before),
            state: if lane.blocked { internal::LaneState::Blocked } else { internal::LaneState::Open }.into(),
            first_failed_at_ms: millis(lane.head.first_failed_at),
            uncounted: lane.head.uncounted,
            paused: lane.paused,
            unordered: key.event.is_some(),
            wait_ms: lane.head.wait_ms,
        })
    }

    fn run(&self, work: &Work) -> Option<internal::PendingRun> {
        let pending = self.lanes.get(&work.lane)?.runs.get(&(work.seq, work.run))?;
        Some(internal::PendingRun {
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
            cancelled_by: pending.cancelled_by.clone(),
            interval_us: pending
                .min_interval
                .map_or(0, |interval| u64::try_from(interval.as_micros()).unwrap_or(u64::MAX)),
        })
    }

    fn detached(&self, uid: SubscriptionUid) -> u64 {
        State::detached(self, uid).map_or(0, |detached| detached.through.next().0)
    }
}

fn key_of(subscription: &[u8], workflow: &str, event: Option<u64>) -> Option<LaneKey> {
    let lane = LaneKey::of_workflow(SubscriptionUid::from_slice(subscription)?, WorkflowId::new(workflow).ok()?);
    Some(match event {
        Some(seq) => lane.of_event(StreamSeq(seq)),
        None => lane,
    })
}
