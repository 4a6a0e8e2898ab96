//! Verifies that the log is still the one that the session has read.
//!
//! While this process was suspended or cut off, the log may have been rolled back and have grown again. Then receipts
//! of lost events must not be given, and no event may be numbered after them. Anything that could hide such a change (a
//! lost connection, a lost consumer, a pause of this process) therefore puts the identity in doubt, and nothing is
//! decided or answered until a position in the log has been compared. The same holds when the log has not answered
//! recently: a silently cut connection looks like an idle one.
//!
//! An answer counts from the time of its question. Its arrival proves nothing: it may have waited in a socket while the
//! network was cut, or in this process while it was suspended. For the same reason messages of a reader do not count.

use std::time::Duration;

use tokio::time::Instant;

use super::{Session, changed};
use crate::sequencer::append_notice::NOTICE_AGE_MAX;

/// Interval of the checks for a pause of this process.
pub(super) const LOOK_EVERY: Duration = Duration::from_millis(500);
/// A gap of this length between two checks counts as a pause. A busy machine rarely causes one, and then the comparison
/// costs a millisecond.
const PAUSE_MAX: Duration = Duration::from_millis(1_500);

/// Maximum age of the answer that a decision relies on, counted from its question: shorter than the time in which a
/// server is killed, restored and started, which was 80 ms on a small store. Back-to-back appends need no extra
/// question; a single event after a pause needs one.
const FRESH: Duration = Duration::from_millis(50);

/// The newest answer of one kind.
#[derive(Debug)]
struct Answered {
    asked_at: Instant,
    /// Usual duration of an answer. It changes by at most a factor of two per answer, so that one delayed answer does
    /// not extend its own validity.
    usual: Duration,
}

impl Answered {
    fn new(asked_at: Instant) -> Self {
        Self { asked_at, usual: Duration::ZERO }
    }

    fn answer(&mut self, asked_at: Instant, now: Instant) {
        let took = now.saturating_duration_since(asked_at);
        self.usual = took.clamp(self.usual * 3 / 4, FRESH.max(self.usual * 2));
        self.asked_at = asked_at;
    }

    /// True if a decision may rely on the answer. A slow log may take longer than `FRESH`.
    fn is_fresh(&self, now: Instant) -> bool {
        now.saturating_duration_since(self.asked_at) < FRESH.max(self.usual * 2)
    }
}

/// State of the verification.
#[derive(Debug)]
pub(super) struct Identity {
    state: State,
    looked_at: Instant,
    comparison: Answered,
    append: Answered,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    Doubted,
    /// The newest message that was read or confirmed is unchanged. Messages known only by an ack or a notice must be
    /// read first.
    Compared,
    Verified,
}

impl Identity {
    /// Verified at `now`.
    pub fn verified(now: Instant) -> Self {
        Self { state: State::Verified, looked_at: now, comparison: Answered::new(now), append: Answered::new(now) }
    }

    pub fn is_verified(&self) -> bool {
        self.state == State::Verified
    }

    /// True if the log has answered recently.
    pub fn is_fresh(&self, now: Instant) -> bool {
        self.comparison.is_fresh(now) || self.append.is_fresh(now)
    }

    /// The log has answered an append that was sent at `sent_at`: stored or conflict.
    pub fn answered(&mut self, sent_at: Instant, now: Instant) {
        self.append.answer(sent_at, now);
    }

    /// The newest position is unchanged, by a question that was asked at `asked_at`, after the last doubt.
    pub fn compared(&mut self, asked_at: Instant, now: Instant) {
        self.comparison.answer(asked_at, now);
        if self.state == State::Doubted {
            self.state = State::Compared;
        }
    }

    /// Time of the last check for a pause.
    pub fn looked_at(&self) -> Instant {
        self.looked_at
    }

    /// Checks for a pause of this process since the last check.
    pub fn stood_still(&mut self, now: Instant) -> bool {
        let since = now.saturating_duration_since(self.looked_at);
        self.looked_at = now;
        since >= PAUSE_MAX
    }
}

impl Session<'_> {
    /// Puts the identity in doubt: the newest position must be compared, and unconfirmed messages must be read back.
    pub(super) fn doubt(&mut self, reason: &'static str) {
        tracing::debug!(shard = self.shard.id.0, reason, "the log's identity is in doubt");
        self.identity.state = State::Doubted;
        // A question under way was asked before the doubt.
        self.probe = None;
        self.tracker.foreign_appends();
    }

    /// Like [`doubt`](Self::doubt), and discards the reader, which may hold messages of the log before.
    pub(super) fn doubt_all(&mut self, reason: &'static str) {
        self.stop_reading();
        self.doubt(reason);
    }

    /// Answers and notices of the previous connection prove nothing about the log behind this one.
    pub(super) fn connection_changed(&mut self) {
        self.epoch = self.shard.connection.epoch();
        self.connection_changed = Some(changed(&self.shard.connection));
        self.notices_from = Instant::now() + NOTICE_AGE_MAX;
        self.doubt_all("the connection has changed");
    }

    /// Starts a comparison if the identity is in doubt, or if the log has not answered recently and a decision is due.
    pub(super) fn settle_doubt(&mut self) {
        // An answer may be handled before the loss of its connection is.
        if self.epoch != self.shard.connection.epoch() {
            self.connection_changed();
        }
        if self.identity.state == State::Compared && !self.overlay.has_unconfirmed() {
            self.identity.state = State::Verified;
        }
        self.asks.retain(|ask| !ask.is_closed());
        let waits =
            !self.ready.is_empty() || !self.asks.is_empty() || self.head_refresher.has_page() || self.refusal.is_due();
        let decides = waits && self.append.is_idle() && self.group_waits_until().is_none();
        if decides && self.identity.state == State::Verified && !self.identity.is_fresh(Instant::now()) {
            self.identity.state = State::Doubted;
            self.tracker.foreign_appends();
        }
        if self.identity.state == State::Doubted && self.probe.is_none() {
            self.probe_end();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: Duration = Duration::from_millis(1);

    /// P2: an answer that was held up by a cut or by a pause of this process does not say that the log is still the same.
    #[test]
    fn an_answer_counts_from_when_it_was_asked_for() {
        let now = Instant::now();
        let mut identity = Identity::verified(now);
        identity.answered(now + MS, now + 2 * MS);
        assert!(identity.is_fresh(now + 50 * MS) && !identity.is_fresh(now + 51 * MS));
        identity.answered(now + 100 * MS, now + 400 * MS);
        assert!(!identity.is_fresh(now + 400 * MS), "an ack that came late");
        identity.compared(now + 401 * MS, now + 900 * MS);
        assert!(!identity.is_fresh(now + 900 * MS), "a comparison that came late");
        identity.compared(now + 901 * MS, now + 902 * MS);
        assert!(identity.is_fresh(now + 950 * MS));
    }

    /// A log that is far away is decided on as well, after a few questions.
    #[test]
    fn a_log_that_is_slow_is_fresh_after_a_few_answers() {
        for took in [MS, 60 * MS, 500 * MS, 1_900 * MS] {
            let mut now = Instant::now();
            let mut answered = Answered::new(now);
            let questions = (1..20).find(|_| {
                let asked_at = now;
                now += took;
                answered.answer(asked_at, now);
                answered.is_fresh(now)
            });
            assert!(questions.is_some_and(|questions| questions <= 7), "{took:?}: {questions:?}");
        }
    }
}
