//! A workflow's events, page by page in either order, erased ones among them: which there are is in the history, payloads are
//! in EVENTS.

use tonic::Status;
use weft_catalog::keys::Grant;
use weft_index::history::{EventPage, EventQuery};
use weft_nats::cursor::Cursor;
use weft_proto::{
    ids::{StreamSeq, WorkflowId},
    v1,
};

use super::LogState;
use crate::{convert, error::of_history, service::payloads::Payloads};

/// Bytes of the events of one page: gRPC clients take 4 MiB of message where they are not told otherwise.
const PAGE_BYTES: usize = 3 * 1024 * 1024;

/// Some events, and the place of the last one if there are more after it.
#[derive(Debug, Default)]
pub(super) struct Page {
    pub events: Vec<v1::WorkflowEvent>,
    pub next: Option<StreamSeq>,
}

/// The events after the place `after`, in the order that is asked for, of those that a caller may see; from the first one on
/// where the place is 0. A page ends at its maximum number of events or of bytes, at least one event.
///
/// # Errors
///
/// LOG_UNAVAILABLE, STARTING.
pub(super) async fn read(
    log: &LogState,
    grant: &Grant,
    workflow: &WorkflowId,
    after: StreamSeq,
    newest_first: bool,
    limit: usize,
) -> Result<Page, Status> {
    let shard = log.layout.shard_of(workflow);
    let query = EventQuery {
        workflow: Some(workflow.as_str().to_owned()),
        sources: grant.sources().to_vec(),
        workflow_prefixes: grant.workflow_prefixes().to_vec(),
        oldest_first: !newest_first,
        ..EventQuery::default()
    };
    let mut cursor = (after.0 > 0).then(|| {
        let mut cursor = Cursor::new(log.layout, []);
        cursor.set(shard, after);
        cursor
    });
    let _place = log.payload_place().await?;
    let (mut page, mut bytes) = (Page::default(), 0);
    // A page of the history may be short, even empty, before the end.
    loop {
        let left = limit - page.events.len();
        let EventPage { events, next } = log.history.list(query.clone(), cursor, left).await.map_err(of_history)?;
        let mut payloads = Payloads::of(log, events);
        while let Some((listed, stored)) = payloads.next().await? {
            let event = match stored {
                Some(event) => Some(event),
                None => log.event(listed.id, shard, listed.seq, None).await?,
            };
            // Dropped by the log's retention meanwhile.
            let Some(event) = event else { continue };
            bytes += event.payload.len();
            if bytes > PAGE_BYTES && !page.events.is_empty() {
                return Ok(page);
            }
            let status = if event.is_erased() {
                v1::EventStatus::Erased
            } else {
                let known = log.history.event_at(shard, listed.seq).await.map_err(of_history)?;
                known.map_or(v1::EventStatus::Pending, |known| known.status.message())
            };
            let event = Some(convert::event(event));
            page.events.push(v1::WorkflowEvent { status: status.into(), event });
            page.next = Some(listed.seq);
        }
        cursor = next;
        if cursor.is_none() {
            page.next = None;
        }
        if cursor.is_none() || page.events.len() >= limit {
            return Ok(page);
        }
    }
}
