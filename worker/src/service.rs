//! The worker as a component: it owns shards, one driver each, until it is drained.

use std::{
    collections::{BTreeMap, HashMap},
    path::{Path, PathBuf},
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use tokio::sync::watch;
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use weft_nats::{
    catalog::{Catalog, Snapshot},
    conditions::Conditions,
    connect::Connection,
    streams::{self, EnsureError, LogSpec},
    subject::Layout,
};
use weft_proto::ids::ShardId;

use crate::{
    destination::{Destination, Destinations},
    driver::{CheckpointPace, Context, Driver, DriverError},
    lane::Limits,
    ledger::{self, RecoveryError},
    options::WorkerOptions,
    ownership::{
        Bucket, Holder, Leases, Tenure, WorkerId,
        duty::Duty,
        member::{Declined, Member, Told},
    },
    shares::{Share, Shares},
};

/// The pause before what failed is tried again.
const RETRY_PAUSE: Duration = Duration::from_millis(500);
/// How often refused readers are looked for.
const LOOK_INTERVAL: Duration = Duration::from_millis(500);
/// The pause before a shard is tried again whose fault does not pass by itself: its log has lost something, or its file
/// cannot be used. An operator must act, and reads of it in the log.
const FAULT_PAUSE: Duration = Duration::from_secs(5);

/// How long a drain waits for attempts in flight: longer than an attempt takes by default. A process that is asked to end
/// is killed after half a minute as a rule, so what takes longer is left to the next owner, which makes the attempt again.
const DRAIN_ATTEMPTS: Duration = Duration::from_secs(18);
/// After that, how long it waits for everything else: the last commit, copies, ledgers, leases. A log that does not answer
/// takes no longer.
const DRAIN_REST: Duration = Duration::from_secs(10);

/// A worker that does nothing yet.
#[derive(Debug)]
pub struct Worker {
    options: WorkerOptions,
    checkpoint_commits: Option<u64>,
    custom: HashMap<String, Arc<dyn Destination>>,
    conditions: Conditions,
}

/// What ends a worker.
#[derive(Debug, thiserror::Error)]
pub enum RunError {
    /// The log is another than the configuration says.
    #[error("{0}")]
    Log(#[from] EnsureError),
    /// The folder cannot be used.
    #[error("{path}: {source}")]
    Folder {
        /// Which.
        path: PathBuf,
        /// What the system or redb said.
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
}

impl Worker {
    /// A worker with these options.
    pub fn new(options: WorkerOptions) -> Self {
        Self { options, checkpoint_commits: None, custom: HashMap::new(), conditions: Conditions::default() }
    }

    /// Delivers by this code what goes to the custom destination of this name.
    #[must_use]
    pub fn destination(mut self, name: impl Into<String>, destination: Arc<dyn Destination>) -> Self {
        self.custom.insert(name.into(), destination);
        self
    }

    /// Reports what an operator should mend, and what does not keep the worker from delivering, to these conditions.
    #[must_use]
    pub fn conditions(self, conditions: Conditions) -> Self {
        Self { conditions, ..self }
    }

    pub(crate) fn with_options(self, options: WorkerOptions) -> Self {
        Self { options, ..self }
    }

    /// Writes a checkpoint of each shard after so many commits instead of the usual 10,000: a take-over then reads less, and
    /// OUTCOMES holds more.
    #[must_use]
    pub fn checkpoint_every(mut self, commits: u64) -> Self {
        self.checkpoint_commits = Some(commits.max(1));
        self
    }

    /// Owns shards and delivers until `drain`: then starts no attempt, finishes what is in flight, commits, gives up its
    /// leases, and returns. `missing` says what it still waits for, `None` while it is ready. `folder` holds its redb files.
    ///
    /// # Errors
    ///
    /// [`RunError`]: what does not pass. An absent server passes: it stays up and tells `missing`.
    pub async fn run(
        self,
        catalog: Catalog,
        spec: LogSpec,
        folder: PathBuf,
        missing: watch::Sender<Option<String>>,
        drain: CancellationToken,
    ) -> Result<(), RunError> {
        let worker =
            worker_id(&folder).map_err(|source| RunError::Folder { path: folder.clone(), source: Box::new(source) })?;
        let connection = catalog.connection().clone();
        missing.send_replace(Some("nats: not connected".into()));
        let layout = loop {
            match streams::ensure(&connection, &spec).await {
                Ok(layout) => break layout,
                Err(EnsureError::Unavailable(problem)) => {
                    missing.send_replace(Some(format!("nats: {problem}")));
                    tokio::select! {
                        () = drain.cancelled() => return Ok(()),
                        () = tokio::time::sleep(RETRY_PAUSE) => {}
                    }
                }
                Err(mismatch) => return Err(mismatch.into()),
            }
        };
        let end = CancellationToken::new();
        let _end = end.clone().drop_guard();
        let context = Context {
            catalog: catalog.watch(end),
            pauses: catalog,
            destinations: Arc::new(
                Destinations::new(self.options.allow_networks.clone()).with_custom(self.custom.clone()),
            ),
            checkpoints: self.checkpoints(&spec),
            retention: spec.log.retention.0,
            dead_retention: spec.dead_letters.retention.0,
            remember: spec.log.remember_workflows.0,
            on_full: spec.log.on_full,
            connection: connection.clone(),
            layout,
            worker: worker.clone(),
            conditions: self.conditions.clone(),
            cut: CancellationToken::new(),
        };
        let cut = context.cut.clone();
        let bucket = Bucket::new(connection.clone(), self.options.lease.0);
        let me = Holder::new(WorkerId(worker));
        let leases = Leases::new(bucket.clone(), me.clone());
        let shares = Shares::new(Limits { attempts_max: self.options.concurrency, ..Limits::default() });
        let declined = Declined::default();
        let member = Member::new(bucket, me, layout.shards(), declined.clone());
        let states = States::new(layout, missing);
        let shards = TaskTracker::new();
        shards.spawn(watch_readers(connection.clone(), context.catalog.clone(), Arc::clone(&states), drain.clone()));
        for (shard, told) in member.told() {
            let owner = Owner {
                context: context.clone(),
                leases: leases.clone(),
                told,
                shares: Arc::clone(&shares),
                declined: declined.clone(),
                shard,
                file: folder.join(format!("ledger-{shard}.redb")),
                states: Arc::clone(&states),
            };
            // Logs its own faults, tries again, and ends with `drain`.
            shards.spawn(owner.run(drain.clone()));
        }
        // Ends with `drain`; before that it goes on whatever the log says.
        shards.spawn(member.run(drain.clone()));
        shards.close();
        tokio::select! {
            () = shards.wait() => return Ok(()),
            () = async {
                drain.cancelled().await;
                tokio::time::sleep(DRAIN_ATTEMPTS).await;
            } => cut.cancel(),
        }
        if tokio::time::timeout(DRAIN_REST, shards.wait()).await.is_err() {
            tracing::warn!("the log does not answer; what is not committed is done again by the next owner");
        }
        Ok(())
    }

    fn checkpoints(&self, spec: &LogSpec) -> CheckpointPace {
        let pace = CheckpointPace::new(spec.log.retention.0);
        CheckpointPace { commits: self.checkpoint_commits.unwrap_or(pace.commits), ..pace }
    }
}

/// The worker's id, which persists: after a restart it may retake its own leases at once.
fn worker_id(folder: &Path) -> std::io::Result<String> {
    std::fs::create_dir_all(folder)?;
    let path = folder.join("worker.id");
    if let Ok(text) = std::fs::read_to_string(&path)
        && uuid::Uuid::try_parse(text.trim()).is_ok()
    {
        return Ok(text.trim().to_owned());
    }
    let id = uuid::Uuid::new_v4().to_string();
    std::fs::write(&path, &id)?;
    Ok(id)
}

/// What each shard still waits for, told as one text.
#[derive(Debug)]
struct States {
    /// What each shard waits for, and under no shard what all of them do.
    waiting: Mutex<BTreeMap<Option<ShardId>, String>>,
    missing: watch::Sender<Option<String>>,
}

impl States {
    fn new(layout: Layout, missing: watch::Sender<Option<String>>) -> Arc<Self> {
        let waiting = layout.all().map(|shard| (Some(shard), "starting".to_owned())).collect();
        Arc::new(Self { waiting: Mutex::new(waiting), missing })
    }

    /// A shard waits for something; `None`: it is delivered, here or by another worker.
    fn set(&self, shard: ShardId, what: Option<String>) {
        self.tell(Some(shard), what);
    }

    /// All shards wait for the catalog; `None`: it is there.
    fn set_catalog(&self, what: Option<String>) {
        self.tell(None, what);
    }

    fn tell(&self, shard: Option<ShardId>, what: Option<String>) {
        let mut waiting = self.waiting.lock().unwrap_or_else(PoisonError::into_inner);
        match what {
            Some(what) => drop(waiting.insert(shard, what)),
            None => drop(waiting.remove(&shard)),
        }
        let first = waiting.iter().next().map(|(shard, what)| match shard {
            Some(shard) => format!("shard {shard}: {what}"),
            None => what.clone(),
        });
        self.missing.send_if_modified(|missing| {
            let changed = *missing != first;
            *missing = first;
            changed
        });
    }
}

/// Reports what the catalog lacks and which readers are refused a consumer, until `drain`.
async fn watch_readers(
    connection: Connection,
    mut catalog: watch::Receiver<Arc<Snapshot>>,
    states: Arc<States>,
    drain: CancellationToken,
) {
    loop {
        let missing = catalog.borrow_and_update().missing();
        states.set_catalog(missing.or_else(|| connection.refused_readers()));
        tokio::select! {
            changed = catalog.changed() => if changed.is_err() { return },
            () = tokio::time::sleep(LOOK_INTERVAL) => {}
            () = drain.cancelled() => return,
        }
    }
}

/// Owns one shard, again and again.
struct Owner {
    context: Context,
    leases: Leases,
    told: watch::Receiver<Told>,
    shares: Arc<Shares>,
    declined: Declined,
    shard: ShardId,
    file: PathBuf,
    states: Arc<States>,
}

impl Owner {
    async fn run(mut self, drain: CancellationToken) {
        while let Some(expected) = self.called(&drain).await {
            // Not cancelled: a driver that drains ends by itself, with what is in flight committed.
            let pause = self.own(expected, &drain).await;
            tokio::select! {
                () = drain.cancelled() => return,
                () = tokio::time::sleep(pause) => {}
            }
        }
    }

    /// Waits for the word to own the shard, and the revision of the lease to claim it behind; each word is good for one
    /// try. `None`: the worker drains.
    async fn called(&mut self, drain: &CancellationToken) -> Option<u64> {
        loop {
            tokio::select! {
                () = drain.cancelled() => return None,
                changed = self.told.changed() => changed.ok()?,
            }
            match self.told.borrow_and_update().clone() {
                Ok(Duty::Own { expected }) => return Some(expected),
                // A standby is ready: it delivers nothing because somebody else does.
                Ok(Duty::StandBy | Duty::HandOver) => self.states.set(self.shard, None),
                Err(problem) => self.states.set(self.shard, Some(problem)),
            }
        }
    }

    /// Claims the lease, takes the shard over, drives it until it ends. How long to wait before the next try.
    async fn own(&self, expected: u64, drain: &CancellationToken) -> Duration {
        let shard = self.shard;
        let lease = match self.leases.claim(shard, expected).await {
            Ok(Some(lease)) => lease,
            // Something has been written since: the next look says what.
            Ok(None) => return Duration::ZERO,
            Err(problem) => {
                self.states.set(shard, Some(format!("lease: {problem}")));
                return RETRY_PAUSE;
            }
        };
        // From now on: the others' attempts that are above their shares end while this one reads its outcomes.
        let share = self.shares.take();
        let release = CancellationToken::new();
        let (tenure, keeping) = lease.keep(release.clone());
        // Ends when it is released or lost.
        let keeper = tokio::spawn(keeping);
        let ended = self.drive(tenure, share, drain).await;
        release.cancel();
        let _ = keeper.await;
        let Err(error) = ended else { return Duration::ZERO };
        let problem = problem_of(&error);
        let passes = match error {
            DriverError::Fenced | DriverError::LeaseLost | DriverError::Recovery(RecoveryError::Unavailable(_)) => true,
            DriverError::Log(_) | DriverError::Ledger(_) | DriverError::Recovery(_) | DriverError::Task { .. } => false,
        };
        if passes {
            tracing::warn!(%shard, problem, "shard is given up");
        } else {
            tracing::error!(%shard, problem, "shard stops");
            self.declined.add(shard);
        }
        self.states.set(shard, Some(problem));
        if passes { RETRY_PAUSE } else { FAULT_PAUSE }
    }

    /// Takes the shard over and drives it until `drain`, or until another worker should have it.
    async fn drive(&self, tenure: Tenure, share: Share, drain: &CancellationToken) -> Result<(), DriverError> {
        let shard = self.shard;
        self.states.set(shard, Some("reading its outcomes".into()));
        let Context { connection, layout, .. } = &self.context;
        let recovering = async {
            let recovered = ledger::recover(connection, *layout, shard, &self.file).await?;
            self.check_events(&recovered).await?;
            Ok::<_, RecoveryError>(recovered)
        };
        let recovered = tokio::select! {
            recovered = recovering => recovered?,
            () = self.context.cut.cancelled() => return Ok(()),
        };
        self.states.set(shard, None);
        let drain = drain.child_token();
        let driving = Driver::new(self.context.clone(), shard, tenure, share, recovered)?.run(drain.clone());
        tokio::pin!(driving);
        tokio::select! {
            ended = &mut driving => return ended,
            () = self.dismissed() => {}
        }
        tracing::info!(%shard, "shard is handed over");
        drain.cancel();
        driving.await
    }

    /// Waits until another worker should have the shard.
    async fn dismissed(&self) {
        let mut told = self.told.clone();
        if told.wait_for(|told| *told == Ok(Duty::HandOver)).await.is_err() {
            // The worker drains.
            std::future::pending().await
        }
    }

    /// A ledger that lies beyond EVENTS was made of another log: delivering on would skip what comes.
    async fn check_events(&self, recovered: &ledger::Recovered) -> Result<(), RecoveryError> {
        let stream = self.context.layout.events_stream(self.shard);
        let state = streams::state(&self.context.connection, &stream).await?;
        if recovered.positions.cursor > state.last {
            return Err(RecoveryError::Lost(format!(
                "{stream} ends at {} but its outcomes reach to {}: it has been restored from an earlier copy; \
                 restore OUTCOMES of the same moment",
                state.last, recovered.positions.cursor
            )));
        }
        Ok(())
    }
}

/// An error with its causes, in one line.
fn problem_of(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        let cause_text = cause.to_string();
        if !text.contains(&cause_text) {
            text = format!("{text}: {cause_text}");
        }
        source = cause.source();
    }
    text
}
