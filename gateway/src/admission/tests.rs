//! The limits as callers meet them, around routes that answer one thing each.

use std::collections::BTreeMap;

use axum::{body::Body, routing::get};
use futures_util::FutureExt as _;
use http::{HeaderMap, StatusCode};
use sha2::{Digest as _, Sha256};
use tokio::sync::watch;
use tower::ServiceExt as _;
use weft_catalog::{Revised, Snapshot, keys::Keys};
use weft_nats::options::Secret;
use weft_proto::v1::{ApiKey, Scope};

use super::*;

/// Routes that need no log, and who may call them.
fn routes(limits: RateLimits) -> Router {
    let proxies = TrustedProxies::new(vec!["10.0.0.0/8".parse().unwrap()]);
    let admission = Arc::new(Admission::new(&limits, proxies));
    let refuse = |code: Code| get(move || async move { Problem::new(code, "no") });
    let of_source = |admission: Arc<Admission>| {
        get(move |client: Client, body: Body| async move {
            drop(body);
            admission.source(&client, "shop").map(|()| "taken")
        })
    };
    let routes = Router::new()
        .route("/good", get(async || "taken"))
        .route("/forged", refuse(Code::SignatureInvalid))
        .route("/unknown", refuse(Code::UnknownEvent))
        .route("/down", refuse(Code::LogUnavailable))
        .route("/source", of_source(admission.clone()));
    around(routes, admission)
}

fn limits(per_ip: &str, per_source: &str) -> RateLimits {
    RateLimits { per_ip: per_ip.parse().unwrap(), per_source: per_source.parse().unwrap(), per_key: Rate::Off }
}

/// Status and headers of the answer to `path` for a client at `address`.
async fn ask(routes: &Router, address: &str, path: &str) -> (StatusCode, HeaderMap) {
    let mut request = Request::get(path).body(Body::empty()).unwrap();
    request.extensions_mut().insert(Peer(address.parse().unwrap()));
    let (head, _) = routes.clone().oneshot(request).await.unwrap().into_parts();
    (head.status, head.headers)
}

fn number(headers: &HeaderMap, name: &str) -> i64 {
    headers[name].to_str().unwrap().parse().unwrap()
}

/// Only what the caller did wrong counts; past the limit refusals are answered 429, and good requests as ever.
#[tokio::test]
async fn refused_requests_count_against_their_address_and_accepted_ones_never() {
    let routes = routes(limits("2/h", "off"));
    for path in ["/good", "/unknown", "/down"] {
        for _ in 0..5 {
            let (_, headers) = ask(&routes, "192.0.2.1", path).await;
            assert_eq!((number(&headers, "x-ratelimit-limit"), number(&headers, "x-ratelimit-remaining")), (2, 2));
        }
    }
    for remaining in [1, 0] {
        let (status, headers) = ask(&routes, "192.0.2.1", "/forged").await;
        assert_eq!((status.as_u16(), number(&headers, "x-ratelimit-remaining")), (401, remaining));
    }
    let (status, headers) = ask(&routes, "192.0.2.1", "/good").await;
    assert_eq!((status.as_u16(), number(&headers, "x-ratelimit-remaining")), (200, 0));
    let (status, headers) = ask(&routes, "192.0.2.1", "/forged").await;
    assert_eq!((status.as_u16(), number(&headers, "x-ratelimit-remaining")), (429, 0));
    assert!((1..=1800).contains(&number(&headers, "retry-after")), "{headers:?}");
    let reset = number(&headers, "x-ratelimit-reset") - Timestamp::now().as_second();
    assert!((3598..=3601).contains(&reset), "{reset}");
    assert_eq!(ask(&routes, "192.0.2.2", "/good").await.0, 200);
}

/// Past the limit of its address a request may hold less memory, and none where that is used up.
#[tokio::test]
async fn an_address_over_its_limit_has_a_smaller_share() {
    let proxies = TrustedProxies::default();
    let admission = Admission::new(&limits("1/h", "off"), proxies).with_budget(Budget::new(64 * 20 * 1024, 1024));
    let stuck = get(std::future::pending::<&str>);
    let forged = get(async || Problem::new(Code::SignatureInvalid, "no"));
    let routes = around(Router::new().route("/stuck", stuck).route("/forged", forged), Arc::new(admission));
    let ask = |path: &'static str| {
        let mut request = Request::get(path).body(Body::empty()).unwrap();
        request.extensions_mut().insert(Peer("192.0.2.1".parse().unwrap()));
        routes.clone().oneshot(request)
    };
    let mut held: Vec<_> = (0..2).map(|_| Box::pin(ask("/stuck"))).collect();
    held.iter_mut().for_each(|stuck| assert!(stuck.now_or_never().is_none()));
    assert_eq!(ask("/forged").await.unwrap().status(), 401, "below the limit there is room");
    assert_eq!(ask("/forged").await.unwrap().status(), 429, "above it, there is none");
    held.clear();
    assert!(Box::pin(ask("/stuck")).now_or_never().is_none());
}

/// Clients behind a trusted proxy have separate limits, regardless of what they write before the element of the proxy.
#[tokio::test]
async fn clients_behind_a_proxy_are_told_apart() {
    let routes = routes(limits("1/h", "off"));
    let ask = async |forwarded: &str, path: &str| {
        let mut request = Request::get(path).header("x-forwarded-for", forwarded).body(Body::empty()).unwrap();
        request.extensions_mut().insert(Peer("10.0.0.1".parse().unwrap()));
        routes.clone().oneshot(request).await.unwrap().status().as_u16()
    };
    assert_eq!(ask("192.0.2.1", "/forged").await, 401);
    assert_eq!(ask("198.51.100.7, 192.0.2.1", "/forged").await, 429);
    assert_eq!(ask("192.0.2.2", "/forged").await, 401);
    for _ in 0..5 {
        assert_eq!(ask("garbage", "/forged").await, 401, "a proxy's own address has no limit");
    }
}

/// A source's limit applies to that source only, does not count against the address, and the response headers state the
/// tighter limit.
#[tokio::test]
async fn a_source_has_its_limit() {
    let routes = routes(limits("3/h", "1/h"));
    let (status, headers) = ask(&routes, "192.0.2.1", "/source").await;
    assert_eq!(status, 200);
    assert_eq!((number(&headers, "x-ratelimit-limit"), number(&headers, "x-ratelimit-remaining")), (1, 0));
    for address in ["192.0.2.1", "192.0.2.2", "192.0.2.1", "192.0.2.1"] {
        let (status, headers) = ask(&routes, address, "/source").await;
        assert_eq!((status.as_u16(), number(&headers, "x-ratelimit-limit")), (429, 1));
    }
    let (status, headers) = ask(&routes, "192.0.2.1", "/good").await;
    assert_eq!((status.as_u16(), number(&headers, "x-ratelimit-remaining")), (200, 3));
}

#[tokio::test]
async fn without_limits_no_header_is_sent() {
    let routes = routes(limits("off", "off"));
    for path in ["/good", "/forged", "/source"] {
        let (status, headers) = ask(&routes, "192.0.2.1", path).await;
        assert_ne!(status, 429);
        assert!(headers.keys().all(|name| !name.as_str().starts_with("x-ratelimit")), "{headers:?}");
    }
}

/// Requests with a key count by its id, regardless of the sender; the operator's own key has no limit.
#[test]
fn a_key_has_its_limit_and_the_bootstrap_key_none() {
    const KEY: &str = "weft_abcd1234_0123456789abcdef0123456789abcdef";
    let key = ApiKey {
        id: "abcd1234".into(),
        digest: Sha256::digest(KEY).to_vec(),
        scopes: vec![Scope::Read.into()],
        ..ApiKey::default()
    };
    let keys = BTreeMap::from([(key.id.clone(), Revised { revision: 1, value: Arc::new(key) })]);
    let catalog = watch::channel(Arc::new(Snapshot { complete: true, keys, ..Snapshot::default() })).1;
    let keys = Keys::new(Some(&Secret::new("bootstrap")), catalog);
    let per_key = RateLimits { per_key: "2/h".parse().unwrap(), ..limits("off", "off") };
    let admission = Admission::new(&per_key, TrustedProxies::default());
    let count = |key: &str| {
        let grant = keys.authorize(Some(key.as_bytes()), Scope::Read).unwrap();
        admission.key(&Client::default(), &grant).map_err(|problem| problem.code())
    };
    assert_eq!([(); 3].map(|()| count(KEY)), [Ok(()), Ok(()), Err(Code::RateLimited)]);
    assert_eq!([(); 3].map(|()| count("bootstrap")), [Ok(()); 3]);
}
