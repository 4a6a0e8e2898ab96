//! The driver's clock: milliseconds since the start of the run, and the wall clock's time of the start.

use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use crate::record::Millis;

/// The run's clock. Cheap to copy.
#[derive(Debug, Clone, Copy)]
pub struct Clock {
    start: Instant,
    wall_ms: u64,
}

impl Clock {
    /// Starts now.
    pub fn start() -> Self {
        let wall = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        Self { start: Instant::now(), wall_ms: millis(wall) }
    }

    /// Milliseconds since the start.
    pub fn now(&self) -> Millis {
        millis(self.start.elapsed())
    }

    /// The time of the run at a time of the wall clock in unix milliseconds; 0 before the start.
    pub fn at_wall(&self, unix_ms: u64) -> Millis {
        unix_ms.saturating_sub(self.wall_ms)
    }

    /// Waits until a time of the run.
    pub async fn sleep_until(&self, at: Millis) {
        tokio::time::sleep_until((self.start + Duration::from_millis(at)).into()).await;
    }
}

/// A duration in whole milliseconds.
pub fn millis(duration: Duration) -> Millis {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}
