//! Receipts of a real log: read, compared, and distinguished from another log.

use std::time::Duration;

use weft_index::{
    projection::{self, Mismatch, Position, PositionCheck},
    receipts::{Change, Changes, Horizons, Receipts, body_digest},
};
use weft_nats::{
    append::Appender,
    connect::Connection,
    event::Event,
    reader::{OrderedReader, ReaderOptions},
    streams::{self, LogSpec},
    subject::Layout,
};
use weft_proto::ids::{EventId, SequenceNumber, StreamSeq};
use weft_testkit::TestServer;

const LAYOUT: Layout = Layout::new(1);

fn spec() -> LogSpec {
    LogSpec { body_bytes_max: 1 << 20, ..LogSpec::default() }
}

fn event(number: u64) -> Event {
    let _id = |number: u64| EventId::of_delivery("shop", &number.to_string());
    weft_testkit::event("a").number(number).payload(number.to_string()).build()
}

async fn append(connection: &Connection, numbers: std::ops::RangeInclusive<u64>) {
    let last = streams::state(connection, "EVENTS").await.unwrap().last;
    let messages: Vec<_> = numbers.map(|number| event(number).encode(LAYOUT)).collect();
    Appender::new(connection.clone()).append(last, &messages).await.unwrap();
}

/// Reads the log to its end.
async fn follow(connection: &Connection, receipts: &Receipts) {
    let state = streams::state(connection, "EVENTS").await.unwrap();
    let position = receipts.view().unwrap().position().cloned().unwrap_or(Position::start(state.created));
    let from = position.cursor.next();
    let writer = receipts.writer(position).unwrap();
    let options = ReaderOptions {
        stream: "EVENTS".into(),
        name: "receipts".into(),
        from,
        filter: None,
        batch_messages_max: 100,
        known: None,
        pages: false,
    };
    let mut reader = OrderedReader::new(connection.clone(), options);
    while reader.position() <= state.last {
        let messages = reader.next().await.unwrap().messages;
        writer.send(Changes::new(messages.iter().map(|message| Change::of(LAYOUT, message)).collect())).await.unwrap();
    }
    writer.close().await.unwrap();
}

/// The receipts have the log's events with the receipts of their senders; and the log is distinguished from one
/// that was emptied, created again, or restored from an earlier day.
#[tokio::test]
async fn receipts_follow_their_log_and_notice_another() {
    let server = TestServer::start().await;
    let connection = server.connection("test").await;
    streams::ensure(&connection, &spec()).await.unwrap();
    let folder = tempfile::tempdir().unwrap();
    let horizons = Horizons::new(Duration::from_secs(3600), Duration::from_secs(36_000));
    let receipts = Receipts::open(&folder.path().join("receipts.redb"), "EVENTS", horizons).unwrap();
    append(&connection, 1..=20).await;
    follow(&connection, &receipts).await;
    append(&connection, 21..=30).await;
    follow(&connection, &receipts).await;

    let view = receipts.view().unwrap();
    let accepted = view.receipt(event(30).id).unwrap().unwrap();
    let expected = event(30);
    assert_eq!(
        (accepted.seq, accepted.sequence_number, accepted.previous),
        (StreamSeq(30), SequenceNumber(30), expected.previous)
    );
    assert_eq!(accepted.digest, body_digest(&expected.workflow, &expected.event_type, &expected.payload));
    let head = view.head(&expected.workflow).unwrap().unwrap();
    assert_eq!((head.sequence_number, head.event_id), (SequenceNumber(30), expected.id));

    let position = view.position().unwrap().clone();
    let verify = async || projection::verify(&connection, "EVENTS", &position).await.unwrap().1;
    assert_eq!(verify().await, PositionCheck::Keep);
    append(&connection, 31..=40).await;
    assert_eq!(verify().await, PositionCheck::Keep);
    let purge = async |behind: u64| {
        connection.jetstream().get_stream("EVENTS").await.unwrap().purge().sequence(behind).await.unwrap();
    };
    purge(31).await;
    assert_eq!(verify().await, PositionCheck::Keep, "only what has been read is gone");
    purge(36).await;
    assert_eq!(verify().await, PositionCheck::Skip { first: StreamSeq(36) });
    connection.jetstream().delete_stream("EVENTS").await.unwrap();
    streams::ensure(&connection, &spec()).await.unwrap();
    append(&connection, 1..=40).await;
    let verdict = verify().await;
    assert!(matches!(verdict, PositionCheck::Rebuild(Mismatch::Created { .. })), "{verdict:?}");
    // As after a restore that keeps the time of creation: other messages at the same places, or none.
    let created = streams::state(&connection, "EVENTS").await.unwrap().created;
    let restored = async |cursor: u64| {
        let position = Position { created, cursor: StreamSeq(cursor), ..position.clone() };
        projection::verify(&connection, "EVENTS", &position).await.unwrap().1
    };
    assert_eq!(restored(30).await, PositionCheck::Rebuild(Mismatch::Message { cursor: StreamSeq(30) }));
    let behind = Mismatch::Behind { cursor: StreamSeq(41), last: StreamSeq(40) };
    assert_eq!(restored(41).await, PositionCheck::Rebuild(behind));
}
