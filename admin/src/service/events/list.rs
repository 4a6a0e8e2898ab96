//! `ListEvents`: events by filters of the history, and by text in their payloads, which the log is read for.

use jiff::Timestamp;
use tonic::Status;
use weft_catalog::keys::Grant;
use weft_index::history::{EventPage, EventQuery, ListedEvent, status::EventStatus};
use weft_nats::{cursor::Cursor, subject::Layout};
use weft_proto::{
    ids::{EventId, StreamSeq, WorkflowId},
    v1,
    words::{self, Word as _},
};

use super::{LogState, PAGE_BYTES_MAX, named};
use crate::service::paging::page_size;
use crate::{
    convert,
    error::{Code, of_history, refuse},
    service::payloads::{Found, Payloads},
};

/// Maximum number of payloads that one call reads for a text: a fraction of a second.
const SCAN_MAX: usize = 2_000;
/// Maximum number of bytes of those payloads.
const SCAN_BYTES_MAX: usize = 32 * 1024 * 1024;
/// Payloads that are read at a time.
const SCAN_CHUNK: usize = 250;
/// The longest text that is looked for, in bytes.
const TEXT_MAX: usize = 256;
/// Bytes of an event without its data.
const ENVELOPE_BYTES: usize = 1024;

/// A page of events.
pub(super) async fn list(
    log: &LogState,
    grant: &Grant,
    asked: v1::ListEventsRequest,
) -> Result<v1::ListEventsResponse, Status> {
    let v1::ListEventsRequest { filter, oldest_first, with_data, page_size: size, page_token } = asked;
    let filter = filter.unwrap_or_default();
    let limit = page_size(size, "page_size")?;
    let after = after(&page_token, oldest_first, log.layout)?;
    let text = filter.contains.clone();
    if text.len() > TEXT_MAX {
        let message = format!("filter.contains has {} bytes; at most {TEXT_MAX} are looked for", text.len());
        return Err(refuse(Code::BadQuery, message));
    }
    log.catch_up().await?;
    let query = EventQuery { oldest_first, ..query_of(log, grant, filter).await? };
    let start = after.clone().unwrap_or_else(|| Cursor::new(log.layout, []));
    let mut search = None;
    // Held until the answer is made: calls that read payloads wait for each other.
    let _place = if with_data || !text.is_empty() { Some(log.payload_place().await?) } else { None };
    let (events, next) = if text.is_empty() {
        let EventPage { events, next } = log.history.list(query, after, limit).await.map_err(of_history)?;
        if with_data {
            page(log, start, events, next).await?
        } else {
            (events.into_iter().map(|listed| (listed, None)).collect(), next)
        }
    } else {
        let mut scan = Scan {
            log,
            text: text.as_bytes(),
            limit,
            with_data,
            cursor: start,
            found: Vec::new(),
            scanned: 0,
            bytes: 0,
            reached_ms: 0,
        };
        let next = scan.run(query, after).await?;
        let reached = convert::milliseconds(scan.reached_ms);
        search = Some(v1::EventSearch { scanned: u32::try_from(scan.scanned).unwrap_or(u32::MAX), reached });
        (scan.found, next)
    };
    let places = events.iter().map(|(event, _)| (event.shard, event.seq)).collect();
    let histories = log.history.events_at(places).await.map_err(of_history)?;
    let events = events.into_iter().zip(histories).map(|((listed, event), history)| {
        let stored_at = convert::milliseconds(listed.stored_at_ms);
        let erased = history.as_ref().is_some_and(|history| history.is_erased);
        let (status, deliveries) = match history {
            Some(history) if erased => (v1::EventStatus::Erased, history.deliveries),
            Some(history) => (history.status.message(), history.deliveries),
            // It has expired in between.
            None => (v1::EventStatus::Unspecified, Vec::new()),
        };
        let event = event.map_or_else(|| without_data(listed), convert::event);
        let event = v1::Event { erased, ..event };
        let deliveries = deliveries.into_iter().map(convert::delivery_with_last_attempt).collect();
        v1::ListedEvent { event: Some(event), status: status.into(), deliveries, stored_at }
    });
    let next_page_token = next.map(|next| token(&next, oldest_first)).unwrap_or_default();
    Ok(v1::ListEventsResponse { events: events.collect(), next_page_token, search })
}

/// The token of a place, which is that of one order only.
fn token(cursor: &Cursor, oldest_first: bool) -> String {
    format!("{}{cursor}", if oldest_first { 'o' } else { 'n' })
}

/// The place that a token names; `None` for the empty one.
fn after(token: &str, oldest_first: bool, layout: Layout) -> Result<Option<Cursor>, Status> {
    if token.is_empty() {
        return Ok(None);
    }
    let refused = || {
        let message = "page_token is not valid; use a next_page_token as it was given, in a request for the same order";
        refuse(Code::BadQuery, message)
    };
    let cursor = token.strip_prefix(if oldest_first { 'o' } else { 'n' }).ok_or_else(refused)?;
    Cursor::parse(cursor, layout).map(Some).map_err(|_| refused())
}

async fn query_of(log: &LogState, grant: &Grant, filter: v1::ListEventsFilter) -> Result<EventQuery, Status> {
    let given = |text: String| Some(text).filter(|text| !text.is_empty());
    let time = |time: Option<prost_types::Timestamp>, field: &str| {
        time.map(|time| {
            convert::to_milliseconds(&time)
                .ok_or_else(|| refuse(Code::BadQuery, format!("filter.{field} is not a valid time")))
        })
        .transpose()
    };
    let workflow = given(filter.workflow_id).map(WorkflowId::new).transpose();
    let workflow =
        workflow.map_err(|problem| refuse(Code::InvalidWorkflow, format!("filter.workflow_id {problem}")))?;
    let asked = words::values(&filter.statuses);
    let statuses = asked.and_then(|asked| asked.into_iter().map(EventStatus::of_message).collect::<Option<_>>());
    let statuses = statuses.ok_or_else(|| {
        let known: Vec<_> = EventStatus::ALL.into_iter().map(|status| status.message().word()).collect();
        refuse(Code::BadQuery, format!("filter.statuses: one is none of {}", known.join(", ")))
    })?;
    let (mut ids, mut id_range): (Option<Vec<EventId>>, _) = (None, None);
    if !filter.event_id.is_empty() {
        match (filter.event_id.parse(), named::bounds(&filter.event_id)) {
            (Ok(id), _) => ids = Some(vec![id]),
            (Err(_), Some(bounds)) => id_range = Some(bounds),
            // It begins no id.
            (Err(_), None) => ids = Some(Vec::new()),
        }
    }
    if !filter.delivery_id.is_empty() {
        let mut of_delivery = named::deliveries(log, grant, &filter.delivery_id, &filter.source).await?;
        of_delivery.retain(|id| ids.as_ref().is_none_or(|ids| ids.contains(id)));
        ids = Some(of_delivery);
    }
    Ok(EventQuery {
        ids,
        id_range,
        workflow: workflow.map(|workflow| workflow.as_str().to_owned()),
        event_type: given(filter.r#type),
        source: given(filter.source),
        subscription: given(filter.subscription),
        statuses,
        since_ms: time(filter.since, "since")?,
        until_ms: time(filter.until, "until")?,
        sources: grant.sources().to_vec(),
        workflow_prefixes: grant.workflow_prefixes().to_vec(),
        oldest_first: false,
    })
}

/// The events with their payloads, up to the bytes that a response holds, at least one event. A page that is cut continues after
/// its last event.
async fn page(
    log: &LogState,
    start: Cursor,
    events: Vec<ListedEvent>,
    next: Option<Cursor>,
) -> Result<(Vec<Found>, Option<Cursor>), Status> {
    let (mut cursor, mut found, mut bytes) = (start, Vec::new(), 0);
    let mut payloads = Payloads::of(log, events);
    while let Some((listed, event)) = payloads.next().await? {
        bytes += ENVELOPE_BYTES + event.as_ref().map_or(0, |event| event.payload.len());
        if bytes > PAGE_BYTES_MAX && !found.is_empty() {
            return Ok((found, Some(cursor)));
        }
        pass(&mut cursor, log.layout, &listed);
        found.push((listed, event));
    }
    Ok((found, next))
}

/// Moves a cursor to an event: pages in either order continue after it.
fn pass(cursor: &mut Cursor, layout: Layout, listed: &ListedEvent) {
    if layout.all().any(|shard| shard == listed.shard) {
        cursor.set(listed.shard, StreamSeq(listed.seq.0));
    }
}

/// A search for a text in payloads.
struct Scan<'l> {
    log: &'l LogState,
    text: &'l [u8],
    limit: usize,
    with_data: bool,
    /// After the last event that was read.
    cursor: Cursor,
    found: Vec<Found>,
    scanned: usize,
    bytes: usize,
    reached_ms: i64,
}

impl Scan<'_> {
    /// Reads until the page or the call's share of the log is full. Returns the place to continue at; `None` at the end.
    async fn run(&mut self, query: EventQuery, mut after: Option<Cursor>) -> Result<Option<Cursor>, Status> {
        let finder = memchr::memmem::Finder::new(self.text);
        let mut answer_bytes = 0;
        loop {
            let chunk = SCAN_CHUNK.min(SCAN_MAX - self.scanned);
            let page = self.log.history.list(query.clone(), after, chunk).await.map_err(of_history)?;
            let is_short = page.events.len() < chunk;
            let mut payloads = Payloads::of(self.log, page.events);
            while let Some((listed, event)) = payloads.next().await? {
                let holds = event.as_ref().is_some_and(|event| finder.find(&event.payload).is_some());
                let data = event.as_ref().map_or(0, |event| event.payload.len());
                if holds {
                    answer_bytes += ENVELOPE_BYTES + if self.with_data { data } else { 0 };
                    if self.found.len() >= self.limit || (answer_bytes > PAGE_BYTES_MAX && !self.found.is_empty()) {
                        return Ok(Some(self.cursor.clone()));
                    }
                }
                self.scanned += 1;
                self.bytes += data;
                self.reached_ms = listed.stored_at_ms;
                pass(&mut self.cursor, self.log.layout, &listed);
                if holds {
                    self.found.push((listed, event.filter(|_| self.with_data)));
                }
                if self.bytes >= SCAN_BYTES_MAX {
                    return Ok(Some(self.cursor.clone()));
                }
            }
            let Some(next) = page.next else { return Ok(None) };
            self.cursor = next.clone();
            // A short page has done its share of work.
            if is_short || self.scanned >= SCAN_MAX {
                return Ok(Some(next));
            }
            after = Some(next);
        }
    }
}

fn without_data(listed: ListedEvent) -> v1::Event {
    let time = |ns: i64| Timestamp::from_nanosecond(i128::from(ns)).ok().map(convert::timestamp);
    v1::Event {
        event_id: listed.id.to_string(),
        sequence_number: listed.sequence_number,
        workflow_id: listed.workflow,
        previous_event_id: listed.previous.map(|id| id.to_string()),
        r#type: listed.event_type,
        source: listed.source,
        time: time(listed.time_ns),
        received_at: time(listed.received_at_ns),
        delivery_id: Some(listed.delivery_id).filter(|id| !id.is_empty()),
        data: bytes::Bytes::new(),
        data_content_type: listed.content_type,
        erased: false,
    }
}
