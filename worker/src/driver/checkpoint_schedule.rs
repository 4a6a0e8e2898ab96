//! Schedule of checkpoints. Pure: the time is an argument.

use std::time::Duration;

use tokio::time::Instant;

use crate::ledger::recovery::CommitVolume;

/// Bytes of commits after which a checkpoint is due: a take-over without a file reads them in about a second.
const COMMIT_BYTES: u64 = 64 * 1024 * 1024;
/// No checkpoint is due before the commits since the last one exceed this multiple of the bytes that checkpoints occupy.
/// It bounds what checkpoints add to the bytes that an owner writes (a half), and what a take-over without a file reads
/// (the state and twice its size of commits).
const CHECKPOINT_BYTES_FACTOR: u64 = 2;
/// Pause after a checkpoint that could not be written, such as on a full disk: short enough to succeed soon after the cause is
/// removed, long enough not to fill the stream with chunks that no end follows.
const RETRY_PAUSE: Duration = Duration::from_secs(60);

/// Policy for how often the state of a shard is written to CHECKPOINTS.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct CheckpointPolicy {
    /// After this many commits, which bounds what a take-over without a file reads.
    pub commits: u64,
    /// After this many bytes of commits.
    pub bytes: u64,
    /// After this time, if there were commits.
    pub busy: Duration,
    /// After this time in any case: OUTCOMES must hold every commit after the newest checkpoint.
    pub idle: Duration,
}

impl CheckpointPolicy {
    /// For an OUTCOMES that keeps its messages for `kept`: every 10,000 commits, 64 MiB or 10 minutes, and always when the
    /// commits after the last checkpoint have reached half of their retention. Zero: OUTCOMES keeps everything.
    pub fn new(kept: Duration) -> Self {
        let idle = if kept.is_zero() { Duration::MAX } else { kept / 2 };
        Self { commits: 10_000, bytes: COMMIT_BYTES, busy: Duration::from_secs(600).min(idle), idle }
    }

    /// Time until the next checkpoint, given the commits since the last one, its age, and the bytes that checkpoints
    /// occupy. The first commit of an owner changes nothing but the epoch, so a single commit counts as none.
    fn wait(&self, since: CommitVolume, occupied: u64, age: Duration) -> Duration {
        let worth = since.bytes >= occupied.saturating_mul(CHECKPOINT_BYTES_FACTOR);
        if worth && (since.count >= self.commits || since.bytes >= self.bytes) {
            return Duration::ZERO;
        }
        let interval = if worth && since.count > 1 { self.busy } else { self.idle };
        interval.saturating_sub(age)
    }
}

/// When a shard's next checkpoint is due.
#[derive(Debug)]
pub(super) struct CheckpointSchedule {
    policy: CheckpointPolicy,
    /// Commits after the position of the last complete checkpoint.
    since: CommitVolume,
    /// Commits since the running checkpoint was started.
    during: CommitVolume,
    /// Bytes in CHECKPOINTS: of the complete checkpoint, and of chunks that no end follows.
    occupied: u64,
    /// Age of the last complete checkpoint at `from`.
    age: Duration,
    from: Instant,
    started: Instant,
    /// After a failure, no checkpoint is due before this.
    not_before: Instant,
}

impl CheckpointSchedule {
    /// A schedule where at `now` the last checkpoint is `age` old, `since` was committed after it, and checkpoints occupy `occupied` bytes.
    pub fn new(policy: CheckpointPolicy, since: CommitVolume, occupied: u64, age: Duration, now: Instant) -> Self {
        let during = CommitVolume::default();
        Self { policy, since, during, occupied, age, from: now, started: now, not_before: now }
    }

    /// A commit of this many bytes was stored.
    pub fn committed(&mut self, bytes: usize) {
        for commits in [&mut self.since, &mut self.during] {
            commits.count += 1;
            commits.bytes += bytes as u64;
        }
    }

    /// A checkpoint is started.
    pub fn started(&mut self, now: Instant) {
        self.during = CommitVolume::default();
        self.started = now;
    }

    /// The running checkpoint is complete and the only one left: it has this many bytes.
    pub fn completed(&mut self, bytes: u64) {
        self.since = self.during;
        self.occupied = bytes;
        (self.age, self.from) = (Duration::ZERO, self.started);
    }

    /// The running checkpoint was given up at `now`; its chunks, of this many bytes, are still stored.
    pub fn failed(&mut self, bytes: u64, now: Instant) {
        self.occupied = self.occupied.saturating_add(bytes);
        self.not_before = now + RETRY_PAUSE;
    }

    /// Time from `now` until the next checkpoint is due.
    pub fn wait(&self, now: Instant) -> Duration {
        let age = self.age.saturating_add(now.saturating_duration_since(self.from));
        self.policy.wait(self.since, self.occupied, age).max(self.not_before.saturating_duration_since(now))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const HOUR: Duration = Duration::from_secs(3600);
    const MIB: usize = 1024 * 1024;

    fn commits(count: u64) -> CommitVolume {
        CommitVolume { count, bytes: 0 }
    }

    #[test]
    fn commits_time_and_half_of_the_retention_each_make_a_checkpoint_due() {
        let policy = CheckpointPolicy::new(8 * 24 * HOUR);
        assert_eq!(policy.wait(commits(10_000), 0, Duration::ZERO), Duration::ZERO);
        assert_eq!(policy.wait(commits(9_999), 0, Duration::from_secs(599)), Duration::from_secs(1));
        assert_eq!(policy.wait(commits(2), 0, Duration::from_secs(600)), Duration::ZERO);
        let idle = policy.wait(commits(1), 0, 95 * HOUR);
        assert_eq!(idle, HOUR, "an idle shard writes one before half of the retention has passed");
        assert_eq!(policy.wait(commits(0), 0, 96 * HOUR), Duration::ZERO);
    }

    /// A large state is not rewritten every 10,000 commits or every ten minutes.
    #[test]
    fn no_trigger_but_the_retention_is_due_before_commits_exceed_a_multiple_of_the_checkpoint() {
        let now = Instant::now();
        let policy = CheckpointPolicy::new(8 * 24 * HOUR);
        let mut schedule = CheckpointSchedule::new(policy, commits(0), 60 * MIB as u64, Duration::ZERO, now);
        for _ in 0..20_000 {
            schedule.committed(6 * 1024);
        }
        assert!(schedule.wait(now + HOUR) > Duration::ZERO, "117 MiB of commits, 20,000 of them, an hour");
        assert_eq!(schedule.wait(now + 96 * HOUR), Duration::ZERO);
        schedule.committed(3 * MIB);
        assert_eq!(schedule.wait(now), Duration::ZERO);
    }

    #[test]
    fn a_small_state_is_written_after_so_many_bytes_of_commits() {
        let now = Instant::now();
        let mut schedule = CheckpointSchedule::new(CheckpointPolicy::new(HOUR), commits(0), 1000, Duration::ZERO, now);
        schedule.committed(63 * MIB);
        assert!(schedule.wait(now) > Duration::ZERO);
        schedule.committed(MIB);
        assert_eq!(schedule.wait(now), Duration::ZERO);
        schedule.started(now);
        schedule.committed(10);
        schedule.completed(2000);
        assert_eq!(schedule.since, CommitVolume { count: 1, bytes: 10 }, "commits made meanwhile are not in it");
    }

    /// However often an owner fails in the middle of a checkpoint, the chunks that it leaves stay in proportion to what was
    /// committed.
    #[test]
    fn a_failed_checkpoint_is_retried_later_and_only_when_its_remains_are_worth_it() {
        let now = Instant::now();
        let mut schedule = CheckpointSchedule::new(CheckpointPolicy::new(HOUR), commits(0), 0, Duration::ZERO, now);
        schedule.committed(64 * MIB);
        schedule.started(now);
        schedule.failed(10 * MIB as u64, now);
        assert_eq!(schedule.wait(now), RETRY_PAUSE);
        assert_eq!(schedule.wait(now + RETRY_PAUSE), Duration::ZERO);
        schedule.started(now);
        schedule.failed(30 * MIB as u64, now);
        assert!(schedule.wait(now + RETRY_PAUSE) > Duration::ZERO);
        schedule.committed(16 * MIB);
        assert_eq!(schedule.wait(now + RETRY_PAUSE), Duration::ZERO);
    }

    #[test]
    fn a_short_retention_shortens_the_interval_and_none_leaves_it() {
        let short = CheckpointPolicy::new(Duration::from_secs(60));
        assert_eq!(short.wait(commits(5), 0, Duration::ZERO), Duration::from_secs(30));
        assert!(CheckpointPolicy::new(Duration::ZERO).wait(commits(1), 0, 10_000 * HOUR) > HOUR);
    }

    #[tokio::test(start_paused = true)]
    async fn the_age_before_a_take_over_counts() {
        let now = Instant::now();
        let age = Duration::from_secs(1000);
        let mut schedule = CheckpointSchedule::new(CheckpointPolicy::new(HOUR), commits(1), 0, age, now);
        assert_eq!(schedule.wait(now), Duration::from_secs(800));
        schedule.committed(1);
        assert_eq!(schedule.wait(now), Duration::ZERO);
        schedule.started(now);
        schedule.completed(0);
        assert_eq!(schedule.wait(now + Duration::from_secs(300)), Duration::from_secs(1500));
    }
}
