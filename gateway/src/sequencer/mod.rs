//! Numbers and appends new events and recognises duplicates. One task per shard.
//!
//! Each decision is made on everything up to a sequence S of EVENTS and is appended expecting S. If anyone else wrote
//! meanwhile, the append fails, and the sequencer reads on and decides again. Two gateways therefore never give the
//! same number twice, and a delivery that reaches both at the same time is accepted once.
//!
//! - `submit_queue`: where events are submitted, singly, in batches or as a stream; `chain`: events that must keep their order.
//! - `lookup`: queries of the receipts' file; `overlay`: the log beyond it; `end`: the known end of the log.
//! - `decide`: the outcome of each event of a group; pure. `in_flight`: a decided group during its append.
//! - `session`: the loop of one shard; `log_tracker`: whether it reads the log or relies on acks and notices.
//! - `lifecycle`: opens the receipts, catches up with the log, restarts sessions; `head_refresh`: keeps heads in the log.
//! - `remote`: the interface to [`forwarding`](crate::forwarding), which lets one of several gateways append for all.
//!
//! If an append got no answer and its event is then found in the log, the sender is answered 200 (duplicate): that is
//! correct for any sender, whereas 202 could be the second one.

use std::{sync::Arc, time::Duration};

use bytes::Bytes;
use jiff::Timestamp;
use tokio::{
    sync::{mpsc, oneshot, watch},
    time::{Instant, timeout, timeout_at},
};
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use weft_index::{
    projection::OpenError,
    receipts::{Accepted, Horizons, replay_key},
};
use weft_nats::{connect::Connection, event::Event, streams, subject::Layout};
use weft_proto::ids::{EventId, SequenceNumber, ShardId, StreamSeq, WorkflowId};

mod append_notice;
pub(crate) mod chain;
mod decide;
mod end;
pub(crate) mod group_commit;
mod head_refresh;
mod in_flight;
mod lifecycle;
mod log_tracker;
mod lookup;
mod options;
mod overlay;
mod probe;
mod progress;
mod remote;
mod repeated_bodies;
mod session;
mod shard;
pub(crate) mod submission;
mod submit_queue;
#[cfg(test)]
mod tests;
mod trace;

pub use options::SequencerOptions;
pub use submit_queue::{NotTaken, PendingReceipt, PublishStream};

pub(crate) use append_notice::{AppendNotice, NOTICE_AGE_MAX};
pub(crate) use overlay::UNCONFIRMED;
use progress::Progress;
pub(crate) use remote::{AppendObserver, EventBatch, Forwarding, RemoteQueue};
use repeated_bodies::RepeatedBodies;
use shard::{Ask, Inbox, Shard};
use submission::Encoded;
pub(crate) use submit_queue::LocalQueue;

use submit_queue::SubmitQueue;

/// A verified and identified event without a number.
#[derive(Debug, Clone)]
pub struct NewEvent {
    /// Event id.
    pub id: EventId,
    /// Workflow id.
    pub workflow: WorkflowId,
    /// Event type.
    pub event_type: String,
    /// Name of the source.
    pub source: String,
    /// When it happened.
    pub time: Timestamp,
    /// When it was received.
    pub received_at: Timestamp,
    /// Delivery id of the sender.
    pub delivery_id: Option<String>,
    /// Media type of `payload`.
    pub content_type: String,
    /// RFC 6901 pointer to `data` in `payload`; empty: all of it.
    pub data_pointer: String,
    /// Scheme and index of the secret, such as `standard/0`.
    pub verified_by: String,
    /// W3C trace context.
    pub traceparent: Option<String>,
    /// Why workers must not attempt it.
    pub quarantine: Option<String>,
    /// Headers of the sender that are passed on, lower-case names.
    pub kept_headers: Vec<(String, String)>,
    /// The body, untouched.
    pub payload: Bytes,
    /// The answer to a known id with another body: the first receipt instead of an error.
    pub receipt_on_id_reuse: bool,
    /// The answer to the same body of the same source under another id, of any type and workflow: the first receipt.
    pub replay_guard: bool,
}

impl NewEvent {
    /// The event with its number and predecessor.
    pub fn numbered(self, sequence_number: SequenceNumber, previous: Option<EventId>) -> Event {
        Event {
            id: self.id,
            sequence_number,
            workflow: self.workflow,
            previous,
            event_type: self.event_type,
            source: self.source,
            time: self.time,
            received_at: self.received_at,
            delivery_id: self.delivery_id,
            content_type: self.content_type,
            data_pointer: self.data_pointer,
            verified_by: self.verified_by,
            traceparent: self.traceparent,
            quarantine: self.quarantine,
            kept_headers: self.kept_headers,
            payload: self.payload,
        }
    }
}

/// The answer to a sender: where its event stands.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Receipt {
    /// The event.
    pub event_id: EventId,
    /// Its number in its workflow.
    pub sequence_number: SequenceNumber,
    /// Workflow id.
    pub workflow: WorkflowId,
    /// The event before it.
    pub previous: Option<EventId>,
    /// Whether it had been accepted before.
    pub duplicate: bool,
}

/// Why an event has no receipt.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SubmitError {
    /// The same delivery id came before with another workflow, type or body.
    #[error("the delivery id was used before with another body")]
    IdReused,
    /// The message would be larger than the log takes.
    #[error("the event is larger than the log takes")]
    TooLarge,
    /// An earlier event of its chain was not accepted. Not appended.
    #[error("an event before it was not accepted")]
    PredecessorRefused,
    /// The queue is full. Not appended.
    #[error("too many events wait for the log")]
    Overloaded,
    /// EVENTS is at its limit. Not appended.
    #[error("the log is full")]
    Full,
    /// The log did not answer in time. It may have been appended: a repeat gets the receipt.
    #[error("the log does not answer")]
    Unavailable,
    /// The receipts have not caught up with the log yet.
    #[error("the gateway is starting")]
    Starting,
    /// The gateway is shutting down.
    #[error("the gateway is draining")]
    Draining,
}

/// Questions that may wait in one shard.
const QUEUE_ASKS_MAX: usize = 1_000;

/// Append notices that may wait in one shard. If one does not fit, the log is read.
const QUEUE_NOTICES_MAX: usize = 16;

/// Hands events to the sequencers of all shards. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Sequencer {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    connection: Connection,
    layout: Layout,
    message_bytes_max: usize,
    submit_timeout: Duration,
    horizons: Horizons,
    drain: CancellationToken,
    submit_queues: Vec<SubmitQueue>,
    repeated_bodies: RepeatedBodies,
}

/// Opens the receipts of every shard and starts their sequencers on `tasks`. `forward` starts the forwarding of a
/// shard; its token ends the session. `progress` says what is missing, `None` once all shards are ready. On `drain`
/// they finish what is queued, and end.
///
/// # Errors
///
/// [`OpenError`]: the folder cannot be used. An absent log is none: they wait for it.
pub(crate) async fn start<R>(
    connection: Connection,
    layout: Layout,
    options: SequencerOptions,
    progress: watch::Sender<Option<String>>,
    drain: CancellationToken,
    tasks: &TaskTracker,
    forward: impl Fn(ShardId, LocalQueue) -> R,
) -> Result<Sequencer, OpenError>
where
    R: Future<Output = (CancellationToken, Option<Forwarding>)>,
{
    let progress = Progress::new(layout.shards(), progress);
    let mut submit_queues = Vec::new();
    let mut shards = Vec::new();
    for id in layout.all() {
        let stream = layout.events_stream(id);
        let path = options.folder.join(format!("receipts-{id}.redb"));
        let receipts = lifecycle::open(path.clone(), stream.clone(), options.horizons()).await?;
        let (asks, asked) = mpsc::channel(QUEUE_ASKS_MAX);
        let (current, currently) = watch::channel(None);
        let (mut submit_queue, queued) = SubmitQueue::new(options.queue_events_max, asks, currently);
        let (notify, notices) = mpsc::channel(QUEUE_NOTICES_MAX);
        let (drained, forwarding) = forward(id, submit_queue.local(&options, notify)).await;
        let (remote, observer) = forwarding.map(|forwarding| (forwarding.remote, forwarding.observer)).unzip();
        submit_queue.remote = remote;
        submit_queues.push(submit_queue);
        let shard = Shard {
            id,
            layout,
            stream,
            connection: connection.clone(),
            options: options.clone(),
            path,
            drain: drained,
            progress: progress.clone(),
            current,
            observer,
        };
        shards.push(shard.run(Inbox { queue: queued, asks: asked, notices }, receipts));
    }
    for shard in shards {
        // Handles its own errors; ends by `drain`.
        tasks.spawn(shard);
    }
    let (message_bytes_max, submit_timeout) = (options.message_bytes_max, options.submit_timeout);
    let horizons = options.horizons();
    let repeated_bodies = RepeatedBodies::default();
    let inner = Inner {
        connection,
        layout,
        message_bytes_max,
        submit_timeout,
        horizons,
        drain,
        submit_queues,
        repeated_bodies,
    };
    Ok(Sequencer { inner: Arc::new(inner) })
}

impl Sequencer {
    /// Numbers and appends an event, or recognises it. Dropping the future does not cancel the append.
    ///
    /// # Errors
    ///
    /// [`SubmitError`].
    pub async fn submit(&self, event: NewEvent) -> Result<Receipt, SubmitError> {
        let deadline = self.inner.deadline();
        if !event.replay_guard || self.inner.layout.shards() < 2 {
            return self.enqueue(event, deadline, None)?.receipt().await;
        }
        let key = replay_key(&event.source, &event.payload);
        let held = timeout_at(deadline, self.inner.repeated_bodies.hold(key)).await;
        let mut held = held.map_err(|_| SubmitError::Unavailable)?;
        let sequencer = self.clone();
        // A sender that hangs up does not drop it: the append continues, and no repeat may overtake it.
        let submitting = tokio::spawn(async move {
            if let Some(first) = held.first() {
                return Ok(first);
            }
            if let Some(first) = sequencer.inner.replayed_elsewhere(&event, key).await? {
                return Ok(first);
            }
            let receipt = sequencer.enqueue(event, deadline, None)?.receipt().await?;
            held.accepted(&receipt);
            Ok(receipt)
        });
        submitting.await.unwrap_or(Err(SubmitError::Unavailable))
    }

    /// Position of an event: first from what this gateway knows, then after reading to the end that the log has now.
    /// `None`: unknown, or expired.
    ///
    /// # Errors
    ///
    /// [`SubmitError::Unavailable`], [`SubmitError::Starting`].
    pub async fn position_of(&self, id: EventId) -> Result<Option<(ShardId, StreamSeq)>, SubmitError> {
        Ok(self.accepted(id).await?.map(|(shard, accepted)| (shard, accepted.seq)))
    }

    /// Shard and receipt of an event, as [`position_of`](Self::position_of).
    ///
    /// # Errors
    ///
    /// As there.
    pub async fn accepted(&self, id: EventId) -> Result<Option<(ShardId, Accepted)>, SubmitError> {
        let inner = &*self.inner;
        let find = async {
            if let Some(found) = inner.find(id).await? {
                return Ok(Some(found));
            }
            for shard in inner.layout.all() {
                inner.read_on(shard).await?;
            }
            inner.find(id).await
        };
        timeout(inner.submit_timeout, find).await.unwrap_or(Err(SubmitError::Unavailable))
    }
}

impl Inner {
    /// Refuses new events during a drain.
    fn accepts(&self) -> Result<(), SubmitError> {
        if self.drain.is_cancelled() { Err(SubmitError::Draining) } else { Ok(()) }
    }

    /// Deadline of an event that is submitted now.
    fn deadline(&self) -> Instant {
        Instant::now() + self.submit_timeout
    }

    fn encode(&self, event: NewEvent) -> Result<Encoded, SubmitError> {
        let event = Encoded::new(event, self.layout);
        if event.bytes > self.message_bytes_max() { Err(SubmitError::TooLarge) } else { Ok(event) }
    }

    /// The submit queue of a shard that is ready.
    fn submit_queue(&self, shard: ShardId) -> Result<&SubmitQueue, SubmitError> {
        let submit_queue = self.submit_queues.get(shard.0 as usize).ok_or(SubmitError::Starting)?;
        if submit_queue.current.borrow().is_some() { Ok(submit_queue) } else { Err(SubmitError::Starting) }
    }

    fn message_bytes_max(&self) -> usize {
        self.connection.max_payload().map_or(self.message_bytes_max, |max| max.min(self.message_bytes_max))
    }

    /// Looks an event up in all shards.
    async fn find(&self, id: EventId) -> Result<Option<(ShardId, Accepted)>, SubmitError> {
        for shard in self.layout.all() {
            let submit_queue = self.submit_queue(shard)?;
            // What leaves the overlay is in the file before, so in this order nothing is missed.
            let (answer, answered) = oneshot::channel();
            submit_queue.ask(Ask::Position { id, answer }).await?;
            if let Some(accepted) = answered.await.map_err(|_| SubmitError::Starting)? {
                return Ok(Some((shard, accepted)));
            }
            let receipts = submit_queue.current.borrow().clone().ok_or(SubmitError::Starting)?;
            let looked = tokio::task::spawn_blocking(move || receipts.view()?.receipt(id)).await;
            match looked {
                Ok(Ok(Some(accepted))) => return Ok(Some((shard, accepted))),
                Ok(Ok(None)) => {}
                // The shard's task gets the same error and handles it.
                Ok(Err(_)) | Err(_) => return Err(SubmitError::Unavailable),
            }
        }
        Ok(None)
    }

    /// The receipt of an event of another shard whose body this is, where that is a replay: the workflow is often not signed
    /// and may have brought it here. Found by look-up only, so not where both come at the same moment to two gateways.
    async fn replayed_elsewhere(&self, event: &NewEvent, key: EventId) -> Result<Option<Receipt>, SubmitError> {
        let own = self.layout.shard_of(&event.workflow);
        for shard in self.layout.all().filter(|shard| *shard != own) {
            if let Some((event_id, accepted)) = self.replayed_in(shard, key).await? {
                let Accepted { sequence_number, workflow, previous, .. } = accepted;
                return Ok(Some(Receipt { event_id, sequence_number, workflow, previous, duplicate: true }));
            }
        }
        Ok(None)
    }

    /// The event of a shard that has this replay key, as far as that is known here.
    async fn replayed_in(&self, shard: ShardId, key: EventId) -> Result<Option<(EventId, Accepted)>, SubmitError> {
        let submit_queue = self.submit_queue(shard)?;
        // What leaves the overlay is in the file before, so in this order nothing is missed.
        let (answer, answered) = oneshot::channel();
        submit_queue.ask(Ask::Replay { key, answer }).await?;
        // It comes only from a log that answers.
        let answered = timeout(self.submit_timeout, answered).await.map_err(|_| SubmitError::Unavailable)?;
        let (found, now) = answered.map_err(|_| SubmitError::Starting)?;
        let known = |(_, accepted): &(EventId, Accepted)| self.horizons.knows(accepted, now);
        if let Some(found) = found.filter(known) {
            return Ok(Some(found));
        }
        let receipts = submit_queue.current.borrow().clone().ok_or(SubmitError::Starting)?;
        match tokio::task::spawn_blocking(move || receipts.view()?.replayed(key)).await {
            Ok(Ok(found)) => Ok(found.filter(known)),
            // The shard's task gets the same error and handles it.
            Ok(Err(_)) | Err(_) => Err(SubmitError::Unavailable),
        }
    }

    /// Waits until the shard has read to the end that the log has now.
    async fn read_on(&self, shard: ShardId) -> Result<(), SubmitError> {
        let view = streams::leader_view(&self.connection, &self.layout.events_stream(shard)).await;
        // A leader that was cut off reports an old end.
        let view = view.ok().filter(|view| view.quorum).ok_or(SubmitError::Unavailable)?;
        let end = view.state.last;
        let (answer, answered) = oneshot::channel();
        self.submit_queue(shard)?.ask(Ask::Reach { end, answer }).await?;
        answered.await.map_err(|_| SubmitError::Unavailable)
    }
}
