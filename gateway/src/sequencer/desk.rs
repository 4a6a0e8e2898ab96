//! Where events come in: one alone, many of which all or none are taken in, or a line of them.

use std::sync::Arc;

use tokio::{
    sync::{OwnedSemaphorePermit, Semaphore, mpsc, oneshot, watch},
    time::{Instant, timeout_at},
};
use weft_index::receipts::Receipts;
use weft_proto::ids::{ShardId, WorkflowId};

use super::{
    NewEvent, Receipt, Sequencer, SequencerOptions, SubmitError,
    chain::{Chain, Link, Reuse},
    preferred::{Appended, Own, Parcel, Preferred},
    shard::Ask,
    submission::{Answer, Encoded, Submission},
};

#[cfg(test)]
mod tests;

/// Bytes of the messages that may wait in one shard or be under way.
const QUEUE_BYTES_MAX: usize = 64 * 1024 * 1024;

/// Where one shard takes events and questions.
#[derive(Debug)]
pub(super) struct Desk {
    queue: mpsc::Sender<Submission>,
    /// Where events go instead while another gateway appends.
    pub preferred: Option<Preferred>,
    asks: mpsc::Sender<Ask>,
    /// A permit for each byte that may wait.
    room: Arc<Semaphore>,
    /// The receipts, while they have caught up with the log.
    pub current: watch::Receiver<Option<Receipts>>,
}

/// An event that waits for its receipt. Dropping this does not cancel its append.
#[derive(Debug)]
pub struct Pending {
    answer: oneshot::Receiver<Answer>,
    deadline: Instant,
}

/// Places for events of one desk that stay together.
enum Places<'a> {
    Here(mpsc::PermitIterator<'a, Submission>),
    /// They leave as one.
    Elsewhere(mpsc::Permit<'a, Parcel>, Parcel),
}

impl Places<'_> {
    fn fill(&mut self, submission: Submission) -> Result<(), SubmitError> {
        match self {
            Self::Here(places) => places.next().ok_or(SubmitError::Overloaded)?.send(submission),
            Self::Elsewhere(_, parcel) => parcel.push(submission),
        }
        Ok(())
    }

    /// All of them have been filled.
    fn finish(self) {
        if let Self::Elsewhere(place, parcel) = self {
            place.send(parcel);
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
pub struct Line {
    sequencer: Sequencer,
    chain: Chain,
    shard: Option<ShardId>,
}

impl Desk {
    /// With the other end of its queue.
    pub fn new(
        queue_events_max: usize,
        asks: mpsc::Sender<Ask>,
        current: watch::Receiver<Option<Receipts>>,
    ) -> (Self, mpsc::Receiver<Submission>) {
        let (queue, queued) = mpsc::channel(queue_events_max);
        let room = Arc::new(Semaphore::new(QUEUE_BYTES_MAX));
        (Self { queue, preferred: None, asks, room, current }, queued)
    }

    /// The queue behind it, for events that other gateways hand on and those that come back from them; and where what they
    /// append is told.
    pub fn own(&self, options: &SequencerOptions, appended: mpsc::Sender<Appended>) -> Own {
        Own {
            queue: self.queue.clone(),
            room: self.room.clone(),
            current: self.current.clone(),
            submit_timeout: options.submit_timeout,
            master_key: options.master_key.clone(),
            dedup_horizon: options.dedup_horizon,
            events_max: self.queue.max_capacity(),
            appended,
        }
    }

    pub async fn ask(&self, ask: Ask) -> Result<(), SubmitError> {
        self.asks.send(ask).await.map_err(|_| SubmitError::Draining)
    }

    /// Takes in one event.
    fn take(&self, event: Encoded, deadline: Instant, link: Option<Link>) -> Result<Pending, SubmitError> {
        let room = self.room(event.bytes)?;
        // Whoever stands in a line stays with those before it.
        let stays = link.is_some();
        let (submission, answer) = event.submission(deadline, room, link);
        match self.route() {
            Some(elsewhere) if !stays => elsewhere.try_send(vec![submission]).map_err(|error| refused(&error))?,
            _ => self.queue.try_send(submission).map_err(|error| refused(&error))?,
        }
        Ok(Pending { answer, deadline })
    }

    /// Where events go that have just come, unless into the queue.
    fn route(&self) -> Option<&mpsc::Sender<Parcel>> {
        self.preferred.as_ref().and_then(Preferred::route)
    }

    /// Places for so many events that stay together.
    fn reserve(&self, places: usize) -> Result<Places<'_>, SubmitError> {
        match self.route() {
            Some(elsewhere) if places > 0 => {
                let place = elsewhere.try_reserve().map_err(|error| refused(&error))?;
                Ok(Places::Elsewhere(place, Vec::with_capacity(places)))
            }
            _ => self.queue.try_reserve_many(places).map(Places::Here).map_err(|error| refused(&error)),
        }
    }

    /// Room for so many bytes, at once or not at all.
    fn room(&self, bytes: usize) -> Result<OwnedSemaphorePermit, SubmitError> {
        let permits = u32::try_from(bytes).map_err(|_| SubmitError::Overloaded)?;
        self.room.clone().try_acquire_many_owned(permits).map_err(|_| SubmitError::Overloaded)
    }
}

/// Takes in all of the events, in their order at each desk, or none. Each goes to the desk at the index beside it; those
/// at one desk are a chain of which reused ids are left out.
fn take_all(desks: &[Desk], events: Vec<(usize, Encoded)>, deadline: Instant) -> Result<Vec<Pending>, SubmitError> {
    let mut wanted = vec![(0, 0); desks.len()];
    for (index, event) in &events {
        let (places, bytes) = wanted.get_mut(*index).ok_or(SubmitError::Starting)?;
        *places += 1;
        *bytes += event.bytes;
    }
    // All that is needed before anything is sent: what is sent cannot be taken back.
    let mut reserved = Vec::with_capacity(desks.len());
    for (desk, (places, bytes)) in desks.iter().zip(wanted) {
        reserved.push((desk.reserve(places)?, desk.room(bytes)?, Chain::new(Reuse::LeftOut)));
    }
    let take = |(index, event): (usize, Encoded)| {
        let (places, room, chain) = reserved.get_mut(index).ok_or(SubmitError::Starting)?;
        let room = room.split(event.bytes).ok_or(SubmitError::Overloaded)?;
        let (submission, answer) = event.submission(deadline, room, Some(chain.link()));
        places.fill(submission)?;
        Ok(Pending { answer, deadline })
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

impl Pending {
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
            inner.desk(shard).map_err(none)?;
            let event = inner.encode(event).map_err(|error| NotTaken { at: Some(at), error })?;
            encoded.push((shard.0 as usize, event));
        }
        let pending = take_all(&inner.desks, encoded, inner.deadline()).map_err(none)?;
        let mut answers = Vec::with_capacity(pending.len());
        for pending in pending {
            answers.push(pending.receipt().await);
        }
        Ok(answers)
    }

    /// A line that nobody stands in yet.
    pub fn line(&self) -> Line {
        Line { sequencer: self.clone(), chain: Chain::new(Reuse::Breaks), shard: None }
    }

    pub(super) fn enqueue(
        &self,
        event: NewEvent,
        deadline: Instant,
        link: Option<Link>,
    ) -> Result<Pending, SubmitError> {
        let inner = &*self.inner;
        inner.accepts()?;
        let desk = inner.desk(inner.layout.shard_of(&event.workflow))?;
        desk.take(inner.encode(event)?, deadline, link)
    }
}

impl Line {
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
    pub fn submit(&mut self, event: NewEvent, deadline: Instant) -> Result<Pending, SubmitError> {
        self.shard = Some(self.sequencer.inner.layout.shard_of(&event.workflow));
        self.sequencer.enqueue(event, deadline, Some(self.chain.link()))
    }

    /// What of it is not on its way into the log is not accepted any more.
    pub fn cut(&self) {
        self.chain.cut();
    }
}
