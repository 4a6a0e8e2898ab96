//! nats-server as a supervised child process.
//!
//! The folder holds everything: the store, the generated configuration, the users' passwords, the process id of the
//! server, and a lock that is ours for as long as we live. The lock distinguishes a server left over by a killed run,
//! which is ended before another starts on the same store, from one that another process is using, which is left alone.
//!
//! The server must not outlive us, not even when we are killed: the store has one owner. Linux can send a process a
//! signal when its parent dies, but only the process itself can ask for that, so the server is started through a
//! [`launch`]er that asks and then becomes the server. The signal comes when the *thread* that started the child ends,
//! hence one thread that lives as long as the server.

use std::{ffi::OsString, path::PathBuf, sync::Arc, time::Duration};

use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use crate::options::{LogOptions, NatsOptions};

mod accounts;
mod config;
mod folder;
mod launch;
mod log;
mod port;
mod program;
mod stale;
mod storage;
mod supervisor;
mod users;

pub use accounts::{API_PREFIX, APP_API_PREFIX, APP_USER, AppAccount, Role, config as accounts};
pub use folder::{AutoLimits, auto_limits};
pub use launch::launch;
pub use port::free_port;
pub use program::{VERSION_MIN, Version, find_program};
pub use users::{Users, new_password};

use folder::Folder;
use supervisor::{Failure, Supervisor};

/// How often a server that starts is asked whether it serves.
const READY_POLL: Duration = Duration::from_millis(20);
/// How often a slow start is reported: a store that must be indexed again takes minutes.
const READY_REPORT: Duration = Duration::from_secs(10);
/// How many ports are tried. One is free when it is chosen; if another process takes it before the server does, again
/// and again, that has another reason.
const PORTS_MAX: usize = 3;

/// How the embedded server is run.
#[derive(Debug, Clone)]
pub struct ServerOptions {
    /// The program; found by [`find_program`].
    pub program: PathBuf,
    /// Folder for configuration, credentials, process id and store.
    pub folder: PathBuf,
    /// `[log]`: fsync, and the shards that the users may see.
    pub log: LogOptions,
    /// `max_payload` in bytes.
    pub max_payload: u64,
    /// Wanted port; taken, or 0: a free one.
    pub port: u16,
    /// `[nats] publish`: subjects of the account of users' streams that workers may publish to; empty: no such account.
    pub publish: Vec<String>,
    /// The program and first arguments that run `nats-server` so that it dies with us: `[<weft>, "launch"]`. Called as
    /// `<weft> launch <nats-server> <args…>`. Empty: it is run directly, and outlives us when we are killed.
    pub launcher: Vec<OsString>,
}

/// Why the server cannot be run.
#[derive(Debug, thiserror::Error)]
pub enum ServerError {
    /// No program, or one that is too old. Says what to install.
    #[error("{0}")]
    Program(String),
    /// The folder cannot be used.
    #[error("cannot use {path}; make it usable or choose another data folder")]
    Folder {
        /// The file or folder.
        path: PathBuf,
        /// The system's error.
        #[source]
        source: std::io::Error,
    },
    /// Another process of ours runs a server on the folder.
    #[error("{path} is in use by another process; stop that one or choose another data folder")]
    InUse {
        /// The folder.
        path: PathBuf,
    },
    /// It ends before it serves.
    #[error("nats-server does not start: {0}")]
    Start(String),
}

/// A running server, restarted when it dies. Ends when it is stopped or dropped, and with our own process, also when
/// that is killed.
#[derive(Debug)]
pub struct Server {
    users: Users,
    url: String,
    supervisor: Supervisor,
}

impl Server {
    /// Starts the server and waits until it serves. Ends a stale one of the same folder first. Restarts it, with growing
    /// pauses, whenever it dies, until `cancel`.
    ///
    /// # Errors
    ///
    /// [`ServerError`].
    pub async fn start(options: ServerOptions, cancel: CancellationToken) -> Result<Self, ServerError> {
        options.log.validate().map_err(ServerError::Start)?;
        let folder = Arc::new(Folder::open(&options.folder)?);
        stale::end(&folder).await?;
        let mut port = folder::free_port(options.port)?;
        for _ in 0..PORTS_MAX {
            if port != options.port && options.port != 0 {
                tracing::warn!(wanted = options.port, port, "nats port is taken, another is used");
            }
            let url = format!("nats://127.0.0.1:{port}");
            let users = Users::load(&folder, &url, &options.publish)?;
            config::write(&folder, &options, port, &users)?;
            let mut supervisor = Supervisor::start(command(&options, &folder), folder.clone())?;
            let served = tokio::select! {
                served = serving(&users.admin, &mut supervisor) => served,
                () = cancel.cancelled() => Err(Failure::other("it was stopped before it served")),
            };
            let failure = match served {
                Ok(()) => {
                    supervisor.keep_alive(cancel);
                    return Ok(Self { users, url, supervisor });
                }
                Err(failure) => failure,
            };
            supervisor.end().await;
            if !failure.port_taken {
                return Err(ServerError::Start(failure.problem));
            }
            port = folder::free_port(0)?;
        }
        Err(ServerError::Start("every port that was free was taken before the server came to it; start again".into()))
    }

    /// `nats://127.0.0.1:<port>`, without credentials.
    pub fn url(&self) -> &str {
        &self.url
    }

    /// How each role connects.
    pub fn users(&self) -> &Users {
        &self.users
    }

    /// Why the log cannot be written at the moment, in one line: the disk is full, or the server has stopped writing and is
    /// about to be restarted. `None` while it can.
    pub fn storage(&self) -> watch::Receiver<Option<String>> {
        self.supervisor.storage()
    }

    /// Waits until the process has ended, after `cancel`.
    pub async fn stopped(mut self) {
        self.supervisor.ended().await;
    }
}

/// Waits until the server takes the admin's password, which no other server on that port would, and JetStream answers.
async fn serving(admin: &NatsOptions, supervisor: &mut Supervisor) -> Result<(), Failure> {
    let mut report = tokio::time::interval(READY_REPORT);
    report.reset();
    let mut poll = tokio::time::interval(READY_POLL);
    loop {
        tokio::select! {
            _ = poll.tick() => {
                if answers(admin).await {
                    return Ok(());
                }
            }
            _ = report.tick() => tracing::info!("nats-server is still starting"),
            failure = supervisor.failed() => return Err(failure),
        }
    }
}

/// Whether the server takes a user and its JetStream answers.
async fn answers(user: &NatsOptions) -> bool {
    let Ok(options) = crate::connect::authenticated(user) else { return false };
    let Some(url) = &user.url else { return false };
    match options.connect(url.as_str()).await {
        Ok(client) => crate::connect::jetstream(client, user).query_account().await.is_ok(),
        Err(_) => false,
    }
}

/// Command line: the launcher, the server, its arguments.
fn command(options: &ServerOptions, folder: &Folder) -> Vec<OsString> {
    let mut command = options.launcher.clone();
    command.push(options.program.clone().into());
    command.extend(config::arguments(folder));
    command
}
