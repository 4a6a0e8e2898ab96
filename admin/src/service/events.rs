//! `EventService`: one event with its outcomes, the events after a cursor, and new events.

use std::sync::Arc;

use tonic::{Request, Response, Status};
use weft_nats::{
    cursor::Cursor,
    event::StoredEvent,
    scan::{self, Filter, Page},
    subject::Layout,
};
use weft_proto::{
    ids::{EventId, WorkflowId},
    v1::{self, event_service_server::EventService},
};

use super::{
    erase,
    state::{LogState, State},
    tail::{self, Responses},
};
use crate::{
    as_of, auth, convert,
    error::{Code, expired, of_history, of_scan, refuse, unknown},
};

mod list;
mod named;

/// Bytes of one page's data: gRPC clients take 4 MiB of message where they are not told otherwise. An event that is
/// larger comes alone.
const PAGE_BYTES_MAX: usize = 3 * 1024 * 1024;

/// `EventService` over the log and its history.
#[derive(Debug)]
pub(super) struct Events {
    state: Arc<State>,
}

impl Events {
    pub fn new(state: Arc<State>) -> Self {
        Self { state }
    }
}

#[tonic::async_trait]
impl EventService for Events {
    async fn list_events(
        &self,
        request: Request<v1::ListEventsRequest>,
    ) -> Result<Response<v1::ListEventsResponse>, Status> {
        let log = self.state.log()?;
        let grant = auth::grant(&request)?;
        list::list(log, &grant, request.into_inner()).await.map(Response::new)
    }

    async fn get_event(&self, request: Request<v1::GetEventRequest>) -> Result<Response<v1::GetEventResponse>, Status> {
        let log = self.state.log()?;
        let grant = auth::grant(&request)?;
        let v1::GetEventRequest { event_id, source } = request.into_inner();
        log.catch_up().await?;
        let named = named::one(log, &grant, &event_id, &source).await?;
        let unknown = || unknown(Code::UnknownEvent, format!("no event {named} is kept"));
        let found = log.history.event(named).await.map_err(of_history)?.ok_or_else(unknown)?;
        let event = log.event(named.event, found.shard, found.seq, found.dead_letter.as_ref()).await?;
        // NOT_FOUND as well for what the key may not see.
        let seen = event.filter(|event| grant.check(&event.source, &event.workflow).is_ok());
        let event = seen.ok_or_else(unknown)?;
        let status = if event.is_erased() { v1::EventStatus::Erased } else { found.status.message() };
        Ok(Response::new(v1::GetEventResponse {
            event: Some(convert::event(event)),
            status: status.into(),
            deliveries: found.deliveries.into_iter().map(convert::delivery).collect(),
            stored_at: found.stored_at_ms.and_then(convert::milliseconds),
        }))
    }

    async fn events_since(
        &self,
        request: Request<v1::EventsSinceRequest>,
    ) -> Result<Response<v1::EventsSinceResponse>, Status> {
        let log = self.state.log()?;
        let grant = auth::grant(&request)?;
        let v1::EventsSinceRequest { since, filter, limit } = request.into_inner();
        let filter = auth::limited(&grant, filter_of(filter.unwrap_or_default())?);
        let limit = super::paging::page_size(limit, "limit")?;
        let start = match since.is_empty() {
            true => scan::oldest(&log.connection, log.layout).await.map_err(of_scan)?,
            false => resolve(log, &since).await?,
        };
        let since = (!since.is_empty()).then_some(&start);
        let page = scan::scan(&log.connection, log.layout, since, &filter, limit).await.map_err(of_scan)?;
        let page = cut(page, start, log.layout, PAGE_BYTES_MAX);
        Ok(Response::new(v1::EventsSinceResponse {
            events: page.events.into_iter().map(|stored| convert::event(stored.event)).collect(),
            next_cursor: page.next.to_string(),
            has_more: page.has_more,
        }))
    }

    async fn erase_events(
        &self,
        request: Request<v1::EraseEventsRequest>,
    ) -> Result<Response<v1::EraseEventsResponse>, Status> {
        let log = self.state.log()?;
        let grant = auth::grant(&request)?;
        erase::erase(log, &grant, request.into_inner()).await.map(Response::new)
    }

    type TailEventsStream = Responses;

    async fn tail_events(
        &self,
        request: Request<v1::TailEventsRequest>,
    ) -> Result<Response<Self::TailEventsStream>, Status> {
        let log = self.state.log()?;
        let grant = auth::grant(&request)?;
        let v1::TailEventsRequest { since, filter, from_beginning } = request.into_inner();
        let filter = auth::limited(&grant, filter_of(filter.unwrap_or_default())?);
        if from_beginning && !since.is_empty() {
            return Err(refuse(Code::BadQuery, "since and from_beginning exclude each other; give one of them"));
        }
        let cursor = if from_beginning {
            scan::oldest(&log.connection, log.layout).await.map_err(of_scan)?
        } else if since.is_empty() {
            scan::newest(&log.connection, log.layout).await.map_err(of_scan)?
        } else {
            resolve(log, &since).await?
        };
        let place = self.state.place(&grant)?;
        let stream = tail::open(log, filter, cursor, grant, self.state.draining().clone(), place).await?;
        Ok(Response::new(stream))
    }
}

/// The cursor that a client names: one it was given, or the event it saw last.
async fn resolve(log: &LogState, text: &str) -> Result<Cursor, Status> {
    let Ok(id) = text.parse::<EventId>() else {
        return Cursor::parse(text, log.layout)
            .map_err(|problem| refuse(Code::BadCursor, format!("since is {problem}")));
    };
    let mut place = log.history.position_of(id).await.map_err(of_history)?;
    if place.is_none() {
        log.catch_up().await?;
        place = log.history.position_of(id).await.map_err(of_history)?;
    }
    match place {
        Some((shard, seq)) => scan::behind(&log.connection, log.layout, shard, seq).await.map_err(of_scan),
        None if as_of::lag().is_some() => Err(unknown(Code::UnknownEvent, format!("no event {id} is kept"))),
        // Unknown and expired events cannot be distinguished.
        None => Err(expired(&scan::oldest(&log.connection, log.layout).await.map_err(of_scan)?)),
    }
}

/// The filter of a request; an empty field filters nothing.
fn filter_of(filter: v1::EventFilter) -> Result<Filter, Status> {
    let given = |text: String| Some(text).filter(|text| !text.is_empty());
    let workflow = given(filter.workflow_id).map(WorkflowId::new).transpose();
    Ok(Filter {
        workflow: workflow.map_err(|problem| refuse(Code::InvalidWorkflow, format!("filter.workflow_id {problem}")))?,
        event_type: given(filter.r#type),
        source: given(filter.source),
        ..Filter::default()
    })
}

/// Cuts a page to `bytes_max` of data, at least one event. A cut page continues after its last event: each shard's
/// position is that of its last event in the page, or where the page began.
fn cut(mut page: Page, start: Cursor, layout: Layout, bytes_max: usize) -> Page {
    let mut bytes = 0;
    let fits = |stored: &StoredEvent| {
        bytes += stored.event.payload.len() + 512;
        bytes <= bytes_max
    };
    let kept = page.events.iter().map(fits).take_while(|fits| *fits).count().max(1);
    if kept >= page.events.len() {
        return page;
    }
    page.events.truncate(kept);
    page.next = start;
    for stored in &page.events {
        page.next.set(layout.shard_of(&stored.event.workflow), stored.seq);
    }
    page.has_more = true;
    page
}

#[cfg(test)]
mod tests {

    use jiff::Timestamp;

    use weft_proto::ids::{ShardId, StreamSeq};

    use super::*;

    fn stored(workflow: &str, seq: u64, bytes: usize) -> StoredEvent {
        let event = weft_testkit::event(workflow).number(seq).payload(vec![b'1'; bytes]).build();
        StoredEvent { seq: StreamSeq(seq), stored_at: Timestamp::UNIX_EPOCH, event }
    }

    /// A cut page repeats and skips nothing: of 8 shards `wf-1` is in 2 and `a` in 4.
    #[test]
    fn a_cut_page_goes_on_behind_its_last_event() {
        let layout = Layout::new(8);
        let start = Cursor::new(layout, [StreamSeq(0), StreamSeq(0), StreamSeq(5), StreamSeq(7)]);
        let next = Cursor::new(layout, [StreamSeq(99); 8]);
        let events = vec![stored("wf-1", 6, 1000), stored("a", 3, 1000), stored("wf-1", 8, 1000)];
        let page = Page { events, next: next.clone(), has_more: false };
        let whole = cut(page.clone(), start.clone(), layout, 10_000);
        assert_eq!((whole.events.len(), whole.next, whole.has_more), (3, next, false));
        let short = cut(page.clone(), start.clone(), layout, 4_000);
        assert_eq!((short.events.len(), short.has_more), (2, true));
        assert_eq!([2, 3, 4].map(|shard| short.next.position(ShardId(shard)).0), [6, 7, 3]);
        assert_eq!(cut(page, start, layout, 10).events.len(), 1, "a large event comes alone");
    }
}
