//! Group commit: how long the next group of events waits for more senders before it is appended or forwarded.
//!
//! Senders submit again as soon as they have their answers, and an append costs about the same however many events it
//! holds. A group that is sent the moment the previous one has completed holds only the events that arrived meanwhile, so
//! two groups of half the size alternate. Therefore the next group waits until as many events have arrived as were answered
//! and arrived during the last append.
//!
//! Waiting pays only where senders wait for answers. They differ from independent senders by the arrival rate, which
//! rises after a completion. A wait is wasted when too few events arrive, or no faster than during the last append; it then
//! ends early, and a number of following groups do not wait, doubled with each wasted wait. Single publishes open no window.
//! Pure.

use std::time::Duration;

use tokio::time::Instant;

/// Longest wait, as a multiple of the last append's time: two alternating groups make every sender wait as long.
const WAIT_APPENDS: u32 = 2;
/// Longest wait on any disk: the time in which two busy processors answer a thousand senders and read their next events.
const WAIT_MAX: Duration = Duration::from_millis(50);
/// Minimum ratio of the arrival rate after a completion to the rate before, for senders that wait for answers.
const ARRIVAL_RATE_RATIO: f64 = 1.25;
/// The arrival rate is checked after the last append's time divided by this: most waiting senders have submitted by then.
const EARLY_CHECK_DIVISOR: u32 = 2;
/// Largest number of groups that do not wait after wasted waits, as a power of two: waiting is tried again several times a
/// second.
const SKIPS_MAX: u32 = 6;

/// The waiting rule of one queue.
#[derive(Debug)]
pub(crate) struct GroupCommit {
    /// Events of the largest group.
    group_max: usize,
    window: Option<Window>,
    /// Consecutive wasted waits.
    wasted_waits: u32,
    /// Groups that still do not wait.
    skips: u32,
}

/// The time after a completed group in which the next one may wait.
#[derive(Debug)]
struct Window {
    answered: usize,
    /// Events that arrived during the append, and its duration.
    arrived_meanwhile: usize,
    took: Duration,
    completed_at: Instant,
    early_check_at: Instant,
    until: Instant,
}

impl Window {
    /// True if waiting until `now` for a group of `waiting` out of `expected` paid.
    fn was_worth_it(&self, waiting: usize, expected: usize, now: Instant) -> bool {
        waiting >= expected.min(self.arrived_meanwhile + self.answered.div_ceil(2))
            && now <= self.rate_holds_until(waiting)
    }

    /// Time until which a group of `waiting` has grown faster than during the append, if nothing more arrives. One more than
    /// arrived during the append may have been about to.
    fn rate_holds_until(&self, waiting: usize) -> Instant {
        let came = waiting.saturating_sub(self.arrived_meanwhile);
        let before = (self.arrived_meanwhile + 1) as f64;
        self.completed_at + self.took.mul_f64(came as f64 / (ARRIVAL_RATE_RATIO * before))
    }
}

impl GroupCommit {
    /// For groups of at most `group_max` events.
    pub fn new(group_max: usize) -> Self {
        Self { group_max, window: None, wasted_waits: 0, skips: 0 }
    }

    /// A group of `answered` events has completed after `took`; `waiting` events have arrived meanwhile. If a group completed
    /// before and none was started since, the next one waits for the senders of both.
    pub fn completed(&mut self, answered: usize, waiting: usize, took: Duration, now: Instant) {
        let until = now + (took * WAIT_APPENDS).min(WAIT_MAX);
        let early_check_at = (now + took / EARLY_CHECK_DIVISOR).min(until);
        if let Some(window) = &mut self.window {
            window.answered += answered;
            (window.early_check_at, window.until) = (early_check_at, until);
            return;
        }
        if self.skips > 0 {
            self.skips -= 1;
            return;
        }
        let arrived_meanwhile = waiting;
        self.window = Some(Window { answered, arrived_meanwhile, took, completed_at: now, early_check_at, until });
    }

    /// Events after which all known senders have submitted.
    fn expected(&self, window: &Window) -> usize {
        (window.arrived_meanwhile + window.answered).min(self.group_max)
    }

    /// Closes the window: a group has failed or was a single publish. The next group does not wait.
    pub fn cancel(&mut self) {
        self.window = None;
    }

    /// Time until which a group of `waiting` waits if nothing more arrives; `None`: it does not wait.
    pub fn waits(&self, waiting: usize, now: Instant) -> Option<Instant> {
        let window = self.window.as_ref().filter(|window| waiting < self.expected(window))?;
        if now < window.early_check_at {
            return Some(window.early_check_at);
        }
        let until = window.until.min(window.rate_holds_until(waiting));
        (now < until).then_some(until)
    }

    /// A group of `waiting` events is sent.
    pub fn started(&mut self, waiting: usize, now: Instant) {
        let Some(window) = self.window.take() else { return };
        if window.was_worth_it(waiting, self.expected(&window), now) {
            // One wait that paid may be chance.
            self.wasted_waits = self.wasted_waits.saturating_sub(1);
        } else {
            self.wasted_waits = (self.wasted_waits + 1).min(SKIPS_MAX);
            self.skips = 1 << self.wasted_waits;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TOOK: Duration = Duration::from_millis(3);
    const GROUP_MAX: usize = 999;

    #[test]
    fn a_group_waits_for_all_known_senders_up_to_a_limit() {
        let now = Instant::now();
        let mut group_commit = GroupCommit::new(GROUP_MAX);
        assert_eq!(group_commit.waits(1, now), None, "no group has completed yet");
        group_commit.completed(10, 5, TOOK, now);
        let early_check_at = now + TOOK / EARLY_CHECK_DIVISOR;
        assert_eq!(group_commit.waits(14, now), Some(early_check_at));
        assert_eq!(group_commit.waits(15, now), None, "all are waiting");
        let nine_more = TOOK.mul_f64(9.0 / (ARRIVAL_RATE_RATIO * 6.0));
        assert_eq!(group_commit.waits(14, early_check_at), Some(now + nine_more), "the rate holds for so long");
        assert_eq!(group_commit.waits(7, early_check_at), None, "no faster than before");
        assert_eq!(group_commit.waits(14, now + TOOK * WAIT_APPENDS), None, "the longest wait is over");
        let completed_at = now + TOOK;
        group_commit.completed(20, 0, TOOK, completed_at);
        assert_eq!(
            group_commit.waits(34, completed_at),
            Some(completed_at + TOOK / EARLY_CHECK_DIVISOR),
            "two have completed"
        );
        assert_eq!(group_commit.waits(34, completed_at + TOOK), Some(completed_at + TOOK * WAIT_APPENDS));
        assert_eq!(group_commit.waits(35, completed_at), None);
        group_commit.cancel();
        group_commit.completed(10, 5, Duration::from_secs(1), now);
        assert_eq!(group_commit.waits(5, now), Some(now + WAIT_MAX));
        group_commit.cancel();
        group_commit.completed(3, 0, TOOK, now);
        let one_more = TOOK.mul_f64(1.0 / ARRIVAL_RATE_RATIO);
        assert_eq!(group_commit.waits(1, early_check_at), Some(now + one_more), "one arrival is no sign of more");
        assert_eq!(group_commit.waits(1, now + one_more), None);
        group_commit.cancel();
        group_commit.completed(990, 100, TOOK, now);
        assert_eq!(group_commit.waits(GROUP_MAX, now), None, "no more fit into a group");
        group_commit.cancel();
        assert_eq!(group_commit.waits(1, now), None);
    }

    /// Wait of one group with senders that do not wait for answers.
    fn wait(
        group_commit: &mut GroupCommit,
        arrivals_per_ms: f64,
        answered: usize,
        took: Duration,
        now: Instant,
    ) -> Duration {
        let waiting = |since: Duration| (arrivals_per_ms * since.as_secs_f64() * 1e3) as usize;
        group_commit.completed(answered, waiting(took), took, now);
        let mut waited = Duration::ZERO;
        while group_commit.waits(waiting(took + waited), now + waited).is_some() {
            waited += Duration::from_micros(100);
        }
        group_commit.started(waiting(took + waited), now + waited);
        waited
    }

    /// Independent senders are delayed briefly and rarely, at any rate.
    #[test]
    fn wasted_waits_are_short_and_become_rare() {
        for arrivals_per_ms in [1.0, 4.0, 12.0] {
            let now = Instant::now();
            let mut group_commit = GroupCommit::new(GROUP_MAX);
            let answered = (arrivals_per_ms * 3.0) as usize;
            let waits: Vec<_> =
                (0..650).map(|_| wait(&mut group_commit, arrivals_per_ms, answered, TOOK, now)).collect();
            let waited = waits.iter().filter(|waited| !waited.is_zero()).count();
            assert!((7..=16).contains(&waited), "{arrivals_per_ms} per ms: {waited}");
            let longest = waits.iter().max().unwrap();
            assert!(
                *longest <= TOOK / EARLY_CHECK_DIVISOR + Duration::from_millis(1),
                "{arrivals_per_ms} per ms: {longest:?}"
            );
        }
    }

    /// Two alternating groups merge, also where senders are slow to submit again: busy processors take 15 ms for 256 of them.
    #[test]
    fn senders_that_wait_for_answers_are_waited_for_each_time() {
        let (now, ms) = (Instant::now(), Duration::from_millis);
        let mut group_commit = GroupCommit::new(GROUP_MAX);
        group_commit.completed(128, 128, ms(9), now);
        group_commit.started(256, now + ms(6));
        for (took, come_after) in [(8, 8), (12, 15)].repeat(10) {
            group_commit.completed(256, 10, ms(took), now);
            assert!(group_commit.waits(255, now + ms(come_after)).is_some(), "{took} ms, {come_after} ms");
            group_commit.started(256, now + ms(come_after));
        }
    }
}
