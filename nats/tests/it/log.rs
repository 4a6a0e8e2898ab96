//! Compare-and-append, the ordered reader and direct gets against a real nats-server.

use std::{collections::HashSet, sync::Arc, time::Duration};

use bytes::Bytes;
use weft_nats::{
    append::{AppendErrorKind, Appender},
    async_nats::HeaderMap,
    connect::Connection,
    direct,
    message::{Outgoing, Stored},
    reader::{OrderedReader, ReadError, ReaderOptions},
    streams::{self, LogSpec},
    testing::TestServer,
};
use weft_proto::ids::StreamSeq;

/// How long anything may take before it counts as never.
const PATIENCE: Duration = Duration::from_secs(30);

async fn log() -> (TestServer, Connection) {
    let server = TestServer::start().await;
    let connection = server.connection("test").await;
    streams::ensure(&connection, &spec()).await.unwrap();
    (server, connection)
}

fn spec() -> LogSpec {
    LogSpec { body_bytes_max: 1 << 20, ..LogSpec::default() }
}

fn message(text: &str) -> Outgoing {
    Outgoing { subject: "events.w".into(), headers: HeaderMap::new(), payload: Bytes::from(text.to_owned()) }
}

fn messages(count: usize) -> Vec<Outgoing> {
    (0..count).map(|number| message(&number.to_string())).collect()
}

fn reader(connection: &Connection, from: u64) -> OrderedReader {
    let options = ReaderOptions {
        stream: "EVENTS".into(),
        name: "test".into(),
        from: StreamSeq(from),
        filter: None,
        batch_messages_max: 500,
    };
    OrderedReader::new(connection.clone(), options)
}

async fn read(reader: &mut OrderedReader, count: usize) -> Vec<Stored> {
    let mut messages = Vec::new();
    while messages.len() < count {
        let batch = tokio::time::timeout(PATIENCE, reader.next()).await.expect("messages").unwrap();
        assert!(!batch.messages.is_empty());
        messages.extend(batch.messages);
    }
    messages
}

#[tokio::test]
async fn appends_one_by_one_and_in_batches_behind_what_was_expected() {
    let (_server, connection) = log().await;
    let mut appender = Appender::new(connection.clone());
    assert_eq!(appender.append(StreamSeq(0), &messages(3)).await.unwrap(), StreamSeq(3));
    assert_eq!(appender.append(StreamSeq(3), &messages(200)).await.unwrap(), StreamSeq(203));
    assert_eq!(appender.append(StreamSeq(203), &messages(1000)).await.unwrap(), StreamSeq(1203));
    let stored = read(&mut reader(&connection, 1), 1203).await;
    assert!(stored.iter().enumerate().all(|(index, message)| message.seq.0 == index as u64 + 1));
    assert_eq!(stored[3].payload, "0");
    assert_eq!(stored[1202].payload, "999");
}

#[tokio::test]
async fn a_stale_writer_is_refused_and_told_the_end() {
    let (_server, connection) = log().await;
    let mut appender = Appender::new(connection.clone());
    appender.append(StreamSeq(0), &messages(5)).await.unwrap();
    for count in [1, 100] {
        let error = appender.append(StreamSeq(2), &messages(count)).await.unwrap_err();
        assert_eq!(error.stored, 0);
        assert!(matches!(error.kind, AppendErrorKind::Conflict { .. }), "{error}");
    }
    let error = appender.append(StreamSeq(2), &messages(1)).await.unwrap_err();
    assert_eq!(error.kind, AppendErrorKind::Conflict { last: Some(StreamSeq(5)) });
    assert_eq!(streams::state(&connection, "EVENTS").await.unwrap().last, StreamSeq(5), "nothing was stored");
}

#[tokio::test]
async fn a_message_over_the_limit_is_refused_and_harms_no_other() {
    let (_server, connection) = log().await;
    let mut appender = Appender::new(connection.clone());
    let mut many = messages(20);
    many[10] = message(&"x".repeat((1 << 20) + (129 << 10)));
    let error = appender.append(StreamSeq(0), &many).await.unwrap_err();
    assert_eq!(error.stored, 0);
    assert_eq!(streams::state(&connection, "EVENTS").await.unwrap().last, StreamSeq(0));
    assert_eq!(appender.append(StreamSeq(0), &messages(2)).await.unwrap(), StreamSeq(2));
}

/// P1, P2: an append whose answer is lost is found by reading on; of two copies only one is stored.
#[tokio::test]
async fn an_append_without_an_answer_is_stored_at_most_once() {
    let (server, connection) = log().await;
    let mut appender = Appender::new(connection.clone());
    appender.append(StreamSeq(0), &[message("first")]).await.unwrap();
    server.pause();
    let error = appender.append(StreamSeq(1), &[message("uncertain")]).await.unwrap_err();
    server.resume();
    assert!(matches!(error.kind, AppendErrorKind::Unknown(_)), "{error}");
    // The same again: either the late copy is there and this one conflicts, or this one is the only one.
    tokio::time::timeout(PATIENCE, connection.connected()).await.unwrap();
    let again = appender.append(StreamSeq(1), &[message("uncertain")]).await;
    assert!(
        matches!(&again, Ok(StreamSeq(2)))
            || matches!(&again, Err(error) if matches!(error.kind, AppendErrorKind::Conflict { .. })),
        "{again:?}"
    );
    let stored = read(&mut reader(&connection, 1), 2).await;
    assert_eq!(stored.len(), 2);
    assert_eq!(stored[1].payload, "uncertain");
}

/// Idea 1: several writers, each deciding again after a conflict, lose and double nothing.
#[tokio::test]
async fn racing_writers_lose_and_double_nothing() {
    let (_server, connection) = log().await;
    let connection = Arc::new(connection);
    let writers: Vec<_> = (0..3)
        .map(|writer| {
            let connection = connection.clone();
            tokio::spawn(async move {
                let mut appender = Appender::new((*connection).clone());
                for round in 0..15 {
                    let texts: Vec<_> = (0..12).map(|number| message(&format!("{writer}/{round}/{number}"))).collect();
                    let mut left = &texts[..];
                    while !left.is_empty() {
                        let end = streams::state(&connection, "EVENTS").await.unwrap().last;
                        match appender.append(end, left).await {
                            Ok(_) => left = &[],
                            Err(error) => {
                                assert!(matches!(error.kind, AppendErrorKind::Conflict { .. }), "{error}");
                                left = &left[error.stored..];
                            }
                        }
                    }
                }
            })
        })
        .collect();
    for writer in writers {
        writer.await.unwrap();
    }
    let stored = read(&mut reader(&connection, 1), 3 * 15 * 12).await;
    let texts: HashSet<_> = stored.iter().map(|message| message.payload.clone()).collect();
    assert_eq!((stored.len(), texts.len()), (540, 540));
}

#[tokio::test]
async fn the_reader_goes_on_through_kills_without_gap_or_repeat() {
    let (server, connection) = log().await;
    let mut appender = Appender::new(connection.clone());
    let mut end = StreamSeq(0);
    for _ in 0..8 {
        end = appender.append(end, &messages(1000)).await.unwrap();
    }
    let mut reader = reader(&connection, 1001);
    let mut stored = read(&mut reader, 1).await;
    for _ in 0..2 {
        server.kill();
        server.restart().await;
        tokio::time::timeout(PATIENCE, connection.connected()).await.unwrap();
        end = appender.append(end, &messages(500)).await.unwrap();
        let missing = end.0 as usize - 1000 - stored.len();
        stored.extend(read(&mut reader, missing).await);
    }
    let seqs: Vec<u64> = stored.iter().map(|message| message.seq.0).collect();
    assert_eq!(seqs, (1001..=9000).collect::<Vec<_>>());
    assert_eq!(reader.position(), StreamSeq(9001));
}

#[tokio::test]
async fn the_reader_says_when_the_stream_is_another() {
    let (_server, connection) = log().await;
    let mut appender = Appender::new(connection.clone());
    appender.append(StreamSeq(0), &messages(10)).await.unwrap();
    let error = tokio::time::timeout(PATIENCE, reader(&connection, 50).next()).await.unwrap().unwrap_err();
    assert!(matches!(error, ReadError::Behind { last: StreamSeq(10), .. }), "{error}");
    let stream = connection.jetstream().get_stream("EVENTS").await.unwrap();
    stream.purge().sequence(6).await.unwrap();
    let error = tokio::time::timeout(PATIENCE, reader(&connection, 2).next()).await.unwrap().unwrap_err();
    assert!(matches!(error, ReadError::Gone { first: StreamSeq(6), .. }), "{error}");
    assert_eq!(read(&mut reader(&connection, 1), 5).await[0].seq, StreamSeq(6), "from the oldest kept");
}

#[tokio::test]
async fn direct_gets_find_messages_by_sequence_and_subject() {
    let (_server, connection) = log().await;
    let mut appender = Appender::new(connection.clone());
    let mut texts = messages(50);
    for (index, text) in texts.iter_mut().enumerate() {
        text.subject = format!("events.w{}", index % 5);
        text.headers.insert("ce-id", index.to_string().as_str());
    }
    appender.append(StreamSeq(0), &texts).await.unwrap();
    let one = direct::get(&connection, "EVENTS", StreamSeq(7)).await.unwrap().unwrap();
    assert_eq!((one.seq, one.subject.as_str(), one.payload.as_ref()), (StreamSeq(7), "events.w1", &b"6"[..]));
    assert_eq!(one.headers.get("ce-id").unwrap().as_str(), "6");
    assert!(one.headers.get("Nats-Stream").is_none(), "the answer's own headers are taken off");
    assert!(direct::get(&connection, "EVENTS", StreamSeq(99)).await.unwrap().is_none());
    let last = direct::last_by_subject(&connection, "EVENTS", "events.w3").await.unwrap().unwrap();
    assert_eq!(last.seq, StreamSeq(49));
    let seqs = |messages: Vec<Stored>| messages.iter().map(|message| message.seq.0).collect::<Vec<_>>();
    let some = direct::range(&connection, "EVENTS", StreamSeq(8), "events.w2", 4, 1 << 20).await.unwrap();
    assert_eq!(seqs(some), [8, 13, 18, 23]);
    let all = direct::range(&connection, "EVENTS", StreamSeq(48), ">", 100, 1 << 20).await.unwrap();
    assert_eq!(seqs(all), [48, 49, 50]);
    assert!(direct::range(&connection, "EVENTS", StreamSeq(51), ">", 10, 1 << 20).await.unwrap().is_empty());
}
