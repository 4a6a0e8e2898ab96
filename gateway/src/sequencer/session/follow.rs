//! What is learnt of the log while it is appended to: what the reader brings, where it ends, and who waits for that.

use std::mem;

use tokio::time::Instant;
use weft_index::{
    projection::{Mark, Mismatch},
    receipts::Change,
};
use weft_nats::{reader::Batch, streams::StreamState};
use weft_proto::ids::StreamSeq;

use super::{OVERLAY_MAX, Session};
use crate::sequencer::{
    SubmitError,
    flight::Flight,
    preferred::Appended,
    probe::Probed,
    shard::{Ask, Fault},
};

/// Callers that may wait for the log to be read on to some end.
const REACHING_MAX: usize = 1_000;
/// So often the log may end before what was acked before that is believed: a new leader may not have applied everything
/// yet.
const BEHIND_MAX: u32 = 10;

impl Session<'_> {
    pub(super) fn probed(&mut self, probed: Probed) -> Result<(), Fault> {
        match probed {
            Probed::End(state) => self.ends(&state)?,
            Probed::Nothing { behind, up_to } => {
                if behind == self.overlay.end() {
                    self.overlay.skip_to(up_to);
                    self.answer_reached();
                }
            }
            // The reader brings it.
            Probed::Something => self.heard_at = Instant::now(),
            Probed::Unavailable(reason) => {
                tracing::debug!(shard = self.shard.id.0, reason, "log does not answer");
                self.give_up_expired();
                self.failures = self.failures.saturating_add(1);
                self.probe_end();
            }
        }
        Ok(())
    }

    /// The log is known to end there.
    fn ends(&mut self, state: &StreamState) -> Result<(), Fault> {
        let (cursor, last) = (self.overlay.end(), state.last);
        if state.created != self.created {
            return Err(Mismatch::Created { expected: self.created, found: state.created }.into());
        }
        if last < cursor {
            self.behind += 1;
            if self.behind > BEHIND_MAX {
                return Err(Mismatch::Behind { cursor, last }.into());
            }
            self.probe_end();
            return Ok(());
        }
        self.behind = 0;
        self.target = self.target.max(last);
        Ok(())
    }

    /// Makes room for those who still wait.
    fn give_up_expired(&mut self) {
        let now = Instant::now();
        for submission in mem::take(&mut self.ready) {
            if submission.deadline <= now {
                submission.answer(Err(SubmitError::Unavailable));
            } else {
                self.ready.push_back(submission);
            }
        }
    }

    /// What stands at `seq`, which was acked as ours.
    pub(super) fn confirmed(&mut self, seq: StreamSeq, mark: Mark) -> Result<(), Fault> {
        self.unwritten.extend(self.overlay.confirm(seq, mark)?);
        self.follow.known(seq);
        Ok(())
    }

    pub(super) fn read(&mut self, batch: Batch) -> Result<(), Fault> {
        self.heard_at = Instant::now();
        for message in &batch.messages {
            let mark = Mark::of(message);
            let change = match self.overlay.read_back(message.seq, mark)? {
                Some(change) => change,
                None => {
                    // While an append is in flight it may be ours, read before its ack: the ack will tell.
                    if self.flight.is_none() {
                        self.follow.others();
                    }
                    let change = Change::of(self.shard.layout, message);
                    self.overlay.observe(&change)?;
                    change
                }
            };
            self.follow.known(message.seq);
            self.unwritten.push(change);
        }
        self.answer_reached();
        Ok(())
    }

    /// Another gateway has appended this.
    pub(super) fn told(&mut self, appended: Appended) {
        let (behind, end, now) = (appended.behind(), appended.end(), Instant::now());
        // What has no room is read when there is some.
        let gap = behind > self.overlay.end() || self.overlay.len() >= OVERLAY_MAX;
        if !gap && self.overlay.told(appended) {
            self.follow.unread(self.overlay.end(), now);
        }
        self.follow.told(behind, end, gap, now);
        self.answer_reached();
    }

    /// Forgets what the file holds, as far as no look-up may still need it.
    pub(super) fn prune(&mut self) {
        let mut floor = self.committed.borrow_and_update().cursor;
        // What is asked from now on is asked of what is there now.
        self.view.take_if(|view| view.cursor() < floor);
        let looked = self.ready.iter().map(|submission| submission.looked.cursor);
        let in_flight = self.flight.as_ref().and_then(Flight::looked_at);
        let looking = self.looking.is_some().then_some(self.looking_from);
        for needed in looked.chain(in_flight).chain(looking) {
            floor = floor.min(needed);
        }
        self.overlay.prune(floor);
        if self.overlay.len() >= OVERLAY_MAX && self.append.is_none() && self.looking.is_none() {
            // They wait for room, and what the file told them may be what takes the room: it is asked again. They came
            // before what has arrived.
            self.arrived.splice(..0, self.ready.drain(..));
        }
    }

    pub(super) fn asked(&mut self, ask: Option<Ask>) {
        match ask {
            Some(Ask::Position { id, answer }) => {
                let _ = answer.send(self.overlay.accepted(id).map(|accepted| accepted.seq));
            }
            Some(Ask::Reach { end, answer }) => {
                self.reaching.retain(|(_, waiting)| !waiting.is_closed());
                if end > self.overlay.end() {
                    self.follow.others();
                }
                if self.reaching.len() < REACHING_MAX {
                    self.reaching.push((end, answer));
                }
                self.answer_reached();
            }
            None => {}
        }
    }

    pub(super) fn answer_reached(&mut self) {
        let end = self.overlay.end();
        for (_, answer) in self.reaching.extract_if(.., |(wanted, _)| *wanted <= end) {
            let _ = answer.send(());
        }
    }

    /// Where the overlay is to arrive for all who wait.
    pub(super) fn wanted_end(&self) -> StreamSeq {
        self.reaching.iter().map(|(end, _)| *end).fold(self.target, StreamSeq::max)
    }
}
