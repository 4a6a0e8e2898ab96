//! What is measured: a nats-server of our own, and roles as processes of their own.

use std::path::{Path, PathBuf};

use anyhow::Context as _;
use tempfile::TempDir;
use tokio_util::sync::CancellationToken;
use weft_nats::{
    connect::Connection,
    options::{LogOptions, NatsOptions, SecretRef},
    server::{self, Server, ServerOptions},
    streams::LogSpec,
};

use crate::exit::Failure;

/// Bodies of the default size.
const BODY_BYTES_MAX: u64 = 1024 * 1024;

/// A fresh folder on a chosen disk, gone at the end.
#[derive(Debug)]
pub struct Folder(TempDir);

impl Folder {
    /// Makes the folder inside `parent`.
    ///
    /// # Errors
    ///
    /// One line: `parent` cannot be used.
    pub fn new(parent: &Path) -> Result<Self, Failure> {
        let made = tempfile::Builder::new().prefix("weft-bench-").tempdir_in(parent);
        made.map(Self)
            .map_err(|error| Failure::Failed(format!("{}: {error}; choose another with --data", parent.display())))
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        self.0.path()
    }
}

/// A nats-server that syncs every write.
#[derive(Debug)]
pub struct BenchNats {
    server: Server,
    spec: LogSpec,
    folder: PathBuf,
}

impl BenchNats {
    /// Starts it below `folder`.
    ///
    /// # Errors
    ///
    /// When there is none, or it does not serve.
    pub async fn start(folder: &Path, stop: CancellationToken) -> anyhow::Result<Self> {
        let folder = folder.join("nats");
        let spec = LogSpec { log: LogOptions::default(), body_bytes_max: BODY_BYTES_MAX, ..LogSpec::default() };
        let options = ServerOptions {
            program: server::find_program()?,
            folder: folder.clone(),
            log: spec.log.clone(),
            max_payload: spec.message_bytes_max(),
            port: 0,
            launcher: vec![std::env::current_exe()?.into(), "launch".into()],
        };
        let server = Server::start(options, stop).await?;
        Ok(Self { server, spec, folder })
    }

    /// The log that the benchmarks make of it.
    pub fn spec(&self) -> &LogSpec {
        &self.spec
    }

    /// A connection of the gateway's user.
    ///
    /// # Errors
    ///
    /// When it does not come about.
    pub async fn gateway(&self, name: &str) -> anyhow::Result<Connection> {
        connect(&self.server.users().gateway, name).await
    }

    /// A connection of the admin's user.
    ///
    /// # Errors
    ///
    /// When it does not come about.
    pub async fn admin(&self, name: &str) -> anyhow::Result<Connection> {
        connect(&self.server.users().admin, name).await
    }

    /// The server's process id.
    ///
    /// # Errors
    ///
    /// When it has not written any.
    pub fn pid(&self) -> anyhow::Result<u32> {
        let path = self.folder.join("nats.pid");
        let text = std::fs::read_to_string(&path).with_context(|| path.display().to_string())?;
        text.trim().parse().with_context(|| path.display().to_string())
    }

    /// Variables that make a role a client of this server.
    ///
    /// # Errors
    ///
    /// When a password cannot be read.
    pub fn environment(&self, role: &str) -> anyhow::Result<Vec<(String, String)>> {
        let users = self.server.users();
        let options = match role {
            "gateway" => &users.gateway,
            "worker" => &users.worker,
            _ => &users.admin,
        };
        let password = options.password.as_ref().map(SecretRef::resolve).transpose().map_err(anyhow::Error::msg)?;
        let variables = [
            ("WEFT_NATS__URL", options.url.clone()),
            ("WEFT_NATS__USER", options.user.clone()),
            ("WEFT_NATS__PASSWORD", password.map(|password| password.expose().to_owned())),
            ("WEFT_NATS__INBOX_PREFIX", options.inbox_prefix.clone()),
        ];
        Ok(variables.into_iter().filter_map(|(name, value)| Some((name.to_owned(), value?))).collect())
    }

    /// Waits for its end, once it has been told.
    pub async fn stopped(self) {
        self.server.stopped().await;
    }
}

async fn connect(options: &NatsOptions, name: &str) -> anyhow::Result<Connection> {
    let connection = Connection::connect(options, name).await?;
    connection.connected().await;
    Ok(connection)
}
