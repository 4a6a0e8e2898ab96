//! Bodies and headers by format, one event and several.

use std::sync::Arc;

use axum::http::HeaderMap;
use bytes::Bytes;
use serde_json::Value;
use weft_proto::{
    ids::EventId,
    v1::{Batch, HttpDestination, HttpFormat, HttpSignature, Subscription, destination::Kind},
};
use weft_worker::destination::{Delivery, DeliveryResult};

use super::{SECRET, changed, delivery, destinations, receiver};

/// Delivers to a new receiver, and returns what it has got.
async fn received(
    deliveries: &[Delivery],
    change: impl FnOnce(&mut Subscription),
) -> (DeliveryResult, Vec<(HeaderMap, Bytes)>) {
    let (url, mut taken) = receiver().await;
    let mut subscription = changed(&format!("{url}/ok"), |_| {});
    change(&mut subscription);
    let result = destinations().make(&subscription).unwrap().deliver(deliveries).await;
    let mut requests = Vec::new();
    while let Ok(request) = taken.try_recv() {
        requests.push(request);
    }
    (result, requests)
}

fn http(subscription: &mut Subscription) -> &mut HttpDestination {
    match subscription.destination.as_mut().and_then(|destination| destination.kind.as_mut()) {
        Some(Kind::Http(http)) => http,
        _ => panic!("of type http"),
    }
}

fn format(subscription: &mut Subscription, format: HttpFormat) {
    http(subscription).set_format(format);
}

fn batched(subscription: &mut Subscription) {
    subscription.batch = Some(Batch { max_events: 10 });
}

/// A delivery of an event with this body.
fn with_body(content_type: &str, body: &'static [u8]) -> Delivery {
    let mut delivery = delivery();
    let event = Arc::make_mut(&mut delivery.event);
    event.event.content_type = content_type.into();
    event.event.payload = Bytes::from_static(body);
    delivery
}

/// Deliveries of one lane.
fn lane(count: u64) -> Vec<Delivery> {
    let first = delivery();
    let deliveries = (0..count).map(|number| {
        let mut delivery = first.clone();
        let event = &mut Arc::make_mut(&mut delivery.event).event;
        event.id = EventId::unique();
        event.sequence_number.0 += number;
        delivery
    });
    deliveries.collect()
}

/// Guards: several events are one request with the envelopes in order, named by the last; without a batch they are separate
/// requests, in order.
#[tokio::test]
async fn a_batch_is_one_signed_array_in_order() {
    let deliveries = lane(3);
    let ids: Vec<_> = deliveries.iter().map(|delivery| delivery.event.event.id.to_string()).collect();
    let (result, requests) = received(&deliveries, batched).await;
    assert_eq!((result.count, result.failure), (3, None));
    let [(headers, body)] = &requests[..] else { panic!("{} requests", requests.len()) };
    standardwebhooks::Webhook::new(SECRET).unwrap().verify(body, headers).unwrap();
    let events: Vec<Value> = serde_json::from_slice(body).unwrap();
    assert_eq!(events.iter().map(|event| event["eventId"].as_str().unwrap()).collect::<Vec<_>>(), ids);
    assert!(std::str::from_utf8(body).unwrap().contains("{\"exact\": 1.50}"), "data is as it was sent");
    for (name, value) in [
        ("content-type", "application/json"),
        ("webhook-id", &ids[2]),
        ("weft-batch-size", "3"),
        ("weft-sequence", "9"),
        ("weft-previous-event-id", &deliveries[0].event.event.previous.unwrap().to_string()),
        ("weft-lane-previous-event-id", &deliveries[0].lane_previous.unwrap().to_string()),
    ] {
        assert_eq!(headers[name], value, "{name}");
    }

    let (_, requests) = received(&deliveries[..1], batched).await;
    let events: Vec<Value> = serde_json::from_slice(&requests[0].1).unwrap();
    assert_eq!((events.len(), &requests[0].0["weft-batch-size"]), (1, &"1".parse().unwrap()), "also of one event");

    let (result, requests) = received(&deliveries, |_| {}).await;
    assert_eq!(result.count, 3);
    assert_eq!(requests.iter().map(|(headers, _)| headers["webhook-id"].to_str().unwrap()).collect::<Vec<_>>(), ids);
    assert!(!requests[0].0.contains_key("weft-batch-size"));
}

/// Guards: a batch that fails settles none of its events.
#[tokio::test]
async fn a_failed_batch_takes_nothing() {
    let (url, _taken) = receiver().await;
    let mut subscription = changed(&format!("{url}/unavailable"), |_| {});
    batched(&mut subscription);
    let result = destinations().make(&subscription).unwrap().deliver(&lane(3)).await;
    assert_eq!((result.count, result.failure.map(|failure| failure.status)), (0, Some(503)));
    assert!(!result.is_attributed, "which event is at fault is not known");
}

#[tokio::test]
async fn cloudevents_are_in_binary_mode() {
    let mut delivery = with_body("application/json", b"{\"a\": 1e400}");
    let event = &mut Arc::make_mut(&mut delivery.event).event;
    event.event_type = "order paid".into();
    event.delivery_id = Some("evt_1".into());
    event.kept_headers =
        [("ce-tenant", "Köln"), ("ce-id", "forged"), ("ce-data", "x"), ("ce-BAD", "x"), ("x-other", "x")]
            .map(|(name, value)| (name.into(), value.into()))
            .to_vec();
    let (_, requests) =
        received(std::slice::from_ref(&delivery), |subscription| format(subscription, HttpFormat::Cloudevents)).await;
    let (headers, body) = &requests[0];
    let event = &delivery.event.event;
    for (name, value) in [
        ("content-type", "application/json"),
        ("ce-specversion", "1.0"),
        ("ce-id", &event.id.to_string()),
        ("ce-source", "shop"),
        ("ce-type", "order%20paid"),
        ("ce-time", &event.time.to_string()),
        ("ce-partitionkey", "gr%C3%B6%C3%9Fe%201"),
        ("ce-sequence", "00000000000000000007"),
        ("ce-previousid", &event.previous.unwrap().to_string()),
        ("ce-deliveryid", "evt_1"),
        ("ce-tenant", "K%C3%B6ln"),
        ("webhook-id", &event.id.to_string()),
    ] {
        assert_eq!(headers[name], value, "{name}");
    }
    assert_eq!(headers.keys().filter(|name| name.as_str().starts_with("ce-")).count(), 12, "{headers:?}");
    assert!(!headers.contains_key("x-other"));
    assert_eq!(body, "{\"a\": 1e400}");
    standardwebhooks::Webhook::new(SECRET).unwrap().verify(body, headers).unwrap();
}

#[tokio::test]
async fn a_batch_of_cloudevents_is_in_the_json_batch_format() {
    let deliveries = [
        with_body("application/json", b"{\"a\": 1.50}"),
        with_body("application/octet-stream", b"\xff\x00"),
        with_body("application/json", b""),
    ];
    let (result, requests) = received(&deliveries, |subscription| {
        batched(subscription);
        format(subscription, HttpFormat::Cloudevents);
    })
    .await;
    assert_eq!((result.count, requests.len()), (3, 1));
    let (headers, body) = &requests[0];
    assert_eq!(headers["content-type"], "application/cloudevents-batch+json");
    assert!(headers.keys().all(|name| !name.as_str().starts_with("ce-")), "they are inside");
    assert!(std::str::from_utf8(body).unwrap().contains("\"data\":{\"a\": 1.50}"), "data is as it was sent");
    let events: Vec<Value> = serde_json::from_slice(body).unwrap();
    for (event, delivery) in events.iter().zip(&deliveries) {
        assert_eq!(event["id"], delivery.event.event.id.to_string());
        assert_eq!((&event["specversion"], &event["partitionkey"]), (&"1.0".into(), &"größe 1".into()));
    }
    assert_eq!(
        (&events[1]["data_base64"], &events[1]["datacontenttype"]),
        (&"/wA=".into(), &"application/octet-stream".into())
    );
    assert!(events[2].get("data").is_none() && events[2].get("datacontenttype").is_none());
}

/// Guards: `raw` forwards the sender's bytes, type and kept headers, and nothing of Weft's own can be forged by them.
#[tokio::test]
async fn raw_is_the_senders_body_with_its_kept_headers() {
    let mut delivery = with_body("text/csv; charset=utf-8", b"a;b\n");
    let event = &mut Arc::make_mut(&mut delivery.event).event;
    event.kept_headers = [("x-github-event", "push"), ("webhook-id", "forged"), ("content-length", "7"), ("host", "a")]
        .map(|(name, value)| (name.into(), value.into()))
        .to_vec();
    let (_, requests) =
        received(std::slice::from_ref(&delivery), |subscription| format(subscription, HttpFormat::Raw)).await;
    let (headers, body) = &requests[0];
    assert_eq!((body, &headers["content-type"]), (&"a;b\n".into(), &"text/csv; charset=utf-8".parse().unwrap()));
    assert_eq!(
        (&headers["x-github-event"], &headers["content-length"]),
        (&"push".parse().unwrap(), &"4".parse().unwrap())
    );
    assert_eq!(headers["webhook-id"], delivery.event.event.id.to_string());
    standardwebhooks::Webhook::new(SECRET).unwrap().verify(body, headers).unwrap();

    let mut part = with_body("application/vnd.a+json", b"{\"data\": [1, 2] }");
    Arc::make_mut(&mut part.event).event.data_pointer = "/data".into();
    let (_, requests) = received(&[part], |subscription| format(subscription, HttpFormat::Raw)).await;
    assert_eq!(
        (&requests[0].1, &requests[0].0["content-type"]),
        (&"[1, 2]".into(), &"application/json".parse().unwrap())
    );
}

#[tokio::test]
async fn without_a_signature_the_rest_stays() {
    let (_, requests) = received(&[delivery()], |subscription| {
        let http = http(subscription);
        http.set_signature(HttpSignature::None);
        http.secrets.clear();
    })
    .await;
    let headers = &requests[0].0;
    assert!(headers.contains_key("webhook-id") && headers.contains_key("webhook-timestamp"));
    assert!(!headers.contains_key("webhook-signature"));
}
