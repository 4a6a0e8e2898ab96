//! The server side: queues the events of other gateways and replies with their outcomes.

use std::{sync::Arc, time::Duration};

use futures_util::{StreamExt as _, future::join_all};
use tokio::{
    sync::{Semaphore, mpsc, oneshot, watch},
    time::{Instant, timeout},
};
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use weft_index::receipts::Receipts;
use weft_nats::async_nats::{Message, Subject, Subscriber};

use super::{
    Appender, ForwardingState,
    notify::Subscribers,
    wire::{self, Arrived, ForwardReply, Reply},
};
use crate::sequencer::{
    SubmitError,
    submission::{Answer, Submission},
};

/// Interval of the "working" replies: several within the time after which an appender counts as silent.
const WORKING: Duration = Duration::from_millis(15);

/// The outcome of an event, or its source.
enum Taken {
    Decided(ForwardReply),
    Waits(oneshot::Receiver<Answer>),
}

impl Taken {
    async fn verdict(self) -> ForwardReply {
        match self {
            Self::Decided(verdict) => verdict,
            // Without an answer the session restarts.
            Self::Waits(answer) => ForwardReply::Decided(answer.await.unwrap_or(Err(SubmitError::Unavailable))),
        }
    }
}

/// Serves requests for one shard.
#[derive(Debug)]
pub(super) struct ForwardServer {
    pub shared: ForwardingState,
    pub queue: mpsc::Sender<Submission>,
    pub room: Arc<Semaphore>,
    /// The receipts, while they have caught up with the log.
    pub current: watch::Receiver<Option<Receipts>>,
    pub submit_timeout: Duration,
    /// Maximum age of a request.
    pub age_max: Duration,
    /// Receivers of append notices.
    pub subscribers: Subscribers,
}

impl ForwardServer {
    /// Runs until `drain`, then refuses the remaining requests.
    pub async fn run(self, mut requests: Subscriber, drain: CancellationToken) {
        let pending = TaskTracker::new();
        loop {
            tokio::select! {
                () = drain.cancelled() => break,
                request = requests.next() => match request {
                    Some(request) => self.take(request, &pending).await,
                    None => break,
                },
            }
        }
        // Later requests get "no responders" at once.
        if requests.drain().await.is_ok() {
            while let Some(request) = requests.next().await {
                self.refuse(request).await;
            }
        }
        pending.close();
        pending.wait().await;
        // Replies must leave before the process ends. An error means that the connection is closed for good.
        let _ = timeout(self.submit_timeout, self.shared.connection.client().flush()).await;
    }

    /// Queues the events of a request in order, before the next request; a separate task replies. Other gateways limit
    /// their requests under way.
    async fn take(&self, request: Message, pending: &TaskTracker) {
        if !self.shared.is_tagged(&request) {
            return self.ignore(&request);
        }
        let serves = self.current.borrow().is_some() && !matches!(self.shared.appender(), Appender::Remote(_));
        let events = serves.then(|| {
            wire::events(request.payload.clone(), self.shared.layout, self.shared.server_time(), self.age_max)
        });
        let (Some(Some(events)), Some(reply)) = (events, request.reply.clone()) else {
            return self.refuse(request).await;
        };
        self.shared.work.note();
        if let Some(name) = self.shared.layout.forward_answer_gateway(&reply).filter(|name| super::is_name(name)) {
            self.subscribers.heard(name, Instant::now());
        }
        let deadline = Instant::now() + self.submit_timeout;
        let taken: Vec<Taken> = events.into_iter().map(|arrived| self.queue(arrived, deadline)).collect();
        let shared = self.shared.clone();
        pending.spawn(async move { answer(&shared, reply, taken).await });
    }

    /// An event that is not queued breaks its chain, since its position is dropped.
    fn queue(&self, Arrived { event, link }: Arrived, deadline: Instant) -> Taken {
        let overloaded = Taken::Decided(ForwardReply::Decided(Err(SubmitError::Overloaded)));
        let Some(event) = event.filter(|event| self.shared.layout.shard_of(&event.workflow) == self.shared.shard)
        else {
            return Taken::Decided(ForwardReply::NotTaken);
        };
        let bytes = u32::try_from(event.bytes).unwrap_or(u32::MAX);
        let Ok(room) = self.room.clone().try_acquire_many_owned(bytes) else { return overloaded };
        let (submission, answer) = event.submission(deadline, room, link);
        match self.queue.try_send(submission) {
            Ok(()) => Taken::Waits(answer),
            Err(mpsc::error::TrySendError::Full(_)) => overloaded,
            Err(mpsc::error::TrySendError::Closed(_)) => Taken::Decided(ForwardReply::NotTaken),
        }
    }

    /// The sender is not a gateway of this mesh, or runs a version without MACs and then appends its events alone.
    fn ignore(&self, request: &Message) {
        tracing::warn!(subject = %request.subject, "ignored a request with an invalid MAC");
    }

    async fn refuse(&self, request: Message) {
        if !self.shared.is_tagged(&request) {
            return self.ignore(&request);
        }
        if let Some(reply) = request.reply {
            self.shared.say(reply, wire::encode_reply(Reply::Refused)).await;
        }
    }
}

/// Replies once all events of a request are decided, and meanwhile that they are being processed.
async fn answer(shared: &ForwardingState, reply: Subject, taken: Vec<Taken>) {
    let mut verdicts = std::pin::pin!(join_all(taken.into_iter().map(Taken::verdict)));
    let verdicts = loop {
        match timeout(WORKING, &mut verdicts).await {
            Ok(verdicts) => break verdicts,
            Err(_) => shared.say(reply.clone(), wire::encode_reply(Reply::Working)).await,
        }
    };
    let verdicts = verdicts.into_iter().map(wire::encode_verdict).collect();
    shared.say(reply, wire::encode_reply(Reply::Verdicts(verdicts))).await;
}
