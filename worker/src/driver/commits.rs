//! The pipeline of commits: one append in flight, never given up while the shard is owned, nothing applied before its ack.
//! The pieces of a checkpoint go through the same pipeline, between commits.

use std::{sync::Arc, time::Duration};

use bytes::Bytes;
use jiff::Timestamp;
use prost::Message as _;
use tokio::{
    sync::mpsc,
    task::{JoinError, JoinHandle},
    time::Instant,
};
use weft_nats::{append::Appender, async_nats::HeaderMap, message::Outgoing};
use weft_proto::{
    ids::StreamSeq,
    v1::{self, outcome_record::Record},
};

use super::{
    Context, Driver, DriverError,
    append::{Fenced, append_until_stored},
    pace::SinceCheckpoint,
};
use crate::{
    lane::{Draft, Input},
    ledger::{Ledger, LedgerError, checkpoint::Piece, tables::Positions},
    log::Log,
};

/// How long successes wait for others to be committed with. Their lanes run ahead meanwhile, so nobody waits for it; a
/// commit costs a sync, and its readers a transaction each. A crash repeats that much more.
const LINGER: Duration = Duration::from_millis(5);

/// Between two commits that forget something: whoever applies them walks through all that they could forget.
const FORGET_PAUSE: Duration = Duration::from_secs(3600);

/// An append that is under way.
#[derive(Debug)]
struct InFlight {
    task: JoinHandle<Result<(Appender, StreamSeq), Fenced>>,
    /// What is being appended: a commit is applied once it is stored.
    record: v1::OutcomeRecord,
    /// The draft that the commit is of; none: the record that fences off the owner before.
    draft: Option<Box<Draft>>,
    /// Encoded.
    bytes: usize,
}

/// How an append ended: the task's own end, then the append's.
pub(super) type Answer = Result<Result<(Appender, StreamSeq), Fenced>, JoinError>;

/// What came to a pipeline.
#[derive(Debug)]
pub(super) enum Turn {
    /// The append in flight has its answer.
    Answered(Box<Answer>),
    /// A piece of the checkpoint is there to be appended. None: it could not be read to its end.
    Piece(Option<Piece>),
}

#[derive(Debug)]
pub(super) struct Commits {
    log: Log,
    worker: String,
    ledger: Ledger,
    appender: Option<Appender>,
    in_flight: Option<InFlight>,
    position: StreamSeq,
    epoch: u64,
    cursor: u64,
    commands: u64,
    copied: u64,
    checkpoint: Option<Checkpoint>,
    /// The last append was a commit: a piece of the checkpoint may go before the next.
    piece_next: bool,
    since_checkpoint: SinceCheckpoint,
    /// What the next commit forgets.
    forget: Option<Forget>,
    forgotten_at: Option<Instant>,
}

/// What is of no use any more.
#[derive(Debug, Clone, Copy)]
pub(super) struct Forget {
    /// Heads of lanes whose event stood below this.
    pub heads_below: StreamSeq,
    /// Open dead letters that were made before this, in unix milliseconds.
    pub dead_before_ms: i64,
}

/// A checkpoint that is being written.
#[derive(Debug)]
struct Checkpoint {
    pieces: mpsc::Receiver<Result<Piece, LedgerError>>,
    first_chunk: StreamSeq,
}

impl Commits {
    /// Begins behind `positions`; the last checkpoint was made at `checkpoint`, or never was one but the stream was made
    /// then.
    pub fn new(
        context: &Context,
        log: Log,
        ledger: Ledger,
        positions: Positions,
        checkpoint: (StreamSeq, Timestamp),
    ) -> Self {
        let age = Duration::try_from(Timestamp::now().duration_since(checkpoint.1)).unwrap_or(Duration::ZERO);
        let commits = positions.outcomes.0.saturating_sub(checkpoint.0.0);
        Self {
            appender: Some(Appender::new(log.connection.clone())),
            log,
            worker: context.worker.clone(),
            ledger,
            in_flight: None,
            position: positions.outcomes,
            epoch: positions.epoch + 1,
            cursor: positions.cursor.0,
            commands: positions.commands,
            copied: positions.copied,
            checkpoint: None,
            piece_next: false,
            since_checkpoint: SinceCheckpoint::new(context.checkpoints, commits, age, Instant::now()),
            forget: None,
            forgotten_at: None,
        }
    }

    pub fn ledger(&self) -> &Ledger {
        &self.ledger
    }

    pub fn epoch(&self) -> u64 {
        self.epoch
    }

    /// OUTCOMES sequence up to which every dead letter is known to have its copy.
    pub fn copied(&self) -> u64 {
        self.copied
    }

    pub fn set_copied(&mut self, copied: u64) {
        self.copied = self.copied.max(copied);
    }

    /// The next commit forgets this, unless one has forgotten something not long ago.
    pub fn forget(&mut self, forget: Forget) {
        if self.forgotten_at.is_none_or(|at| at.elapsed() >= FORGET_PAUSE) {
            self.forget = Some(forget);
        }
    }

    pub fn in_flight(&self) -> bool {
        self.in_flight.is_some()
    }

    /// Appends the epoch record: from its ack on the owner before can commit nothing.
    pub async fn fence(&mut self) -> Result<(), DriverError> {
        let commit = v1::Commit { cursor: self.cursor, commands_cursor: self.commands, ..Default::default() };
        let commit = self.complete(commit);
        self.append(Record::Commit(commit), None);
        let answer = self.answer().await;
        self.finish(answer).await.map(drop)
    }

    /// Fills in what is the same for every commit of this owner.
    fn complete(&self, commit: v1::Commit) -> v1::Commit {
        v1::Commit {
            epoch: self.epoch,
            worker: self.worker.clone(),
            at_ms: Timestamp::now().as_millisecond(),
            copied: self.copied,
            ..commit
        }
    }

    pub fn begin(&mut self, mut draft: Draft) {
        if let Some(forget) = self.forget.take() {
            draft.commit.forget_heads_below = forget.heads_below.0;
            draft.commit.forget_dead_before_ms = forget.dead_before_ms;
            self.forgotten_at = Some(Instant::now());
        }
        let commit = self.complete(std::mem::take(&mut draft.commit));
        self.append(Record::Commit(commit), Some(Box::new(draft)));
    }

    fn append(&mut self, record: Record, draft: Option<Box<Draft>>) {
        let subject = match record {
            Record::Commit(_) => self.log.layout.outcomes_subject(self.log.shard),
            Record::Chunk(_) => self.log.layout.chunk_subject(self.log.shard),
            Record::End(_) => self.log.layout.checkpoint_subject(self.log.shard),
        };
        self.piece_next = draft.is_some();
        let record = v1::OutcomeRecord { record: Some(record) };
        let payload: Bytes = record.encode_to_vec().into();
        let bytes = payload.len();
        let message = Outgoing { subject, headers: HeaderMap::new(), payload };
        let Some(appender) = self.appender.take() else { return };
        // Ends with its answer, or with the shard: dropping the pipeline aborts it.
        let task = tokio::spawn(append_until_stored(self.log.clone(), appender, self.position, message));
        self.in_flight = Some(InFlight { task, record, draft, bytes });
    }

    /// Waits for the answer to the append in flight. Safe to cancel.
    async fn answer(&mut self) -> Answer {
        match &mut self.in_flight {
            Some(in_flight) => (&mut in_flight.task).await,
            None => std::future::pending().await,
        }
    }

    /// Applies what an answer says: a draft and its commit, where it was one. Not safe to cancel: what is stored must be
    /// applied.
    pub async fn finish(&mut self, answer: Answer) -> Result<Option<(Box<Draft>, Arc<v1::Commit>)>, DriverError> {
        let Some(InFlight { record, draft, bytes, .. }) = self.in_flight.take() else {
            return Err(DriverError::Fenced);
        };
        let (appender, seq) = match answer {
            Ok(Ok(stored)) => stored,
            Ok(Err(Fenced)) => return Err(DriverError::Fenced),
            Err(source) => return Err(DriverError::Task { what: "an append", source }),
        };
        self.appender = Some(appender);
        self.position = seq;
        let commit = match record.record {
            Some(Record::Commit(commit)) => {
                self.cursor = commit.cursor;
                self.commands = commit.commands_cursor;
                self.since_checkpoint.committed(bytes);
                Some(Arc::new(commit))
            }
            Some(Record::Chunk(chunk)) => {
                self.since_checkpoint.piece_written(bytes);
                if let Some(checkpoint) = &mut self.checkpoint
                    && chunk.index == 0
                {
                    checkpoint.first_chunk = seq;
                }
                None
            }
            Some(Record::End(_)) => {
                self.checkpoint = None;
                tracing::info!(shard = %self.log.shard, position = seq.0, "checkpoint is written");
                None
            }
            None => None,
        };
        self.ledger.apply(seq, commit.clone()).await?;
        Ok(draft.zip(commit))
    }

    pub fn position(&self) -> StreamSeq {
        self.position
    }

    /// Begins a checkpoint when it is time.
    pub fn begin_checkpoint(&mut self) {
        if self.checkpoint_wait().is_some_and(|wait| wait.is_zero()) {
            self.checkpoint = Some(Checkpoint { pieces: self.ledger.checkpoint(), first_chunk: StreamSeq(0) });
            self.since_checkpoint.begun(Instant::now());
        }
    }

    /// How long it is to the next checkpoint; `None` while one is being written or a commit is in flight.
    pub fn checkpoint_wait(&self) -> Option<Duration> {
        let is_free = self.checkpoint.is_none() && self.in_flight.is_none();
        is_free.then(|| self.since_checkpoint.wait(Instant::now()))
    }

    /// Ends the ledger: what was applied is on disk when this returns.
    pub async fn close(&mut self) {
        self.checkpoint = None;
        self.ledger.close().await;
    }

    /// Waits for what comes next: the ack of the append in flight, or, while there is none, the checkpoint's next piece.
    /// Safe to cancel.
    pub async fn next(&mut self) -> Result<Turn, DriverError> {
        if self.in_flight.is_some() {
            return Ok(Turn::Answered(Box::new(self.answer().await)));
        }
        match &mut self.checkpoint {
            Some(checkpoint) => Ok(Turn::Piece(checkpoint.pieces.recv().await.transpose()?)),
            None => std::future::pending().await,
        }
    }

    /// The next piece of the checkpoint, if it is ready and a commit has gone since the last: so the two take turns
    /// however busy the shard is.
    pub fn ready_piece(&mut self) -> Result<Option<Piece>, DriverError> {
        let Some(checkpoint) = self.checkpoint.as_mut().filter(|_| self.piece_next) else { return Ok(None) };
        // An empty channel that is closed is found out by `next`.
        Ok(checkpoint.pieces.try_recv().ok().transpose()?)
    }

    /// Appends a piece of the checkpoint.
    pub fn append_piece(&mut self, piece: Option<Piece>) {
        match piece {
            Some(Piece::Chunk(chunk)) => self.append(Record::Chunk(chunk), None),
            Some(Piece::End { end }) => {
                let first_chunk = self.checkpoint.as_ref().map_or(0, |checkpoint| checkpoint.first_chunk.0);
                self.append(Record::End(v1::CheckpointEnd { first_chunk, ..end }), None);
            }
            None => self.checkpoint = None,
        }
    }
}

impl Drop for Commits {
    fn drop(&mut self) {
        if let Some(in_flight) = &self.in_flight {
            in_flight.task.abort();
        }
    }
}

impl Driver {
    /// Begins the next append, when none is in flight: a commit where there is something to commit, or a piece of the
    /// checkpoint.
    pub(super) fn commit_next(&mut self) -> Result<(), DriverError> {
        if self.commits.in_flight() {
            return Ok(());
        }
        self.commits.set_copied(self.copies.copied());
        self.commits.begin_checkpoint();
        if let Some(piece) = self.commits.ready_piece()? {
            self.commits.append_piece(Some(piece));
        } else if self.draft_wait().is_some_and(|wait| wait.is_zero())
            && let Some(draft) = self.lanes.take_draft()
        {
            self.draft_since = None;
            self.commits.begin(draft);
        }
        Ok(())
    }

    /// How long it is until the next draft is committed; `None` while there is none, or an append is in flight.
    pub(super) fn draft_wait(&mut self) -> Option<Duration> {
        if self.commits.in_flight() || !self.lanes.has_draft() {
            return None;
        }
        let since = *self.draft_since.get_or_insert_with(Instant::now);
        let is_urgent = self.lanes.is_draft_urgent() || self.lanes.attempts_in_flight() == 0;
        Some(if is_urgent { Duration::ZERO } else { LINGER.saturating_sub(since.elapsed()) })
    }

    /// What follows a commit: lanes go on, dead letters are copied.
    pub(super) async fn committed(&mut self, answer: Answer) -> Result<(), DriverError> {
        let Some((draft, commit)) = self.commits.finish(answer).await? else { return Ok(()) };
        metrics::counter!(crate::metrics::OUTCOMES).increment(commit.outcomes.len() as u64);
        self.copies.add(self.commits.position().0, &commit, draft.dead).await;
        self.handle(Input::Committed { draft: draft.number })
    }
}
