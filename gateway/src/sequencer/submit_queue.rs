//! The entry of a shard: single events, batches that are taken completely or not at all, and streams.

use std::{sync::Arc, time::Duration};

use tokio::{
    sync::{OwnedSemaphorePermit, Semaphore, mpsc, oneshot, watch},
    time::{Instant, timeout_at},
};
use weft_catalog::MasterKey;
use weft_index::receipts::Receipts;
use weft_proto::ids::{ShardId, WorkflowId};

use super::{
    NewEvent, Receipt, Sequencer, SequencerOptions, SubmitError,
    append_notice::AppendNotice,
    chain::{Chain, ChainPosition, Reuse},
    remote::{EventBatch, RemoteQueue},
    shard::Ask,
    submission::{Answer, Encoded, Submission},
    trace::AcceptTrace,
};

#[cfg(test)]
mod tests;

/// Bytes of messages that may be queued or in flight in one shard.
const QUEUE_BYTES_MAX: usize = 64 * 1024 * 1024;

/// The queues of one shard.
#[derive(Debug)]
pub(super) struct SubmitQueue {
    queue: mpsc::Sender<Submission>,
    /// The queue to the gateway that appends for all.
    pub remote: Option<Box<dyn RemoteQueue>>,
    asks: mpsc::Sender<Ask>,
    /// A permit for each byte that may wait.
    room: Arc<Semaphore>,
    /// The receipts, while they have caught up with the log.
    pub current: watch::Receiver<Option<Receipts>>,
}

/// The part of a submit queue that forwarding uses.
#[derive(Debug, Clone)]
pub(crate) struct LocalQueue {
    pub queue: mpsc::Sender<Submission>,
    pub room: Arc<Semaphore>,
    /// The receipts, while they have caught up with the log.
    pub current: watch::Receiver<Option<Receipts>>,
    pub submit_timeout: Duration,
    /// The mesh's key, by which its gateways know each other.
    pub master_key: MasterKey,
    /// Dedup horizon.
    pub dedup_horizon: Duration,
    /// Events that may wait in the queue.
    pub events_max: usize,
    /// Append notices to the session.
    pub notices: mpsc::Sender<AppendNotice>,
}

/// An event that waits for its receipt. Dropping this does not cancel its append.
#[derive(Debug)]
pub struct PendingReceipt {
    answer: oneshot::Receiver<Answer>,
    deadline: Instant,
    trace: Option<Box<AcceptTrace>>,
}

/// Reserved places for events that stay together.
enum Reservation<'a> {
    Local(mpsc::PermitIterator<'a, Submission>),
    /// Forwarded as one batch.
    Remote(mpsc::Permit<'a, EventBatch>, EventBatch),
}

impl Reservation<'_> {
    fn fill(&mut self, submission: Submission) -> Result<(), SubmitError> {
        match self {
            Self::Local(places) => places.next().ok_or(SubmitError::Overloaded)?.send(submission),
            Self::Remote(_, batch) => batch.push(submission),
        }
        Ok(())
    }

    /// Sends a batch that is complete.
    fn finish(self) {
        if let Self::Remote(place, batch) = self {
            place.send(batch);
        }
    }
}

/// Why a batch was not taken.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NotTaken {
    /// Index of the event that is the reason, if one is.
    pub at: Option<usize>,
    /// The reason.
    pub error: SubmitError,
}

/// Events of one sender, submitted before earlier ones are answered, but never accepted without them: what is accepted
/// of a stream is a prefix of it.
#[derive(Debug)]
pub struct PublishStream {
    sequencer: Sequencer,
    chain: Chain,
    shard: Option<ShardId>,
}

impl SubmitQueue {
    /// The queue, and its receiver.
    pub fn new(
        queue_events_max: usize,
        asks: mpsc::Sender<Ask>,
        current: watch::Receiver<Option<Receipts>>,
    ) -> (Self, mpsc::Receiver<Submission>) {
        let (queue, queued) = mpsc::channel(queue_events_max);
        let room = Arc::new(Semaphore::new(QUEUE_BYTES_MAX));
        (Self { queue, remote: None, asks, room, current }, queued)
    }

    /// The part that forwarding uses. `notices` leads to the session.
    pub fn local(&self, options: &SequencerOptions, notices: mpsc::Sender<AppendNotice>) -> LocalQueue {
        LocalQueue {
            queue: self.queue.clone(),
            room: self.room.clone(),
            current: self.current.clone(),
            submit_timeout: options.submit_timeout,
            master_key: options.master_key.clone(),
            dedup_horizon: options.dedup_horizon,
            events_max: self.queue.max_capacity(),
            notices,
        }
    }

    pub async fn ask(&self, ask: Ask) -> Result<(), SubmitError> {
        self.asks.send(ask).await.map_err(|_| SubmitError::Draining)
    }

    /// Queues one event.
    fn take(
        &self,
        mut event: Encoded,
        deadline: Instant,
        link: Option<ChainPosition>,
    ) -> Result<PendingReceipt, SubmitError> {
        let trace = event.trace.take();
        let room = self.room(event.bytes)?;
        // Events of a stream stay in the local queue, with the earlier ones.
        let stays = link.is_some();
        let (submission, answer) = event.submission(deadline, room, link);
        match self.route() {
            Some(elsewhere) if !stays => elsewhere.try_send(vec![submission]).map_err(|error| refused(&error))?,
            _ => self.queue.try_send(submission).map_err(|error| refused(&error))?,
        }
        Ok(PendingReceipt { answer, deadline, trace })
    }

    /// The queue for new events, if they are forwarded.
    fn route(&self) -> Option<&mpsc::Sender<EventBatch>> {
        self.remote.as_ref().and_then(|remote| remote.route())
    }

    /// Reserves `places` for events that stay together.
    fn reserve(&self, places: usize) -> Result<Reservation<'_>, SubmitError> {
        match self.route() {
            Some(elsewhere) if places > 0 => {
                let place = elsewhere.try_reserve().map_err(|error| refused(&error))?;
                Ok(Reservation::Remote(place, Vec::with_capacity(places)))
            }
            _ => self.queue.try_reserve_many(places).map(Reservation::Local).map_err(|error| refused(&error)),
        }
    }

    /// Reserves `bytes`, immediately or not at all.
    fn room(&self, bytes: usize) -> Result<OwnedSemaphorePermit, SubmitError> {
        let permits = u32::try_from(bytes).map_err(|_| SubmitError::Overloaded)?;
        self.room.clone().try_acquire_many_owned(permits).map_err(|_| SubmitError::Overloaded)
    }
}

/// Queues all events, in order in each shard, or none. Each goes to the queue at its index; those of one queue form a
/// chain that skips reused ids.
fn take_all(
    submit_queues: &[SubmitQueue],
    events: Vec<(usize, Encoded)>,
    deadline: Instant,
) -> Result<Vec<PendingReceipt>, SubmitError> {
    let mut wanted = vec![(0, 0); submit_queues.len()];
    for (index, event) in &events {
        let (places, bytes) = wanted.get_mut(*index).ok_or(SubmitError::Starting)?;
        *places += 1;
        *bytes += event.bytes;
    }
    // Reserves everything before sending: what was sent cannot be taken back.
    let mut reserved = Vec::with_capacity(submit_queues.len());
    for (submit_queue, (places, bytes)) in submit_queues.iter().zip(wanted) {
        reserved.push((submit_queue.reserve(places)?, submit_queue.room(bytes)?, Chain::new(Reuse::LeftOut)));
    }
    let take = |(index, mut event): (usize, Encoded)| {
        let trace = event.trace.take();
        let (places, room, chain) = reserved.get_mut(index).ok_or(SubmitError::Starting)?;
        let room = room.split(event.bytes).ok_or(SubmitError::Overloaded)?;
        let (submission, answer) = event.submission(deadline, room, Some(chain.link()));
        places.fill(submission)?;
        Ok(PendingReceipt { answer, deadline, trace })
    };
    let pending = events.into_iter().map(take).collect();
    reserved.into_iter().for_each(|(places, ..)| places.finish());
    pending
}

fn refused<T>(error: &mpsc::error::TrySendError<T>) -> SubmitError {
    match error {
        mpsc::error::TrySendError::Full(_) => SubmitError::Overloaded,
        mpsc::error::TrySendError::Closed(_) => SubmitError::Draining,
    }
}

impl PendingReceipt {
    /// The receipt, by the deadline.
    ///
    /// # Errors
    ///
    /// [`SubmitError`].
    pub async fn receipt(self) -> Result<Receipt, SubmitError> {
        let answer = match timeout_at(self.deadline, self.answer).await {
            Ok(Ok(answer)) => answer,
            // Deadline passed, or the shard restarts.
            Ok(Err(_)) | Err(_) => Err(SubmitError::Unavailable),
        };
        if let Some(trace) = self.trace {
            trace.end(&answer);
        }
        answer
    }
}

impl Sequencer {
    /// Submits many events of one sender: takes in all of them or none, and keeps their order in each workflow. The
    /// answers come in the order of the events. One whose id was used before with another body is left out
    /// ([`SubmitError::IdReused`]). With any other error, later events of its shard are not accepted either.
    ///
    /// # Errors
    ///
    /// [`NotTaken`]: none of them is accepted.
    pub async fn submit_all(&self, events: Vec<NewEvent>) -> Result<Vec<Result<Receipt, SubmitError>>, NotTaken> {
        let none = |error| NotTaken { at: None, error };
        let inner = &*self.inner;
        inner.accepts().map_err(none)?;
        let mut encoded = Vec::with_capacity(events.len());
        for (at, event) in events.into_iter().enumerate() {
            let shard = inner.layout.shard_of(&event.workflow);
            inner.submit_queue(shard).map_err(none)?;
            let event = inner.encode(event).map_err(|error| NotTaken { at: Some(at), error })?;
            encoded.push((shard.0 as usize, event));
        }
        let pending = take_all(&inner.submit_queues, encoded, inner.deadline()).map_err(none)?;
        let mut answers = Vec::with_capacity(pending.len());
        for pending in pending {
            answers.push(pending.receipt().await);
        }
        Ok(answers)
    }

    /// A new stream.
    pub fn publish_stream(&self) -> PublishStream {
        PublishStream { sequencer: self.clone(), chain: Chain::new(Reuse::Breaks), shard: None }
    }

    pub(super) fn enqueue(
        &self,
        event: NewEvent,
        deadline: Instant,
        link: Option<ChainPosition>,
    ) -> Result<PendingReceipt, SubmitError> {
        let inner = &*self.inner;
        inner.accepts()?;
        let submit_queue = inner.submit_queue(inner.layout.shard_of(&event.workflow))?;
        submit_queue.take(inner.encode(event)?, deadline, link)
    }
}

impl PublishStream {
    /// True if an event of this workflow may be submitted while earlier ones are pending. Events of another shard may
    /// not: shards do not know which events of each other were accepted.
    pub fn joins(&self, workflow: &WorkflowId) -> bool {
        self.shard.is_none_or(|shard| shard == self.sequencer.inner.layout.shard_of(workflow))
    }

    /// Deadline of an event that arrives now.
    pub fn deadline(&self) -> Instant {
        self.sequencer.inner.deadline()
    }

    /// Submits the next event. If it does not [join](Self::joins), all earlier ones must have been accepted.
    ///
    /// # Errors
    ///
    /// [`SubmitError`]: it is not queued, and nothing may be submitted after it.
    pub fn submit(&mut self, event: NewEvent, deadline: Instant) -> Result<PendingReceipt, SubmitError> {
        self.shard = Some(self.sequencer.inner.layout.shard_of(&event.workflow));
        self.sequencer.enqueue(event, deadline, Some(self.chain.link()))
    }

    /// Refuses what is not being appended yet.
    pub fn cut(&self) {
        self.chain.cut();
    }
}
