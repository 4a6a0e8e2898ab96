//! The worker as a component: owns shards, with a driver for each, until it is drained.

use std::{
    collections::HashMap,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use tokio::sync::watch;
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use weft_catalog::{Catalog, Snapshot};
use weft_nats::{
    conditions::Conditions,
    connect::Connection,
    streams::{self, LogSpec, Used},
};
use weft_role::{WhenMissing, wait_for_log};

use crate::{
    destination::{Destination, Destinations, clients::HttpClients},
    driver::{CheckpointPolicy, Context},
    lane::Limits,
    metrics,
    options::WorkerOptions,
    owner::Owner,
    ownership::{
        Bucket, Holder, Leases, WorkerId,
        membership::{DeclinedShards, Membership},
    },
    readiness::Readiness,
    shares::Shares,
};

/// Interval of checks for refused readers and writes.
const LOOK_INTERVAL: Duration = Duration::from_millis(500);

/// How long a drain waits for attempts in flight: longer than the default timeout of an attempt. Processes are usually killed
/// half a minute after they are asked to end, so longer attempts are left to the next owner, which makes them again.
const DRAIN_ATTEMPTS: Duration = Duration::from_secs(18);
/// How long a drain waits after that for the last commits, copies, ledgers and leases, which an unavailable log would delay.
const DRAIN_REST: Duration = Duration::from_secs(10);

pub use weft_role::RunError;

/// A worker, not running yet.
#[derive(Debug)]
pub struct Worker {
    options: WorkerOptions,
    checkpoint_commits: Option<u64>,
    custom: HashMap<String, Arc<dyn Destination>>,
    /// Shared clients; `None`: the worker creates its clients by its options.
    clients: Option<Arc<HttpClients>>,
    conditions: Conditions,
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

    /// Adds the code of a custom destination of this name.
    #[must_use]
    pub fn destination(mut self, name: impl Into<String>, destination: Arc<dyn Destination>) -> Self {
        self.custom.insert(name.into(), destination);
        self
    }

    /// Delivers with shared HTTP clients, which decide which networks may be called.
    #[must_use]
    pub fn http_clients(self, clients: Arc<HttpClients>) -> Self {
        Self { clients: Some(clients), ..self }
    }

    /// Reports problems that do not stop deliveries to these conditions.
    #[must_use]
    pub fn conditions(self, conditions: Conditions) -> Self {
        Self { conditions, ..self }
    }

    fn destinations(&self) -> Destinations {
        let own = || Arc::new(HttpClients::new(self.options.address_rules()));
        Destinations::with_clients(self.clients.clone().unwrap_or_else(own)).with_custom(self.custom.clone())
    }

    pub(crate) fn with_options(self, options: WorkerOptions) -> Self {
        Self { options, ..self }
    }

    /// Writes a checkpoint of each shard after this number of commits instead of 10,000.
    #[must_use]
    pub fn checkpoint_every(mut self, commits: u64) -> Self {
        self.checkpoint_commits = Some(commits.max(1));
        self
    }

    /// Owns shards and delivers until `drain`: then it starts no attempt, finishes and commits those in flight, releases its
    /// leases, and returns. `readiness` has what it waits for, `None` while it is ready. `folder` holds its redb files.
    ///
    /// # Errors
    ///
    /// [`RunError`], for permanent errors. An unavailable server is not one: the worker waits and reports it in `readiness`.
    pub async fn run(
        self,
        catalog: Catalog,
        spec: LogSpec,
        folder: PathBuf,
        readiness: watch::Sender<Option<String>>,
        drain: CancellationToken,
    ) -> Result<(), RunError> {
        metrics::describe();
        let worker =
            worker_id(&folder).map_err(|error| RunError::Folder(format!("{}: {error}", folder.display()).into()))?;
        let connection = catalog.connection().clone();
        readiness.send_replace(Some("nats: not connected".into()));
        let streams = (WhenMissing::Await, folder.clone());
        let Some(layout) = wait_for_log(&connection, &spec, streams, &readiness, &drain).await? else { return Ok(()) };
        let end = CancellationToken::new();
        let _end = end.clone().drop_guard();
        let context = Context {
            catalog: catalog.watch(end),
            pauses: catalog,
            destinations: Arc::new(self.destinations().with_own_nats(connection.clone())),
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
        let readiness = Readiness::new(layout, readiness);
        let shards = TaskTracker::new();
        let (used, conditions) = (Used::by_worker(layout), self.conditions.clone());
        let streams = streams::watch_streams(connection.clone(), used, conditions, drain.clone());
        let watched = (context.catalog.clone(), streams);
        shards.spawn(watch_log(connection.clone(), watched, Arc::clone(&readiness), drain.clone()));
        for (shard, assignment) in membership.assignments() {
            let owner = Owner {
                context: context.clone(),
                leases: leases.clone(),
                assignment,
                shares: Arc::clone(&shares),
                declined: declined.clone(),
                shard,
                file: folder.join(format!("ledger-{shard}.redb")),
                readiness: Arc::clone(&readiness),
            };
            // Logs its errors, retries, and ends with `drain`.
            shards.spawn(owner.run(drain.clone()));
        }
        // Retries all errors and ends with `drain`.
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
            tracing::warn!(
                "timeout of the drain: the log is unavailable; the next owner repeats what is not committed"
            );
        }
        Ok(())
    }

    fn checkpoints(&self, spec: &LogSpec) -> CheckpointPolicy {
        let pace = CheckpointPolicy::new(spec.log.retention.0);
        CheckpointPolicy { commits: self.checkpoint_commits.unwrap_or(pace.commits), ..pace }
    }
}

/// The worker's id, stored in its folder: after a restart the worker may reclaim its leases at once.
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

/// Reports removed streams, an incomplete catalog, refused readers and refused writes, until `drain`.
async fn watch_log(
    connection: Connection,
    (mut catalog, streams): (watch::Receiver<Arc<Snapshot>>, watch::Receiver<Option<String>>),
    readiness: Arc<Readiness>,
    drain: CancellationToken,
) {
    loop {
        let missing = catalog.borrow_and_update().missing();
        let missing = streams.borrow().clone().or(missing).or_else(|| connection.refused_readers());
        readiness.set_log(missing.or_else(|| connection.refused_writes()));
        tokio::select! {
            changed = catalog.changed() => if changed.is_err() { return },
            () = tokio::time::sleep(LOOK_INTERVAL) => {}
            () = drain.cancelled() => return,
        }
    }
}
