//! `weft up`: every role and a supervised nats-server in one process.
//!
//! Permanent errors (configuration, data folder, ports) are found before anything is started.
//! Transient ones (an external server that is not available yet) never end the process. Draining goes from the
//! outside in: gateway, worker, admin, and nats-server last.

use std::{
    net::{IpAddr, Ipv4Addr, SocketAddr},
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use bytesize::ByteSize;
use metrics_exporter_prometheus::PrometheusHandle;
use tokio::{sync::watch, task::JoinHandle, time::sleep};
use tokio_util::sync::CancellationToken;
use uuid::Uuid;
use weft_admin::{Admin, service::LogSubscriptions};
use weft_catalog::{Catalog, LocateError, Orphan, Snapshot, orphans};
use weft_gateway::Gateway;
use weft_nats::{
    conditions::Conditions,
    connect::Connection,
    options::{NatsOptions, Secret, servers},
    server::{self, Role, Server, ServerOptions},
    streams::{self, EnsureError, LogSpec},
    subject::Layout,
};
use weft_proto::ids::StreamSeq;
use weft_worker::{Worker, destination::clients::HttpClients};

use crate::{
    apply::{Applied, ApplyError, FindOrphans, apply_with},
    config::{Config, DesiredCatalog},
    data::{DataFolder, configured_token, url},
    deliveries::WorkerDeliveries,
    failure::Failure,
    health_http::{Ops, Readiness},
    ready_output::Line,
    roles::{Roles, bind_failure, finish},
    signal, telemetry,
    traces::Exporter,
};

/// Where the ops endpoints of `weft up` listen.
const OPS_LISTEN: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), 9101);
/// The embedded server's wanted port.
const NATS_PORT: u16 = 4222;
/// The end of OUTCOMES while its owner has only fenced: no commit has opened a subscription.
const FENCE_ONLY: StreamSeq = StreamSeq(1);
/// Between two tries to write the catalog while the log is not there.
const CATALOG_RETRY: Duration = Duration::from_millis(500);

/// Runs the mesh until a signal.
///
/// # Errors
///
/// One line: what a person must put right.
pub async fn up(mut config: Config) -> Result<(), Failure> {
    let data = DataFolder::open(&config.data)?;
    // That of the server is locked by its supervisor.
    let _locks = data.lock(&["gateway", "worker", "admin"])?;
    // The gateway takes it, too.
    configured_token(&config.admin, &[("gateway", config.gateway.listen)])?;
    let token = data.admin_token(&config.admin)?;
    config.worker.loopback_ports = config.loopback_ports();
    let clients = Arc::new(HttpClients::new(config.worker.address_rules()));
    let bound = Bound::bind(&config, &token, &clients).await?;
    let drain = signal::drain_token().map_err(|error| Failure::of(&error))?;
    let metrics = telemetry::record_metrics()?;
    let exporter = Exporter::start(&config.traces)?;

    let mut readiness = Readiness::default();
    let nats_missing = readiness.add("nats");
    let missing = Missing::new(&mut readiness);
    let mut lines = bound.lines();
    let admin_url = url(bound.admin.scheme(), bound.admin.local_addr());
    let gateway_url = url(bound.gateway.scheme(), bound.gateway.local_addr());
    let admin_ca = config.admin.tls.cert.clone();
    // What outlives the roles.
    let stop = CancellationToken::new();
    let (gateway, admin, ops) = bound.serve_ops(readiness.clone(), metrics, stop.clone());

    let nats = tokio::select! {
        nats = Nats::start(&mut config, &data, stop.clone(), &nats_missing) => nats?,
        () = drain.cancelled() => return Ok(()),
    };
    lines.extend(nats.lines(&data));
    clients.refuse_ports(nats.local_addr());
    // Only now is it certain that no other mesh lives in the folder.
    let client = data.write_client(admin_url, Some(gateway_url), &token, admin_ca.as_ref())?;
    lines.push(("client", client.display().to_string()));
    nats_missing.send_replace(None);
    let storage = nats.server.as_ref().map(Server::storage);
    let gateway = match &storage {
        Some(storage) => gateway.storage(storage.clone()),
        None => gateway,
    };
    // Until the end it says how nats is.
    let reporting = tokio::spawn(report_storage(storage, nats_missing));
    let worker = Worker::new(config.worker.clone()).http_clients(clients);
    let roles = start(config, &data, &nats.access, (gateway, worker, admin), token, missing).await?;
    let result = roles.serve(&drain, &readiness, &lines).await;
    stop.cancel();
    nats.stopped().await;
    reporting.abort();
    finish(ops, exporter).await;
    result
}

/// Everything that listens, bound before any serious work.
struct Bound {
    gateway: Gateway,
    admin: Admin,
    ops: Ops,
}

impl Bound {
    async fn bind(config: &Config, token: &Secret, clients: &Arc<HttpClients>) -> Result<Self, Failure> {
        let listen = config.gateway.listen;
        let gateway = Gateway::bind(config.gateway.clone()).await;
        let gateway = gateway.map_err(|error| bind_failure("gateway", listen, &error))?;
        let listen = config.admin.listen;
        let deliveries = Arc::new(WorkerDeliveries::with_clients(Arc::clone(clients)));
        let admin = Admin::bind(config.admin.clone(), token.clone(), deliveries).await;
        let admin = admin.map_err(|error| bind_failure("admin", listen, &error))?;
        let listen = config.ops.listen.unwrap_or(OPS_LISTEN);
        let ops = Ops::bind(listen).await.map_err(|error| bind_failure("ops", listen, &error.into()))?;
        // Loopback is allowed here, but not what trusts it.
        clients.refuse_ports([gateway.local_addr(), admin.local_addr(), ops.local_addr()]);
        Ok(Self { gateway, admin, ops })
    }

    fn lines(&self) -> Vec<Line> {
        vec![
            ("gateway", url(self.gateway.scheme(), self.gateway.local_addr())),
            ("admin", url(self.admin.scheme(), self.admin.local_addr())),
            ("ops", url("http", self.ops.local_addr())),
        ]
    }

    fn serve_ops(
        self,
        readiness: Readiness,
        metrics: PrometheusHandle,
        stop: CancellationToken,
    ) -> (Gateway, Admin, JoinHandle<()>) {
        (self.gateway, self.admin, tokio::spawn(self.ops.serve(readiness, metrics, stop)))
    }
}

/// Readiness of each role: what it waits for.
struct Missing {
    catalog: watch::Sender<Option<String>>,
    gateway: watch::Sender<Option<String>>,
    worker: watch::Sender<Option<String>>,
    admin: watch::Sender<Option<String>>,
    conditions: Conditions,
}

impl Missing {
    fn new(readiness: &mut Readiness) -> Self {
        Self {
            catalog: readiness.add("catalog"),
            gateway: readiness.add("gateway"),
            worker: readiness.add("worker"),
            admin: readiness.add("admin"),
            conditions: readiness.conditions(),
        }
    }
}

/// How each role connects.
struct Access {
    gateway: NatsOptions,
    worker: NatsOptions,
    admin: NatsOptions,
}

/// The log's server: ours, or one elsewhere.
struct Nats {
    access: Access,
    url: String,
    server: Option<Server>,
}

impl Nats {
    /// Starts the embedded server, unless `[nats] url` names another.
    async fn start(
        config: &mut Config,
        data: &DataFolder,
        stop: CancellationToken,
        readiness: &watch::Sender<Option<String>>,
    ) -> Result<Self, Failure> {
        if let Some(url) = &config.nats.url {
            let of = |role| config.nats.of_role(role);
            let access = Access { gateway: of(Role::Gateway), worker: of(Role::Worker), admin: of(Role::Admin) };
            return Ok(Self { access, url: url.clone(), server: None });
        }
        let folder = data.role("nats");
        fit_to_disk(&mut config.spec, &folder)?;
        let program = server::find_program().map_err(|error| Failure::of(&error))?;
        let weft = std::env::current_exe().map_err(|error| Failure::of(&error))?;
        let options = ServerOptions {
            program,
            folder,
            log: config.spec.log.clone(),
            max_payload: config.spec.message_bytes_max(),
            port: NATS_PORT,
            publish: config.nats.publish.clone(),
            launcher: vec![weft.into(), "launch".into()],
        };
        let server = Server::start(options, stop).await.map_err(|error| Failure::of(&error))?;
        let users = server.users();
        let access =
            Access { gateway: users.gateway.clone(), worker: users.worker.clone(), admin: users.admin.clone() };
        let nats = Self { access, url: server.url().to_owned(), server: Some(server) };
        let folders = ["gateway", "worker", "admin"].map(|role| data.role(role));
        nats.make_streams(&config.spec, &folders, readiness).await?;
        Ok(nats)
    }

    /// Makes the streams of our own server before any role comes to it: each of several that make a stream at the same
    /// moment has the server set its space aside, and there may not be so much.
    async fn make_streams(
        &self,
        spec: &LogSpec,
        folders: &[PathBuf],
        readiness: &watch::Sender<Option<String>>,
    ) -> Result<(), Failure> {
        let connection = connect(&self.access.admin, "weft-streams").await?;
        loop {
            connection.connected().await;
            match streams::ensure_for(&connection, spec, folders).await {
                Ok(_) => return Ok(()),
                Err(EnsureError::Unavailable(problem)) => {
                    let text = format!("streams: {problem}");
                    if readiness.borrow().as_ref() != Some(&text) {
                        tracing::warn!(problem, "waiting for the streams");
                    }
                    readiness.send_replace(Some(text));
                }
                Err(mismatch @ EnsureError::Mismatch(_)) => return Err(Failure::of(&mismatch)),
            }
            sleep(CATALOG_RETRY).await;
        }
    }

    /// Where the embedded server listens.
    fn local_addr(&self) -> Option<SocketAddr> {
        self.server.as_ref().and_then(|server| server.url().strip_prefix("nats://")?.parse().ok())
    }

    fn lines(&self, data: &DataFolder) -> Vec<Line> {
        let mut lines = vec![("nats", servers::shown(&self.url))];
        if self.server.is_some() {
            lines.push(("tail", data.role("nats/tail.url").display().to_string()));
        }
        lines
    }

    /// Waits for the end of the embedded server, after it was stopped.
    async fn stopped(self) {
        if let Some(server) = self.server {
            server.stopped().await;
        }
    }
}

/// Sets the limits of streams that follow from the disk.
fn fit_to_disk(spec: &mut LogSpec, folder: &Path) -> Result<(), Failure> {
    let configured = spec.rejected.max_bytes.as_u64();
    let limits = server::auto_limits(folder, spec.log.shards, configured).map_err(|error| Failure::of(&error))?;
    spec.auto_bytes_max = Some(limits.events);
    if limits.rejected < configured {
        tracing::warn!(
            configured,
            max_bytes = limits.rejected,
            "[rejected] max_bytes is lowered to a quarter of the room on the disk"
        );
        spec.rejected.max_bytes = ByteSize::b(limits.rejected);
    }
    Ok(())
}

/// Keeps the part `nats` of the readiness up to date: the embedded server's disk.
async fn report_storage(storage: Option<watch::Receiver<Option<String>>>, readiness: watch::Sender<Option<String>>) {
    if let Some(mut storage) = storage {
        loop {
            readiness.send_replace(storage.borrow_and_update().clone());
            if storage.changed().await.is_err() {
                break;
            }
        }
    }
    // A part whose sender is dropped counts as ended.
    readiness.closed().await;
}

/// Connects and starts the roles, and writes the file's catalog as soon as there is a log.
async fn start(
    config: Config,
    data: &DataFolder,
    access: &Access,
    (gateway, worker, admin): (Gateway, Worker, Admin),
    token: Secret,
    missing: Missing,
) -> Result<Roles, Failure> {
    let mut roles = Roles::default();
    let spec = config.spec.clone();

    let key = data.master_key(&config.sealing)?;
    let catalog = async |access: &NatsOptions, name: &str| -> Result<Catalog, Failure> {
        Ok(Catalog::new(connect(access, name).await?, key.clone()))
    };
    let kv = catalog(&access.admin, "weft-catalog").await?;
    let (catalog_spec, desired) = (spec.clone(), config.catalog);
    let known = admin.log_subscriptions();
    let of_gateway = catalog(&access.gateway, "weft-gateway").await?;
    let of_worker = catalog(&access.worker, "weft-worker").await?;
    let of_admin = catalog(&access.admin, "weft-admin").await?;
    let followers = [&of_gateway, &of_worker, &of_admin].map(Catalog::clone);
    roles.start("catalog", |drain| async move {
        tokio::select! {
            written = write_catalog(&kv, &catalog_spec, &desired, known, &followers, &missing.catalog) => written?,
            () = drain.cancelled() => return Ok(()),
        }
        drain.cancelled().await;
        Ok::<(), ApplyError>(())
    });

    let (gateway_spec, folder) = (spec.clone(), data.role("gateway"));
    let delay = config.gateway.drain_delay.0;
    let gateway = gateway.conditions(missing.conditions.clone());
    roles.start_with_delay("gateway", delay, |drain| {
        gateway.run(of_gateway, gateway_spec, folder, Some(token), missing.gateway, drain)
    });

    let (worker_spec, folder) = (spec.clone(), data.role("worker"));
    let worker = worker.conditions(missing.conditions.clone());
    roles.start("worker", |drain| worker.run(of_worker, worker_spec, folder, missing.worker, drain));

    let folder = data.role("admin");
    let admin = admin.conditions(missing.conditions);
    roles.start("admin", |drain| admin.run(of_admin, spec, folder, missing.admin, drain));
    Ok(roles)
}

/// Makes the streams and writes the file's sources and subscriptions, for as long as it takes the log to be there. Until the
/// roles know them, the mesh is not ready.
async fn write_catalog(
    kv: &Catalog,
    spec: &LogSpec,
    desired: &DesiredCatalog,
    known: LogSubscriptions,
    followers: &[Catalog],
    readiness: &watch::Sender<Option<String>>,
) -> Result<(), ApplyError> {
    let request_id = Uuid::now_v7().to_string();
    loop {
        readiness.send_replace(Some("waits for nats".into()));
        kv.connection().connected().await;
        let written = async {
            let layout = streams::ensure(kv.connection(), spec).await?;
            kv.reseal().await.map_err(|error| ApplyError::Unavailable(error.to_string()))?;
            let orphans = LogOrphans { connection: kv.connection().clone(), layout, known: known.clone() };
            let applied = apply_with(kv, layout, desired, &request_id, orphans).await?;
            let present = kv.present().await.map_err(|error| ApplyError::Unavailable(error.to_string()))?;
            Ok((applied, StreamSeq(present.position.sequence)))
        };
        match written.await {
            Ok((applied, end)) => {
                let Applied { created, adopted, updated } = applied;
                tracing::info!(
                    created,
                    adopted,
                    updated,
                    "sources and subscriptions of the configuration are in the catalog"
                );
                for follower in followers {
                    follower.followed_to(end).await;
                }
                readiness.send_replace(None);
                return Ok(());
            }
            Err(ApplyError::Unavailable(problem)) => {
                readiness.send_replace(Some(problem));
                sleep(CATALOG_RETRY).await;
            }
            Err(refused @ ApplyError::Refused(_)) => return Err(refused),
        }
    }
}

/// Finds orphaned subscriptions by the admin's history, which must have read the log to its end first. A log in which no
/// owner has opened a subscription has none, and nothing is waited for.
struct LogOrphans {
    connection: Connection,
    layout: Layout,
    known: LogSubscriptions,
}

impl FindOrphans for LogOrphans {
    async fn find(&self, name: &str, snapshot: &Snapshot) -> Result<Option<Orphan>, LocateError> {
        let unavailable = |problem: String| LocateError::Unavailable(format!("subscription {name}: {problem}"));
        let mut used = false;
        for shard in self.layout.all() {
            let state = streams::state(&self.connection, &self.layout.outcomes_stream(shard)).await;
            used |= state.map_err(|error| unavailable(error.to_string()))?.last > FENCE_ONLY;
        }
        if !used {
            return Ok(None);
        }
        let open = self.known.unknown(snapshot).await.map_err(unavailable)?;
        Ok(orphans(&open, snapshot, self.layout).into_iter().find(|orphan| orphan.name == name))
    }
}

/// A connection under a name; a server that is not there yet is no error.
pub async fn connect(options: &NatsOptions, name: &str) -> Result<Connection, Failure> {
    Connection::connect(options, name).await.map_err(|error| Failure::of(&error))
}
