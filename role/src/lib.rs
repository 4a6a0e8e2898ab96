//! Parts that gateway, worker and admin share.
//!
//! - [`RunError`]: the errors that end them; [`wait_for_log`]: what they wait for before anything else.
//! - [`traces`]: spans of distributed traces.
//! - [`readiness`]: whether they are ready, and if not, what for.

use std::{path::PathBuf, time::Duration};

use tokio::{
    sync::watch,
    time::{Instant, sleep},
};
use tokio_util::sync::CancellationToken;
use weft_nats::{
    connect::Connection,
    streams::{self, EnsureError, LogSpec},
    subject::Layout,
};

pub mod readiness;
pub mod traces;

/// Interval of checks for a log that is not available.
const LOG_RETRY: Duration = Duration::from_millis(500);

/// Permanent error that ends a role.
#[derive(Debug, thiserror::Error)]
pub enum RunError {
    /// The log differs from the configuration.
    #[error("{0}")]
    Log(#[from] EnsureError),
    /// The data folder cannot be used. The error says where.
    #[error(transparent)]
    Folder(Box<dyn std::error::Error + Send + Sync>),
}

/// Part of a role in the streams of the log.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum WhenMissing {
    /// Creates those that are missing, as an admin does.
    Create,
    /// Waits until they exist.
    Await,
}

/// Waits for the log, and reports what is missing to `readiness`; `None`: `stop` came first. `folder` is the role's data folder.
///
/// # Errors
///
/// [`EnsureError::Mismatch`].
pub async fn wait_for_log(
    connection: &Connection,
    spec: &LogSpec,
    (streams, folder): (WhenMissing, PathBuf),
    readiness: &watch::Sender<Option<String>>,
    stop: &CancellationToken,
) -> Result<Option<Layout>, EnsureError> {
    let folders = [folder];
    let found = async {
        loop {
            if !connection.is_connected() {
                readiness.send_replace(Some("nats: not connected".into()));
                connection.connected().await;
            }
            let layout = match streams {
                WhenMissing::Create => streams::ensure_for(connection, spec, &folders).await,
                WhenMissing::Await => streams::check_for(connection, spec, &folders).await,
            };
            match layout {
                Err(EnsureError::Unavailable(reason)) => {
                    readiness.send_replace(Some(format!("streams: {reason}")));
                    sleep(LOG_RETRY).await;
                }
                known => return known,
            }
        }
    };
    stop.run_until_cancelled(found).await.transpose()
}

/// Waits until a time; for ever when there is none.
pub async fn sleep_until(time: Option<Instant>) {
    match time {
        Some(time) => tokio::time::sleep_until(time).await,
        None => std::future::pending().await,
    }
}
