//! A worker embedded in another program.

use std::{path::PathBuf, sync::Arc};

use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use weft_catalog::{Catalog, MasterKey};
use weft_nats::{
    connect::{ConnectError, Connection},
    folder_lock::FolderLock,
    options::NatsOptions,
    streams::LogSpec,
};

use crate::{Worker, WorkerOptions, destination::Destination, service::RunError};

/// Default maximum body size of gateways.
const BODY_BYTES_MAX: u64 = 1024 * 1024;

/// Configuration of an embedded worker: see [`Worker::builder`].
#[derive(Debug)]
pub struct WorkerBuilder {
    nats: NatsOptions,
    log: LogSpec,
    folder: PathBuf,
    key: Option<MasterKey>,
    options: WorkerOptions,
    worker: Worker,
    ready: watch::Sender<Option<String>>,
}

/// Why an embedded worker did not start, or ended.
#[derive(Debug, thiserror::Error)]
pub enum EmbeddedError {
    /// There is no key to open the catalog.
    #[error("no master key was given: the catalog is sealed with the mesh's")]
    NoKey,
    /// The connection options are invalid. An unavailable server is waited for.
    #[error(transparent)]
    Connect(#[from] ConnectError),
    /// Why it ended.
    #[error(transparent)]
    Run(#[from] RunError),
}

impl Worker {
    /// A worker embedded in a program, with destinations that are code of that program.
    ///
    /// A subscription goes to such code by a destination of type `custom` with its name:
    ///
    /// ```toml
    /// [[subscription]]
    /// name = "printer"
    /// destination = { type = "custom", name = "print" }
    /// ```
    ///
    /// Every worker of the mesh has to know the name: one that does not cannot deliver what it owns.
    ///
    /// ```no_run
    /// use weft_worker::{Worker, destination::{Delivery, Destination, DeliveryResult}};
    /// # use weft_catalog::MasterKey;
    ///
    /// #[derive(Debug)]
    /// struct Print;
    ///
    /// #[async_trait::async_trait]
    /// impl Destination for Print {
    ///     async fn deliver(&self, deliveries: &[Delivery]) -> DeliveryResult {
    ///         for delivery in deliveries {
    ///             println!("{}", delivery.event.event.id);
    ///         }
    ///         DeliveryResult::all(deliveries.len())
    ///     }
    /// }
    ///
    /// # async fn run(key: MasterKey) -> Result<(), weft_worker::builder::EmbeddedError> {
    /// let drain = tokio_util::sync::CancellationToken::new();
    /// Worker::builder().nats("nats://127.0.0.1:4222").master_key(key).destination("print", Print).run(drain).await
    /// # }
    /// ```
    pub fn builder() -> WorkerBuilder {
        WorkerBuilder {
            nats: NatsOptions::default(),
            log: LogSpec { body_bytes_max: BODY_BYTES_MAX, ..LogSpec::default() },
            folder: PathBuf::from("./weft-data/worker"),
            key: None,
            options: WorkerOptions::default(),
            worker: Worker::new(WorkerOptions::default()),
            ready: watch::Sender::new(None),
        }
    }
}

impl WorkerBuilder {
    /// The URL of nats-server: `nats://host:port`, several separated by commas.
    #[must_use]
    pub fn nats(mut self, url: impl Into<String>) -> Self {
        self.nats.url = Some(url.into());
        self
    }

    /// The connection options of NATS.
    #[must_use]
    pub fn nats_options(mut self, options: NatsOptions) -> Self {
        self.nats = options;
        self
    }

    /// The key of the mesh's catalog: `WEFT_MASTER_KEY`, or `master.key` of the data folder.
    #[must_use]
    pub fn master_key(mut self, key: MasterKey) -> Self {
        self.key = Some(key);
        self
    }

    /// The layout of the log, as in the configuration of the mesh's other roles. Default: one shard, bodies of 1 MiB.
    #[must_use]
    pub fn log(mut self, spec: LogSpec) -> Self {
        self.log = spec;
        self
    }

    /// The folder of the worker's id and its redb files, all of which can be rebuilt. Default: `./weft-data/worker`.
    #[must_use]
    pub fn folder(mut self, folder: impl Into<PathBuf>) -> Self {
        self.folder = folder.into();
        self
    }

    /// The options of `[worker]`.
    #[must_use]
    pub fn options(mut self, options: WorkerOptions) -> Self {
        self.options = options;
        self
    }

    /// Adds the code of the custom destination `name`.
    #[must_use]
    pub fn destination(mut self, name: impl Into<String>, destination: impl Destination + 'static) -> Self {
        self.worker = self.worker.destination(name, Arc::new(destination));
        self
    }

    /// The readiness of the worker: the text of what it waits for; `None` while it is ready.
    pub fn missing(&self) -> watch::Receiver<Option<String>> {
        self.ready.subscribe()
    }

    /// Owns shards and delivers until `drain`: then attempts in flight end and are committed. An unavailable server is waited
    /// for.
    ///
    /// # Errors
    ///
    /// [`EmbeddedError`].
    pub async fn run(self, drain: CancellationToken) -> Result<(), EmbeddedError> {
        let key = self.key.ok_or(EmbeddedError::NoKey)?;
        let _lock = FolderLock::take(&self.folder)
            .map_err(|error| RunError::Folder(format!("{}: {error}", self.folder.display()).into()))?;
        let connection = Connection::connect(&self.nats, "worker").await?;
        let worker = self.worker.with_options(self.options);
        Ok(worker.run(Catalog::new(connection, key), self.log, self.folder, self.ready, drain).await?)
    }
}
