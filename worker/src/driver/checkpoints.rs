//! Writes the state of a shard to CHECKPOINTS, concurrently with the commits.
//!
//! A checkpoint is the state after the commits up to a position of OUTCOMES, so it is correct from any owner. But two owners
//! must not mix their chunks, and an owner that has lost the shard must not remove a newer checkpoint. Therefore each record
//! expects the sequence before it, an owner never appends after a record of a higher epoch, and it requests the removal only
//! of what precedes its complete checkpoint. A checkpoint that fails halfway leaves chunks without an end, which are removed
//! with what precedes the next complete one. An admin performs the removal; while none runs, earlier checkpoints stay, which
//! only costs disk space.

use std::time::Duration;

use tokio::{
    task::JoinError,
    time::{Instant, timeout},
};
use tokio_util::task::AbortOnDropHandle;
use weft_nats::{append::Appender, checkpoints, direct::DirectError, records};
use weft_proto::{
    ids::StreamSeq,
    internal::{self, outcome_record::Record},
};

use super::{
    DriverError, aborted,
    append::{Fenced, append_until_stored},
    checkpoint_schedule::{CheckpointPolicy, CheckpointSchedule},
};
use crate::{
    ledger::{
        Ledger, LedgerError,
        checkpoint::Piece,
        recovery::{CheckpointState, unix_ns},
        store::LedgerState,
    },
    log::Log,
};

mod removal;

pub(super) use removal::Removal;

/// The longest that one record may take to be stored. A checkpoint in progress holds a read transaction of the ledger's
/// file open, whose old pages are not reused meanwhile, so it is given up rather than waiting for a log that refuses it.
const APPEND_TIMEOUT: Duration = Duration::from_secs(30);

/// How a checkpoint ended.
#[derive(Debug)]
pub(super) struct Ended {
    /// Bytes of the records that were stored.
    bytes: u64,
    result: Result<(), CheckpointError>,
}

/// Why a checkpoint was given up.
#[derive(Debug, thiserror::Error)]
enum CheckpointError {
    #[error("a later owner of the shard writes checkpoints")]
    Superseded,
    #[error("an earlier owner of the shard wrote to the stream meanwhile")]
    Conflict,
    #[error("a record was not stored within {} s", APPEND_TIMEOUT.as_secs())]
    TimedOut,
    #[error(transparent)]
    Read(#[from] DirectError),
    #[error(transparent)]
    Ledger(#[from] LedgerError),
}

/// The checkpoints of one shard.
#[derive(Debug)]
pub(super) struct Checkpoints {
    log: Log,
    epoch: u64,
    /// Creation time of OUTCOMES, unix nanoseconds.
    created_ns: u64,
    schedule: CheckpointSchedule,
    running: Option<AbortOnDropHandle<Ended>>,
    removal: Removal,
    removing: Option<AbortOnDropHandle<()>>,
    /// A later owner writes checkpoints, so this one has stopped.
    superseded: bool,
}

impl Checkpoints {
    /// The checkpoints of an owner with this epoch, given those that it found at take-over.
    pub fn new(
        removal: Removal,
        policy: CheckpointPolicy,
        epoch: u64,
        created_ns: u64,
        state: CheckpointState,
    ) -> Self {
        let log = removal.log.clone();
        // Stamped by the server.
        let now = log.connection.server_clock().now();
        let age = Duration::try_from(now.duration_since(state.at)).unwrap_or(Duration::ZERO);
        let schedule = CheckpointSchedule::new(policy, state.since, state.occupied, age, Instant::now());
        Self { log, epoch, created_ns, schedule, running: None, removal, removing: None, superseded: false }
    }

    /// The owner's epoch is committed. Removes what an earlier owner would have removed after its last checkpoint.
    pub fn taken_over(&mut self) {
        self.schedule.committed(0);
        self.removing = Some(self.removal.start());
    }

    /// A commit of this many bytes was stored.
    pub fn committed(&mut self, bytes: usize) {
        self.schedule.committed(bytes);
    }

    /// Time until the next checkpoint is due; `None` while one is being written.
    pub fn wait(&self) -> Option<Duration> {
        (self.running.is_none() && !self.superseded).then(|| self.schedule.wait(Instant::now()))
    }

    /// Starts a checkpoint of the ledger's state when one is due.
    pub fn start_if_due(&mut self, ledger: &Ledger) {
        if self.wait().is_some_and(|wait| wait.is_zero()) {
            self.schedule.started(Instant::now());
            let writer = CheckpointWriter::new(self.log.clone(), self.epoch, self.created_ns);
            self.running = Some(AbortOnDropHandle::new(tokio::spawn(writer.write(ledger.state()))));
        }
    }

    /// Waits until the running checkpoint has ended; for ever while there is none. Cancel safe.
    pub async fn ended(&mut self) -> Result<Ended, JoinError> {
        match &mut self.running {
            Some(running) => running.await,
            None => std::future::pending().await,
        }
    }

    /// Processes the end of a checkpoint.
    ///
    /// # Errors
    ///
    /// The ledger's file cannot be read, or the task has panicked.
    pub fn finish(&mut self, ended: Result<Ended, JoinError>) -> Result<(), DriverError> {
        self.running = None;
        let Ended { bytes, result } = ended.map_err(aborted("checkpoint"))?;
        match result {
            Ok(()) => {
                self.schedule.completed(bytes);
                self.removing = Some(self.removal.start());
                tracing::info!(shard = %self.log.shard, bytes, "checkpoint written");
                return Ok(());
            }
            Err(CheckpointError::Ledger(error)) => return Err(error.into()),
            Err(CheckpointError::Superseded) => self.superseded = true,
            Err(error) => tracing::warn!(shard = %self.log.shard, %error, "checkpoint failed; it is retried later"),
        }
        self.schedule.failed(bytes, Instant::now());
        Ok(())
    }

    /// Aborts what is running.
    pub fn stop(&mut self) {
        (self.running, self.removing) = (None, None);
        self.removal.say(None);
    }
}

/// Writes one checkpoint: [`begin`](Self::begin), then each [`chunk`](Self::chunk), then [`end`](Self::end). May be dropped
/// at any point, and gives up with the first error.
struct CheckpointWriter {
    log: Log,
    epoch: u64,
    created_ns: u64,
    appender: Option<Appender>,
    first_chunk: StreamSeq,
    /// The stream's last sequence.
    last: StreamSeq,
    bytes: u64,
}

impl CheckpointWriter {
    fn new(log: Log, epoch: u64, created_ns: u64) -> Self {
        let appender = Some(Appender::new(log.connection.clone()));
        let (first_chunk, last) = (StreamSeq(0), StreamSeq(0));
        Self { log, epoch, created_ns, appender, first_chunk, last, bytes: 0 }
    }

    async fn write(mut self, state: LedgerState) -> Ended {
        let result = self.try_write(state).await;
        Ended { bytes: self.bytes, result }
    }

    async fn try_write(&mut self, state: LedgerState) -> Result<(), CheckpointError> {
        self.begin().await?;
        let mut pieces = state.read().await?;
        while let Some(piece) = pieces.recv().await {
            match piece? {
                Piece::Chunk(chunk) => self.chunk(chunk).await?,
                Piece::End { end } => return self.end(end).await,
            }
        }
        Err(LedgerError::Closed.into())
    }

    /// Finds the end of the stream. If another owner appends there first, the next append fails.
    async fn begin(&mut self) -> Result<(), CheckpointError> {
        let tail = checkpoints::tail(&self.log.connection, self.log.layout, self.log.shard).await?;
        if tail.writer_epoch > self.epoch {
            return Err(CheckpointError::Superseded);
        }
        (self.last, self.first_chunk) = (tail.last, tail.last.next());
        Ok(())
    }

    async fn chunk(&mut self, chunk: internal::CheckpointChunk) -> Result<(), CheckpointError> {
        let writer_epoch = self.epoch;
        self.append(Record::Chunk(internal::CheckpointChunk { writer_epoch, ..chunk })).await
    }

    /// Completes the checkpoint.
    async fn end(&mut self, end: internal::CheckpointEnd) -> Result<(), CheckpointError> {
        let end = self.complete(end).await?;
        self.append(Record::End(end)).await
    }

    /// Adds to the end what the state itself does not say.
    async fn complete(&self, end: internal::CheckpointEnd) -> Result<internal::CheckpointEnd, CheckpointError> {
        let stream = self.log.layout.outcomes_stream(self.log.shard);
        let get = self.log.get(&stream, StreamSeq(end.position));
        let at_position = match end.position {
            0 => None,
            _ => timeout(APPEND_TIMEOUT, get).await.map_err(|_| CheckpointError::TimedOut)?,
        };
        Ok(internal::CheckpointEnd {
            first_chunk: self.first_chunk.0,
            writer_epoch: self.epoch,
            outcomes_created_ns: self.created_ns,
            position_stored_at_ns: at_position.map_or(0, |message| unix_ns(message.stored_at)),
            ..end
        })
    }

    async fn append(&mut self, record: Record) -> Result<(), CheckpointError> {
        let Log { layout, shard, .. } = self.log;
        let record = internal::OutcomeRecord { record: Some(record) };
        let message = records::encode(layout.checkpoints_subject(shard), &record);
        let bytes = message.payload.len() as u64;
        // Missing after an append that was given up: nothing more is appended then.
        let Some(appender) = self.appender.take() else { return Err(CheckpointError::TimedOut) };
        let stream = layout.checkpoints_stream(shard);
        let append = append_until_stored(self.log.clone(), stream, appender, self.last, message);
        match timeout(APPEND_TIMEOUT, append).await {
            Ok(Ok((appender, seq))) => {
                (self.appender, self.last) = (Some(appender), seq);
                self.bytes += bytes;
                Ok(())
            }
            Ok(Err(Fenced)) => Err(CheckpointError::Conflict),
            Err(_) => Err(CheckpointError::TimedOut),
        }
    }
}

#[cfg(test)]
mod tests;
