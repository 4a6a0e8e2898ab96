//! A connection to NATS, whose state can be asked.
//!
//! The client queues while it is disconnected and sends what it queued after it has reconnected, so callers ask
//! [`Connection::is_connected`] before they begin something that must not linger.

use std::time::Duration;

use async_nats::{Client, ConnectOptions, Event, connection::State, jetstream};
use tokio::sync::watch;

use crate::options::NatsOptions;

/// How long a try to connect may take, TLS and authentication included.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// How often an idle server is pinged; two unanswered pings end the connection, so a dead server is noticed within
/// three of these.
const PING_INTERVAL: Duration = Duration::from_secs(3);
/// The longest pause between two tries to connect: short, since an outage lasts at least as long as the pause.
const RECONNECT_PAUSE_MAX: Duration = Duration::from_millis(500);
/// How long an API request or an ack may take.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(5);

/// One connection: the client and its JetStream context. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Connection {
    client: Client,
    jetstream: jetstream::Context,
    /// Grows with every change of the connection's state.
    changes: watch::Receiver<u64>,
}

/// Why a connection cannot even be attempted.
#[derive(Debug, thiserror::Error)]
pub enum ConnectError {
    /// The `[nats]` section does not make sense.
    #[error("[nats] {0}")]
    Options(String),
    /// The client refused to start.
    #[error("cannot connect to {url}")]
    Client {
        /// The servers.
        url: String,
        /// What the client said.
        #[source]
        source: async_nats::ConnectError,
    },
}

impl Connection {
    /// Starts a connection under `name` (seen in the server's connection list). Returns at once, also when no server
    /// answers: it keeps trying, and [`is_connected`](Self::is_connected) tells.
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
        let connect = authenticated(options)?
            .name(name)
            .retry_on_initial_connect()
            .connection_timeout(CONNECT_TIMEOUT)
            .ping_interval(PING_INTERVAL)
            .request_timeout(Some(REQUEST_TIMEOUT))
            .reconnect_delay_callback(|attempts| {
                let doubled = Duration::from_millis(10).saturating_mul(1 << attempts.min(6));
                if attempts == 0 { Duration::ZERO } else { doubled.min(RECONNECT_PAUSE_MAX) }
            })
            .event_callback(move |event| {
                sender.send_modify(|changes| *changes += 1);
                async move { report(&event) }
            });
        let client = connect
            .connect(servers.as_slice())
            .await
            .map_err(|source| ConnectError::Client { url: url.clone(), source })?;
        let jetstream = jetstream::context::ContextBuilder::new()
            .timeout(REQUEST_TIMEOUT)
            .ack_timeout(REQUEST_TIMEOUT)
            .build(client.clone());
        Ok(Self { client, jetstream, changes })
    }

    /// Whether the server is there at this moment.
    pub fn is_connected(&self) -> bool {
        self.client.connection_state() == State::Connected
    }

    /// Waits until the server is there.
    pub async fn connected(&self) {
        let mut changes = self.changes.clone();
        while !self.is_connected() {
            // The event comes a moment before or after the state changes: look again after a short while, too.
            let _ = tokio::time::timeout(Duration::from_millis(50), changes.changed()).await;
        }
    }

    /// Waits until the connection's state changes: it is lost, or there again.
    pub async fn changed(&self) {
        let mut changes = self.changes.clone();
        changes.mark_unchanged();
        if changes.changed().await.is_err() {
            std::future::pending::<()>().await;
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

    /// The server's `max_payload` in bytes, once connected.
    pub fn max_payload(&self) -> Option<usize> {
        self.client.try_server_info().map(|info| info.max_payload)
    }
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
        (None, None) => {}
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
    if let Some(ca) = &options.tls_ca {
        connect = connect.add_root_certificates(ca.clone()).require_tls(true);
    }
    Ok(connect)
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
