//! Reading: one event, its deliveries and their attempts.

use std::collections::{BTreeMap, BTreeSet};

use weft_catalog::{Filters, Match};
use weft_proto::{
    ids::{EventId, Run, ShardId, StreamSeq, SubscriptionUid},
    internal,
};

use super::{
    apply::without_answer,
    ids::DeadLetterPlace,
    names::{Subscriptions, takes},
    requests::Decision,
    status::{DeliveryFacts, DeliveryStatus, EventStatus, Owed, delivery_status, event_status},
    tables::{
        DeadRow, DeliveryRow, EventRow, MATCHED, UID_MAX, UID_MIN, Uid, View, WORKFLOW_LANE, decode, get, id_key,
    },
};

/// Maximum clock skew between the leaders of a cluster: a commit may have an earlier storage time than its events by this. A
/// lost part of EVENTS is never stored again so soon.
pub(super) const CLOCK_SKEW_MS: i64 = 1_000;

/// An event with its deliveries.
#[derive(Debug, Clone, PartialEq)]
pub struct EventHistory {
    /// The shard.
    pub shard: ShardId,
    /// Its place in the shard's EVENTS.
    pub seq: StreamSeq,
    /// When the log stored it, in unix milliseconds; `None` where only a dead letter of it is kept.
    pub stored_at_ms: Option<i64>,
    /// Its payload was erased.
    pub is_erased: bool,
    /// Worst of its deliveries.
    pub status: EventStatus,
    /// By subscription's name, then by run.
    pub deliveries: Vec<DeliveryHistory>,
    /// A dead letter of it, whose copy holds its payload when EVENTS no longer does.
    pub dead_letter: Option<DeadLetterPlace>,
}

/// One event for one subscription in one run.
#[derive(Debug, Clone, PartialEq)]
pub struct DeliveryHistory {
    /// The subscription's name.
    pub subscription: String,
    /// The subscription.
    pub uid: SubscriptionUid,
    /// Live, or the command that started it.
    pub run: Run,
    /// Status of the delivery.
    pub status: DeliveryStatus,
    /// Attempts that have ended, including those whose records have expired.
    pub attempt_count: u32,
    /// The attempts, in order. Subscription, event id and workflow id are left empty.
    pub attempts: Vec<internal::Attempt>,
    /// When it was settled, in unix milliseconds.
    pub settled_at_ms: Option<i64>,
    /// When it is attempted next, in unix milliseconds.
    pub next_attempt_at_ms: Option<i64>,
    /// The operator who settled it, and why.
    pub decision: Decision,
}

/// The places of the events with this id, the newest last: a delivery repeated after the dedup horizon is a new event with
/// the old id.
pub(super) fn places(view: &View, id: EventId) -> Result<Vec<(ShardId, StreamSeq)>, redb::Error> {
    let mut places = Vec::new();
    for (shard, seq, _) in ids_between(view, id.as_bytes(), id.as_bytes(), usize::MAX)? {
        // A dead letter of an event that was lost with a part of EVENTS does not belong to the event there.
        let there: Option<EventRow> = get(&view.events, (shard.0, seq.0))?;
        if there.is_none_or(|there| there.id == id.as_bytes()) {
            places.push((shard, seq));
        }
    }
    Ok(places)
}

/// The events whose ids are in a range, at most `limit`. One look-up a segment: where it finds nothing, it finds the next row.
pub(super) fn ids_between(
    view: &View,
    first: &[u8; 16],
    last: &[u8; 16],
    limit: usize,
) -> Result<Vec<(ShardId, StreamSeq, EventId)>, redb::Error> {
    let mut found = Vec::new();
    let (mut shard, mut segment) = (0, 0);
    loop {
        let mut beyond = None;
        for row in view.event_ids.range((shard, segment, first, 0)..)? {
            let key = row?.0;
            let (row_shard, row_segment, id, seq) = key.value();
            if (row_shard, row_segment) != (shard, segment) || id > last {
                beyond = Some((row_shard, row_segment));
                break;
            }
            found.push((ShardId(shard), StreamSeq(seq), EventId::from_bytes(*id)));
            if found.len() >= limit {
                return Ok(found);
            }
        }
        match beyond {
            None => return Ok(found),
            Some(same) if same == (shard, segment) => segment += 1,
            Some(next) => (shard, segment) = next,
        }
    }
}

/// The newest place before `before` of an event with this id in a workflow. Segments are searched from there backwards: the
/// predecessor of an event is usually near.
pub(super) fn place_before(
    view: &View,
    id: EventId,
    workflow: &str,
    shard: ShardId,
    before: StreamSeq,
) -> Result<Option<StreamSeq>, redb::Error> {
    let oldest = view.event_ids.range((shard.0, 0, &UID_MIN, 0)..)?.next().transpose()?;
    let Some(oldest) = oldest.map(|(key, _)| key.value().1) else { return Ok(None) };
    let newest = id_key(id.as_bytes(), shard.0, before.0).1;
    for segment in (oldest..=newest).rev() {
        let range = (shard.0, segment, id.as_bytes(), 0)..(shard.0, segment, id.as_bytes(), before.0);
        for row in view.event_ids.range(range)?.rev() {
            let seq = row?.0.value().3;
            let there: Option<EventRow> = get(&view.events, (shard.0, seq))?;
            if there.is_some_and(|there| there.id == id.as_bytes() && there.workflow == workflow) {
                return Ok(Some(StreamSeq(seq)));
            }
        }
    }
    Ok(None)
}

/// The event at a place with its deliveries.
pub(super) fn event(
    view: &View,
    subscriptions: &Subscriptions,
    shard: ShardId,
    seq: StreamSeq,
) -> Result<Option<EventHistory>, redb::Error> {
    let mut dead = dead_rows(view, shard, seq)?;
    let stored: Option<EventRow> = get(&view.events, (shard.0, seq.0))?;
    if let Some(stored) = &stored {
        dead.retain(|(_, row)| row.outcome.as_ref().is_some_and(|outcome| outcome.event_id == stored.id));
    }
    let Some(event) = stored.or_else(|| dead.iter().find_map(|(_, row)| of_dead(row))) else { return Ok(None) };
    let stored_at_ms = Some(event.stored_at_ms).filter(|at| *at != 0);
    let at = At { view, subscriptions, shard: shard.0, seq: seq.0, event };
    let rows = at.rows()?;
    let unrouted = rows.contains_key(&(UID_MIN, 0));
    let mut deliveries = at.recorded(&rows)?;
    // Nothing more is owed of an event whose payload was erased, and what receivers answered may quote it.
    let is_erased = view.erased.get((shard.0, seq.0))?.is_some();
    if is_erased {
        for delivery in &mut deliveries {
            delivery.attempts = std::mem::take(&mut delivery.attempts).into_iter().map(without_answer).collect();
        }
    } else {
        deliveries.extend(at.owed(&rows)?);
    }
    deliveries
        .sort_by(|one, other| (&one.subscription, one.uid, one.run).cmp(&(&other.subscription, other.uid, other.run)));
    // Of each subscription the last is that of the newest run.
    let newest: BTreeMap<_, _> = deliveries.iter().map(|delivery| (delivery.uid, delivery.status)).collect();
    let dead_letter = match dead.first() {
        Some((uid, row)) => DeadLetterPlace::of(view, subscriptions, shard.0, seq.0, uid, row)?,
        None => None,
    };
    let status = event_status(newest.into_values(), unrouted);
    Ok(Some(EventHistory { shard, seq, stored_at_ms, is_erased, status, deliveries, dead_letter }))
}

/// The dead letters of an event.
fn dead_rows(view: &View, shard: ShardId, seq: StreamSeq) -> Result<Vec<(Uid, DeadRow)>, redb::Error> {
    let mut rows = Vec::new();
    for row in view.dead.range((shard.0, seq.0, &UID_MIN)..=(shard.0, seq.0, &UID_MAX))? {
        let (key, value) = row?;
        rows.push((*key.value().2, decode(value.value())?));
    }
    Ok(rows)
}

/// The fields of an event that a dead letter keeps after EVENTS has dropped it.
fn of_dead(row: &DeadRow) -> Option<EventRow> {
    let of_outcome = |outcome: &internal::Outcome| EventRow {
        id: outcome.event_id.clone(),
        workflow: outcome.workflow_id.clone(),
        ..EventRow::default()
    };
    row.event.clone().or_else(|| row.outcome.as_ref().map(of_outcome))
}

type Rows = BTreeMap<(Uid, u64), DeliveryRow>;

/// A query of one event.
struct At<'v> {
    view: &'v View,
    subscriptions: &'v Subscriptions,
    shard: u32,
    seq: u64,
    event: EventRow,
}

impl At<'_> {
    /// The rows of its deliveries by subscription and run.
    fn rows(&self) -> Result<Rows, redb::Error> {
        let range = (self.shard, self.seq, &UID_MIN, 0)..=(self.shard, self.seq, &UID_MAX, u64::MAX);
        let mut rows = Rows::new();
        for row in self.view.deliveries.range(range)? {
            let (key, value) = row?;
            let (_, _, uid, run) = key.value();
            let row: DeliveryRow = decode(value.value())?;
            if self.is_of_event(&row) {
                rows.insert((*uid, run), row);
            }
        }
        for (uid, outcome) in self.range_outcomes()? {
            rows.entry((uid, 0)).or_default().outcome.get_or_insert(outcome);
        }
        Ok(rows)
    }

    /// Whether a delivery is of this event, and not of another one that had the sequence before EVENTS lost a part:
    /// no commit about an event is stored before the event.
    fn is_of_event(&self, row: &DeliveryRow) -> bool {
        let is_same = row.event_id.is_empty() || row.event_id == self.event.id;
        is_same && (row.recorded_at_ms == 0 || row.recorded_at_ms + CLOCK_SKEW_MS >= self.event.stored_at_ms)
    }

    /// The outcomes of several events of the workflow that this one is among, by subscription.
    fn range_outcomes(&self) -> Result<Vec<(Uid, internal::Outcome)>, redb::Error> {
        let workflow = self.event.workflow.as_str();
        let mut outcomes = Vec::new();
        let mut from = UID_MIN;
        // One lookup for each subscription that has any: the range starts at the next subscription's first key.
        while let Some(uid) = self.next_ranged(workflow, from)? {
            let range = (self.shard, workflow, &uid, self.seq)..=(self.shard, workflow, &uid, u64::MAX);
            if let Some(row) = self.view.ranges.range(range)?.next() {
                let (key, first) = row?;
                let through = key.value().3;
                let delivery: Option<DeliveryRow> = get(&self.view.deliveries, (self.shard, through, &uid, 0))?;
                let taken = self
                    .subscriptions
                    .get(&uid)
                    .is_none_or(|subscription| takes(subscription, self.shard, self.seq, &self.event));
                let stands = |row: &DeliveryRow| row.recorded_at_ms + CLOCK_SKEW_MS >= self.event.stored_at_ms;
                let outcome =
                    delivery.filter(stands).and_then(|row| row.outcome).filter(|_| taken && first.value() <= self.seq);
                outcomes.extend(outcome.map(|outcome| (uid, outcome)));
            }
            match u128::from_be_bytes(uid).checked_add(1) {
                Some(next) => from = next.to_be_bytes(),
                None => break,
            }
        }
        Ok(outcomes)
    }

    /// The first subscription from `from` on with an outcome of several events of a workflow.
    fn next_ranged(&self, workflow: &str, from: Uid) -> Result<Option<Uid>, redb::Error> {
        let range = (self.shard, workflow, &from, 0)..=(self.shard, workflow, &UID_MAX, u64::MAX);
        Ok(self.view.ranges.range(range)?.next().transpose()?.map(|(key, _)| *key.value().2))
    }

    /// Deliveries with records in the log.
    fn recorded(&self, rows: &Rows) -> Result<Vec<DeliveryHistory>, redb::Error> {
        let mut deliveries = Vec::new();
        for ((uid, run), row) in rows.iter().filter(|((uid, _), _)| *uid != UID_MIN) {
            deliveries.push(self.delivery(uid, *run, row)?);
        }
        Ok(deliveries)
    }

    /// Deliveries without records in the log yet: waiting in their lane, or not matched yet.
    fn owed(&self, rows: &Rows) -> Result<Vec<DeliveryHistory>, redb::Error> {
        let mut uids: BTreeSet<Uid> = self.subscriptions.uids().copied().collect();
        // Also those that are missing from the catalog.
        for row in self.view.subscriptions.range((self.shard, &UID_MIN)..=(self.shard, &UID_MAX))? {
            let (key, state) = row?;
            if !decode::<internal::SubscriptionState>(state.value())?.closed {
                uids.insert(*key.value().1);
            }
        }
        let workflow = self.event.workflow.as_str();
        for row in self.view.lanes.range((workflow, &UID_MIN, 0)..=(workflow, &UID_MAX, u64::MAX))? {
            uids.insert(*row?.0.value().1);
        }
        let matched = self.view.marks.get((MATCHED, self.shard))?.map_or(0, |matched| matched.value());
        let mut deliveries = Vec::new();
        for uid in uids.iter().filter(|uid| !rows.contains_key(&(**uid, 0))) {
            let state: Option<internal::SubscriptionState> = get(&self.view.subscriptions, (self.shard, uid))?;
            let lane = self.lane(uid)?.map(|lane| (lane.next, lane.last));
            let own = state.as_ref().and_then(|state| state.detached);
            let matched = own.map_or(matched, |next| next.saturating_sub(1));
            let taken = self.is_taken(uid, state.as_ref());
            if (Owed { seq: self.seq, lane, matched, taken }).is_owed() {
                deliveries.push(self.delivery(uid, 0, &DeliveryRow::default())?);
            }
        }
        Ok(deliveries)
    }

    /// Whether a subscription matches the event: by the filter that was in force at its place, if the shard's owner has
    /// recorded it, else by the catalog's. `None` if neither knows the subscription.
    fn is_taken(&self, uid: &Uid, state: Option<&internal::SubscriptionState>) -> Option<bool> {
        let EventRow { event_type, source, .. } = &self.event;
        let in_catalog = self.subscriptions.get(uid).map(|found| takes(found, self.shard, self.seq, &self.event));
        let state = state.filter(|state| !state.filters.is_empty());
        let matched = || self.view.marks.get((MATCHED, self.shard)).ok().flatten().map_or(0, |mark| mark.value());
        match (state, in_catalog) {
            // Not matched yet: the catalog's present filter applies.
            (Some(_), Some(in_catalog)) if self.seq > matched() => Some(in_catalog),
            (Some(state), _) => {
                let judged = Filters::of(state).judge_kind(StreamSeq(self.seq), event_type, source);
                Some(judged != Match::Ignored)
            }
            (None, in_catalog) => in_catalog,
        }
    }

    /// The lane that the event is in: its own, or its workflow's.
    fn lane(&self, uid: &Uid) -> Result<Option<internal::Lane>, redb::Error> {
        let own = get(&self.view.lanes, (self.event.workflow.as_str(), uid, self.seq))?;
        if own.is_some() { Ok(own) } else { self.workflow_lane(uid) }
    }

    fn workflow_lane(&self, uid: &Uid) -> Result<Option<internal::Lane>, redb::Error> {
        get(&self.view.lanes, (self.event.workflow.as_str(), uid, WORKFLOW_LANE))
    }

    fn delivery(&self, uid: &Uid, run: u64, row: &DeliveryRow) -> Result<DeliveryHistory, redb::Error> {
        let lane = self.lane(uid)?;
        let lane_state = lane.as_ref().map(internal::Lane::state);
        let state: Option<internal::SubscriptionState> = get(&self.view.subscriptions, (self.shard, uid))?;
        let facts = DeliveryFacts {
            outcome: row.outcome.as_ref().map(internal::Outcome::kind),
            attempts: row.attempts,
            lane_blocked: run == 0 && lane_state == Some(internal::LaneState::Blocked),
            // A subscription that is missing from the catalog makes no attempts either.
            paused: self.workflow_lane(uid)?.is_some_and(|lane| lane.paused)
                || self.subscriptions.is_stopped(uid, state.as_ref()),
            // Events that were discarded before its uid was opened again stay discarded.
            closed: state.is_some_and(|state| state.closed || self.seq < state.from),
        };
        Ok(DeliveryHistory {
            subscription: self.subscriptions.name(self.view, uid)?,
            uid: SubscriptionUid::from_bytes(*uid),
            run: Run(run),
            status: delivery_status(facts),
            attempt_count: row.attempts,
            attempts: self.attempts(uid, run)?,
            decision: match &row.outcome {
                Some(outcome) => Decision::of(self.view, self.shard, outcome)?,
                None => Decision::default(),
            },
            settled_at_ms: row.outcome.as_ref().map(|outcome| outcome.at_ms),
            next_attempt_at_ms: Some(row.next_attempt_at_ms).filter(|at| *at > 0 && row.outcome.is_none()),
        })
    }

    fn attempts(&self, uid: &Uid, run: u64) -> Result<Vec<internal::Attempt>, redb::Error> {
        let range = (self.shard, self.seq, uid, run, 0)..=(self.shard, self.seq, uid, run, u32::MAX);
        let mut attempts = Vec::new();
        for row in self.view.attempts.range(range)? {
            attempts.push(decode(row?.1.value())?);
        }
        Ok(attempts)
    }
}
/// The attempt of an event's live run that has ended last.
pub(super) fn last_attempt(
    view: &View,
    shard: ShardId,
    seq: StreamSeq,
    uid: SubscriptionUid,
) -> Result<Option<internal::Attempt>, redb::Error> {
    let key = |number| (shard.0, seq.0, uid.as_bytes(), Run::LIVE.0, number);
    let last = view.attempts.range(key(0)..=key(u32::MAX))?.next_back().transpose()?;
    last.map(|(_, row)| decode(row.value())).transpose()
}
