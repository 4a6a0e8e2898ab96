//! When a checkpoint is due. Pure but for the clock that it is handed.

use std::time::Duration;

use tokio::time::Instant;

/// How often the whole state of a shard is written to OUTCOMES.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct CheckpointPace {
    /// After so many commits: what a take-over without a file reads at the most.
    pub commits: u64,
    /// After so long in which something was committed.
    pub busy: Duration,
    /// After so long in which nothing was: OUTCOMES must always hold a checkpoint and everything behind it.
    pub idle: Duration,
}

impl CheckpointPace {
    /// For an OUTCOMES that keeps its messages for `kept`: every 10,000 commits or 10 minutes, and in any case when the
    /// last checkpoint has come to half of its life. Zero: OUTCOMES keeps everything.
    pub fn new(kept: Duration) -> Self {
        let idle = if kept.is_zero() { Duration::MAX } else { kept / 2 };
        Self { commits: 10_000, busy: Duration::from_secs(600).min(idle), idle }
    }

    /// How long it is to the next checkpoint, `commits` commits and `age` after the last one. The first commit of an
    /// owner says nothing, so one alone counts as none.
    fn wait(&self, commits: u64, age: Duration) -> Duration {
        if commits >= self.commits {
            return Duration::ZERO;
        }
        let interval = if commits > 1 { self.busy } else { self.idle };
        interval.saturating_sub(age)
    }
}

/// What has come since a shard's last checkpoint.
#[derive(Debug)]
pub(super) struct SinceCheckpoint {
    pace: CheckpointPace,
    commits: u64,
    /// How old the last checkpoint was at `from`.
    age: Duration,
    from: Instant,
}

impl SinceCheckpoint {
    /// At `now` the last checkpoint is `commits` commits and `age` old.
    pub fn new(pace: CheckpointPace, commits: u64, age: Duration, now: Instant) -> Self {
        Self { pace, commits, age, from: now }
    }

    pub fn committed(&mut self) {
        self.commits += 1;
    }

    /// A checkpoint begins at `now`.
    pub fn begun(&mut self, now: Instant) {
        *self = Self::new(self.pace, 0, Duration::ZERO, now);
    }

    /// How long it is from `now` to the next checkpoint.
    pub fn wait(&self, now: Instant) -> Duration {
        self.pace.wait(self.commits, self.age.saturating_add(now.saturating_duration_since(self.from)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const HOUR: Duration = Duration::from_secs(3600);

    #[test]
    fn commits_time_and_the_end_of_its_life_each_make_a_checkpoint_due() {
        let pace = CheckpointPace::new(8 * 24 * HOUR);
        assert_eq!(pace.wait(10_000, Duration::ZERO), Duration::ZERO);
        assert_eq!(pace.wait(9_999, Duration::from_secs(599)), Duration::from_secs(1));
        assert_eq!(pace.wait(2, Duration::from_secs(600)), Duration::ZERO);
        assert_eq!(pace.wait(1, 95 * HOUR), HOUR, "an idle shard writes one before half of its life has passed");
        assert_eq!(pace.wait(0, 96 * HOUR), Duration::ZERO);
    }

    #[test]
    fn a_short_retention_shortens_the_pace_and_none_leaves_it() {
        assert_eq!(CheckpointPace::new(Duration::from_secs(60)).wait(5, Duration::ZERO), Duration::from_secs(30));
        assert!(CheckpointPace::new(Duration::ZERO).wait(1, 10_000 * HOUR) > HOUR);
    }

    #[tokio::test(start_paused = true)]
    async fn the_age_before_a_take_over_counts() {
        let now = Instant::now();
        let mut since = SinceCheckpoint::new(CheckpointPace::new(HOUR), 1, Duration::from_secs(1000), now);
        assert_eq!(since.wait(now), Duration::from_secs(800));
        since.committed();
        assert_eq!(since.wait(now), Duration::ZERO);
        since.begun(now);
        assert_eq!(since.wait(now + Duration::from_secs(300)), Duration::from_secs(1500));
    }
}
