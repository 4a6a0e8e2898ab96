//! Application of commits to the state, which follows from them alone, independent of clocks and of transactions.
//!
//! A commit is applied in this order:
//!
//! 1. An adoption voids the records of events after the last common one ([`adopt`]).
//! 2. An outcome of run 0 moves its lane past the event and resets its attempts; one of another run removes that run. A dead
//!    letter is open from its outcome, if that names an event, until another outcome of the same event and subscription. A
//!    cancelled run leaves it as it is.
//! 3. The lanes, runs and subscriptions that the commit lists replace their rows.
//! 4. Heads and dead letters below the commit's limits are removed.
//!
//! A settled lane has no row unless it is paused; a closed subscription has only its own row. With the first commit of a day,
//! request ids of commits older than 30 days are removed.

use prost::Message as _;
use redb::ReadableTable as _;
use weft_catalog::apply_change;
use weft_proto::internal::{self, subscription_change::Change};

use super::{
    LedgerError,
    tables::{
        Applied, Bytes, COMMANDS_POSITION, COPIES, DEAD, EVENTS_POSITION, HEADS, LANES, META, POSITIONS, REQUESTS,
        RUNS, SUBSCRIPTIONS, decode, event_key, head_seq, lane_key, run_key, workflow_key,
    },
};

mod adopt;

/// How long a request id is kept: a call that is repeated later is a new one.
const REQUESTS_KEPT_MS: i64 = 30 * DAY_MS;
const DAY_MS: i64 = 24 * 3600 * 1000;

/// Applies records in a transaction.
pub(super) fn apply(database: &redb::Database, records: &[Applied], created_ns: u64) -> Result<(), LedgerError> {
    let transaction = database.begin_write()?;
    apply_in(&transaction, records, created_ns)?;
    transaction.commit()?;
    Ok(())
}

/// Applies records as part of a transaction.
pub(super) fn apply_in(
    transaction: &redb::WriteTransaction,
    records: &[Applied],
    created_ns: u64,
) -> Result<(), LedgerError> {
    let mut tables = Tables::open(transaction)?;
    for record in records {
        if let Some(commit) = &record.commit {
            tables.apply(commit)?;
            tables.meta.insert("commit", record.seq.0)?;
            tables.meta.insert("commit_at", u64::try_from(commit.at_ms).unwrap_or(0))?;
        }
        tables.meta.insert("outcomes", record.seq.0)?;
    }
    tables.meta.insert("created", created_ns)?;
    Ok(())
}

/// Loads chunks of a checkpoint, in order, into a file that was [cleared](clear). The file counts as empty until
/// [`end_checkpoint`].
pub(super) fn load_chunks(database: &redb::Database, chunks: &[internal::CheckpointChunk]) -> Result<(), LedgerError> {
    let transaction = database.begin_write()?;
    {
        let mut tables = Tables::open(&transaction)?;
        for chunk in chunks {
            tables.load(chunk)?;
        }
    }
    transaction.commit()?;
    Ok(())
}

/// Completes the loading of a checkpoint: sets its positions.
pub(super) fn end_checkpoint(
    database: &redb::Database,
    end: &internal::CheckpointEnd,
    created_ns: u64,
) -> Result<(), LedgerError> {
    let transaction = database.begin_write()?;
    {
        let mut meta = transaction.open_table(META)?;
        for (name, value) in [
            ("outcomes", end.position),
            ("cursor", end.cursor),
            ("commands", end.commands_cursor),
            ("epoch", end.epoch),
            ("copied", end.copied),
            ("created", created_ns),
            ("commit", end.commit),
            ("commit_at", u64::try_from(end.commit_at_ms).unwrap_or(0)),
        ] {
            meta.insert(name, value)?;
        }
        let mut positions = transaction.open_table(POSITIONS)?;
        put_position(&mut positions, EVENTS_POSITION, end.events.as_ref(), end.cursor)?;
        put_position(&mut positions, COMMANDS_POSITION, end.commands.as_ref(), end.commands_cursor)?;
    }
    transaction.commit()?;
    Ok(())
}

/// Creates missing tables.
pub(super) fn make_tables(database: &redb::Database) -> Result<(), LedgerError> {
    let transaction = database.begin_write()?;
    drop(Tables::open(&transaction)?);
    transaction.commit()?;
    Ok(())
}

/// Stores the message at a cursor. A record without one keeps the known message while the cursor is the same.
fn put_position(
    positions: &mut redb::Table<'_, &'static str, Bytes>,
    name: &'static str,
    position: Option<&internal::LogPosition>,
    cursor: u64,
) -> Result<(), LedgerError> {
    if let Some(position) = position {
        positions.insert(name, &position.encode_to_vec()[..])?;
        return Ok(());
    }
    let known = positions.get(name)?.map(|row| decode::<internal::LogPosition>(row.value())).transpose()?;
    if known.is_some_and(|known| known.sequence != cursor) {
        positions.remove(name)?;
    }
    Ok(())
}

/// Removes everything.
pub(super) fn clear(database: &redb::Database) -> Result<(), LedgerError> {
    let transaction = database.begin_write()?;
    for table in [LANES, HEADS, RUNS, SUBSCRIPTIONS] {
        transaction.delete_table(table)?;
    }
    transaction.delete_table(DEAD)?;
    transaction.delete_table(COPIES)?;
    transaction.delete_table(REQUESTS)?;
    transaction.delete_table(META)?;
    transaction.delete_table(POSITIONS)?;
    drop(Tables::open(&transaction)?);
    transaction.commit()?;
    Ok(())
}

/// All tables of a write transaction.
struct Tables<'t> {
    lanes: redb::Table<'t, Bytes, Bytes>,
    heads: redb::Table<'t, Bytes, Bytes>,
    runs: redb::Table<'t, Bytes, Bytes>,
    dead: redb::Table<'t, Bytes, (u64, i64)>,
    copies: redb::Table<'t, Bytes, Bytes>,
    subscriptions: redb::Table<'t, Bytes, Bytes>,
    requests: redb::Table<'t, &'static str, (u64, i64)>,
    meta: redb::Table<'t, &'static str, u64>,
    positions: redb::Table<'t, &'static str, Bytes>,
}

impl<'t> Tables<'t> {
    fn open(transaction: &'t redb::WriteTransaction) -> Result<Self, LedgerError> {
        Ok(Self {
            lanes: transaction.open_table(LANES)?,
            heads: transaction.open_table(HEADS)?,
            runs: transaction.open_table(RUNS)?,
            dead: transaction.open_table(DEAD)?,
            copies: transaction.open_table(COPIES)?,
            subscriptions: transaction.open_table(SUBSCRIPTIONS)?,
            requests: transaction.open_table(REQUESTS)?,
            meta: transaction.open_table(META)?,
            positions: transaction.open_table(POSITIONS)?,
        })
    }

    fn apply(&mut self, commit: &internal::Commit) -> Result<(), LedgerError> {
        if commit.adopted.is_some() {
            self.adopt(commit.cursor, commit.commands_cursor)?;
        }
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
            self.requests.insert(result.request_id.as_str(), (result.command, commit.at_ms))?;
        }
        self.prune_requests(commit.at_ms)?;
        for change in &commit.subscriptions {
            self.change(change)?;
        }
        for copy in &commit.copies {
            self.put_copy(copy)?;
        }
        self.prune(commit)?;
        self.meta.insert("cursor", commit.cursor)?;
        self.meta.insert("commands", commit.commands_cursor)?;
        self.meta.insert("epoch", commit.epoch)?;
        self.meta.insert("copied", commit.copied)?;
        put_position(&mut self.positions, EVENTS_POSITION, commit.events.as_ref(), commit.cursor)?;
        put_position(&mut self.positions, COMMANDS_POSITION, commit.commands.as_ref(), commit.commands_cursor)?;
        Ok(())
    }

    fn settle(&mut self, outcome: &internal::Outcome) -> Result<(), LedgerError> {
        let event = outcome.unordered.then_some(outcome.sequence);
        let key = lane_key(&outcome.subscription, &outcome.workflow_id, event);
        if outcome.run == 0 {
            let lane = self.lanes.get(&key[..])?.map(|row| decode::<internal::Lane>(row.value())).transpose()?;
            if let Some(lane) = lane {
                self.put_lane(&internal::Lane {
                    next: outcome.sequence + 1,
                    attempts: 0,
                    uncounted: 0,
                    next_attempt_at_ms: 0,
                    first_failed_at_ms: 0,
                    state: internal::LaneState::Open.into(),
                    ..lane
                })?;
            }
            if outcome.kind() == internal::OutcomeKind::Delivered && !outcome.unordered {
                self.put_head(&key, &outcome.event_id, outcome.sequence)?;
            }
        } else {
            self.runs.remove(&run_key(&outcome.subscription, outcome.sequence, outcome.run)[..])?;
        }
        if outcome.kind() == internal::OutcomeKind::Cancelled {
            return Ok(());
        }
        let event = event_key(&outcome.subscription, outcome.sequence);
        if outcome.run != 0 || outcome.kind() == internal::OutcomeKind::DeadLettered {
            // Of the dead letter before.
            self.copies.remove(&event[..])?;
        }
        if outcome.kind() == internal::OutcomeKind::DeadLettered && outcome.from == 0 {
            self.dead.insert(&event[..], (outcome.run, outcome.at_ms))?;
        } else if outcome.run != 0 {
            self.dead.remove(&event[..])?;
        }
        Ok(())
    }

    fn put_lane(&mut self, lane: &internal::Lane) -> Result<(), LedgerError> {
        let key = lane_key(&lane.subscription, &lane.workflow_id, lane.unordered.then_some(lane.last));
        if lane.next > lane.last && !lane.paused {
            self.lanes.remove(&key[..])?;
        } else {
            self.lanes.insert(&key[..], &lane.encode_to_vec()[..])?;
        }
        Ok(())
    }

    fn put_copy(&mut self, copy: &internal::CopyState) -> Result<(), LedgerError> {
        let Some(outcome) = &copy.outcome else { return Ok(()) };
        let key = event_key(&outcome.subscription, outcome.sequence);
        if copy.kind() == internal::CopyStateKind::Refused {
            // Only of an open dead letter: an operator may have closed it since the refusal.
            let open = self.dead.get(&key[..])?.map(|row| row.value().0);
            if open == Some(outcome.run) {
                self.copies.insert(&key[..], &copy.encode_to_vec()[..])?;
            }
        } else {
            self.copies.remove(&key[..])?;
        }
        Ok(())
    }

    fn put_head(&mut self, key: &[u8], event_id: &[u8], seq: u64) -> Result<(), LedgerError> {
        self.heads.insert(key, &[event_id, &seq.to_be_bytes()].concat()[..])?;
        Ok(())
    }

    fn change(&mut self, change: &internal::SubscriptionChange) -> Result<(), LedgerError> {
        let uid = &change.subscription[..];
        let state =
            self.subscriptions.get(uid)?.map(|row| decode::<internal::SubscriptionState>(row.value())).transpose()?;
        let mut state =
            state.unwrap_or_else(|| internal::SubscriptionState { subscription: uid.to_vec(), ..Default::default() });
        apply_change(&mut state, change);
        if matches!(change.change, Some(Change::Closed(_))) {
            self.remove_all_of(uid)?;
        }
        self.subscriptions.insert(uid, &state.encode_to_vec()[..])?;
        Ok(())
    }

    /// Removes all rows of a closed subscription but its own.
    fn remove_all_of(&mut self, uid: &[u8]) -> Result<(), LedgerError> {
        let mine = |key: &[u8]| key.starts_with(uid);
        self.lanes.retain(|key, _| !mine(key))?;
        self.heads.retain(|key, _| !mine(key))?;
        self.runs.retain(|key, _| !mine(key))?;
        self.dead.retain(|key, _| !mine(key))?;
        self.copies.retain(|key, _| !mine(key))?;
        Ok(())
    }

    /// Removes heads and dead letters below the commit's limits.
    fn prune(&mut self, commit: &internal::Commit) -> Result<(), LedgerError> {
        if commit.forget_heads_below > 0 {
            self.heads.retain(|_, head| head_seq(head).is_none_or(|seq| seq >= commit.forget_heads_below))?;
        }
        if commit.forget_dead_before_ms > 0 {
            self.dead.retain(|_, (_, at_ms)| at_ms >= commit.forget_dead_before_ms)?;
            let dead = &self.dead;
            self.copies.retain(|key, _| dead.get(key).is_ok_and(|row| row.is_some()))?;
        }
        Ok(())
    }

    /// Removes old request ids once a day. The limit is the same all day, so the result does not depend on which commit of the
    /// day does it.
    fn prune_requests(&mut self, now_ms: i64) -> Result<(), LedgerError> {
        let today = u64::try_from(now_ms / DAY_MS).unwrap_or(0);
        let last = self.meta.get("requests_day")?.map_or(0, |day| day.value());
        if today > last {
            let kept_from_ms = now_ms - now_ms % DAY_MS - REQUESTS_KEPT_MS;
            self.requests.retain(|_, (_, at_ms)| at_ms >= kept_from_ms)?;
            self.meta.insert("requests_day", today)?;
        }
        Ok(())
    }

    fn load(&mut self, chunk: &internal::CheckpointChunk) -> Result<(), LedgerError> {
        for lane in &chunk.lanes {
            self.put_lane(lane)?;
        }
        for head in &chunk.heads {
            self.put_head(&workflow_key(&head.subscription, &head.workflow_id), &head.event_id, head.sequence)?;
        }
        for heads in &chunk.head_columns {
            let (events, rest) = heads.event_ids.as_chunks::<16>();
            if !rest.is_empty() || events.len() != heads.workflow_ids.len() || events.len() != heads.sequences.len() {
                return Err(LedgerError::Record("the columns of a checkpoint's heads differ in length".into()));
            }
            for ((workflow, event), seq) in heads.workflow_ids.iter().zip(events).zip(&heads.sequences) {
                self.put_head(&workflow_key(&heads.subscription, workflow), event, *seq)?;
            }
        }
        for run in &chunk.runs {
            let key = run_key(&run.subscription, run.sequence, run.run);
            self.runs.insert(&key[..], &run.encode_to_vec()[..])?;
        }
        for dead in &chunk.dead_letters {
            self.dead.insert(&event_key(&dead.subscription, dead.sequence)[..], (dead.run, dead.at_ms))?;
        }
        for copy in &chunk.copies {
            self.put_copy(copy)?;
        }
        for state in &chunk.subscriptions {
            self.subscriptions.insert(&state.subscription[..], &state.encode_to_vec()[..])?;
        }
        for request in &chunk.requests {
            self.requests.insert(request.request_id.as_str(), (request.command, request.at_ms))?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests;
