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

/// Age up to which the newest answer of the log is enough for a decision: shorter than the time in which a server is
/// killed, restored and started, which was 80 ms on a small store. Back-to-back appends need no extra question. A single
/// event after a pause needs one, and so does each group on a log that takes longer than this to store one.
const FRESH: Duration = Duration::from_millis(50);

/// State of the verification.
#[derive(Debug)]
pub(super) struct Identity {
    state: State,
    looked_at: Instant,
    /// Time of the newest question that the log has answered.
    asked_at: Instant,
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
    /// Verified by a question that was asked at `asked_at`.
    pub fn verified(asked_at: Instant, now: Instant) -> Self {
        Self { state: State::Verified, looked_at: now, asked_at }
    }

    pub fn is_verified(&self) -> bool {
        self.state == State::Verified
    }

    /// True if a decision for a sender who has waited since `waits_since` may rely on what is known: the log has been
    /// asked after that, however long its answer took, or a moment ago.
    pub fn covers(&self, waits_since: Instant, now: Instant) -> bool {
        waits_since <= self.asked_at || now.saturating_duration_since(self.asked_at) < FRESH
    }

    /// The log has answered an append that was sent at `sent_at`: stored or conflict.
    pub fn answered(&mut self, sent_at: Instant) {
        self.asked_at = self.asked_at.max(sent_at);
    }

    /// The newest position is unchanged, by a question that was asked at `asked_at`, after the last doubt.
    pub fn compared(&mut self, asked_at: Instant) {
        self.asked_at = self.asked_at.max(asked_at);
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

    /// True if the decisions that are due may rely on what is known. Submissions are decided in order, so the first counts.
    fn covers_all(&self, now: Instant) -> bool {
        let first = self.ready.front().map(|submission| submission.arrived_at);
        let asked = self.asks.iter().map(|(asked_at, _)| *asked_at);
        let waiting =
            first.into_iter().chain(asked).chain(self.head_refresher.page_found_at()).chain(self.refusal.due_at(now));
        waiting.into_iter().all(|waits_since| self.identity.covers(waits_since, now))
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
        self.asks.retain(|(_, ask)| !ask.is_closed());
        let decides = self.append.is_idle() && self.group_waits_until().is_none();
        if decides && self.identity.state == State::Verified && !self.covers_all(Instant::now()) {
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
        let mut identity = Identity::verified(now, now);
        identity.answered(now + MS);
        assert!(identity.covers(now + 50 * MS, now + 50 * MS), "answered a moment ago");
        assert!(!identity.covers(now + 51 * MS, now + 51 * MS));
        identity.answered(now + 100 * MS);
        assert!(!identity.covers(now + 399 * MS, now + 400 * MS), "an ack that came late");
        identity.compared(now + 401 * MS);
        assert!(!identity.covers(now + 402 * MS, now + 900 * MS), "a comparison that came late");
        identity.answered(now + 300 * MS);
        assert!(identity.covers(now + 401 * MS, now + 900 * MS), "who came before the question may be answered");
    }
}
