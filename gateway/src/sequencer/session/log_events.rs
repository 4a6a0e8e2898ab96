//! What is learnt of the log while it is appended to: what the reader brings, where it ends, and who waits for that.

use std::mem;

use tokio::time::Instant;
use weft_index::{
    projection::{Mismatch, PositionCheck},
    receipts::Change,
};
use weft_nats::{
    reader::Batch,
    streams::{LeaderView, Presence},
};
use weft_proto::ids::StreamSeq;

use super::{OVERLAY_MAX, Session};
use crate::sequencer::{
    SubmitError,
    append_notice::AppendNotice,
    in_flight::InFlightAppend,
    probe::{ProbeAnswer, TimestampAnswer},
    shard::{Ask, Fault},
};

/// Callers that may wait for the log to be read on to some end, or to answer.
const WAITING_MAX: usize = 1_000;

impl Session<'_> {
    pub(super) fn probed(&mut self, probed: ProbeAnswer) -> Result<(), Fault> {
        self.give_up_expired();
        match probed {
            ProbeAnswer::Log { check: PositionCheck::Rebuild(mismatch), .. }
                if !matches!(mismatch, Mismatch::Behind { .. }) =>
            {
                return Err(mismatch.into());
            }
            // Acks and reads since it was asked are no concern of this answer.
            ProbeAnswer::Log { reached, view, .. } if view.state.last < reached => self.ends_behind(reached, &view)?,
            ProbeAnswer::Log { asked_at, view, .. } => {
                if self.stale_end_reports.is_behind() {
                    self.stale_end_reports.reached();
                    self.shard.progress.set(self.shard.id, None);
                }
                self.identity.compared(asked_at, Instant::now());
                self.end.reports(view.state.last);
            }
            ProbeAnswer::Range { after, through, view, presence } => self.ranged(after, through, &view, presence)?,
            ProbeAnswer::Unavailable(reason) => {
                tracing::debug!(shard = self.shard.id.0, reason, "log does not answer");
                self.failures = self.failures.saturating_add(1);
                self.probe_end();
            }
        }
        Ok(())
    }

    /// Whether there is anything that the reader has not brought.
    fn ranged(
        &mut self,
        after: StreamSeq,
        through: StreamSeq,
        view: &LeaderView,
        presence: Presence,
    ) -> Result<(), Fault> {
        let (expected, found) = (self.created, view.state.created);
        if expected != found {
            return Err(Mismatch::Created { expected, found }.into());
        }
        // Asked again after a while, if it is still wanted.
        self.heard_at = Instant::now();
        if view.state.last < after {
            return self.ends_behind(after, view);
        }
        self.end.reports(view.state.last);
        if let Some(end) = self.end.concludes(self.overlay.end(), after, through, presence) {
            self.overlay.skip_to(end);
            self.answer_reached();
        }
        Ok(())
    }

    /// A leader reports that the log ends before `cursor`, up to which it was acked or read. One that lags will catch up, and
    /// nothing is decided meanwhile.
    fn ends_behind(&mut self, cursor: StreamSeq, view: &LeaderView) -> Result<(), Fault> {
        let last = view.state.last;
        if self.stale_end_reports.believes(view, Instant::now()) {
            return Err(Mismatch::Behind { cursor, last }.into());
        }
        tracing::debug!(shard = self.shard.id.0, %cursor, %last, leader = view.leader, "the log's leader lags");
        let waits_for = format!("log: its leader ends at {last}, before {cursor}");
        self.shard.progress.set(self.shard.id, Some(waits_for));
        self.failures = self.failures.saturating_add(1);
        self.probe_end();
        Ok(())
    }

    /// Makes room for those who still wait.
    pub(super) fn give_up_expired(&mut self) {
        let now = Instant::now();
        for submission in mem::take(&mut self.ready) {
            if submission.deadline <= now {
                submission.answer(Err(SubmitError::Unavailable));
            } else {
                self.ready.push_back(submission);
            }
        }
    }

    /// What stands at a sequence that was acked as ours.
    pub(super) fn confirmed(&mut self, confirmed: TimestampAnswer) -> Result<(), Fault> {
        let TimestampAnswer { message, follows } = confirmed;
        if !follows {
            self.doubt("another message stands where one was read");
            return Ok(());
        }
        let change = Change::of(self.shard.layout, &message);
        self.unwritten.extend(self.overlay.confirm(&change)?);
        self.tracker.confirmed_up_to(change.seq);
        Ok(())
    }

    pub(super) fn read(&mut self, batch: Batch) -> Result<(), Fault> {
        self.heard_at = Instant::now();
        for message in &batch.messages {
            let change = Change::of(self.shard.layout, message);
            // While an append is in flight another's may be ours, read before its ack: the ack will tell.
            if !self.overlay.read(&change)? && self.append.is_idle() {
                self.tracker.foreign_appends();
            }
            self.tracker.confirmed_up_to(message.seq);
            self.unwritten.push(change);
        }
        self.answer_reached();
        Ok(())
    }

    /// Another gateway has appended this.
    pub(super) fn notified(&mut self, notice: AppendNotice) {
        let (behind, end, now) = (notice.behind(), notice.end(), Instant::now());
        // What has no room is read when there is some; and a log that is in doubt is read, whatever is told.
        let trusted = self.identity.is_verified() && now >= self.notices_from;
        let gap = behind > self.overlay.end() || !trusted || self.overlay.len() >= OVERLAY_MAX;
        if !gap && self.overlay.apply_notice(notice) {
            self.tracker.unconfirmed_up_to(self.overlay.end(), now);
        }
        self.tracker.notified(behind, end, gap, now);
        self.answer_reached();
    }

    /// Forgets what the file holds, as far as no look-up may still need it.
    pub(super) fn prune(&mut self) {
        let mut floor = self.committed.borrow_and_update().cursor;
        // What is asked from now on is asked of what is there now.
        self.view.take_if(|view| view.cursor() < floor);
        let looked = self.ready.iter().map(|submission| submission.looked.cursor);
        let in_flight = self.append.running().and_then(InFlightAppend::looked_at);
        let looking = self.looking.is_some().then_some(self.looking_from);
        for needed in looked.chain(in_flight).chain(looking) {
            floor = floor.min(needed);
        }
        self.overlay.prune(floor);
        if self.overlay.len() >= OVERLAY_MAX && self.append.is_idle() && self.looking.is_none() {
            // They wait for room, and what the file told them may be what takes the room: it is asked again. They came
            // before what has arrived.
            self.arrived.splice(..0, self.ready.drain(..));
        }
    }

    pub(super) fn asked(&mut self, ask: Option<Ask>) {
        match ask {
            Some(ask @ (Ask::Position { .. } | Ask::Replay { .. })) if self.asks.len() < WAITING_MAX => {
                self.asks.push(ask);
            }
            Some(Ask::Reach { end, answer }) => {
                self.read_waiters.retain(|(_, waiting)| !waiting.is_closed());
                if end > self.overlay.end() {
                    self.tracker.foreign_appends();
                }
                if self.read_waiters.len() < WAITING_MAX {
                    self.read_waiters.push((end, answer));
                }
                self.answer_reached();
            }
            // Too many wait already: the caller is told to come again.
            Some(Ask::Position { .. } | Ask::Replay { .. }) | None => {}
        }
    }

    /// Answers who asks what is beyond the file. Nothing is said of a log that may be another.
    pub(super) fn answer_asks(&mut self) {
        if !self.identity.is_verified() || !self.identity.is_fresh(Instant::now()) {
            return;
        }
        for ask in self.asks.drain(..) {
            match ask {
                Ask::Replay { key, answer } => {
                    let found = self.overlay.replayed(key).map(|(id, accepted)| (id, accepted.clone()));
                    let _ = answer.send((found, self.overlay.now()));
                }
                Ask::Position { id, answer } => {
                    let _ = answer.send(self.overlay.accepted(id).map(|accepted| accepted.seq));
                }
                Ask::Reach { .. } => {}
            }
        }
    }

    pub(super) fn answer_reached(&mut self) {
        let end = self.overlay.end();
        for (_, answer) in self.read_waiters.extract_if(.., |(wanted, _)| *wanted <= end) {
            let _ = answer.send(());
        }
    }

    /// Where the overlay is to arrive for all who wait.
    pub(super) fn wanted_end(&self) -> StreamSeq {
        self.read_waiters.iter().map(|(end, _)| *end).fold(self.end.wanted(), StreamSeq::max)
    }
}
