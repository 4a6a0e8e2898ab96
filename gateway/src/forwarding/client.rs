//! The other gateways' side: hands events to the forwarding appender and its verdicts to their senders, and takes events
//! back into the own queue when it does not answer.

use std::collections::{HashMap, VecDeque};

use futures_util::StreamExt as _;
use tokio::{
    sync::{mpsc, oneshot},
    time::{Instant, timeout},
};
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use weft_nats::async_nats::{Message, StatusCode, Subscriber};
use weft_proto::v1;

use super::{
    AppendNotice, EventBatch, ForwardingState, Leader, Name,
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

/// Forwards for one shard.
#[derive(Debug)]
pub(super) struct ForwardClient {
    shared: ForwardingState,
    /// What is to be forwarded.
    queue: mpsc::Receiver<EventBatch>,
    /// Where this gateway's own session takes events.
    own: mpsc::Sender<Submission>,
    /// Where it hears what others have appended.
    appended: mpsc::Sender<AppendNotice>,
    suspicions: mpsc::Sender<Suspicion>,
    tasks: TaskTracker,
    waiting: VecDeque<EventBatch>,
    in_flight: InFlightRequests,
    group_commit: GroupCommit,
    /// Requests that were given up, of which the forwarding appender may still say something.
    late: HashMap<u64, LateReply>,
}

#[derive(Debug)]
struct LateReply {
    since: Instant,
    events: Vec<(Told, oneshot::Sender<Answer>)>,
}

/// What makes a receipt of a verdict.
type Told = (weft_proto::ids::EventId, weft_proto::ids::WorkflowId);

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

    /// Works until `drain`, and until everything that was handed to it has been answered or taken back.
    pub async fn run(mut self, mut answers: Subscriber, drain: CancellationToken) {
        let mut arrived = Vec::new();
        let (mut closed, mut draining) = (false, false);
        while !(closed && self.waiting.is_empty() && self.in_flight.is_empty()) {
            let takes_in = !closed && self.waiting.len() < REQUEST_EVENTS_MAX;
            let group_complete_at = self.group_waits_until();
            tokio::select! {
                // What has been said counts before what has not: we may have been the ones who stood still.
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
                () = super::at(self.in_flight.silent_at()) => {
                    self.suspect(SuspicionReason::Silent);
                    self.give_up(SuspicionReason::Silent);
                }
                count = self.queue.recv_many(&mut arrived, REQUEST_EVENTS_MAX), if takes_in => {
                    closed = count == 0;
                    self.waiting.extend(arrived.drain(..));
                }
                () = super::at(group_complete_at) => {}
            }
            self.send().await;
        }
        self.give_up(SuspicionReason::Silent);
    }

    /// Sends off what waits, as far as it may be under way.
    async fn send(&mut self) {
        while !self.waiting.is_empty() && self.in_flight.has_room() && self.group_waits_until().is_none() {
            let to = match self.shared.leader() {
                Leader::Remote(holder) if self.in_flight.to().is_none_or(|to| *to == holder) => holder,
                // Nobody to send it to, or the last one still owes answers.
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

    /// Until when what waits waits for others, whose requests have just been answered; `None`: it does not.
    fn group_waits_until(&self) -> Option<Instant> {
        let idle = !self.waiting.is_empty() && !self.queue.is_closed();
        if idle { self.group_commit.waits(self.waiting_events(), Instant::now()) } else { None }
    }

    /// At least one batch, as many as fit.
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

    /// Whether it went out, as far as we know.
    async fn publish(&self, to: &Name, number: u64, request: bytes::Bytes) -> bool {
        let ForwardingState { connection, layout, shard, me, .. } = &self.shared;
        // While it is disconnected the client queues: the request would arrive when nobody waits for it any more.
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
        // The server says so to who asked only.
        let nobody = message.status == Some(StatusCode::NO_RESPONDERS);
        if !nobody && !self.shared.is_tagged(message) {
            tracing::warn!(subject = %message.subject, "an answer that no gateway of this mesh has given is ignored");
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
                // Of this one nothing was taken, of the others nothing more will be heard.
                self.take_back_request(number);
                self.give_up(SuspicionReason::Gone);
            }
            Some(Reply::Working | Reply::Refused) | None => {}
        }
    }

    /// What has been appended there. A session that does not follow reads it.
    fn told(&self, message: &Message) {
        if !self.shared.is_tagged(message) {
            tracing::warn!(subject = %message.subject, "what no gateway of this mesh has told is ignored");
            return;
        }
        if let Some(appended) = notify::decode(message.payload.clone(), self.shared.server_time()) {
            let _ = self.appended.try_send(appended);
        }
    }

    fn decided(&mut self, number: u64, verdicts: Vec<v1::ForwardVerdict>) {
        let now = Instant::now();
        let Some((submissions, took)) = self.in_flight.answered(number, now) else { return };
        self.group_commit.completed(submissions.len(), self.waiting_events(), took, now);
        ::metrics::counter!(metrics::FORWARDED).increment(submissions.len() as u64);
        let mut verdicts = verdicts.into_iter();
        for submission in submissions {
            // One that is missing may have been appended.
            let verdict = verdicts.next().unwrap_or_default();
            match wire::decode_verdict(verdict, submission.id, &submission.workflow) {
                ForwardReply::Decided(answer) => submission.answer(answer),
                ForwardReply::NotTaken => self.take_back(submission),
            }
        }
    }

    /// As [`decided`](Self::decided), of a request that was given up.
    fn decided_late(&mut self, number: u64, verdicts: Vec<v1::ForwardVerdict>) {
        let late = self.late.remove(&number).into_iter().flat_map(|late| late.events);
        for (((id, workflow), tell), verdict) in late.zip(verdicts) {
            if let ForwardReply::Decided(answer) = wire::decode_verdict(verdict, id, &workflow) {
                // Its sender may have its answer already.
                let _ = tell.send(answer);
            }
        }
    }

    /// Waits no more for what is under way: whoever appends it first makes it one event.
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
                // Ends with the submission's own answer, and a second.
                self.tasks.spawn(async move {
                    let _ = sender.send(reconcile(here, there).await);
                });
                events.push((told, tell_there));
                // It may have been appended elsewhere.
                self.append_here(submission, SubmitError::Unavailable);
            }
            if reason != SuspicionReason::Gone {
                self.late.insert(number, LateReply { since: Instant::now(), events });
            }
        }
        self.take_back_waiting();
    }

    /// Tells the election, and forwards nothing more until it knows better.
    fn suspect(&self, reason: SuspicionReason) {
        let Some(holder) = self.in_flight.to().cloned() else { return };
        self.shared.suspect(&holder);
        // Where suspicions queue up, the first says enough.
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

    /// This gateway appends it, and nobody else has.
    fn take_back(&self, submission: Submission) {
        self.append_here(submission, SubmitError::Overloaded);
    }

    /// This gateway appends it; where it has no room for it, the answer is `full`.
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
