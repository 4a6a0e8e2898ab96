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
    changes::set_if_changed,
    conditions::Conditions,
    connect::Connection,
    streams::{self, EnsureError, LogSpec, Used},
    subject::Layout,
};
use weft_proto::ids::ShardId;

use crate::{
    destination::{Destination, Destinations, clients::HttpClients},
    driver::{CheckpointPolicy, Context},
    lane::Limits,
    options::WorkerOptions,
    owner::{Owner, RETRY_PAUSE},
    ownership::{
        Bucket, Holder, Leases, WorkerId,
        membership::{DeclinedShards, Membership},
    },
    shares::Shares,
};

/// Shards that one line of readiness names.
const NAMED_MAX: usize = 4;
/// How often refused readers are looked for.
const LOOK_INTERVAL: Duration = Duration::from_millis(500);

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
    /// `None`: those of this worker alone, by its options.
    clients: Option<Arc<HttpClients>>,
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
        Self {
            options,
            checkpoint_commits: None,
            custom: HashMap::new(),
            clients: None,
            conditions: Conditions::default(),
        }
    }

    /// Delivers by this code what goes to the custom destination of this name.
    #[must_use]
    pub fn destination(mut self, name: impl Into<String>, destination: Arc<dyn Destination>) -> Self {
        self.custom.insert(name.into(), destination);
        self
    }

    /// Delivers with these HTTP clients, which others use as well. They decide which networks may be called.
    #[must_use]
    pub fn http_clients(self, clients: Arc<HttpClients>) -> Self {
        Self { clients: Some(clients), ..self }
    }

    /// Reports what an operator should mend, and what does not keep the worker from delivering, to these conditions.
    #[must_use]
    pub fn conditions(self, conditions: Conditions) -> Self {
        Self { conditions, ..self }
    }

    fn destinations(&self) -> Destinations {
        let own = || Arc::new(HttpClients::new(self.options.allow_networks.clone()));
        Destinations::with_clients(self.clients.clone().unwrap_or_else(own)).with_custom(self.custom.clone())
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
        let folders = [folder.clone()];
        let layout = loop {
            match streams::check_for(&connection, &spec, &folders).await {
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
            destinations: Arc::new(self.destinations()),
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
        let declined = DeclinedShards::default();
        let membership = Membership::new(bucket, me, layout.shards(), declined.clone());
        let states = States::new(layout, missing);
        let shards = TaskTracker::new();
        let (used, conditions) = (Used::by_worker(layout), self.conditions.clone());
        let streams = streams::watch_streams(connection.clone(), used, conditions, drain.clone());
        let watched = (context.catalog.clone(), streams);
        shards.spawn(watch_log(connection.clone(), watched, Arc::clone(&states), drain.clone()));
        for (shard, assignment) in membership.assignments() {
            let owner = Owner {
                context: context.clone(),
                leases: leases.clone(),
                assignment,
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
        shards.spawn(membership.run(drain.clone()));
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

    fn checkpoints(&self, spec: &LogSpec) -> CheckpointPolicy {
        let pace = CheckpointPolicy::new(spec.log.retention.0);
        CheckpointPolicy { commits: self.checkpoint_commits.unwrap_or(pace.commits), ..pace }
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
pub(crate) struct States {
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
    pub fn set(&self, shard: ShardId, what: Option<String>) {
        self.tell(Some(shard), what);
    }

    /// All shards wait for something of the log; `None`: it is there.
    fn set_log(&self, what: Option<String>) {
        self.tell(None, what);
    }

    fn tell(&self, shard: Option<ShardId>, what: Option<String>) {
        let mut waiting = self.waiting.lock().unwrap_or_else(PoisonError::into_inner);
        match what {
            Some(what) => drop(waiting.insert(shard, what)),
            None => drop(waiting.remove(&shard)),
        }
        let text = (!waiting.is_empty()).then(|| in_one_line(&waiting));
        set_if_changed(&self.missing, text);
    }
}

/// Everything that is waited for, as far as a line can hold it.
fn in_one_line(waiting: &BTreeMap<Option<ShardId>, String>) -> String {
    let named = waiting.iter().take(NAMED_MAX).map(|(shard, what)| match shard {
        Some(shard) => format!("shard {shard}: {what}"),
        None => what.clone(),
    });
    let mut text = named.collect::<Vec<_>>().join("; ");
    if let Some(more @ 1..) = waiting.len().checked_sub(NAMED_MAX) {
        text.push_str(&format!("; and {more} more shards"));
    }
    text
}

/// Reports streams that were removed, what the catalog lacks, which readers are refused a consumer, and which streams take no
/// writes, until `drain`.
async fn watch_log(
    connection: Connection,
    (mut catalog, streams): (watch::Receiver<Arc<Snapshot>>, watch::Receiver<Option<String>>),
    states: Arc<States>,
    drain: CancellationToken,
) {
    loop {
        let missing = catalog.borrow_and_update().missing();
        let missing = streams.borrow().clone().or(missing).or_else(|| connection.refused_readers());
        states.set_log(missing.or_else(|| connection.refused_writes()));
        tokio::select! {
            changed = catalog.changed() => if changed.is_err() { return },
            () = tokio::time::sleep(LOOK_INTERVAL) => {}
            () = drain.cancelled() => return,
        }
    }
}
