//! A worker inside a program of one's own.

use std::{path::PathBuf, sync::Arc};

use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use weft_nats::{
    catalog::{Catalog, MasterKey},
    connect::{ConnectError, Connection},
    folder_lock::FolderLock,
    options::NatsOptions,
    streams::LogSpec,
};

use crate::{Worker, WorkerOptions, destination::Destination, service::RunError};

/// The largest body that gateways take by default.
const BODY_BYTES_MAX: u64 = 1024 * 1024;

/// What a worker needs to run by itself: see [`Worker::builder`].
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

/// Why an embedded worker does not begin, or ends.
#[derive(Debug, thiserror::Error)]
pub enum EmbeddedError {
    /// Nothing opens the catalog.
    #[error("no master key was given: the catalog is sealed with the mesh's")]
    NoKey,
    /// How the server is to be reached makes no sense. One that is not there is waited for.
    #[error(transparent)]
    Connect(#[from] ConnectError),
    /// What ended it.
    #[error(transparent)]
    Run(#[from] RunError),
}

impl Worker {
    /// A worker inside a program of one's own, with destinations that are code of that program.
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
    /// use weft_worker::{Worker, destination::{Delivery, Destination, Taken}};
    /// # use weft_nats::catalog::MasterKey;
    ///
    /// #[derive(Debug)]
    /// struct Print;
    ///
    /// #[async_trait::async_trait]
    /// impl Destination for Print {
    ///     async fn deliver(&self, deliveries: &[Delivery]) -> Taken {
    ///         for delivery in deliveries {
    ///             println!("{}", delivery.event.event.id);
    ///         }
    ///         Taken::all(deliveries.len())
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
    /// Where nats is: `nats://host:port`, several separated by commas.
    #[must_use]
    pub fn nats(mut self, url: impl Into<String>) -> Self {
        self.nats.url = Some(url.into());
        self
    }

    /// Where nats is and as whom to connect.
    #[must_use]
    pub fn nats_options(mut self, options: NatsOptions) -> Self {
        self.nats = options;
        self
    }

    /// The key that the mesh's catalog is sealed with: `WEFT_MASTER_KEY`, or `master.key` of the data folder.
    #[must_use]
    pub fn master_key(mut self, key: MasterKey) -> Self {
        self.key = Some(key);
        self
    }

    /// How the log is cut, as the mesh's other roles are told. Default: one shard, bodies of 1 MiB.
    #[must_use]
    pub fn log(mut self, spec: LogSpec) -> Self {
        self.log = spec;
        self
    }

    /// Holds the worker's id and its redb files: nothing that cannot be built again. Default: `./weft-data/worker`.
    #[must_use]
    pub fn folder(mut self, folder: impl Into<PathBuf>) -> Self {
        self.folder = folder.into();
        self
    }

    /// Concurrency, leases, and which private networks may be called.
    #[must_use]
    pub fn options(mut self, options: WorkerOptions) -> Self {
        self.options = options;
        self
    }

    /// Delivers by this code what goes to `name`.
    #[must_use]
    pub fn destination(mut self, name: impl Into<String>, destination: impl Destination + 'static) -> Self {
        self.worker = self.worker.destination(name, Arc::new(destination));
        self
    }

    /// Tells what the worker waits for; `None` while it is ready.
    pub fn missing(&self) -> watch::Receiver<Option<String>> {
        self.ready.subscribe()
    }

    /// Owns shards and delivers until `drain`: then what is in flight ends and is committed. A server that is not there
    /// is waited for.
    ///
    /// # Errors
    ///
    /// [`EmbeddedError`].
    pub async fn run(self, drain: CancellationToken) -> Result<(), EmbeddedError> {
        let key = self.key.ok_or(EmbeddedError::NoKey)?;
        let _lock = FolderLock::take(&self.folder)
            .map_err(|source| RunError::Folder { path: self.folder.clone(), source: Box::new(source) })?;
        let connection = Connection::connect(&self.nats, "worker").await?;
        let worker = self.worker.with_options(self.options);
        Ok(worker.run(Catalog::new(connection, key), self.log, self.folder, self.ready, drain).await?)
    }
}
