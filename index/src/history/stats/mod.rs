//! Counts and durations by minute, kept for 8 days. A part of the history's file, derived from EVENTS, OUTCOMES and REJECTED.
//!
//! A minute has a cell for everything, and one for each source, type, subscription and code of refusals. Durations need the
//! times of an event and of its outcome, which are read from two streams: a fact of OUTCOMES about an event that has not been
//! read yet waits in a table until the event is read. So the cells do not depend on the order in which streams are read.
//!
//! The number of labels is bounded: later ones are counted as [`OTHER`]. At most some 250 rows a minute.

use std::collections::{HashMap, hash_map::Entry};

use prost::Message as _;
use redb::ReadableTable as _;
use weft_nats::{event::OWN_SOURCE, message::Stored};
use weft_proto::{
    ids::{ShardId, SubscriptionUid},
    internal::{self, OutcomeKind},
    v1,
};

use super::{
    apply::uid_of,
    sweep::SWEEP_MAX,
    tables::{EventRow, SWEPT, Tables, decode, encode, get},
};

mod backlog;
pub(super) mod batch;
mod cell;
mod histogram;
mod query;

pub(super) use backlog::backlogs;
pub use backlog::{Backlog, Backlogs};
use batch::{Batch, Dimension};
use cell::CellRow;
pub use cell::{Cell, Counts, Latencies};
pub use histogram::Histogram;
pub use query::{Minutes, StatsQuery, StatsReport};
pub(super) use query::{minutes, report};

/// How long minutes are kept, in minutes: 8 days.
pub const KEPT_MINUTES: u64 = 8 * 24 * 60;
/// Label of everything without a separate label.
pub const OTHER: &str = "other";
const MINUTE_MS: i64 = 60_000;

/// A fact of OUTCOMES about an event.
#[derive(Clone, PartialEq, prost::Message)]
pub(super) struct Fact {
    #[prost(bytes = "vec", tag = "1")]
    subscription: Vec<u8>,
    /// 0: an attempt.
    #[prost(enumeration = "OutcomeKind", tag = "2")]
    outcome: i32,
    #[prost(bool, tag = "3")]
    live: bool,
    #[prost(int64, tag = "4")]
    at_ms: i64,
    /// Of an attempt.
    #[prost(int64, tag = "5")]
    started_at_ms: i64,
    #[prost(uint32, tag = "6")]
    number: u32,
    #[prost(bool, tag = "7")]
    succeeded: bool,
}

/// Facts that wait for their event.
#[derive(Clone, PartialEq, prost::Message)]
pub(super) struct WaitingRow {
    #[prost(message, repeated, tag = "1")]
    facts: Vec<Fact>,
}

/// Counts an event.
fn add_event(batch: &mut Batch, event: &EventRow) {
    let minute = minute_of(event.stored_at_ms);
    let accept = event.stored_at_ms.saturating_mul(1000).saturating_sub(event.received_at_ns / 1000);
    let labels = [(Dimension::Total, ""), (Dimension::Source, &event.source), (Dimension::Type, &event.event_type)];
    for (dimension, label) in labels {
        let cell = batch.cell(minute, dimension, label);
        cell.counts.accepted += 1;
        if dimension == Dimension::Total && event.received_at_ns > 0 {
            cell.latencies.accept.record(accept);
        }
    }
}

/// Counts a fact; `None`: its event has expired.
fn add_fact(batch: &mut Batch, fact: &Fact, event: Option<&EventRow>) {
    let minute = minute_of(fact.at_ms);
    let uid = uid_of(&fact.subscription).map(|uid| SubscriptionUid::from_bytes(uid).to_string());
    let (source, event_type) = event.map_or((OTHER, OTHER), |event| (event.source.as_str(), event.event_type.as_str()));
    let is_own = event.is_some_and(|event| event.source == OWN_SOURCE);
    if let (OutcomeKind::DeadLettered, false, Some(uid)) = (fact.outcome(), is_own, uid.as_deref()) {
        batch.cell(minute, Dimension::DeadLetters, uid).counts.dead_lettered += 1;
    }
    let labels = [(Dimension::Total, ""), (Dimension::Source, source), (Dimension::Type, event_type)];
    for (dimension, label) in labels.into_iter().chain(uid.as_deref().map(|uid| (Dimension::Subscription, uid))) {
        let cell = batch.cell(minute, dimension, label);
        fact.count(&mut cell.counts);
        if let (Dimension::Total | Dimension::Subscription, Some(event)) = (dimension, event) {
            fact.measure(event, &mut cell.latencies);
        }
    }
}

impl Fact {
    fn count(&self, counts: &mut Counts) {
        match self.outcome() {
            OutcomeKind::Unspecified => {
                counts.attempts += 1;
                counts.retried += u64::from(self.number > 1);
                counts.failed += u64::from(!self.succeeded);
            }
            OutcomeKind::Delivered => counts.delivered += 1,
            OutcomeKind::DeadLettered => counts.dead_lettered += 1,
            OutcomeKind::Discarded => counts.discarded += 1,
            OutcomeKind::Unrouted => counts.unrouted += 1,
            OutcomeKind::Resolved => counts.resolved += 1,
            OutcomeKind::Cancelled => {}
        }
    }

    fn measure(&self, event: &EventRow, latencies: &mut Latencies) {
        let micros = |from_ms: i64, to_ms: i64| to_ms.saturating_sub(from_ms).saturating_mul(1000);
        match self.outcome() {
            OutcomeKind::Unspecified => {
                if self.live && self.number == 1 {
                    latencies.wait.record(micros(event.stored_at_ms, self.started_at_ms));
                }
                if self.succeeded {
                    latencies.deliver.record(micros(self.started_at_ms, self.at_ms));
                }
            }
            OutcomeKind::Delivered if self.live => {
                let received_ms = Some(event.received_at_ns / 1_000_000).filter(|ms| *ms > 0);
                latencies.total.record(micros(received_ms.unwrap_or(event.stored_at_ms), self.at_ms));
            }
            OutcomeKind::Delivered
            | OutcomeKind::DeadLettered
            | OutcomeKind::Discarded
            | OutcomeKind::Unrouted
            | OutcomeKind::Resolved
            | OutcomeKind::Cancelled => {}
        }
    }
}

fn minute_of(ms: i64) -> u64 {
    u64::try_from(ms / MINUTE_MS).unwrap_or(0)
}

impl Tables<'_> {
    /// Counts an event, and the facts about it that were read before.
    pub(super) fn count_event(&mut self, shard: ShardId, seq: u64, event: &EventRow) -> Result<(), redb::Error> {
        add_event(&mut self.stats, event);
        if let Some(row) = self.stat_waiting.remove((shard.0, seq))? {
            for fact in decode::<WaitingRow>(row.value())?.facts {
                add_fact(&mut self.stats, &fact, Some(event));
            }
        }
        Ok(())
    }

    /// Counts an outcome.
    pub(super) fn count_outcome(&mut self, shard: ShardId, outcome: &internal::Outcome) -> Result<(), redb::Error> {
        let fact = Fact {
            subscription: outcome.subscription.clone(),
            outcome: outcome.kind,
            live: outcome.run == 0,
            at_ms: outcome.at_ms,
            ..Fact::default()
        };
        if outcome.kind() == OutcomeKind::Unspecified {
            return Ok(());
        }
        self.count_fact(shard, outcome.sequence, &outcome.event_id, fact)
    }

    /// Counts an attempt.
    pub(super) fn count_attempt(&mut self, shard: ShardId, attempt: &internal::Attempt) -> Result<(), redb::Error> {
        let fact = Fact {
            subscription: attempt.subscription.clone(),
            outcome: OutcomeKind::Unspecified.into(),
            live: attempt.run == 0,
            at_ms: attempt.ended_at_ms,
            started_at_ms: attempt.started_at_ms,
            number: attempt.number,
            succeeded: attempt.class() == v1::AttemptClass::Delivered,
        };
        self.count_fact(shard, attempt.sequence, &attempt.event_id, fact)
    }

    fn count_fact(&mut self, shard: ShardId, seq: u64, event_id: &[u8], fact: Fact) -> Result<(), redb::Error> {
        let event: Option<EventRow> = get(&self.events, (shard.0, seq))?;
        if let Some(event) = event {
            // After a restore another event may have the sequence.
            let is_same = event_id.is_empty() || event.id == event_id;
            add_fact(&mut self.stats, &fact, is_same.then_some(&event));
        } else if self.marks.get((SWEPT, shard.0))?.is_some_and(|swept| seq <= swept.value()) {
            add_fact(&mut self.stats, &fact, None);
        } else {
            let mut row: WaitingRow = get(&self.stat_waiting, (shard.0, seq))?.unwrap_or_default();
            row.facts.push(fact);
            self.stat_waiting.insert((shard.0, seq), &encode(&row)[..])?;
        }
        Ok(())
    }

    /// Counts a refused request.
    pub(super) fn count_rejected(&mut self, message: &Stored) {
        let Ok(rejected) = v1::Rejected::decode(message.payload.clone()) else { return };
        let minute = minute_of(message.stored_at.as_millisecond());
        let labels =
            [(Dimension::Total, ""), (Dimension::Source, &rejected.source[..]), (Dimension::Code, &rejected.code[..])];
        for (dimension, label) in labels {
            self.stats.cell(minute, dimension, label).counts.rejected += 1;
        }
    }

    /// Writes the cells of a transaction.
    pub(super) fn write_stats(&mut self) -> Result<(), redb::Error> {
        let batch = std::mem::take(&mut self.stats);
        let mut known: HashMap<(Dimension, String), bool> = HashMap::new();
        for ((minute, dimension, label), cell) in batch.cells {
            let has_row = match known.entry((dimension, label)) {
                Entry::Occupied(entry) => (entry.key().1.clone(), *entry.get()),
                Entry::Vacant(entry) => {
                    let label = entry.key().1.clone();
                    let admitted = self.admit(dimension, &label, minute)?;
                    entry.insert(admitted);
                    (label, admitted)
                }
            };
            let label = if has_row.1 { has_row.0.as_str() } else { OTHER };
            let key = (minute, dimension as u8, label);
            let mut sum = get::<_, CellRow>(&self.stats_rows, key)?.map_or_else(Cell::default, |row| Cell::from(&row));
            sum.add(&cell);
            self.stats_rows.insert(key, &encode(&CellRow::from(&sum))[..])?;
        }
        Ok(())
    }

    /// Whether a label has separate rows; if so, records that it occurs.
    fn admit(&mut self, dimension: Dimension, label: &str, minute: u64) -> Result<bool, redb::Error> {
        let key = (dimension as u8, label);
        let newest = self.stat_labels.get(key)?.map(|minute| minute.value());
        if newest.is_none() {
            let labels = self.stat_labels.range((dimension as u8, "")..(dimension as u8 + 1, ""))?;
            if labels.take(dimension.labels_max()).count() >= dimension.labels_max() {
                return Ok(false);
            }
        }
        if newest.is_none_or(|newest| newest < minute) {
            self.stat_labels.insert(key, minute)?;
        }
        Ok(true)
    }

    /// Removes expired minutes and labels, relative to the newest minute, and counts facts whose events have expired unread.
    /// Returns whether more are left.
    pub(super) fn sweep_stats(&mut self) -> Result<bool, redb::Error> {
        let newest = self.stats_rows.last()?.map_or(0, |(key, _)| key.value().0);
        let oldest = newest.saturating_sub(KEPT_MINUTES);
        let mut expired = Vec::new();
        for row in self.stats_rows.range((0, 0, "")..(oldest, 0, ""))?.take(SWEEP_MAX) {
            let (key, _) = row?;
            let (minute, dimension, label) = key.value();
            expired.push((minute, dimension, label.to_owned()));
        }
        for (minute, dimension, label) in &expired {
            self.stats_rows.remove((*minute, *dimension, label.as_str()))?;
        }
        self.stat_labels.retain(|_, minute| minute >= oldest)?;
        let mut unread = Vec::new();
        for row in self.stat_waiting.range((0, 0)..)?.take(SWEEP_MAX) {
            let (key, value) = row?;
            let (shard, seq) = key.value();
            if self.marks.get((SWEPT, shard))?.is_some_and(|swept| seq <= swept.value()) {
                unread.push(((shard, seq), decode::<WaitingRow>(value.value())?.facts));
            }
        }
        for (key, facts) in &unread {
            self.stat_waiting.remove(*key)?;
            facts.iter().for_each(|fact| add_fact(&mut self.stats, fact, None));
        }
        Ok(expired.len() == SWEEP_MAX)
    }
}
