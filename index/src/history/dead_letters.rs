//! Reading: dead letters, one by one and in pages, the newest first.

use std::collections::BTreeMap;

use redb::ReadableTable as _;
use weft_proto::{
    ids::{EventId, Run, ShardId, StreamSeq, SubscriptionUid, WorkflowId},
    internal::{self, OutcomeKind},
    v1::DeadLetterReason,
};

use super::{
    events,
    ids::{DeadLetterId, DeadLetterPlace, EventRef},
    names::Subscriptions,
    requests::Decision,
    status::{DeadLetterFacts, DeadLetterStatus, dead_letter_status},
    tables::{CHECKPOINT, CHECKPOINT_AT, DeadRow, DeliveryRow, EventRow, UID_MAX, UID_MIN, Uid, View, decode, get},
};

/// Maximum number of rows that one page reads, so that a selective filter costs a bounded time.
const ROWS_MAX: usize = 10_000;

/// A dead letter.
#[derive(Debug, Clone, PartialEq)]
pub struct DeadLetter {
    /// Identity of the dead letter.
    pub place: DeadLetterPlace,
    /// The event's id occurs at several places of the log, so the dead letter's id needs the sequence.
    pub is_repeated: bool,
    /// The event's number in its workflow; 0 while neither the event nor the copy has been read.
    pub sequence_number: u64,
    /// The event's type.
    pub event_type: String,
    /// The event's source.
    pub source: String,
    /// Reason.
    pub reason: DeadLetterReason,
    /// Attempts of the run that ended in it.
    pub attempts: u32,
    /// HTTP status of the last attempt; 0: none.
    pub last_status: u32,
    /// The last failure, as text.
    pub last_error: String,
    /// The run's first failure, in unix milliseconds; 0: unknown.
    pub first_failed_at_ms: i64,
    /// When it was dead-lettered, in unix milliseconds.
    pub dead_lettered_at_ms: i64,
    /// Status of the dead letter.
    pub status: DeadLetterStatus,
    /// Reason why DLQ has no copy of it; empty: it has one.
    pub copy_missing: String,
    /// The operator who resolved or discarded it, and why.
    pub decision: Decision,
}

/// Filter of dead letters. The default matches all.
#[derive(Debug, Clone, Default)]
pub struct DeadLetterFilter {
    /// Only this subscription's, by name.
    pub subscription: Option<String>,
    /// Only of this workflow.
    pub workflow: Option<String>,
    /// Only of events of types that match this pattern.
    pub event_type: Option<String>,
    /// Only of events of this source.
    pub source: Option<String>,
    /// Only of events of these sources; empty: of all.
    pub sources: Vec<String>,
    /// Only of workflows whose id begins with one of these; empty: of all.
    pub workflow_prefixes: Vec<String>,
    /// Only for this reason.
    pub reason: Option<DeadLetterReason>,
    /// Dead-lettered at or after, in unix milliseconds.
    pub since_ms: Option<i64>,
    /// Dead-lettered before, in unix milliseconds.
    pub until_ms: Option<i64>,
    /// Only of these statuses; empty: of all.
    pub statuses: Vec<DeadLetterStatus>,
    /// Leaves [`DeadLetter::is_repeated`] false, for counting: whether an event is repeated takes a look-up in each segment of the
    /// log.
    pub without_repeats: bool,
}

impl DeadLetter {
    /// Its id, as short as it is unambiguous.
    pub fn id(&self) -> DeadLetterId {
        let seq = self.is_repeated.then_some(self.place.seq);
        let event = EventRef { event: self.place.event, seq };
        DeadLetterId { subscription: self.place.subscription.clone(), event }
    }

    /// Its id with the sequence.
    pub fn full_id(&self) -> DeadLetterId {
        let event = EventRef { event: self.place.event, seq: Some(self.place.seq) };
        DeadLetterId { subscription: self.place.subscription.clone(), event }
    }
}

impl DeadLetterFilter {
    fn takes(&self, dead_letter: &DeadLetter) -> bool {
        let place = &dead_letter.place;
        self.subscription.as_ref().is_none_or(|name| *name == place.subscription)
            && self.workflow.as_ref().is_none_or(|workflow| workflow == place.workflow.as_str())
            && self.source.as_ref().is_none_or(|source| *source == dead_letter.source)
            && (self.sources.is_empty() || self.sources.contains(&dead_letter.source))
            && (self.workflow_prefixes.is_empty()
                || self.workflow_prefixes.iter().any(|prefix| place.workflow.as_str().starts_with(prefix)))
            && self.reason.is_none_or(|reason| reason == dead_letter.reason)
            && (self.statuses.is_empty() || self.statuses.contains(&dead_letter.status))
            && self
                .event_type
                .as_ref()
                .is_none_or(|pattern| weft_nats::pattern::pattern_matches(pattern, &dead_letter.event_type))
    }
}

/// The dead letter after which a page begins.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DeadLetterCursor {
    /// When it was dead-lettered, in unix milliseconds.
    pub at_ms: i64,
    /// The shard.
    pub shard: ShardId,
    /// The event's sequence.
    pub seq: StreamSeq,
    /// The subscription.
    pub uid: SubscriptionUid,
}

/// A page of dead letters.
#[derive(Debug, Clone, PartialEq)]
pub struct DeadLetterPage {
    /// The newest first.
    pub dead_letters: Vec<DeadLetter>,
    /// The next page; `None` at the end. The filter may match none of its rows.
    pub next: Option<DeadLetterCursor>,
}

impl DeadLetterPlace {
    pub(super) fn of(
        view: &View,
        subscriptions: &Subscriptions,
        shard: u32,
        seq: u64,
        uid: &Uid,
        row: &DeadRow,
    ) -> Result<Option<Self>, redb::Error> {
        let Some(outcome) = &row.outcome else { return Ok(None) };
        let (Ok(workflow), Some(event)) =
            (WorkflowId::new(outcome.workflow_id.as_str()), EventId::from_slice(&outcome.event_id))
        else {
            return Ok(None);
        };
        Ok(Some(Self {
            shard: ShardId(shard),
            seq: StreamSeq(seq),
            uid: SubscriptionUid::from_bytes(*uid),
            subscription: subscriptions.name(view, uid)?,
            workflow,
            event,
            run: Run(outcome.run),
        }))
    }
}

/// The dead letters that an id names, the oldest place first: one for each place of the event. Of several subscriptions
/// that have had the name the newest is used.
pub(super) fn find(
    view: &View,
    subscriptions: &Subscriptions,
    id: &DeadLetterId,
) -> Result<Vec<DeadLetter>, redb::Error> {
    let mut found = Vec::new();
    let places = events::places(view, id.event.event)?;
    let is_repeated = places.len() > 1;
    for (shard, seq) in places.into_iter().filter(|(_, seq)| id.event.is_at(*seq)) {
        for row in view.dead.range((shard.0, seq.0, &UID_MIN)..=(shard.0, seq.0, &UID_MAX))?.rev() {
            let (key, value) = row?;
            let (shard, seq, uid) = key.value();
            if subscriptions.name(view, uid)? == id.subscription
                && let Some(dead_letter) = read(view, subscriptions, shard, seq, uid, &decode(value.value())?)?
            {
                found.push(DeadLetter { is_repeated, ..dead_letter });
                break;
            }
        }
    }
    Ok(found)
}

/// A page after `after`, with at most `limit` dead letters.
pub(super) fn page(
    view: &View,
    subscriptions: &Subscriptions,
    filter: &DeadLetterFilter,
    after: Option<DeadLetterCursor>,
    limit: usize,
) -> Result<DeadLetterPage, redb::Error> {
    let uid = after.map_or(UID_MIN, |after| *after.uid.as_bytes());
    let until = filter.until_ms.unwrap_or(i64::MAX);
    let end = match after {
        Some(after) if after.at_ms < until => (after.at_ms, after.shard.0, after.seq.0, &uid),
        _ => (until, 0, 0, &UID_MIN),
    };
    let start = (filter.since_ms.unwrap_or(i64::MIN), 0, 0, &UID_MIN);
    let mut page = DeadLetterPage { dead_letters: Vec::new(), next: None };
    if start >= end {
        return Ok(page);
    }
    let mut last = None;
    for (looked_at, row) in view.dead_by_time.range(start..end)?.rev().enumerate() {
        if page.dead_letters.len() >= limit.max(1) || looked_at >= ROWS_MAX {
            page.next = last;
            break;
        }
        let (key, _) = row?;
        let (at_ms, shard, seq, uid) = key.value();
        last = Some(DeadLetterCursor {
            at_ms,
            shard: ShardId(shard),
            seq: StreamSeq(seq),
            uid: SubscriptionUid::from_bytes(*uid),
        });
        let Some(row) = get::<_, DeadRow>(&view.dead, (shard, seq, uid))? else { continue };
        let dead_letter = read(view, subscriptions, shard, seq, uid, &row)?;
        let Some(mut dead_letter) = dead_letter.filter(|dead_letter| filter.takes(dead_letter)) else { continue };
        if !filter.without_repeats {
            dead_letter.is_repeated = events::places(view, dead_letter.place.event)?.len() > 1;
        }
        page.dead_letters.push(dead_letter);
    }
    Ok(page)
}

/// The open dead letters of each subscription, those under redrive included.
pub(super) fn open_counts(view: &View) -> Result<BTreeMap<SubscriptionUid, u64>, redb::Error> {
    let mut counts = BTreeMap::new();
    for row in view.dead.iter()? {
        let (key, value) = row?;
        let ((shard, seq, uid), row) = (key.value(), decode::<DeadRow>(value.value())?);
        let Some(outcome) = &row.outcome else { continue };
        let status = dead_letter_status(facts(view, shard, seq, uid, &row, outcome)?);
        if matches!(status, DeadLetterStatus::Open | DeadLetterStatus::Redriving) {
            *counts.entry(SubscriptionUid::from_bytes(*uid)).or_default() += 1;
        }
    }
    Ok(counts)
}

/// A dead letter, of which is left open whether its event is repeated.
fn read(
    view: &View,
    subscriptions: &Subscriptions,
    shard: u32,
    seq: u64,
    uid: &Uid,
    row: &DeadRow,
) -> Result<Option<DeadLetter>, redb::Error> {
    let Some(outcome) = &row.outcome else { return Ok(None) };
    let Some(place) = DeadLetterPlace::of(view, subscriptions, shard, seq, uid, row)? else { return Ok(None) };
    let copy_missing = match &row.event {
        _ if !row.copy_problem.is_empty() => row.copy_problem.clone(),
        None if outcome.from == 0 && outcome.reason() != DeadLetterReason::Expired => "it waits to be made".to_owned(),
        _ => String::new(),
    };
    let stored: Option<EventRow> = get(&view.events, (shard, seq))?;
    let event = stored.or_else(|| row.event.clone()).unwrap_or_default();
    Ok(Some(DeadLetter {
        is_repeated: false,
        status: dead_letter_status(facts(view, shard, seq, uid, row, outcome)?),
        place,
        sequence_number: event.sequence_number,
        event_type: event.event_type,
        source: event.source,
        reason: outcome.reason(),
        attempts: outcome.attempts,
        last_status: outcome.last_status,
        last_error: outcome.last_error.clone(),
        first_failed_at_ms: outcome.first_failed_at_ms,
        dead_lettered_at_ms: outcome.at_ms,
        copy_missing,
        decision: decision(view, shard, seq, uid, outcome.run)?,
    }))
}

/// The newest decision of an operator about a dead letter of this run.
fn decision(view: &View, shard: u32, seq: u64, uid: &Uid, run: u64) -> Result<Decision, redb::Error> {
    let later = run.saturating_add(1);
    for row in view.deliveries.range((shard, seq, uid, later)..=(shard, seq, uid, u64::MAX))?.rev() {
        let delivery: DeliveryRow = decode(row?.1.value())?;
        let Some(outcome) = delivery.outcome else { continue };
        if matches!(outcome.kind(), OutcomeKind::Resolved | OutcomeKind::Discarded) {
            return Decision::of(view, shard, &outcome);
        }
    }
    Ok(Decision::default())
}

fn facts(
    view: &View,
    shard: u32,
    seq: u64,
    uid: &Uid,
    row: &DeadRow,
    outcome: &internal::Outcome,
) -> Result<DeadLetterFacts, redb::Error> {
    let later = outcome.run.saturating_add(1);
    let mut settled = None;
    for row in view.deliveries.range((shard, seq, uid, later)..=(shard, seq, uid, u64::MAX))? {
        let delivery: DeliveryRow = decode(row?.1.value())?;
        let kind = delivery.outcome.as_ref().map(internal::Outcome::kind);
        let leaves_open = |kind: &OutcomeKind| matches!(kind, OutcomeKind::DeadLettered | OutcomeKind::Cancelled);
        settled = kind.filter(|kind| !leaves_open(kind)).or(settled);
    }
    let state: Option<internal::SubscriptionState> = get(&view.subscriptions, (shard, uid))?;
    // A deleted subscription's dead letters cannot be redriven any more.
    let settled = settled.or(state.filter(|state| state.closed).map(|_| OutcomeKind::Discarded));
    let mut commanded = false;
    for row in view.redrives.range((shard, seq, uid, later)..=(shard, seq, uid, u64::MAX))? {
        let command = row?.0.value().3;
        let refused = view.refused.get((shard, command, seq, uid))?.is_some();
        let delivery: Option<DeliveryRow> = get(&view.deliveries, (shard, seq, uid, command))?;
        let ended = delivery.is_some_and(|delivery| delivery.outcome.is_some());
        commanded |= !refused && !ended;
    }
    let mark = |name: &'static str| -> Result<Option<u64>, redb::Error> {
        Ok(view.marks.get((name, shard))?.map(|mark| mark.value()))
    };
    let listed = view.still_open.get((shard, seq, uid))?.map(|position| position.value());
    let closed_before = match (mark(CHECKPOINT)?, mark(CHECKPOINT_AT)?) {
        (Some(checkpoint), Some(at)) if !row.witnessed => {
            u64::try_from(outcome.at_ms).is_ok_and(|dead_at| dead_at < at) && listed != Some(checkpoint)
        }
        _ => false,
    };
    Ok(DeadLetterFacts { run: Run(outcome.run), reason: outcome.reason(), settled, commanded, closed_before })
}
