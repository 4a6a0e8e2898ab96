//! Handles what the session learns of the log: messages, notices, answers about its end; and the questions of others.

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

/// Callers that may wait for a position to be read, and questions that may wait for a verified log.
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
            // The answer says nothing about later acks and reads.
            ProbeAnswer::Log { reached, view, .. } if view.state.last < reached => self.ends_behind(reached, &view)?,
            ProbeAnswer::Log { asked_at, view, .. } => {
                if self.stale_end_reports.is_behind() {
                    self.stale_end_reports.reached();
                    self.shard.progress.set(self.shard.id, None);
                }
                self.identity.compared(asked_at);
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

    /// Handles the answer whether messages exist that the reader has not delivered.
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
        // Asked again after `QUIET`, if still needed.
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

    /// Handles a leader that reports an end before `cursor`, up to which messages were acked or read. A lagging leader
    /// catches up; nothing is decided meanwhile.
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

    /// Answers expired submissions.
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

    /// Handles the message at a sequence that was acked to this gateway.
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
            // During an append a message read before its ack may be from this gateway; the ack shows.
            if !self.overlay.read(&change)? && self.append.is_idle() {
                self.tracker.foreign_appends();
            }
            self.tracker.confirmed_up_to(message.seq);
            self.unwritten.push(change);
        }
        self.answer_reached();
        Ok(())
    }

    /// Applies the append notice of another gateway.
    pub(super) fn notified(&mut self, notice: AppendNotice) {
        let (behind, end, now) = (notice.behind(), notice.end(), Instant::now());
        // Without room, or with the log in doubt, the messages are read later.
        let trusted = self.identity.is_verified() && now >= self.notices_from;
        let gap = behind > self.overlay.end() || !trusted || self.overlay.len() >= OVERLAY_MAX;
        if !gap && self.overlay.apply_notice(notice) {
            self.tracker.unconfirmed_up_to(self.overlay.end(), now);
        }
        self.tracker.notified(behind, end, gap, now);
        self.answer_reached();
    }

    /// Drops what the file holds and no look-up still needs.
    pub(super) fn prune(&mut self) {
        let mut floor = self.committed.borrow_and_update().cursor;
        // Later look-ups use a newer view.
        self.view.take_if(|view| view.cursor() < floor);
        let looked = self.ready.iter().map(|submission| submission.looked.cursor);
        let in_flight = self.append.running().and_then(InFlightAppend::looked_at);
        let looking = self.looking.is_some().then_some(self.looking_from);
        for needed in looked.chain(in_flight).chain(looking) {
            floor = floor.min(needed);
        }
        self.overlay.prune(floor);
        if self.overlay.len() >= OVERLAY_MAX && self.append.is_idle() && self.looking.is_none() {
            // Ready submissions may hold back the floor and so take the room: they are looked up again, before newer
            // ones.
            self.arrived.splice(..0, self.ready.drain(..));
        }
    }

    pub(super) fn asked(&mut self, ask: Option<Ask>) {
        match ask {
            Some(ask @ (Ask::Position { .. } | Ask::Replay { .. })) if self.asks.len() < WAITING_MAX => {
                self.asks.push((Instant::now(), ask));
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
            // Too many wait: the caller gets `Starting` and asks again.
            Some(Ask::Position { .. } | Ask::Replay { .. }) | None => {}
        }
    }

    /// Answers the questions about events beyond the file, once the log is verified.
    pub(super) fn answer_asks(&mut self) {
        if !self.identity.is_verified() {
            return;
        }
        let now = Instant::now();
        for (_, ask) in self.asks.extract_if(.., |(asked_at, _)| self.identity.covers(*asked_at, now)) {
            match ask {
                Ask::Replay { key, answer } => {
                    let found = self.overlay.replayed(key).map(|(id, accepted)| (id, accepted.clone()));
                    let _ = answer.send((found, self.overlay.now()));
                }
                Ask::Position { id, answer } => {
                    let _ = answer.send(self.overlay.accepted(id).cloned());
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

    /// The end up to which messages are awaited.
    pub(super) fn wanted_end(&self) -> StreamSeq {
        self.read_waiters.iter().map(|(end, _)| *end).fold(self.end.wanted(), StreamSeq::max)
    }
}
