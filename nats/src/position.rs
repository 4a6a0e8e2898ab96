//! A position in a stream, and whether the stream is still the one in which that position was taken.
//!
//! A sequence alone identifies nothing: a stream that was restored from a backup, deleted and created again, or that lost
//! its tail to a power cut gives the same sequences to other messages. A [`Position`] therefore carries the stream's
//! creation time and a [`Mark`] of the message at its cursor. Every commit, checkpoint, projection and reader stores its
//! position in this form and compares it with [`verify`] before it relies on the cursor.

use std::{fmt, time::Duration};

use jiff::Timestamp;
use tokio::time::Instant;
use weft_proto::{
    ids::{EventId, StreamSeq},
    internal,
};

use crate::{
    backoff::Backoff,
    connect::Connection,
    direct,
    event::event_id_of,
    message::Stored,
    streams::{self, EnsureError, LeaderView, StreamState},
};

/// A cursor in a stream, with the properties that distinguish the stream from another one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Position {
    /// When the stream was made.
    pub created: Timestamp,
    /// Everything up to here has been applied. 0: nothing.
    pub cursor: StreamSeq,
    /// The message at the cursor; `None` where there was none.
    pub mark: Option<Mark>,
}

/// Properties of a message that are remembered to recognise it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Mark {
    /// When the server stored it.
    pub stored_at: Timestamp,
    /// Its `Nats-Msg-Id`, where that is an event id.
    pub id: Option<EventId>,
}

/// Action for a projection, given the current state of the log.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum PositionCheck {
    /// Continue after the cursor.
    Keep,
    /// The same stream, but what followed the cursor has been dropped unread: continue at `first`. What the projection
    /// knows still holds, and rebuilding it would bring none of the rest back.
    Skip {
        /// The first sequence kept.
        first: StreamSeq,
    },
    /// Another stream, or a restored one: rebuild from scratch.
    Rebuild(Mismatch),
}

/// In what a stream differs from the one a projection was made of.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Mismatch {
    /// It was made at another time.
    #[error("the stream was made at {found}, not at {expected}")]
    Created {
        /// When the known one was made.
        expected: Timestamp,
        /// When this one was made.
        found: Timestamp,
    },
    /// It ends before the cursor.
    #[error("the stream ends at {last}, before the cursor {cursor}")]
    Behind {
        /// The projection's cursor.
        cursor: StreamSeq,
        /// The stream's end.
        last: StreamSeq,
    },
    /// Another message stands at the cursor.
    #[error("the message at {cursor} is another one")]
    Message {
        /// The projection's cursor.
        cursor: StreamSeq,
    },
}

impl Mark {
    /// Mark of `message`.
    pub fn of(message: &Stored) -> Self {
        Self { stored_at: message.stored_at, id: event_id_of(message) }
    }
}

impl Position {
    /// In front of a stream's first message.
    pub const fn start(created: Timestamp) -> Self {
        Self { created, cursor: StreamSeq(0), mark: None }
    }

    /// Behind `message`.
    pub fn advance(&mut self, message: &Stored) {
        self.cursor = message.seq;
        self.mark = Some(Mark::of(message));
    }
}

impl fmt::Display for Position {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "sequence {}", self.cursor)?;
        match self.mark {
            Some(mark) => write!(f, " ({mark})")?,
            None => write!(f, " (no known message)")?,
        }
        write!(f, " of the stream made at {}", self.created)
    }
}

impl fmt::Display for Mark {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.id {
            Some(id) => write!(f, "event {id} stored at {}", self.stored_at),
            None => write!(f, "message stored at {}", self.stored_at),
        }
    }
}

/// Compares a position with its stream and the message that stands at the cursor now. A message that is no longer kept
/// cannot be compared and counts as the same.
pub fn check(position: &Position, state: &StreamState, at_cursor: Option<&Stored>) -> PositionCheck {
    if position.created != state.created {
        return PositionCheck::Rebuild(Mismatch::Created { expected: position.created, found: state.created });
    }
    let cursor = position.cursor;
    if state.last < cursor {
        return PositionCheck::Rebuild(Mismatch::Behind { cursor, last: state.last });
    }
    if let (Some(mark), Some(message)) = (position.mark, at_cursor)
        && mark != Mark::of(message)
    {
        return PositionCheck::Rebuild(Mismatch::Message { cursor });
    }
    // A projection that has read nothing starts wherever the stream starts.
    if cursor > StreamSeq(0) && state.first > cursor.next() {
        return PositionCheck::Skip { first: state.first };
    }
    PositionCheck::Keep
}

/// Asks the log for its state and compares. Returns the state, too.
///
/// A leader whose state ends before the cursor is asked again until its end is [believed](BehindWatch).
///
/// # Errors
///
/// [`EnsureError`]: the log could not be asked, or a leader lags.
pub async fn verify(
    connection: &Connection,
    stream: &str,
    position: &Position,
) -> Result<(StreamState, PositionCheck), EnsureError> {
    let (state, check, _) = verify_reaching(connection, stream, position, position.cursor).await?;
    Ok((state, check))
}

/// As [`verify`], of a stream that must reach at least to `through`. Returns the mark of the message at the cursor, too,
/// where it was compared.
pub(crate) async fn verify_reaching(
    connection: &Connection,
    stream: &str,
    position: &Position,
    through: StreamSeq,
) -> Result<(StreamState, PositionCheck, Option<Mark>), EnsureError> {
    let mut watch = BehindWatch::default();
    let mut reports = 0;
    loop {
        let (view, found, mark) = compare(connection, stream, position, through).await?;
        let behind = matches!(found, PositionCheck::Rebuild(Mismatch::Behind { .. }));
        if !behind || watch.believes(&view, Instant::now()) {
            return Ok((view.state, found, mark));
        }
        reports += 1;
        tokio::time::sleep(BEHIND_RETRY.after(reports)).await;
    }
}

/// As [`verify`], asked once: of a replicated stream [`Mismatch::Behind`] may come from a leader that lags, and the caller
/// must ask a [`BehindWatch`] whether to believe it.
///
/// # Errors
///
/// As [`verify`].
pub async fn verify_once(
    connection: &Connection,
    stream: &str,
    position: &Position,
) -> Result<(LeaderView, PositionCheck), EnsureError> {
    let (view, found, _) = compare(connection, stream, position, position.cursor).await?;
    Ok((view, found))
}

async fn compare(
    connection: &Connection,
    stream: &str,
    position: &Position,
    through: StreamSeq,
) -> Result<(LeaderView, PositionCheck, Option<Mark>), EnsureError> {
    let view = streams::leader_view(connection, stream).await?;
    let at_cursor = at_cursor(connection, stream, position, &view.state).await?;
    let found = match check(position, &view.state, at_cursor.as_ref()) {
        PositionCheck::Keep | PositionCheck::Skip { .. } if view.state.last < through => {
            PositionCheck::Rebuild(Mismatch::Behind { cursor: through, last: view.state.last })
        }
        found => found,
    };
    Ok((view, found, at_cursor.as_ref().map(Mark::of)))
}

/// The message at the cursor, where there is one to compare with.
async fn at_cursor(
    connection: &Connection,
    stream: &str,
    position: &Position,
    state: &StreamState,
) -> Result<Option<Stored>, EnsureError> {
    let cursor = position.cursor;
    let Some(mark) = position.mark.filter(|_| position.created == state.created) else { return Ok(None) };
    if !(state.first..=state.last).contains(&cursor) {
        return Ok(None);
    }
    let unavailable = |error: direct::DirectError| EnsureError::Unavailable(error.to_string());
    let found = direct::get(connection, stream, cursor).await.map_err(unavailable)?;
    if found.as_ref().is_some_and(|found| Mark::of(found) == mark) {
        return Ok(found);
    }
    // Any replica may have answered: one that lags, or one that has not heard of a restored stream yet.
    let found = streams::leader_message(connection, stream, cursor).await?;
    if found.is_none() {
        // Removed, or another leader has answered that lags.
        let again = streams::state(connection, stream).await?;
        if again.created != state.created || again.last < cursor {
            return Err(EnsureError::Unavailable(format!("the leader of {stream} has changed; ask again")));
        }
    }
    Ok(found)
}

/// How long a replicated stream must be reported to end before a known position until that is believed. A leader that is
/// cut off steps down within 10 s, and a new one has applied its log within a few.
pub const LAGGING_LEADER_MAX: Duration = Duration::from_secs(30);
/// The first and the longest pause between two questions to a leader that lags.
const BEHIND_RETRY: Backoff = Backoff::new(Duration::from_millis(50), Duration::from_secs(1));

/// Decides when to believe that a stream ends before a known position: that it lost its tail.
///
/// A server alone is the stream, and it is believed at once. In a cluster, a leader that was cut off, a new one, or one that
/// opens its store may lag, so it is believed only of leaders in contact with a majority of the replicas, and only when for
/// [`LAGGING_LEADER_MAX`] none has reported more.
#[derive(Debug, Default)]
pub struct BehindWatch {
    since: Option<Instant>,
}

impl BehindWatch {
    /// A leader reports that the stream ends before the position. Whether to believe it.
    pub fn believes(&mut self, view: &LeaderView, now: Instant) -> bool {
        let since = *self.since.get_or_insert(now);
        !view.clustered || (view.quorum && now.duration_since(since) >= LAGGING_LEADER_MAX)
    }

    /// Whether leaders report that the stream ends before the position.
    pub fn is_behind(&self) -> bool {
        self.since.is_some()
    }

    /// A leader reports that the stream reaches the position.
    pub fn reached(&mut self) {
        self.since = None;
    }
}

impl From<&Position> for internal::LogPosition {
    fn from(position: &Position) -> Self {
        let mark = position.mark.as_ref();
        Self {
            created_ns: nanos(position.created),
            sequence: position.cursor.0,
            stored_at_ns: mark.map(|mark| nanos(mark.stored_at)),
            event_id: mark.and_then(|mark| mark.id.as_ref()).map_or_else(Vec::new, |id| id.as_bytes().to_vec()),
        }
    }
}

impl From<&internal::LogPosition> for Position {
    fn from(stored: &internal::LogPosition) -> Self {
        let id = <[u8; 16]>::try_from(stored.event_id.as_ref()).ok().map(EventId::from_bytes);
        Self {
            created: from_nanos(stored.created_ns),
            cursor: StreamSeq(stored.sequence),
            mark: stored.stored_at_ns.map(|stored_at| Mark { stored_at: from_nanos(stored_at), id }),
        }
    }
}

/// Unix nanoseconds; exact for the years 1678 to 2262, clamped to that range for others.
pub fn nanos(time: Timestamp) -> i64 {
    let nanos = time.as_nanosecond();
    i64::try_from(nanos).unwrap_or(if nanos < 0 { i64::MIN } else { i64::MAX })
}

/// The inverse of [`nanos`].
pub fn from_nanos(nanos: i64) -> Timestamp {
    // Every i64 lies within jiff's years −9999 to 9999.
    Timestamp::from_nanosecond(nanos.into()).unwrap_or(Timestamp::UNIX_EPOCH)
}

#[cfg(test)]
mod tests {
    use async_nats::HeaderMap;
    use bytes::Bytes;

    use super::*;

    const T0: Timestamp = Timestamp::UNIX_EPOCH;

    fn message(seq: u64, id: EventId) -> Stored {
        let mut headers = HeaderMap::new();
        headers.insert("Nats-Msg-Id", id.to_string().as_str());
        let stored_at = Timestamp::from_nanosecond(1_700_000_000_123_456_789).unwrap();
        Stored { seq: StreamSeq(seq), stored_at, subject: "events.a".into(), headers, payload: Bytes::new() }
    }

    fn state(first: u64, last: u64) -> StreamState {
        StreamState { created: T0, first: StreamSeq(first), last: StreamSeq(last) }
    }

    /// A log that was restored from yesterday is noticed, whether it is shorter or has grown again since.
    #[test]
    fn another_log_is_told_from_the_same() {
        let mine = message(7, EventId::unique());
        let mut position = Position::start(T0);
        assert_eq!(check(&position, &state(1, 0), None), PositionCheck::Keep, "an empty stream");
        assert_eq!(check(&position, &state(5, 9), None), PositionCheck::Keep, "nothing read yet");
        position.advance(&mine);
        assert_eq!(check(&position, &state(1, 7), Some(&mine)), PositionCheck::Keep);
        assert_eq!(check(&position, &state(8, 7), None), PositionCheck::Keep, "read, then dropped");
        assert_eq!(check(&position, &state(9, 20), None), PositionCheck::Skip { first: StreamSeq(9) });
        let cursor = StreamSeq(7);
        let behind = Mismatch::Behind { cursor, last: StreamSeq(6) };
        assert_eq!(check(&position, &state(1, 6), None), PositionCheck::Rebuild(behind));
        let other = message(7, EventId::unique());
        assert_eq!(check(&position, &state(1, 9), Some(&other)), PositionCheck::Rebuild(Mismatch::Message { cursor }));
        let made_later = StreamState { created: Timestamp::from_second(1).unwrap(), ..state(1, 9) };
        let found = check(&position, &made_later, Some(&mine));
        assert!(matches!(found, PositionCheck::Rebuild(Mismatch::Created { .. })), "{found:?}");
    }

    /// A cluster's leader that lags is not believed before any leader would have caught up or stepped down.
    #[test]
    fn only_a_lasting_end_of_a_replicated_stream_is_believed() {
        let now = Instant::now();
        let alone =
            LeaderView { state: state(1, 6), replicas: 1, clustered: false, leader: None, quorum: true, removed: 0 };
        assert!(BehindWatch::default().believes(&alone, now));
        let view = |quorum| LeaderView { replicas: 3, clustered: true, quorum, ..alone.clone() };
        let mut watch = BehindWatch::default();
        assert!(!watch.believes(&view(true), now));
        assert!(!watch.believes(&view(false), now + LAGGING_LEADER_MAX), "cut off from the others");
        assert!(watch.believes(&view(true), now + LAGGING_LEADER_MAX));
        watch.reached();
        assert!(!watch.believes(&view(true), now + LAGGING_LEADER_MAX));
    }

    #[test]
    fn a_position_survives_its_encoding() {
        let mut position = Position::start(Timestamp::from_nanosecond(1_700_000_000_000_000_001).unwrap());
        let again = |position: &Position| Position::from(&internal::LogPosition::from(position));
        assert_eq!(again(&position), position);
        position.advance(&message(u64::MAX, EventId::unique()));
        assert_eq!(again(&position), position);
        let mut foreign = message(9, EventId::unique());
        foreign.headers = HeaderMap::new();
        position.advance(&foreign);
        assert_eq!(again(&position), position);
    }
}
