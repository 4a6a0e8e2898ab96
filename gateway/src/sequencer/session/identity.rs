//! Whether the log is still the one that the session has read.
//!
//! While this process stood still or was cut off, the log may have been rolled back and have grown again. Receipts of events
//! that it no longer holds must not be given then, nor may anything be numbered after them. So whatever could hide such a
//! change, a lost connection, a lost consumer, a pause of this process, puts the log's identity in doubt, and nothing is
//! decided or answered until a position in the log has been compared. The same where the log has not answered for a
//! moment: a connection that was cut without a word looks like a quiet one.
//!
//! An answer counts from the moment at which it was asked for. When it arrives says nothing: it may have waited in a socket
//! while the network was cut, or here while this process did not run. So messages that a reader brings do not count at all.

use std::time::Duration;

use tokio::time::Instant;

use super::{Session, changed};
use crate::sequencer::append_notice::NOTICE_AGE_MAX;

/// How often a session looks whether its process stood still.
pub(super) const LOOK_EVERY: Duration = Duration::from_millis(500);
/// A process that did not run for so long may have been paused; a busy machine rarely keeps one waiting for so long, and
/// then the comparison costs a millisecond.
const PAUSE_MAX: Duration = Duration::from_millis(1_500);

/// A decision needs an answer of the log that was asked for so short a time ago, by an append or a comparison: shorter than
/// a server takes to be killed, restored and started, which was seen to take 80 ms on a small store. Senders in a row pay
/// nothing for that, and one single_appends_left a question.
const FRESH: Duration = Duration::from_millis(50);

/// The newest answer of one kind.
#[derive(Debug)]
struct Answered {
    asked_at: Instant,
    /// What an answer usually takes. It follows what answers take by a factor of two at most, so that one that was held up
    /// does not vouch for itself.
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

    /// Whether the answer is as new as a decision needs: a log that is far away, or on a slow disk, needs longer to answer.
    fn is_fresh(&self, now: Instant) -> bool {
        now.saturating_duration_since(self.asked_at) < FRESH.max(self.usual * 2)
    }
}

/// What is known of the log's identity.
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
    /// The newest message that was read or confirmed stands where it stood. Those that were only acked or told must be
    /// read first.
    Compared,
    Verified,
}

impl Identity {
    /// Compared just now.
    pub fn verified(now: Instant) -> Self {
        Self { state: State::Verified, looked_at: now, comparison: Answered::new(now), append: Answered::new(now) }
    }

    pub fn is_verified(&self) -> bool {
        self.state == State::Verified
    }

    /// Whether the log has answered a moment ago.
    pub fn is_fresh(&self, now: Instant) -> bool {
        self.comparison.is_fresh(now) || self.append.is_fresh(now)
    }

    /// The log has taken an append that was sent at `sent_at`, or refused it since it has moved on.
    pub fn answered(&mut self, sent_at: Instant, now: Instant) {
        self.append.answer(sent_at, now);
    }

    /// The newest position has been compared, by a question that was asked after the last doubt.
    pub fn compared(&mut self, asked_at: Instant, now: Instant) {
        self.comparison.answer(asked_at, now);
        if self.state == State::Doubted {
            self.state = State::Compared;
        }
    }

    /// When the session last looked whether its process stood still.
    pub fn looked_at(&self) -> Instant {
        self.looked_at
    }

    /// Looks whether the process stood still since the last look.
    pub fn stood_still(&mut self, now: Instant) -> bool {
        let since = now.saturating_duration_since(self.looked_at);
        self.looked_at = now;
        since >= PAUSE_MAX
    }
}

impl Session<'_> {
    /// The log may be another one by now: nothing is decided before it has been compared, and what was not read before has
    /// been read.
    pub(super) fn doubt(&mut self, reason: &'static str) {
        tracing::debug!(shard = self.shard.id.0, reason, "the log's identity is in doubt");
        self.identity.state = State::Doubted;
        // What is being asked was asked before.
        self.probe = None;
        self.tracker.foreign_appends();
    }

    /// The log may be another one by now, and whatever the reader holds may be of the log before.
    pub(super) fn doubt_all(&mut self, reason: &'static str) {
        self.stop_reading();
        self.doubt(reason);
    }

    /// Whatever was asked or told over another connection says nothing about the log that this one leads to.
    pub(super) fn connection_changed(&mut self) {
        self.epoch = self.shard.connection.epoch();
        self.connection_changed = Some(changed(&self.shard.connection));
        self.notices_from = Instant::now() + NOTICE_AGE_MAX;
        self.doubt_all("the connection has changed");
    }

    /// Compares the log where its identity is in doubt, or where it has not answered for a moment and somebody waits for it.
    pub(super) fn settle_doubt(&mut self) {
        // An answer may be taken before the news that its connection is no more.
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
