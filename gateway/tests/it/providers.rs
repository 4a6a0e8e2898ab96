//! The providers' deliveries, from their own headers to the log.

use base64::{Engine as _, prelude::BASE64_STANDARD};
use hmac::{Hmac, KeyInit as _, Mac as _};
use jiff::Timestamp;
use serde_json::json;
use sha2::Sha256;
use weft_nats::{streams, subject::Layout};
use weft_proto::{
    ids::ShardId,
    v1::{
        ApiKeyScheme, BodyKind, DeliveryIdRule, GithubScheme, ReplayGuard, Rule, ShopifyScheme, SlackScheme, Source,
        Verification, delivery_id_rule::From as DeliveryFrom, rule::From as RuleFrom, verification::Scheme,
    },
};

use crate::{
    http::{Request, events, get, post, send},
    mesh::{Mesh, READ_TOKEN},
};

const SECRET: &str = "It's a Secret to Everybody";

fn source(name: &str, scheme: Scheme) -> Source {
    Source {
        name: name.into(),
        verification: Some(Verification { scheme: Some(scheme) }),
        workflow: Some(Rule { from: Some(RuleFrom::Fixed("w".into())) }),
        ..Source::default()
    }
}

fn code() -> Source {
    source("code", Scheme::Github(GithubScheme { secrets: vec![SECRET.into()] }))
}

fn hex_mac(parts: &[&str]) -> String {
    let mut mac = Hmac::<Sha256>::new_from_slice(SECRET.as_bytes()).unwrap();
    parts.iter().for_each(|part| mac.update(part.as_bytes()));
    hex::encode(mac.finalize().into_bytes())
}

fn github(delivery: &str, body: &str) -> Request {
    let signature = format!("sha256={}", hex_mac(&[body]));
    let headers =
        [("X-GitHub-Event", "push"), ("X-GitHub-Delivery", delivery), ("X-Hub-Signature-256", signature.as_str())];
    post("code", &headers, body)
}

fn slack(path: &str, body: &str) -> Request {
    let at = Timestamp::now().as_second().to_string();
    let signature = format!("v0={}", hex_mac(&["v0:", &at, ":", body]));
    post(path, &[("X-Slack-Request-Timestamp", &at), ("X-Slack-Signature", &signature)], body)
}

async fn stored(mesh: &Mesh) -> u64 {
    let stream = Layout::new(1).events_stream(ShardId(0));
    streams::state(&mesh.connection, &stream).await.unwrap().last.0
}

/// GitHub never redelivers automatically, and a manual redelivery has the id of the first attempt. P1, P2: an id is known only
/// once its event is on disk, so after our failure the redelivery is accepted, and after our success it gets the receipt.
#[tokio::test]
async fn a_redelivery_by_hand_passes_after_our_failure_and_gets_the_receipt_after_our_success() {
    let mesh = Mesh::start(1).await;
    mesh.add(&code()).await;
    let mut gateway = mesh.gateway().await;
    let delivery = github("72d3162e-cc78-11e3-81ab-4c9367dc0958", r#"{"ref":"main"}"#);
    mesh.server.kill();
    gateway.missing_is(|missing| missing.as_deref() == Some("nats: not connected")).await;
    let failed = send(gateway.address, &delivery).await.unwrap();
    assert_eq!((failed.status, failed.code()), (503, "log_unavailable"));
    mesh.server.restart().await;
    gateway.ready().await;
    let accepted = send(gateway.address, &delivery).await.unwrap();
    assert_eq!((accepted.status / 100, &accepted.json["sequenceNumber"]), (2, &1.into()), "{accepted:?}");
    let again = send(gateway.address, &delivery).await.unwrap();
    assert_eq!((again.status, again.headers["idempotent-replayed"].as_str()), (200, "true"));
    let mut receipt = accepted.json.clone();
    receipt["duplicate"] = true.into();
    assert_eq!(again.json, receipt);
    // The same delivery with another body, as GitHub makes it when it renders the event again, is not a conflict.
    let rendered = github("72d3162e-cc78-11e3-81ab-4c9367dc0958", r#"{"ref":"main","size":1}"#);
    assert_eq!(send(gateway.address, &rendered).await.unwrap().json, receipt);
    assert_eq!(stored(&mesh).await, 1);
    gateway.drained().await;
}

/// A captured delivery under another id, event and path is the first one: none of those is signed.
#[tokio::test]
async fn a_captured_delivery_is_not_another_event() {
    let mesh = Mesh::start(1).await;
    mesh.add(&code()).await;
    let open = Source { name: "open".into(), replay_guard: ReplayGuard::Off.into(), ..code() };
    mesh.add(&open).await;
    let gateway = mesh.gateway().await;
    let body = r#"{"ref":"main"}"#;
    let captured = github("d-1", body);
    let first = send(gateway.address, &captured).await.unwrap();
    assert_eq!(first.status, 202);
    let mut receipt = first.json;
    receipt["duplicate"] = true.into();
    let replace = |from: &str, to: &str| Request { head: captured.head.replace(from, to), ..captured.clone() };
    for replay in [
        github("attacker-1", body),
        replace("X-GitHub-Event: push", "X-GitHub-Event: deployment"),
        Request { head: github("attacker-2", body).head.replace("push", "release"), ..captured.clone() },
        Request {
            head: github("attacker-3", body).head.replace("webhooks/code", "webhooks/code/other"),
            ..captured.clone()
        },
    ] {
        let answer = send(gateway.address, &replay).await.unwrap();
        assert_eq!((answer.status, &answer.json), (200, &receipt), "{}", replay.head);
    }
    assert_eq!(stored(&mesh).await, 1);
    let unguarded =
        Request { head: github("attacker-4", body).head.replace("webhooks/code", "webhooks/open"), ..captured };
    assert_eq!(send(gateway.address, &unguarded).await.unwrap().status, 202, "of another source");
    let again = Request { head: unguarded.head.replace("attacker-4", "attacker-5"), ..unguarded };
    assert_eq!(send(gateway.address, &again).await.unwrap().status, 202, "which asked for it");
    gateway.drained().await;
}

/// Shopify names an event and each of its deliveries; the same event is taken once.
#[tokio::test]
async fn shopifys_events_are_known_by_their_event_id() {
    let mesh = Mesh::start(1).await;
    mesh.add(&source("store", Scheme::Shopify(ShopifyScheme { secrets: vec![SECRET.into()] }))).await;
    let gateway = mesh.gateway().await;
    let shopify = |event: &str, delivery: &str, body: &str| {
        let mut mac = Hmac::<Sha256>::new_from_slice(SECRET.as_bytes()).unwrap();
        mac.update(body.as_bytes());
        let signature = BASE64_STANDARD.encode(mac.finalize().into_bytes());
        let headers = [
            ("X-Shopify-Topic", "orders/create"),
            ("X-Shopify-Event-Id", event),
            ("X-Shopify-Webhook-Id", delivery),
            ("X-Shopify-Hmac-SHA256", signature.as_str()),
        ];
        post("store", &headers, body)
    };
    let statuses = [("e1", "d1", r#"{"id":1}"#), ("e1", "d2", r#"{"id":1,"n":2}"#), ("e2", "d1", r#"{"id":1,"n":3}"#)];
    for ((event, delivery, body), status) in statuses.into_iter().zip([202, 200, 202]) {
        assert_eq!(
            send(gateway.address, &shopify(event, delivery, body)).await.unwrap().status,
            status,
            "{event} {delivery}"
        );
    }
    gateway.drained().await;
}

/// A form says what to choose at the sender; JSON that receivers could not read is refused.
#[tokio::test]
async fn bodies_that_are_not_json_for_everybody_are_refused_with_advice() {
    let mesh = Mesh::start(1).await;
    mesh.add(&code()).await;
    let gateway = mesh.gateway().await;
    let mut form = github("d-1", "payload=%7B%7D");
    form.head = form.head.replace("host: weft", "host: weft\r\ncontent-type: application/x-www-form-urlencoded");
    let refused = send(gateway.address, &form).await.unwrap();
    assert_eq!((refused.status, refused.code()), (400, "malformed_body"));
    assert!(refused.text("detail").contains("choose application/json"), "{refused:?}");
    for (depth, status) in [(512, 202), (513, 400)] {
        let body = "[".repeat(depth) + &"]".repeat(depth);
        assert_eq!(send(gateway.address, &github(&format!("d-{depth}"), &body)).await.unwrap().status, status);
        let event = format!(r#"{{"type":"t","workflowId":"w","id":"{depth}","data":{body}}}"#);
        let plain = [("content-type", "application/json")];
        assert_eq!(send(gateway.address, &events(&plain, event)).await.unwrap().status, status, "{depth}");
    }
    gateway.drained().await;
}

/// Slack asks whose an address is before it sends anything. Its question is answered only where it is signed, and never
/// becomes an event; a form of Slack's is one where the source takes any body.
#[tokio::test]
async fn slack_gets_its_challenge_back_and_its_events_accepted() {
    let mesh = Mesh::start(1).await;
    let scheme = Scheme::Slack(SlackScheme { secrets: vec![SECRET.into()], tolerance_ms: None });
    let events = source("chat", scheme.clone());
    let forms = Source {
        body: BodyKind::Any.into(),
        delivery_id: Some(DeliveryIdRule { from: Some(DeliveryFrom::Digest(true)) }),
        r#type: Some(Rule { from: Some(RuleFrom::Fixed("slack.interaction".into())) }),
        ..source("buttons", scheme)
    };
    mesh.add(&events).await;
    mesh.add(&forms).await;
    let gateway = mesh.gateway().await;
    let question =
        r#"{"token":"t","challenge":"3eZbrw1aBm2rZgRNFdxV2595E9CY3gmdALWMmHkvFXO7tYXAYM8P","type":"url_verification"}"#;
    for path in ["chat", "chat/w-1", "buttons"] {
        let answer = send(gateway.address, &slack(path, question)).await.unwrap();
        assert_eq!((answer.status, answer.headers["content-type"].as_str()), (200, "text/plain; charset=utf-8"));
        assert_eq!(answer.json, "3eZbrw1aBm2rZgRNFdxV2595E9CY3gmdALWMmHkvFXO7tYXAYM8P");
        let forged = Request { body: question.replace("3eZ", "3eY").into(), ..slack(path, question) };
        assert_eq!(send(gateway.address, &forged).await.unwrap().code(), "signature_invalid");
    }
    assert_eq!(stored(&mesh).await, 0);
    let event = r#"{"type":"event_callback","event_id":"Ev1","event":{"type":"app_mention"}}"#;
    assert_eq!(send(gateway.address, &slack("chat", event)).await.unwrap().status, 202);
    let form = send(gateway.address, &slack("buttons", "payload=%7B%7D")).await.unwrap();
    assert_eq!(form.status, 202, "{form:?}");
    gateway.drained().await;
}

/// An event is found by its source and its delivery id, wherever the source has that from.
#[tokio::test]
async fn an_event_is_found_by_its_delivery_id_of_any_kind() {
    let mesh = Mesh::start(1).await;
    let rule = |from| Some(DeliveryIdRule { from: Some(from) });
    for (name, delivery_id) in [
        ("header", rule(DeliveryFrom::Header("X-Own".into()))),
        ("pointer", rule(DeliveryFrom::Pointer("/n".into()))),
        ("digest", rule(DeliveryFrom::Digest(true))),
        ("none", rule(DeliveryFrom::None(true))),
    ] {
        mesh.add(&Source { delivery_id, ..source(name, Scheme::None(Default::default())) }).await;
    }
    mesh.add(&code()).await;
    let gateway = mesh.gateway().await;
    let body = r#"{"type":"t","n":7.50}"#;
    let digest = "fcd85b348a8a14d682ae23f2a6d036fd448b97e698b165c6b11630622fe37860";
    let own = |path| post(path, &[("x-own", "mine-1")], body);
    for (name, request, delivery_id) in [
        ("code", github("guid-1", "{}"), "guid-1"),
        ("header", own("header"), "mine-1"),
        ("pointer", own("pointer"), "7.50"),
        ("digest", own("digest"), digest),
        ("shop", crate::http::webhook("shop/w", "evt_1", body), "evt_1"),
    ] {
        let receipt = send(gateway.address, &request).await.unwrap();
        assert_eq!(receipt.status, 202, "{name}: {receipt:?}");
        let path = format!("/api/v1/events?source={name}&deliveryId={delivery_id}");
        let found = send(gateway.address, &get(&path)).await.unwrap();
        assert_eq!(found.json["eventId"], receipt.json["eventId"], "{name}: {found:?}");
        assert_eq!((found.text("deliveryId"), found.text("source")), (delivery_id, name));
        assert_eq!(send(gateway.address, &request).await.unwrap().status, 200, "{name}");
    }
    // Without one, each request is a separate event, to be found by the event's id.
    let first = send(gateway.address, &own("none")).await.unwrap();
    let second = send(gateway.address, &own("none")).await.unwrap();
    assert_eq!((first.status, second.status), (202, 202));
    let path = format!("/api/v1/events/{}", second.text("eventId"));
    let found = send(gateway.address, &get(&path)).await.unwrap();
    assert_eq!((&found.json["deliveryId"], &found.json["previousEventId"]), (&json!(null), &first.json["eventId"]));
    gateway.drained().await;
}

/// A source of API keys accepts any caller with a key; the key's id is stored with the event.
#[tokio::test]
async fn a_source_may_take_api_keys_instead_of_signatures() {
    let mesh = Mesh::start(1).await;
    let delivery_id = Some(DeliveryIdRule { from: Some(DeliveryFrom::Digest(true)) });
    mesh.add(&Source { delivery_id, ..source("own", Scheme::ApiKey(ApiKeyScheme {})) }).await;
    let gateway = mesh.gateway().await;
    let body = r#"{"type":"t"}"#;
    for (headers, code) in [(&[][..], "key_missing"), (&[("x-api-key", "wrong")], "key_invalid")] {
        assert_eq!(send(gateway.address, &post("own", headers, body)).await.unwrap().code(), code);
    }
    let taken = send(gateway.address, &post("own", &[("x-api-key", READ_TOKEN)], body)).await.unwrap();
    assert_eq!(taken.status, 202, "{taken:?}");
    let stream = mesh.connection.jetstream().get_stream("EVENTS").await.unwrap();
    let stored = stream.get_raw_message(1).await.unwrap();
    assert_eq!(stored.headers.get("ce-verifiedby").unwrap().as_str(), "api_key/bootstrap");
    gateway.drained().await;
}
