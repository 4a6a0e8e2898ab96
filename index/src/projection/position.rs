//! The positions that a projection stores in its redb file, one row for each stream.

use redb::{ReadTransaction, TableDefinition, TableError, WriteTransaction};
use weft_nats::position::{Mark, Position, from_nanos, nanos};
use weft_proto::ids::{EventId, StreamSeq};

/// A stream's creation in unix nanoseconds, the cursor, whether there is a message at the cursor, its storage time in
/// unix nanoseconds, its event id.
type Row = (i64, u64, bool, i64, Option<&'static [u8; 16]>);
/// By the stream's name.
const POSITIONS: TableDefinition<&str, Row> = TableDefinition::new("positions");

/// The stored position in `stream`; `None` if the projection has none.
///
/// # Errors
///
/// The error of redb.
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

/// Stores a position, as part of the transaction that applies the messages up to it.
///
/// # Errors
///
/// The error of redb.
pub fn set_position(transaction: &WriteTransaction, stream: &str, position: &Position) -> Result<(), redb::Error> {
    let mark = position.mark.as_ref();
    let stored_at = mark.map_or(0, |mark| nanos(mark.stored_at));
    let id = mark.and_then(|mark| mark.id.as_ref()).map(EventId::as_bytes);
    let row = (nanos(position.created), position.cursor.0, mark.is_some(), stored_at, id);
    transaction.open_table(POSITIONS)?.insert(stream, row)?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;
    use jiff::Timestamp;
    use redb::ReadableDatabase as _;
    use weft_nats::{async_nats::HeaderMap, message::Stored};

    use super::*;

    fn message(seq: u64, id: EventId) -> Stored {
        let mut headers = HeaderMap::new();
        headers.insert("Nats-Msg-Id", id.to_string().as_str());
        let stored_at = Timestamp::from_nanosecond(1_700_000_000_123_456_789).unwrap();
        Stored { seq: StreamSeq(seq), stored_at, subject: "events.a".into(), headers, payload: Bytes::new() }
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
