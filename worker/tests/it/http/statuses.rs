//! Statuses and headers by a destination's own settings.

use std::time::Duration;

use weft_proto::v1::{Auth, BasicAuth, BearerAuth, HttpHeader, auth};
use weft_worker::lane::AttemptResult;

use super::{changed, destinations, http1::Process, receiver};

/// Guards: `success` and `permanent` decide instead of the defaults, and 410 pauses in any case.
#[tokio::test]
async fn a_destination_says_which_statuses_accept_and_reject() {
    let (url, _taken) = receiver().await;
    for (path, result) in [
        ("/bad", AttemptResult::Delivered),
        ("/elsewhere", AttemptResult::Delivered),
        ("/nowhere", AttemptResult::Rejected),
        ("/busy", AttemptResult::Rejected),
        ("/gone", AttemptResult::EndpointRetired),
        ("/ok", AttemptResult::Failed),
        ("/large-now", AttemptResult::Failed),
    ] {
        let subscription = changed(&format!("{url}{path}"), |http| {
            http.success = vec!["422".into(), "3xx".into()];
            http.permanent = vec!["4xx".into()];
        });
        let end = Process::with_subscription(destinations(), subscription).deliver().await;
        assert_eq!(end.result, result, "{path}: {}", end.error);
    }
}

#[tokio::test]
async fn a_destination_limits_the_wait_that_a_receiver_asks_for() {
    let (url, _taken) = receiver().await;
    let subscription = changed(&format!("{url}/busy"), |http| http.retry_after_max_ms = 5000);
    let end = Process::with_subscription(destinations(), subscription).deliver().await;
    assert_eq!(end.retry_after, Some(Duration::from_secs(5)));
}

/// Guards: static headers and credentials are sent, and replace none of Weft's own headers.
#[tokio::test]
async fn static_headers_and_credentials_are_sent() {
    let (url, mut taken) = receiver().await;
    for (kind, expected) in [
        (auth::Kind::Bearer(BearerAuth { token: "t0k.en".into() }), "Bearer t0k.en"),
        (auth::Kind::Basic(BasicAuth { user: "me".into(), password: "hush".into() }), "Basic bWU6aHVzaA=="),
    ] {
        let subscription = changed(&format!("{url}/ok"), |http| {
            let header = |name: &str, value: &str| HttpHeader { name: name.into(), secret: value.into() };
            http.headers = vec![header("X-Tenant", "acme"), header("user-agent", "billing/1")];
            http.auth = Some(Auth { kind: Some(kind) });
        });
        let end = Process::with_subscription(destinations(), subscription).deliver().await;
        assert_eq!(end.result, AttemptResult::Delivered, "{}", end.error);
        let (headers, _) = taken.recv().await.unwrap();
        assert_eq!(
            (&headers["x-tenant"], &headers["authorization"]),
            (&"acme".parse().unwrap(), &expected.parse().unwrap())
        );
        assert_eq!(headers.get_all("user-agent").iter().collect::<Vec<_>>(), ["billing/1"]);
    }
    let reserved =
        changed(&url, |http| http.headers = vec![HttpHeader { name: "webhook-id".into(), secret: "1".into() }]);
    assert!(destinations().put(&reserved).is_err());
}
