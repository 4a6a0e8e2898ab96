//! Pages of events after a cursor, oldest first; used by every `since` query.
//!
//! Each shard is read in order by direct gets; the shards are merged by the time at which the server stored their
//! messages. With a workflow in the filter only that workflow's subject in its shard is read, and the other shards'
//! positions stay. A page ends after `limit` events, [`ENTRIES_MAX`] log entries or [`PAGE_BYTES_MAX`] bytes, at the
//! first limit that is reached; its cursor always names exactly what has been looked at, so pages neither repeat nor
//! skip.
//!
//! The scan checks after the reading that nothing was skipped: a position whose successor has been dropped by then is
//! expired, and never answered with what happens to come next.

use std::{collections::VecDeque, fmt, sync::Arc};

use async_nats::jetstream::stream::LastRawMessageErrorKind;
use jiff::{SignedDuration, Timestamp};
use weft_proto::ids::{ShardId, StreamSeq, WorkflowId};

use crate::{
    connect::Connection,
    cursor::Cursor,
    direct::{self, DirectError},
    entry::Entry,
    event::StoredEvent,
    message::Stored,
    pattern::pattern_matches,
    streams::{self, EnsureError, Presence, StreamState},
    subject::Layout,
};

/// The most log entries that one page looks at, so that a filter that takes little costs a bounded time.
pub const ENTRIES_MAX: usize = 10_000;
/// The most bytes of payload that a page gathers before it ends, so that a page of large events fits in memory; the
/// event that reaches it is still part of the page.
pub const PAGE_BYTES_MAX: usize = 8 * 1024 * 1024;
/// Messages of one direct get.
const CHUNK_MESSAGES: usize = 256;
/// Bytes that the direct gets of all shards may hold at a time.
const CHUNK_BYTES_TOTAL: usize = 8 * 1024 * 1024;
/// By how much the clocks of gateways and servers may differ when a time stands for a position.
pub const CLOCK_SLACK: SignedDuration = SignedDuration::from_secs(5);

/// A further condition of a [`Filter`].
pub trait Predicate: fmt::Debug + Send + Sync {
    /// Whether it takes an event of a shard.
    fn takes(&self, shard: ShardId, event: &StoredEvent) -> bool;
}

/// Which events are wanted. The default wants all.
#[derive(Debug, Clone, Default)]
pub struct Filter {
    /// Only this workflow's.
    pub workflow: Option<WorkflowId>,
    /// Only types that this pattern takes; `*` is any run of characters.
    pub event_type: Option<String>,
    /// Only this source's.
    pub source: Option<String>,
    /// Only these sources'; empty: all.
    pub sources: Vec<String>,
    /// Only workflows whose id begins with one of these; empty: all.
    pub workflow_prefixes: Vec<String>,
    /// Only what a subscription takes.
    pub subscription: Option<Arc<dyn Predicate>>,
}

impl Filter {
    /// The shards that may hold what is wanted.
    pub fn shards(&self, layout: Layout) -> Vec<ShardId> {
        match &self.workflow {
            Some(workflow) => vec![layout.shard_of(workflow)],
            None => layout.all().collect(),
        }
    }

    /// Whether an event of a shard is wanted.
    pub fn takes(&self, shard: ShardId, stored: &StoredEvent) -> bool {
        let event = &stored.event;
        self.workflow.as_ref().is_none_or(|workflow| *workflow == event.workflow)
            && self.source.as_ref().is_none_or(|source| *source == event.source)
            && self.event_type.as_ref().is_none_or(|pattern| pattern_matches(pattern, &event.event_type))
            && (self.sources.is_empty() || self.sources.contains(&event.source))
            && (self.workflow_prefixes.is_empty()
                || self.workflow_prefixes.iter().any(|prefix| event.workflow.as_str().starts_with(prefix)))
            && self.subscription.as_ref().is_none_or(|subscription| subscription.takes(shard, stored))
    }
}

/// Some events and the cursor to continue from.
#[derive(Debug, Clone)]
pub struct Page {
    /// In the order in which they were stored; within a workflow that is the order of their numbers.
    pub events: Vec<StoredEvent>,
    /// Behind everything that this page looked at.
    pub next: Cursor,
    /// Whether the log held more behind `next` when the page was read. The filter may take none of it.
    pub has_more: bool,
}

/// Why there is no page.
#[derive(Debug, thiserror::Error)]
pub enum ScanError {
    /// Entries after the cursor have been dropped by retention, or the cursor is of another log.
    #[error("events after the cursor are no longer kept; continue from the oldest event kept")]
    Expired {
        /// In front of the oldest that is kept.
        oldest: Cursor,
    },
    /// No server, no stream, no answer in time.
    #[error("the log does not answer: {0}")]
    Unavailable(String),
    /// The stream has reached the number of consumers above which the rest is reserved for the readers that deliver and
    /// project.
    #[error("{stream} has {consumers} of {limit} consumers, and the rest is reserved; try again later")]
    Reserved {
        /// The stream.
        stream: String,
        /// Consumers that it has.
        consumers: u64,
        /// Consumers that it may have.
        limit: u64,
    },
}

impl From<DirectError> for ScanError {
    fn from(error: DirectError) -> Self {
        Self::Unavailable(error.to_string())
    }
}

impl From<EnsureError> for ScanError {
    fn from(error: EnsureError) -> Self {
        Self::Unavailable(error.to_string())
    }
}

/// The page behind `since`; `None`: from the oldest event kept. `limit` is taken as at least 1.
///
/// # Errors
///
/// [`ScanError`].
pub async fn scan(
    connection: &Connection,
    layout: Layout,
    since: Option<&Cursor>,
    filter: &Filter,
    limit: usize,
) -> Result<Page, ScanError> {
    let start = match since {
        Some(cursor) => cursor.clone(),
        None => oldest(connection, layout).await?,
    };
    let bounds = Bounds { events: limit.max(1), bytes: PAGE_BYTES_MAX, read_ahead_bytes: CHUNK_BYTES_TOTAL };
    // Without a cursor the page starts at the event that was the oldest when it was read.
    read_page(connection, layout, &start, since.is_some(), &filter.shards(layout), filter, bounds).await
}

/// Where a page ends, and what it may hold in memory besides its events.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Bounds {
    pub events: usize,
    pub bytes: usize,
    pub read_ahead_bytes: usize,
}

/// The page of some shards after `start`; the positions of the others stay. `exact`: everything after `start` must still
/// be kept.
pub(crate) async fn read_page(
    connection: &Connection,
    layout: Layout,
    start: &Cursor,
    exact: bool,
    shards: &[ShardId],
    filter: &Filter,
    bounds: Bounds,
) -> Result<Page, ScanError> {
    let chunk_bytes = bounds.read_ahead_bytes / shards.len().max(1);
    let mut sources = Vec::with_capacity(shards.len());
    for &shard in shards {
        let stream = layout.events_stream(shard);
        let position = start.position(shard);
        let state = streams::state(connection, &stream).await?;
        if exact && !continues(position, state) {
            return Err(ScanError::Expired { oldest: oldest(connection, layout).await? });
        }
        let subject =
            filter.workflow.as_ref().map_or_else(|| ">".to_owned(), |workflow| layout.event_subject(workflow));
        let filtered = filter.workflow.is_some();
        let (end, ahead) = (state.last, VecDeque::new());
        sources.push(Source { shard, stream, subject, filtered, position, end, ahead, chunk_bytes });
    }

    let merged = merge(connection, layout, &mut sources, filter, bounds).await?;

    let mut next = start.clone();
    for source in &sources {
        let state = streams::state(connection, &source.stream).await?;
        if exact && !continues(start.position(source.shard), state) {
            return Err(ScanError::Expired { oldest: oldest(connection, layout).await? });
        }
        next.set(source.shard, source.position);
    }
    Ok(Page { events: merged.events, next, has_more: merged.has_more })
}

/// The cursor in front of the oldest event kept.
///
/// # Errors
///
/// [`ScanError::Unavailable`].
pub async fn oldest(connection: &Connection, layout: Layout) -> Result<Cursor, ScanError> {
    let mut positions = Vec::with_capacity(layout.shards() as usize);
    for shard in layout.all() {
        let state = streams::state(connection, &layout.events_stream(shard)).await?;
        positions.push(before_first(state));
    }
    Ok(Cursor::new(layout, positions))
}

/// The cursor behind everything that is stored now.
///
/// # Errors
///
/// [`ScanError::Unavailable`].
pub async fn newest(connection: &Connection, layout: Layout) -> Result<Cursor, ScanError> {
    let mut positions = Vec::with_capacity(layout.shards() as usize);
    for shard in layout.all() {
        positions.push(streams::state(connection, &layout.events_stream(shard)).await?.last);
    }
    Ok(Cursor::new(layout, positions))
}

/// The cursor behind one event. Its own shard's position is exact; the other shards', which have no order with it, are
/// at its acceptance less five seconds, so that clocks that differ cause repeats and no gaps.
///
/// # Errors
///
/// [`ScanError`]; `Expired` when the event itself is no longer kept.
pub async fn behind(
    connection: &Connection,
    layout: Layout,
    shard: ShardId,
    seq: StreamSeq,
) -> Result<Cursor, ScanError> {
    let mut cursor = Cursor::new(layout, []);
    cursor.set(shard, seq);
    if layout.shards() == 1 {
        return Ok(cursor);
    }
    let stream = layout.events_stream(shard);
    let message = match direct::get(connection, &stream, seq).await? {
        Some(message) => Some(message),
        // Erased: what follows it was stored later, by which others may only be too early.
        None if seq >= streams::state(connection, &stream).await?.first => {
            direct::range(connection, &stream, seq, ">", 1, CHUNK_BYTES_TOTAL).await?.into_iter().next()
        }
        None => None,
    };
    let Some(message) = message else {
        return Err(ScanError::Expired { oldest: oldest(connection, layout).await? });
    };
    let time = match Entry::decode(layout, &message) {
        Entry::Event(event) => event.received_at.min(message.stored_at),
        Entry::Erased(erasure) => erasure.event.received_at.min(message.stored_at),
        Entry::Heads(_) | Entry::Foreign(_) => message.stored_at,
    };
    // Below the smallest time there is nothing: the oldest kept.
    let time = time.checked_sub(CLOCK_SLACK).unwrap_or(Timestamp::MIN);
    for other in layout.all().filter(|other| *other != shard) {
        cursor.set(other, before_time(connection, &layout.events_stream(other), time).await?);
    }
    Ok(cursor)
}

/// The last position of a stream whose message was stored before `time`; what follows it was stored at or after `time`.
///
/// A binary search by direct gets: about thirty for a billion messages.
///
/// # Errors
///
/// [`ScanError::Unavailable`].
pub async fn before_time(connection: &Connection, stream: &str, time: Timestamp) -> Result<StreamSeq, ScanError> {
    let state = streams::state(connection, stream).await?;
    // `below` was stored before, or is dropped; `above` was not, or is not there yet.
    let mut below = before_first(state).0;
    let mut above = state.last.0 + 1;
    while above - below > 1 {
        let middle = below + (above - below) / 2;
        match direct::get(connection, stream, StreamSeq(middle)).await? {
            Some(message) if message.stored_at >= time => above = middle,
            Some(_) => below = middle,
            None => match next_after_gap(connection, stream, StreamSeq(middle), StreamSeq(above)).await? {
                Gap::Dropped => below = middle,
                // Of erased events nothing was stored in between that could decide it.
                Gap::Erased(Some(next)) if next.stored_at < time => below = next.seq.0,
                Gap::Erased(_) => above = middle,
            },
        }
    }
    Ok(StreamSeq(below))
}

fn before_first(state: StreamState) -> StreamSeq {
    StreamSeq(state.first.0.saturating_sub(1))
}

/// Reason that a message is missing.
enum Gap {
    /// It was dropped with all before it.
    Dropped,
    /// It was erased; the next message before the end of the range, if there is one.
    Erased(Option<Stored>),
}

/// Finds the reason that the message at `seq` is missing.
async fn next_after_gap(
    connection: &Connection,
    stream: &str,
    seq: StreamSeq,
    end: StreamSeq,
) -> Result<Gap, ScanError> {
    if seq < streams::state(connection, stream).await?.first {
        return Ok(Gap::Dropped);
    }
    let next = direct::range(connection, stream, seq, ">", 1, CHUNK_BYTES_TOTAL).await?.into_iter().next();
    match next {
        // Reads are contiguous: a replica that has a later message lacks no earlier one.
        Some(next) => Ok(Gap::Erased(Some(next).filter(|next| next.seq < end))),
        None => match streams::presence(connection, stream, StreamSeq(seq.0 - 1), seq).await?.1 {
            Presence::Absent => Ok(Gap::Erased(None)),
            Presence::Present | Presence::Unreached => {
                Err(ScanError::Unavailable(format!("{stream}: a replica does not have {seq} yet")))
            }
        },
    }
}

/// Messages that are not there have been dropped by retention, or erased. Otherwise a replica answered that does not have
/// them yet, and nothing may be concluded from that.
async fn check_removed(
    connection: &Connection,
    stream: &str,
    after: StreamSeq,
    through: StreamSeq,
) -> Result<(), ScanError> {
    match streams::presence(connection, stream, after, through).await?.1 {
        Presence::Absent => Ok(()),
        Presence::Present | Presence::Unreached => {
            Err(ScanError::Unavailable(format!("{stream}: a replica does not have {through} yet")))
        }
    }
}

/// Whether a stream still holds, or will hold, everything behind a position.
pub(crate) fn continues(position: StreamSeq, state: StreamState) -> bool {
    position.0 <= state.last.0 && position.0.saturating_add(1) >= state.first.0
}

/// One shard, as far as it has been read.
struct Source {
    shard: ShardId,
    stream: String,
    subject: String,
    /// Whether the subject leaves some of the stream out.
    filtered: bool,
    /// Everything up to here has been looked at.
    position: StreamSeq,
    /// The stream's end when the page began.
    end: StreamSeq,
    /// Read, but not looked at yet.
    ahead: VecDeque<Stored>,
    chunk_bytes: usize,
}

impl Source {
    /// Reads the next chunk where nothing is ahead. After this call something is ahead, or the stream's end has been
    /// reached.
    async fn fill(&mut self, connection: &Connection) -> Result<(), ScanError> {
        if !self.ahead.is_empty() || self.position >= self.end {
            return Ok(());
        }
        let from = self.position.next();
        let chunk =
            direct::range(connection, &self.stream, from, &self.subject, CHUNK_MESSAGES, self.chunk_bytes).await?;
        if chunk.is_empty() {
            if self.filtered {
                self.check_last(connection).await?;
            } else {
                check_removed(connection, &self.stream, self.position, self.end).await?;
            }
            self.position = self.end;
        }
        self.ahead = chunk.into();
        Ok(())
    }

    /// Asks the stream's leader whether the subject really ends here: a direct get may be answered by a replica that does
    /// not have everything yet.
    async fn check_last(&self, connection: &Connection) -> Result<(), ScanError> {
        let unavailable = |error: &dyn std::fmt::Display| ScanError::Unavailable(format!("{}: {error}", self.stream));
        let stream =
            connection.jetstream().get_stream_no_info(&self.stream).await.map_err(|error| unavailable(&error))?;
        match stream.get_last_raw_message_by_subject(&self.subject).await {
            Ok(last) if last.sequence > self.position.0 => Err(unavailable(&"a replica is behind")),
            Ok(_) => Ok(()),
            Err(error) if error.kind() == LastRawMessageErrorKind::NoMessageFound => Ok(()),
            Err(error) => Err(unavailable(&error)),
        }
    }

    /// When the next message was stored.
    fn head_time(&self) -> Option<Timestamp> {
        self.ahead.front().map(|message| message.stored_at)
    }
}

struct Merged {
    events: Vec<StoredEvent>,
    has_more: bool,
}

/// Takes messages off the sources, oldest first, until the page is full or all are at their ends.
async fn merge(
    connection: &Connection,
    layout: Layout,
    sources: &mut [Source],
    filter: &Filter,
    bounds: Bounds,
) -> Result<Merged, ScanError> {
    let mut events = Vec::new();
    let mut bytes = 0;
    let mut entries = 0;
    loop {
        for source in sources.iter_mut() {
            source.fill(connection).await?;
        }
        let Some((_, oldest)) =
            sources.iter_mut().filter_map(|source| Some((source.head_time()?, source))).min_by_key(|(time, _)| *time)
        else {
            return Ok(Merged { events, has_more: false });
        };
        if events.len() >= bounds.events || entries >= ENTRIES_MAX || bytes >= bounds.bytes {
            return Ok(Merged { events, has_more: true });
        }
        let Some(message) = oldest.ahead.pop_front() else { continue };
        oldest.position = message.seq;
        entries += 1;
        // Heads and what is not ours only move the position.
        let (seq, stored_at) = (message.seq, message.stored_at);
        let stored = match Entry::decode(layout, &message) {
            Entry::Event(event) => Some(StoredEvent { seq, stored_at, event: *event }),
            Entry::Erased(erasure) => Some(erasure.into_stored(seq, stored_at)),
            Entry::Heads(_) | Entry::Foreign(_) => None,
        };
        if let Some(stored) = stored
            && filter.takes(oldest.shard, &stored)
        {
            bytes += stored.event.payload.len();
            events.push(stored);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A cursor is refused as soon as its successor is gone, and when it is beyond the log's end.
    #[test]
    fn a_position_expires_with_its_successor() {
        let state = StreamState { created: Timestamp::UNIX_EPOCH, first: StreamSeq(10), last: StreamSeq(20) };
        for (position, kept) in
            [(0, false), (8, false), (9, true), (10, true), (20, true), (21, false), (u64::MAX, false)]
        {
            assert_eq!(continues(StreamSeq(position), state), kept, "{position}");
        }
        let empty = StreamState { first: StreamSeq(21), ..state };
        assert!(continues(StreamSeq(20), empty) && !continues(StreamSeq(19), empty));
        assert_eq!(before_first(empty), StreamSeq(20));
    }
}
