//! Decides whether a session reads the log, or relies on acks of local appends and on append notices of other gateways.
//! Pure.
//!
//! An ack with the expected sequence proves that no other message lies in between. A gateway that appends alone
//! therefore knows the log without reading it, and reading its events back would cost the server and the gateway as
//! much as appending them. An ack does not contain the storage time; the session asks that of the newest message every
//! [`CONFIRM_AFTER`], and all earlier ones count as stored then.
//!
//! An append notice ([`AppendNotice`](super::append_notice::AppendNotice)) is applied like an ack. Notices are best
//! effort: if one is lost, the gateway sees the gap and resumes reading.
//!
//! Reading stops after [`LOCAL_MIN`] consecutive messages that were acked, or notified without a gap. It resumes with a
//! gap, a failed or lost append, a known end beyond what was acked, a lost connection, or when nothing is acked or
//! notified for [`IDLE_MAX`], since then events of other gateways would go unnoticed. The choice affects cost only:
//! each append is compared with the log.
//!
//! Invariant: a message that is neither read nor confirmed was acked or notified less than [`UNCONFIRMED_MAX`] ago, or
//! is being read. Storage times in the receipts are therefore late by at most that plus the larger of one append's
//! duration and the maximum age of a notice.

use std::{collections::VecDeque, time::Duration};

use tokio::time::Instant;
use weft_proto::ids::StreamSeq;

/// Consecutive local messages after which reading stops: ending and restarting a reader costs little compared with
/// reading these.
pub(super) const LOCAL_MIN: usize = 256;
/// Time from an ack to the question when its message was stored: a commit of the receipts holds what two of these
/// bring.
const CONFIRM_AFTER: Duration = Duration::from_millis(100);
/// Time without an answer to that question after which the log is read.
const UNCONFIRMED_MAX: Duration = Duration::from_secs(1);
/// Time without an append or a notice after which the log is read.
const IDLE_MAX: Duration = Duration::from_secs(1);

/// Source of what is known of the log.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum TrackingMode {
    Reading,
    Confirming,
}

/// The state of that decision.
#[derive(Debug)]
pub(super) struct LogTracker {
    mode: TrackingMode,
    /// Consecutive local messages after which reading stops.
    local_min: usize,
    /// Consecutive local messages.
    local: usize,
    /// Consecutive notified messages, and the sequence of the last one.
    notified: (usize, StreamSeq),
    /// Time of the last ack or notice.
    appended_at: Instant,
    /// Time of the last question for a storage time.
    asked_at: Option<Instant>,
    /// Ends of appends that were neither read nor confirmed, with the times of their acks.
    unconfirmed: VecDeque<(StreamSeq, Instant)>,
}

impl LogTracker {
    /// Reads, until `local_min` consecutive local messages were stored.
    pub fn new(local_min: usize, now: Instant) -> Self {
        Self {
            mode: TrackingMode::Reading,
            local_min,
            local: 0,
            notified: (0, StreamSeq(0)),
            appended_at: now,
            asked_at: None,
            unconfirmed: VecDeque::new(),
        }
    }

    pub fn mode(&self) -> TrackingMode {
        self.mode
    }

    /// Local messages up to `end` were stored and not read yet.
    pub fn unconfirmed_up_to(&mut self, end: StreamSeq, now: Instant) {
        self.unconfirmed.push_back((end, now));
    }

    /// An append of `messages` was stored completely.
    pub fn appended(&mut self, messages: usize, now: Instant) {
        self.local = self.local.saturating_add(messages);
        self.stop_reading_after(self.local, now);
    }

    /// A notice says what lies after `after` up to `end`. `gap`: something before that is unknown.
    pub fn notified(&mut self, after: StreamSeq, end: StreamSeq, gap: bool, now: Instant) {
        let (before, told_end) = self.notified;
        let messages = usize::try_from(end.0.saturating_sub(after.0)).unwrap_or(usize::MAX);
        self.notified = (if told_end == after { before.saturating_add(messages) } else { messages }, end);
        if gap {
            self.foreign_appends();
        } else {
            self.stop_reading_after(self.notified.0, now);
        }
    }

    /// `in_a_row` consecutive messages were known without reading.
    fn stop_reading_after(&mut self, in_a_row: usize, now: Instant) {
        self.appended_at = now;
        if in_a_row >= self.local_min && self.overdue_at().is_none_or(|at| now < at) {
            self.mode = TrackingMode::Confirming;
        }
    }

    /// The log holds, or may hold, messages of others.
    pub fn foreign_appends(&mut self) {
        self.local = 0;
        self.mode = TrackingMode::Reading;
    }

    /// The log has been asked for a storage time.
    pub fn confirmation_asked(&mut self, now: Instant) {
        self.asked_at = Some(now);
    }

    /// Everything up to `end` has been read or confirmed.
    pub fn confirmed_up_to(&mut self, end: StreamSeq) {
        while self.unconfirmed.front().is_some_and(|(seq, _)| *seq <= end) {
            self.unconfirmed.pop_front();
        }
    }

    /// Time of the next question for a storage time; `None`: nothing is unconfirmed, or it is being read.
    pub fn confirms_at(&self) -> Option<Instant> {
        let (_, acked_at) = self.unconfirmed.front().filter(|_| self.mode == TrackingMode::Confirming)?;
        Some(self.asked_at.map_or(*acked_at, |asked_at| asked_at.max(*acked_at)) + CONFIRM_AFTER)
    }

    /// Time at which reading resumes; `None`: the log is being read.
    pub fn reads_at(&self) -> Option<Instant> {
        let idle_at = self.appended_at + IDLE_MAX;
        (self.mode == TrackingMode::Confirming).then(|| self.overdue_at().map_or(idle_at, |at| at.min(idle_at)))
    }

    fn overdue_at(&self) -> Option<Instant> {
        self.unconfirmed.front().map(|(_, acked_at)| *acked_at + UNCONFIRMED_MAX)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const STEP: Duration = Duration::from_millis(10);

    fn alone(now: Instant) -> LogTracker {
        let mut follow = LogTracker::new(LOCAL_MIN, now);
        follow.unconfirmed_up_to(StreamSeq(256), now);
        follow.appended(LOCAL_MIN, now);
        assert_eq!(follow.mode(), TrackingMode::Confirming);
        follow
    }

    #[test]
    fn a_lone_writer_stops_reading_its_own_events() {
        let now = Instant::now();
        let mut follow = LogTracker::new(LOCAL_MIN, now);
        follow.appended(LOCAL_MIN - 1, now);
        assert_eq!((follow.mode(), follow.reads_at(), follow.confirms_at()), (TrackingMode::Reading, None, None));
        follow.foreign_appends();
        follow.appended(LOCAL_MIN - 1, now);
        assert_eq!(follow.mode(), TrackingMode::Reading, "a foreign message was among them");
        follow.appended(1, now);
        assert_eq!(follow.mode(), TrackingMode::Confirming);
        follow.foreign_appends();
        assert_eq!((follow.mode(), follow.reads_at(), follow.confirms_at()), (TrackingMode::Reading, None, None));
    }

    #[test]
    fn acks_are_enough_while_they_come_and_are_confirmed() {
        let now = Instant::now();
        let mut follow = alone(now);
        follow.unconfirmed_up_to(StreamSeq(261), now + STEP);
        follow.appended(5, now + STEP);
        assert_eq!(follow.confirms_at(), Some(now + CONFIRM_AFTER));
        follow.confirmed_up_to(StreamSeq(256));
        assert_eq!(follow.confirms_at(), Some(now + STEP + CONFIRM_AFTER));
        assert_eq!(follow.reads_at(), Some(now + STEP + UNCONFIRMED_MAX));
        follow.confirmed_up_to(StreamSeq(261));
        assert_eq!((follow.confirms_at(), follow.reads_at()), (None, Some(now + STEP + IDLE_MAX)));
        // Appends are acked and none is confirmed: the invariant.
        for step in 0..200 {
            let then = now + STEP * step as u32;
            follow.unconfirmed_up_to(StreamSeq(262 + step), then);
            follow.appended(1, then);
        }
        assert_eq!(follow.reads_at(), Some(now + UNCONFIRMED_MAX));
        follow.confirmation_asked(now + STEP * 20);
        assert_eq!(
            follow.confirms_at(),
            Some(now + STEP * 20 + CONFIRM_AFTER),
            "an answer that says nothing is asked for again"
        );
    }

    /// Contiguous notices stop the reader, regardless of what is read meanwhile; a gap resumes it.
    #[test]
    fn a_gateway_that_is_notified_of_every_append_stops_reading() {
        let now = Instant::now();
        let mut follow = LogTracker::new(LOCAL_MIN, now);
        let half = LOCAL_MIN as u64 / 2;
        let tell =
            |follow: &mut LogTracker, after, gap| follow.notified(StreamSeq(after), StreamSeq(after + half), gap, now);
        tell(&mut follow, 0, false);
        tell(&mut follow, half + 1, false);
        assert_eq!(follow.mode(), TrackingMode::Reading, "one between was not notified");
        follow.foreign_appends();
        tell(&mut follow, 2 * half + 1, false);
        assert_eq!((follow.mode(), follow.reads_at()), (TrackingMode::Confirming, Some(now + IDLE_MAX)));
        tell(&mut follow, 3 * half + 2, true);
        assert_eq!(follow.mode(), TrackingMode::Reading);
        tell(&mut follow, 4 * half + 2, true);
        assert_eq!(follow.mode(), TrackingMode::Reading, "what lies before it is still to be read");
        tell(&mut follow, 5 * half + 2, false);
        assert_eq!(follow.mode(), TrackingMode::Confirming);
    }

    /// A message that is overdue is read, not confirmed by a later one: its time would be late.
    #[test]
    fn a_gateway_reads_while_a_message_stays_unconfirmed() {
        let now = Instant::now();
        let mut follow = LogTracker::new(LOCAL_MIN, now);
        follow.unconfirmed_up_to(StreamSeq(1), now);
        follow.appended(LOCAL_MIN, now + UNCONFIRMED_MAX);
        assert_eq!(follow.mode(), TrackingMode::Reading);
        follow.confirmed_up_to(StreamSeq(1));
        follow.appended(1, now + UNCONFIRMED_MAX);
        assert_eq!(follow.mode(), TrackingMode::Confirming);
    }
}
