//! Reading: what each subscription has not settled.

use std::collections::BTreeMap;

use weft_nats::{
    event::{OWN_SOURCE, OWN_WORKFLOWS},
    subject::Layout,
};
use weft_proto::{
    ids::{ShardId, StreamSeq, SubscriptionUid, WorkflowId},
    internal::{self, LaneState},
};

use crate::history::{
    lanes::waiting,
    names::Subscriptions,
    tables::{EventRow, MATCHED, UID_MIN, Uid, View, decode, get},
};

/// Maximum number of lanes that are read: about a second of work.
const LANES_MAX: usize = 100_000;
/// Maximum number of events that are read to find the first event of a lane.
const STEPS_MAX: usize = 64;
/// Maximum number of lanes that are counted by the index, which takes about a millisecond for each.
const INDEXED_MAX: usize = 500;
/// Maximum number of blocked workflows that are named.
const NAMED_MAX: usize = 10;

/// Unsettled events of a subscription.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Backlog {
    /// Number of events.
    pub events: u64,
    /// Whether the number is a bound: some lanes were not counted exactly.
    pub is_bound: bool,
    /// When the oldest was stored, in unix milliseconds.
    pub oldest_ms: Option<i64>,
    /// Lanes that wait for a retry.
    pub retrying: u64,
    /// Lanes that are blocked.
    pub blocked: u64,
    /// Lanes that an operator has paused.
    pub paused: u64,
    /// Lanes that are blocked, but those of the mesh's own events, and the first of their workflows.
    pub blocked_others: (u64, Vec<String>),
    /// As `oldest_ms`, without lanes of the mesh's own events.
    pub oldest_other_ms: Option<i64>,
}

impl Backlog {
    fn note_oldest(&mut self, stored_at_ms: i64, is_own: bool) {
        let older = |oldest: Option<i64>| Some(oldest.map_or(stored_at_ms, |oldest| oldest.min(stored_at_ms)));
        self.oldest_ms = older(self.oldest_ms);
        if !is_own {
            self.oldest_other_ms = older(self.oldest_other_ms);
        }
    }

    fn note_blocked(&mut self, workflow: &str) {
        self.blocked += 1;
        if !workflow.starts_with(OWN_WORKFLOWS) {
            let (count, named) = &mut self.blocked_others;
            *count += 1;
            if named.len() < NAMED_MAX {
                named.push(workflow.to_owned());
            }
        }
    }
}

/// Backlogs at one moment.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Backlogs {
    /// By subscription, of those with lanes or a separate reader.
    pub subscriptions: BTreeMap<SubscriptionUid, Backlog>,
    /// By shard: up to which sequence events have been given to their lanes.
    pub matched: BTreeMap<ShardId, StreamSeq>,
}

pub(in crate::history) fn backlogs(
    view: &View,
    subscriptions: &Subscriptions,
    layout: Layout,
) -> Result<Backlogs, redb::Error> {
    let mut backlogs = Backlogs::default();
    let mut indexed = 0;
    for (read, row) in view.lanes.range(("", &UID_MIN, 0)..)?.enumerate() {
        let (key, value) = row?;
        let (workflow, uid, _) = key.value();
        let lane: internal::Lane = decode(value.value())?;
        let Ok(id) = WorkflowId::new(workflow) else { continue };
        let shard = layout.shard_of(&id);
        let state: Option<internal::SubscriptionState> = get(&view.subscriptions, (shard.0, uid))?;
        if state.as_ref().is_some_and(|state| state.closed || lane.last < state.from) {
            continue;
        }
        let backlog = backlogs.subscriptions.entry(SubscriptionUid::from_bytes(*uid)).or_default();
        if read >= LANES_MAX {
            backlog.is_bound = true;
            break;
        }
        if lane.state() == LaneState::Blocked {
            backlog.note_blocked(workflow);
        }
        backlog.paused += u64::from(lane.paused);
        backlog.retrying += u64::from(lane.attempts > 0 && lane.state() != LaneState::Blocked && !lane.paused);
        if lane.next <= lane.last {
            count_lane(At { view, subscriptions, shard, uid }, &lane, &mut indexed, backlog)?;
        }
    }
    for shard in layout.all() {
        let matched = view.marks.get((MATCHED, shard.0))?.map_or(0, |matched| matched.value());
        backlogs.matched.insert(shard, StreamSeq(matched));
        for uid in subscriptions.uids() {
            count_detached(view, shard, matched, uid, &mut backlogs)?;
        }
    }
    Ok(backlogs)
}

/// Place of a lane.
#[derive(Clone, Copy)]
struct At<'v> {
    view: &'v View,
    subscriptions: &'v Subscriptions,
    shard: ShardId,
    uid: &'v Uid,
}

/// Adds the events of a lane. Numbers in a workflow are contiguous, so its ends say how many there are; if its first event is
/// not near, the index says how many. `indexed` lanes have been counted by the index.
fn count_lane(
    at: At<'_>,
    lane: &internal::Lane,
    indexed: &mut usize,
    backlog: &mut Backlog,
) -> Result<(), redb::Error> {
    let At { view, subscriptions, shard, uid } = at;
    let workflow = lane.workflow_id.as_str();
    let from = if lane.unordered { lane.last } else { lane.next };
    let last: Option<EventRow> = get(&view.events, (shard.0, lane.last))?;
    let (mut first, mut before) = (None, None);
    let rows = view.events.range((shard.0, from)..=(shard.0, lane.last))?;
    for row in rows.take(STEPS_MAX) {
        let event: EventRow = decode(row?.1.value())?;
        before.get_or_insert(event.stored_at_ms);
        if event.workflow == workflow {
            first = Some(event);
            break;
        }
    }
    match (&first, &last) {
        (Some(first), Some(last)) => {
            backlog.events += last.sequence_number.saturating_sub(first.sequence_number).saturating_add(1);
        }
        _ if *indexed < INDEXED_MAX => {
            *indexed += 1;
            backlog.events += waiting(view, subscriptions, shard, uid, lane)? + 1;
        }
        _ => {
            backlog.events += 1;
            backlog.is_bound = true;
        }
    }
    if let Some(oldest) = first.map(|first| first.stored_at_ms).or(before) {
        backlog.note_oldest(oldest, workflow.starts_with(OWN_WORKFLOWS));
    }
    Ok(())
}

/// Adds what a subscription that reads on its own has not read yet: all events there, also those that it does not take.
fn count_detached(
    view: &View,
    shard: ShardId,
    matched: u64,
    uid: &Uid,
    backlogs: &mut Backlogs,
) -> Result<(), redb::Error> {
    let state: Option<internal::SubscriptionState> = get(&view.subscriptions, (shard.0, uid))?;
    let Some(next) = state.filter(|state| !state.closed).and_then(|state| state.detached) else { return Ok(()) };
    let unread = matched.saturating_add(1).saturating_sub(next);
    if unread == 0 {
        return Ok(());
    }
    let backlog = backlogs.subscriptions.entry(SubscriptionUid::from_bytes(*uid)).or_default();
    backlog.events += unread;
    backlog.is_bound = true;
    if let Some(row) = view.events.range((shard.0, next)..=(shard.0, u64::MAX))?.next() {
        let event: EventRow = decode(row?.1.value())?;
        backlog.note_oldest(event.stored_at_ms, event.source == OWN_SOURCE);
    }
    Ok(())
}
