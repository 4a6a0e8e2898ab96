//! Shared state of the services.

use std::{
    sync::{Arc, OnceLock},
    time::Duration,
};

use jiff::Timestamp;
use tokio::{
    sync::{OwnedSemaphorePermit, Semaphore},
    time::timeout,
};
use tokio_util::sync::CancellationToken;
use tonic::Status;
use weft_catalog::{Catalog, Snapshot, edit::RECORD_SHARD, keys::Grant};
use weft_index::history::{DeadLetterPlace, History, HistoryError, StoredCommand};
use weft_nats::{
    connect::Connection,
    dead_letter::{self, CopyName},
    direct,
    erasure::Erasure,
    event::Event,
    streams,
    subject::Layout,
    tail::Tails,
};
use weft_proto::ids::{EventId, Run, ShardId, StreamSeq};

use super::{
    shares::{Limits, Place, Shares},
    stats::observe::Observed,
};
use crate::{
    as_of,
    error::{Code, of_catalog, of_direct, of_history, refuse},
};

/// Maximum numbers of concurrent response streams: each may hold some hundred KiB of events that its client has not read.
const STREAMS: Limits = Limits { total: 64, readers: 48, key: 32 };
/// Maximum numbers of concurrent calls that read the log for a replay, each for some seconds.
const LOG_READS: Limits = Limits { total: 8, readers: 4, key: 2 };
/// Maximum number of calls that read payloads at a time; others wait. Each may hold some 10 MB.
pub(super) const PAYLOAD_READS_MAX: usize = 8;
/// Time-out for a command to reach the history; usually some milliseconds.
pub(super) const COMMAND_TIMEOUT: Duration = Duration::from_secs(5);
/// Maximum time that a read waits for the history to reach the log's end; usually some milliseconds.
const READ_TIMEOUT: Duration = Duration::from_secs(1);

/// Shared state of the services: the log once it is available, and their limits.
#[derive(Debug)]
pub(super) struct State {
    log: OnceLock<LogState>,
    draining: CancellationToken,
    streams: Shares,
    log_reads: Shares,
}

/// The log with its history and catalog.
#[derive(Debug, Clone)]
pub(super) struct LogState {
    pub connection: Connection,
    pub layout: Layout,
    pub history: History,
    /// Live streams of events, which share one reader per shard.
    pub tails: Tails,
    pub catalog: Catalog,
    /// The newest observation of the mesh.
    pub observed: Observed,
    /// Calls that read payloads at a time.
    pub payload_reads: Arc<Semaphore>,
}

impl State {
    pub fn new(draining: CancellationToken) -> Self {
        let (streams, log_reads) = (Shares::new("streams", STREAMS), Shares::new("plans of replays", LOG_READS));
        Self { log: OnceLock::new(), draining, streams, log_reads }
    }

    /// Opens the log to the services.
    pub fn open(&self, log: LogState) {
        // Called once; a second log would be the same.
        let _ = self.log.set(log);
    }

    pub fn log(&self) -> Result<&LogState, Status> {
        self.log.get().ok_or_else(|| refuse(Code::Starting, "the log has not been found yet; try again in a moment"))
    }

    /// A place for a response stream, held while it lasts.
    pub fn place(&self, grant: &Grant) -> Result<Place, Status> {
        self.streams.take(grant)
    }

    /// A place for reading the log for a replay.
    pub fn log_read(&self, grant: &Grant) -> Result<Place, Status> {
        self.log_reads.take(grant)
    }

    /// Ends streams: cancelled when the process drains.
    pub fn draining(&self) -> &CancellationToken {
        &self.draining
    }
}

/// Last status of a stream when the process drains.
pub(super) fn draining() -> Status {
    refuse(Code::Draining, "the admin is stopping; connect again and continue from the last cursor")
}

/// Refuses a request id that another call has used.
pub(super) fn reused(request_id: &str, at_ms: i64) -> Status {
    let at = Timestamp::from_millisecond(at_ms).unwrap_or_default();
    refuse(Code::IdReused, format!("request_id {request_id:?} was used at {at:.0} for another call; use a new one"))
}

impl LogState {
    /// Waits until the history reaches the present end of the log, for a short time. A lagging history answers from its state,
    /// and the response reports the lag.
    pub async fn catch_up(&self) -> Result<(), Status> {
        let shards: Vec<ShardId> = self.layout.all().collect();
        self.follow(&shards, READ_TIMEOUT).await
    }

    /// As [`catch_up`](Self::catch_up), for a command to a workflow of one shard: waits for that shard only, and longer.
    /// Commands are conditional on the state that they name, so the shard's owner refuses one that was based on an older
    /// state.
    pub async fn catch_up_shard(&self, shard: ShardId) -> Result<(), Status> {
        self.follow(&[shard], COMMAND_TIMEOUT).await
    }

    async fn follow(&self, shards: &[ShardId], patience: Duration) -> Result<(), Status> {
        as_of::note(self.history.catch_up(shards, patience).await.map_err(of_history)?);
        Ok(())
    }

    /// The records of a call with this request id, in the order of their parts; empty: none.
    pub async fn recorded(&self, request_id: &str) -> Result<Vec<StoredCommand>, Status> {
        let stream = self.layout.commands_stream(RECORD_SHARD);
        let state = streams::state(&self.connection, &stream).await;
        let end = state.map_err(|error| of_history(HistoryError::Log(error)))?.last;
        self.history.reach_command(RECORD_SHARD, Run(end.0), COMMAND_TIMEOUT).await.map_err(of_history)?;
        self.history.request(request_id.to_owned()).await.map_err(of_history)
    }

    /// The complete present catalog.
    pub async fn snapshot(&self) -> Result<Arc<Snapshot>, Status> {
        let snapshot = self.catalog.present().await.map_err(of_catalog)?;
        match snapshot.missing() {
            Some(missing) => Err(refuse(Code::LogUnavailable, missing)),
            None => Ok(snapshot),
        }
    }

    /// Waits until a command has been executed and the history has its result. Returns whether that was in time: a shard
    /// without an owner executes nothing.
    pub async fn carried_out(&self, stored: &StoredCommand, patience: Duration) -> Result<bool, Status> {
        let mut changes = self.history.changes();
        let carried_out = async {
            loop {
                changes.mark_unchanged();
                if self.history.is_carried_out(stored.shard, stored.run).await.map_err(of_history)? {
                    return Ok(true);
                }
                if changes.changed().await.is_err() {
                    return Ok(false);
                }
            }
        };
        timeout(patience, carried_out).await.unwrap_or(Ok(false))
    }

    /// Waits until few enough other calls read payloads.
    pub async fn payload_place(&self) -> Result<OwnedSemaphorePermit, Status> {
        let place = Arc::clone(&self.payload_reads).acquire_owned().await;
        place.map_err(|_| refuse(Code::Draining, "the admin is stopping; call again"))
    }

    /// The event with its payload, from EVENTS, or from the copy of its dead letter.
    pub async fn event(
        &self,
        id: EventId,
        shard: ShardId,
        seq: StreamSeq,
        place: Option<&DeadLetterPlace>,
    ) -> Result<Option<Event>, Status> {
        // First, since a copy may be removed only afterwards.
        if let Some(erased) = self.erased(id, shard, seq).await? {
            return Ok(Some(erased));
        }
        let stream = self.layout.events_stream(shard);
        let message = direct::get(&self.connection, &stream, seq).await.map_err(of_direct)?;
        let event = message.and_then(|message| Event::decode(self.layout, &message).ok());
        if let Some(event) = event.filter(|event| event.id == id) {
            return Ok(Some(event));
        }
        if let Some(place) = place {
            let DeadLetterPlace { subscription, workflow, event, seq, run, .. } = place;
            let name = CopyName { subscription, workflow, event: *event, seq: *seq, run: *run };
            let copy = dead_letter::find(&self.connection, &name).await.map_err(of_direct)?;
            if let Some(copy) = copy {
                return Ok(Event::decode_parts(place.workflow.clone(), &copy.headers, &copy.payload).ok());
            }
        }
        // It may have been erased in between.
        self.catch_up().await?;
        self.erased(id, shard, seq).await
    }

    /// An erased event, as its record has it.
    async fn erased(&self, id: EventId, shard: ShardId, seq: StreamSeq) -> Result<Option<Event>, Status> {
        let Some(record) = self.history.erased_by(shard, seq).await.map_err(of_history)? else { return Ok(None) };
        let record = direct::get(&self.connection, &self.layout.events_stream(shard), record).await;
        let erasure = record.map_err(of_direct)?.and_then(|record| Erasure::decode(self.layout, &record));
        Ok(erasure.map(|erasure| erasure.event).filter(|event| event.id == id))
    }
}
