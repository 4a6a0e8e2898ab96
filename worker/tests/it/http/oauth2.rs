//! Access tokens from a token endpoint, which counts requests and fails on demand.

use std::{
    collections::HashSet,
    sync::{Arc, Mutex},
    time::Duration,
};

use axum::{
    Json, Router,
    extract::State,
    http::{
        HeaderMap, StatusCode,
        header::{AUTHORIZATION, CONTENT_TYPE},
    },
    response::{IntoResponse, Response},
    routing::post,
};
use futures_util::future::join_all;
use serde_json::json;
use weft_proto::v1::{AttemptClass, Auth, OAuth2ClientCredentials, Subscription, auth};
use weft_worker::{
    destination::{Destinations, address::AddressRules},
    lane::AttemptResult,
};

use super::{
    changed, destinations,
    http1::{Process, took},
};

/// An authorization server and a receiver that takes the tokens that it has not revoked.
#[derive(Debug, Default)]
struct Party {
    issued: usize,
    valid: HashSet<String>,
    lifetime: Option<u64>,
    /// The answer in place of a token.
    refusal: Option<(u16, &'static str)>,
    /// Whether requests are read and never answered.
    hangs: bool,
    asked: usize,
    delivered: usize,
    refused: usize,
}

type Shared = Arc<Mutex<Party>>;

async fn token(State(party): State<Shared>, headers: HeaderMap, body: String) -> Response {
    // Time for others to ask meanwhile.
    tokio::task::yield_now().await;
    let hangs = {
        let mut party = party.lock().unwrap();
        party.asked += 1;
        party.hangs
    };
    if hangs {
        std::future::pending::<()>().await;
    }
    let mut party = party.lock().unwrap();
    // `weft%3A1` and `hu%2Fsh`, encoded as in a form (RFC 6749, section 2.3.1).
    assert_eq!(headers[AUTHORIZATION], "Basic d2VmdCUzQTE6aHUlMkZzaA==");
    assert_eq!(headers[CONTENT_TYPE], "application/x-www-form-urlencoded");
    assert_eq!(body, "grant_type=client_credentials&scope=events.write+audit");
    if let Some((status, code)) = party.refusal {
        return (StatusCode::from_u16(status).unwrap(), Json(json!({ "error": code }))).into_response();
    }
    party.issued += 1;
    let token = format!("token-{}", party.issued);
    party.valid.insert(token.clone());
    Json(json!({ "access_token": token, "token_type": "Bearer", "expires_in": party.lifetime })).into_response()
}

async fn receive(State(party): State<Shared>, headers: HeaderMap) -> StatusCode {
    let mut party = party.lock().unwrap();
    let token = headers[AUTHORIZATION].to_str().unwrap().strip_prefix("Bearer ").unwrap();
    if party.valid.contains(token) {
        party.delivered += 1;
        return StatusCode::OK;
    }
    party.refused += 1;
    StatusCode::UNAUTHORIZED
}

async fn start(party: Party) -> (String, Shared) {
    let shared = Arc::new(Mutex::new(party));
    let router =
        Router::new().route("/token", post(token)).route("/hook", post(receive)).with_state(Arc::clone(&shared));
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    tokio::spawn(async move { axum::serve(listener, router).await.unwrap() });
    (url, shared)
}

fn subscription(url: &str, token_url: &str) -> Subscription {
    let oauth2 = OAuth2ClientCredentials {
        token_url: token_url.into(),
        client_id: "weft:1".into(),
        client_secret: "hu/sh".into(),
        scopes: vec!["events.write".into(), "audit".into()],
    };
    changed(&format!("{url}/hook"), |http| http.auth = Some(Auth { kind: Some(auth::Kind::Oauth2(oauth2)) }))
}

/// Guards: a token is asked for once, also by many deliveries at a time and by several subscriptions with the same client.
#[tokio::test]
async fn one_token_serves_many_deliveries_and_subscriptions() {
    let (url, party) = start(Party { lifetime: Some(3600), ..Party::default() }).await;
    let token_url = format!("{url}/token");
    let destinations = destinations();
    let of_many: Vec<_> = (0..3).map(|_| subscription(&url, &token_url)).collect();
    let made: Vec<_> = of_many.iter().map(|subscription| destinations.make(subscription).unwrap()).collect();
    let delivery = super::delivery();
    let results = join_all((0..60).map(|number| {
        let (destination, delivery) = (&made[number % made.len()], delivery.clone());
        async move { destination.deliver(&[delivery]).await }
    }))
    .await;
    assert!(results.iter().all(|result| result.count == 1), "{results:?}");
    let party = party.lock().unwrap();
    assert_eq!((party.asked, party.delivered, party.refused), (1, 60, 0));
}

/// Guards: a token that ends is replaced before it does, so that no delivery is refused for it.
#[tokio::test]
async fn a_token_is_replaced_before_it_ends() {
    let (url, party) = start(Party { lifetime: Some(4), ..Party::default() }).await;
    let process = Process::with_subscription(destinations(), subscription(&url, &format!("{url}/token")));
    let started = std::time::Instant::now();
    while started.elapsed() < Duration::from_millis(3500) {
        let end = process.deliver().await;
        assert_eq!(end.result, AttemptResult::Delivered, "{}", end.error);
    }
    let party = party.lock().unwrap();
    assert_eq!((party.asked, party.refused), (2, 0), "after three quarters of its life");
}

/// Guards: a token that the receiver no longer takes costs no attempt; a receiver that takes none costs one new token.
#[tokio::test]
async fn a_revoked_token_is_replaced_within_the_attempt() {
    let (url, party) = start(Party { lifetime: Some(3600), ..Party::default() }).await;
    let process = Process::with_subscription(destinations(), subscription(&url, &format!("{url}/token")));
    assert_eq!(process.deliver().await.result, AttemptResult::Delivered);
    party.lock().unwrap().valid.clear();
    let end = process.deliver().await;
    assert_eq!(end.result, AttemptResult::Delivered, "{}", end.error);
    {
        let mut party = party.lock().unwrap();
        assert_eq!((party.asked, party.delivered, party.refused), (2, 2, 1));
        // The endpoint has no other token from now on.
        party.refusal = Some((503, "temporarily_unavailable"));
        party.valid.clear();
    }
    let end = process.deliver().await;
    assert_eq!(end.result, AttemptResult::Unreachable, "{}", end.error);

    let bearer = changed(&format!("{url}/hook"), |http| {
        http.auth = Some(Auth { kind: Some(auth::Kind::Bearer(weft_proto::v1::BearerAuth { token: "old".into() })) });
    });
    let end = Process::with_subscription(destinations(), bearer).deliver().await;
    assert_eq!((end.result, end.status), (AttemptResult::Failed, 401), "a fixed token is not tried again");
}

/// Guards: a token endpoint that fails uses up no retry and is named; a refusal holds the subscription.
#[tokio::test]
async fn a_token_endpoint_that_fails_is_named_and_not_counted() {
    let (url, party) = start(Party::default()).await;
    let token_url = format!("{url}/token");
    let endpoint = url.strip_prefix("http://").unwrap();
    for (refusal, result, words) in [
        ((401, "invalid_client"), AttemptResult::Held, "status 401 Unauthorized, invalid_client"),
        ((503, "busy"), AttemptResult::Unreachable, "status 503 Service Unavailable, busy"),
    ] {
        party.lock().unwrap().refusal = Some(refusal);
        let end = Process::with_subscription(destinations(), subscription(&url, &token_url)).deliver().await;
        assert_eq!((end.result, end.status), (result, 0), "{}", end.error);
        assert_eq!(end.error, format!("no access token from {endpoint}: {words}"));
    }
    let party = party.lock().unwrap();
    assert_eq!((party.asked, party.delivered + party.refused), (2, 0), "no event was sent");
}

/// Guards: an endpoint that takes a request and never answers costs an attempt that has no token its time and no retry, and the
/// error names the endpoint.
#[tokio::test]
async fn a_token_endpoint_that_hangs_is_named_and_not_counted() {
    let (url, party) = start(Party { hangs: true, ..Party::default() }).await;
    let endpoint = url.strip_prefix("http://").unwrap();
    let process = Process::with_subscription(destinations(), subscription(&url, &format!("{url}/token")));
    let end = process.deliver_within(Duration::from_millis(500)).await;
    assert_eq!((end.result, end.class), (AttemptResult::Unreachable, AttemptClass::Timeout), "{}", end.error);
    assert_eq!(end.error, format!("no access token from {endpoint} within 500 ms"));
    // With more time than the request for a token has.
    let end = process.deliver_within(Duration::from_secs(60)).await;
    assert_eq!((end.result, end.class), (AttemptResult::Unreachable, AttemptClass::Timeout), "{}", end.error);
    assert_eq!(end.error, format!("no access token from {endpoint}: no answer within 10 s"));
    assert!(took(&end) < Duration::from_secs(30), "{:?}", took(&end));
    party.lock().unwrap().hangs = false;
    let again = async || process.deliver().await.result == AttemptResult::Delivered;
    assert!(weft_testkit::eventually(super::PATIENCE, again).await, "it continues when the endpoint answers");
}

/// Guards: while a token is valid no delivery waits for the next one, however long the endpoint takes.
#[tokio::test]
async fn deliveries_with_a_valid_token_go_on_while_its_endpoint_hangs() {
    let (url, party) = start(Party { lifetime: Some(16), ..Party::default() }).await;
    let process = Process::with_subscription(destinations(), subscription(&url, &format!("{url}/token")));
    assert_eq!(process.deliver().await.result, AttemptResult::Delivered);
    party.lock().unwrap().hangs = true;
    // Three quarters of the token's life: from then on it is to be replaced.
    let asked = async || {
        let end = process.deliver_within(Duration::from_secs(5)).await;
        assert_eq!(end.result, AttemptResult::Delivered, "{}", end.error);
        party.lock().unwrap().asked > 1
    };
    assert!(weft_testkit::eventually(Duration::from_secs(15), asked).await, "the next token is asked for");
    let ends = join_all((0..20).map(|_| process.deliver_within(Duration::from_secs(5)))).await;
    assert!(ends.iter().all(|end| end.result == AttemptResult::Delivered), "{ends:?}");
    let party = party.lock().unwrap();
    assert_eq!((party.asked, party.refused), (2, 0), "one request is under way");
}

/// Guards: a failing endpoint is asked once for all deliveries that wait.
#[tokio::test]
async fn deliveries_that_wait_for_a_token_share_a_failure() {
    let (url, party) = start(Party { refusal: Some((503, "busy")), ..Party::default() }).await;
    let process = Process::with_subscription(destinations(), subscription(&url, &format!("{url}/token")));
    let ends = join_all((0..20).map(|_| process.deliver())).await;
    assert!(ends.iter().all(|end| end.result == AttemptResult::Unreachable));
    assert_eq!(party.lock().unwrap().asked, 1);
}

/// Guards: the token endpoint is no way around the address guard.
#[tokio::test]
async fn the_address_of_a_token_endpoint_is_guarded() {
    let (url, _party) = start(Party::default()).await;
    let subscription = subscription("http://receiver.invalid", &format!("{url}/token"));
    let destination = Destinations::new(AddressRules::default()).make(&subscription).unwrap();
    assert_eq!(destination.check().await.unwrap_err().rule, "loopback");
    let end = Process::with_subscription(Destinations::new(AddressRules::default()), subscription).deliver().await;
    assert_eq!((end.result, end.class), (AttemptResult::Held, AttemptClass::RefusedAddress), "{}", end.error);
    assert!(end.error.contains("no access token from") && end.error.contains("loopback"), "{}", end.error);
}
