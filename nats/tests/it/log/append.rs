//! Compare-and-append: all or a prefix, never twice, never over another writer's messages.

use std::{collections::HashSet, sync::Arc};

use weft_nats::{
    append::{AppendErrorKind, Appender, BATCH_BYTES_MAX, publish_once},
    streams,
};
use weft_proto::ids::StreamSeq;

use super::{PATIENCE, log, message, messages, read, reader};

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
async fn more_bytes_than_a_batch_may_have_go_in_parts() {
    let (_server, connection) = log().await;
    let mut appender = Appender::new(connection.clone());
    let large: Vec<_> = (10..22).map(|number| message(&number.to_string().repeat(1 << 19))).collect();
    assert!(large.iter().map(|message| message.payload.len()).sum::<usize>() > BATCH_BYTES_MAX);
    assert_eq!(appender.append(StreamSeq(0), &large).await.unwrap(), StreamSeq(12));
    let stored = read(&mut reader(&connection, 1), 12).await;
    assert!(stored.iter().zip(&large).all(|(stored, large)| stored.payload == large.payload));
    let batches: HashSet<_> =
        stored.iter().map(|stored| stored.headers.get("Nats-Batch-Id").map(|id| id.as_str().to_owned())).collect();
    assert!(batches.len() > 1, "{batches:?}");
}

/// One bad message of a batch is found out without storing anything, and the appender is as good as before.
#[tokio::test]
async fn a_message_over_the_limit_is_refused_and_harms_no_other() {
    let (_server, connection) = log().await;
    let mut appender = Appender::new(connection.clone());
    for index in [0, 10, 19] {
        let mut many = messages(20);
        many[index] = message(&"x".repeat((1 << 20) + (129 << 10)));
        let error = appender.append(StreamSeq(0), &many).await.unwrap_err();
        assert_eq!(error.stored, 0);
        assert!(matches!(error.kind, AppendErrorKind::Refused(_)), "{error}");
    }
    assert_eq!(streams::state(&connection, "EVENTS").await.unwrap().last, StreamSeq(0));
    assert_eq!(appender.append(StreamSeq(0), &messages(2)).await.unwrap(), StreamSeq(2));
}

/// P1, P2: an append whose answer is lost is found by reading on; of two copies only one is stored.
#[tokio::test]
async fn an_append_without_an_answer_is_stored_at_most_once() {
    uncertain(1).await;
}

/// The same of an atomic batch, which is stored whole or not at all.
#[tokio::test]
async fn a_batch_without_an_answer_is_stored_at_most_once() {
    uncertain(40).await;
}

async fn uncertain(count: usize) {
    let (server, connection) = log().await;
    let mut appender = Appender::new(connection.clone());
    appender.append(StreamSeq(0), &[message("first")]).await.unwrap();
    server.pause();
    let error = tokio::time::timeout(PATIENCE, appender.append(StreamSeq(1), &messages(count))).await.unwrap();
    let error = error.unwrap_err();
    server.resume();
    assert_eq!(error.stored, 0);
    assert!(matches!(error.kind, AppendErrorKind::Unknown(_)), "{error}");
    // The same again: either the late copy is there and this one conflicts, or this one is the only one.
    tokio::time::timeout(PATIENCE, connection.connected()).await.unwrap();
    let end = StreamSeq(1 + count as u64);
    match appender.append(StreamSeq(1), &messages(count)).await {
        Ok(last) => assert_eq!(last, end),
        Err(error) => assert!(matches!(error.kind, AppendErrorKind::Conflict { .. }), "{error}"),
    }
    let stored = read(&mut reader(&connection, 1), count + 1).await;
    let texts: Vec<_> = stored[1..].iter().map(|message| message.payload.clone()).collect();
    assert_eq!(texts, messages(count).iter().map(|message| message.payload.clone()).collect::<Vec<_>>());
    assert_eq!(streams::state(&connection, "EVENTS").await.unwrap().last, end);
}

#[tokio::test]
async fn nothing_is_queued_for_a_server_that_is_away() {
    let (server, connection) = log().await;
    let mut appender = Appender::new(connection.clone());
    server.kill();
    let away = weft_testkit::eventually(PATIENCE, async || !connection.is_connected()).await;
    assert!(away);
    let error = appender.append(StreamSeq(0), &messages(3)).await.unwrap_err();
    assert!(matches!(error.kind, AppendErrorKind::Unavailable(_)), "{error}");
    server.restart().await;
    tokio::time::timeout(PATIENCE, connection.connected()).await.unwrap();
    assert_eq!(appender.append(StreamSeq(0), &messages(1)).await.unwrap(), StreamSeq(1), "none of them came late");
}

#[tokio::test]
async fn a_subject_is_published_to_once() {
    let (_server, connection) = log().await;
    let mut copy = message("copy");
    copy.subject = "dlq.billing.w.id.0".into();
    assert!(publish_once(&connection, &copy).await.unwrap());
    assert!(!publish_once(&connection, &copy).await.unwrap());
    assert_eq!(streams::state(&connection, "DLQ").await.unwrap().last, StreamSeq(1));
    copy.subject = "unknown.subject".into();
    let error = publish_once(&connection, &copy).await.unwrap_err();
    assert!(matches!(error, AppendErrorKind::Unavailable(_)), "{error}");
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
