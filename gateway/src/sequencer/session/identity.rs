//! Whether the log is still the one that the session has read.
//!
//! While this process stood still or was cut off, the log may have been rolled back and have grown again. Receipts of events
//! that it no longer holds must not be given then, nor may anything be numbered after them. So whatever could hide such a
//! change, a lost connection, a lost consumer, a pause of this process, puts the log's identity in doubt, and nothing is
//! decided or answered until a position in the log has been compared. The same where the log has not been heard for a
//! moment: a connection that was cut without a word looks like a quiet one.

use std::time::Duration;

use tokio::time::Instant;

use super::Session;

/// How often a session looks whether its process stood still.
pub(super) const LOOK_EVERY: Duration = Duration::from_millis(500);
/// A process that did not run for so long may have been paused; a busy machine rarely keeps one waiting for so long, and
/// then the comparison costs a millisecond.
const PAUSE_MAX: Duration = Duration::from_millis(1_500);

/// A decision needs a log that was heard so short a time ago, by an ack, a message or a comparison: shorter than a server
/// takes to be killed, restored and started, which was seen to take 80 ms on a small store. Senders in a row pay nothing
/// for that, and one alone a question.
const FRESH: Duration = Duration::from_millis(50);

/// What is known of the log's identity.
#[derive(Debug)]
pub(super) struct Identity {
    state: State,
    looked_at: Instant,
    heard_at: Instant,
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
        Self { state: State::Verified, looked_at: now, heard_at: now }
    }

    pub fn is_verified(&self) -> bool {
        self.state == State::Verified
    }

    /// Whether the log was heard a moment ago.
    pub fn is_fresh(&self, now: Instant) -> bool {
        now.saturating_duration_since(self.heard_at) < FRESH
    }

    /// The log has acked something, or a message of it was read.
    pub fn heard(&mut self, now: Instant) {
        self.heard_at = now;
    }

    /// The newest position has been compared, by a question that was asked after the last doubt.
    pub fn compared(&mut self, now: Instant) {
        self.heard_at = now;
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
        self.follow.others();
    }

    /// Compares the log where its identity is in doubt, or where it was not heard for a moment and somebody waits for it.
    pub(super) fn settle_doubt(&mut self) {
        if self.identity.state == State::Compared && !self.overlay.has_unread() {
            self.identity.state = State::Verified;
        }
        let waits = !self.ready.is_empty() || self.carrier.has_page() || self.refusal.is_due();
        let decides = waits && self.append.is_none() && self.gathers_until().is_none();
        if decides && self.identity.state == State::Verified && !self.identity.is_fresh(Instant::now()) {
            self.identity.state = State::Doubted;
            self.follow.others();
        }
        if self.identity.state == State::Doubted && self.probe.is_none() {
            self.probe_end();
        }
    }
}
