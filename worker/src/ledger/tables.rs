//! The state in redb.
//!
//! | table | key | value |
//! |---|---|---|
//! | `lanes` | uid, workflow id; of the lane of one event also 0xff, sequence | `internal::Lane` |
//! | `heads` | uid, workflow id | event id (16), sequence (8) |
//! | `runs` | uid, sequence, run | `internal::PendingRun` |
//! | `dead` | uid, sequence | run, unix ms |
//! | `copies` | uid, sequence | `internal::CopyState` of a refused copy |
//! | `subscriptions` | uid | `internal::SubscriptionState` |
//! | `requests` | request id | COMMANDS sequence, unix ms |
//! | `meta` | name | number |
//! | `positions` | `events` or `commands` | `internal::LogPosition` at the cursor, where it is known |
//!
//! Numbers in keys are big-endian, so that a subscription's rows stand together and in order.

use redb::{ReadableDatabase as _, ReadableTable as _, TableDefinition};
use weft_proto::{
    ids::{EventId, Run, StreamSeq, SubscriptionUid},
    internal,
};

use super::LedgerError;

pub(super) type Bytes = &'static [u8];
pub(super) const LANES: TableDefinition<Bytes, Bytes> = TableDefinition::new("lanes");
pub(super) const HEADS: TableDefinition<Bytes, Bytes> = TableDefinition::new("heads");
pub(super) const RUNS: TableDefinition<Bytes, Bytes> = TableDefinition::new("runs");
pub(super) const DEAD: TableDefinition<Bytes, (u64, i64)> = TableDefinition::new("dead");
/// Refused copies of open dead letters, by the dead letter.
pub(super) const COPIES: TableDefinition<Bytes, Bytes> = TableDefinition::new("copies");
pub(super) const SUBSCRIPTIONS: TableDefinition<Bytes, Bytes> = TableDefinition::new("subscriptions");
pub(super) const REQUESTS: TableDefinition<&str, (u64, i64)> = TableDefinition::new("requests");
pub(super) const META: TableDefinition<&str, u64> = TableDefinition::new("meta");
pub(super) const POSITIONS: TableDefinition<&str, Bytes> = TableDefinition::new("positions");

/// Keys of [`POSITIONS`].
pub(super) const EVENTS_POSITION: &str = "events";
pub(super) const COMMANDS_POSITION: &str = "commands";

/// Format of the file.
pub(super) const FORMAT: &str = "weft ledger 1";

/// Size of a uid in a key.
pub(super) const UID_BYTES: usize = 16;

/// The positions of the state.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Positions {
    /// OUTCOMES is applied up to here.
    pub outcomes: StreamSeq,
    /// When OUTCOMES was created, unix nanoseconds: identifies the stream.
    pub created_ns: u64,
    /// EVENTS is matched up to here.
    pub cursor: StreamSeq,
    /// COMMANDS is carried out up to here.
    pub commands: u64,
    /// Epoch of the newest owner.
    pub epoch: u64,
    /// OUTCOMES sequence up to which dead letters have their copies.
    pub copied: u64,
    /// The message at `cursor` and its stream; `None` where an earlier version wrote the commits.
    pub events: Option<internal::LogPosition>,
    /// The message at `commands`, likewise.
    pub commands_at: Option<internal::LogPosition>,
    /// The newest commit applied; `None` where an earlier version wrote the file.
    pub commit: Option<CommitMark>,
}

impl Positions {
    /// The position in EVENTS, as far as it is known.
    pub fn events_position(&self) -> internal::LogPosition {
        position_at(self.events.as_ref(), self.cursor.0)
    }

    /// As [`events_position`](Self::events_position), in COMMANDS.
    pub fn commands_position(&self) -> internal::LogPosition {
        position_at(self.commands_at.as_ref(), self.commands)
    }
}

fn position_at(known: Option<&internal::LogPosition>, sequence: u64) -> internal::LogPosition {
    known.cloned().unwrap_or_else(|| internal::LogPosition { sequence, ..Default::default() })
}

/// Identity of a commit.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct CommitMark {
    /// Its OUTCOMES sequence.
    pub seq: StreamSeq,
    /// Its owner's epoch.
    pub epoch: u64,
    /// The time of the commit.
    pub at_ms: i64,
}

/// The settled part of EVENTS.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Settled {
    /// According to the commits up to here.
    pub outcomes: StreamSeq,
    /// Everything in EVENTS up to here.
    pub through: StreamSeq,
}

/// A record of OUTCOMES with its sequence.
#[derive(Debug, Clone)]
pub struct Applied {
    /// Its OUTCOMES sequence.
    pub seq: StreamSeq,
    /// The commit; `None`: another record, which only moves the position.
    pub commit: Option<std::sync::Arc<internal::Commit>>,
}

pub(super) fn workflow_key(subscription: &[u8], workflow: &str) -> Vec<u8> {
    [subscription, workflow.as_bytes()].concat()
}

/// Key of a workflow's lane, or of an event lane. No workflow id contains the separator.
pub(super) fn lane_key(subscription: &[u8], workflow: &str, event: Option<u64>) -> Vec<u8> {
    let mut key = workflow_key(subscription, workflow);
    if let Some(seq) = event {
        key.push(0xff);
        key.extend_from_slice(&seq.to_be_bytes());
    }
    key
}

/// The sequence of a head's event.
pub(super) fn head_seq(row: &[u8]) -> Option<u64> {
    Some(u64::from_be_bytes(*row.last_chunk()?))
}

pub(super) fn event_key(subscription: &[u8], seq: u64) -> Vec<u8> {
    [subscription, &seq.to_be_bytes()].concat()
}

pub(super) fn run_key(subscription: &[u8], seq: u64, run: u64) -> Vec<u8> {
    [subscription, &seq.to_be_bytes(), &run.to_be_bytes()].concat()
}

/// The positions of the file; zeros for a new one.
pub(super) fn positions(database: &redb::Database) -> Result<Positions, LedgerError> {
    positions_of(&database.begin_read()?)
}

pub(super) fn positions_of(transaction: &redb::ReadTransaction) -> Result<Positions, LedgerError> {
    let meta = match transaction.open_table(META) {
        Err(redb::TableError::TableDoesNotExist(_)) => return Ok(Positions::default()),
        other => other?,
    };
    let get = |name: &str| -> Result<u64, LedgerError> { Ok(meta.get(name)?.map_or(0, |value| value.value())) };
    let commit = match get("commit")? {
        0 => None,
        seq => Some(CommitMark {
            seq: StreamSeq(seq),
            epoch: get("epoch")?,
            at_ms: i64::try_from(get("commit_at")?).unwrap_or(0),
        }),
    };
    Ok(Positions {
        events: position_in(transaction, EVENTS_POSITION)?,
        commands_at: position_in(transaction, COMMANDS_POSITION)?,
        commit,
        outcomes: StreamSeq(get("outcomes")?),
        created_ns: get("created")?,
        cursor: StreamSeq(get("cursor")?),
        commands: get("commands")?,
        epoch: get("epoch")?,
        copied: get("copied")?,
    })
}

fn position_in(transaction: &redb::ReadTransaction, name: &str) -> Result<Option<internal::LogPosition>, LedgerError> {
    let table = match transaction.open_table(POSITIONS) {
        // Written by an earlier version.
        Err(redb::TableError::TableDoesNotExist(_)) => return Ok(None),
        other => other?,
    };
    table.get(name)?.map(|row| decode(row.value())).transpose()
}

pub(super) fn decode<T: prost::Message + Default>(bytes: &[u8]) -> Result<T, LedgerError> {
    T::decode(bytes).map_err(|error| LedgerError::Record(error.to_string()))
}

/// The event that a lane delivered last.
pub(super) fn head(
    database: &redb::Database,
    uid: SubscriptionUid,
    workflow: &str,
) -> Result<Option<EventId>, LedgerError> {
    let table = database.begin_read()?.open_table(HEADS)?;
    let row = table.get(&workflow_key(uid.as_bytes(), workflow)[..])?;
    Ok(row.and_then(|row| EventId::from_slice(row.value().get(..UID_BYTES)?)))
}

/// The run of an open dead letter.
pub(super) fn open_dead_letter(
    database: &redb::Database,
    uid: SubscriptionUid,
    seq: StreamSeq,
) -> Result<Option<Run>, LedgerError> {
    let table = database.begin_read()?.open_table(DEAD)?;
    Ok(table.get(&event_key(uid.as_bytes(), seq.0)[..])?.map(|row| Run(row.value().0)))
}

/// Whether a request has a result.
pub(super) fn has_request(database: &redb::Database, request_id: &str) -> Result<bool, LedgerError> {
    Ok(database.begin_read()?.open_table(REQUESTS)?.get(request_id)?.is_some())
}

/// The part of EVENTS that is settled according to the file: no lane, run or detached subscription needs any of it.
pub(super) fn settled(database: &redb::Database) -> Result<Settled, LedgerError> {
    let transaction = database.begin_read()?;
    let Positions { outcomes, cursor, .. } = positions_of(&transaction)?;
    let mut through = cursor;
    let mut keep = |seq: u64| through = through.min(StreamSeq(seq.saturating_sub(1)));
    // Row by row: there may be a lane for each workflow.
    for row in transaction.open_table(LANES)?.iter()? {
        let lane: internal::Lane = decode(row?.1.value())?;
        if lane.next <= lane.last {
            keep(lane.next);
        }
    }
    for row in transaction.open_table(RUNS)?.iter()? {
        keep(decode::<internal::PendingRun>(row?.1.value())?.sequence);
    }
    for state in all::<internal::CopyState>(&transaction, COPIES)? {
        state.outcome.into_iter().for_each(|outcome| keep(outcome.sequence));
    }
    for state in
        all::<internal::SubscriptionState>(&transaction, SUBSCRIPTIONS)?.into_iter().filter(|state| !state.closed)
    {
        state.detached.into_iter().for_each(&mut keep);
    }
    Ok(Settled { outcomes, through })
}

/// Every record of a table.
pub(super) fn all<T: prost::Message + Default>(
    transaction: &redb::ReadTransaction,
    table: TableDefinition<Bytes, Bytes>,
) -> Result<Vec<T>, LedgerError> {
    transaction.open_table(table)?.iter()?.map(|row| decode(row?.1.value())).collect()
}
