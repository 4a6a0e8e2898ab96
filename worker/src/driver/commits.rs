//! The pipeline of commits: one append in flight, repeated while the shard is owned, and applied once it is stored.

use std::{sync::Arc, time::Duration};

use tokio::{
    task::{JoinError, JoinHandle},
    time::Instant,
};
use weft_nats::{append::Appender, clock::Anchored, records};
use weft_proto::{
    ids::StreamSeq,
    internal::{self, outcome_record::Record},
};

use super::{
    Context, Driver, DriverError, aborted,
    append::{Fenced, append_until_stored},
    cursor_marks::CursorMarks,
};
use crate::{
    lane::{Input, Lanes, PendingCommit},
    ledger::{Ledger, tables::Positions},
    log::Log,
    stream_identity::Known,
};

/// Delay of a commit that nothing waits for, to gather more successes: their lanes run ahead meanwhile, and each commit costs
/// a sync, and a transaction at each of its readers. After a crash the deliveries of that time are repeated.
const COMMIT_DELAY: Duration = Duration::from_millis(5);

/// Time between two commits that prune the ledger: applying one scans all rows that it may remove.
const PRUNE_INTERVAL: Duration = Duration::from_secs(3600);

/// The append in flight.
#[derive(Debug)]
struct InFlight {
    task: JoinHandle<Result<(Appender, StreamSeq), Fenced>>,
    /// The commit, applied once it is stored.
    commit: Arc<internal::Commit>,
    /// The lanes' decisions in it; `None`: it settles nothing.
    pending: Option<Box<PendingCommit>>,
    /// Its encoded size.
    bytes: usize,
}

/// The end of the append's task, and of the append.
pub(super) type Answer = Result<Result<(Appender, StreamSeq), Fenced>, JoinError>;

/// A commit that is stored and applied.
#[derive(Debug)]
pub(super) struct Stored {
    /// The lanes' decisions in it; `None`: it settles nothing.
    pub pending: Option<Box<PendingCommit>>,
    pub commit: Arc<internal::Commit>,
    /// Its encoded size.
    pub bytes: usize,
}

/// The commits of a shard, and its ledger.
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
    /// Copies that the next commit records.
    copies: Vec<internal::CopyState>,
    /// Rows of the ledger that the next commit prunes.
    prune: Option<Pruning>,
    clock: Anchored,
    pruned_at: Option<Instant>,
    delay: CommitDelay,
}

/// Delays the next commit.
#[derive(Debug, Default)]
struct CommitDelay {
    /// When the first decision of the next commit was seen.
    since: Option<Instant>,
}

impl CommitDelay {
    /// Time from `now` until the commit is due.
    fn wait(&mut self, is_urgent: bool, now: Instant) -> Duration {
        let since = *self.since.get_or_insert(now);
        if is_urgent { Duration::ZERO } else { COMMIT_DELAY.saturating_sub(now.duration_since(since)) }
    }
}

/// Rows of the ledger that are of no use any more.
#[derive(Debug, Clone, Copy)]
pub(super) struct Pruning {
    /// Heads of lanes whose event has a lower sequence.
    pub heads_below: StreamSeq,
    /// Open dead letters that were made before this, in unix milliseconds.
    pub dead_before_ms: i64,
}

impl Commits {
    /// A pipeline that continues after `positions`.
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
            delay: CommitDelay::default(),
        }
    }

    pub fn ledger(&self) -> &Ledger {
        &self.ledger
    }

    pub fn epoch(&self) -> u64 {
        self.epoch
    }

    /// Every dead letter in commits up to `copied` has its copy or is recorded as refused, some of them by the next commit.
    pub fn set_copied(&mut self, copied: u64, copies: Vec<internal::CopyState>) {
        self.copied = self.copied.max(copied);
        self.copies.extend(copies);
    }

    /// Whether the next commit records copies.
    pub fn has_copies(&self) -> bool {
        !self.copies.is_empty()
    }

    /// The next commit prunes this, unless one has pruned within [`PRUNE_INTERVAL`].
    pub fn prune(&mut self, prune: Pruning) {
        if self.pruned_at.is_none_or(|at| at.elapsed() >= PRUNE_INTERVAL) {
            self.prune = Some(prune);
        }
    }

    pub fn in_flight(&self) -> bool {
        self.in_flight.is_some()
    }

    /// Messages of EVENTS that a commit's cursor may point to.
    pub fn events(&mut self) -> &mut CursorMarks {
        &mut self.events
    }

    /// As [`events`](Self::events), of COMMANDS.
    pub fn commands(&mut self) -> &mut CursorMarks {
        &mut self.commands
    }

    /// Appends the epoch record: once it is stored, the previous owner can commit nothing.
    pub async fn fence(&mut self) -> Result<Stored, DriverError> {
        self.begin_empty();
        let answer = self.answer().await;
        self.finish(answer).await
    }

    /// Appends a commit that settles nothing: it records the owner and the copies.
    pub fn begin_empty(&mut self) {
        let (events, commands) = (self.events.committed().cursor, self.commands.committed().cursor);
        let commit = internal::Commit { cursor: events.0, commands_cursor: commands.0, ..Default::default() };
        let commit = self.complete(commit);
        self.append(commit, None);
    }

    /// Adds what every commit of this owner has.
    fn complete(&mut self, commit: internal::Commit) -> internal::Commit {
        internal::Commit {
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

    /// Time until the next commit is due; `None` while there is nothing to commit, or an append is in flight.
    pub fn wait(&mut self, lanes: &Lanes) -> Option<Duration> {
        if self.in_flight() || !lanes.has_commit() {
            return None;
        }
        let is_urgent = lanes.is_commit_urgent() || lanes.attempts_in_flight() == 0;
        Some(self.delay.wait(is_urgent, Instant::now()))
    }

    /// Appends a commit of the lanes.
    pub fn begin(&mut self, mut pending: PendingCommit) {
        self.delay = CommitDelay::default();
        if let Some(prune) = self.prune.take() {
            pending.commit.forget_heads_below = prune.heads_below.0;
            pending.commit.forget_dead_before_ms = prune.dead_before_ms;
            self.pruned_at = Some(Instant::now());
        }
        let commit = self.complete(std::mem::take(&mut pending.commit));
        self.append(commit, Some(Box::new(pending)));
    }

    fn append(&mut self, commit: internal::Commit, pending: Option<Box<PendingCommit>>) {
        let Log { layout, shard, .. } = self.log;
        let record = internal::OutcomeRecord { record: Some(Record::Commit(commit)) };
        let message = records::encode(layout.outcomes_subject(shard), &record);
        let Some(Record::Commit(commit)) = record.record else { return };
        let bytes = message.payload.len();
        let Some(appender) = self.appender.take() else { return };
        let stream = layout.outcomes_stream(shard);
        // Ends when it is stored, or with the shard: dropping the pipeline aborts it.
        let task = tokio::spawn(append_until_stored(self.log.clone(), stream, appender, self.position, message));
        self.in_flight = Some(InFlight { task, commit: Arc::new(commit), pending, bytes });
    }

    /// Waits until the append in flight ends; for ever while there is none. Cancel safe.
    pub async fn answer(&mut self) -> Answer {
        match &mut self.in_flight {
            Some(in_flight) => (&mut in_flight.task).await,
            None => std::future::pending().await,
        }
    }

    /// Applies the commit that was stored. Not cancel safe: a stored commit must be applied.
    pub async fn finish(&mut self, answer: Answer) -> Result<Stored, DriverError> {
        let Some(InFlight { commit, pending, bytes, .. }) = self.in_flight.take() else {
            return Err(DriverError::Fenced);
        };
        let (appender, seq) = match answer {
            Ok(Ok(stored)) => stored,
            Ok(Err(Fenced)) => return Err(DriverError::Fenced),
            Err(source) => return Err(aborted("append")(source)),
        };
        self.appender = Some(appender);
        self.position = seq;
        self.ledger.apply(seq, Arc::clone(&commit), bytes).await?;
        Ok(Stored { pending, commit, bytes })
    }

    pub fn position(&self) -> StreamSeq {
        self.position
    }

    /// Closes the ledger: everything applied is on disk when this returns.
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
    /// Appends the next commit, when one is due and no append is in flight.
    pub(super) fn commit_next(&mut self) {
        if self.commits.in_flight() {
            return;
        }
        let (copied, copies) = self.copier.progress();
        self.commits.set_copied(copied, copies);
        if self.commits.wait(&self.lanes).is_some_and(|wait| wait.is_zero())
            && let Some(pending) = self.lanes.take_commit()
        {
            self.commits.begin(pending);
        } else if self.commits.has_copies() {
            self.commits.begin_empty();
        }
    }

    /// A commit is stored: its lanes continue, its dead letters are copied.
    pub(super) async fn on_commit_stored(&mut self, answer: Answer) -> Result<(), DriverError> {
        let Stored { pending, commit, bytes } = self.commits.finish(answer).await?;
        self.checkpoints.committed(bytes);
        for result in &commit.results {
            self.commands.answered(&result.request_id);
        }
        let position = self.commits.position();
        let Some(pending) = pending else {
            self.copier.add(position, &commit, Vec::new());
            return Ok(());
        };
        crate::metrics::outcomes_committed(&commit.outcomes, |uid| {
            self.subscriptions.get(&uid).map(|compiled| compiled.subscription.value.name.as_str())
        });
        self.traced.settled(&commit.outcomes, self.clock.now());
        self.copier.add(position, &commit, pending.dead);
        self.handle(Input::CommitStored { number: pending.number })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_commit_is_delayed_until_something_waits_for_it() {
        let start = Instant::now();
        let mut delay = CommitDelay::default();
        assert_eq!(delay.wait(false, start), COMMIT_DELAY);
        assert_eq!(delay.wait(false, start + COMMIT_DELAY / 5), COMMIT_DELAY - COMMIT_DELAY / 5);
        assert_eq!(delay.wait(true, start + COMMIT_DELAY / 5), Duration::ZERO);
        assert_eq!(delay.wait(false, start + COMMIT_DELAY), Duration::ZERO, "counted from the first decision");
    }
}
