//! The rate limit of one subscription: a token bucket, as the generic cell rate algorithm (GCRA), whose only state is a time.
//!
//! In any time T at most `(T + BURST) / min_interval + 1` attempts start.

use std::time::Duration;

use jiff::Timestamp;

/// Size of a burst: the attempts of a tenth of a second, or one. A larger one would defeat the rate; a smaller one needs a
/// wake-up for each attempt.
const BURST: Duration = Duration::from_millis(100);

/// A token bucket.
#[derive(Debug)]
pub(super) struct TokenBucket {
    min_interval: Duration,
    /// When the next attempt is due at an even rate: the theoretical arrival time.
    due: Timestamp,
}

impl TokenBucket {
    /// One attempt each `min_interval`.
    pub fn new(min_interval: Duration) -> Self {
        Self { min_interval, due: Timestamp::MIN }
    }

    /// Average time between two attempts at the highest rate.
    pub fn min_interval(&self) -> Duration {
        self.min_interval
    }

    /// When the next attempt may start; `None`: at once.
    pub fn wait(&mut self, now: Timestamp) -> Option<Timestamp> {
        let ahead = BURST.saturating_sub(self.min_interval);
        // A clock that was set back must not delay it.
        self.due = self.due.min(add(now, ahead.saturating_add(self.min_interval)));
        let from = self.due.checked_sub(ahead).unwrap_or(Timestamp::MIN);
        (from > now).then_some(from)
    }

    /// An attempt starts.
    pub fn take(&mut self, now: Timestamp) {
        self.due = add(self.due.max(now), self.min_interval);
    }
}

fn add(at: Timestamp, wait: Duration) -> Timestamp {
    at.checked_add(wait).unwrap_or(Timestamp::MAX)
}

#[cfg(test)]
mod tests {
    use proptest::{prelude::*, test_runner::TestCaseResult};

    use super::*;
    use crate::lane::tests::mutants::is_noticed;

    fn at(us: u64) -> Timestamp {
        add(Timestamp::UNIX_EPOCH, Duration::from_micros(us))
    }

    #[test]
    fn a_clock_that_is_set_back_does_not_stop_it() {
        let mut bucket = TokenBucket::new(Duration::from_secs(1));
        bucket.take(at(3_600_000_000));
        assert!(bucket.wait(at(0)).is_some_and(|from| from <= at(1_000_000)));
    }

    /// The rate is exceeded in no interval, and a caller that waits as required uses all of it.
    fn is_kept_and_used(gap_us: u64, waits: Vec<u64>, unlimited: bool) -> TestCaseResult {
        let mut bucket = TokenBucket::new(Duration::from_micros(gap_us));
        let (mut now, mut starts) = (0, Vec::new());
        for wait in waits {
            now += wait;
            while (unlimited || bucket.wait(at(now)).is_none()) && starts.len() < 2000 {
                bucket.take(at(now));
                starts.push(now);
            }
        }
        for (index, first) in starts.iter().enumerate() {
            for (count, last) in starts[index..].iter().enumerate() {
                let most = (last - first + 100_000.max(gap_us)) / gap_us + 1;
                prop_assert!(count as u64 <= most, "{count} attempts within {} us", last - first);
            }
        }
        let mut alone = TokenBucket::new(Duration::from_micros(gap_us));
        let mut now = at(0);
        for _ in 0..100 {
            now = alone.wait(now).unwrap_or(now);
            alone.take(now);
        }
        prop_assert!(now <= at(99 * gap_us), "a caller that waits as required gets the whole rate");
        Ok(())
    }

    fn histories() -> impl Strategy<Value = (u64, Vec<u64>)> {
        (1u64..2_000_000, proptest::collection::vec(0u64..500_000, 1..200))
    }

    proptest! {
        #[test]
        fn the_rate_is_kept_and_used((gap_us, waits) in histories()) {
            is_kept_and_used(gap_us, waits, false)?;
        }
    }

    /// The property notices a bucket that limits nothing.
    #[test]
    fn an_unlimited_rate_is_noticed() {
        assert!(is_noticed(&histories(), |(gap_us, waits)| is_kept_and_used(gap_us, waits, true)));
    }
}
