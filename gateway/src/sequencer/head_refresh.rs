//! Heads carried forward: before the newest event of an idle workflow leaves the log, a record of it is appended, so that
//! heads stay a function of the log.
//!
//! Due is a head whose newest statement in the log is older than half the retention. It is looked for many times a
//! retention, so there are several chances before it is too late, and any gateway may take them: whoever appends first is
//! read by the others, for whom the head then is no longer due.

use std::time::Duration;

use jiff::Timestamp;
use tokio::{task::JoinHandle, time::Instant};
use weft_index::{
    projection::StorageError,
    receipts::{DueHeads, Head, Horizons, Receipts},
};
use weft_nats::records::{self, MESSAGE_HEADS_MAX};
use weft_proto::{
    ids::{StreamSeq, WorkflowId},
    v1,
};

use super::{in_flight::HeadRecord, overlay::Overlay};

/// Looks in one retention.
const LOOKS: u32 = 16;
/// The shortest time between two looks: each walks through all heads.
const INTERVAL_MIN: Duration = Duration::from_millis(250);

/// A look at the file.
pub(super) type Scan = JoinHandle<Result<DuePage, StorageError>>;

/// Heads that are due, as the file said at `cursor`.
#[derive(Debug)]
pub(super) struct DuePage {
    cursor: StreamSeq,
    due: DueHeads,
}

/// Finds heads that are due and makes messages of them, one at a time.
#[derive(Debug)]
pub(super) struct HeadRefresher {
    retention: Duration,
    interval: Duration,
    subject: String,
    /// The last workflow that was dealt with in this pass; `None` at a pass's start.
    after: Option<WorkflowId>,
    /// When to look next.
    next_scan: Instant,
    /// While this goes on, nothing else of it does.
    pub scan: Option<Scan>,
    /// Found and not boarded yet.
    page: Option<DuePage>,
    /// Where the pass goes on when what is being appended is stored.
    in_append: Option<Option<WorkflowId>>,
}

impl HeadRefresher {
    /// For messages on `subject`. Looks at once: a gateway may have been away for long.
    pub fn new(retention: Duration, subject: String) -> Self {
        Self {
            retention,
            interval: (retention / LOOKS).max(INTERVAL_MIN),
            subject,
            after: None,
            next_scan: Instant::now(),
            scan: None,
            page: None,
            in_append: None,
        }
    }

    /// When [`look`](Self::look) is wanted; `None` while something is under way.
    pub fn wakes_at(&self) -> Option<Instant> {
        let idle = self.scan.is_none() && self.page.is_none() && self.in_append.is_none();
        idle.then_some(self.next_scan)
    }

    /// Whether heads wait to be appended.
    pub fn has_page(&self) -> bool {
        self.page.is_some()
    }

    /// Starts to look for heads that are due at `server_time`: a quiet log loses its messages, too, and by that clock.
    pub fn look(&mut self, receipts: Receipts, horizons: Horizons, stream_time: Timestamp, server_time: Timestamp) {
        let half = self.retention / 2;
        let Ok(due_before) = server_time.checked_sub(half) else { return };
        let after = self.after.clone();
        self.scan = Some(tokio::task::spawn_blocking(move || {
            let view = receipts.view()?;
            let due = view.heads_due(horizons, stream_time, due_before, after.as_ref(), MESSAGE_HEADS_MAX)?;
            Ok(DuePage { cursor: view.cursor(), due })
        }));
    }

    /// What a look has found.
    pub fn found(&mut self, page: DuePage) {
        if page.due.heads.is_empty() {
            self.finish(page.due.more_after);
        } else {
            self.page = Some(page);
        }
    }

    /// The message to be appended behind `overlay.end()`: of the heads that were found those of which nothing has been
    /// said since.
    pub fn next_head_record(&mut self, overlay: &Overlay) -> Option<HeadRecord> {
        let DuePage { cursor, due } = self.page.take()?;
        if cursor < overlay.base() {
            // What was said between the two is in neither: look again.
            self.next_scan = Instant::now();
            return None;
        }
        let mut heads = due.heads;
        heads.retain(|(workflow, _)| overlay.head(workflow).is_none());
        if heads.is_empty() {
            self.finish(due.more_after);
            return None;
        }
        self.in_append = Some(due.more_after);
        let (id, message) =
            records::heads(self.subject.clone(), heads.iter().map(|(workflow, head)| record(workflow, head)).collect());
        Some(HeadRecord { id, heads, message })
    }

    /// What [`next_head_record`](Self::next_head_record) gave has been stored, or has not.
    pub fn append_finished(&mut self, stored: bool) {
        let Some(more_after) = self.in_append.take() else { return };
        if stored {
            self.finish(more_after);
        } else {
            self.next_scan = Instant::now() + INTERVAL_MIN;
        }
    }

    fn finish(&mut self, more_after: Option<WorkflowId>) {
        self.next_scan = Instant::now() + if more_after.is_some() { Duration::ZERO } else { self.interval };
        self.after = more_after;
    }
}

fn record(workflow: &WorkflowId, head: &Head) -> v1::Head {
    v1::Head {
        workflow_id: workflow.to_string(),
        sequence_number: head.sequence_number.0,
        event_id: head.event_id.to_vec(),
        stored_at_ms: head.stored_at.as_millisecond(),
    }
}
