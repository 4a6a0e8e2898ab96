//! The log server's clock, estimated from its answers.
//!
//! The age of what a server has stamped is taken by the server's clock: the local wall clock may be wrong by weeks, and
//! may step. Between two answers the estimate runs with the boot clock, which never steps and continues while the
//! machine sleeps.

use std::{sync::Arc, time::Duration};

use jiff::Timestamp;
use parking_lot::Mutex;
use rustix::time::{ClockId, clock_gettime};

/// The boot clock: never steps, and continues while the machine sleeps.
pub fn boot_time() -> Duration {
    let now = clock_gettime(ClockId::Boottime);
    Duration::new(u64::try_from(now.tv_sec).unwrap_or(0), u32::try_from(now.tv_nsec).unwrap_or(0))
}

/// A clock that is read once and then runs with the boot clock.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Anchored {
    at: Timestamp,
    boot: Duration,
}

impl Anchored {
    /// A clock that shows `at` when the boot clock shows `boot`.
    pub fn new(at: Timestamp, boot: Duration) -> Self {
        Self { at, boot }
    }

    /// The time when the boot clock shows `boot`.
    pub fn at(&self, boot: Duration) -> Timestamp {
        self.at.checked_add(boot.saturating_sub(self.boot)).unwrap_or(Timestamp::MAX)
    }

    /// The time now.
    pub fn now(&self) -> Timestamp {
        self.at(boot_time())
    }
}

/// The newest estimate of a server's clock. Clones share it.
#[derive(Debug, Clone, Default)]
pub struct ServerClock {
    newest: Arc<Mutex<Option<Anchored>>>,
}

impl ServerClock {
    /// A server has answered with its time to a question that was asked when the boot clock showed `asked`.
    pub(crate) fn observe(&self, time: Timestamp, asked: Duration) {
        let answered = boot_time();
        // The server read its clock somewhere between question and answer.
        let middle = asked + answered.saturating_sub(asked) / 2;
        *self.newest.lock() = Some(Anchored::new(time, middle));
    }

    /// The server's time, or, before its first answer, the local wall clock's.
    pub fn now(&self) -> Timestamp {
        self.anchored().map_or_else(Timestamp::now, |clock| clock.now())
    }

    /// The server's clock; `None` before its first answer.
    pub fn anchored(&self) -> Option<Anchored> {
        *self.newest.lock()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_estimate_runs_with_the_boot_clock() {
        let clock = ServerClock::default();
        assert_eq!(clock.anchored(), None);
        let time: Timestamp = "2026-11-21T07:00:00Z".parse().unwrap();
        clock.observe(time, boot_time());
        let anchored = clock.anchored().unwrap();
        assert_eq!(anchored.at(anchored.boot + Duration::from_secs(90)), time + Duration::from_secs(90));
        assert_eq!(anchored.at(Duration::ZERO), time, "never before what the server has said");
    }
}
