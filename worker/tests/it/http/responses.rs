//! Responses that do not end.

use std::{sync::atomic::Ordering, time::Duration};

use futures_util::future::join_all;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    sync::mpsc,
    time::timeout,
};
use weft_worker::lane::AttemptResult;

use super::{
    PATIENCE,
    http1::{Process, read_request, receiver, took},
};

/// How a body begins, and what of it comes again and again; nothing: silence.
const ENDLESS: [(&str, &str); 6] = [
    ("content-length: 1000000\r\n\r\nsofar", "x"),
    ("transfer-encoding: chunked\r\n\r\n5\r\nsofar\r\n", "1\r\nx\r\n"),
    ("transfer-encoding: chunked\r\n\r\n5\r\nsofar\r\n", ""),
    ("content-length: 1000000\r\n\r\nsofar", ""),
    ("content-length: 1000000\r\n\r\n", ""),
    ("\r\nsofar", "x"),
];

/// A receiver that answers with a status and a body that does not end; reports each connection that the client closes.
async fn endless(status: u16, begin: &'static str, again: &'static str) -> (String, mpsc::UnboundedReceiver<()>) {
    let (closed, until_closed) = mpsc::unbounded_channel();
    let (url, _) = receiver(move |_, mut connection| {
        let closed = closed.clone();
        async move {
            read_request(&mut connection).await;
            let begin = format!("HTTP/1.1 {status} Status\r\n{begin}");
            connection.write_all(begin.as_bytes()).await.unwrap();
            let mut buffer = [0; 1];
            loop {
                match timeout(Duration::from_millis(20), connection.read(&mut buffer)).await {
                    Ok(Ok(0) | Err(_)) => break,
                    Ok(Ok(_)) => panic!("a request on a connection whose response has not ended"),
                    Err(_) => {}
                }
                if connection.write_all(again.as_bytes()).await.is_err() {
                    break;
                }
            }
            closed.send(()).unwrap();
        }
    })
    .await;
    (url, until_closed)
}

/// The status settles an attempt: a receiver that does not end its response holds up its lane for a moment only.
#[tokio::test]
async fn a_status_settles_although_the_response_does_not_end() {
    let cases = [
        (200, AttemptResult::Delivered),
        (500, AttemptResult::Failed),
        (503, AttemptResult::Unavailable),
        (422, AttemptResult::Rejected),
    ];
    let cases = cases.into_iter().flat_map(|case| ENDLESS.map(|body| (case, body)));
    let settled = cases.map(async |((status, result), (begin, again))| {
        let (url, mut until_closed) = endless(status, begin, again).await;
        let process = Process::new(&url);
        for _ in 0..2 {
            let end = process.deliver().await;
            assert_eq!((end.result, end.status), (result, status), "{begin:?}: {}", end.error);
            assert!(took(&end) < Duration::from_secs(10), "{begin:?}: took {:?}", took(&end));
            let excerpt = String::from_utf8(end.response.to_vec()).unwrap();
            assert!(excerpt.starts_with("sofar") || !begin.contains("sofar"), "{begin:?}: {excerpt:?}");
            timeout(PATIENCE, until_closed.recv()).await.expect("it is closed").unwrap();
        }
    });
    join_all(settled).await;
}

/// A body that is longer than the excerpt, and ends, costs no connection.
#[tokio::test]
async fn a_long_response_that_ends_leaves_its_connection_usable() {
    let (url, connections) = receiver(|_, mut connection| async move {
        while read_request(&mut connection).await.is_some() {
            let answer = format!("HTTP/1.1 200 OK\r\ncontent-length: 20000\r\n\r\n{}", "y".repeat(20_000));
            connection.write_all(answer.as_bytes()).await.unwrap();
        }
    })
    .await;
    let process = Process::new(&url);
    for _ in 0..5 {
        let end = process.deliver().await;
        assert_eq!((end.result, end.response.len()), (AttemptResult::Delivered, 1024));
    }
    assert_eq!(connections.load(Ordering::SeqCst), 1);
}
