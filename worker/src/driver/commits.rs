//! The pipeline of commits: one append in flight, never given up while the shard is owned, nothing applied before its ack.
//!
//! An append whose answer is lost is found by reading on: the record behind our position is ours, then it was stored;
//! or another owner's, then we are fenced; or there is none, then the same append goes again with the same expectation,
//! so that of two copies only one can be stored.

use std::{sync::Arc, time::Duration};

use bytes::Bytes;
use jiff::Timestamp;
use prost::Message as _;
use tokio::{
    sync::mpsc,
    task::{JoinError, JoinHandle},
    time::Instant,
};
use weft_nats::{
    append::{AppendErrorKind, Appender},
    async_nats::HeaderMap,
    connect::Connection,
    direct,
    message::Outgoing,
    streams,
    subject::Layout,
};
use weft_proto::{
    ids::{ShardId, StreamSeq},
    v1::{self, outcome_record::Record},
};

use super::{Context, Driver, DriverError};
use crate::{
    lane::{Draft, Input},
    ledger::{Ledger, LedgerError, checkpoint::Piece, tables::Positions},
};

/// A checkpoint is written after so many commits: what a take-over without a file reads at the most.
pub const CHECKPOINT_COMMITS: u64 = 10_000;
/// And after so long with at least one commit.
const CHECKPOINT_AGE: Duration = Duration::from_secs(600);
/// The pauses between two tries of an append.
const PAUSE: (Duration, Duration) = (Duration::from_millis(50), Duration::from_secs(1));

/// An append that is under way.
#[derive(Debug)]
struct InFlight {
    task: JoinHandle<Result<(Appender, StreamSeq), Fenced>>,
    what: Appended,
}

/// How an append ended: the task's own end, then the append's.
pub(super) type Answer = Result<Result<(Appender, StreamSeq), Fenced>, JoinError>;

/// What an append is of.
#[derive(Debug)]
pub(super) enum Appended {
    Draft {
        draft: Box<Draft>,
        commit: Arc<v1::Commit>,
    },
    /// The record that fences off the owner before.
    Epoch(Arc<v1::Commit>),
    Chunk {
        index: u32,
    },
    End,
}

/// What came to a pipeline.
#[derive(Debug)]
pub(super) enum Turn {
    /// The append in flight has its answer.
    Answered(Box<Answer>),
    /// A piece of the checkpoint is there to be appended. None: it could not be read to its end.
    Piece(Option<Piece>),
}

/// Another owner has written.
#[derive(Debug)]
pub(super) struct Fenced;

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
    commits_since: u64,
    checkpoint_commits: u64,
    checkpoint_at: Instant,
}

/// A checkpoint that is being written.
#[derive(Debug)]
struct Checkpoint {
    pieces: mpsc::Receiver<Result<Piece, LedgerError>>,
    first_chunk: StreamSeq,
}

/// OUTCOMES of one shard.
#[derive(Debug, Clone)]
struct Log {
    connection: Connection,
    layout: Layout,
    shard: ShardId,
}

impl Commits {
    pub fn new(context: &Context, shard: ShardId, ledger: Ledger, positions: Positions) -> Self {
        let connection = context.connection.clone();
        Self {
            appender: Some(Appender::new(connection.clone())),
            log: Log { connection, layout: context.layout, shard },
            worker: context.worker.clone(),
            ledger,
            in_flight: None,
            position: positions.outcomes,
            epoch: positions.epoch + 1,
            cursor: positions.cursor.0,
            commands: positions.commands,
            copied: positions.copied,
            checkpoint: None,
            commits_since: 0,
            checkpoint_commits: context.checkpoint_commits,
            checkpoint_at: Instant::now(),
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

    pub fn in_flight(&self) -> bool {
        self.in_flight.is_some()
    }

    /// Appends the epoch record: from its ack on the owner before can commit nothing.
    pub async fn fence(&mut self) -> Result<(), DriverError> {
        let commit = v1::Commit { cursor: self.cursor, commands_cursor: self.commands, ..Default::default() };
        let commit = self.complete(commit);
        self.append(Record::Commit((*commit).clone()), Appended::Epoch(commit));
        let answer = self.answer().await;
        self.finish(answer).await.map(drop)
    }

    /// Fills in what is the same for every commit of this owner.
    fn complete(&self, commit: v1::Commit) -> Arc<v1::Commit> {
        Arc::new(v1::Commit {
            epoch: self.epoch,
            worker: self.worker.clone(),
            at_ms: Timestamp::now().as_millisecond(),
            copied: self.copied,
            ..commit
        })
    }

    pub fn begin(&mut self, mut draft: Draft) {
        let commit = self.complete(std::mem::take(&mut draft.commit));
        self.append(Record::Commit((*commit).clone()), Appended::Draft { draft: Box::new(draft), commit });
    }

    fn append(&mut self, record: Record, what: Appended) {
        let subject = match what {
            Appended::Draft { .. } | Appended::Epoch(_) => self.log.layout.outcomes_subject(self.log.shard),
            Appended::Chunk { .. } => self.log.layout.chunk_subject(self.log.shard),
            Appended::End => self.log.layout.checkpoint_subject(self.log.shard),
        };
        let payload = v1::OutcomeRecord { record: Some(record) }.encode_to_vec().into();
        let message = Outgoing { subject, headers: HeaderMap::new(), payload };
        let Some(appender) = self.appender.take() else { return };
        // Ends with its answer, or with the shard: dropping the pipeline aborts it.
        let task = tokio::spawn(append_until_stored(self.log.clone(), appender, self.position, message));
        self.in_flight = Some(InFlight { task, what });
    }

    /// Waits for the answer to the append in flight. Safe to cancel.
    async fn answer(&mut self) -> Answer {
        match &mut self.in_flight {
            Some(in_flight) => (&mut in_flight.task).await,
            None => std::future::pending().await,
        }
    }

    /// Applies what an answer says. Not safe to cancel: what is stored must be applied.
    pub async fn finish(&mut self, answer: Answer) -> Result<Appended, DriverError> {
        let Some(InFlight { what, .. }) = self.in_flight.take() else { return Err(DriverError::Fenced) };
        let (appender, seq) = match answer {
            Ok(Ok(stored)) => stored,
            Ok(Err(Fenced)) => return Err(DriverError::Fenced),
            Err(error) => return Err(LedgerError::Record(format!("the append has failed: {error}")).into()),
        };
        self.appender = Some(appender);
        self.position = seq;
        let commit = match &what {
            Appended::Draft { commit, .. } | Appended::Epoch(commit) => {
                self.cursor = commit.cursor;
                self.commands = commit.commands_cursor;
                self.commits_since += 1;
                Some(Arc::clone(commit))
            }
            Appended::Chunk { index } => {
                if let Some(checkpoint) = &mut self.checkpoint
                    && *index == 0
                {
                    checkpoint.first_chunk = seq;
                }
                None
            }
            Appended::End => {
                self.checkpoint = None;
                tracing::info!(shard = %self.log.shard, position = seq.0, "checkpoint is written");
                None
            }
        };
        self.ledger.apply(seq, commit).await?;
        Ok(what)
    }

    pub fn position(&self) -> StreamSeq {
        self.position
    }

    /// Begins a checkpoint when it is time.
    pub fn begin_checkpoint(&mut self) {
        let old = self.commits_since > 1 && self.checkpoint_at.elapsed() >= CHECKPOINT_AGE;
        if self.checkpoint.is_none() && (old || self.commits_since >= self.checkpoint_commits) {
            self.checkpoint = Some(Checkpoint { pieces: self.ledger.checkpoint(), first_chunk: StreamSeq(0) });
            self.commits_since = 0;
            self.checkpoint_at = Instant::now();
        }
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

    /// Appends a piece of the checkpoint.
    pub fn append_piece(&mut self, piece: Option<Piece>) {
        match piece {
            Some(Piece::Chunk(chunk)) => {
                let index = chunk.index;
                self.append(Record::Chunk(chunk), Appended::Chunk { index });
            }
            Some(Piece::End { end }) => {
                let first_chunk = self.checkpoint.as_ref().map_or(0, |checkpoint| checkpoint.first_chunk.0);
                self.append(Record::End(v1::CheckpointEnd { first_chunk, ..end }), Appended::End);
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
    /// Begins the next commit, when no append is in flight and there is something to commit.
    pub(super) fn commit_next(&mut self) {
        if self.commits.in_flight() {
            return;
        }
        self.commits.set_copied(self.copies.copied());
        self.commits.begin_checkpoint();
        if let Some(draft) = self.lanes.take_draft() {
            self.commits.begin(draft);
        }
    }

    /// What follows a commit: lanes go on, dead letters are copied.
    pub(super) async fn committed(&mut self, answer: Answer) -> Result<(), DriverError> {
        let Appended::Draft { draft, commit } = self.commits.finish(answer).await? else { return Ok(()) };
        metrics::counter!(crate::metrics::OUTCOMES).increment(commit.outcomes.len() as u64);
        self.copies.add(self.commits.position().0, &commit, draft.dead).await;
        self.handle(Input::Committed { draft: draft.number })
    }
}

/// Appends one record behind `expected`, however long it takes.
async fn append_until_stored(
    log: Log,
    mut appender: Appender,
    expected: StreamSeq,
    message: Outgoing,
) -> Result<(Appender, StreamSeq), Fenced> {
    let mut pause = PAUSE.0;
    loop {
        let problem = match appender.append(expected, std::slice::from_ref(&message)).await {
            Ok(seq) => return Ok((appender, seq)),
            Err(error) => match error.kind {
                AppendErrorKind::Conflict { .. } | AppendErrorKind::Unknown(_) => {
                    match log.stored_behind(expected, &message.payload).await {
                        Ok(Behind::Ours(seq)) => return Ok((appender, seq)),
                        Ok(Behind::Anothers) => return Err(Fenced),
                        Ok(Behind::Nothing) => error.kind.to_string(),
                        Err(problem) => problem,
                    }
                }
                AppendErrorKind::Unavailable(_) | AppendErrorKind::Full(_) | AppendErrorKind::Refused(_) => {
                    error.kind.to_string()
                }
            },
        };
        tracing::warn!(shard = %log.shard, problem, "commit is tried again");
        tokio::time::sleep(pause).await;
        pause = (pause * 2).min(PAUSE.1);
        log.connection.connected().await;
    }
}

/// What stands behind a position.
enum Behind {
    Ours(StreamSeq),
    Anothers,
    Nothing,
}

impl Log {
    async fn stored_behind(&self, expected: StreamSeq, payload: &Bytes) -> Result<Behind, String> {
        let stream = self.layout.outcomes_stream(self.shard);
        let state = streams::state(&self.connection, &stream).await.map_err(|error| error.to_string())?;
        if state.last <= expected {
            return Ok(Behind::Nothing);
        }
        let next = direct::range(&self.connection, &stream, expected.next(), ">", 1, payload.len() * 2 + 4096).await;
        match next.map_err(|error| error.to_string())?.first() {
            Some(message) if message.payload == *payload => Ok(Behind::Ours(message.seq)),
            Some(_) => Ok(Behind::Anothers),
            None => Ok(Behind::Nothing),
        }
    }
}
