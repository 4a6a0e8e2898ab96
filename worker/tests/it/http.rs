//! Single deliveries over real sockets.

use std::{sync::Arc, time::Duration};

use axum::{
    Router,
    http::{HeaderMap, StatusCode},
    response::IntoResponse,
    routing::post,
};
use bytes::Bytes;
use futures_util::StreamExt as _;
use jiff::Timestamp;
use tokio::{
    io::AsyncReadExt as _,
    net::{TcpSocket, TcpStream},
    sync::{mpsc, watch},
};
use tokio_util::sync::CancellationToken;
use weft_nats::{
    clock::ServerClock,
    event::{Event, StoredEvent},
};
use weft_proto::{
    ids::{EventId, Run, ShardId, StreamSeq, SubscriptionUid},
    v1::{self, AttemptClass},
};
use weft_worker::{
    destination::{Delivery, Destinations, NotSent, Stages},
    lane::{AttemptEnd, AttemptResult},
    ownership::LeaseGuard,
};

use crate::support::{PATIENCE, SECRET};

mod formats;
mod http1;
mod http2;
mod oauth2;
mod proxy;
mod responses;
mod statuses;
mod tls;

/// Another secret, during a rotation.
const NEW_SECRET: &str = "whsec_AAECAwQFBgcICQoLDA0ODxAREhMUFRYX";
/// Time enough for an answer, and little to wait for one that does not come.
const TIMEOUT: Duration = Duration::from_secs(2);

/// Where the receivers are.
pub const LOCAL: &[&str] = &["127.0.0.0/8"];

/// A receiver with one route for each way to answer. What comes to `/ok` can be looked at.
async fn receiver() -> (String, mpsc::UnboundedReceiver<(HeaderMap, Bytes)>) {
    let (sender, taken) = mpsc::unbounded_channel();
    let ok = move |headers: HeaderMap, body: Bytes| async move {
        sender.send((headers, body)).unwrap();
        "thanks"
    };
    let router = Router::new()
        .route("/ok", post(ok))
        .route("/late", post(std::future::pending::<StatusCode>))
        .route("/stuck", post(stuck))
        .route("/gone", post(|| async { StatusCode::GONE }))
        .route("/bad", post(|| async { (StatusCode::UNPROCESSABLE_ENTITY, "what is this") }))
        .route("/elsewhere", post(|| async { (StatusCode::FOUND, [("location", "/ok")]) }))
        .route("/busy", post(|| async { (StatusCode::TOO_MANY_REQUESTS, [("retry-after", "17")]) }))
        .route("/unavailable", post(|| async { StatusCode::SERVICE_UNAVAILABLE }))
        .route("/large", post(|| async { StatusCode::PAYLOAD_TOO_LARGE }))
        .route("/large-now", post(|| async { (StatusCode::PAYLOAD_TOO_LARGE, [("retry-after", "2")]) }))
        .route("/endless", post(endless));
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move { axum::serve(listener, router).await.unwrap() });
    (format!("http://{address}"), taken)
}

async fn endless() -> impl IntoResponse {
    let chunks = futures_util::stream::repeat_with(|| Ok::<_, std::io::Error>(Bytes::from_static(&[b'x'; 4096])));
    (StatusCode::INTERNAL_SERVER_ERROR, axum::body::Body::from_stream(chunks))
}

/// A status, the beginning of a body, and no end.
async fn stuck() -> impl IntoResponse {
    let begun = futures_util::stream::iter([Ok::<_, std::io::Error>(Bytes::from_static(b"so far"))]);
    axum::body::Body::from_stream(begun.chain(futures_util::stream::pending()))
}

pub fn delivery() -> Delivery {
    let event = Event {
        previous: Some(EventId::unique()),
        traceparent: Some("00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01".into()),
        payload: Bytes::from_static(b"{\"exact\": 1.50}"),
        ..weft_testkit::event("größe 1").number(7).build()
    };
    Delivery {
        event: Arc::new(StoredEvent { seq: StreamSeq(1), stored_at: Timestamp::now(), event }),
        uid: SubscriptionUid::unique(),
        run: Run::LIVE,
        number: 3,
        lane_previous: Some(EventId::unique()),
        shard: ShardId(0),
        epoch: 9,
        timeout: TIMEOUT,
        clock: ServerClock::default(),
        lease: LeaseGuard::unlimited(),
        stages: Stages::default(),
    }
}

async fn deliver(delivery: Delivery, url: &str, allow: &[&str]) -> AttemptEnd {
    try_deliver(delivery, url, allow).await.unwrap()
}

async fn try_deliver(delivery: Delivery, url: &str, allow: &[&str]) -> Result<AttemptEnd, NotSent> {
    let destinations =
        Destinations::new(allow.iter().map(|network| network.parse().unwrap()).collect::<Vec<ipnet::IpNet>>());
    destinations.put(&subscription(delivery.uid, url)).unwrap();
    destinations.deliver(delivery).await
}

/// A subscription with a receiver at `url`.
pub fn subscription(uid: SubscriptionUid, url: &str) -> v1::Subscription {
    v1::Subscription {
        uid: uid.to_vec(),
        destination: Some(v1::Destination {
            kind: Some(v1::destination::Kind::Http(v1::HttpDestination {
                url: url.into(),
                secrets: vec![SECRET.into(), NEW_SECRET.into()],
                format: v1::HttpFormat::Envelope.into(),
                ..Default::default()
            })),
        }),
        ..Default::default()
    }
}

/// The same with other settings.
fn changed(url: &str, change: impl FnOnce(&mut v1::HttpDestination)) -> v1::Subscription {
    let mut subscription = subscription(SubscriptionUid::unique(), url);
    let kind = subscription.destination.as_mut().and_then(|destination| destination.kind.as_mut());
    let Some(v1::destination::Kind::Http(http)) = kind else { panic!("of type http") };
    change(http);
    subscription
}

/// Destinations of one process that may call this machine.
pub fn destinations() -> Destinations {
    Destinations::new(LOCAL.iter().map(|network| network.parse().unwrap()).collect::<Vec<ipnet::IpNet>>())
}

async fn attempt(url: &str, allow: &[&str]) -> AttemptEnd {
    deliver(delivery(), url, allow).await
}

/// The contract's request, header by header, and a signature that a library of Standard Webhooks takes with either secret.
#[tokio::test]
async fn a_delivery_is_signed_and_says_its_place() {
    let (url, mut taken) = receiver().await;
    let live = delivery();
    let end = deliver(live.clone(), &format!("{url}/ok"), LOCAL).await;
    assert_eq!((end.result, end.status, &end.response[..]), (AttemptResult::Delivered, 200, &b"thanks"[..]));
    assert!(end.connected_ms.is_some() && end.connected_ms <= end.answered_ms, "the stages of the attempt: {end:?}");
    let (headers, body) = taken.recv().await.unwrap();
    for secret in [SECRET, NEW_SECRET] {
        standardwebhooks::Webhook::new(secret).unwrap().verify(&body, &headers).unwrap();
    }
    let event = &live.event.event;
    for (name, value) in [
        ("content-type", "application/json"),
        ("webhook-id", &event.id.to_string()),
        ("weft-workflow-id", "gr%C3%B6%C3%9Fe%201"),
        ("weft-sequence", "7"),
        ("weft-previous-event-id", &event.previous.unwrap().to_string()),
        ("weft-lane-previous-event-id", &live.lane_previous.unwrap().to_string()),
        ("weft-attempt", "3"),
        ("weft-epoch", "9"),
        ("traceparent", event.traceparent.as_deref().unwrap()),
    ] {
        assert_eq!(headers[name], value, "{name}");
    }
    assert!(headers["user-agent"].to_str().unwrap().starts_with("weft/"));
    assert!(!headers.contains_key("weft-replay"));
    let text = std::str::from_utf8(&body).unwrap();
    assert!(text.contains("\"sequenceNumber\":7") && text.contains("{\"exact\": 1.50}"), "{text}");

    deliver(Delivery { run: Run(12), lane_previous: None, ..live }, &format!("{url}/ok"), LOCAL).await;
    let (headers, _) = taken.recv().await.unwrap();
    assert_eq!((&headers["weft-replay"], &headers["weft-sequence"]), (&"true".parse().unwrap(), &"7".parse().unwrap()));
    assert!(!headers.contains_key("weft-lane-previous-event-id"));
}

#[tokio::test]
async fn responses_are_classified() {
    let (url, _taken) = receiver().await;
    let (permanent, transient) = (AttemptResult::Rejected, AttemptResult::Failed);
    for (path, result, class, status) in [
        ("/ok", AttemptResult::Delivered, AttemptClass::Delivered, 200),
        ("/bad", permanent, AttemptClass::HttpStatus, 422),
        ("/large", permanent, AttemptClass::HttpStatus, 413),
        ("/gone", AttemptResult::EndpointRetired, AttemptClass::HttpStatus, 410),
        ("/elsewhere", transient, AttemptClass::HttpStatus, 302),
        ("/nowhere", transient, AttemptClass::HttpStatus, 404),
        ("/late", transient, AttemptClass::Timeout, 0),
        ("/unavailable", AttemptResult::Unavailable, AttemptClass::HttpStatus, 503),
        ("/endless", transient, AttemptClass::HttpStatus, 500),
        // The status has been given: how the body ends changes nothing.
        ("/stuck", AttemptResult::Delivered, AttemptClass::Delivered, 200),
    ] {
        let end = attempt(&format!("{url}{path}"), LOCAL).await;
        let took = Duration::try_from(end.ended_at.duration_since(end.started_at)).unwrap();
        assert!(took < TIMEOUT * 4, "{path}: took {took:?}, the body included");
        assert_eq!((end.result, end.class, end.status), (result, class, status), "{path}: {}", end.error);
        assert!(end.response.len() <= 1024, "{path}: the response is bounded");
    }
    let busy = attempt(&format!("{url}/busy"), LOCAL).await;
    assert_eq!((busy.status, busy.retry_after), (429, Some(Duration::from_secs(17))));
    let large_now = attempt(&format!("{url}/large-now"), LOCAL).await;
    assert_eq!((large_now.result, large_now.retry_after), (transient, Some(Duration::from_secs(2))), "it is temporary");
    assert_eq!(attempt(&format!("{url}/bad"), LOCAL).await.response, "what is this");
}

#[tokio::test]
async fn what_goes_wrong_before_an_answer_is_named() {
    let (url, _taken) = receiver().await;
    for host in ["127.0.0.1", "127.1", "2130706433", "0x7f000001", "[::ffff:127.0.0.1]", "localhost"] {
        let end = attempt(&url.replace("127.0.0.1", host), &["10.0.0.0/8"]).await;
        assert_eq!(
            (end.result, end.class),
            (AttemptResult::Held, AttemptClass::RefusedAddress),
            "{host}: {}",
            end.error
        );
        assert!(end.error.contains("loopback") && end.error.contains("allow_networks"), "{host}: {}", end.error);
    }

    // Bound, and not listening: connections are refused, and no other process takes the port.
    let socket = TcpSocket::new_v4().unwrap();
    socket.bind(([127, 0, 0, 1], 0).into()).unwrap();
    let free = socket.local_addr().unwrap();
    let closed = attempt(&format!("http://{free}/"), LOCAL).await;
    assert_eq!((closed.result, closed.class), (AttemptResult::Unreachable, AttemptClass::Connect), "{}", closed.error);
    assert!(closed.error.contains(&free.to_string()), "it says where: {}", closed.error);
    let plain = attempt(&url.replace("http://", "https://"), LOCAL).await;
    assert_eq!(plain.class, AttemptClass::Tls, "{}", plain.error);
    let unknown = attempt("http://no-such-host.invalid/", &[]).await;
    assert_eq!(unknown.class, AttemptClass::Dns, "{}", unknown.error);
}

/// Whether a failure is the event's or the receiver's is decided by whether the event was sent.
#[tokio::test]
async fn a_time_out_or_reset_tells_whether_there_was_a_connection() {
    // With its queue full, a listener leaves who connects waiting until it accepts.
    let socket = TcpSocket::new_v4().unwrap();
    socket.bind(([127, 0, 0, 1], 0).into()).unwrap();
    let listener = socket.listen(0).unwrap();
    let address = listener.local_addr().unwrap();
    let _first = TcpStream::connect(address).await.unwrap();
    let late = attempt(&format!("http://{address}/"), LOCAL).await;
    assert_eq!((late.result, late.class), (AttemptResult::Unreachable, AttemptClass::Connect), "{}", late.error);

    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}/", listener.local_addr().unwrap());
    let reset = async {
        let (mut connection, _) = listener.accept().await.unwrap();
        let read = connection.read(&mut [0; 64]).await.unwrap();
        assert!(read > 0, "the request is being sent");
        // What has not been read makes the end of the connection a reset.
        drop(connection);
    };
    let ((), end) = tokio::join!(reset, attempt(&url, LOCAL));
    assert_eq!((end.result, end.class), (AttemptResult::Failed, AttemptClass::Protocol), "{}", end.error);
}

/// A subscription that this process cannot deliver to waits, and is delivered to as soon as it can.
#[tokio::test]
async fn a_destination_that_cannot_be_used_is_held_and_names_why() {
    let destinations = Destinations::new(vec![]);
    let delivery = delivery();
    let custom = v1::CustomDestination { name: "print".into() };
    let subscription = v1::Subscription {
        uid: delivery.uid.to_vec(),
        destination: Some(v1::Destination { kind: Some(v1::destination::Kind::Custom(custom)) }),
        ..Default::default()
    };
    assert!(destinations.put(&subscription).is_err());
    let end = destinations.deliver(delivery.clone()).await.unwrap();
    assert_eq!(end.result, AttemptResult::Held);
    assert!(end.error.contains("no code named \"print\""), "{}", end.error);
    destinations.remove(delivery.uid);
    assert_eq!(destinations.deliver(delivery).await.unwrap().result, AttemptResult::Held);
}

/// P3 at a take-over: whether the owner may still start an attempt is asked when there is a connection to write to, however
/// long that took to come about, and not only when the attempt began.
#[tokio::test]
async fn a_connection_that_comes_after_the_lease_is_sent_nothing() {
    for outlives in [true, false] {
        // With its queue full, a listener leaves who connects waiting until it accepts.
        let socket = TcpSocket::new_v4().unwrap();
        socket.bind(([127, 0, 0, 1], 0).into()).unwrap();
        let listener = socket.listen(0).unwrap();
        let address = listener.local_addr().unwrap();
        let _first = TcpStream::connect(address).await.unwrap();
        let (until, lease) = watch::channel(Duration::MAX);
        let lease = LeaseGuard::new(lease, CancellationToken::new());
        let delivery = Delivery { timeout: PATIENCE, lease, ..delivery() };
        let url = format!("http://{address}/");
        let delivering = try_deliver(delivery, &url, LOCAL);
        tokio::pin!(delivering);
        assert!(futures_util::poll!(&mut delivering).is_pending(), "it begins while it may, and waits");
        if !outlives {
            until.send_replace(Duration::ZERO);
        }
        listener.accept().await.unwrap();
        let receive = async {
            let (mut connection, _) = listener.accept().await.unwrap();
            let mut received = [0; 4];
            let length = connection.read(&mut received).await.unwrap();
            received[..length].to_vec()
        };
        let (received, end) = tokio::join!(receive, delivering);
        if outlives {
            assert_eq!((received.as_slice(), end.unwrap().result), (&b"POST"[..], AttemptResult::Failed));
        } else {
            assert_eq!((received, end), (vec![], Err(NotSent)));
        }
    }
}

#[tokio::test]
async fn nothing_begins_without_a_lease() {
    let (url, mut taken) = receiver().await;
    let lease = LeaseGuard::new(watch::channel(Duration::ZERO).1, CancellationToken::new());
    assert_eq!(try_deliver(Delivery { lease, ..delivery() }, &format!("{url}/ok"), LOCAL).await, Err(NotSent));
    assert!(taken.try_recv().is_err());
}
