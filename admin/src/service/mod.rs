//! The admin as a component: bind, run, drain.
//!
//! - `state`: shared state of the services, once the log is available.
//! - `events`, `tail`: `EventService`; `dead_letters`, `dead_letter_query`, `selection`, `redrive`, `close_item`, `dead_letter_stats`:
//!   `DeadLetterService`; `workflows`: `WorkflowService`; `replays`: `ReplayService`; `catalog`: `CatalogService`;
//!   `rejected`: `RejectedService`; `shards`: `ShardService`; `stats`: `StatsService`.
//! - `audit`: `AuditService`, what operators have done.
//! - `alerts`: the mesh's own events.
//! - `command`: commands on COMMANDS; `gateways`: requests to gateways.
//! - `readiness`: readiness, for people and for `grpc.health.v1`.

use std::{net::SocketAddr, path::PathBuf, sync::Arc, time::Duration};

use tokio::{
    sync::{Semaphore, watch},
    time::sleep,
};
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use tonic::service::Routes;
use tonic_web::GrpcWebLayer;
use weft_catalog::{Catalog, Snapshot, keys::Keys, requests};
use weft_index::history::{History, HistoryOptions};
use weft_nats::{
    conditions::Conditions,
    options::Secret,
    streams::{self, LogSpec, Used},
    subject::Layout,
    tail::Tails,
};
use weft_proto::{
    ids::ShardId,
    internal,
    v1::{
        audit_service_server::AuditServiceServer, catalog_service_server::CatalogServiceServer,
        dead_letter_service_server::DeadLetterServiceServer, event_service_server::EventServiceServer,
        rejected_service_server::RejectedServiceServer, replay_service_server::ReplayServiceServer,
        shard_service_server::ShardServiceServer, stats_service_server::StatsServiceServer,
        workflow_service_server::WorkflowServiceServer,
    },
};
use weft_role::{
    WhenMissing,
    readiness::{self, Health},
    wait_for_log,
};
use weft_serve::Connections;
use weft_tls::{BindError, Listener};

use crate::{
    as_of::AsOfLayer,
    auth::{Guard, sessions::Sessions},
    console::with_console,
    deliveries::Deliveries,
    options::AdminOptions,
};

mod alerts;
mod audit;
mod catalog;
mod close_item;
mod command;
mod dead_letter_operation;
mod dead_letter_query;
mod dead_letter_stats;
mod dead_letters;
mod erase;
mod events;
mod gateways;
mod limits;
mod paging;
mod payload_retention;
mod payloads;
mod redrive;
mod rejected;
mod replays;
mod selection;
pub(crate) mod served;
mod shards;
mod shares;
mod stall;
mod state;
mod stats;
mod tail;
mod workflows;

use alerts::{AlertOptions, Alerts};
use audit::Audit;
use catalog::Catalogs;
use dead_letters::DeadLetters;
use events::Events;
use rejected::RejectedRequests;
use replays::Replays;
use shards::Shards;
use state::{LogState, PAYLOAD_READS_MAX, State};
use stats::StatsOfMesh;
use stats::observe::Observer;
use workflows::Workflows;

pub use weft_role::RunError;

/// The pause before the catalog is resealed after a failure.
const SEAL_RETRY: Duration = Duration::from_secs(2);
/// The pause before interrupted erasures are tried again.
const ERASE_RETRY: Duration = Duration::from_secs(2);
/// Time-out for the history to reach the end of the log before it lists the subscriptions that the log knows.
const HISTORY_TIMEOUT: Duration = Duration::from_secs(5);
/// Interval at which the history removes expired rows.
const SWEEP_INTERVAL: Duration = Duration::from_secs(30);
/// Maximum number of concurrent connections: operators and their tools.
const CONNECTIONS_MAX: usize = 1024;
/// The part of the process's descriptors that they may use.
const DESCRIPTORS_PART: u64 = 8;

/// An admin whose port is bound and that serves nothing yet.
#[derive(Debug)]
pub struct Admin {
    listener: Listener,
    token: Secret,
    deliveries: Arc<dyn Deliveries>,
    history: watch::Sender<Option<History>>,
    conditions: Conditions,
}

/// The subscriptions that the log knows, by the history of an admin.
#[derive(Debug, Clone)]
pub struct LogSubscriptions {
    history: watch::Receiver<Option<History>>,
}

impl LogSubscriptions {
    /// The subscriptions that the shards' owners have opened and not closed, as of this moment, and that a catalog neither has
    /// nor knows to be removed.
    ///
    /// # Errors
    ///
    /// In one line: the history has not been opened, or lags. Transient.
    pub async fn unknown(&self, catalog: &Snapshot) -> Result<Vec<(ShardId, internal::SubscriptionState)>, String> {
        let history = self.history.borrow().clone();
        let history = history.ok_or_else(|| "waits for the history".to_owned())?;
        history.unknown_subscriptions_now(catalog, HISTORY_TIMEOUT).await.map_err(|error| error.to_string())
    }
}

impl Admin {
    /// Binds the port, before any serious work. `deliveries` is the code that delivers.
    ///
    /// # Errors
    ///
    /// [`BindError`]: the port is taken, or the certificate cannot be used.
    pub async fn bind(
        options: AdminOptions,
        token: Secret,
        deliveries: Arc<dyn Deliveries>,
    ) -> Result<Self, BindError> {
        let listener = Listener::bind(options.listen, &options.tls).await?;
        let (history, conditions) = (watch::Sender::new(None), Conditions::default());
        Ok(Self { listener, token, deliveries, history, conditions })
    }

    /// Reports problems that an operator should correct, and that do not stop the admin, to these conditions.
    #[must_use]
    pub fn conditions(self, conditions: Conditions) -> Self {
        Self { conditions, ..self }
    }

    /// The subscriptions that the log knows, once the admin has opened its history: for other roles of the same process.
    pub fn log_subscriptions(&self) -> LogSubscriptions {
        LogSubscriptions { history: self.history.subscribe() }
    }

    /// Its address; with port 0 in the options, with the port that the system assigned.
    pub fn local_addr(&self) -> SocketAddr {
        self.listener.local_addr
    }

    /// `http` or `https`.
    pub fn scheme(&self) -> &'static str {
        self.listener.scheme()
    }

    /// Serves until `drain`: then stops accepting, finishes the calls in flight, and returns. `readiness` states what it still
    /// waits for, `None` while it is ready. `folder` holds its redb files.
    ///
    /// # Errors
    ///
    /// [`RunError`], if it is permanent. A missing server is transient: the admin stays up, answers UNAVAILABLE and reports it in
    /// `readiness`.
    pub async fn run(
        self,
        catalog: Catalog,
        spec: LogSpec,
        folder: PathBuf,
        readiness: watch::Sender<Option<String>>,
        drain: CancellationToken,
    ) -> Result<(), RunError> {
        // The history ends only after the last answer.
        let stop = CancellationToken::new();
        let closing = drain.child_token();
        let tasks = TaskTracker::new();
        let state = Arc::new(State::new(closing.clone()));
        let watched = catalog.watch(stop.child_token());
        let keys = Arc::new(Keys::new(Some(&self.token), watched.clone()));
        let (noting, noted, stopped) = (catalog.clone(), Arc::clone(&keys), stop.child_token());
        tasks.spawn(async move { noted.write_uses(&noting, &stopped).await });
        let (health, health_server) = Health::new(served::names()).await;
        let (progress, progressed) = watch::channel(Some("streams: not looked for yet".to_owned()));
        let connection = catalog.connection().clone();
        let used = Used::by_admin(Layout::new(spec.log.shards));
        let conditions = self.conditions;
        let streams = streams::watch_streams(connection.clone(), used, conditions.clone(), closing.clone());
        let snapshot = watched.clone();
        let missing = move || snapshot.borrow().missing();
        let inputs = readiness::Inputs { connection, progress: progressed, streams, catalog: missing };
        tasks.spawn(readiness::watch(inputs, readiness, health, closing.clone()));

        if let Some(acceptor) = self.listener.acceptor.clone() {
            tasks.spawn(acceptor.renew(stop.child_token()));
        }
        let sessions = Sessions::new(self.listener.local_addr.port(), self.listener.acceptor.is_some());
        let serving =
            serve(self.listener, Guard::new(keys, sessions), &state, self.deliveries, health_server, &closing);
        let published = self.history;
        let opening = async {
            let opening = Opening {
                catalog: &catalog,
                watched,
                spec: &spec,
                folder,
                state: &state,
                progress,
                published,
                conditions,
            };
            let opened = opening.open(&stop, &tasks).await;
            if opened.is_err() {
                closing.cancel();
            }
            opened
        };
        let ((), opened) = tokio::join!(serving, opening);
        stop.cancel();
        tasks.close();
        tasks.wait().await;
        opened
    }
}

/// Serves all services on the port until `closing`, then finishes the calls in flight.
async fn serve(
    listener: Listener,
    guard: Guard,
    state: &Arc<State>,
    deliveries: Arc<dyn Deliveries>,
    health: tonic_health::pb::health_server::HealthServer<impl tonic_health::pb::health_server::Health>,
    closing: &CancellationToken,
) {
    let events = EventServiceServer::new(Events::new(Arc::clone(state)));
    let dead_letters = DeadLetterServiceServer::new(DeadLetters::new(Arc::clone(state)));
    let rejected = RejectedServiceServer::new(RejectedRequests::new(Arc::clone(state)));
    let workflows = WorkflowServiceServer::new(Workflows::new(Arc::clone(state)));
    let replays = ReplayServiceServer::new(Replays::new(Arc::clone(state)));
    let shards = ShardServiceServer::new(Shards::new(Arc::clone(state)));
    let stats = StatsServiceServer::new(StatsOfMesh::new(Arc::clone(state)));
    let catalog = CatalogServiceServer::new(Catalogs::new(Arc::clone(state), deliveries));
    let audit = AuditServiceServer::new(Audit::new(Arc::clone(state)));
    let reflection = || {
        tonic_reflection::server::Builder::configure()
            .register_file_descriptor_set(served::descriptors())
            .register_encoded_file_descriptor_set(tonic_health::pb::FILE_DESCRIPTOR_SET)
    };
    let mut routes = Routes::new(health)
        .add_service(events)
        .add_service(dead_letters)
        .add_service(rejected)
        .add_service(workflows)
        .add_service(replays)
        .add_service(shards)
        .add_service(stats)
        .add_service(catalog)
        .add_service(audit);
    // The descriptors are compiled in: a failure shows in every test, and costs only the reflection.
    match (reflection().build_v1(), reflection().build_v1alpha()) {
        (Ok(v1), Ok(v1alpha)) => routes = routes.add_service(v1).add_service(v1alpha),
        (Err(error), _) | (_, Err(error)) => tracing::error!(%error, "reflection is not served"),
    }
    let services = routes.into_axum_router().layer(AsOfLayer).layer(guard.clone()).layer(GrpcWebLayer::new());
    let router = with_console(services, guard);
    let connections = Connections::within_descriptors(CONNECTIONS_MAX, DESCRIPTORS_PART);
    weft_serve::serve(listener, router, weft_serve::Options::new("admin", connections), closing.clone()).await;
}

/// State while the log is opened for the services.
struct Opening<'a> {
    catalog: &'a Catalog,
    watched: watch::Receiver<Arc<Snapshot>>,
    spec: &'a LogSpec,
    folder: PathBuf,
    state: &'a State,
    progress: watch::Sender<Option<String>>,
    published: watch::Sender<Option<History>>,
    conditions: Conditions,
}

impl Opening<'_> {
    /// Waits for the log, starts the history on it, and opens both to the services. Gives up when draining comes first.
    async fn open(self, stop: &CancellationToken, tasks: &TaskTracker) -> Result<(), RunError> {
        let Self { catalog, watched, spec, folder, state, progress, published, conditions } = self;
        let connection = catalog.connection().clone();
        let streams = (WhenMissing::Create, folder.clone());
        let found = wait_for_log(&connection, spec, streams, &progress, state.draining()).await?;
        let Some(layout) = found else { return Ok(()) };
        let (retained, measured) = (watched.clone(), folder.clone());
        let options = HistoryOptions {
            folder,
            dead_letter_retention: spec.dead_letters.retention.0,
            sweep_interval: SWEEP_INTERVAL,
        };
        tasks.spawn(requests::serve(catalog.clone(), layout, stop.child_token()));
        let history = History::start(connection.clone(), layout, options, watched.clone(), stop.child_token(), tasks)
            .await
            .map_err(|error| RunError::Folder(error.into()))?;
        tasks.spawn(reseal(catalog.clone(), stop.child_token()));
        tasks.spawn(stall::watch(history.clone(), layout, conditions.clone(), stop.child_token()));
        let mut read = history.progress();
        published.send_replace(Some(history.clone()));
        let tails = Tails::new(connection.clone(), layout);
        let (observations, observed) = watch::channel(None);
        let observer =
            Observer { connection: connection.clone(), layout, history: history.clone(), catalog: watched.clone() };
        let alerts = Alerts {
            connection: connection.clone(),
            history: history.clone(),
            catalog: watched,
            observed: observed.clone(),
            options: AlertOptions::of(spec),
            conditions: conditions.clone(),
        };
        tasks.spawn(alerts.run(stop.child_token()));
        tasks.spawn(observer.run(observations, stop.child_token()));
        let payload_reads = Arc::new(Semaphore::new(PAYLOAD_READS_MAX));
        let log = LogState { connection, layout, history, tails, catalog: catalog.clone(), observed, payload_reads };
        tasks.spawn(finish_erasures(log.clone(), stop.child_token()));
        tasks.spawn(payload_retention::run(log.clone(), retained, stop.child_token()));
        tasks.spawn(limits::watch(log.connection.clone(), layout, measured, stop.child_token()));
        state.open(log);
        loop {
            progress.send_replace(read.borrow_and_update().clone());
            tokio::select! {
                changed = read.changed() => if changed.is_err() { return Ok(()) },
                () = state.draining().cancelled() => return Ok(()),
            }
        }
    }
}

/// Finishes erasures whose admin has ended before they were complete, once the history knows them.
async fn finish_erasures(log: LogState, stop: CancellationToken) {
    loop {
        let finished = async {
            log.history.reach_commands(HISTORY_TIMEOUT).await.map_err(|error| error.to_string())?;
            erase::finish(&log).await.map_err(|status| status.message().to_owned())
        };
        tokio::select! {
            finished = finished => match finished {
                Ok(()) => return,
                Err(problem) => tracing::debug!(problem, "interrupted erasures cannot be finished yet"),
            },
            () = stop.cancelled() => return,
        }
        tokio::select! {
            () = sleep(ERASE_RETRY) => {}
            () = stop.cancelled() => return,
        }
    }
}

/// Reseals catalog entries of an earlier version, with retries.
async fn reseal(catalog: Catalog, stop: CancellationToken) {
    loop {
        match catalog.reseal().await {
            Ok(0) => return,
            Ok(entries) => {
                tracing::info!(entries, "catalog entries of an earlier version were resealed");
                return;
            }
            Err(error) => tracing::debug!(%error, "the catalog cannot be resealed yet"),
        }
        tokio::select! {
            () = sleep(SEAL_RETRY) => {}
            () = stop.cancelled() => return,
        }
    }
}
