//! The state in redb, and how a commit changes it.
//!
//! | table | key | value |
//! |---|---|---|
//! | `lanes` | uid, workflow id | `v1::Lane` |
//! | `heads` | uid, workflow id | event id (16), sequence (8) |
//! | `runs` | uid, sequence, run | `v1::PendingRun` |
//! | `dead` | uid, sequence | run, unix ms |
//! | `subscriptions` | uid | `v1::SubscriptionState` |
//! | `requests` | request id | COMMANDS sequence |
//! | `meta` | name | number |
//!
//! Numbers in keys are big-endian, so that a subscription's rows stand together and in order.
//!
//! The rules of a commit, in this order: each outcome of run 0 moves its lane behind the event and ends its tries; an
//! outcome of another run ends that run; a dead letter is open from its outcome until another outcome of the same event
//! and subscription; then the lanes, runs and subscriptions that the commit lists stand as listed. A lane with nothing
//! unsettled has no row.

use prost::Message as _;
use redb::{ReadableDatabase as _, ReadableTable as _, TableDefinition};
use weft_proto::{
    ids::{EventId, Run, StreamSeq, SubscriptionUid},
    v1::{self, subscription_change::Change},
};

use super::LedgerError;

type Bytes = &'static [u8];
pub(super) const LANES: TableDefinition<Bytes, Bytes> = TableDefinition::new("lanes");
pub(super) const HEADS: TableDefinition<Bytes, Bytes> = TableDefinition::new("heads");
pub(super) const RUNS: TableDefinition<Bytes, Bytes> = TableDefinition::new("runs");
pub(super) const DEAD: TableDefinition<Bytes, (u64, i64)> = TableDefinition::new("dead");
pub(super) const SUBSCRIPTIONS: TableDefinition<Bytes, Bytes> = TableDefinition::new("subscriptions");
pub(super) const REQUESTS: TableDefinition<&str, u64> = TableDefinition::new("requests");
const META: TableDefinition<&str, u64> = TableDefinition::new("meta");

/// The version of the file; another is thrown away and built again.
const FORMAT: u64 = 1;

/// The positions of the state.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Positions {
    /// OUTCOMES has been applied up to here.
    pub outcomes: StreamSeq,
    /// When OUTCOMES was made, unix nanoseconds: another time, another stream.
    pub created_ns: u64,
    /// EVENTS has been matched up to here.
    pub cursor: StreamSeq,
    /// COMMANDS has been carried out up to here.
    pub commands: u64,
    /// The newest owner.
    pub epoch: u64,
    /// OUTCOMES sequence up to which dead letters have their copies.
    pub copied: u64,
}

/// A record of OUTCOMES with its place.
#[derive(Debug, Clone)]
pub struct Applied {
    /// Its OUTCOMES sequence.
    pub seq: StreamSeq,
    /// The commit; `None` for anything else, which only moves the position.
    pub commit: Option<std::sync::Arc<v1::Commit>>,
}

pub(super) fn lane_key(subscription: &[u8], workflow: &str) -> Vec<u8> {
    [subscription, workflow.as_bytes()].concat()
}

pub(super) fn event_key(subscription: &[u8], seq: u64) -> Vec<u8> {
    [subscription, &seq.to_be_bytes()].concat()
}

fn run_key(subscription: &[u8], seq: u64, run: u64) -> Vec<u8> {
    [subscription, &seq.to_be_bytes(), &run.to_be_bytes()].concat()
}

/// Applies records in one transaction.
pub(super) fn apply(database: &redb::Database, records: &[Applied], created_ns: u64) -> Result<(), LedgerError> {
    let transaction = database.begin_write()?;
    {
        let mut state = State::open(&transaction)?;
        for record in records {
            if let Some(commit) = &record.commit {
                state.apply(commit)?;
            }
            state.meta.insert("outcomes", record.seq.0)?;
        }
        state.meta.insert("created", created_ns)?;
        state.meta.insert("format", FORMAT)?;
    }
    transaction.commit()?;
    Ok(())
}

/// Puts a checkpoint's chunks and end in the place of everything.
pub(super) fn load_checkpoint(
    database: &redb::Database,
    chunks: &[v1::CheckpointChunk],
    end: &v1::CheckpointEnd,
    created_ns: u64,
) -> Result<(), LedgerError> {
    clear(database)?;
    let transaction = database.begin_write()?;
    {
        let mut state = State::open(&transaction)?;
        for chunk in chunks {
            state.load(chunk)?;
        }
        for (name, value) in [
            ("outcomes", end.position),
            ("cursor", end.cursor),
            ("commands", end.commands_cursor),
            ("epoch", end.epoch),
            ("copied", end.copied),
            ("created", created_ns),
            ("format", FORMAT),
        ] {
            state.meta.insert(name, value)?;
        }
    }
    transaction.commit()?;
    Ok(())
}

/// Forgets everything.
pub(super) fn clear(database: &redb::Database) -> Result<(), LedgerError> {
    let transaction = database.begin_write()?;
    for table in [LANES, HEADS, RUNS, SUBSCRIPTIONS] {
        transaction.delete_table(table)?;
    }
    transaction.delete_table(DEAD)?;
    transaction.delete_table(REQUESTS)?;
    transaction.delete_table(META)?;
    drop(State::open(&transaction)?);
    transaction.commit()?;
    Ok(())
}

/// The positions of the file; zeros for one of another format.
pub(super) fn positions(database: &redb::Database) -> Result<Positions, LedgerError> {
    positions_of(&database.begin_read()?)
}

pub(super) fn positions_of(transaction: &redb::ReadTransaction) -> Result<Positions, LedgerError> {
    let meta = match transaction.open_table(META) {
        Err(redb::TableError::TableDoesNotExist(_)) => return Ok(Positions::default()),
        other => other?,
    };
    let get = |name: &str| -> Result<u64, LedgerError> { Ok(meta.get(name)?.map_or(0, |value| value.value())) };
    if get("format")? != FORMAT {
        return Ok(Positions::default());
    }
    Ok(Positions {
        outcomes: StreamSeq(get("outcomes")?),
        created_ns: get("created")?,
        cursor: StreamSeq(get("cursor")?),
        commands: get("commands")?,
        epoch: get("epoch")?,
        copied: get("copied")?,
    })
}

/// All tables of a write transaction.
struct State<'t> {
    lanes: redb::Table<'t, Bytes, Bytes>,
    heads: redb::Table<'t, Bytes, Bytes>,
    runs: redb::Table<'t, Bytes, Bytes>,
    dead: redb::Table<'t, Bytes, (u64, i64)>,
    subscriptions: redb::Table<'t, Bytes, Bytes>,
    requests: redb::Table<'t, &'static str, u64>,
    meta: redb::Table<'t, &'static str, u64>,
}

impl<'t> State<'t> {
    fn open(transaction: &'t redb::WriteTransaction) -> Result<Self, LedgerError> {
        Ok(Self {
            lanes: transaction.open_table(LANES)?,
            heads: transaction.open_table(HEADS)?,
            runs: transaction.open_table(RUNS)?,
            dead: transaction.open_table(DEAD)?,
            subscriptions: transaction.open_table(SUBSCRIPTIONS)?,
            requests: transaction.open_table(REQUESTS)?,
            meta: transaction.open_table(META)?,
        })
    }

    fn apply(&mut self, commit: &v1::Commit) -> Result<(), LedgerError> {
        for outcome in commit.outcomes.iter().filter(|outcome| !outcome.subscription.is_empty()) {
            self.settle(outcome)?;
        }
        for lane in &commit.lanes {
            self.put_lane(lane)?;
        }
        for run in &commit.runs {
            let key = run_key(&run.subscription, run.sequence, run.run);
            self.runs.insert(&key[..], &run.encode_to_vec()[..])?;
        }
        for result in &commit.results {
            self.requests.insert(result.request_id.as_str(), result.command)?;
        }
        for change in &commit.subscriptions {
            self.change(change)?;
        }
        self.meta.insert("cursor", commit.cursor)?;
        self.meta.insert("commands", commit.commands_cursor)?;
        self.meta.insert("epoch", commit.epoch)?;
        self.meta.insert("copied", commit.copied)?;
        Ok(())
    }

    fn settle(&mut self, outcome: &v1::Outcome) -> Result<(), LedgerError> {
        let key = lane_key(&outcome.subscription, &outcome.workflow_id);
        if outcome.run == 0 {
            let lane = self.lanes.get(&key[..])?.map(|row| decode::<v1::Lane>(row.value())).transpose()?;
            if let Some(lane) = lane {
                self.put_lane(&v1::Lane {
                    next: outcome.sequence + 1,
                    attempts: 0,
                    next_attempt_at_ms: 0,
                    first_failed_at_ms: 0,
                    state: v1::LaneState::Open.into(),
                    ..lane
                })?;
            }
            if outcome.kind() == v1::OutcomeKind::Delivered {
                self.put_head(&key, &outcome.event_id, outcome.sequence)?;
            }
        } else {
            self.runs.remove(&run_key(&outcome.subscription, outcome.sequence, outcome.run)[..])?;
        }
        let event = event_key(&outcome.subscription, outcome.sequence);
        if outcome.kind() == v1::OutcomeKind::DeadLettered {
            self.dead.insert(&event[..], (outcome.run, outcome.at_ms))?;
        } else if outcome.run != 0 {
            self.dead.remove(&event[..])?;
        }
        Ok(())
    }

    fn put_lane(&mut self, lane: &v1::Lane) -> Result<(), LedgerError> {
        let key = lane_key(&lane.subscription, &lane.workflow_id);
        if lane.next > lane.last {
            self.lanes.remove(&key[..])?;
        } else {
            self.lanes.insert(&key[..], &lane.encode_to_vec()[..])?;
        }
        Ok(())
    }

    fn put_head(&mut self, key: &[u8], event_id: &[u8], seq: u64) -> Result<(), LedgerError> {
        self.heads.insert(key, &[event_id, &seq.to_be_bytes()].concat()[..])?;
        Ok(())
    }

    fn change(&mut self, change: &v1::SubscriptionChange) -> Result<(), LedgerError> {
        let uid = &change.subscription[..];
        let state = self.subscriptions.get(uid)?.map(|row| decode::<v1::SubscriptionState>(row.value())).transpose()?;
        let mut state =
            state.unwrap_or_else(|| v1::SubscriptionState { subscription: uid.to_vec(), ..Default::default() });
        match &change.change {
            Some(Change::Opened(opened)) => {
                state.name.clone_from(&opened.name);
                state.from = opened.from;
                state.revision = opened.revision;
            }
            Some(Change::Revised(revised)) => state.revision = revised.revision,
            Some(Change::Detached(detached)) => state.detached = (detached.next > 0).then_some(detached.next),
            Some(Change::Closed(_)) => {
                state.closed = true;
                self.forget(uid)?;
            }
            None => {}
        }
        self.subscriptions.insert(uid, &state.encode_to_vec()[..])?;
        Ok(())
    }

    /// Removes everything of a closed subscription but its own row.
    fn forget(&mut self, uid: &[u8]) -> Result<(), LedgerError> {
        let mine = |key: &[u8]| key.starts_with(uid);
        self.lanes.retain(|key, _| !mine(key))?;
        self.heads.retain(|key, _| !mine(key))?;
        self.runs.retain(|key, _| !mine(key))?;
        self.dead.retain(|key, _| !mine(key))?;
        Ok(())
    }

    fn load(&mut self, chunk: &v1::CheckpointChunk) -> Result<(), LedgerError> {
        for lane in &chunk.lanes {
            self.put_lane(lane)?;
        }
        for head in &chunk.heads {
            self.put_head(&lane_key(&head.subscription, &head.workflow_id), &head.event_id, head.sequence)?;
        }
        for run in &chunk.runs {
            let key = run_key(&run.subscription, run.sequence, run.run);
            self.runs.insert(&key[..], &run.encode_to_vec()[..])?;
        }
        for dead in &chunk.dead_letters {
            self.dead.insert(&event_key(&dead.subscription, dead.sequence)[..], (dead.run, dead.at_ms))?;
        }
        for state in &chunk.subscriptions {
            self.subscriptions.insert(&state.subscription[..], &state.encode_to_vec()[..])?;
        }
        for request in &chunk.requests {
            self.requests.insert(request.request_id.as_str(), request.command)?;
        }
        Ok(())
    }
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
    let row = table.get(&lane_key(uid.as_bytes(), workflow)[..])?;
    Ok(row.and_then(|row| EventId::from_slice(row.value().get(..16)?)))
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

/// Whether a request has been carried out.
pub(super) fn has_request(database: &redb::Database, request_id: &str) -> Result<bool, LedgerError> {
    Ok(database.begin_read()?.open_table(REQUESTS)?.get(request_id)?.is_some())
}

/// Every record of a table.
pub(super) fn all<T: prost::Message + Default>(
    transaction: &redb::ReadTransaction,
    table: TableDefinition<Bytes, Bytes>,
) -> Result<Vec<T>, LedgerError> {
    transaction.open_table(table)?.iter()?.map(|row| decode(row?.1.value())).collect()
}
