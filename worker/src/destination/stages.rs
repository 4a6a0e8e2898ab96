//! Times of one attempt: when the connection was ready, and when the head of the response came.

use std::sync::{
    Arc,
    atomic::{AtomicU32, Ordering},
};

use parking_lot::Mutex;
use tokio::time::Instant;

/// Not reached.
const UNKNOWN: u32 = u32::MAX;

/// Times of one attempt, by its destination. Cheap to clone; all clones are of the same attempt.
#[derive(Debug, Clone, Default)]
pub struct Stages {
    times: Arc<Times>,
}

#[derive(Debug)]
struct Times {
    started: Mutex<Option<Instant>>,
    connected_ms: AtomicU32,
    answered_ms: AtomicU32,
}

impl Default for Times {
    fn default() -> Self {
        Self { started: Mutex::default(), connected_ms: AtomicU32::new(UNKNOWN), answered_ms: AtomicU32::new(UNKNOWN) }
    }
}

impl Stages {
    /// The attempt starts.
    pub(super) fn start(&self) {
        *self.times.started.lock() = Some(Instant::now());
    }

    /// The connection is ready, and the request is written to it. A repeated request replaces the earlier time.
    pub fn connected(&self) {
        self.times.connected_ms.store(self.elapsed_ms(), Ordering::Relaxed);
    }

    /// The head of the response has come.
    pub fn answered(&self) {
        self.times.answered_ms.store(self.elapsed_ms(), Ordering::Relaxed);
    }

    /// Milliseconds from the start to [`connected`](Self::connected).
    pub(super) fn connected_ms(&self) -> Option<u32> {
        Some(self.times.connected_ms.load(Ordering::Relaxed)).filter(|ms| *ms != UNKNOWN)
    }

    /// Milliseconds from the start to [`answered`](Self::answered).
    pub(super) fn answered_ms(&self) -> Option<u32> {
        Some(self.times.answered_ms.load(Ordering::Relaxed)).filter(|ms| *ms != UNKNOWN)
    }

    fn elapsed_ms(&self) -> u32 {
        let started = *self.times.started.lock();
        started.map_or(UNKNOWN, |started| u32::try_from(started.elapsed().as_millis()).unwrap_or(UNKNOWN))
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn times_count_from_the_start() {
        let stages = Stages::default();
        stages.connected();
        assert_eq!((stages.connected_ms(), stages.answered_ms()), (None, None), "no attempt has started");
        stages.start();
        tokio::time::advance(Duration::from_millis(12)).await;
        stages.clone().connected();
        tokio::time::advance(Duration::from_millis(30)).await;
        stages.answered();
        assert_eq!((stages.connected_ms(), stages.answered_ms()), (Some(12), Some(42)));
    }
}
