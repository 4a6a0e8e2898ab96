use weft_nats::{scan::Filter, streams, subject::Layout, tail::Tails};
use weft_proto::ids::SequenceNumber;
use weft_testkit::{TestServer, event, spec};

use super::*;

const EVENTS: u64 = 10;

/// The events 1 to [`EVENTS`] of workflow `w`, as gateways would have numbered them.
async fn log(server: &TestServer) -> (weft_nats::connect::Connection, Layout) {
    let connection = server.connection("test").await;
    let layout = streams::ensure(&connection, &spec(1)).await.unwrap();
    for number in 1..=EVENTS {
        let message = event("w").number(number).build().encode(layout);
        let published = connection
            .jetstream()
            .publish_with_headers(message.subject, message.headers.to_map(), message.payload)
            .await;
        published.unwrap().await.unwrap();
    }
    (connection, layout)
}

/// The `id` of a frame.
fn id(frame: &Bytes) -> String {
    let text = std::str::from_utf8(frame).unwrap();
    text.lines().find_map(|line| line.strip_prefix("id: ")).unwrap().to_owned()
}

/// A client that takes nothing is let go, its last words name the last event that it was given, and from there on
/// nothing is missing.
#[tokio::test]
async fn a_stalled_client_is_disconnected_with_a_cursor() {
    let server = TestServer::start().await;
    let (connection, layout) = log(&server).await;
    let tails = Tails::new(connection, layout);
    let open = async |cursor| tails.open(Filter::default(), cursor).await.unwrap();
    let (frames, mut taken) = mpsc::channel(FRAMES_AHEAD);
    let mut feed = Feed::new(open(Cursor::new(layout, [])).await, frames, Duration::from_millis(50));
    let End::Told(problem) = feed.run(&CancellationToken::new()).await else { panic!("not told") };
    assert_eq!(problem.code(), Code::Overloaded);
    assert_eq!(taken.recv().await.unwrap(), frame::reconnect(RECONNECT_MS));
    let mut given = Vec::new();
    while let Ok(frame) = taken.try_recv() {
        given.push(id(&frame));
    }
    assert_eq!(given.len(), FRAMES_AHEAD - 1);
    assert_eq!(id(&frame::problem(&feed.cursor, &problem)), given[given.len() - 1]);
    let mut rest = open(feed.cursor).await;
    let next = rest.next().await.unwrap();
    assert_eq!(next.event.sequence_number, SequenceNumber(given.len() as u64 + 1));
}
