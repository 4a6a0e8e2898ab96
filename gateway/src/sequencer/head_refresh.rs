//! Head refresh: before the newest event of an idle workflow leaves the log, a record of its head is appended, so that
//! heads remain a function of the log.
//!
//! A head is due for a refresh when its newest record is older than half the retention. Due heads are looked for
//! [`LOOKS`] times per retention, by every gateway; the one that appends first refreshes the head for all.

use std::time::Duration;

use jiff::Timestamp;
use tokio::{task::JoinHandle, time::Instant};
use weft_index::{
    projection::StorageError,
    receipts::{DueHeads, Horizons, Receipts, WorkflowHead},
};
use weft_nats::records::{self, MESSAGE_HEADS_MAX};
use weft_proto::{
    ids::{StreamSeq, WorkflowId},
    internal,
};

use super::{in_flight::HeadRecord, overlay::Overlay};

/// Scans per retention.
const LOOKS: u32 = 16;
/// Shortest interval of scans: each walks through all heads.
const INTERVAL_MIN: Duration = Duration::from_millis(250);

/// A scan of the file.
pub(super) type Scan = JoinHandle<Result<DuePage, StorageError>>;

/// Due heads, as of `cursor`.
#[derive(Debug)]
pub(super) struct DuePage {
    cursor: StreamSeq,
    due: DueHeads,
}

/// Finds due heads and makes records of them, one at a time.
#[derive(Debug)]
pub(super) struct HeadRefresher {
    retention: Duration,
    interval: Duration,
    subject: String,
    /// Last workflow of this pass; `None` at its start.
    after: Option<WorkflowId>,
    /// Time of the next scan.
    next_scan: Instant,
    /// The scan under way.
    pub scan: Option<Scan>,
    /// Found and not yet part of an append, with the time at which it was found.
    page: Option<(Instant, DuePage)>,
    /// Where the pass continues once the append is stored.
    in_append: Option<Option<WorkflowId>>,
}

impl HeadRefresher {
    /// Records go to `subject`. The first scan starts at once: the gateway may have been down for long.
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

    /// Time of the next [`look`](Self::look); `None` while a scan or an append is under way.
    pub fn wakes_at(&self) -> Option<Instant> {
        let idle = self.scan.is_none() && self.page.is_none() && self.in_append.is_none();
        idle.then_some(self.next_scan)
    }

    /// Time since which heads have waited to be appended; `None`: none do.
    pub fn page_found_at(&self) -> Option<Instant> {
        self.page.as_ref().map(|(found_at, _)| *found_at)
    }

    /// Starts a scan for heads that are due at `server_time`, the clock by which an idle log expires messages.
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

    /// Handles the result of a scan.
    pub fn found(&mut self, page: DuePage, now: Instant) {
        if page.due.heads.is_empty() {
            self.finish(page.due.more_after);
        } else {
            self.page = Some((now, page));
        }
    }

    /// The next record, of found heads that no later message states; it is appended after `overlay.end()`.
    pub fn next_head_record(&mut self, overlay: &Overlay) -> Option<HeadRecord> {
        let (_, DuePage { cursor, due }) = self.page.take()?;
        if cursor < overlay.base() {
            // Messages between the two are in neither: scan again.
            self.next_scan = Instant::now();
            return None;
        }
        let mut heads = due.heads;
        heads.retain(|(workflow, _)| !overlay.has_head(workflow));
        if heads.is_empty() {
            self.finish(due.more_after);
            return None;
        }
        self.in_append = Some(due.more_after);
        let (id, message) =
            records::heads(self.subject.clone(), heads.iter().map(|(workflow, head)| record(workflow, head)).collect());
        Some(HeadRecord { id, heads, message })
    }

    /// The last record was stored, or not.
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

fn record(workflow: &WorkflowId, head: &WorkflowHead) -> internal::Head {
    internal::Head {
        workflow_id: workflow.to_string(),
        sequence_number: head.sequence_number.0,
        event_id: head.event_id.to_vec(),
        stored_at_ms: head.stored_at.as_millisecond(),
    }
}
