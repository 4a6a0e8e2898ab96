//! A nats-server that syncs every write, as `weft up` runs it, in a separate process.

use std::path::{Path, PathBuf};

use anyhow::Context as _;
use tokio_util::sync::CancellationToken;
use weft_catalog::{Catalog, MasterKey};
use weft_nats::{
    connect::Connection,
    options::{LogOptions, NatsOptions, SecretRef},
    server::{self, Server, ServerOptions},
    streams::{self, LogSpec},
};

use crate::{apply::apply, config::Config, data::MASTER_KEY_VARIABLE};

/// Bodies of the default size.
const BODY_BYTES_MAX: u64 = 1024 * 1024;

/// A running server. It dies with us.
#[derive(Debug)]
pub struct Nats {
    server: Server,
    spec: LogSpec,
    folder: PathBuf,
    /// The master key, passed to roles on this server, which have separate folders.
    master_key: String,
}

impl Nats {
    /// Starts it below `folder`; `program` is the `weft` binary.
    ///
    /// # Errors
    ///
    /// When there is none, or it does not serve.
    pub async fn start(program: &Path, folder: &Path, stop: CancellationToken) -> anyhow::Result<Self> {
        Self::start_for(LogOptions::default(), program, folder, stop).await
    }

    /// As [`start`](Self::start), for another log than the default one.
    ///
    /// # Errors
    ///
    /// As [`start`](Self::start).
    pub async fn start_for(
        log: LogOptions,
        program: &Path,
        folder: &Path,
        stop: CancellationToken,
    ) -> anyhow::Result<Self> {
        let folder = folder.join("nats");
        let spec = LogSpec { log, body_bytes_max: BODY_BYTES_MAX, ..LogSpec::default() };
        let options = ServerOptions {
            program: server::find_program()?,
            folder: folder.clone(),
            log: spec.log.clone(),
            max_payload: spec.message_bytes_max(),
            port: 0,
            publish: Vec::new(),
            launcher: vec![program.into(), "launch".into()],
        };
        let server = Server::start(options, stop).await?;
        Ok(Self { server, spec, folder, master_key: MasterKey::generate() })
    }

    /// The log on it.
    pub fn spec(&self) -> &LogSpec {
        &self.spec
    }

    /// A connection of a role's user.
    ///
    /// # Errors
    ///
    /// When it does not come about.
    pub async fn connection(&self, role: &str, name: &str) -> anyhow::Result<Connection> {
        let connection = Connection::connect(self.user(role), name).await?;
        connection.connected().await;
        Ok(connection)
    }

    /// The catalog of the roles on this server, through a connection of the admin's user.
    ///
    /// # Errors
    ///
    /// When the connection does not come about.
    pub async fn catalog(&self, name: &str) -> anyhow::Result<Catalog> {
        Ok(Catalog::new(self.connection("admin", name).await?, self.master_key()?))
    }

    /// Makes the streams, where they are not there, and puts the sources and subscriptions of a configuration into the
    /// catalog.
    ///
    /// # Errors
    ///
    /// When it is none, or the server does not take it.
    pub async fn configure(&self, text: &str) -> anyhow::Result<()> {
        let config = Config::parse(Path::new("mesh"), text.to_owned(), [], None)?;
        let catalog = self.catalog("weft-configure").await?;
        let layout = streams::ensure(catalog.connection(), &self.spec).await?;
        apply(&catalog, layout, &config.catalog, "configure").await?;
        Ok(())
    }

    /// The master key of the roles on this server.
    ///
    /// # Errors
    ///
    /// None that is to be expected: it has been made here.
    pub fn master_key(&self) -> anyhow::Result<MasterKey> {
        MasterKey::parse(&self.master_key).map_err(anyhow::Error::msg)
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

    /// Variables that make a role a client of this server and its log.
    ///
    /// # Errors
    ///
    /// When a password cannot be read.
    pub fn environment(&self, role: &str) -> anyhow::Result<Vec<(String, String)>> {
        let options = self.user(role);
        let password = options.password.as_ref().map(SecretRef::resolve).transpose().map_err(anyhow::Error::msg)?;
        let variables = [
            (MASTER_KEY_VARIABLE, Some(self.master_key.clone())),
            ("WEFT_LOG__SHARDS", Some(self.spec.log.shards.to_string())),
            ("WEFT_NATS__URL", options.url.clone()),
            ("WEFT_NATS__USER", options.user.clone()),
            ("WEFT_NATS__PASSWORD", password.map(|password| password.expose().to_owned())),
            ("WEFT_NATS__INBOX_PREFIX", options.inbox_prefix.clone()),
            ("WEFT_NATS__API_PREFIX", options.api_prefix.clone()),
        ];
        Ok(variables.into_iter().filter_map(|(name, value)| Some((name.to_owned(), value?))).collect())
    }

    /// Waits for its end, after it was stopped.
    pub async fn stopped(self) {
        self.server.stopped().await;
    }

    fn user(&self, role: &str) -> &NatsOptions {
        let users = self.server.users();
        match role {
            "gateway" => &users.gateway,
            "worker" => &users.worker,
            _ => &users.admin,
        }
    }
}
