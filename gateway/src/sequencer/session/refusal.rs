//! A log that takes no appends: noted for the readiness, and tried again while no sender comes.
//!
//! A gateway that is not ready is sent nothing by a load balancer, so it would never learn that the log takes events again.
//! The trial append is a record of heads without any head, which readers skip.

use std::time::Duration;

use tokio::time::Instant;
use weft_nats::{append::AppendErrorKind, records};

use super::{HeadRecord, Session};

/// After so long without an append that fails or succeeds, one is tried.
const TRIAL_AFTER: Duration = Duration::from_secs(2);

/// A trial that is due may have to wait for a comparison of the log: time between two looks whether it can start.
const WAKE_INTERVAL: Duration = Duration::from_millis(200);

/// State of a log that may refuse appends.
#[derive(Debug, Default)]
pub(super) struct Refusal {
    /// Time of the last append that failed for the state of the log; `None`: the last one was taken.
    failed_at: Option<Instant>,
    woken_at: Option<Instant>,
}

impl Refusal {
    /// Time at which the session must wake up for a trial; `None`: none is needed.
    pub fn wakes_at(&self) -> Option<Instant> {
        let due_at = self.failed_at? + TRIAL_AFTER;
        Some(self.woken_at.map_or(due_at, |woken_at| due_at.max(woken_at + WAKE_INTERVAL)))
    }

    /// Notes that the session has woken up for a trial.
    pub fn woken(&mut self) {
        self.woken_at = Some(Instant::now());
    }

    /// Time since which a trial has been due; `None`: none is due at `now`.
    pub fn due_at(&self, now: Instant) -> Option<Instant> {
        self.failed_at.map(|failed_at| failed_at + TRIAL_AFTER).filter(|due_at| *due_at <= now)
    }
}

impl Session<'_> {
    /// Notes that an append was taken.
    pub(super) fn accepted(&mut self) {
        if self.refusal.failed_at.take().is_some() {
            self.shard.connection.note_write(&self.shard.stream, None);
        }
    }

    /// Notes an append that failed, where that says something of the log.
    pub(super) fn refused(&mut self, kind: &AppendErrorKind) {
        match kind {
            AppendErrorKind::Full(_) | AppendErrorKind::Unavailable(_) | AppendErrorKind::Unknown(_) => {
                self.refusal.failed_at = Some(Instant::now());
                self.shard.connection.note_write(&self.shard.stream, Some(kind.to_string()));
            }
            AppendErrorKind::Conflict { .. } | AppendErrorKind::Refused(_) => {}
        }
    }

    /// The trial append; `None` while none is due, events are waiting, or the log must be compared first.
    pub(super) fn trial(&self, now: Instant) -> Option<HeadRecord> {
        let due_at = self.refusal.due_at(now).filter(|_| self.ready.is_empty())?;
        self.identity.covers(due_at, now).then(|| {
            let (id, message) = records::heads(self.shard.layout.heads_subject(self.shard.id), Vec::new());
            HeadRecord { id, heads: Vec::new(), message }
        })
    }
}
