//! Tables of receipts in redb.

use jiff::Timestamp;
use redb::{Database, ReadableDatabase as _, ReadableTable as _, TableDefinition, TableError, WriteTransaction};
use weft_proto::ids::{EventId, SequenceNumber, StreamSeq, WorkflowId};

use super::{Accepted, WorkflowHead};

/// Sequence, stored at (unix milliseconds), digest, number, predecessor, workflow.
pub(super) type AcceptedRow = (u64, i64, &'static [u8; 32], u64, Option<&'static [u8; 16]>, &'static str);
/// Number, event id, stored at, carried at (unix milliseconds), whether it is from an event.
pub(super) type HeadRow = (u64, &'static [u8; 16], i64, i64, bool);

/// Parameters of the file, and counters.
const SETTINGS: TableDefinition<&str, i64> = TableDefinition::new("settings");
const DEDUP_MS: &str = "dedup_ms";
/// The number of the next segment. Numbers are not reused, since filters are cached by them.
const NEXT_SEGMENT: &str = "next_segment";

/// Minimum length of a bucket, so that a horizon of seconds does not make a table for each commit.
const BUCKET_MS_MIN: i64 = 1_000;
/// Maximum length of a bucket: a day.
const BUCKET_MS_MAX: i64 = 24 * 60 * 60 * 1_000;
/// Buckets of one horizon; the oldest ids are stored longer than the horizon by up to one bucket.
const BUCKETS: i64 = 8;

/// A period of stream time, whose ids have separate segments, which are dropped together. Its length is part of its identity,
/// so that segments of another `dedup_horizon` stay readable and are dropped in time.
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

    /// Start and length in milliseconds.
    pub fn to_row(self) -> (i64, i64) {
        (self.start_ms, self.length_ms)
    }

    /// The inverse of [`to_row`](Self::to_row).
    pub fn of_row(start_ms: i64, length_ms: i64) -> Self {
        Self { start_ms, length_ms }
    }

    /// Whether all of it is older than the horizon.
    pub fn is_past(&self, now: Timestamp, dedup_ms: i64) -> bool {
        now.as_millisecond().saturating_sub(dedup_ms) > self.start_ms.saturating_add(self.length_ms)
    }
}

/// A workflow's head as a part of the log states it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Statement {
    /// The head.
    pub head: WorkflowHead,
    /// It is from an event, which replaces older heads. Otherwise it is from records of heads or of erased events, which
    /// are appended without a comparison and do not replace a later head.
    pub by_event: bool,
}

impl Statement {
    /// The head from this and an `older` part of the log.
    #[must_use]
    pub fn after(self, older: Option<Self>) -> Self {
        match older {
            Some(older) if !self.by_event && older.head.sequence_number > self.head.sequence_number => older,
            Some(older) => Self { by_event: self.by_event || older.by_event, ..self },
            None => self,
        }
    }
}

/// The rows of a segment of ids.
pub(super) fn ids(table: &str) -> TableDefinition<'_, &'static [u8; 16], AcceptedRow> {
    TableDefinition::new(table)
}

/// The rows of a segment of heads.
pub(super) fn heads(table: &str) -> TableDefinition<'_, &'static str, HeadRow> {
    TableDefinition::new(table)
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
        replay_key: None,
    })
}

/// The row of an event under its replay key: the whole row, with its id in place of the digest, which is not needed here.
pub(super) fn replayed(id: EventId, accepted: &Accepted) -> Accepted {
    let mut digest = [0; 32];
    digest[..16].copy_from_slice(id.as_bytes());
    Accepted { digest, replay_key: None, ..accepted.clone() }
}

/// The event of a row under a replay key.
pub(super) fn id_of_replayed(row: &Accepted) -> EventId {
    let mut id = [0; 16];
    id.copy_from_slice(&row.digest[..16]);
    EventId::from_bytes(id)
}

pub(super) fn statement_row(statement: &Statement) -> (u64, &[u8; 16], i64, i64, bool) {
    let head = &statement.head;
    let (stored_at, carried_at) = (head.stored_at.as_millisecond(), head.carried_at.as_millisecond());
    (head.sequence_number.0, head.event_id.as_bytes(), stored_at, carried_at, statement.by_event)
}

pub(super) fn statement(row: (u64, &[u8; 16], i64, i64, bool)) -> Result<Statement, redb::Error> {
    let (number, event_id, stored_at, carried_at, by_event) = row;
    let head = WorkflowHead {
        sequence_number: SequenceNumber(number),
        event_id: EventId::from_bytes(*event_id),
        stored_at: time(stored_at)?,
        carried_at: time(carried_at)?,
    };
    Ok(Statement { head, by_event })
}

pub(super) fn workflow(text: &str) -> Result<WorkflowId, redb::Error> {
    WorkflowId::new(text).map_err(|error| redb::Error::Corrupted(format!("workflow id {text:?} {error}")))
}

fn time(millis: i64) -> Result<Timestamp, redb::Error> {
    Timestamp::from_millisecond(millis).map_err(|error| redb::Error::Corrupted(error.to_string()))
}

/// The horizon that the file was written with; `None` in a new file.
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

/// The number of the next segment.
pub(super) fn next_segment(transaction: &WriteTransaction) -> Result<u64, redb::Error> {
    let table = transaction.open_table(SETTINGS)?;
    let next = table.get(NEXT_SEGMENT)?.map_or(1, |value| value.value());
    Ok(next.unsigned_abs())
}

pub(super) fn set_next_segment(transaction: &WriteTransaction, number: u64) -> Result<(), redb::Error> {
    transaction.open_table(SETTINGS)?.insert(NEXT_SEGMENT, number.cast_signed())?;
    Ok(())
}
