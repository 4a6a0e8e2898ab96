//! How receipts lie in redb.

use jiff::Timestamp;
use redb::{Database, ReadableDatabase as _, TableDefinition, TableError};
use weft_proto::ids::{EventId, SequenceNumber, StreamSeq, WorkflowId};

use super::{Accepted, Head};

/// Sequence, stored at (unix milliseconds), digest, number, predecessor, workflow.
pub(super) type AcceptedRow = (u64, i64, &'static [u8; 32], u64, Option<&'static [u8; 16]>, &'static str);
/// Number, event id, stored at, carried at (unix milliseconds).
pub(super) type HeadRow = (u64, &'static [u8; 16], i64, i64);

pub(super) const HEADS: TableDefinition<&str, HeadRow> = TableDefinition::new("heads");
/// What the file was written under.
const SETTINGS: TableDefinition<&str, i64> = TableDefinition::new("settings");
const DEDUP_MS: &str = "dedup_ms";

/// What the names of id tables begin with.
const IDS: &str = "ids.";
/// A bucket is no shorter, so that a horizon of seconds does not make a table for each commit.
const BUCKET_MS_MIN: i64 = 1_000;
/// A bucket is no longer: a day.
const BUCKET_MS_MAX: i64 = 24 * 60 * 60 * 1_000;
/// Buckets of one horizon: how much longer than the horizon the oldest ids lie about.
const BUCKETS: i64 = 8;

/// A stretch of stream time, whose ids share a table. Its length is part of its name, so that tables of another
/// `dedup_horizon` stay readable and are dropped in their turn.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) struct Bucket {
    /// Unix milliseconds.
    start_ms: i64,
    length_ms: i64,
}

impl Bucket {
    /// The bucket of an event that was stored at `stored_at`.
    pub fn of(stored_at: Timestamp, dedup_ms: i64) -> Self {
        let length_ms = (dedup_ms / BUCKETS).clamp(BUCKET_MS_MIN, BUCKET_MS_MAX);
        let start_ms = stored_at.as_millisecond().max(0) / length_ms * length_ms;
        Self { start_ms, length_ms }
    }

    /// The bucket of a table; `None` for other tables.
    pub fn of_table(name: &str) -> Option<Self> {
        let (start, length) = name.strip_prefix(IDS)?.split_once('.')?;
        Some(Self { start_ms: start.parse().ok()?, length_ms: length.parse().ok()? })
    }

    /// Its table's name; sorts by time.
    pub fn table(&self) -> String {
        format!("{IDS}{:015}.{}", self.start_ms, self.length_ms)
    }

    /// Whether all of it is older than the horizon.
    pub fn is_past(&self, now: Timestamp, dedup_ms: i64) -> bool {
        now.as_millisecond().saturating_sub(dedup_ms) > self.start_ms.saturating_add(self.length_ms)
    }
}

/// The table of that name.
pub(super) fn ids(name: &str) -> TableDefinition<'_, &'static [u8; 16], AcceptedRow> {
    TableDefinition::new(name)
}

pub(super) fn accepted_row(accepted: &Accepted) -> (u64, i64, &[u8; 32], u64, Option<&[u8; 16]>, &str) {
    (
        accepted.seq.0,
        accepted.stored_at.as_millisecond(),
        &accepted.digest,
        accepted.sequence_number.0,
        accepted.previous.as_ref().map(EventId::as_bytes),
        accepted.workflow.as_str(),
    )
}

pub(super) fn accepted(row: (u64, i64, &[u8; 32], u64, Option<&[u8; 16]>, &str)) -> Result<Accepted, redb::Error> {
    let (seq, stored_at, digest, number, previous, workflow) = row;
    Ok(Accepted {
        seq: StreamSeq(seq),
        stored_at: time(stored_at)?,
        digest: *digest,
        sequence_number: SequenceNumber(number),
        workflow: self::workflow(workflow)?,
        previous: previous.copied().map(EventId::from_bytes),
    })
}

pub(super) fn head_row(head: &Head) -> (u64, &[u8; 16], i64, i64) {
    let (stored_at, carried_at) = (head.stored_at.as_millisecond(), head.carried_at.as_millisecond());
    (head.sequence_number.0, head.event_id.as_bytes(), stored_at, carried_at)
}

pub(super) fn head(row: (u64, &[u8; 16], i64, i64)) -> Result<Head, redb::Error> {
    let (number, event_id, stored_at, carried_at) = row;
    Ok(Head {
        sequence_number: SequenceNumber(number),
        event_id: EventId::from_bytes(*event_id),
        stored_at: time(stored_at)?,
        carried_at: time(carried_at)?,
    })
}

pub(super) fn workflow(text: &str) -> Result<WorkflowId, redb::Error> {
    WorkflowId::new(text).map_err(|error| redb::Error::Corrupted(format!("workflow id {text:?} {error}")))
}

fn time(millis: i64) -> Result<Timestamp, redb::Error> {
    Timestamp::from_millisecond(millis).map_err(|error| redb::Error::Corrupted(error.to_string()))
}

/// The horizon that the file was written under; `None` in a new file.
pub(super) fn dedup_ms(database: &Database) -> Result<Option<i64>, redb::Error> {
    match database.begin_read()?.open_table(SETTINGS) {
        Ok(table) => Ok(table.get(DEDUP_MS)?.map(|value| value.value())),
        Err(TableError::TableDoesNotExist(_)) => Ok(None),
        Err(error) => Err(error.into()),
    }
}

pub(super) fn set_dedup_ms(database: &Database, dedup_ms: i64) -> Result<(), redb::Error> {
    let transaction = database.begin_write()?;
    transaction.open_table(SETTINGS)?.insert(DEDUP_MS, dedup_ms)?;
    transaction.commit()?;
    Ok(())
}
