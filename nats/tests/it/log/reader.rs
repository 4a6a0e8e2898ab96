//! The ordered reader: everything once and in order, regardless of what becomes of its consumer.

use futures_util::TryStreamExt as _;
use weft_nats::{
    append::Appender,
    connect::Connection,
    message::Outgoing,
    options::NatsOptions,
    position::Position,
    reader::{OrderedReader, ReadError, ReaderOptions},
    streams,
};
use weft_proto::ids::{EventId, StreamSeq};
use weft_testkit::{Proxy, eventually, spec};

use super::{PATIENCE, log, message, messages, read, reader};

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
    let options = ReaderOptions {
        stream: "EVENTS".into(),
        name: "f".into(),
        from: StreamSeq(4),
        filter,
        batch_messages_max: 4,
        known: None,
        pages: false,
    };
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

/// A unique message: its id distinguishes it from others.
fn marked(text: &str) -> Outgoing {
    let id = EventId::of_delivery("test", text);
    let mut message = message(text);
    message.headers.put("Nats-Msg-Id", id);
    message
}

fn marked_all(prefix: &str, count: usize) -> Vec<Outgoing> {
    (0..count).map(|number| marked(&format!("{prefix}{number}"))).collect()
}

/// The error that the reader ends with, after any batches that it reads before.
async fn error_of(reader: &mut OrderedReader) -> ReadError {
    let reading = async {
        loop {
            if let Err(error) = reader.next().await {
                return error;
            }
        }
    };
    tokio::time::timeout(PATIENCE, reading).await.expect("an error")
}

/// A log that was restored from a backup and has grown again past the reader's position: nothing of it is read as if it
/// followed what was read before.
#[tokio::test]
async fn a_restored_stream_that_grew_again_is_noticed_at_reconnect() {
    let (server, connection) = log().await;
    let mut appender = Appender::new(connection.clone());
    appender.append(StreamSeq(0), &marked_all("first", 5)).await.unwrap();
    let backup = server.backup().await;
    connection.connected().await;
    let lost = marked_all("lost", 5);
    assert!(eventually(PATIENCE, async || appender.append(StreamSeq(5), &lost).await.is_ok()).await);
    let proxy = Proxy::start(server.url()).await;
    let nats = NatsOptions { url: Some(proxy.url()), ..NatsOptions::default() };
    let away = Connection::connect(&nats, "away").await.unwrap();
    let mut reader = reader(&away, 1);
    read(&mut reader, 10).await;
    let known = reader.known().cloned().unwrap();
    assert_eq!(known.cursor, StreamSeq(10));
    assert_eq!(known.mark.unwrap().id, Some(EventId::of_delivery("test", "lost4")));

    proxy.cut();
    server.restore(&backup).await;
    let other = server.connection("other").await;
    Appender::new(other).append(StreamSeq(5), &marked_all("other", 8)).await.unwrap();
    proxy.mend();
    let error = error_of(&mut reader).await;
    let ReadError::Another { known: ours, found, .. } = &error else { panic!("{error}") };
    assert_eq!(**ours, known);
    assert_eq!((found.created, found.cursor), (known.created, known.cursor));
    assert_eq!(found.mark.unwrap().id, Some(EventId::of_delivery("test", "other4")));
    assert_eq!(reader.position(), StreamSeq(11), "nothing of the other log was read");
}

/// A stream that was deleted and made again while the reader kept its connection.
#[tokio::test]
async fn a_stream_made_again_is_noticed_without_a_reconnect() {
    let (_server, connection) = log().await;
    let mut appender = Appender::new(connection.clone());
    appender.append(StreamSeq(0), &marked_all("first", 5)).await.unwrap();
    let mut reader = reader(&connection, 1);
    read(&mut reader, 5).await;
    connection.jetstream().delete_stream("EVENTS").await.unwrap();
    streams::ensure(&connection, &spec(1)).await.unwrap();
    appender.append(StreamSeq(0), &marked_all("other", 8)).await.unwrap();
    let error = error_of(&mut reader).await;
    let ReadError::Another { known, found, .. } = &error else { panic!("{error}") };
    assert!(found.created > known.created, "{error}");
}

/// A caller that stored its position elsewhere is answered as a reader that was there all the time.
#[tokio::test]
async fn a_position_given_at_start_is_compared() {
    let (_server, connection) = log().await;
    let mut appender = Appender::new(connection.clone());
    appender.append(StreamSeq(0), &marked_all("first", 5)).await.unwrap();
    let mut first = reader(&connection, 1);
    read(&mut first, 5).await;
    let known = first.known().cloned().unwrap();
    appender.append(StreamSeq(5), &marked_all("more", 5)).await.unwrap();
    let reader_at = |known: Position| {
        let options = ReaderOptions {
            stream: "EVENTS".into(),
            name: "known".into(),
            from: known.cursor.next(),
            filter: None,
            batch_messages_max: 500,
            known: Some(known),
            pages: false,
        };
        OrderedReader::new(connection.clone(), options)
    };
    assert_eq!(read(&mut reader_at(known.clone()), 5).await[0].seq, StreamSeq(6));
    let moved = Position { cursor: StreamSeq(4), ..known.clone() };
    let error = error_of(&mut reader_at(moved)).await;
    assert!(matches!(error, ReadError::Another { .. }), "{error}");
    // A message that was removed cannot be compared, and counts as the same.
    connection.jetstream().get_stream("EVENTS").await.unwrap().purge().sequence(6).await.unwrap();
    assert_eq!(read(&mut reader_at(known), 5).await[0].seq, StreamSeq(6));
}
