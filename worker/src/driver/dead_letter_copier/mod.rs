//! Copies of dead letters on DLQ: the event with the failure in headers.
//!
//! A copy is made after the commit of its dead letter, and exactly once: its subject names subscription, workflow, event,
//! sequence and run, and must be empty. Each commit records up to where copies are made; a new owner makes those after that.
//!
//! The driver never waits for copies. While DLQ is unavailable they wait in a bounded [`Backlog`] and are retried as long as
//! the shard is owned. A copy that DLQ refuses, such as one above a size limit, is recorded in a commit, so that later copies
//! are made; the owner keeps its event in EVENTS until the dead letter is closed.

use std::{sync::Arc, time::Duration};

use parking_lot::{Mutex, MutexGuard};
use tokio::{
    sync::watch,
    task::JoinSet,
    time::{Instant, timeout},
};
use tokio_util::task::AbortOnDropHandle;
use weft_catalog::Snapshot;
use weft_nats::{
    admin_requests::{Requests, copies::remove_copy},
    append::{AppendErrorKind, publish_after, publish_once},
    dead_letter::{is_whole, latest},
    event::{Event, StoredEvent, event_id_of},
    message::Outgoing,
};
use weft_proto::{
    ids::{EventId, StreamSeq, SubscriptionUid, WorkflowId},
    internal::{self, outcome_record::Record},
};
use weft_role::sleep_until;

use super::Context;
use crate::{
    ledger::recovery::decode,
    log::{Bounds, Log},
};

mod backlog;
mod message;
mod names;
mod report;

pub(super) use backlog::Horizon;
use backlog::{Backlog, CopyJob, CopyProblems, CopyResult, DeadLetterId};
use names::Names;
use report::Report;

/// Copies that are made at a time, each of another subscription.
const CONCURRENCY: usize = 8;
/// One read of commits with missing copies.
const READ: Bounds = Bounds { messages: 200, bytes: 8 * 1024 * 1024 };
/// Time after which a copy counts as failed: the reads of its event are repeated without a limit.
const COPY_TIMEOUT: Duration = Duration::from_secs(30);

/// The copies of a shard, shared by its driver, the copier's task and the trimming.
#[derive(Debug, Clone)]
pub(super) struct Shared {
    backlog: Arc<Mutex<Backlog>>,
    names: Arc<Mutex<Names>>,
    /// Changes with every step.
    steps: watch::Sender<u64>,
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, Backlog> {
        self.backlog.lock()
    }

    fn lock_names(&self) -> MutexGuard<'_, Names> {
        self.names.lock()
    }

    fn step(&self) {
        self.steps.send_modify(|steps| *steps = steps.wrapping_add(1));
    }

    /// Waits until the backlog is as wanted. Cancel safe.
    async fn until(&self, wanted: impl Fn(&Backlog) -> bool) {
        let mut steps = self.steps.subscribe();
        // An error: the shard ends.
        while !wanted(&self.lock()) && steps.changed().await.is_ok() {}
    }

    /// The events that must stay in EVENTS for copies.
    pub fn horizon(&self) -> Horizon {
        self.lock().horizon()
    }

    /// Number of missing copies of events up to `seq`.
    pub fn missing_through(&self, seq: StreamSeq) -> usize {
        self.lock().missing_through(seq)
    }

    /// The numbers of waiting and refused copies, and the first error.
    pub fn problem(&self) -> String {
        let CopyProblems { waiting, failing, refused } = self.lock().problems();
        let failing = failing.into_iter().next().map(|(_, problem)| problem);
        let problem = failing.or_else(|| refused.first().map(|state| state.problem.clone()));
        let problem = problem.unwrap_or_else(|| "they are being made".into());
        format!("{waiting} copies of dead letters wait, {} are refused: {problem}", refused.len())
    }
}

/// Makes the copies of one shard, until it is dropped.
#[derive(Debug)]
pub(super) struct DeadLetterCopier {
    shared: Shared,
    _task: AbortOnDropHandle<()>,
}

impl DeadLetterCopier {
    /// Makes copies for an owner whose ledger is at `end` of OUTCOMES, of every dead letter in commits after `copied`, and
    /// retries those in `refused`. A dead letter of a commit up to `end` whose event is after `cursor` was lost with a part
    /// of EVENTS. `subscriptions` are those of the ledger.
    pub fn start(
        context: &Context,
        log: Log,
        copied: u64,
        end: StreamSeq,
        cursor: StreamSeq,
        refused: Vec<internal::CopyState>,
        subscriptions: Vec<internal::SubscriptionState>,
    ) -> Self {
        let backlog = Backlog::new(copied, end.0, refused, Instant::now());
        let names = Arc::new(Mutex::new(Names::new(subscriptions)));
        let shared = Shared { backlog: Arc::new(Mutex::new(backlog)), names, steps: watch::Sender::default() };
        let report = Report::new(&log, context.conditions.clone());
        let (catalog, admins) = (context.catalog.clone(), context.pauses.requests());
        let task = Task { shared: shared.clone(), catalog, admins, report, log, end, cursor };
        Self { shared, _task: AbortOnDropHandle::new(tokio::spawn(task.run())) }
    }

    pub fn shared(&self) -> Shared {
        self.shared.clone()
    }

    /// A commit is stored: copies its dead letters. `events` are those of their events that are in memory.
    pub fn add(&self, position: StreamSeq, commit: &internal::Commit, events: Vec<Arc<StoredEvent>>) {
        self.shared.lock_names().add(commit);
        self.shared.lock().add(position.0, commit, events);
        if !commit.outcomes.is_empty() {
            self.shared.step();
        }
    }

    /// OUTCOMES sequence up to which every dead letter has its copy or is recorded as refused, and the copies that the commit
    /// with it must record.
    pub fn progress(&self) -> (u64, Vec<internal::CopyState>) {
        self.shared.lock().progress()
    }

    /// Waits until there is something to record. Cancel safe.
    pub async fn has_news(&self) {
        self.shared.until(Backlog::has_news).await;
    }

    /// Waits until every copy is made that can be made now. Cancel safe.
    pub async fn done(&self) {
        self.shared.until(Backlog::is_done).await;
    }
}

/// The result of a job.
#[derive(Debug)]
enum Ended {
    Made(SubscriptionUid, CopyResult),
    Retried(DeadLetterId, CopyResult),
    Read { from: u64, known: u64, commits: Vec<(u64, internal::Commit)> },
}

/// The task that makes copies.
struct Task {
    shared: Shared,
    catalog: watch::Receiver<Arc<Snapshot>>,
    /// Removes copies of events that were erased meanwhile.
    admins: Requests,
    report: Report,
    log: Log,
    /// The ledger's positions in OUTCOMES and EVENTS when the shard was taken over.
    end: StreamSeq,
    cursor: StreamSeq,
}

impl Task {
    async fn run(mut self) {
        // A copy's subject holds the subscription's name.
        if self.catalog.wait_for(|catalog| catalog.complete).await.is_err() {
            return;
        }
        let mut jobs = JoinSet::new();
        let mut steps = self.shared.steps.subscribe();
        loop {
            let wake = self.start_jobs(&mut jobs);
            let problems = self.shared.lock().problems();
            self.report.show(problems, |uid| name(&self.shared, &self.catalog, uid));
            tokio::select! {
                Some(ended) = jobs.join_next() => match ended {
                    Ok(ended) => self.ended(ended),
                    Err(error) => {
                        tracing::error!(shard = %self.log.shard, %error, "copies of dead letters are left to the next owner");
                        return;
                    }
                },
                changed = steps.changed() => if changed.is_err() { return },
                () = sleep_until(wake) => {}
            }
        }
    }

    /// Starts the jobs that can be started. Returns when the next one is due.
    fn start_jobs(&self, jobs: &mut JoinSet<Ended>) -> Option<Instant> {
        while jobs.len() < CONCURRENCY {
            let (log, admins) = (self.log.clone(), self.admins.clone());
            let job = self.shared.lock().next(Instant::now());
            let name_of = |outcome: &internal::Outcome| {
                let uid = SubscriptionUid::from_slice(&outcome.subscription);
                uid.map(|uid| name(&self.shared, &self.catalog, uid)).unwrap_or_default()
            };
            match job {
                CopyJob::Copy(uid, missing) => {
                    let name = name_of(&missing.outcome);
                    jobs.spawn(async move {
                        let is_last_try = missing.is_last_try();
                        let made = make(&log, &admins, &name, &missing.outcome, missing.event, is_last_try).await;
                        Ended::Made(uid, made)
                    });
                }
                CopyJob::Retry(place, outcome) => {
                    let name = name_of(&outcome);
                    jobs.spawn(async move {
                        Ended::Retried(place, make(&log, &admins, &name, &outcome, None, false).await)
                    });
                }
                CopyJob::Read { from, through } => drop(jobs.spawn(async move {
                    let (known, commits) = read(&log, from, through).await;
                    Ended::Read { from, known, commits }
                })),
                CopyJob::Wait(wake) => return wake,
            }
        }
        None
    }

    fn ended(&self, ended: Ended) {
        let mut backlog = self.shared.lock();
        let now = Instant::now();
        match ended {
            Ended::Made(uid, made) => {
                if let Some(state) = backlog.made(uid, made, now) {
                    let sequence = state.outcome.as_ref().map_or(0, |outcome| outcome.sequence);
                    tracing::error!(
                        shard = %self.log.shard, sequence, problem = state.problem,
                        "DLQ refuses the copy of a dead letter; its event is kept in EVENTS for now"
                    );
                }
            }
            Ended::Retried(place, made) => backlog.retried(place, made, now),
            Ended::Read { from, known, mut commits } => {
                for (_, commit) in commits.iter_mut().filter(|(seq, _)| *seq <= self.end.0) {
                    commit.outcomes.retain(|outcome| outcome.sequence <= self.cursor.0);
                }
                backlog.read(from, known, &commits);
            }
        }
        drop(backlog);
        self.shared.step();
    }
}

/// The name of a subscription in the subjects of its copies.
fn name(shared: &Shared, catalog: &watch::Receiver<Arc<Snapshot>>, uid: SubscriptionUid) -> String {
    shared.lock_names().of(uid, &catalog.borrow())
}

/// Commits in `from..=through` of OUTCOMES, and the sequence up to which they are complete.
async fn read(log: &Log, from: u64, through: u64) -> (u64, Vec<(u64, internal::Commit)>) {
    let stream = log.layout.outcomes_stream(log.shard);
    let read = log.range(&stream, ">", StreamSeq(from), StreamSeq(through), READ).await;
    let commits = read.messages.iter().filter_map(|message| match decode(message)? {
        Record::Commit(commit) => Some((message.seq.0, commit)),
        _ => None,
    });
    (read.known.0, commits.collect())
}

/// Makes the copy of a dead letter. On the last try, a refused copy is stored without its payload.
async fn make(
    log: &Log,
    admins: &Requests,
    name: &str,
    outcome: &internal::Outcome,
    event: Option<Arc<StoredEvent>>,
    is_last_try: bool,
) -> CopyResult {
    let event = match event {
        Some(event) => Some(event),
        // Reads are repeated until they succeed.
        None => match timeout(COPY_TIMEOUT, find(log, outcome)).await {
            Ok(event) => event,
            Err(_) => return CopyResult::Failed("timeout while reading its event".into()),
        },
    };
    let Some((copy, event)) = event.and_then(|event| Some((message::copy(name, outcome, &event)?, event))) else {
        tracing::error!(shard = %log.shard, sequence = outcome.sequence, "the event of a dead letter is no longer in the log; it gets no copy");
        return CopyResult::Lost;
    };
    let made = store(log, &copy).await;
    if matches!(made, CopyResult::Stored) && !event.event.is_erased() {
        return without_erased(log, admins, &copy, &event).await;
    }
    if is_last_try && matches!(made, CopyResult::Refused(_)) {
        let note = message::without_payload(&copy, log.shard);
        if let Err(problem) = publish_once(&log.connection, &note).await {
            tracing::debug!(subject = note.subject, %problem, "DLQ refuses the copy without its payload as well");
        }
    }
    made
}

/// Removes a stored copy if its event has been erased since it was read. An erasure removes the copies that there are after it
/// has removed the event: as long as the event is there, the erasure is to come, and finds this copy.
async fn without_erased(log: &Log, admins: &Requests, copy: &Outgoing, event: &StoredEvent) -> CopyResult {
    let Event { workflow, id, .. } = &event.event;
    match timeout(COPY_TIMEOUT, log.is_erased(workflow, event.seq, *id)).await {
        Ok(false) => return CopyResult::Stored,
        Ok(true) => {}
        Err(_) => return CopyResult::Failed("timeout while asking whether its event is erased".into()),
    }
    let removed = async {
        let stored = latest(&log.connection, &copy.subject).await.map_err(|error| error.to_string())?;
        // It was stored a moment ago.
        let Some(stored) = stored else { return Err("a replica of DLQ lags".to_owned()) };
        remove_copy(admins, stored.seq).await.map_err(|error| error.to_string())
    };
    match removed.await {
        Ok(()) => CopyResult::Stored,
        Err(problem) => CopyResult::Failed(format!("its event is erased, and it cannot be removed: {problem}")),
    }
}

async fn store(log: &Log, copy: &Outgoing) -> CopyResult {
    let problem = match publish_once(&log.connection, copy).await {
        Ok(true) => return CopyResult::Stored,
        // There is one already: the copy, made by an earlier owner, or one without payload.
        Ok(false) => match latest(&log.connection, &copy.subject).await {
            Ok(Some(stored)) if is_whole(&stored.headers) => return CopyResult::Stored,
            Ok(Some(stored)) => match publish_after(&log.connection, copy, stored.seq).await {
                Ok(()) => return CopyResult::Stored,
                Err(problem) => problem,
            },
            Ok(None) => return CopyResult::Failed("a replica of DLQ lags".into()),
            Err(problem) => return CopyResult::Failed(problem.to_string()),
        },
        Err(problem) => problem,
    };
    match problem {
        AppendErrorKind::Refused(problem) => CopyResult::Refused(problem),
        other => CopyResult::Failed(other.to_string()),
    }
}

/// The event of a dead letter: in EVENTS, or an earlier copy of it.
async fn find(log: &Log, outcome: &internal::Outcome) -> Option<Arc<StoredEvent>> {
    let workflow = WorkflowId::new(outcome.workflow_id.as_str()).ok()?;
    let event_id = EventId::from_slice(&outcome.event_id)?;
    let seq = StreamSeq(outcome.sequence);
    // Where a part of EVENTS was lost, another event may have this sequence.
    let stored = log.get(&log.layout.events_stream(log.shard), seq).await;
    let stored = match stored.filter(|message| event_id_of(message) == Some(event_id)) {
        Some(message) => message,
        None => log.any_copy(&workflow, event_id, seq).await?,
    };
    let event = Event::decode_parts(workflow, &stored.headers, &stored.payload).ok()?;
    Some(Arc::new(StoredEvent { seq, stored_at: stored.stored_at, event }))
}
