//! Reading: lanes with unsettled events, and those that an operator has paused.

use weft_catalog::{Filters, edit::RECORD_SHARD};
use weft_nats::subject::Layout;
use weft_proto::{
    ids::{ShardId, SubscriptionUid, WorkflowId},
    internal,
    v1::{LaneState, ReceiverCondition},
};

use super::{
    bits::place,
    names::Subscriptions,
    pauses::{self, Pause},
    postings::{Segment, Taker},
    receivers,
    tables::{UID_MIN, Uid, View, WORKFLOW_LANE, decode, get},
};

/// Maximum number of rows that one page reads, so that a selective filter costs a bounded time.
const ROWS_MAX: usize = 10_000;
/// Maximum number of segments that are read to count the waiting events of a lane: several million events.
const SEGMENTS_MAX: usize = 500;

/// A lane.
#[derive(Debug, Clone, PartialEq)]
pub struct LaneHistory {
    /// The subscription.
    pub uid: SubscriptionUid,
    /// The subscription's name.
    pub subscription: String,
    /// The workflow.
    pub workflow: WorkflowId,
    /// The workflow's shard.
    pub shard: ShardId,
    /// The lane's state, as recorded by its shard's owner.
    pub lane: internal::Lane,
    /// Its subscription is paused, or missing from the catalog; or it is the lane of one event, and an operator has stopped
    /// its workflow's.
    pub is_stopped: bool,
    /// State of its receiver if that is away or held; `None`: available.
    pub receiver: Option<internal::ReceiverState>,
    /// Operator and reason of its pause; `None`: it is not paused.
    pub pause: Option<Pause>,
    /// Its events after the head, by type and source.
    pub waiting: u64,
    /// The filters that its subscription has had; none if only earlier versions have written about it.
    pub filters: Option<Filters>,
}

impl LaneHistory {
    /// The state in messages.
    pub fn state(&self) -> LaneState {
        if self.lane.paused || self.is_stopped {
            LaneState::Paused
        } else if self.lane.state() == internal::LaneState::Blocked {
            LaneState::Blocked
        } else if let Some(receiver) = &self.receiver
            && self.lane.next <= self.lane.last
        {
            match receiver.condition() {
                ReceiverCondition::Held => LaneState::Held,
                _ => LaneState::Away,
            }
        } else if self.lane.next_attempt_at_ms > 0 {
            LaneState::Waiting
        } else {
            LaneState::Open
        }
    }
}

/// Filter of lanes. The default matches all.
#[derive(Debug, Clone, Default)]
pub struct LaneFilter {
    /// Only this subscription's, by name.
    pub subscription: Option<String>,
    /// Only of this workflow.
    pub workflow: Option<String>,
    /// Only of workflows whose id begins with one of these; empty: of all.
    pub workflow_prefixes: Vec<String>,
    /// Only in these states; empty: in all.
    pub states: Vec<LaneState>,
}

impl LaneFilter {
    fn takes(&self, lane: &LaneHistory) -> bool {
        self.subscription.as_ref().is_none_or(|name| *name == lane.subscription)
            && (self.workflow_prefixes.is_empty()
                || self.workflow_prefixes.iter().any(|prefix| lane.workflow.as_str().starts_with(prefix)))
            && (self.states.is_empty() || self.states.contains(&lane.state()))
    }
}

/// The lane after which a page begins.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LaneCursor {
    /// The workflow.
    pub workflow: String,
    /// The subscription.
    pub uid: SubscriptionUid,
    /// Of the lane of one event, where that stands; 0: it is the workflow's.
    pub event: u64,
}

/// A page of lanes.
#[derive(Debug, Clone, PartialEq)]
pub struct LanePage {
    /// By workflow, then by subscription, then by event.
    pub lanes: Vec<LaneHistory>,
    /// The next page; `None` at the end. The filter may match none of its rows.
    pub next: Option<LaneCursor>,
}

/// A page after `after`.
pub(super) fn page(
    view: &View,
    subscriptions: &Subscriptions,
    layout: Layout,
    filter: &LaneFilter,
    after: Option<LaneCursor>,
    limit: usize,
) -> Result<LanePage, redb::Error> {
    let first = filter.workflow.clone().unwrap_or_default();
    let (workflow, uid, event) = match &after {
        Some(after) => (after.workflow.as_str(), *after.uid.as_bytes(), after.event),
        None => (first.as_str(), UID_MIN, WORKFLOW_LANE),
    };
    let mut page = LanePage { lanes: Vec::new(), next: None };
    let mut last = None;
    for (looked_at, row) in view.lanes.range((workflow, &uid, event)..)?.enumerate() {
        if page.lanes.len() >= limit.max(1) || looked_at >= ROWS_MAX {
            page.next = last;
            break;
        }
        let (key, value) = row?;
        let (workflow, uid, event) = key.value();
        if filter.workflow.as_ref().is_some_and(|wanted| wanted != workflow) {
            break;
        }
        let cursor = LaneCursor { workflow: workflow.to_owned(), uid: SubscriptionUid::from_bytes(*uid), event };
        if after.as_ref() == Some(&cursor) {
            continue;
        }
        last = Some(cursor);
        let lane = read(view, subscriptions, layout, workflow, uid, decode(value.value())?)?;
        page.lanes.extend(lane.filter(|lane| filter.takes(lane)));
    }
    Ok(page)
}

/// The lane; `None` if its subscription is deleted.
fn read(
    view: &View,
    subscriptions: &Subscriptions,
    layout: Layout,
    workflow: &str,
    uid: &Uid,
    lane: internal::Lane,
) -> Result<Option<LaneHistory>, redb::Error> {
    let Ok(workflow) = WorkflowId::new(workflow) else { return Ok(None) };
    let shard = layout.shard_of(&workflow);
    let state: Option<internal::SubscriptionState> = get(&view.subscriptions, (shard.0, uid))?;
    // Also rows of a subscription that was closed before its uid was opened again.
    if state.as_ref().is_some_and(|state| state.closed || lane.last < state.from) {
        return Ok(None);
    }
    let filters = state.as_ref().filter(|state| !state.filters.is_empty()).map(Filters::of);
    let of_subscription = subscriptions.is_stopped(uid, state.as_ref());
    let of_workflow = lane.unordered && {
        let of_workflow: Option<internal::Lane> = get(&view.lanes, (workflow.as_str(), uid, WORKFLOW_LANE))?;
        of_workflow.is_some_and(|lane| lane.paused)
    };
    let is_stopped = of_subscription || of_workflow;
    let pause = if lane.paused || of_workflow {
        Some(pauses::of_lane(view, shard, workflow.as_str(), uid)?)
    } else if of_subscription {
        Some(pauses::of_subscription(view, subscriptions, RECORD_SHARD, uid)?)
    } else {
        None
    };
    let subscription = subscriptions.name(view, uid)?;
    let (receiver, uid) = (receivers::of(view, shard, uid)?, SubscriptionUid::from_bytes(*uid));
    let waiting = waiting(view, subscriptions, shard, uid.as_bytes(), &lane)?;
    Ok(Some(LaneHistory { uid, subscription, workflow, shard, lane, is_stopped, receiver, pause, waiting, filters }))
}

/// The events of a lane after its head.
pub(super) fn waiting(
    view: &View,
    subscriptions: &Subscriptions,
    shard: ShardId,
    uid: &Uid,
    lane: &internal::Lane,
) -> Result<u64, redb::Error> {
    if lane.unordered || lane.next >= lane.last {
        return Ok(0);
    }
    let Some(taker) = Taker::of(view, subscriptions, shard, uid)? else { return Ok(0) };
    let ((first, from), (last, through)) = (place(lane.next), place(lane.last));
    let mut count = 0;
    for segment in (first..=last).take(SEGMENTS_MAX) {
        let segment = Segment { view, shard, segment };
        let mut events = segment.workflow(&lane.workflow_id)?;
        if events.is_empty() {
            continue;
        }
        events.keep(&taker.taken(&segment)?);
        events.keep_between(
            if segment.segment == first { from } else { 0 },
            if segment.segment == last { through } else { u16::MAX },
        );
        count += events.count() as u64;
    }
    Ok(count.saturating_sub(1))
}
