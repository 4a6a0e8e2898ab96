//! nats-server as a supervised child process.

use std::path::PathBuf;

use tokio_util::sync::CancellationToken;

use crate::options::{LogOptions, NatsOptions};

mod program;

pub use program::{VERSION_MIN, Version, find_program};

/// How the embedded server is run.
#[derive(Debug, Clone)]
pub struct ServerOptions {
    /// The program; found by [`find_program`].
    pub program: PathBuf,
    /// Folder for configuration, credentials, process id and store.
    pub folder: PathBuf,
    /// `[log]`: fsync.
    pub log: LogOptions,
    /// `max_payload` in bytes.
    pub max_payload: u64,
    /// Wanted port; taken: a free one.
    pub port: u16,
    /// The program and first arguments that run `nats-server` so that it dies with us: `[<weft>, "launch"]`. Called as
    /// `<weft> launch <nats-server> <args…>`.
    pub launcher: Vec<std::ffi::OsString>,
}

/// Why the server cannot be run.
#[derive(Debug, thiserror::Error)]
pub enum ServerError {
    /// No program, or one that is too old. Says what to install.
    #[error("{0}")]
    Program(String),
    /// The folder cannot be used.
    #[error("{path}: {source}")]
    Folder {
        /// What of it.
        path: PathBuf,
        /// What the system said.
        #[source]
        source: std::io::Error,
    },
    /// It ends before it serves.
    #[error("nats-server does not start: {0}")]
    Start(String),
}

/// The users of the embedded server. Passwords are made at first start and kept in the folder, 0600.
#[derive(Debug, Clone)]
pub struct Users {
    /// For gateways.
    pub gateway: NatsOptions,
    /// For workers.
    pub worker: NatsOptions,
    /// For admins, and for making streams.
    pub admin: NatsOptions,
    /// Read-only, for subscribers.
    pub tail: NatsOptions,
}

/// A running server, restarted when it dies. Ends when it is stopped, and with our own process, also when that is killed.
#[derive(Debug)]
pub struct Server {
    users: Users,
    url: String,
}

impl Server {
    /// Starts the server and waits until it serves. Ends a stale one of the same folder first. Restarts it, with growing
    /// pauses, whenever it dies, until `cancel`.
    ///
    /// # Errors
    ///
    /// [`ServerError`].
    pub async fn start(options: ServerOptions, cancel: CancellationToken) -> Result<Self, ServerError> {
        let _ = (options, cancel);
        todo!()
    }

    /// `nats://127.0.0.1:<port>`, without credentials.
    pub fn url(&self) -> &str {
        &self.url
    }

    /// How each role connects.
    pub fn users(&self) -> &Users {
        &self.users
    }

    /// Waits until the process has ended, after `cancel`.
    pub async fn stopped(self) {
        todo!()
    }
}
