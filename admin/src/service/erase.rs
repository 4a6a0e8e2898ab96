//! `EraseEvents`: payload and kept headers of events are removed from EVENTS, DLQ and REJECTED.
//!
//! The call is recorded on COMMANDS with what it names before anything is removed, and again when all of it is. In between,
//! any admin that starts finishes it. Each step can be repeated: the record of an erased event is appended before its message
//! is removed, and what is no longer there is passed over.

use std::collections::{BTreeSet, HashSet};

use futures_util::{StreamExt as _, TryStreamExt as _, stream};
use prost::Message as _;
use tonic::Status;
use weft_catalog::keys::Grant;
use weft_index::{
    history::{EventRef, StoredCommand},
    receipts::body_digest,
};
use weft_nats::{
    append::publish,
    commands::{ITEMS_BYTES_MAX, part_id},
    dead_letter::copied_seq,
    direct::{self, DirectError},
    erasure::{Author, Erasure, RemoveError, remove},
    event::{Event, StoredEvent},
    message::Stored,
    scan::{self, Filter},
    streams::{self, EnsureError},
    subject::{self, DLQ_STREAM, REJECTED_STREAM, decode_workflow, encode_workflow},
};
use weft_proto::{
    ids::{EventId, StreamSeq, WorkflowId},
    internal::{self, command::Action},
    v1::{self, Rejected},
};

use super::{
    command::{Call, append_record},
    state::LogState,
};
use crate::error::{Code, of_direct, of_history, of_scan, refuse, unknown};

mod refused;

use refused::Sent;

/// Maximum number of events of one call, so that it ends within seconds; a larger workflow takes several.
const EVENTS_MAX: usize = 1_000;
/// The part of the record that says that a call is finished: behind any part with items.
const DONE_PART: usize = 1_000_000;
/// Events that are erased at a time.
const CONCURRENCY: usize = 16;
/// Messages and bytes of one read.
const READ_MESSAGES: usize = 256;
const READ_BYTES: usize = 4 << 20;

/// Events that a call erases.
#[derive(Debug, Default)]
struct Selected {
    items: Vec<internal::ErasedItem>,
    has_more: bool,
}

/// Numbers of removed messages.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Removed {
    pub events: u32,
    pub copies: u32,
    pub rejected: u32,
}

/// Erases what a request names.
///
/// # Errors
///
/// BAD_QUERY, UNKNOWN_EVENT, ID_REUSED, LOG_UNAVAILABLE, STARTING; INVALID_ENTRY where the log's streams allow no removal.
pub(super) async fn erase(
    log: &LogState,
    grant: &Grant,
    request: v1::EraseEventsRequest,
) -> Result<v1::EraseEventsResponse, Status> {
    let call = Call::new(grant, &request.request_id, &request.reason)?;
    log.catch_up().await?;
    if request.dry_run {
        let Selected { items, has_more } = select(log, &request).await?;
        let selected = u32::try_from(items.len()).unwrap_or(u32::MAX);
        return Ok(v1::EraseEventsResponse { selected, has_more, request_id: call.request_id, ..Default::default() });
    }
    let mut stored = call.stored(log, |action| matches!(action, Action::Erase(_))).await?;
    if stored.is_empty() {
        let actions = parts(select(log, &request).await?).into_iter();
        let actions = actions.map(|part| (weft_catalog::edit::RECORD_SHARD, Action::Erase(part)));
        stored = call.command(log, &[], actions.collect()).await?;
    }
    let removed = carry_out(log, &stored).await?;
    let selected = stored.iter().map(|command| items_of(command).len()).sum::<usize>();
    Ok(v1::EraseEventsResponse {
        selected: u32::try_from(selected).unwrap_or(u32::MAX),
        erased: removed.events,
        copies: removed.copies,
        rejected: removed.rejected,
        has_more: has_more(&stored),
        request_id: call.request_id,
    })
}

/// Whether the call named more than its records, by the last of them: one that could not be stored is missing.
fn has_more(stored: &[StoredCommand]) -> bool {
    let of_last = stored.iter().rev().find_map(|stored| match &stored.command.action {
        Some(Action::Erase(part)) if !part.done => Some(part.has_more),
        _ => None,
    });
    of_last.unwrap_or_default()
}

/// Erases what the records of a call name, and records that it is finished.
///
/// # Errors
///
/// LOG_UNAVAILABLE: part of it may be erased. INVALID_ENTRY where the log's streams allow no removal.
pub(super) async fn carry_out(log: &LogState, stored: &[StoredCommand]) -> Result<Removed, Status> {
    let Some(first) = stored.iter().map(|stored| &stored.command).next() else { return Ok(Removed::default()) };
    let by = Author {
        operator: first.operator.clone(),
        reason: first.reason.clone(),
        request_id: first.request_id.clone(),
        at: log.connection.server_clock().now(),
    };
    let items: Vec<_> = stored.iter().flat_map(items_of).cloned().collect();
    let mut removed = remove_rejected(log, &items).await?;
    let erase = |item: internal::ErasedItem| {
        let by = by.clone();
        async move { erase_one(log, &item, &by).await }
    };
    let erased: Vec<_> = stream::iter(items).map(erase).buffer_unordered(CONCURRENCY).try_collect().await?;
    for one in erased {
        removed.events += one.events;
        removed.copies += one.copies;
    }
    let is_done =
        stored.iter().any(|stored| matches!(&stored.command.action, Some(Action::Erase(erase)) if erase.done));
    if !is_done {
        let done = internal::Command {
            request_id: part_id(base(&first.request_id), DONE_PART),
            at_ms: by.at.as_millisecond(),
            action: Some(Action::Erase(internal::EraseEvents { done: true, ..Default::default() })),
            ..first.clone()
        };
        append_record(log, &done).await?;
    }
    tracing::info!(
        request = by.request_id,
        operator = by.operator,
        events = removed.events,
        copies = removed.copies,
        rejected = removed.rejected,
        "events erased"
    );
    Ok(removed)
}

/// Finishes the calls that were recorded and not finished: their admin has ended in between.
pub(super) async fn finish(log: &LogState) -> Result<(), Status> {
    let unfinished = log.history.unfinished_erasures().await.map_err(of_history)?;
    let requests: BTreeSet<String> =
        unfinished.iter().map(|stored| base(&stored.command.request_id).to_owned()).collect();
    for request in requests {
        tracing::warn!(request, "an erasure was interrupted and is finished now");
        let stored = log.history.request(request).await.map_err(of_history)?;
        carry_out(log, &stored).await?;
    }
    Ok(())
}

fn base(request_id: &str) -> &str {
    request_id.split_once(weft_index::history::PART_SEPARATOR).map_or(request_id, |(base, _)| base)
}

fn items_of(stored: &StoredCommand) -> &[internal::ErasedItem] {
    match &stored.command.action {
        Some(Action::Erase(erase)) => &erase.items,
        _ => &[],
    }
}

/// The selected items in parts that fit a command; at least one part.
fn parts(selected: Selected) -> Vec<internal::EraseEvents> {
    let (mut parts, mut bytes) = (vec![internal::EraseEvents::default()], 0);
    for item in selected.items {
        // Key and length of the field.
        let size = item.encoded_len() + 4;
        if bytes + size > ITEMS_BYTES_MAX {
            if let Some(full) = parts.last_mut() {
                full.has_more = true;
            }
            parts.push(internal::EraseEvents::default());
            bytes = 0;
        }
        bytes += size;
        if let Some(part) = parts.last_mut() {
            part.items.push(item);
        }
    }
    if let Some(last) = parts.last_mut() {
        last.has_more = selected.has_more;
    }
    parts
}

async fn select(log: &LogState, request: &v1::EraseEventsRequest) -> Result<Selected, Status> {
    match (request.event_ids.as_slice(), request.workflow_id.as_str()) {
        ([], "") => Err(refuse(Code::BadQuery, "name event_ids or workflow_id")),
        ([], workflow) => {
            let workflow = WorkflowId::new(workflow)
                .map_err(|problem| refuse(Code::InvalidWorkflow, format!("workflow_id {problem}")))?;
            of_workflow(log, &workflow).await
        }
        (ids, "") if ids.len() <= EVENTS_MAX => {
            let mut selected = Selected::default();
            for id in ids {
                of_id(log, id, &mut selected).await?;
            }
            Ok(selected)
        }
        (_, "") => Err(refuse(Code::BadQuery, format!("event_ids are more than {EVENTS_MAX}"))),
        _ => Err(refuse(Code::BadQuery, "event_ids and workflow_id exclude each other; give one of them")),
    }
}

/// All places of an event's id.
async fn of_id(log: &LogState, id: &str, selected: &mut Selected) -> Result<(), Status> {
    let named: EventRef = id.parse().map_err(|problem| {
        refuse(Code::BadQuery, format!("event_ids: {id:?} {problem}; it is the eventId of an event"))
    })?;
    let places = log.history.places_of(named.event).await.map_err(of_history)?;
    let places: Vec<_> = places.into_iter().filter(|(_, seq)| named.is_at(*seq)).collect();
    if places.is_empty() {
        return Err(unknown(Code::UnknownEvent, format!("no event {named} is kept")));
    }
    for (shard, seq) in places {
        let message = direct::get(&log.connection, &log.layout.events_stream(shard), seq).await.map_err(of_direct)?;
        let event = message.and_then(|message| Event::decode(log.layout, &message).ok());
        let workflow = match event.filter(|event| event.id == named.event) {
            Some(event) => Some(event.workflow),
            // Only the copies of its dead letters may be left.
            None => {
                let found = log.history.event_at(shard, seq).await.map_err(of_history)?;
                found.and_then(|found| found.dead_letter).map(|place| place.workflow)
            }
        };
        selected.items.extend(workflow.map(|workflow| item(seq, named.event, &workflow)));
    }
    Ok(())
}

/// The events of a workflow that have a payload, and the copies of its dead letters; the oldest of them.
async fn of_workflow(log: &LogState, workflow: &WorkflowId) -> Result<Selected, Status> {
    let mut selected = Selected::default();
    let mut known = HashSet::new();
    let filter = Filter { workflow: Some(workflow.clone()), ..Filter::default() };
    let mut cursor = None;
    while selected.items.len() < EVENTS_MAX {
        let limit = EVENTS_MAX - selected.items.len();
        let page = scan::scan(&log.connection, log.layout, cursor.as_ref(), &filter, limit).await.map_err(of_scan)?;
        for StoredEvent { seq, event, .. } in page.events.iter().filter(|stored| !stored.event.is_erased()) {
            known.insert(*seq);
            selected.items.push(item(*seq, event.id, workflow));
        }
        cursor = Some(page.next);
        selected.has_more = page.has_more;
        if !page.has_more {
            break;
        }
    }
    let mut copies = Messages::new(log, DLQ_STREAM, format!("dlq.*.{}.>", encode_workflow(workflow)));
    while !selected.has_more
        && let Some(page) = copies.next().await?
    {
        for (seq, event) in page.iter().filter_map(copied).filter(|(_, event)| !event.is_erased()) {
            if !known.insert(seq) {
                continue;
            }
            selected.has_more = selected.items.len() >= EVENTS_MAX;
            if selected.has_more {
                break;
            }
            selected.items.push(item(seq, event.id, workflow));
        }
    }
    Ok(selected)
}

pub(super) fn item(seq: StreamSeq, event: EventId, workflow: &WorkflowId) -> internal::ErasedItem {
    internal::ErasedItem { sequence: seq.0, event_id: event.to_vec(), workflow_id: workflow.as_str().to_owned() }
}

/// Appends the record of an erased event, and removes its message and the copies of its dead letters.
///
/// # Errors
///
/// LOG_UNAVAILABLE; INVALID_ENTRY where a stream allows no removal.
pub(super) async fn erase_one(log: &LogState, item: &internal::ErasedItem, by: &Author) -> Result<Removed, Status> {
    let (Ok(workflow), Some(id)) = (WorkflowId::new(item.workflow_id.as_str()), EventId::from_slice(&item.event_id))
    else {
        return Ok(Removed::default());
    };
    let mut removed = Removed::default();
    let seq = StreamSeq(item.sequence);
    if let Some((message, event)) = stored(log, item).await? {
        erase_stored(log, &message, event, by.clone()).await?;
        removed.events += 1;
    }
    let encoded = encode_workflow(&workflow).into_owned();
    for subject in
        [format!("dlq.*.{encoded}.{id}.{seq}.*"), subject::unplaced_dead_letter_subject("*", &workflow, id, "*")]
    {
        let mut copies = Messages::new(log, DLQ_STREAM, subject);
        while let Some(page) = copies.next().await? {
            for copy in page {
                let is_whole = copied(&copy).is_some_and(|(of, event)| of == seq && !event.is_erased());
                if is_whole {
                    remove(&log.connection, DLQ_STREAM, copy.seq).await.map_err(of_remove)?;
                    removed.copies += 1;
                }
            }
        }
    }
    Ok(removed)
}

/// Appends the record of an erased event, and then removes its message.
///
/// # Errors
///
/// LOG_UNAVAILABLE; INVALID_ENTRY where the stream allows no removal.
async fn erase_stored(log: &LogState, message: &Stored, event: Event, by: Author) -> Result<(), Status> {
    let stream = log.layout.events_stream(log.layout.shard_of(&event.workflow));
    let digest = body_digest(&event.workflow, &event.event_type, &event.payload);
    let stored = StoredEvent { seq: message.seq, stored_at: message.stored_at, event };
    let erasure = Erasure::new(stored, digest, Erasure::replay_key_of(message), by);
    let appended = publish(&log.connection, &erasure.encode(log.layout)).await;
    appended.map_err(|error| refuse(Code::LogUnavailable, format!("the erasure could not be recorded: {error}")))?;
    remove(&log.connection, &stream, message.seq).await.map_err(of_remove)
}

/// The event of an item as EVENTS has it.
async fn stored(log: &LogState, item: &internal::ErasedItem) -> Result<Option<(Stored, Event)>, Status> {
    let Ok(workflow) = WorkflowId::new(item.workflow_id.as_str()) else { return Ok(None) };
    let stream = log.layout.events_stream(log.layout.shard_of(&workflow));
    // A replica that lags may lack a new one, which then would be taken for erased.
    let message = streams::leader_message(&log.connection, &stream, StreamSeq(item.sequence)).await;
    let message = message.map_err(of_leader)?;
    Ok(message.and_then(|message| {
        let event = Event::decode(log.layout, &message).ok().filter(|event| event.id.to_vec() == item.event_id)?;
        Some((message, event))
    }))
}

/// Sequence and event of a copy on DLQ.
pub(super) fn copied(copy: &Stored) -> Option<(StreamSeq, Event)> {
    let workflow = decode_workflow(copy.subject.split('.').nth(2)?).ok()?;
    let event = Event::decode_parts(workflow, &copy.headers, &copy.payload).ok()?;
    Some((copied_seq(&copy.headers)?, event))
}

/// The messages of a stream on a subject, page by page.
struct Messages<'l> {
    log: &'l LogState,
    stream: &'static str,
    subject: String,
    from: StreamSeq,
}

impl<'l> Messages<'l> {
    fn new(log: &'l LogState, stream: &'static str, subject: String) -> Self {
        Self { log, stream, subject, from: StreamSeq(1) }
    }

    /// The next page; `None` at the end.
    async fn next(&mut self) -> Result<Option<Vec<Stored>>, Status> {
        let limits = (READ_MESSAGES, READ_BYTES);
        let read = streams::next_page(&self.log.connection, self.stream, &self.subject, self.from, limits).await;
        let read = read.map_err(of_leader)?;
        let Some(last) = read.last() else { return Ok(None) };
        self.from = last.seq.next();
        Ok(Some(read))
    }
}

/// Removes refused requests with the body or the delivery id of one of these events: it was sent before and refused. Comes
/// before the events are removed, since their bodies are unknown afterwards.
async fn remove_rejected(log: &LogState, items: &[internal::ErasedItem]) -> Result<Removed, Status> {
    let mut sent = Sent::default();
    for item in items {
        if let Some((_, event)) = stored(log, item).await? {
            sent.add(&event);
        }
    }
    let mut removed = Removed::default();
    for name in sent.names() {
        let mut refused = Messages::new(log, REJECTED_STREAM, subject::rejected(name));
        while let Some(page) = refused.next().await? {
            for message in page {
                let Ok(entry) = Rejected::decode(message.payload.clone()) else { continue };
                if sent.is_in(name, &entry) {
                    remove(&log.connection, REJECTED_STREAM, message.seq).await.map_err(of_remove)?;
                    removed.rejected += 1;
                }
            }
        }
    }
    Ok(removed)
}

fn of_leader(error: EnsureError) -> Status {
    of_direct(DirectError::Unavailable(error.to_string()))
}

/// Status of a message that was not removed.
pub(super) fn of_remove(error: RemoveError) -> Status {
    let code = match error {
        RemoveError::Denied(_) => Code::InvalidEntry,
        RemoveError::Unavailable(_) => Code::LogUnavailable,
    };
    refuse(code, error.to_string())
}
