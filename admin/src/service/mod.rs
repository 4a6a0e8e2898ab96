//! The admin as a component: bind, run, drain.

use std::{net::SocketAddr, path::PathBuf};

use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use weft_nats::{connect::Connection, streams::LogSpec};

use crate::options::AdminOptions;

/// An admin whose port is bound and that serves nothing yet.
#[derive(Debug)]
pub struct Admin {
    options: AdminOptions,
    token: weft_nats::options::Secret,
}

/// What ends an admin.
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

impl Admin {
    /// Binds the port, before any serious work.
    ///
    /// # Errors
    ///
    /// What the system says, such as that the port is taken.
    pub async fn bind(options: AdminOptions, token: weft_nats::options::Secret) -> std::io::Result<Self> {
        Ok(Self { options, token })
    }

    /// Where it listens.
    pub fn local_addr(&self) -> SocketAddr {
        self.options.listen
    }

    /// Serves until `drain`: then stops to accept, finishes what is in flight, and returns. `missing` says what it still
    /// waits for, `None` while it is ready. `folder` holds its redb files.
    ///
    /// # Errors
    ///
    /// [`RunError`]: what does not pass. An absent server passes: it stays up, answers UNAVAILABLE and tells `missing`.
    pub async fn run(
        self,
        connection: Connection,
        spec: LogSpec,
        folder: PathBuf,
        missing: watch::Sender<Option<String>>,
        drain: CancellationToken,
    ) -> Result<(), RunError> {
        let _ = (connection, spec, folder, missing, drain);
        todo!()
    }
}
