//! How a session learns what stands in the log: from a reader, or from the acks of its local appends and from what it is notified of
//! another gateway's. Pure.
//!
//! An ack with the sequence that was expected says that nothing else stands in between. So whoever appends alone knows the
//! log without reading it, and reading back what one has just written costs the server and the gateway as much as writing
//! it. All that an ack does not say is when a message was stored; that is asked of the newest one now and then
//! (`confirm`), and what was stored before it counts as stored then.
//!
//! What another gateway appends for us it tells us ([`AppendNotice`](super::append_notice::AppendNotice)), and that is as good as an ack:
//! whoever has heard of everything up to S does not read it, either.
//!
//! The reader is given up after [`LOCAL_MIN`] messages in a row with nobody else's among them, or of which we were notified without
//! a gap. It is taken up again by whatever neither tells: a gap in what we are notified; an append that failed, whose answer got
//! lost or that somebody else was ahead of; a log that is known to reach further; a lost connection; and whenever for a while
//! no append asks the log and nobody tells anything, since then nobody hears of foreign_appends' events. Nothing depends on the choice
//! but what it costs: each append is compared as ever.
//!
//! Invariant: what is not confirmed was acked or notified less than [`UNCONFIRMED_MAX`] ago, or is read. So a time in the receipts
//! is late by that and, at the most, by an append's time or by how old may be what is notified.

use std::{collections::VecDeque, time::Duration};

use tokio::time::Instant;
use weft_proto::ids::StreamSeq;

/// So many messages of ours in a row, and the reader is given up: what its end and its beginning cost is little beside
/// reading these.
pub(super) const LOCAL_MIN: usize = 256;
/// So long after an ack the log is asked when its message was stored: a commit of the receipts holds what two of these
/// bring.
const CONFIRM_AFTER: Duration = Duration::from_millis(100);
/// Who has no answer to that for so long reads instead.
const UNCONFIRMED_MAX: Duration = Duration::from_secs(1);
/// Without an append for so long, foreign_appends' events are read as they come.
const IDLE_MAX: Duration = Duration::from_secs(1);

/// Where news of the log come from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum TrackingMode {
    Reading,
    Confirming,
}

/// What the session decides by.
#[derive(Debug)]
pub(super) struct LogTracker {
    mode: TrackingMode,
    /// With so many messages of ours in a row the reader is given up.
    local_min: usize,
    /// Messages of ours in a row, with nobody else's among them.
    local: usize,
    /// Messages in a row that we were notified of, and where the last of them stands.
    notified: (usize, StreamSeq),
    /// When something was last acked or notified.
    appended_at: Instant,
    /// When the log was last asked.
    asked_at: Option<Instant>,
    /// Where appends ended that have been neither read nor confirmed, and when they were acked.
    unconfirmed: VecDeque<(StreamSeq, Instant)>,
}

impl LogTracker {
    /// By a reader, until `local_min` messages of ours have come in a row.
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

    /// Messages of ours up to `end` were stored, and have not been read yet.
    pub fn unconfirmed_up_to(&mut self, end: StreamSeq, now: Instant) {
        self.unconfirmed.push_back((end, now));
    }

    /// An append of `messages` was stored as a whole.
    pub fn appended(&mut self, messages: usize, now: Instant) {
        self.local = self.local.saturating_add(messages);
        self.stop_reading_after(self.local, now);
    }

    /// Another gateway has notified what stands after `after` up to `end`. `gap`: not everything before that is known.
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

    /// So many messages in a row were known without the reader.
    fn stop_reading_after(&mut self, in_a_row: usize, now: Instant) {
        self.appended_at = now;
        if in_a_row >= self.local_min && self.overdue_at().is_none_or(|at| now < at) {
            self.mode = TrackingMode::Confirming;
        }
    }

    /// There is something in the log, or may be, that no ack of ours has notified.
    pub fn foreign_appends(&mut self) {
        self.local = 0;
        self.mode = TrackingMode::Reading;
    }

    /// The log is asked about the newest message of ours.
    pub fn confirmation_asked(&mut self, now: Instant) {
        self.asked_at = Some(now);
    }

    /// Everything up to `end` has been read or confirmed.
    pub fn confirmed_up_to(&mut self, end: StreamSeq) {
        while self.unconfirmed.front().is_some_and(|(seq, _)| *seq <= end) {
            self.unconfirmed.pop_front();
        }
    }

    /// When the log is to be asked about the newest message of ours, if it is not being asked; `None`: there is none, or the
    /// reader brings it.
    pub fn confirms_at(&self) -> Option<Instant> {
        let (_, acked_at) = self.unconfirmed.front().filter(|_| self.mode == TrackingMode::Confirming)?;
        Some(self.asked_at.map_or(*acked_at, |asked_at| asked_at.max(*acked_at)) + CONFIRM_AFTER)
    }

    /// When acks are no more enough; `None`: they are not what is followed.
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
    fn who_is_alone_for_a_while_reads_no_more() {
        let now = Instant::now();
        let mut follow = LogTracker::new(LOCAL_MIN, now);
        follow.appended(LOCAL_MIN - 1, now);
        assert_eq!((follow.mode(), follow.reads_at(), follow.confirms_at()), (TrackingMode::Reading, None, None));
        follow.foreign_appends();
        follow.appended(LOCAL_MIN - 1, now);
        assert_eq!(follow.mode(), TrackingMode::Reading, "somebody else's was among them");
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
        // Nothing is confirmed, though appends land: the invariant.
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

    /// What is notified counts where it is notified in a row, whoever was read meanwhile; and a gap is read.
    #[test]
    fn who_is_told_everything_reads_no_more() {
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

    /// What the reader owes for long is not confirmed by a later message: its time would be late by that.
    #[test]
    fn who_has_much_to_read_reads_it() {
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
