//! The inbox, newest first, page by page. A stream is only read forwards, so it is read window by window from its end.

use prost::Message as _;
use tonic::Status;
use weft_nats::{
    connect::Connection,
    direct,
    message::Stored,
    streams,
    subject::{self, REJECTED_STREAM},
};
use weft_proto::{ids::StreamSeq, v1::Rejected};

use crate::{
    convert,
    error::{Code, of_direct, refuse},
};

/// Sequences of one window.
const WINDOW: u64 = 256;
/// Maximum number of sequences that one page reads, so that a selective filter costs a bounded time.
const LOOKED_MAX: u64 = 10_000;
/// Maximum number of bytes that one page reads: bodies are read with their entries.
const READ_BYTES_MAX: usize = 16 * 1024 * 1024;
/// Bytes of one direct get.
const CHUNK_BYTES: usize = 4 * 1024 * 1024;
/// Bytes of one page: gRPC clients take 4 MiB of message where they are not told otherwise.
const PAGE_BYTES_MAX: usize = 3 * 1024 * 1024;
/// Maximum delay between receipt and storage of an entry, clock skew included: entries older than that were also received
/// before.
const STORE_SLACK_MS: i64 = 60_000;

/// Which entries are wanted. The default wants all.
#[derive(Debug, Clone, Default)]
pub(super) struct Filter {
    /// Of this source.
    pub source: Option<String>,
    /// Of one of these sources; empty: of any.
    pub sources: Vec<String>,
    /// Refused with this code.
    pub code: Option<String>,
    /// Received then or later.
    pub since_ms: Option<i64>,
    /// Received before.
    pub until_ms: Option<i64>,
}

impl Filter {
    pub fn takes(&self, entry: &Rejected) -> bool {
        let received_ms = || entry.received_at.as_ref().and_then(convert::to_milliseconds).unwrap_or_default();
        (self.sources.is_empty() || self.sources.contains(&entry.source))
            && self.code.as_ref().is_none_or(|code| *code == entry.code)
            && self.since_ms.is_none_or(|since_ms| received_ms() >= since_ms)
            && self.until_ms.is_none_or(|until_ms| received_ms() < until_ms)
    }

    /// Whether nothing that is stored before this one can be wanted.
    fn ends_at(&self, stored: &Stored) -> bool {
        self.since_ms.is_some_and(|since_ms| stored.stored_at.as_millisecond() < since_ms - STORE_SLACK_MS)
    }
}

/// Some entries, and where to continue.
#[derive(Debug, Default)]
pub(super) struct Page {
    /// Newest first, without bodies.
    pub entries: Vec<Rejected>,
    /// Older entries have not been read; `None`: there are none.
    pub next: Option<StreamSeq>,
}

/// The page in front of `before`; `None`: from the newest.
///
/// # Errors
///
/// LOG_UNAVAILABLE.
pub(super) async fn newest(
    connection: &Connection,
    filter: &Filter,
    before: Option<StreamSeq>,
    limit: usize,
) -> Result<Page, Status> {
    let state = streams::state(connection, REJECTED_STREAM).await;
    let state = state.map_err(|error| refuse(Code::LogUnavailable, error.to_string()))?;
    let end = state.last.next();
    let mut before = before.map_or(end, |before| before.min(end));
    let mut page = Page::default();
    let (mut looked, mut read, mut bytes) = (0, 0, 0);
    while before > state.first && looked < LOOKED_MAX && read < READ_BYTES_MAX {
        let from = StreamSeq(before.0.saturating_sub(WINDOW)).max(state.first);
        for stored in window(connection, filter, from, before).await?.into_iter().rev() {
            if filter.ends_at(&stored) {
                return Ok(page);
            }
            read += stored.payload.len();
            let Some(mut entry) = decode(&stored).filter(|entry| filter.takes(entry)) else { continue };
            entry.body.clear();
            bytes += entry.encoded_len();
            let full = page.entries.len() == limit || bytes > PAGE_BYTES_MAX;
            if full && !page.entries.is_empty() {
                page.next = Some(stored.seq.next());
                return Ok(page);
            }
            page.entries.push(entry);
        }
        looked += before.0 - from.0;
        before = from;
    }
    page.next = (before > state.first).then_some(before);
    Ok(page)
}

/// The messages from `from` on, before `before`, in order.
async fn window(
    connection: &Connection,
    filter: &Filter,
    mut from: StreamSeq,
    before: StreamSeq,
) -> Result<Vec<Stored>, Status> {
    let subject = filter.source.as_deref().map_or_else(|| ">".to_owned(), subject::rejected);
    let mut found = Vec::new();
    while from < before {
        let messages_max = usize::try_from(before.0 - from.0).unwrap_or(usize::MAX);
        let chunk = direct::range(connection, REJECTED_STREAM, from, &subject, messages_max, CHUNK_BYTES).await;
        let chunk = chunk.map_err(of_direct)?;
        let Some(last) = chunk.last() else { break };
        from = last.seq.next();
        found.extend(chunk.into_iter().filter(|stored| stored.seq < before));
    }
    Ok(found)
}

/// The entry of a message; `None` for a foreign message.
pub(super) fn decode(stored: &Stored) -> Option<Rejected> {
    let entry = Rejected::decode(stored.payload.clone()).ok()?;
    Some(Rejected { id: stored.seq.to_string(), ..entry })
}
