//! When a checkpoint is due. Pure but for the clock that it is handed.

use std::time::Duration;

use tokio::time::Instant;

/// Bytes of commits after which a checkpoint is due: a take-over without a file reads them in a second or two.
const COMMIT_BYTES: u64 = 64 * 1024 * 1024;
/// But no sooner than when so many times the last checkpoint's own bytes have been committed: a large state is then a
/// fifth of what is written at the most.
const CHECKPOINT_BYTES_FACTOR: u64 = 4;

/// How often the whole state of a shard is written to OUTCOMES.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct CheckpointPace {
    /// After so many commits: what a take-over without a file reads at the most.
    pub commits: u64,
    /// After so many bytes of commits, or more where the state is large.
    pub bytes: u64,
    /// After so long in which something was committed.
    pub busy: Duration,
    /// After so long in which nothing was: OUTCOMES must always hold a checkpoint and everything behind it.
    pub idle: Duration,
}

impl CheckpointPace {
    /// For an OUTCOMES that keeps its messages for `kept`: every 10,000 commits, 64 MiB or 10 minutes, and always when the
    /// last checkpoint has come to half of its life. Zero: OUTCOMES keeps everything.
    pub fn new(kept: Duration) -> Self {
        let idle = if kept.is_zero() { Duration::MAX } else { kept / 2 };
        Self { commits: 10_000, bytes: COMMIT_BYTES, busy: Duration::from_secs(600).min(idle), idle }
    }

    /// How long it is to the next checkpoint, so much after the last one. The first commit of an owner says nothing, so
    /// one alone counts as none.
    fn wait(&self, since: Written, age: Duration) -> Duration {
        let bytes_max = self.bytes.max(since.checkpoint_bytes.saturating_mul(CHECKPOINT_BYTES_FACTOR));
        if since.commits >= self.commits || since.bytes >= bytes_max {
            return Duration::ZERO;
        }
        let interval = if since.commits > 1 { self.busy } else { self.idle };
        interval.saturating_sub(age)
    }
}

/// What has been written since a shard's last checkpoint began.
#[derive(Debug, Clone, Copy, Default)]
struct Written {
    commits: u64,
    /// Of the commits.
    bytes: u64,
    /// Of that checkpoint; 0 where another owner has written it.
    checkpoint_bytes: u64,
}

/// What has come since a shard's last checkpoint.
#[derive(Debug)]
pub(super) struct SinceCheckpoint {
    pace: CheckpointPace,
    written: Written,
    /// How old the last checkpoint was at `from`.
    age: Duration,
    from: Instant,
}

impl SinceCheckpoint {
    /// At `now` the last checkpoint is `commits` commits and `age` old.
    pub fn new(pace: CheckpointPace, commits: u64, age: Duration, now: Instant) -> Self {
        Self { pace, written: Written { commits, ..Written::default() }, age, from: now }
    }

    /// A commit of so many bytes.
    pub fn committed(&mut self, bytes: usize) {
        self.written.commits += 1;
        self.written.bytes += bytes as u64;
    }

    /// A piece of the checkpoint, of so many bytes.
    pub fn piece_written(&mut self, bytes: usize) {
        self.written.checkpoint_bytes += bytes as u64;
    }

    /// A checkpoint begins at `now`.
    pub fn begun(&mut self, now: Instant) {
        *self = Self::new(self.pace, 0, Duration::ZERO, now);
    }

    /// How long it is from `now` to the next checkpoint.
    pub fn wait(&self, now: Instant) -> Duration {
        self.pace.wait(self.written, self.age.saturating_add(now.saturating_duration_since(self.from)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const HOUR: Duration = Duration::from_secs(3600);

    fn commits(commits: u64) -> Written {
        Written { commits, ..Written::default() }
    }

    #[test]
    fn commits_time_and_the_end_of_its_life_each_make_a_checkpoint_due() {
        let pace = CheckpointPace::new(8 * 24 * HOUR);
        assert_eq!(pace.wait(commits(10_000), Duration::ZERO), Duration::ZERO);
        assert_eq!(pace.wait(commits(9_999), Duration::from_secs(599)), Duration::from_secs(1));
        assert_eq!(pace.wait(commits(2), Duration::from_secs(600)), Duration::ZERO);
        let idle = pace.wait(commits(1), 95 * HOUR);
        assert_eq!(idle, HOUR, "an idle shard writes one before half of its life has passed");
        assert_eq!(pace.wait(commits(0), 96 * HOUR), Duration::ZERO);
    }

    /// What a take-over reads stays bounded however large commits are, and so does what checkpoints cost.
    #[test]
    fn bytes_make_a_checkpoint_due_and_a_large_state_puts_it_off() {
        let now = Instant::now();
        let mut since = SinceCheckpoint::new(CheckpointPace::new(HOUR), 0, Duration::ZERO, now);
        let megabytes = |count: usize| count * 1024 * 1024;
        since.committed(megabytes(63));
        assert!(since.wait(now) > Duration::ZERO);
        since.committed(megabytes(1));
        assert_eq!(since.wait(now), Duration::ZERO);
        since.begun(now);
        since.piece_written(megabytes(20));
        since.committed(megabytes(79));
        assert!(since.wait(now) > Duration::ZERO);
        since.committed(megabytes(1));
        assert_eq!(since.wait(now), Duration::ZERO);
    }

    #[test]
    fn a_short_retention_shortens_the_pace_and_none_leaves_it() {
        let short = CheckpointPace::new(Duration::from_secs(60));
        assert_eq!(short.wait(commits(5), Duration::ZERO), Duration::from_secs(30));
        assert!(CheckpointPace::new(Duration::ZERO).wait(commits(1), 10_000 * HOUR) > HOUR);
    }

    #[tokio::test(start_paused = true)]
    async fn the_age_before_a_take_over_counts() {
        let now = Instant::now();
        let mut since = SinceCheckpoint::new(CheckpointPace::new(HOUR), 1, Duration::from_secs(1000), now);
        assert_eq!(since.wait(now), Duration::from_secs(800));
        since.committed(1);
        assert_eq!(since.wait(now), Duration::ZERO);
        since.begun(now);
        assert_eq!(since.wait(now + Duration::from_secs(300)), Duration::from_secs(1500));
    }
}
