//! Single deliveries over real sockets.

use std::{sync::Arc, time::Duration};

use axum::{Router, http::StatusCode, response::IntoResponse, routing::post};
use bytes::Bytes;
use jiff::Timestamp;
use weft_nats::event::{Event, StoredEvent};
use weft_proto::{
    ids::{EventId, Run, SequenceNumber, StreamSeq, SubscriptionUid, WorkflowId},
    v1::{self, AttemptClass},
};
use weft_worker::{
    destination::{Delivery, Destinations},
    lane::{AttemptEnd, Verdict},
};

use crate::support::SECRET;

/// A receiver with one route for each way to answer.
async fn receiver() -> String {
    let router = Router::new()
        .route("/ok", post(|| async { "thanks" }))
        .route("/late", post(std::future::pending::<StatusCode>))
        .route("/gone", post(|| async { StatusCode::GONE }))
        .route("/bad", post(|| async { (StatusCode::UNPROCESSABLE_ENTITY, "what is this") }))
        .route("/elsewhere", post(|| async { (StatusCode::FOUND, [("location", "/ok")]) }))
        .route("/busy", post(|| async { (StatusCode::TOO_MANY_REQUESTS, [("retry-after", "17")]) }))
        .route("/endless", post(endless));
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move { axum::serve(listener, router).await.unwrap() });
    format!("http://{address}")
}

async fn endless() -> impl IntoResponse {
    let chunks = futures_util::stream::repeat_with(|| Ok::<_, std::io::Error>(Bytes::from_static(&[b'x'; 4096])));
    (StatusCode::INTERNAL_SERVER_ERROR, axum::body::Body::from_stream(chunks))
}

async fn attempt(url: &str, allow: &str) -> AttemptEnd {
    let uid = SubscriptionUid::unique();
    let destinations = Destinations::new(allow.split_whitespace().map(|network| network.parse().unwrap()).collect());
    let subscription = v1::Subscription {
        uid: uid.to_vec(),
        destination: Some(v1::Destination {
            kind: Some(v1::destination::Kind::Http(v1::HttpDestination {
                url: url.into(),
                secrets: vec![SECRET.into()],
                format: v1::HttpFormat::Envelope.into(),
            })),
        }),
        ..Default::default()
    };
    destinations.put(&subscription).unwrap();
    let event = Event {
        id: EventId::unique(),
        sequence_number: SequenceNumber(1),
        workflow: WorkflowId::new("größe 1").unwrap(),
        previous: None,
        event_type: "t".into(),
        source: "s".into(),
        time: Timestamp::now(),
        received_at: Timestamp::now(),
        delivery_id: None,
        content_type: "application/json".into(),
        data_pointer: String::new(),
        verified_by: String::new(),
        traceparent: None,
        quarantine: None,
        kept_headers: vec![],
        payload: Bytes::from_static(b"{}"),
    };
    let delivery = Delivery {
        event: Arc::new(StoredEvent { seq: StreamSeq(1), stored_at: Timestamp::now(), event }),
        uid,
        run: Run::LIVE,
        number: 1,
        lane_previous: None,
        epoch: 1,
        timeout: Duration::from_millis(500),
    };
    destinations.deliver(delivery).await
}

#[tokio::test]
async fn answers_are_told_apart() {
    let url = receiver().await;
    let local = "127.0.0.0/8";
    let (permanent, transient) = (Verdict::Permanent, Verdict::Transient);
    for (path, verdict, class, status) in [
        ("/ok", Verdict::Delivered, AttemptClass::Delivered, 200),
        ("/bad", permanent, AttemptClass::HttpStatus, 422),
        ("/gone", transient, AttemptClass::HttpStatus, 410),
        ("/elsewhere", transient, AttemptClass::HttpStatus, 302),
        ("/nowhere", transient, AttemptClass::HttpStatus, 404),
        ("/late", transient, AttemptClass::Timeout, 0),
        ("/endless", transient, AttemptClass::HttpStatus, 500),
    ] {
        let end = attempt(&format!("{url}{path}"), local).await;
        assert_eq!((end.verdict, end.class, end.status), (verdict, class, status), "{path}: {}", end.error);
        assert!(end.response.len() <= 1024, "{path}: the response is bounded");
    }
    let busy = attempt(&format!("{url}/busy"), local).await;
    assert_eq!((busy.status, busy.retry_after), (429, Some(Duration::from_secs(17))));
    assert_eq!(attempt(&format!("{url}/bad"), local).await.response, "what is this");
}

#[tokio::test]
async fn what_goes_wrong_before_an_answer_is_named() {
    let url = receiver().await;
    let refused = attempt(&url, "").await;
    assert_eq!((refused.verdict, refused.class), (Verdict::Transient, AttemptClass::RefusedAddress));
    assert!(refused.error.contains("loopback") && refused.error.contains("allow_networks"), "{}", refused.error);
    let by_name = attempt(&url.replace("127.0.0.1", "localhost"), "").await;
    assert_eq!(
        by_name.class,
        AttemptClass::RefusedAddress,
        "a name is checked where it is resolved: {}",
        by_name.error
    );

    let free = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap();
    let closed = attempt(&format!("http://{free}/"), "127.0.0.0/8").await;
    assert_eq!((closed.verdict, closed.class), (Verdict::Transient, AttemptClass::Connect), "{}", closed.error);
    let plain = attempt(&url.replace("http://", "https://"), "127.0.0.0/8").await;
    assert_eq!(plain.class, AttemptClass::Tls, "{}", plain.error);
    let unknown = attempt("http://no-such-host.invalid/", "").await;
    assert_eq!(unknown.class, AttemptClass::Dns, "{}", unknown.error);
}
