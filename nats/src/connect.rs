//! A connection to NATS, whose state can be asked.
//!
//! The client queues while it is disconnected and sends what it queued after it has reconnected, so callers ask
//! [`Connection::is_connected`] before they begin something that must not linger.

use async_nats::{Client, jetstream};

use crate::options::NatsOptions;

/// One connection: the client and its JetStream context. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Connection {
    client: Client,
    jetstream: jetstream::Context,
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
        let _ = (options, name);
        todo!()
    }

    /// Whether the server is there at this moment.
    pub fn is_connected(&self) -> bool {
        todo!()
    }

    /// Waits until the server is there.
    pub async fn connected(&self) {
        todo!()
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
        todo!()
    }
}
