//! What the services share.

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
use weft_index::history::{DeadLetterPlace, History, HistoryError, StoredCommand};
use weft_nats::{
    catalog::{Catalog, Snapshot, edit::RECORD_SHARD},
    connect::Connection,
    dead_letter::{self, CopyName},
    direct,
    event::Event,
    streams,
    subject::Layout,
    tail::Tails,
};
use weft_proto::ids::{EventId, Run, ShardId, StreamSeq};

use super::command::COMMAND_PATIENCE;
use crate::{
    as_of,
    error::{Code, of_catalog, of_direct, of_history, refuse},
};

/// Streams of answers at a time: each may hold some hundred KiB of events that its client has not taken yet.
const STREAMS_MAX: usize = 64;
/// How long a read waits for the history to come as far as the log was when it came: in rest some milliseconds.
const READ_PATIENCE: Duration = Duration::from_secs(1);

/// What the services share: the log once it is there, and what bounds them.
#[derive(Debug)]
pub(super) struct State {
    log: OnceLock<Log>,
    draining: CancellationToken,
    streams: Arc<Semaphore>,
}

/// The log, and what is known of it.
#[derive(Debug, Clone)]
pub(super) struct Log {
    pub connection: Connection,
    pub layout: Layout,
    pub history: History,
    /// Live streams of events, which share one reader a shard.
    pub tails: Tails,
    pub catalog: Catalog,
}

impl State {
    pub fn new(draining: CancellationToken) -> Self {
        Self { log: OnceLock::new(), draining, streams: Arc::new(Semaphore::new(STREAMS_MAX)) }
    }

    /// From now on the services answer.
    pub fn open(&self, log: Log) {
        // Opened once a run; a second log would be the same.
        let _ = self.log.set(log);
    }

    pub fn log(&self) -> Result<&Log, Status> {
        self.log.get().ok_or_else(|| refuse(Code::Starting, "the log has not been found yet; try again in a moment"))
    }

    /// A place for a stream of answers, held while it lasts.
    pub fn place(&self) -> Result<OwnedSemaphorePermit, Status> {
        let full = || format!("{STREAMS_MAX} streams are open already; close one, or try again later");
        Arc::clone(&self.streams).try_acquire_owned().map_err(|_| refuse(Code::Overloaded, full()))
    }

    /// Ends streams: set when the process is to end.
    pub fn draining(&self) -> &CancellationToken {
        &self.draining
    }
}

/// What a stream's last word is when the process ends.
pub(super) fn draining() -> Status {
    refuse(Code::Draining, "the admin is stopping; connect again and go on from the last cursor")
}

/// What a call is told whose request id another call had.
pub(super) fn reused(request_id: &str, at_ms: i64) -> Status {
    let at = Timestamp::from_millisecond(at_ms).unwrap_or_default();
    refuse(Code::IdReused, format!("request_id {request_id:?} was used at {at:.0} for another call; use a new one"))
}

impl Log {
    /// Waits for a moment until the history knows what the log holds now. A history that does not come so far answers from
    /// what it has, and the response says how far that is.
    pub async fn catch_up(&self) -> Result<(), Status> {
        let shards: Vec<ShardId> = self.layout.all().collect();
        self.follow(&shards, READ_PATIENCE).await
    }

    /// As [`catch_up`](Self::catch_up), for a command to a workflow of one shard: waits for that shard only, and longer.
    /// Commands are conditional on the state that they name, so one that was given by an older state is refused by the
    /// shard's owner.
    pub async fn catch_up_shard(&self, shard: ShardId) -> Result<(), Status> {
        self.follow(&[shard], COMMAND_PATIENCE).await
    }

    async fn follow(&self, shards: &[ShardId], patience: Duration) -> Result<(), Status> {
        as_of::note(self.history.catch_up(shards, patience).await.map_err(of_history)?);
        Ok(())
    }

    /// What a call of this request id has been recorded with by now, in the order of its parts; empty: nothing.
    pub async fn recorded(&self, request_id: &str) -> Result<Vec<StoredCommand>, Status> {
        let stream = self.layout.commands_stream(RECORD_SHARD);
        let state = streams::state(&self.connection, &stream).await;
        let end = state.map_err(|error| of_history(HistoryError::Log(error)))?.last;
        self.history.reach_command(RECORD_SHARD, Run(end.0), COMMAND_PATIENCE).await.map_err(of_history)?;
        self.history.request(request_id.to_owned()).await.map_err(of_history)
    }

    /// The catalog as it stands now, all of it.
    pub async fn snapshot(&self) -> Result<Snapshot, Status> {
        let snapshot = self.catalog.read().await.map_err(of_catalog)?;
        match snapshot.missing() {
            Some(missing) => Err(refuse(Code::LogUnavailable, missing)),
            None => Ok(snapshot),
        }
    }

    /// Waits until a command has been carried out and the history says so. Whether that came in time: a shard that nobody
    /// owns does nothing.
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

    /// The event with its payload, from EVENTS, or from the copy of its dead letter.
    pub async fn event(
        &self,
        id: EventId,
        shard: ShardId,
        seq: StreamSeq,
        place: Option<&DeadLetterPlace>,
    ) -> Result<Option<Event>, Status> {
        let stream = self.layout.events_stream(shard);
        let message = direct::get(&self.connection, &stream, seq).await.map_err(of_direct)?;
        let event = message.and_then(|message| Event::decode(self.layout, &message).ok());
        if let Some(event) = event.filter(|event| event.id == id) {
            return Ok(Some(event));
        }
        let Some(place) = place else { return Ok(None) };
        let DeadLetterPlace { subscription, workflow, event, seq, run, .. } = place;
        let name = CopyName { subscription, workflow, event: *event, seq: *seq, run: *run };
        let copy = dead_letter::find(&self.connection, &name).await.map_err(of_direct)?;
        Ok(copy.and_then(|copy| Event::decode_parts(place.workflow.clone(), &copy.headers, &copy.payload).ok()))
    }
}
