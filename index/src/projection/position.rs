//! Where a projection stands in a stream, and whether that is still the stream it was made of.

use jiff::Timestamp;
use redb::{ReadTransaction, TableDefinition, TableError, WriteTransaction};
use weft_nats::{
    connect::Connection,
    direct,
    event::event_id_of,
    message::Stored,
    streams::{self, EnsureError, StreamState},
};
use weft_proto::ids::{EventId, StreamSeq};

/// A stream's creation in unix nanoseconds, the cursor, whether a message stands at the cursor, when that was stored in
/// unix nanoseconds, its event id.
type Row = (i64, u64, bool, i64, Option<&'static [u8; 16]>);
/// By the stream's name.
const POSITIONS: TableDefinition<&str, Row> = TableDefinition::new("positions");

/// A cursor in a stream, with what tells the stream from another one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Position {
    /// When the stream was made.
    pub created: Timestamp,
    /// Everything up to here has been applied. 0: nothing.
    pub cursor: StreamSeq,
    /// The message at the cursor; `None` where there was none.
    pub mark: Option<Mark>,
}

/// What is remembered of a message, to recognise it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Mark {
    /// When the server stored it.
    pub stored_at: Timestamp,
    /// Its `Nats-Msg-Id`, where that is an event id.
    pub id: Option<EventId>,
}

/// What to do with a projection, seen what the log looks like now.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Verdict {
    /// Go on behind the cursor.
    Keep,
    /// The same stream, but what followed the cursor has been dropped unread: go on at `first`. What the projection knows
    /// still holds, and building it anew would bring none of the rest back.
    Skip {
        /// The first sequence kept.
        first: StreamSeq,
    },
    /// Another stream, or a restored one: build anew.
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
    /// What `message` is recognised by.
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

/// Compares a position with its stream and the message that stands at the cursor now. A message that is no longer kept
/// cannot be compared and counts as the same.
pub fn check(position: &Position, state: &StreamState, at_cursor: Option<&Stored>) -> Verdict {
    if position.created != state.created {
        return Verdict::Rebuild(Mismatch::Created { expected: position.created, found: state.created });
    }
    let cursor = position.cursor;
    if state.last < cursor {
        return Verdict::Rebuild(Mismatch::Behind { cursor, last: state.last });
    }
    if let (Some(mark), Some(message)) = (position.mark, at_cursor)
        && mark != Mark::of(message)
    {
        return Verdict::Rebuild(Mismatch::Message { cursor });
    }
    // A projection that has read nothing starts wherever the stream starts.
    if cursor > StreamSeq(0) && state.first > cursor.next() {
        return Verdict::Skip { first: state.first };
    }
    Verdict::Keep
}

/// Asks the log what it looks like and compares. Returns the stream's state, too.
///
/// # Errors
///
/// [`EnsureError`]: the log could not be asked.
pub async fn verify(
    connection: &Connection,
    stream: &str,
    position: &Position,
) -> Result<(StreamState, Verdict), EnsureError> {
    let state = streams::state(connection, stream).await?;
    let cursor = position.cursor;
    let at_cursor = if position.mark.is_some() && (state.first..=state.last).contains(&cursor) {
        direct::get(connection, stream, cursor).await.map_err(|error| EnsureError::Unavailable(error.to_string()))?
    } else {
        None
    };
    Ok((state, check(position, &state, at_cursor.as_ref())))
}

/// The stored position in `stream`; `None` where the projection has none.
///
/// # Errors
///
/// What redb says.
pub fn position(transaction: &ReadTransaction, stream: &str) -> Result<Option<Position>, redb::Error> {
    let table = match transaction.open_table(POSITIONS) {
        Ok(table) => table,
        Err(TableError::TableDoesNotExist(_)) => return Ok(None),
        Err(error) => return Err(error.into()),
    };
    let Some(row) = table.get(stream)? else { return Ok(None) };
    let (created, cursor, marked, stored_at, id) = row.value();
    let mark = marked.then(|| Mark { stored_at: from_nanos(stored_at), id: id.copied().map(EventId::from_bytes) });
    Ok(Some(Position { created: from_nanos(created), cursor: StreamSeq(cursor), mark }))
}

/// Stores a position, as part of the transaction that applies what lies before it.
///
/// # Errors
///
/// What redb says.
pub fn set_position(transaction: &WriteTransaction, stream: &str, position: &Position) -> Result<(), redb::Error> {
    let mark = position.mark.as_ref();
    let stored_at = mark.map_or(0, |mark| nanos(mark.stored_at));
    let id = mark.and_then(|mark| mark.id.as_ref()).map(EventId::as_bytes);
    let row = (nanos(position.created), position.cursor.0, mark.is_some(), stored_at, id);
    transaction.open_table(POSITIONS)?.insert(stream, row)?;
    Ok(())
}

/// Unix nanoseconds; good for the years 1678 to 2262, and the nearest of them for others.
fn nanos(time: Timestamp) -> i64 {
    let nanos = time.as_nanosecond();
    i64::try_from(nanos).unwrap_or(if nanos < 0 { i64::MIN } else { i64::MAX })
}

fn from_nanos(nanos: i64) -> Timestamp {
    // Every i64 lies within jiff's years −9999 to 9999.
    Timestamp::from_nanosecond(nanos.into()).unwrap_or(Timestamp::UNIX_EPOCH)
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;
    use redb::ReadableDatabase as _;
    use weft_nats::async_nats::HeaderMap;

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
        assert_eq!(check(&position, &state(1, 0), None), Verdict::Keep, "an empty stream");
        assert_eq!(check(&position, &state(5, 9), None), Verdict::Keep, "nothing read yet");
        position.advance(&mine);
        assert_eq!(check(&position, &state(1, 7), Some(&mine)), Verdict::Keep);
        assert_eq!(check(&position, &state(8, 7), None), Verdict::Keep, "read, then dropped");
        assert_eq!(check(&position, &state(9, 20), None), Verdict::Skip { first: StreamSeq(9) });
        let cursor = StreamSeq(7);
        let behind = Mismatch::Behind { cursor, last: StreamSeq(6) };
        assert_eq!(check(&position, &state(1, 6), None), Verdict::Rebuild(behind));
        let other = message(7, EventId::unique());
        assert_eq!(check(&position, &state(1, 9), Some(&other)), Verdict::Rebuild(Mismatch::Message { cursor }));
        let made_later = StreamState { created: Timestamp::from_second(1).unwrap(), ..state(1, 9) };
        let verdict = check(&position, &made_later, Some(&mine));
        assert!(matches!(verdict, Verdict::Rebuild(Mismatch::Created { .. })), "{verdict:?}");
    }

    #[test]
    fn a_position_survives_its_file() {
        let folder = tempfile::tempdir().unwrap();
        let database = redb::Database::create(folder.path().join("positions.redb")).unwrap();
        assert_eq!(position(&database.begin_read().unwrap(), "EVENTS").unwrap(), None);
        let mut stored = Position::start(Timestamp::from_nanosecond(1_700_000_000_000_000_001).unwrap());
        let read = |expected: &Position| {
            let transaction = database.begin_write().unwrap();
            set_position(&transaction, "EVENTS", expected).unwrap();
            transaction.commit().unwrap();
            position(&database.begin_read().unwrap(), "EVENTS").unwrap()
        };
        assert_eq!(read(&stored), Some(stored.clone()));
        stored.advance(&message(u64::MAX, EventId::unique()));
        assert_eq!(read(&stored), Some(stored.clone()));
        let mut foreign = message(9, EventId::unique());
        foreign.headers = HeaderMap::new();
        stored.advance(&foreign);
        assert_eq!(read(&stored), Some(stored.clone()));
    }
}
