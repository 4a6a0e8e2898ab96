//! The ordered reader: everything once and in order, whatever becomes of its consumer.

use futures_util::TryStreamExt as _;
use weft_nats::{
    append::Appender,
    connect::Connection,
    reader::{OrderedReader, ReadError, ReaderOptions},
    testing::eventually,
};
use weft_proto::ids::StreamSeq;

use super::{PATIENCE, log, messages, read, reader};

/// P3: far more than a request brings, from the middle, with what comes while it is read.
#[tokio::test]
async fn a_long_stream_is_read_whole_and_in_order() {
    let (_server, connection) = log().await;
    let mut appender = Appender::new(connection.clone());
    let mut end = StreamSeq(0);
    for _ in 0..20 {
        end = appender.append(end, &messages(1000)).await.unwrap();
    }
    let mut reader = reader(&connection, 101);
    let mut stored = read(&mut reader, 5_000).await;
    end = appender.append(end, &messages(100)).await.unwrap();
    let missing = end.0 as usize - 100 - stored.len();
    stored.extend(read(&mut reader, missing).await);
    assert!(stored.iter().map(|message| message.seq.0).eq(101..=20_100));
    assert!(stored.iter().all(|message| message.payload == ((message.seq.0 - 1) % 1000).to_string()));
    assert!(stored.is_sorted_by_key(|message| message.stored_at));
}

/// Also when the caller drops the future of `next` again and again.
#[tokio::test]
async fn a_dropped_wait_loses_nothing() {
    let (_server, connection) = log().await;
    let mut reader = reader(&connection, 1);
    let mut appender = Appender::new(connection.clone());
    let mut end = StreamSeq(0);
    let mut seqs = Vec::new();
    while seqs.len() < 300 {
        if end.0 < 300 {
            end = appender.append(end, &messages(10)).await.unwrap();
        }
        tokio::select! {
            biased;
            batch = reader.next() => seqs.extend(batch.unwrap().messages.iter().map(|message| message.seq.0)),
            () = tokio::task::yield_now() => {}
        }
    }
    assert!(seqs.into_iter().eq(1..=300));
}

#[tokio::test]
async fn a_filter_lets_one_subject_through() {
    let (_server, connection) = log().await;
    let mut texts = messages(30);
    for (index, text) in texts.iter_mut().enumerate() {
        text.subject = format!("events.w{}", index % 3);
    }
    Appender::new(connection.clone()).append(StreamSeq(0), &texts).await.unwrap();
    let filter = Some("events.w1".into());
    let options =
        ReaderOptions { stream: "EVENTS".into(), name: "f".into(), from: StreamSeq(4), filter, batch_messages_max: 4 };
    let stored = read(&mut OrderedReader::new(connection.clone(), options), 9).await;
    assert!(stored.iter().map(|message| message.seq.0).eq((5..30).step_by(3)));
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

/// The names of the stream's consumers; `None` when the server does not answer.
async fn consumers(connection: &Connection) -> Option<Vec<String>> {
    let stream = connection.jetstream().get_stream("EVENTS").await.ok()?;
    stream.consumer_names().try_collect().await.ok()
}

/// Waits until the stream's consumers are as wanted.
async fn consumers_become(connection: &Connection, wanted: impl Fn(&[String]) -> bool) -> bool {
    eventually(PATIENCE, async || consumers(connection).await.is_some_and(|names| wanted(&names))).await
}

#[tokio::test]
async fn a_lost_consumer_is_made_anew_and_none_is_left_behind() {
    let (_server, connection) = log().await;
    let mut appender = Appender::new(connection.clone());
    let mut reader = reader(&connection, 1);
    appender.append(StreamSeq(0), &messages(3)).await.unwrap();
    let mut stored = read(&mut reader, 3).await;
    let first = consumers(&connection).await.unwrap();
    assert_eq!(first.len(), 1);
    let stream = connection.jetstream().get_stream("EVENTS").await.unwrap();
    stream.delete_consumer(&first[0]).await.unwrap();
    appender.append(StreamSeq(3), &messages(3)).await.unwrap();
    stored.extend(read(&mut reader, 3).await);
    assert!(stored.iter().map(|message| message.seq.0).eq(1..=6));
    let second = consumers(&connection).await.unwrap();
    assert_eq!(second.len(), 1);
    // On another connection, which may lead to another server, it trusts no consumer of the last one.
    connection.client().force_reconnect().await.unwrap();
    assert!(consumers_become(&connection, |names| names.iter().any(|name| *name != second[0])).await);
    appender.append(StreamSeq(6), &messages(1)).await.unwrap();
    assert_eq!(read(&mut reader, 1).await[0].seq, StreamSeq(7));
    drop(reader);
    assert!(consumers_become(&connection, |names| names.iter().all(|name| *name == second[0])).await);
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
