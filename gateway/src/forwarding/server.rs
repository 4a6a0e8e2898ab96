//! The forwarding appender's side: takes other gateways' events into the own queue, and tells them what became of each.

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
    ForwardingState, Leader,
    notify::Subscribers,
    wire::{self, Arrived, ForwardReply, Reply},
};
use crate::sequencer::{
    SubmitError,
    submission::{Answer, Submission},
};

/// How often a gateway that waits is told that its request is worked at: several times in the silence after which it would
/// wait no more.
const WORKING: Duration = Duration::from_millis(15);

/// An event of a request: its verdict, or where that will come from.
enum Taken {
    Decided(ForwardReply),
    Waits(oneshot::Receiver<Answer>),
}

impl Taken {
    async fn verdict(self) -> ForwardReply {
        match self {
            Self::Decided(verdict) => verdict,
            // Where nobody answers, the session starts over.
            Self::Waits(answer) => ForwardReply::Decided(answer.await.unwrap_or(Err(SubmitError::Unavailable))),
        }
    }
}

/// Takes events for one shard.
#[derive(Debug)]
pub(super) struct ForwardServer {
    pub shared: ForwardingState,
    pub queue: mpsc::Sender<Submission>,
    pub room: Arc<Semaphore>,
    /// The receipts, while they have caught up with the log.
    pub current: watch::Receiver<Option<Receipts>>,
    pub submit_timeout: Duration,
    /// How old a request may be.
    pub age_max: Duration,
    /// Who is told what is appended.
    pub subscribers: Subscribers,
}

impl ForwardServer {
    /// Works until `drain`, then tells whoever still asks that it is leaving.
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
        // Who comes from now on finds nobody here, at once.
        if requests.drain().await.is_ok() {
            while let Some(request) = requests.next().await {
                self.refuse(request).await;
            }
        }
        pending.close();
        pending.wait().await;
        // The answers are not to die with us. An error means that nobody could hear them anyway.
        let _ = timeout(self.submit_timeout, self.shared.connection.client().flush()).await;
    }

    /// Queues the events of a request in order, before the next request is looked at; who waits for them is told by a
    /// task of its own, of which there are no more than others may have under way.
    async fn take(&self, request: Message, pending: &TaskTracker) {
        if !self.shared.is_tagged(&request) {
            return self.ignore(&request);
        }
        let serves = self.current.borrow().is_some() && !matches!(self.shared.leader(), Leader::Remote(_));
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

    /// An event that is not queued breaks its chain: its link ends here.
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

    /// It is not from a gateway of this mesh, or from one of a version that did not tag yet and goes on by itself.
    fn ignore(&self, request: &Message) {
        tracing::warn!(subject = %request.subject, "events that no gateway of this mesh has sent are ignored");
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

/// Answers a request once all of its events have been decided, and says meanwhile that it is worked at.
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
