//! The event streams that are open.

use std::sync::Arc;

use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio_util::sync::CancellationToken;

use super::error::{Code, Problem};

/// Streams at a time: each may hold some hundred KiB of events that its client has not taken yet.
const STREAMS_MAX: usize = 256;

/// The open streams.
#[derive(Debug)]
pub struct EventStreams {
    places: Arc<Semaphore>,
    closing: CancellationToken,
}

impl EventStreams {
    /// None yet. `closing` ends them.
    pub fn new(closing: CancellationToken) -> Self {
        Self { places: Arc::new(Semaphore::new(STREAMS_MAX)), closing }
    }

    /// Cancelled when they must end.
    pub fn closing(&self) -> &CancellationToken {
        &self.closing
    }

    pub(super) fn place(&self) -> Result<OwnedSemaphorePermit, Problem> {
        let full = |_| Problem::new(Code::Overloaded, format!("{STREAMS_MAX} streams are open; connect again later"));
        Arc::clone(&self.places).try_acquire_owned().map_err(full)
    }
}
