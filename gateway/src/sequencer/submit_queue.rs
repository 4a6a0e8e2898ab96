//! Where events come in: one alone, many of which all or none are taken in, or a line of them.

use std::{sync::Arc, time::Duration};

use tokio::{
    sync::{OwnedSemaphorePermit, Semaphore, mpsc, oneshot, watch},
    time::{Instant, timeout_at},
};
use weft_index::receipts::Receipts;
use weft_nats::catalog::MasterKey;
use weft_proto::ids::{ShardId, WorkflowId};

use super::{
    NewEvent, Receipt, Sequencer, SequencerOptions, SubmitError,
    append_notice::AppendNotice,
    chain::{Chain, ChainPosition, Reuse},
    remote::{EventBatch, RemoteQueue},
    shard::Ask,
    submission::{Answer, Encoded, Submission},
};

#[cfg(test)]
mod tests;

/// Bytes of the messages that may wait in one shard or be under way.
const QUEUE_BYTES_MAX: usize = 64 * 1024 * 1024;

/// Where one shard takes events and questions.
#[derive(Debug)]
pub(super) struct SubmitQueue {
    queue: mpsc::Sender<Submission>,
    /// Where events go instead while another gateway appends.
    pub remote: Option<Box<dyn RemoteQueue>>,
    asks: mpsc::Sender<Ask>,
    /// A permit for each byte that may wait.
    room: Arc<Semaphore>,
    /// The receipts, while they have caught up with the log.
    pub current: watch::Receiver<Option<Receipts>>,
}

/// The queue of the session that appends for this gateway, as whoever forwards needs it.
#[derive(Debug, Clone)]
pub(crate) struct LocalQueue {
    pub queue: mpsc::Sender<Submission>,
    pub room: Arc<Semaphore>,
    /// The receipts, while they have caught up with the log.
    pub current: watch::Receiver<Option<Receipts>>,
    pub submit_timeout: Duration,
    /// The mesh's key, by which its gateways know each other.
    pub master_key: MasterKey,
    /// For how long ids are known.
    pub dedup_horizon: Duration,
    /// Events that may wait in the queue.
    pub events_max: usize,
    /// Where the session hears what others have appended.
    pub notices: mpsc::Sender<AppendNotice>,
}

/// An event that waits for its receipt. Dropping this does not cancel its append.
#[derive(Debug)]
pub struct PendingReceipt {
    answer: oneshot::Receiver<Answer>,
    deadline: Instant,
}

/// Reservation for events of one submit_queue that stay together.
enum Reservation<'a> {
    Local(mpsc::PermitIterator<'a, Submission>),
    /// They leave as one.
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

    /// All of them have been filled.
    fn finish(self) {
        if let Self::Remote(place, batch) = self {
            place.send(batch);
        }
    }
}

/// Why none of many events was taken in.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NotTaken {
    /// The place among them of the one that is the reason, if it is one of them.
    pub at: Option<usize>,
    /// The reason.
    pub error: SubmitError,
}

/// Events of one sender, each submitted before the last is answered and nevertheless never accepted without those before
/// it: whatever of a line is accepted is a beginning of it.
#[derive(Debug)]
pub struct PublishStream {
    sequencer: Sequencer,
    chain: Chain,
    shard: Option<ShardId>,
}

impl SubmitQueue {
    /// With the other end of its queue.
    pub fn new(
        queue_events_max: usize,
        asks: mpsc::Sender<Ask>,
        current: watch::Receiver<Option<Receipts>>,
    ) -> (Self, mpsc::Receiver<Submission>) {
        let (queue, queued) = mpsc::channel(queue_events_max);
        let room = Arc::new(Semaphore::new(QUEUE_BYTES_MAX));
        (Self { queue, remote: None, asks, room, current }, queued)
    }

    /// The queue behind it, for events that other gateways hand on and those that come back from them; and where what they
    /// append is told.
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

    /// Takes in one event.
    fn take(
        &self,
        event: Encoded,
        deadline: Instant,
        link: Option<ChainPosition>,
    ) -> Result<PendingReceipt, SubmitError> {
        let room = self.room(event.bytes)?;
        // Whoever stands in a line stays with those before it.
        let stays = link.is_some();
        let (submission, answer) = event.submission(deadline, room, link);
        match self.route() {
            Some(elsewhere) if !stays => elsewhere.try_send(vec![submission]).map_err(|error| refused(&error))?,
            _ => self.queue.try_send(submission).map_err(|error| refused(&error))?,
        }
        Ok(PendingReceipt { answer, deadline })
    }

    /// Where events go that have just come, unless into the queue.
    fn route(&self) -> Option<&mpsc::Sender<EventBatch>> {
        self.remote.as_ref().and_then(|remote| remote.route())
    }

    /// Reservation for so many events that stay together.
    fn reserve(&self, places: usize) -> Result<Reservation<'_>, SubmitError> {
        match self.route() {
            Some(elsewhere) if places > 0 => {
                let place = elsewhere.try_reserve().map_err(|error| refused(&error))?;
                Ok(Reservation::Remote(place, Vec::with_capacity(places)))
            }
            _ => self.queue.try_reserve_many(places).map(Reservation::Local).map_err(|error| refused(&error)),
        }
    }

    /// Room for so many bytes, at once or not at all.
    fn room(&self, bytes: usize) -> Result<OwnedSemaphorePermit, SubmitError> {
        let permits = u32::try_from(bytes).map_err(|_| SubmitError::Overloaded)?;
        self.room.clone().try_acquire_many_owned(permits).map_err(|_| SubmitError::Overloaded)
    }
}

/// Takes in all of the events, in their order at each submit_queue, or none. Each goes to the submit_queue at the index beside it; those
/// at one submit_queue are a chain of which reused ids are left out.
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
    // All that is needed before anything is sent: what is sent cannot be taken back.
    let mut reserved = Vec::with_capacity(submit_queues.len());
    for (submit_queue, (places, bytes)) in submit_queues.iter().zip(wanted) {
        reserved.push((submit_queue.reserve(places)?, submit_queue.room(bytes)?, Chain::new(Reuse::LeftOut)));
    }
    let take = |(index, event): (usize, Encoded)| {
        let (places, room, chain) = reserved.get_mut(index).ok_or(SubmitError::Starting)?;
        let room = room.split(event.bytes).ok_or(SubmitError::Overloaded)?;
        let (submission, answer) = event.submission(deadline, room, Some(chain.link()));
        places.fill(submission)?;
        Ok(PendingReceipt { answer, deadline })
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
        match timeout_at(self.deadline, self.answer).await {
            Ok(Ok(answer)) => answer,
            // Too late, or the shard starts over.
            Ok(Err(_)) | Err(_) => Err(SubmitError::Unavailable),
        }
    }
}

impl Sequencer {
    /// Submits many events of one sender: takes in all of them or none, and keeps their order in each workflow. The
    /// answers come in the order of the events. One whose id was used before with another body is left out
    /// ([`SubmitError::IdReused`]). With any other error, events of its shard behind it are not accepted either.
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

    /// A line that nobody stands in yet.
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
    /// Whether an event of this workflow may be submitted while others wait. It may not behind events of another shard:
    /// two shards do not know of each other which of their events were accepted.
    pub fn joins(&self, workflow: &WorkflowId) -> bool {
        self.shard.is_none_or(|shard| shard == self.sequencer.inner.layout.shard_of(workflow))
    }

    /// The deadline of an event that has just come.
    pub fn deadline(&self) -> Instant {
        self.sequencer.inner.deadline()
    }

    /// Submits the next event. Where it does not [join](Self::joins), everything before it must have been accepted.
    /// `deadline`: by when its sender has an answer, whether it had to wait before or not.
    ///
    /// # Errors
    ///
    /// [`SubmitError`]: it is not taken in, and nothing may be submitted behind it.
    pub fn submit(&mut self, event: NewEvent, deadline: Instant) -> Result<PendingReceipt, SubmitError> {
        self.shard = Some(self.sequencer.inner.layout.shard_of(&event.workflow));
        self.sequencer.enqueue(event, deadline, Some(self.chain.link()))
    }

    /// What of it is not on its way into the log is not accepted any more.
    pub fn cut(&self) {
        self.chain.cut();
    }
}
