//! The client side: forwards events to the appender, passes its replies to the senders, and queues events locally if it
//! does not answer.

use std::collections::{HashMap, VecDeque};

use futures_util::StreamExt as _;
use tokio::{
    sync::{mpsc, oneshot},
    time::{Instant, timeout},
};
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use weft_nats::async_nats::{Message, StatusCode, Subscriber};
use weft_proto::internal;
use weft_role::sleep_until;

use super::{
    AppendNotice, Appender, EventBatch, ForwardingState, Name,
    election::{Suspicion, SuspicionReason},
    in_flight::{InFlightRequests, SILENCE_MAX},
    notify,
    reconcile::{LATE_MAX, reconcile},
    wire::{self, ForwardReply, Reply},
};
use crate::{
    metrics,
    sequencer::{
        SubmitError,
        group_commit::GroupCommit,
        submission::{Answer, Submission},
    },
};

/// Events of one request, unless one batch is larger: a quarter of a group commit, so that several requests fill one.
const REQUEST_EVENTS_MAX: usize = 250;
/// Bytes of the messages of one request, unless one event or batch alone is larger.
const REQUEST_BYTES_MAX: usize = 256 * 1024;
/// Bytes that a request adds to the messages in it, for each: field tags and lengths, the id and the digest.
const EVENT_OVERHEAD_BYTES: usize = 512;

/// Forwards the events of one shard.
#[derive(Debug)]
pub(super) struct ForwardClient {
    shared: ForwardingState,
    /// Events to forward.
    queue: mpsc::Receiver<EventBatch>,
    /// The local session's queue.
    own: mpsc::Sender<Submission>,
    /// Append notices to the local session.
    appended: mpsc::Sender<AppendNotice>,
    suspicions: mpsc::Sender<Suspicion>,
    tasks: TaskTracker,
    waiting: VecDeque<EventBatch>,
    in_flight: InFlightRequests,
    group_commit: GroupCommit,
    /// Abandoned requests that may still be answered.
    late: HashMap<u64, LateReply>,
}

#[derive(Debug)]
struct LateReply {
    since: Instant,
    events: Vec<(ReceiptParts, oneshot::Sender<Answer>)>,
}

/// Input of a receipt besides the reply.
type ReceiptParts = (weft_proto::ids::EventId, weft_proto::ids::WorkflowId);

impl ForwardClient {
    pub fn new(
        shared: ForwardingState,
        queue: mpsc::Receiver<EventBatch>,
        own: mpsc::Sender<Submission>,
        appended: mpsc::Sender<AppendNotice>,
        suspicions: mpsc::Sender<Suspicion>,
        tasks: TaskTracker,
    ) -> Self {
        let (waiting, in_flight, late) = (VecDeque::new(), InFlightRequests::default(), HashMap::new());
        let group_commit = GroupCommit::new(REQUEST_EVENTS_MAX);
        Self { shared, queue, own, appended, suspicions, tasks, waiting, in_flight, group_commit, late }
    }

    /// Runs until `drain`, and until all events have been answered or queued locally.
    pub async fn run(mut self, mut answers: Subscriber, drain: CancellationToken) {
        let mut arrived = Vec::new();
        let (mut closed, mut draining) = (false, false);
        while !(closed && self.waiting.is_empty() && self.in_flight.is_empty()) {
            let takes_in = !closed && self.waiting.len() < REQUEST_EVENTS_MAX;
            let group_complete_at = self.group_waits_until();
            tokio::select! {
                // Received answers count before a timeout: this process may have been suspended.
                biased;
                answer = answers.next() => match answer {
                    Some(answer) => self.answered(&answer),
                    // The client has ended.
                    None => break,
                },
                () = drain.cancelled(), if !draining => {
                    draining = true;
                    self.queue.close();
                }
                () = sleep_until(self.in_flight.silent_at()) => {
                    self.suspect(SuspicionReason::Silent);
                    self.give_up(SuspicionReason::Silent);
                }
                count = self.queue.recv_many(&mut arrived, REQUEST_EVENTS_MAX), if takes_in => {
                    closed = count == 0;
                    self.waiting.extend(arrived.drain(..));
                }
                () = sleep_until(group_complete_at) => {}
            }
            self.send().await;
        }
        self.give_up(SuspicionReason::Silent);
    }

    /// Sends waiting events, as far as requests are available.
    async fn send(&mut self) {
        while !self.waiting.is_empty() && self.in_flight.has_room() && self.group_waits_until().is_none() {
            let to = match self.shared.appender() {
                Appender::Remote(holder) if self.in_flight.to().is_none_or(|to| *to == holder) => holder,
                // No appender, or the previous one has not answered yet.
                _ => return self.take_back_waiting(),
            };
            self.group_commit.started(self.waiting_events(), Instant::now());
            let submissions = self.next_request();
            let request = wire::request(self.shared.server_time(), &submissions);
            if !self.shared.fits(&request) {
                submissions.into_iter().for_each(|submission| self.take_back(submission));
                continue;
            }
            let number = self.in_flight.send(&to, Instant::now(), submissions);
            if !self.publish(&to, number, request).await {
                self.suspect(SuspicionReason::Silent);
                self.give_up(SuspicionReason::Silent);
            }
        }
    }

    fn waiting_events(&self) -> usize {
        self.waiting.iter().map(Vec::len).sum()
    }

    /// Time until which waiting events wait for more, of senders that were just answered; `None`: they do not wait.
    fn group_waits_until(&self) -> Option<Instant> {
        let idle = !self.waiting.is_empty() && !self.queue.is_closed();
        if idle { self.group_commit.waits(self.waiting_events(), Instant::now()) } else { None }
    }

    /// As many batches as fit, at least one.
    fn next_request(&mut self) -> Vec<Submission> {
        let (mut events, mut bytes) = (0usize, 0usize);
        let fitting = self.waiting.iter().take_while(|batch| {
            events = events.saturating_add(batch.len());
            for submission in *batch {
                bytes = bytes.saturating_add(submission.bytes + EVENT_OVERHEAD_BYTES);
            }
            events <= REQUEST_EVENTS_MAX && bytes <= REQUEST_BYTES_MAX
        });
        let count = fitting.count().max(1);
        self.waiting.drain(..count.min(self.waiting.len())).flatten().collect()
    }

    /// True if the request was sent, as far as is known.
    async fn publish(&self, to: &Name, number: u64, request: bytes::Bytes) -> bool {
        let ForwardingState { connection, layout, shard, me, .. } = &self.shared;
        // The client queues while disconnected: the request would arrive when nothing waits for it.
        if !connection.is_connected() {
            return false;
        }
        let subject = layout.forward_subject(*shard, to);
        let reply = layout.forward_answer_subject(*shard, me, number);
        let headers = self.shared.tagged(&subject, &request);
        let published = connection.client().publish_with_reply_and_headers(subject, reply, headers, request);
        matches!(timeout(SILENCE_MAX, published).await, Ok(Ok(())))
    }

    fn answered(&mut self, message: &Message) {
        let last = message.subject.rsplit('.').next().unwrap_or_default();
        if last == notify::APPENDED {
            return self.told(message);
        }
        let Ok(number) = last.parse() else { return };
        // The server reports that there is no subscriber.
        let nobody = message.status == Some(StatusCode::NO_RESPONDERS);
        if !nobody && !self.shared.is_tagged(message) {
            tracing::warn!(subject = %message.subject, "ignored a reply with an invalid MAC");
            return;
        }
        let reply = if nobody { None } else { wire::decode_reply(message.payload.clone()) };
        let under_way = self.in_flight.heard(number, Instant::now());
        match reply {
            Some(Reply::Verdicts(verdicts)) if under_way => self.decided(number, verdicts),
            Some(Reply::Verdicts(verdicts)) => self.decided_late(number, verdicts),
            Some(Reply::Refused) if under_way => {
                self.suspect(SuspicionReason::Refused);
                self.take_back_request(number);
            }
            None if nobody && under_way => {
                self.suspect(SuspicionReason::Gone);
                // This request was not taken, and the others will not be answered.
                self.take_back_request(number);
                self.give_up(SuspicionReason::Gone);
            }
            Some(Reply::Working | Reply::Refused) | None => {}
        }
    }

    /// Handles an append notice. A session that is reading ignores it.
    fn told(&self, message: &Message) {
        if !self.shared.is_tagged(message) {
            tracing::warn!(subject = %message.subject, "ignored an append notice with an invalid MAC");
            return;
        }
        if let Some(appended) = notify::decode(message.payload.clone(), self.shared.server_time()) {
            let _ = self.appended.try_send(appended);
        }
    }

    fn decided(&mut self, number: u64, verdicts: Vec<internal::ForwardVerdict>) {
        let now = Instant::now();
        let Some((submissions, took)) = self.in_flight.answered(number, now) else { return };
        self.group_commit.completed(submissions.len(), self.waiting_events(), took, now);
        ::metrics::counter!(metrics::FORWARDED).increment(submissions.len() as u64);
        let mut verdicts = verdicts.into_iter();
        for submission in submissions {
            // A missing reply: the event may have been appended.
            let verdict = verdicts.next().unwrap_or_default();
            match wire::decode_verdict(verdict, submission.id, &submission.workflow) {
                ForwardReply::Decided(answer) => submission.answer(answer),
                ForwardReply::NotTaken => self.take_back(submission),
            }
        }
    }

    /// As [`decided`](Self::decided), for an abandoned request.
    fn decided_late(&mut self, number: u64, verdicts: Vec<internal::ForwardVerdict>) {
        let late = self.late.remove(&number).into_iter().flat_map(|late| late.events);
        for (((id, workflow), tell), verdict) in late.zip(verdicts) {
            if let ForwardReply::Decided(answer) = wire::decode_verdict(verdict, id, &workflow) {
                // The sender may have been answered already.
                let _ = tell.send(answer);
            }
        }
    }

    /// Abandons the requests under way and queues their events locally; event ids make one event of two copies.
    fn give_up(&mut self, reason: SuspicionReason) {
        self.group_commit.cancel();
        self.late.retain(|_, late| reason != SuspicionReason::Gone && late.since.elapsed() < LATE_MAX);
        for (number, submissions) in self.in_flight.give_up() {
            let mut events = Vec::with_capacity(submissions.len());
            for mut submission in submissions {
                let told = (submission.id, submission.workflow.clone());
                let (tell_here, here) = oneshot::channel();
                let (tell_there, there) = oneshot::channel();
                let sender = submission.redirect(tell_here);
                // Ends a second after the local answer at the latest.
                self.tasks.spawn(async move {
                    let _ = sender.send(reconcile(here, there).await);
                });
                events.push((told, tell_there));
                // The appender may have appended it.
                self.append_here(submission, SubmitError::Unavailable);
            }
            if reason != SuspicionReason::Gone {
                self.late.insert(number, LateReply { since: Instant::now(), events });
            }
        }
        self.take_back_waiting();
    }

    /// Reports a suspicion, and stops forwarding until the election decides.
    fn suspect(&self, reason: SuspicionReason) {
        let Some(holder) = self.in_flight.to().cloned() else { return };
        self.shared.suspect(&holder);
        // If the queue is full, an earlier suspicion has the same effect.
        let _ = self.suspicions.try_send(Suspicion { holder, reason });
    }

    fn take_back_request(&mut self, number: u64) {
        self.group_commit.cancel();
        let answered = self.in_flight.answered(number, Instant::now());
        answered.into_iter().flat_map(|(submissions, _)| submissions).for_each(|submission| self.take_back(submission));
    }

    fn take_back_waiting(&mut self) {
        while let Some(batch) = self.waiting.pop_front() {
            batch.into_iter().for_each(|submission| self.take_back(submission));
        }
    }

    /// Queues an event locally that no other gateway has appended.
    fn take_back(&self, submission: Submission) {
        self.append_here(submission, SubmitError::Overloaded);
    }

    /// Queues an event locally; without room the answer is `full`.
    fn append_here(&self, submission: Submission, full: SubmitError) {
        ::metrics::counter!(metrics::TAKEN_BACK).increment(1);
        match self.own.try_send(submission) {
            Ok(()) => {}
            Err(mpsc::error::TrySendError::Full(submission)) => submission.answer(Err(full)),
            // The session has ended before its time.
            Err(mpsc::error::TrySendError::Closed(submission)) => submission.answer(Err(SubmitError::Unavailable)),
        }
    }
}
