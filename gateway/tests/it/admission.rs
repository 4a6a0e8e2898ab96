//! Limits as a sender meets them: real connections, real signatures.

use tonic::transport::Endpoint;
use weft_gateway::{GatewayOptions, options::RateLimits};
use weft_proto::v1::{PublishRequest, Source, ingest_service_client::IngestServiceClient};

use crate::{
    http::{Answer, Request, get, send, webhook},
    mesh::{self, Mesh},
};

const BODY: &str = r#"{"type":"t","workflow":"w"}"#;

fn limits(per_ip: &str, per_source: &str, per_key: &str) -> GatewayOptions {
    let rate = |text: &str| text.parse().unwrap();
    let rate_limit = RateLimits { per_ip: rate(per_ip), per_source: rate(per_source), per_key: rate(per_key) };
    GatewayOptions { rate_limit, ..GatewayOptions::default() }
}

fn forged(id: &str) -> Request {
    Request { body: BODY.replace('t', "x").into(), ..webhook("shop", id, BODY) }
}

fn remaining(answer: &Answer) -> u64 {
    answer.headers["x-ratelimit-remaining"].parse().unwrap()
}

/// However many are accepted, none counts. Past the limit only refusals are answered 429: a sender that shares its address
/// with one that guesses signatures is served.
#[tokio::test]
async fn a_good_sender_behind_a_noisy_address_is_served() {
    let mesh = Mesh::start(1).await;
    let gateway = mesh.gateway_with(limits("3/h", "off", "off")).await;
    for n in 0..8 {
        let answer = send(gateway.address, &webhook("shop", &format!("good-{n}"), BODY)).await.unwrap();
        assert_eq!((answer.status, remaining(&answer)), (202, 3));
    }
    for left in (0..3).rev() {
        let answer = send(gateway.address, &forged("bad")).await.unwrap();
        assert_eq!((answer.code(), remaining(&answer)), ("signature_invalid", left));
    }
    for n in 8..23 {
        let answer = send(gateway.address, &forged("bad")).await.unwrap();
        assert_eq!((answer.status, answer.code()), (429, "rate_limited"));
        let wait: u64 = answer.headers["retry-after"].parse().unwrap();
        assert!((1..=1200).contains(&wait), "{answer:?}");
        assert_eq!(send(gateway.address, &webhook("shop", &format!("good-{n}"), BODY)).await.unwrap().status, 202);
    }
    assert_eq!(send(gateway.address, &get("/api/v1/webhooks/events")).await.unwrap().status, 200);
    assert_eq!(send(gateway.address, &get("/nowhere")).await.unwrap().status, 429);
}

/// Requests without a good signature use up nothing of a source's limit; its own requests do.
#[tokio::test]
async fn a_source_is_limited_by_what_it_has_signed() {
    let mesh = Mesh::start(1).await;
    let gateway = mesh.gateway_with(limits("off", "2/h", "off")).await;
    for n in 0..5 {
        assert_eq!(send(gateway.address, &forged(&format!("bad-{n}"))).await.unwrap().code(), "signature_invalid");
        assert_eq!(send(gateway.address, &webhook("unlisted", "x", BODY)).await.unwrap().code(), "unknown_source");
    }
    for (n, status) in [202, 202, 429].into_iter().enumerate() {
        let answer = send(gateway.address, &webhook("shop", &format!("good-{n}"), BODY)).await.unwrap();
        assert_eq!(answer.status, status, "{answer:?}");
        assert_eq!(answer.headers["x-ratelimit-limit"], "2");
    }
}

/// Refused calls count like refused requests, and a client over the limit gets a gRPC status.
#[tokio::test]
async fn calls_count_against_their_address_too() {
    let mesh = Mesh::start(1).await;
    let gateway = mesh.gateway_with(limits("2/h", "off", "off")).await;
    let channel = Endpoint::from_shared(format!("http://{}", gateway.address)).unwrap().connect().await.unwrap();
    let mut stranger = IngestServiceClient::new(channel);
    for left in ["1", "0"] {
        let refused = stranger.publish(PublishRequest::default()).await.unwrap_err();
        assert_eq!(refused.code(), tonic::Code::Unauthenticated);
        assert_eq!(refused.metadata().get("x-ratelimit-remaining").unwrap(), left);
    }
    let refused = stranger.publish(PublishRequest::default()).await.unwrap_err();
    assert_eq!(refused.code(), tonic::Code::ResourceExhausted);
    assert_eq!(send(gateway.address, &forged("evt_1")).await.unwrap().status, 429);
    assert_eq!(send(gateway.address, &webhook("shop", "evt_1", BODY)).await.unwrap().status, 202);
}

/// A source's own `max_body` holds, below the gateway's.
#[tokio::test]
async fn a_source_may_be_held_to_smaller_bodies() {
    let mesh = Mesh::start(1).await;
    let small = Source { name: "small".into(), max_body_bytes: BODY.len() as u64, ..mesh::shop() };
    mesh.add(&small).await;
    let gateway = mesh.gateway().await;
    let larger = format!("{BODY} ");
    for (source, body, status) in [("shop", &*larger, 202), ("small", BODY, 202), ("small", &*larger, 413)] {
        let answer = send(gateway.address, &webhook(source, "evt_1", body)).await.unwrap();
        assert_eq!(answer.status, status, "{answer:?}");
    }
}
