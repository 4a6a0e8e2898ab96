//! A connection to NATS, whose state can be asked.
//!
//! The client queues while it is disconnected and sends what it queued after it has reconnected, so callers ask
//! [`Connection::is_connected`] before they begin something that must not linger.

use std::{
    collections::BTreeMap,
    fmt::Display,
    sync::{Arc, OnceLock, Weak, atomic::Ordering},
    time::{Duration, Instant},
};

use async_nats::{Client, ConnectOptions, Event, ServerAddr, connection::State, jetstream};
use parking_lot::{Mutex, MutexGuard};
use tokio::sync::watch;

use crate::{
    backoff::Backoff,
    clock::ServerClock,
    options::{NatsOptions, NatsTls, servers},
};

/// How long a try to connect may take, TLS and authentication included.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// How often an idle server is pinged; two unanswered pings end the connection, so a dead server is noticed within
/// three of these.
const PING_INTERVAL: Duration = Duration::from_secs(3);
/// The pauses between tries to connect: short, since an outage lasts at least as long as the pause.
const RECONNECT: Backoff = Backoff::new(Duration::from_millis(20), Duration::from_millis(500));
/// How often a wait for a change of state also polls the state, in case that the notification came too early.
const LOOK_AGAIN: Duration = Duration::from_millis(250);
/// After this time without a write that succeeds a stream counts as one that takes none: longer than a restart of the server.
const UNWRITABLE_AFTER: Duration = Duration::from_secs(3);
/// Name of the readers of live streams of events: without them a role can still do its work.
pub(crate) const LIVE_READER: &str = "tail";
/// How long an API request or an ack may take.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(5);

/// One connection: the client and its JetStream context. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Connection {
    client: Client,
    jetstream: jetstream::Context,
    options: Arc<NatsOptions>,
    /// Grows with every change of the connection's state.
    changes: watch::Receiver<u64>,
    server_clock: ServerClock,
    /// Readers that the server refuses a consumer, by stream and name.
    refused: Arc<Mutex<BTreeMap<(String, String), Refused>>>,
    /// Streams that take no writes: since when, and why.
    unwritable: Arc<Mutex<BTreeMap<String, (Instant, String)>>>,
    /// The client as the event callback sees it. The callback holds it weakly: the client lives as long as its owners.
    _seen_by_events: Arc<OnceLock<Client>>,
}

/// A reader that is refused a consumer.
#[derive(Debug)]
struct Refused {
    problem: String,
    /// It reads pages instead.
    pages: bool,
}

/// Which of the connections that the client has had, one after the other.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Epoch(u64);

/// Why a connection cannot even be attempted.
#[derive(Debug, thiserror::Error)]
pub enum ConnectError {
    /// The `[nats]` section does not make sense.
    #[error("[nats] {0}")]
    Options(String),
    /// The client refused to start.
    #[error("cannot connect to {url}")]
    Client {
        /// The servers, without users and passwords.
        url: String,
        /// The client's error.
        #[source]
        source: async_nats::ConnectError,
    },
}

impl Connection {
    /// Starts a connection under `name` (seen in the server's connection list). Returns at once, also when no server
    /// answers: it keeps trying, and [`is_connected`](Self::is_connected) reports the state.
    ///
    /// # Errors
    ///
    /// [`ConnectError`]: the options are wrong. Never that the server is down.
    pub async fn connect(options: &NatsOptions, name: &str) -> Result<Self, ConnectError> {
        let url = options.url.clone().ok_or_else(|| {
            ConnectError::Options(
                "url is missing: say nats://host:port, or run `weft up`, which starts a server".into(),
            )
        })?;
        let servers: Vec<&str> = url.split(',').map(str::trim).collect();
        let (sender, changes) = watch::channel(0u64);
        let seen_by_events = Arc::new(OnceLock::new());
        let events_see = Arc::downgrade(&seen_by_events);
        let connect = authenticated(options)?
            .name(name)
            .retry_on_initial_connect()
            .connection_timeout(CONNECT_TIMEOUT)
            .ping_interval(PING_INTERVAL)
            .request_timeout(Some(REQUEST_TIMEOUT))
            .reconnect_delay_callback(|attempts| RECONNECT.after(u32::try_from(attempts).unwrap_or(u32::MAX)))
            .event_callback(move |event| {
                if matches!(event, Event::Connected | Event::Disconnected | Event::Closed) {
                    sender.send_modify(|changes| *changes += 1);
                }
                let client = events_see.clone();
                async move {
                    report(&event);
                    if event == Event::LameDuckMode {
                        leave(&client).await;
                    }
                }
            });
        let client = connect
            .connect(servers.as_slice())
            .await
            .map_err(|source| ConnectError::Client { url: servers::shown(&url), source })?;
        let jetstream = jetstream(client.clone(), options);
        seen_by_events.get_or_init(|| client.clone());
        let server_clock = ServerClock::default();
        Ok(Self {
            client,
            jetstream,
            options: Arc::new(options.clone()),
            changes,
            server_clock,
            refused: Arc::default(),
            unwritable: Arc::default(),
            _seen_by_events: seen_by_events,
        })
    }

    /// Another connection with the same options.
    ///
    /// # Errors
    ///
    /// As [`connect`](Self::connect).
    pub async fn sibling(&self, name: &str) -> Result<Self, ConnectError> {
        Self::connect(&self.options, name).await
    }

    /// Whether the server is there at this moment.
    pub fn is_connected(&self) -> bool {
        self.client.connection_state() == State::Connected
    }

    /// Waits until the server is there.
    pub async fn connected(&self) {
        self.until(Self::is_connected).await;
    }

    /// Waits until the connection is lost or there again, from this call on.
    pub fn changed(&self) -> impl Future<Output = ()> + Send + use<> {
        let connection = self.clone();
        let before = (self.is_connected(), self.epoch());
        async move { connection.until(|now| (now.is_connected(), now.epoch()) != before).await }
    }

    /// The connection that is there now, or was there last.
    pub fn epoch(&self) -> Epoch {
        Epoch(self.client.statistics().connects.load(Ordering::Relaxed))
    }

    /// Waits until the connection of `epoch` is no more, also when another has taken its place long ago: state that the
    /// server kept for it in memory may be gone.
    pub(crate) async fn ended(&self, epoch: Epoch) {
        self.until(|now| !now.is_connected() || now.epoch() != epoch).await;
    }

    async fn until(&self, condition: impl Fn(&Self) -> bool) {
        let mut changes = self.changes.clone();
        loop {
            changes.mark_unchanged();
            if condition(self) {
                return;
            }
            // The event may come a moment before the state changes: look again after a while, too.
            if let Ok(Err(_)) = tokio::time::timeout(LOOK_AGAIN, changes.changed()).await {
                // The client has ended; nothing changes any more.
                std::future::pending::<()>().await;
            }
        }
    }

    /// The client.
    pub fn client(&self) -> &Client {
        &self.client
    }

    /// The JetStream context.
    pub fn jetstream(&self) -> &jetstream::Context {
        &self.jetstream
    }

    /// The options that it was made with.
    pub fn options(&self) -> &NatsOptions {
        &self.options
    }

    /// Whether its user is in an account that imports the streams of the log, as generated accounts do.
    pub(crate) fn has_accounts(&self) -> bool {
        self.options.api_prefix.as_deref() == Some(crate::server::API_PREFIX)
    }

    /// Prefix of the subjects of JetStream's API.
    pub(crate) fn api_prefix(&self) -> &str {
        api_prefix(&self.options)
    }

    /// The subject of a request of JetStream's API, such as `STREAM.INFO.EVENTS`.
    pub fn api_subject(&self, request: impl Display) -> String {
        format!("{}.{request}", api_prefix(&self.options))
    }

    /// The server's clock, estimated from its answers about streams.
    pub fn server_clock(&self) -> &ServerClock {
        &self.server_clock
    }

    /// The readers of this connection that wait for a consumer which the server refuses, with the reason, in one line;
    /// `None`: there is none. Those of live streams are left out.
    pub fn refused_readers(&self) -> Option<String> {
        self.refused_of(false)
    }

    /// The readers of this connection that read pages because the server refuses them a consumer, as above.
    pub fn paging_readers(&self) -> Option<String> {
        self.refused_of(true)
    }

    fn refused_of(&self, pages: bool) -> Option<String> {
        let refused = self.refused();
        let lines = refused.iter().filter(|((_, name), refused)| refused.pages == pages && name != LIVE_READER);
        let lines = lines
            .map(|((stream, name), Refused { problem, .. })| format!("reader {name} of {stream} refused: {problem}"));
        Some(lines.collect::<Vec<_>>().join("; ")).filter(|text| !text.is_empty())
    }

    /// Notes that a reader of a stream is refused a consumer, and whether it reads pages instead; `None`: no longer.
    pub(crate) fn note_refusal(&self, (stream, reader): (&str, &str), pages: bool, problem: Option<String>) {
        let key = (stream.to_owned(), reader.to_owned());
        match problem {
            Some(problem) => self.refused().insert(key, Refused { problem, pages }),
            None => self.refused().remove(&key),
        };
    }

    /// Notes that a stream does not take a write; `None`: it has taken one.
    pub fn note_write(&self, stream: &str, problem: Option<String>) {
        let mut unwritable = self.unwritable.lock();
        match (problem, unwritable.get_mut(stream)) {
            (Some(problem), Some((_, known))) => *known = problem,
            (Some(problem), None) => drop(unwritable.insert(stream.to_owned(), (Instant::now(), problem))),
            (None, Some(_)) => drop(unwritable.remove(stream)),
            (None, None) => {}
        }
    }

    /// The streams that have taken no write for some seconds although one was tried, with the reason and what to do, in one
    /// line; `None`: there is none.
    pub fn refused_writes(&self) -> Option<String> {
        let unwritable = self.unwritable.lock();
        let lasting = unwritable.iter().filter(|(_, (since, _))| since.elapsed() >= UNWRITABLE_AFTER);
        let lines = lasting.map(|(stream, (since, problem))| {
            format!("{stream} has taken no writes for {} s: {problem}", since.elapsed().as_secs())
        });
        let text = lines.collect::<Vec<_>>().join("; ");
        (!text.is_empty()).then(|| {
            format!(
                "{text}; see the log of nats-server: after a full disk make room and restart it, unless weft runs it"
            )
        })
    }

    fn refused(&self) -> MutexGuard<'_, BTreeMap<(String, String), Refused>> {
        self.refused.lock()
    }

    /// The server's `max_payload` in bytes, once connected.
    pub fn max_payload(&self) -> Option<usize> {
        self.client.try_server_info().map(|info| info.max_payload)
    }
}

/// Prefix of the subjects of JetStream's API.
fn api_prefix(options: &NatsOptions) -> &str {
    options.api_prefix.as_deref().unwrap_or("$JS.API")
}

/// A JetStream context on a client of these options.
pub(crate) fn jetstream(client: Client, options: &NatsOptions) -> jetstream::Context {
    jetstream::context::ContextBuilder::new()
        .api_prefix(api_prefix(options))
        .timeout(REQUEST_TIMEOUT)
        .ack_timeout(REQUEST_TIMEOUT)
        .build(client)
}

/// The client's options with what proves who we are.
pub(crate) fn authenticated(options: &NatsOptions) -> Result<ConnectOptions, ConnectError> {
    let problem = ConnectError::Options;
    let mut connect = ConnectOptions::new();
    match (&options.user, &options.password) {
        (Some(user), Some(password)) => {
            let password = password.resolve().map_err(problem)?;
            connect = connect.user_and_password(user.clone(), password.expose().to_owned());
        }
        (None, None) => {
            // The client library does not take them out of the URL.
            let server =
                options.url.as_deref().and_then(|url| url.split(',').next()?.trim().parse::<ServerAddr>().ok());
            let named = server.as_ref().and_then(|server| Some((server.username()?, server.password()?)));
            if let Some((user, password)) = named {
                connect = connect.user_and_password(user.to_owned(), password.to_owned());
            }
        }
        _ => return Err(problem("user and password belong together: give both or neither".into())),
    }
    if let Some(nkey) = &options.nkey {
        connect = connect.nkey(nkey.resolve().map_err(problem)?.expose().to_owned());
    }
    if let Some(creds) = &options.creds {
        let creds = creds.resolve().map_err(problem)?;
        connect = connect
            .credentials(creds.expose())
            .map_err(|error| problem(format!("creds is not a NATS credentials file: {error}")))?;
    }
    if let Some(prefix) = &options.inbox_prefix {
        connect = connect.custom_inbox_prefix(prefix.clone());
    }
    secured(connect, &options.tls)
}

/// The client reads the files whenever it connects, so what is found wrong only then would look like a server that is not
/// there; and renewed files need no restart.
fn secured(mut connect: ConnectOptions, tls: &NatsTls) -> Result<ConnectOptions, ConnectError> {
    for (key, file) in [("ca", &tls.ca), ("cert", &tls.cert), ("key", &tls.key)] {
        let Some(file) = file else { continue };
        file.check().map_err(|problem| ConnectError::Options(format!("tls.{key}: {problem}")))?;
        connect = connect.require_tls(true);
    }
    if let Some(ca) = &tls.ca {
        connect = connect.add_root_certificates(ca.path().to_owned());
    }
    match (&tls.cert, &tls.key) {
        (Some(cert), Some(key)) => Ok(connect.add_client_certificate(cert.path().to_owned(), key.path().to_owned())),
        (None, None) => Ok(connect),
        _ => Err(ConnectError::Options("tls: cert and key belong together: give both or neither".into())),
    }
}

/// Goes to another server at once, instead of when this one closes the connection at a moment of its choice.
async fn leave(client: &Weak<OnceLock<Client>>) {
    let client = client.upgrade().and_then(|client| client.get().cloned());
    // An error means that the client has ended.
    if let Some(client) = client {
        let _ = client.force_reconnect().await;
    }
}

fn report(event: &Event) {
    match event {
        Event::Connected => tracing::info!("nats connected"),
        Event::Disconnected => tracing::warn!("nats disconnected"),
        Event::LameDuckMode => tracing::warn!("nats server is shutting down (lame duck mode)"),
        Event::SlowConsumer(subscription) => tracing::warn!(subscription, "nats subscription overflowed"),
        Event::ServerError(error) => tracing::warn!(%error, "nats server reports an error"),
        Event::ClientError(error) => tracing::warn!(%error, "nats client reports an error"),
        Event::Draining | Event::Closed => tracing::debug!(%event, "nats connection ends"),
    }
}
