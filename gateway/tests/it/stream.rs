//! Events as they come.

use std::net::SocketAddr;

use serde_json::Value;
use tokio::{
    io::{AsyncBufReadExt as _, AsyncReadExt as _, AsyncWriteExt as _, BufReader},
    net::TcpStream,
    time::timeout,
};
use weft_catalog::Catalog;
use weft_nats::streams;
use weft_proto::{
    ids::SubscriptionUid,
    v1::{Destination, HttpDestination, Subscription, destination},
};
use weft_testkit::{add_consumers, consumer_names, eventually};

use crate::{
    http::{get, send, webhook},
    mesh::{Mesh, PATIENCE, READ_TOKEN},
};

/// A client of the stream, on a bare socket.
struct Client {
    lines: tokio::io::Lines<BufReader<TcpStream>>,
    /// The last `id`.
    last: String,
}

/// One dispatched event.
#[derive(Debug)]
struct Message {
    name: Option<String>,
    data: Value,
}

impl Client {
    async fn open(to: SocketAddr, query: &str, last_event_id: Option<&str>) -> Self {
        let mut socket = TcpStream::connect(to).await.unwrap();
        let last = last_event_id.map(|id| format!("last-event-id: {id}\r\n")).unwrap_or_default();
        // Of HTTP/1.0, so that the body comes as it is.
        let head = format!("GET /api/v1/events/stream?{query} HTTP/1.0\r\nx-api-key: {READ_TOKEN}\r\n{last}\r\n");
        socket.write_all(head.as_bytes()).await.unwrap();
        let mut lines = BufReader::new(socket).lines();
        let status = lines.next_line().await.unwrap().unwrap();
        assert!(status.contains(" 200 "), "{status}");
        let mut head = Vec::new();
        while let Some(line) = lines.next_line().await.unwrap().filter(|line| !line.is_empty()) {
            head.push(line.to_ascii_lowercase());
        }
        assert!(head.contains(&"content-type: text/event-stream".to_owned()), "{head:?}");
        Self { lines, last: String::new() }
    }

    /// The next event that is dispatched; `None` at the end.
    async fn next(&mut self) -> Option<Message> {
        let (mut name, mut data) = (None, Vec::new());
        loop {
            let line = timeout(PATIENCE, self.lines.next_line()).await.expect("in time").unwrap()?;
            match line.split_once(": ") {
                Some(("id", id)) => self.last = id.to_owned(),
                Some(("event", event)) => name = Some(event.to_owned()),
                Some(("data", text)) => data.push(text.to_owned()),
                Some(("retry", _)) => {}
                None if line.is_empty() && data.is_empty() => {}
                None if line.is_empty() => {
                    return Some(Message { name, data: serde_json::from_str(&data.join("\n")).unwrap() });
                }
                other => panic!("{other:?}"),
            }
        }
    }

    /// The numbers of the next events.
    async fn numbers(&mut self, count: usize) -> Vec<u64> {
        let mut numbers = Vec::new();
        while numbers.len() < count {
            let message = self.next().await.expect("an event");
            numbers.push(message.data["sequenceNumber"].as_u64().unwrap_or_else(|| panic!("{message:?}")));
        }
        numbers
    }
}

async fn publish(to: SocketAddr, workflow: &str, n: u64) {
    let body = format!("{{ \"workflow\":\"{workflow}\",\n \"type\":\"order.{n}\" }}");
    let answer = send(to, &webhook("shop", &format!("{workflow}-{n}"), &body)).await.unwrap();
    assert_eq!(answer.status, 202, "{answer:?}");
}

/// While events come, clients open in the middle, close and come again: each gets every event once, in order.
#[tokio::test]
async fn history_becomes_live_without_a_gap_or_a_repeat() {
    const EVENTS: u64 = 60;
    let mesh = Mesh::start(1).await;
    let gateway = mesh.gateway().await;
    let to = gateway.address;
    publish(to, "w", 1).await;
    let sending = tokio::spawn(async move {
        for n in 2..=EVENTS {
            publish(to, "w", n).await;
        }
    });
    let mut client = Client::open(to, "", None).await;
    let mut seen = Vec::new();
    while seen.len() < EVENTS as usize {
        seen.extend(client.numbers(10).await);
        let last = client.last.clone();
        client = Client::open(to, "since=ignored", Some(&last)).await;
    }
    assert_eq!(seen, (1..=EVENTS).collect::<Vec<_>>());
    sending.await.unwrap();
}

#[tokio::test]
async fn filters_hold_and_a_subscription_is_one() {
    let mesh = Mesh::start(2).await;
    let gateway = mesh.gateway().await;
    let http = HttpDestination {
        url: "https://receiver.example/".into(),
        secrets: vec![crate::http::SECRET.into()],
        ..HttpDestination::default()
    };
    let subscription = Subscription {
        uid: SubscriptionUid::unique().to_vec(),
        name: "twos".into(),
        types: vec!["*.2".into()],
        destination: Some(Destination { kind: Some(destination::Kind::Http(http)) }),
        timeout_ms: 1000,
        concurrency: 1,
        starts: vec![1, 1],
        ..Subscription::default()
    };
    Catalog::new(mesh.connection.clone(), weft_testkit::master_key()).put_subscription(&subscription, 0).await.unwrap();
    for n in 1..=3 {
        publish(gateway.address, "a", n).await;
        publish(gateway.address, "b", n).await;
    }
    assert_eq!(Client::open(gateway.address, "workflowId=a", None).await.numbers(3).await, [1, 2, 3]);
    assert_eq!(Client::open(gateway.address, "type=order.3", None).await.numbers(2).await, [3, 3]);
    let taken = weft_testkit::eventually(PATIENCE, async || {
        let page = send(gateway.address, &get("/api/v1/webhooks/events?subscription=twos")).await.unwrap();
        page.status == 200 && page.json["events"].as_array().is_some_and(|events| events.len() == 2)
    })
    .await;
    assert!(taken, "the subscription is live");
    assert_eq!(Client::open(gateway.address, "subscription=twos", None).await.numbers(2).await, [2, 2]);
    let unknown = send(gateway.address, &get("/api/v1/events/stream?subscription=unlisted")).await.unwrap();
    assert_eq!((unknown.status, unknown.code()), (400, "bad_query"));
}

/// A gateway that drains gives its clients a cursor from which to continue.
#[tokio::test]
async fn draining_ends_a_stream_with_a_cursor() {
    let mesh = Mesh::start(1).await;
    let gateway = mesh.gateway().await;
    let address = gateway.address;
    publish(address, "w", 1).await;
    let mut client = Client::open(address, "", None).await;
    assert_eq!(client.numbers(1).await, [1]);
    let seen = client.last.clone();
    gateway.drained().await;
    let last = client.next().await.expect("last words");
    assert_eq!((last.name.as_deref(), last.data["code"].as_str()), (Some("problem"), Some("draining")));
    assert_eq!(client.last, seen);
    assert!(client.next().await.is_none());
}

#[tokio::test]
async fn an_expired_cursor_and_a_missing_key_are_refused_before_the_stream_begins() {
    let mesh = Mesh::start(1).await;
    let gateway = mesh.gateway().await;
    for n in 1..=3 {
        publish(gateway.address, "w", n).await;
    }
    let page = send(gateway.address, &get("/api/v1/webhooks/events?limit=1")).await.unwrap();
    mesh.connection.jetstream().get_stream("EVENTS").await.unwrap().purge().sequence(3).await.unwrap();
    let stream = format!("/api/v1/events/stream?since={}", page.text("nextCursor"));
    let expired = send(gateway.address, &get(&stream)).await.unwrap();
    assert_eq!((expired.status, expired.code()), (410, "cursor_expired"));
    let mut rest = Client::open(gateway.address, &format!("since={}", expired.text("oldestCursor")), None).await;
    assert_eq!(rest.numbers(1).await, [3]);
    let mut socket = TcpStream::connect(gateway.address).await.unwrap();
    socket.write_all(b"GET /api/v1/events/stream HTTP/1.0\r\n\r\n").await.unwrap();
    let mut answer = String::new();
    socket.read_to_string(&mut answer).await.unwrap();
    assert!(answer.contains(" 401 ") && answer.contains("key_missing"), "{answer}");
}

/// All streams of a gateway read a shard through one consumer, which exists only while there is a stream; each with its
/// own filter gets what it wants. A stream that would need one of the consumers that are reserved for the readers that
/// deliver and project is refused.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn streams_share_one_consumer_and_leave_the_reserve_alone() {
    const CLIENTS: usize = 30;
    let mesh = Mesh::start(1).await;
    let (gateway, other) = (mesh.gateway().await, mesh.gateway().await);
    let to = gateway.address;
    let tails = async || {
        let names = consumer_names(&mesh.connection, "EVENTS").await;
        names.into_iter().filter(|name| name.starts_with("tail-")).count()
    };
    publish(to, "a", 1).await;
    let mut clients = Vec::new();
    for n in 0..CLIENTS {
        clients.push(Client::open(to, if n.is_multiple_of(2) { "" } else { "workflowId=a" }, None).await);
        publish(to, if n.is_multiple_of(2) { "a" } else { "b" }, n as u64 + 2).await;
    }
    // One that the server has lost may be there until it is removed, together with the one that has replaced it.
    assert!(eventually(PATIENCE, async || tails().await == 1).await);
    for (n, client) in clients.iter_mut().enumerate() {
        let expected = if n.is_multiple_of(2) { CLIENTS + 1 } else { CLIENTS / 2 + 1 };
        let mut seen: Vec<u64> = client.numbers(expected).await;
        seen.sort_unstable();
        let b = if n.is_multiple_of(2) { CLIENTS as u64 / 2 } else { 0 };
        let mut all: Vec<u64> = (1..=CLIENTS as u64 / 2 + 1).chain(1..=b).collect();
        all.sort_unstable();
        assert_eq!(seen, all, "client {n}");
    }
    let limit = streams::consumers(&mesh.connection, "EVENTS").await.unwrap().limit;
    add_consumers(&mesh.connection, "EVENTS", limit / 2).await;
    let refused = send(other.address, &get("/api/v1/events/stream")).await.unwrap();
    assert_eq!((refused.status, refused.code()), (503, "overloaded"), "{refused:?}");
    assert!(refused.headers.contains_key("retry-after"));
    // Needs no separate consumer.
    assert_eq!(Client::open(to, "workflowId=a", None).await.numbers(1).await, [1]);
    drop(clients);
    assert!(eventually(PATIENCE, async || tails().await == 0).await, "without a stream there is no consumer");
}
