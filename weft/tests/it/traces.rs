//! Traces, as a collector gets them.

use std::sync::{
    Arc, Mutex,
    atomic::{AtomicBool, Ordering},
};

use axum::{Router, body::Bytes, extract::State, routing::post};
use prost::Message as _;
use weft_services::{
    mesh::{Up, Wiring},
    receiver::{Answer, Arrival, Receiver},
    traces::otlp::{self, Request, any_value::Value},
};
use weft_testkit::eventually;

use crate::mesh::{PATIENCE, accepted, program};

/// In the payload.
const MAIL: &str = "jane@example.org";

/// A collector that keeps what it gets.
#[derive(Debug, Clone, Default)]
struct Collector(Arc<Mutex<Vec<otlp::Span>>>);

impl Collector {
    async fn start() -> (Self, String) {
        let collector = Self::default();
        let routes = Router::new().route("/v1/traces", post(take)).with_state(collector.clone());
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        tokio::spawn(async move { axum::serve(listener, routes).await });
        (collector, url)
    }

    fn named(&self, name: &str) -> Vec<otlp::Span> {
        self.0.lock().unwrap().iter().filter(|span| span.name == name).cloned().collect()
    }
}

async fn take(State(collector): State<Collector>, body: Bytes) {
    let request = Request::decode(body).unwrap();
    let scopes = request.resource_spans.into_iter().flat_map(|resource| resource.scope_spans);
    collector.0.lock().unwrap().extend(scopes.flat_map(|scope| scope.spans));
}

fn text(span: &otlp::Span, key: &str) -> String {
    let attribute = span.attributes.iter().find(|attribute| attribute.key == key).unwrap_or_else(|| panic!("{key}"));
    match attribute.value.clone().and_then(|value| value.value) {
        Some(Value::Text(text)) => text,
        Some(Value::Number(number)) => number.to_string(),
        None => String::new(),
    }
}

/// One trace has the way of an event from the request to its outcome, with each attempt, and nothing of its payload.
#[tokio::test(flavor = "multi_thread")]
async fn one_trace_shows_an_event_from_its_acceptance_to_its_outcome() {
    let (collector, endpoint) = Collector::start().await;
    let folder = tempfile::tempdir().unwrap();
    let failed_once = AtomicBool::new(false);
    let rule = move |_: &Arrival| if failed_once.swap(true, Ordering::Relaxed) { Answer::OK } else { Answer::now(500) };
    let wiring = Wiring::new();
    let receiver = Receiver::start("127.0.0.1:0".parse().unwrap(), &wiring.receiver_secret, rule).await.unwrap();
    let config = format!("[traces]\nendpoint = {endpoint:?}\n{}", wiring.config(Some(&receiver.url())));
    let mut up = Up::start(&program(), folder.path(), &config).await.unwrap();
    let body = Bytes::from(format!(r#"{{"type":"order.changed","data":{{"mail":"{MAIL}"}}}}"#));
    let (sent, _) = accepted(&up.sender().unwrap(), &wiring, "order-1", "1", body).await;
    let sent = sent.receipt().unwrap();
    assert!(eventually(PATIENCE, async || collector.named("settle").len() == 1).await, "{collector:?}");
    up.stop().await.unwrap();
    let accept = collector.named("accept").remove(0);
    assert_eq!(text(&accept, "weft.event_id"), sent.event_id);
    let attempts = collector.named("attempt");
    assert_eq!(attempts.len(), 2, "a failure and a success");
    assert!(attempts[0].status.is_some() && attempts[1].status.is_none());
    for name in ["append", "wait", "attempt", "settle"] {
        for span in collector.named(name) {
            assert_eq!((&span.trace_id, &span.parent_span_id), (&accept.trace_id, &accept.span_id), "{name}");
            assert!(span.start_time_unix_nano <= span.end_time_unix_nano, "{span:?}");
        }
    }
    assert_eq!(text(&collector.named("settle")[0], "weft.outcome"), "delivered");
    assert!(!format!("{collector:?}").contains(MAIL), "no payload");
}
