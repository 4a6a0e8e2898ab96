//! Every refusal that needs no log. A request that passes them all is answered 503 `starting` here, since no log is open.

use std::{collections::BTreeMap, time::Duration};

use axum::{body::Body, response::Response};
use http::{Method, Request, StatusCode};
use http_body_util::BodyExt as _;
use jiff::Timestamp;
use serde_json::Value;
use standardwebhooks::Webhook;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use tower::ServiceExt as _;
use weft_catalog::{Revised, Snapshot, keys::Keys};
use weft_nats::options::Secret;
use weft_proto::v1::{Rule, Source, StandardScheme, Verification, rule, verification::Scheme};

use super::*;
use crate::{
    admission::{Admission, TrustedProxies},
    http::body,
    options::RateLimits,
    sources::Sources,
};

const SECRET: &str = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw";
const KEY: &str = "reading";
const BODY_BYTES_MAX: usize = 1024;

fn source(name: &str) -> Source {
    Source {
        name: name.into(),
        verification: Some(Verification {
            scheme: Some(Scheme::Standard(StandardScheme { secrets: vec![SECRET.into()], tolerance_ms: None })),
        }),
        workflow: Some(Rule { from: Some(rule::From::Pointer("/workflow".into())) }),
        ..Source::default()
    }
}

/// The routes over a catalog with source `shop`, and no log.
fn routes(complete: bool) -> Router {
    let shop = Revised { revision: 1, value: Arc::new(source("shop")) };
    let sources = BTreeMap::from([("shop".to_owned(), shop)]);
    let (_, catalog) = watch::channel(Arc::new(Snapshot { complete, sources, ..Snapshot::default() }));
    let limits = body::Limits { bytes_max: BODY_BYTES_MAX, time: Duration::from_secs(5), depth_max: 512 };
    let keys = Keys::new(Some(&Secret::new(KEY)), catalog.clone());
    let admission = Admission::new(&RateLimits::default(), TrustedProxies::default());
    router(Arc::new(Api::new(Sources::new(catalog), keys, admission, limits, CancellationToken::new())))
}

/// Status, code and detail of the answer.
async fn answer(routes: &Router, request: Request<Body>) -> (StatusCode, String, String) {
    let response = routes.clone().oneshot(request).await.unwrap();
    let status = response.status();
    let body = problem(response).await;
    assert_eq!(body["status"], status.as_u16());
    (status, text(&body["code"]), text(&body["detail"]))
}

async fn problem(response: Response) -> Value {
    assert_eq!(response.headers()["content-type"], "application/problem+json");
    serde_json::from_slice(&response.into_body().collect().await.unwrap().to_bytes()).unwrap()
}

fn text(value: &Value) -> String {
    value.as_str().unwrap().to_owned()
}

/// A request that the reference library signs.
fn signed(path: &str, body: &str) -> Request<Body> {
    signed_at(path, body, Timestamp::now().as_second())
}

fn signed_at(path: &str, body: &str, at: i64) -> Request<Body> {
    let signature = Webhook::new(SECRET).unwrap().sign("evt_1", at, body.as_bytes()).unwrap();
    Request::post(path)
        .header("webhook-id", "evt_1")
        .header("webhook-timestamp", at)
        .header("webhook-signature", signature)
        .body(Body::from(body.to_owned()))
        .unwrap()
}

const SHOP: &str = "/api/v1/webhooks/shop";
const GOOD: &str = r#"{"type":"order.paid","workflow":"w"}"#;

async fn code(request: Request<Body>) -> String {
    answer(&routes(true), request).await.1
}

#[tokio::test]
async fn a_good_request_is_stopped_by_nothing_but_the_absent_log() {
    let (status, code, _) = answer(&routes(true), signed(SHOP, GOOD)).await;
    assert_eq!((status.as_u16(), code.as_str()), (503, "starting"));
    assert_eq!(self::code(signed("/api/v1/webhooks/shop/w-7", GOOD)).await, "starting");
}

#[tokio::test]
async fn a_signature_is_missing_or_wrong() {
    for header in ["webhook-id", "webhook-timestamp", "webhook-signature"] {
        let mut request = signed(SHOP, GOOD);
        request.headers_mut().remove(header);
        let (status, code, detail) = answer(&routes(true), request).await;
        assert_eq!((status.as_u16(), code.as_str()), (401, "signature_missing"));
        assert!(detail.contains(header), "{detail}");
    }
    let mut request = signed(SHOP, GOOD);
    *request.body_mut() = Body::from(GOOD.replace("paid", "void"));
    assert_eq!(code(request).await, "signature_invalid");
}

/// Nothing is parsed before the signature holds: a wrong signature over a bad body is a wrong signature.
#[tokio::test]
async fn the_signature_comes_before_the_body() {
    let mut request = signed(SHOP, "{}");
    *request.body_mut() = Body::from("{");
    assert_eq!(code(request).await, "signature_invalid");
    assert_eq!(code(signed(SHOP, "{")).await, "malformed_body");
    assert_eq!(code(signed(SHOP, "")).await, "malformed_body");
}

#[tokio::test]
async fn a_stale_timestamp_is_told_by_how_much() {
    let (status, code, detail) =
        answer(&routes(true), signed_at(SHOP, GOOD, Timestamp::now().as_second() - 3600)).await;
    assert_eq!((status.as_u16(), code.as_str()), (401, "timestamp_out_of_window"));
    assert!(detail.contains("360") && detail.contains("behind"), "{detail}");
}

#[tokio::test]
async fn exactly_the_limit_is_taken_and_one_byte_more_is_413() {
    let body = |bytes: usize| {
        let filler = "x".repeat(bytes - r#"{"type":"t","workflow":"w","x":""}"#.len());
        format!(r#"{{"type":"t","workflow":"w","x":"{filler}"}}"#)
    };
    assert_eq!(code(signed(SHOP, &body(BODY_BYTES_MAX))).await, "starting");
    let (status, code, _) = answer(&routes(true), signed(SHOP, &body(BODY_BYTES_MAX + 1))).await;
    assert_eq!((status.as_u16(), code.as_str()), (413, "body_too_large"));
}

#[tokio::test]
async fn a_source_is_unknown_or_not_read_yet() {
    let (status, code, _) = answer(&routes(true), signed("/api/v1/webhooks/unlisted", GOOD)).await;
    assert_eq!((status.as_u16(), code.as_str()), (404, "unknown_source"));
    assert_eq!(self::code(signed("/api/v1/webhooks/%FF", GOOD)).await, "unknown_source");
    assert_eq!(self::code(signed("/api/v1/webhooks/events", GOOD)).await, "unknown_source");
    let (status, code, _) = answer(&routes(false), signed("/api/v1/webhooks/unlisted", GOOD)).await;
    assert_eq!((status.as_u16(), code.as_str()), (503, "starting"));
}

#[tokio::test]
async fn workflow_ids_in_the_path_are_taken_or_invalid() {
    let long = "x".repeat(128);
    for taken in ["", "other/", "order.42", "*", "%3E", "a%20b", "%C3%A9", "a%2Fb", "..", "%25", &long] {
        assert_eq!(code(signed(&format!("{SHOP}/{taken}"), GOOD)).await, "starting", "{taken}");
    }
    for invalid in ["a%", "%zz", "%E2%80%AE", "%00", "%0A", "%FF", &format!("{long}x")] {
        assert_eq!(code(signed(&format!("{SHOP}/{invalid}"), GOOD)).await, "invalid_workflow", "{invalid}");
    }
    assert_eq!(code(signed(SHOP, r#"{"type":"t"}"#)).await, "missing_workflow");
    assert_eq!(code(signed(SHOP, r#"{"type":"t","workflow":""}"#)).await, "invalid_workflow");
    assert_eq!(code(signed(SHOP, r#"{"workflow":"w"}"#)).await, "missing_type");
}

#[tokio::test]
async fn a_compressed_body_is_415() {
    let mut request = signed(SHOP, GOOD);
    request.headers_mut().insert("content-encoding", "gzip".parse().unwrap());
    let (status, code, _) = answer(&routes(true), request).await;
    assert_eq!((status.as_u16(), code.as_str()), (415, "unsupported_media_type"));
}

#[tokio::test]
async fn routes_and_methods_that_are_not_there_are_problems_too() {
    let get = |path: &str| Request::get(path).body(Body::empty()).unwrap();
    assert_eq!(code(get("/")).await, "not_found");
    assert_eq!(code(get("/api/v1/nothing")).await, "not_found");
    let wrong = Request::builder().method(Method::DELETE).uri(SHOP).body(Body::empty()).unwrap();
    let response = routes(true).oneshot(wrong).await.unwrap();
    assert_eq!(response.status(), 405);
    assert_eq!(response.headers()["allow"], "POST");
    assert_eq!(problem(response).await["code"], "method_not_allowed");
}

#[tokio::test]
async fn reading_needs_the_key() {
    for path in [
        "/api/v1/webhooks/events",
        "/api/v1/events/x",
        "/api/v1/events?source=s&deliveryId=d",
        "/api/v1/events/stream",
        "/api/v1/openapi.json",
    ] {
        let with = |key: Option<&str>| {
            let request = Request::get(path);
            key.map_or(Request::get(path), |key| request.header("authorization", format!("Bearer {key}")))
                .body(Body::empty())
                .unwrap()
        };
        let (status, code, _) = answer(&routes(true), with(None)).await;
        assert_eq!((status.as_u16(), code.as_str()), (401, "key_missing"), "{path}");
        assert_eq!(self::code(with(Some("wrong"))).await, "key_invalid", "{path}");
        let passed = match path {
            "/api/v1/openapi.json" => {
                let described = routes(true).oneshot(with(Some(KEY))).await.unwrap();
                assert_eq!(described.status(), 200);
                continue;
            }
            path if path.ends_with("/x") => "unknown_event",
            _ => "starting",
        };
        assert_eq!(self::code(with(Some(KEY))).await, passed, "{path}");
    }
}

#[tokio::test]
async fn a_bad_query_is_told() {
    for (query, wanted) in [("limit=0", "bad_query"), ("nonsense=1", "bad_query"), ("workflowId=", "invalid_workflow")]
    {
        let request = Request::get(format!("/api/v1/webhooks/events?{query}")).header("x-api-key", KEY);
        assert_eq!(code(request.body(Body::empty()).unwrap()).await, wanted, "{query}");
    }
}
