//! Copies of dead letters on DLQ: the event as it was, and in headers why it died.
//!
//! A copy is made after the commit that says so, by a task that never gives up while the shard is owned, and exactly
//! once: its subject names subscription, workflow, event, sequence and run, and must be empty. How far copies are made stands in
//! the next commit; a take-over makes those behind it.

use std::{collections::HashMap, sync::Arc, time::Duration};

use tokio::sync::{mpsc, watch};
use tokio_util::task::AbortOnDropHandle;
use weft_nats::{
    append::publish_once,
    dead_letter::SEQUENCE_HEADER,
    event::{Event, StoredEvent},
    headers::MESSAGE_ID,
    message::Outgoing,
    subject::{Layout, dead_letter_subject},
};
use weft_proto::{
    ids::{EventId, Run, StreamSeq, SubscriptionUid, WorkflowId},
    v1::{self, outcome_record::Record},
};

use super::Context;
use crate::{
    ledger::recovery::decode,
    log::{Bounds, Log},
};

/// Commits whose dead letters wait to be copied. The driver waits above that: a commit is made in the same log, so where
/// copies cannot be made, commits cannot either.
const QUEUE_COMMITS: usize = 64;
/// The pauses between two tries of a copy.
const PAUSE: (Duration, Duration) = (Duration::from_millis(50), Duration::from_secs(2));
/// What a take-over reads at once.
const READ: Bounds = Bounds { messages: 200, bytes: 8 * 1024 * 1024 };

/// The dead letters of one commit.
#[derive(Debug)]
struct Job {
    position: u64,
    copies: Vec<Copy>,
}

/// One dead letter.
#[derive(Debug)]
struct Copy {
    outcome: v1::Outcome,
    /// `None`: it was in the log only.
    event: Option<Arc<StoredEvent>>,
}

#[derive(Debug)]
pub(super) struct Copies {
    jobs: mpsc::Sender<Job>,
    copied: watch::Receiver<u64>,
    /// The OUTCOMES sequence of the newest commit that was handed over.
    added: u64,
    _task: AbortOnDropHandle<()>,
}

/// Names of subscriptions by uid, as the catalog has them.
type Names = watch::Receiver<Arc<weft_nats::catalog::Snapshot>>;

impl Copies {
    pub fn start(context: &Context, log: Log, position: u64) -> Self {
        let (jobs, queue) = mpsc::channel(QUEUE_COMMITS);
        let (copied_sender, copied) = watch::channel(position);
        let task = work(log, context.catalog.clone(), queue, copied_sender);
        Self { jobs, copied, added: position, _task: AbortOnDropHandle::new(tokio::spawn(task)) }
    }

    /// As [`copied`](Self::copied), as it grows.
    pub fn watch_copied(&self) -> watch::Receiver<u64> {
        self.copied.clone()
    }

    /// OUTCOMES sequence up to which every dead letter has its copy.
    pub fn copied(&self) -> u64 {
        *self.copied.borrow()
    }

    /// A commit is stored: its dead letters are to be copied.
    pub async fn add(&mut self, position: u64, commit: &v1::Commit, dead: Vec<Arc<StoredEvent>>) {
        let events: HashMap<u64, Arc<StoredEvent>> = dead.into_iter().map(|event| (event.seq.0, event)).collect();
        let copies = commit
            .outcomes
            .iter()
            .filter(|outcome| outcome.kind() == v1::OutcomeKind::DeadLettered)
            .map(|outcome| Copy { outcome: outcome.clone(), event: events.get(&outcome.sequence).cloned() })
            .filter(|copy| copy.event.is_some() || is_in_log(&copy.outcome))
            .collect();
        self.push(Job { position, copies }).await;
    }

    /// Makes the copies of the owner before that may be missing: of every commit in `copied + 1..=through` of OUTCOMES.
    pub async fn repeat(&mut self, log: &Log, copied: u64, through: StreamSeq) {
        let stream = log.layout.outcomes_stream(log.shard);
        let mut known = StreamSeq(copied);
        while known < through {
            let read = log.range(&stream, ">", known.next(), through, READ).await;
            known = read.known;
            for message in &read.messages {
                let Some(Record::Commit(commit)) = decode(message) else { continue };
                let mut dead = Vec::new();
                for outcome in
                    commit.outcomes.iter().filter(|o| o.kind() == v1::OutcomeKind::DeadLettered && o.from == 0)
                {
                    dead.extend(find(log, outcome).await);
                }
                if !dead.is_empty() {
                    self.add(message.seq.0, &commit, dead).await;
                }
            }
            self.push(Job { position: known.0, copies: Vec::new() }).await;
        }
    }

    /// Waits until every dead letter has its copy. Safe to cancel.
    pub async fn done(&mut self) {
        let added = self.added;
        // An error means that the task is gone, which ends with the shard.
        let _ = self.copied.wait_for(|copied| *copied >= added).await;
    }

    async fn push(&mut self, job: Job) {
        self.added = self.added.max(job.position);
        // Refused only when the task is gone, which ends with the shard.
        let _ = self.jobs.send(job).await;
    }
}

/// Whether a dead letter's payload is left in the log: what was skipped or has expired may be large, and many at once.
fn is_in_log(outcome: &v1::Outcome) -> bool {
    match outcome.reason() {
        v1::DeadLetterReason::Skipped => true,
        // A run expires when its payload is gone.
        v1::DeadLetterReason::Expired => outcome.run == Run::LIVE.0 && outcome.from == 0,
        _ => false,
    }
}

/// The event of a dead letter of the owner before: in EVENTS, or an earlier copy of it.
async fn find(log: &Log, outcome: &v1::Outcome) -> Option<Arc<StoredEvent>> {
    let workflow = WorkflowId::new(outcome.workflow_id.as_str()).ok()?;
    let event_id = EventId::from_slice(&outcome.event_id)?;
    let seq = StreamSeq(outcome.sequence);
    let stored = match log.get(&log.layout.events_stream(log.shard), seq).await {
        Some(message) => Some(message),
        None => log.any_copy(&workflow, event_id, seq).await,
    };
    let Some(stored) = stored else {
        tracing::error!(sequence = seq.0, %event_id, "dead letter is no longer in the log and gets no copy");
        return None;
    };
    let event = Event::decode_parts(workflow, &stored.headers, &stored.payload).ok()?;
    Some(Arc::new(StoredEvent { seq, stored_at: stored.stored_at, event }))
}

async fn work(log: Log, mut names: Names, mut queue: mpsc::Receiver<Job>, copied: watch::Sender<u64>) {
    while let Some(job) = queue.recv().await {
        // A copy's subject holds the subscription's name.
        if !job.copies.is_empty() && names.wait_for(|catalog| catalog.complete).await.is_err() {
            return;
        }
        for copy in &job.copies {
            make(&log, &names, copy).await;
        }
        copied.send_if_modified(|position| {
            let grows = job.position > *position;
            *position = (*position).max(job.position);
            grows
        });
    }
}

async fn make(log: &Log, names: &Names, copy: &Copy) {
    let connection = &log.connection;
    let event = match &copy.event {
        Some(event) => Some(Arc::clone(event)),
        None => find(log, &copy.outcome).await,
    };
    let Some(event) = event else { return };
    let Some(message) = message(names, &copy.outcome, &event) else {
        tracing::error!(sequence = copy.outcome.sequence, "dead letter of an unknown subscription has no copy");
        return;
    };
    let mut pause = PAUSE.0;
    loop {
        match publish_once(connection, &message).await {
            Ok(_) => return,
            Err(problem) => {
                tracing::warn!(%problem, subject = message.subject, "copy of a dead letter is tried again");
                tokio::time::sleep(pause).await;
                pause = (pause * 2).min(PAUSE.1);
                connection.connected().await;
            }
        }
    }
}

/// The event's own message with the failure's context in headers.
fn message(names: &Names, outcome: &v1::Outcome, event: &StoredEvent) -> Option<Outgoing> {
    let uid = SubscriptionUid::from_slice(&outcome.subscription)?;
    let name = names
        .borrow()
        .subscriptions
        .values()
        .find(|subscription| subscription.value.uid == outcome.subscription)
        .map(|subscription| subscription.value.name.clone())
        .unwrap_or_else(|| uid.to_string());
    let workflow = &event.event.workflow;
    let mut headers = event.event.encode(Layout::new(1)).headers;
    // The message id is the event's in EVENTS; here one event may stand in several copies.
    headers.set(MESSAGE_ID, format_args!("{uid}:{}:{}:{}", event.event.id, outcome.sequence, outcome.run));
    for (header, value) in [
        ("weft-subscription", name.clone()),
        ("weft-subscription-uid", uid.to_string()),
        ("weft-reason", reason(outcome.reason()).to_owned()),
        ("weft-attempts", outcome.attempts.to_string()),
        ("weft-last-status", outcome.last_status.to_string()),
        ("weft-last-error", outcome.last_error.clone()),
        ("weft-first-failed-at", time(outcome.first_failed_at_ms)),
        ("weft-dead-lettered-at", time(outcome.at_ms)),
        (SEQUENCE_HEADER, outcome.sequence.to_string()),
        ("weft-run", outcome.run.to_string()),
    ] {
        headers.put(header, value);
    }
    let seq = StreamSeq(outcome.sequence);
    let subject = dead_letter_subject(&name, workflow, event.event.id, seq, Run(outcome.run));
    Some(Outgoing { subject, headers, payload: event.event.payload.clone() })
}

/// Empty for 0, which stands for no time: what was never attempted has never failed.
fn time(ms: i64) -> String {
    if ms == 0 {
        return String::new();
    }
    jiff::Timestamp::from_millisecond(ms).map(|at| at.to_string()).unwrap_or_default()
}

/// A dead letter's reason, as the contract names it.
fn reason(reason: v1::DeadLetterReason) -> &'static str {
    match reason {
        v1::DeadLetterReason::Unspecified => "unknown",
        v1::DeadLetterReason::Exhausted => "exhausted",
        v1::DeadLetterReason::Permanent => "permanent",
        v1::DeadLetterReason::TransformFailed => "transform_failed",
        v1::DeadLetterReason::SchemaInvalid => "schema_invalid",
        v1::DeadLetterReason::Skipped => "skipped",
        v1::DeadLetterReason::Expired => "expired",
    }
}
