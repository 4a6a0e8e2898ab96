//! The gateway as a component: bind, run, drain.

use std::{net::SocketAddr, path::PathBuf, sync::Arc, time::Duration};

use tokio::{sync::watch, time::sleep};
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use weft_catalog::{Catalog, MasterKey, Snapshot, keys::Keys};
use weft_nats::{
    conditions::Conditions,
    connect::Connection,
    options::{Secret, Span},
    streams::{self, LogSpec, Used},
    subject::Layout,
    tail::Tails,
};
use weft_role::{WhenMissing, readiness, wait_for_log};
use weft_serve::{Connections, Counters};
use weft_tls::{BindError, Listener};

use crate::{
    admission::{Admission, TrustedProxies},
    forwarding,
    http::body,
    http::error::Code,
    http::router::router,
    http::state::{Api, LogHandle},
    metrics,
    options::GatewayOptions,
    own_events, rejected, rpc, sample,
    sequencer::SequencerOptions,
    sources::Sources,
};

/// How long a body may take from its first byte to its last.
const BODY_TIME: Duration = Duration::from_secs(30);
/// Connections at a time. Each costs a socket and some tens of KiB.
const CONNECTIONS_MAX: usize = 8192;
/// The part of the process's descriptors that connections may take.
const DESCRIPTORS_PART: u64 = 2;

pub use weft_role::RunError;

/// A gateway whose port is bound and that serves nothing yet.
#[derive(Debug)]
pub struct Gateway {
    options: GatewayOptions,
    listener: Listener,
    storage: Option<Storage>,
    conditions: Conditions,
}

/// Why the log cannot be written at the moment; `None` while it can.
type Storage = watch::Receiver<Option<String>>;

impl Gateway {
    /// Binds the port, before any serious work.
    ///
    /// # Errors
    ///
    /// [`BindError`]: the port is taken, or the certificate cannot be used.
    pub async fn bind(options: GatewayOptions) -> Result<Self, BindError> {
        let listener = Listener::bind(options.listen, &options.tls).await?;
        Ok(Self { options, listener, storage: None, conditions: Conditions::default() })
    }

    /// Reports problems that an operator should correct, and that do not stop the gateway from accepting events, to these
    /// conditions.
    #[must_use]
    pub fn conditions(self, conditions: Conditions) -> Self {
        Self { conditions, ..self }
    }

    /// Answers 503 `log_unavailable` at once while `storage` says that the log cannot be written, such as for a full disk. Without
    /// it senders wait for the log's answer.
    #[must_use]
    pub fn storage(self, storage: watch::Receiver<Option<String>>) -> Self {
        Self { storage: Some(storage), ..self }
    }

    /// Where it listens; with port 0 in the options, the port that the system gave.
    pub fn local_addr(&self) -> SocketAddr {
        self.listener.local_addr
    }

    /// `http` or `https`.
    pub fn scheme(&self) -> &'static str {
        self.listener.scheme()
    }

    /// Serves until `drain`: then stops to accept, finishes what is in flight, and returns. `readiness` says what it still
    /// waits for, `None` while it is ready. `folder` holds its redb files. `bootstrap_key` may do everything; without
    /// one only the keys of the catalog count.
    ///
    /// # Errors
    ///
    /// [`RunError`]: a permanent failure. An absent server is transient: the gateway stays up, answers 503 and reports it in
    /// `readiness`.
    pub async fn run(
        self,
        catalog: Catalog,
        spec: LogSpec,
        folder: PathBuf,
        bootstrap_key: Option<Secret>,
        readiness: watch::Sender<Option<String>>,
        drain: CancellationToken,
    ) -> Result<(), RunError> {
        metrics::describe(Code::ALL.map(Code::as_str));
        warn_of_exposure(&self.options, self.listener.acceptor.is_some());
        // What serves requests outlives them: the catalog's watch and the sequencer end only after the last answer.
        let stop = CancellationToken::new();
        let (draining, closing) = (drain.child_token(), CancellationToken::new());
        let connection = catalog.connection().clone();
        let master_key = catalog.master_key().clone();
        let watched = catalog.watch(stop.child_token());
        let limits = body::Limits {
            bytes_max: usize::try_from(self.options.max_body.as_u64()).unwrap_or(usize::MAX),
            time: BODY_TIME,
            depth_max: self.options.max_depth,
        };
        let keys = Keys::new(bootstrap_key.as_ref(), watched.clone());
        let known = watched.clone();
        let proxies = TrustedProxies::new(self.options.trusted_proxies);
        let admission = Admission::new(&self.options.rate_limit, proxies.clone());
        let api = Arc::new(Api::new(Sources::new(watched), keys, admission, limits, closing.clone()));
        let tasks = TaskTracker::new();
        tasks.spawn(start_series(known, stop.child_token()));
        tasks.spawn(close_after(self.options.drain_delay, draining.clone(), closing.clone()));
        if let Some(acceptor) = self.listener.acceptor.clone() {
            tasks.spawn(acceptor.renew(stop.child_token()));
        }
        let (progress, progressed) = watch::channel(Some("streams: not looked for yet".to_owned()));
        let (services, health) = rpc::routes(&api).await;
        let used = Used::by_gateway(Layout::new(spec.log.shards));
        let streams = streams::watch_streams(connection.clone(), used, self.conditions, closing.clone());
        let known = Arc::clone(&api);
        let inputs = readiness::Inputs {
            connection: connection.clone(),
            progress: progressed,
            streams,
            catalog: move || known.sources.missing(),
        };
        tasks.spawn(readiness::watch(inputs, readiness, health, draining.clone()));

        let (noting, stopped) = (api.clone(), stop.child_token());
        tasks.spawn(async move { noting.keys.write_uses(&catalog, &stopped).await });
        let inbox_bytes = spec.rejected.max_bytes.as_u64();
        tasks.spawn(rejected::keeper::keep(api.clone(), connection.clone(), inbox_bytes, stop.child_token()));
        tasks.spawn(rejected::retry::serve(api.clone(), connection.clone(), closing.clone()));
        tasks.spawn(own_events::serve(api.clone(), connection.clone(), closing.clone()));
        tasks.spawn(sample::serve(api.clone(), connection.clone(), closing.clone()));

        let port = port(api.admission.clone(), proxies);
        let serving = weft_serve::serve(self.listener, router(api.clone()).merge(services), port, closing.clone());
        let storage = self.storage;
        let opening = async {
            let opening =
                Opening { connection, master_key, spec, folder, storage, progress, api, closing: closing.clone() };
            let opened = opening.open(&stop, &tasks).await;
            if opened.is_err() {
                draining.cancel();
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

/// Closes once draining has begun and load balancers have had `delay` to see it.
async fn close_after(delay: Span, draining: CancellationToken, closing: CancellationToken) {
    draining.cancelled().await;
    closing.run_until_cancelled(sleep(delay.0)).await;
    closing.cancel();
}

/// How the port is served.
fn port(admission: Arc<Admission>, proxies: TrustedProxies) -> weft_serve::Options {
    let connections = Connections::within_descriptors(CONNECTIONS_MAX, DESCRIPTORS_PART);
    let counters = Counters {
        opened: metrics::CONNECTIONS_OPENED,
        closed: metrics::CONNECTIONS_CLOSED,
        refused: metrics::CONNECTIONS_REFUSED,
    };
    weft_serve::Options {
        exempt: Arc::new(move |address| proxies.contain(address)),
        answer: Arc::new(move |peer, malformed| admission.refuse_malformed(peer, malformed)),
        counters: Some(counters),
        ..weft_serve::Options::new("gateway", connections)
    }
}

/// Says what an operator of a port that strangers reach has probably forgotten.
fn warn_of_exposure(options: &GatewayOptions, secured: bool) {
    if options.listen.ip().is_loopback() || secured || !options.trusted_proxies.is_empty() {
        return;
    }
    tracing::warn!(
        listen = %options.listen,
        "the gateway listens beyond this machine without TLS and without trusted_proxies: behind a proxy or load balancer \
         set [gateway] trusted_proxies, or all clients share the limits of one address; without one set [gateway] tls"
    );
}

/// The log on its way to the routes.
struct Opening {
    connection: Connection,
    master_key: MasterKey,
    spec: LogSpec,
    folder: PathBuf,
    storage: Option<Storage>,
    progress: watch::Sender<Option<String>>,
    api: Arc<Api>,
    closing: CancellationToken,
}

impl Opening {
    /// Waits for the log, starts the sequencer on it, and opens both to the routes. Gives up when the gateway closes
    /// first. `stop` ends the sequencer.
    async fn open(self, stop: &CancellationToken, tasks: &TaskTracker) -> Result<(), RunError> {
        let streams = (WhenMissing::Await, self.folder.clone());
        let found = wait_for_log(&self.connection, &self.spec, streams, &self.progress, &self.closing).await?;
        let Some(layout) = found else { return Ok(()) };
        let options = SequencerOptions {
            storage: self.storage,
            ..SequencerOptions::new(self.folder, &self.spec, self.master_key)
        };
        let connection = self.connection.clone();
        let started = forwarding::start(connection, layout, options, self.progress, stop.child_token(), tasks).await;
        let sequencer = started.map_err(|error| RunError::Folder(error.into()))?;
        let tails = Tails::new(self.connection.clone(), layout);
        self.api.open(LogHandle { connection: self.connection, layout, tails, sequencer });
        Ok(())
    }
}

/// Starts the metrics of new sources at zero, until `stop`.
async fn start_series(mut catalog: watch::Receiver<Arc<Snapshot>>, stop: CancellationToken) {
    loop {
        metrics::sources_known(&catalog.borrow_and_update().clone());
        tokio::select! {
            changed = catalog.changed() => if changed.is_err() { return },
            () = stop.cancelled() => return,
        }
    }
}
