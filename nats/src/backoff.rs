//! Pauses between attempts that fail: each is twice as long as the one before, up to a maximum.

use std::time::Duration;

/// The shortest and the longest pause.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Backoff {
    first: Duration,
    max: Duration,
}

impl Backoff {
    /// Pauses from `first` to `max`.
    pub const fn new(first: Duration, max: Duration) -> Self {
        Self { first, max }
    }

    /// The pause after this number of consecutive failures; zero after none.
    pub fn after(self, failures: u32) -> Duration {
        match failures.checked_sub(1) {
            None => Duration::ZERO,
            Some(doublings) => self.first.saturating_mul(1 << doublings.min(30)).min(self.max),
        }
    }

    /// The longest pause.
    pub const fn max(self) -> Duration {
        self.max
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_double_up_to_the_maximum() {
        let backoff = Backoff::new(Duration::from_millis(50), Duration::from_secs(1));
        let pauses = [0, 1, 2, 5, 6, u32::MAX].map(|failures| backoff.after(failures).as_millis());
        assert_eq!(pauses, [0, 50, 100, 800, 1_000, 1_000]);
    }
}
