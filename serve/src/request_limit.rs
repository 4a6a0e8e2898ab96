//! Concurrent requests on one connection.
//!
//! HTTP/2 carries many requests over one connection, and each that waits for its body holds its header list. A connection
//! may have few of them until one of its requests was authenticated.

use std::sync::{
    Arc,
    atomic::{AtomicBool, Ordering},
};

use tokio::sync::{OwnedSemaphorePermit, Semaphore};

/// Maximum number of concurrent requests on one HTTP/2 connection.
pub const STREAMS_MAX: u32 = 256;
/// Concurrent requests before one was authenticated; further ones wait.
pub const STREAMS_UNKNOWN_MAX: u32 = 32;

/// The requests in flight of a connection, among the extensions of its requests. Clones share the count.
#[derive(Debug, Clone)]
pub struct RequestLimit {
    free: Arc<Semaphore>,
    trusted: Arc<AtomicBool>,
}

impl Default for RequestLimit {
    fn default() -> Self {
        Self { free: Arc::new(Semaphore::new(STREAMS_UNKNOWN_MAX as usize)), trusted: Arc::default() }
    }
}

impl RequestLimit {
    /// Waits until another request may be in flight.
    pub async fn enter(&self) -> Option<OwnedSemaphorePermit> {
        Arc::clone(&self.free).acquire_owned().await.ok()
    }

    /// A request of the connection was authenticated: from now on it may have [`STREAMS_MAX`] at a time.
    pub fn trust(&self) {
        if !self.trusted.swap(true, Ordering::Relaxed) {
            self.free.add_permits((STREAMS_MAX - STREAMS_UNKNOWN_MAX) as usize);
        }
    }
}
