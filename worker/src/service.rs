//! The worker as a component: run, drain.

use std::path::PathBuf;

use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use weft_nats::{connect::Connection, streams::LogSpec};

use crate::options::WorkerOptions;

/// A worker that does nothing yet.
#[derive(Debug)]
pub struct Worker {
    options: WorkerOptions,
}

/// What ends a worker.
#[derive(Debug, thiserror::Error)]
pub enum RunError {
    /// The log is another than the configuration says.
    #[error("{0}")]
    Log(#[from] weft_nats::streams::EnsureError),
    /// The folder cannot be used.
    #[error("{path}: {source}")]
    Folder {
        /// Which.
        path: PathBuf,
        /// What the system or redb said.
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
}

impl Worker {
    /// A worker with these options.
    pub fn new(options: WorkerOptions) -> Self {
        Self { options }
    }

    /// Owns shards and delivers until `drain`: then starts no attempt, finishes what is in flight, commits, gives up its
    /// leases, and returns. `missing` says what it still
    /// waits for, `None` while it is ready. `folder` holds its redb files.
    ///
    /// # Errors
    ///
    /// [`RunError`]: what does not pass. An absent server passes: it stays up and tells `missing`.
    pub async fn run(
        self,
        connection: Connection,
        spec: LogSpec,
        folder: PathBuf,
        missing: watch::Sender<Option<String>>,
        drain: CancellationToken,
    ) -> Result<(), RunError> {
        let _ = (self.options, connection, spec, folder, missing, drain);
        todo!()
    }
}
