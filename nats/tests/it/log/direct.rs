//! Direct gets.

use weft_nats::{
    append::Appender,
    direct::{self, DirectError},
    message::Stored,
};
use weft_proto::ids::StreamSeq;
use weft_testkit::eventually;

use super::{PATIENCE, log, message, messages};

#[tokio::test]
async fn direct_gets_find_messages_by_sequence_and_subject() {
    let (_server, connection) = log().await;
    let mut appender = Appender::new(connection.clone());
    let mut texts = messages(50);
    for (index, text) in texts.iter_mut().enumerate() {
        text.subject = format!("events.w{}", index % 5);
        text.headers.put("ce-id", index);
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

/// A range is bounded by bytes too, and continuing after its last message gives the rest.
#[tokio::test]
async fn ranges_of_large_messages_join_without_gap() {
    let (server, connection) = log().await;
    let large: Vec<_> = (0..10).map(|_| message(&"x".repeat(100_000))).collect();
    Appender::new(connection.clone()).append(StreamSeq(0), &large).await.unwrap();
    let (mut seqs, mut from) = (Vec::new(), StreamSeq(1));
    loop {
        let some = direct::range(&connection, "EVENTS", from, ">", 100, 250_000).await.unwrap();
        let Some(last) = some.last() else { break };
        assert!(some.len() <= 4, "{} messages", some.len());
        from = last.seq.next();
        seqs.extend(some.iter().map(|message| message.seq.0));
    }
    assert!(seqs.into_iter().eq(1..=10));
    server.kill();
    assert!(eventually(PATIENCE, async || !connection.is_connected()).await);
    let away = direct::range(&connection, "EVENTS", from, ">", 1, 1).await;
    assert!(matches!(away, Err(DirectError::Unavailable(_))), "{away:?}");
}

#[tokio::test]
async fn a_stream_that_is_not_there_is_unavailable() {
    let (_server, connection) = log().await;
    let one = direct::get(&connection, "NOWHERE", StreamSeq(1)).await;
    assert!(matches!(one, Err(DirectError::Unavailable(_))), "{one:?}");
    let some = direct::range(&connection, "NOWHERE", StreamSeq(1), ">", 1, 1).await;
    assert!(matches!(some, Err(DirectError::Unavailable(_))), "{some:?}");
}
