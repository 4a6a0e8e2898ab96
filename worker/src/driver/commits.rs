//! The pipeline of commits: one append in flight, never given up while the shard is owned, nothing applied before its ack.

use std::{sync::Arc, time::Duration};

use tokio::{
    task::{JoinError, JoinHandle},
    time::Instant,
};
use weft_nats::{append::Appender, clock::Anchored, records};
use weft_proto::{
    ids::StreamSeq,
    v1::{self, outcome_record::Record},
};

use super::{
    Context, Driver, DriverError,
    append::{Fenced, append_until_stored},
    cursor_marks::CursorMarks,
};
use crate::{
    identity::Known,
    lane::{Input, PendingCommit},
    ledger::{Ledger, tables::Positions},
    log::Log,
};

/// How long successes wait for others to be committed with. Their lanes run ahead meanwhile, so nobody waits for it; a
/// commit costs a sync, and its readers a transaction each. A crash repeats that much more.
const COMMIT_DELAY: Duration = Duration::from_millis(5);

/// Between two commits that forget something: whoever applies them walks through all that they could forget.
const PRUNE_INTERVAL: Duration = Duration::from_secs(3600);

/// An append that is under way.
#[derive(Debug)]
struct InFlight {
    task: JoinHandle<Result<(Appender, StreamSeq), Fenced>>,
    /// What is being appended: it is applied once it is stored.
    commit: Arc<v1::Commit>,
    /// The draft that the commit is of; none: the record that fences off the owner before.
    pending: Option<Box<PendingCommit>>,
    /// Encoded.
    bytes: usize,
}

/// How an append ended: the task's own end, then the append's.
pub(super) type Answer = Result<Result<(Appender, StreamSeq), Fenced>, JoinError>;

/// A commit that is stored and applied.
#[derive(Debug)]
pub(super) struct Stored {
    /// The draft that it is of; none: it settles nothing.
    pub pending: Option<Box<PendingCommit>>,
    pub commit: Arc<v1::Commit>,
    /// Encoded.
    pub bytes: usize,
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
    events: CursorMarks,
    commands: CursorMarks,
    copied: u64,
    /// What the next commit records of copies.
    copies: Vec<v1::CopyState>,
    /// What the next commit forgets.
    prune: Option<Pruning>,
    clock: Anchored,
    pruned_at: Option<Instant>,
}

/// What is of no use any more.
#[derive(Debug, Clone, Copy)]
pub(super) struct Pruning {
    /// Heads of lanes whose event stood below this.
    pub heads_below: StreamSeq,
    /// Open dead letters that were made before this, in unix milliseconds.
    pub dead_before_ms: i64,
}

impl Commits {
    /// Begins behind `positions`.
    pub fn new(
        context: &Context,
        log: Log,
        ledger: Ledger,
        positions: &Positions,
        known: Known,
        clock: Anchored,
    ) -> Self {
        Self {
            appender: Some(Appender::new(log.connection.clone())),
            log,
            worker: context.worker.clone(),
            ledger,
            in_flight: None,
            position: positions.outcomes,
            epoch: positions.epoch + 1,
            events: CursorMarks::new(known.events),
            commands: CursorMarks::new(known.commands),
            copied: positions.copied,
            copies: Vec::new(),
            prune: None,
            clock,
            pruned_at: None,
        }
    }

    pub fn ledger(&self) -> &Ledger {
        &self.ledger
    }

    pub fn epoch(&self) -> u64 {
        self.epoch
    }

    /// Every dead letter in commits up to `copied` has its copy, or is recorded as refused: some by the next commit.
    pub fn set_copied(&mut self, copied: u64, copies: Vec<v1::CopyState>) {
        self.copied = self.copied.max(copied);
        self.copies.extend(copies);
    }

    /// Whether the next commit records something of copies.
    pub fn has_copies(&self) -> bool {
        !self.copies.is_empty()
    }

    /// The next commit forgets this, unless one has forgotten something not long ago.
    pub fn prune(&mut self, prune: Pruning) {
        if self.pruned_at.is_none_or(|at| at.elapsed() >= PRUNE_INTERVAL) {
            self.prune = Some(prune);
        }
    }

    pub fn in_flight(&self) -> bool {
        self.in_flight.is_some()
    }

    /// The messages of EVENTS at which a commit's cursor may stand.
    pub fn events(&mut self) -> &mut CursorMarks {
        &mut self.events
    }

    /// As [`events`](Self::events), of COMMANDS.
    pub fn commands(&mut self) -> &mut CursorMarks {
        &mut self.commands
    }

    /// Appends the epoch record: from its ack on the owner before can commit nothing.
    pub async fn fence(&mut self) -> Result<Stored, DriverError> {
        self.begin_empty();
        let answer = self.answer().await;
        self.finish(answer).await
    }

    /// Appends a commit that settles nothing: it says who owns the shard, and how far copies are.
    pub fn begin_empty(&mut self) {
        let (events, commands) = (self.events.committed().cursor, self.commands.committed().cursor);
        let commit = v1::Commit { cursor: events.0, commands_cursor: commands.0, ..Default::default() };
        let commit = self.complete(commit);
        self.append(commit, None);
    }

    /// Fills in what is the same for every commit of this owner.
    fn complete(&mut self, commit: v1::Commit) -> v1::Commit {
        v1::Commit {
            events: Some(self.events.commit(commit.cursor)),
            commands: Some(self.commands.commit(commit.commands_cursor)),
            epoch: self.epoch,
            worker: self.worker.clone(),
            at_ms: self.clock.now().as_millisecond(),
            copied: self.copied,
            copies: std::mem::take(&mut self.copies),
            ..commit
        }
    }

    pub fn begin(&mut self, mut pending: PendingCommit) {
        if let Some(prune) = self.prune.take() {
            pending.commit.forget_heads_below = prune.heads_below.0;
            pending.commit.forget_dead_before_ms = prune.dead_before_ms;
            self.pruned_at = Some(Instant::now());
        }
        let commit = self.complete(std::mem::take(&mut pending.commit));
        self.append(commit, Some(Box::new(pending)));
    }

    fn append(&mut self, commit: v1::Commit, pending: Option<Box<PendingCommit>>) {
        let Log { layout, shard, .. } = self.log;
        let record = v1::OutcomeRecord { record: Some(Record::Commit(commit)) };
        let message = records::encode(layout.outcomes_subject(shard), &record);
        let Some(Record::Commit(commit)) = record.record else { return };
        let bytes = message.payload.len();
        let Some(appender) = self.appender.take() else { return };
        let stream = layout.outcomes_stream(shard);
        // Ends with its answer, or with the shard: dropping the pipeline aborts it.
        let task = tokio::spawn(append_until_stored(self.log.clone(), stream, appender, self.position, message));
        self.in_flight = Some(InFlight { task, commit: Arc::new(commit), pending, bytes });
    }

    /// Waits for the answer to the append in flight; for ever while there is none. Safe to cancel.
    pub async fn answer(&mut self) -> Answer {
        match &mut self.in_flight {
            Some(in_flight) => (&mut in_flight.task).await,
            None => std::future::pending().await,
        }
    }

    /// Applies the commit that an answer is for. Not safe to cancel: what is stored must be applied.
    pub async fn finish(&mut self, answer: Answer) -> Result<Stored, DriverError> {
        let Some(InFlight { commit, pending, bytes, .. }) = self.in_flight.take() else {
            return Err(DriverError::Fenced);
        };
        let (appender, seq) = match answer {
            Ok(Ok(stored)) => stored,
            Ok(Err(Fenced)) => return Err(DriverError::Fenced),
            Err(source) => return Err(DriverError::Task { what: "an append", source }),
        };
        self.appender = Some(appender);
        self.position = seq;
        self.ledger.apply(seq, Arc::clone(&commit), bytes).await?;
        Ok(Stored { pending, commit, bytes })
    }

    pub fn position(&self) -> StreamSeq {
        self.position
    }

    /// Ends the ledger: what was applied is on disk when this returns.
    pub async fn close(&mut self) {
        self.ledger.close().await;
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
    /// Appends the next draft, when there is one and no append is in flight.
    pub(super) fn commit_next(&mut self) {
        if self.commits.in_flight() {
            return;
        }
        let (copied, copies) = self.copies.progress();
        self.commits.set_copied(copied, copies);
        if self.commit_wait().is_some_and(|wait| wait.is_zero())
            && let Some(pending) = self.lanes.take_commit()
        {
            self.pending_since = None;
            self.commits.begin(pending);
        } else if self.commits.has_copies() {
            self.commits.begin_empty();
        }
    }

    /// How long it is until the next draft is committed; `None` while there is none, or an append is in flight.
    pub(super) fn commit_wait(&mut self) -> Option<Duration> {
        if self.commits.in_flight() || !self.lanes.has_commit() {
            return None;
        }
        let since = *self.pending_since.get_or_insert_with(Instant::now);
        let is_urgent = self.lanes.is_commit_urgent() || self.lanes.attempts_in_flight() == 0;
        Some(if is_urgent { Duration::ZERO } else { COMMIT_DELAY.saturating_sub(since.elapsed()) })
    }

    /// What follows a commit: lanes go on, dead letters are copied.
    pub(super) async fn on_commit_stored(&mut self, answer: Answer) -> Result<(), DriverError> {
        let Stored { pending, commit, bytes } = self.commits.finish(answer).await?;
        self.checkpoints.committed(bytes);
        for result in &commit.results {
            self.requests.remove(&result.request_id);
        }
        let position = self.commits.position();
        let Some(pending) = pending else {
            self.copies.add(position, &commit, Vec::new());
            return Ok(());
        };
        metrics::counter!(crate::metrics::OUTCOMES).increment(commit.outcomes.len() as u64);
        self.copies.add(position, &commit, pending.dead);
        self.handle(Input::CommitStored { number: pending.number })
    }
}
