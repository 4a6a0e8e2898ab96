//! The inbox of refused requests: what is kept, without secrets, at which pace; and its second chance.

use std::time::{Duration, Instant};

use jiff::Timestamp;
use prost::Message as _;
use standardwebhooks::Webhook;
use weft_catalog::Catalog;
use weft_gateway::{GatewayOptions, admission::Rate, options::RateLimits};
use weft_nats::{
    connect::Connection,
    direct, streams,
    subject::{REJECTED_STREAM, RETRY_SUBJECT},
};
use weft_proto::{
    ids::{EventId, StreamSeq},
    internal::RetryEntry,
    v1::{DeliveryIdRule, Rejected, RetriedRejected, StandardScheme, delivery_id_rule, verification::Scheme},
};
use weft_testkit::{eventually, master_key};

use crate::{
    http::{Request, SECRET, events, get, send, webhook},
    mesh::{Mesh, PATIENCE, READ_TOKEN, shop},
};

const BODY: &str = r#"{"type":"order.paid","workflow":"w"}"#;
/// The secret that the operator has configured by mistake.
const WRONG_SECRET: &str = "whsec_d3Jvbmctd3Jvbmctd3Jvbmctd3Jvbmct";

/// Far more than an answer takes, and less than anything that waits for a log that is away.
const ANSWER_PATIENCE: Duration = Duration::from_secs(4);

/// Everything that is in the inbox, oldest first, by its sequence.
async fn inbox(connection: &Connection) -> Vec<(u64, Rejected)> {
    let mut entries = Vec::new();
    let mut from = StreamSeq(1);
    loop {
        let read = direct::range(connection, REJECTED_STREAM, from, ">", 100, 1 << 20).await.unwrap();
        let Some(last) = read.last() else { return entries };
        from = last.seq.next();
        entries.extend(read.into_iter().map(|stored| (stored.seq.0, Rejected::decode(stored.payload).unwrap())));
    }
}

/// Waits until `count` entries are in the inbox.
async fn kept(connection: &Connection, count: usize) -> Vec<(u64, Rejected)> {
    assert!(eventually(PATIENCE, async || inbox(connection).await.len() == count).await);
    inbox(connection).await
}

/// A gateway's answer to an admin's request.
async fn retry(connection: &Connection, sequence: u64) -> RetriedRejected {
    let request = RetryEntry { sequence }.encode_to_vec();
    let answer = connection.client().request(RETRY_SUBJECT, request.into()).await.unwrap();
    RetriedRejected::decode(answer.payload).unwrap()
}

/// A webhook whose sender has another secret than the mesh.
fn forged(path: &str, id: &str, body: &str) -> Request {
    let mut request = webhook(path, id, body);
    let at = request.head.find("webhook-signature: v1,").unwrap() + "webhook-signature: v1,".len();
    request.head.replace_range(at..at + 8, "AAAAAAAA");
    request
}

/// The source `shop` with these secrets.
async fn configure(mesh: &Mesh, secret: &str) {
    let catalog = Catalog::new(mesh.connection.clone(), master_key());
    let revision = catalog.read().await.unwrap().sources["shop"].revision;
    let mut source = shop();
    let scheme = Scheme::Standard(StandardScheme { secrets: vec![secret.into()], tolerance_ms: None });
    source.verification.as_mut().unwrap().scheme = Some(scheme);
    catalog.put_source(&source, revision).await.unwrap();
}

/// The operator configures a wrong secret, a sender is refused, the secret is corrected, the refused requests are accepted:
/// in the order in which they came, and once, although they are retried twice.
#[tokio::test]
async fn what_a_wrong_secret_refused_is_taken_once_it_is_mended() {
    let mesh = Mesh::start(1).await;
    let gateway = mesh.gateway().await;
    configure(&mesh, WRONG_SECRET).await;
    let refused = async || {
        let answer = send(gateway.address, &webhook("shop", "evt_0", r#"{"type":"t","workflow":"other"}"#)).await;
        answer.unwrap().status == 401
    };
    assert!(eventually(PATIENCE, refused).await);
    let before = kept(&mesh.connection, 1).await;
    for n in 1..=5 {
        let answer = send(gateway.address, &webhook("shop", &format!("evt_{n}"), BODY)).await.unwrap();
        assert_eq!((answer.status, answer.code()), (401, "signature_invalid"));
    }
    let entries = kept(&mesh.connection, 6).await;
    assert_eq!(entries[0], before[0]);
    let still = retry(&mesh.connection, entries[1].0).await;
    assert_eq!((still.code.as_str(), still.event_id.as_str()), ("signature_invalid", ""));

    configure(&mesh, SECRET).await;
    let taken = async || retry(&mesh.connection, entries[0].0).await.code.is_empty();
    assert!(eventually(PATIENCE, taken).await);
    for (n, (sequence, entry)) in entries[1..].iter().enumerate() {
        let retried = retry(&mesh.connection, *sequence).await;
        let id = EventId::of_delivery("shop", &format!("evt_{}", n + 1)).to_string();
        assert_eq!((retried.id, retried.event_id, retried.duplicate), (sequence.to_string(), id, false), "{entry:?}");
    }
    let again = retry(&mesh.connection, entries[3].0).await;
    assert!(again.duplicate && again.code.is_empty(), "{again:?}");
    let events = send(gateway.address, &get("/api/v1/webhooks/events?workflowId=w")).await.unwrap();
    let ids: Vec<_> = events.json["events"].as_array().unwrap().iter().map(|event| &event["deliveryId"]).collect();
    assert_eq!(ids, ["evt_1", "evt_2", "evt_3", "evt_4", "evt_5"]);
    // The sender did not know and sent again: it gets the receipt of what was retried.
    let repeated = send(gateway.address, &webhook("shop", "evt_2", BODY)).await.unwrap();
    assert_eq!((repeated.status, &repeated.json["sequenceNumber"]), (200, &2.into()));
    assert_eq!(inbox(&mesh.connection).await.len(), 6, "a retry that is refused is not kept again");
    gateway.drained().await;
}

/// A retry does not ask when a request was signed, and asks everything else: a changed byte is as wrong as ever.
#[tokio::test]
async fn only_freshness_is_waived() {
    let mesh = Mesh::start(1).await;
    let gateway = mesh.gateway().await;
    let at = Timestamp::now().as_second() - 86_400;
    let signature = Webhook::new(SECRET).unwrap().sign("evt_1", at, BODY.as_bytes()).unwrap();
    let mut request = webhook("shop", "evt_1", BODY);
    request.head = format!(
        "POST /api/v1/webhooks/shop HTTP/1.1\r\nhost: weft\r\nconnection: close\r\ncontent-length: {}\r\n\
         webhook-id: evt_1\r\nwebhook-timestamp: {at}\r\nwebhook-signature: {signature}\r\n\r\n",
        BODY.len()
    );
    assert_eq!(send(gateway.address, &request).await.unwrap().code(), "timestamp_out_of_window");
    let (sequence, entry) = kept(&mesh.connection, 1).await.remove(0);

    // A client that could write here could still not sign.
    let changed = Rejected { body: BODY.replace("paid", "void").into(), ..entry.clone() };
    let ack = mesh.connection.jetstream().publish("rejected.shop", changed.encode_to_vec().into()).await.unwrap();
    let changed = ack.await.unwrap().sequence;
    assert_eq!(retry(&mesh.connection, changed).await.code, "signature_invalid");

    let retried = retry(&mesh.connection, sequence).await;
    assert_eq!((retried.code.as_str(), retried.duplicate), ("", false), "{retried:?}");
    let event = send(gateway.address, &get(&format!("/api/v1/events/{}", retried.event_id))).await.unwrap();
    let time: Timestamp = event.text("time").parse().unwrap();
    let received: Timestamp = event.text("receivedAt").parse().unwrap();
    assert_eq!(time.as_second(), at);
    assert!(received.as_second() >= at + 86_400);
    assert_eq!(retry(&mesh.connection, 4711).await.code, "not_found");
    assert_eq!(retry(&mesh.connection, 0).await.code, "not_found");
    gateway.drained().await;
}

/// An event without a delivery id would be a new one each time; its entry makes it one.
#[tokio::test]
async fn a_retry_without_a_delivery_id_acts_once() {
    let mesh = Mesh::start(1).await;
    let catalog = Catalog::new(mesh.connection.clone(), master_key());
    let mut source = shop();
    source.delivery_id = Some(DeliveryIdRule { from: Some(delivery_id_rule::From::None(true)) });
    let revision = catalog.read().await.unwrap().sources["shop"].revision;
    catalog.put_source(&source, revision).await.unwrap();
    let gateway = mesh.gateway().await;
    for _ in 0..2 {
        let missing = send(gateway.address, &webhook("shop", "evt_1", r#"{"type":"t"}"#)).await.unwrap();
        assert_eq!(missing.code(), "missing_workflow");
    }
    let entries = kept(&mesh.connection, 2).await;
    source.workflow = Some(weft_proto::v1::Rule { from: Some(weft_proto::v1::rule::From::Fixed("w".into())) });
    catalog.put_source(&source, revision + 1).await.unwrap();
    let mut ids = Vec::new();
    for (sequence, _) in &entries {
        assert!(eventually(PATIENCE, async || retry(&mesh.connection, *sequence).await.code.is_empty()).await);
        let again = retry(&mesh.connection, *sequence).await;
        assert!(again.duplicate);
        ids.push(again.event_id);
    }
    assert_ne!(ids[0], ids[1], "two requests are two events");
    gateway.drained().await;
}

/// Of every refused request the answer, the head and the body are kept, as far as they came, and no secret.
#[tokio::test]
async fn refusals_are_kept_whole_and_without_secrets() {
    const KEY: &str = "weft_ab12cd34_0123456789abcdef0123456789abcdef";
    const HUSH: &str = "hush-hush-hush";
    let mesh = Mesh::start(1).await;
    let gateway = mesh.gateway().await;
    let core = SECRET.strip_prefix("whsec_").unwrap();
    let mut leaky = forged(&format!("shop/w?token={HUSH}&try=2"), "evt_1", &format!(r#"{{"secret":"{core}"}}"#));
    leaky.head = leaky.head.replace(
        "host: weft\r\n",
        &format!("host: weft\r\nauthorization: Bearer {HUSH}\r\nx-api-key: {HUSH}\r\ncookie: {HUSH}\r\nx-other: {KEY}\r\nx-signature: {core}\r\n"),
    );
    assert_eq!(send(gateway.address, &leaky).await.unwrap().status, 401);
    let long = "x".repeat(100_000);
    assert_eq!(send(gateway.address, &forged("shop", "evt_2", &long)).await.unwrap().status, 401);
    let mut compressed = webhook("shop", "evt_3", BODY);
    compressed.head = compressed.head.replace("host: weft\r\n", "host: weft\r\ncontent-encoding: gzip\r\n");
    assert_eq!(send(gateway.address, &compressed).await.unwrap().status, 415);
    assert_eq!(send(gateway.address, &webhook("unlisted", "evt_4", BODY)).await.unwrap().status, 404);
    assert_eq!(send(gateway.address, &webhook("shop", "evt_5", BODY)).await.unwrap().status, 202);
    assert_eq!(
        send(gateway.address, &webhook("shop", "evt_5", r#"{"type":"t","workflow":"w"}"#)).await.unwrap().status,
        409
    );

    let entries = kept(&mesh.connection, 4).await;
    let text = format!("{entries:?}");
    for secret in [core, SECRET, KEY, HUSH] {
        assert!(!text.contains(secret), "{secret} in {text}");
        let stored = entries.iter().map(|(_, entry)| entry.encode_to_vec());
        let shows = |bytes: &Vec<u8>| bytes.windows(secret.len()).any(|window| window == secret.as_bytes());
        assert!(!stored.into_iter().any(|bytes| shows(&bytes)), "{secret}");
    }
    let [(leaky, first), (long, second), (_, third), (reused, fourth)] = &entries[..] else { panic!("{entries:?}") };
    assert_eq!(first.path, "/api/v1/webhooks/shop/w?token=[redacted]&try=2");
    assert!(first.headers.iter().any(|header| header.name == "webhook-signature" && header.value.starts_with("v1,")));
    assert!(first.client == "127.0.0.1", "{}", first.client);
    assert!(first.redacted && !first.truncated);
    assert_eq!((second.body.len(), second.body_size, second.truncated), (16 * 1024, 100_000, true));
    assert_eq!((third.code.as_str(), third.body.len(), third.truncated), ("unsupported_media_type", 0, true));
    assert_eq!((fourth.code.as_str(), &fourth.body[..]), ("id_reused", &br#"{"type":"t","workflow":"w"}"#[..]));
    assert_eq!(retry(&mesh.connection, *leaky).await.code, "malformed_body");
    assert_eq!(retry(&mesh.connection, *long).await.code, "body_too_large");
    assert_eq!(retry(&mesh.connection, *reused).await.code, "id_reused");
    gateway.drained().await;
}

/// Refused events of callers with an API key are kept, too, without the key; so they cannot be retried.
#[tokio::test]
async fn refused_events_of_callers_are_kept_without_their_keys() {
    let mesh = Mesh::start(1).await;
    let gateway = mesh.gateway().await;
    let plain = [("content-type", "application/json")];
    let mut keyless = events(&plain, "{}");
    keyless.head = keyless.head.replace(READ_TOKEN, "weft_ab12cd34_0123456789abcdef0123456789abcdef");
    assert_eq!(send(gateway.address, &keyless).await.unwrap().code(), "key_invalid");
    assert_eq!(send(gateway.address, &events(&plain, "{\"a\":1}")).await.unwrap().status, 400);
    assert_eq!(send(gateway.address, &events(&[("content-type", "text/plain")], "x")).await.unwrap().status, 415);
    let entries = kept(&mesh.connection, 3).await;
    for (sequence, entry) in &entries {
        assert_eq!((entry.source.as_str(), entry.path.as_str()), ("_events", "/api/v1/events"));
        let text = format!("{entry:?}");
        assert!(!text.contains("weft_ab12cd34") && !text.contains(READ_TOKEN), "{text}");
        assert_eq!(retry(&mesh.connection, *sequence).await.code, "not_found");
    }
    let bodies: Vec<_> = entries.iter().map(|(_, entry)| (&entry.body[..], entry.truncated)).collect();
    assert_eq!(bodies, [(&b""[..], true), (b"{\"a\":1}", false), (b"", true)]);
    gateway.drained().await;
}

/// A flood of refused requests fills the inbox at its pace, and good requests in between are taken, each of them.
#[tokio::test]
async fn a_flood_is_kept_at_its_pace_and_harms_nobody() {
    const FLOOD: usize = 1000;
    const SENDERS: usize = 10;
    let mesh = Mesh::start(1).await;
    // Of many addresses: of one, most are refused before anything is read.
    let rate_limit = RateLimits { per_ip: Rate::Off, ..RateLimits::default() };
    let gateway = mesh.gateway_with(GatewayOptions { rate_limit, ..GatewayOptions::default() }).await;
    let began = Instant::now();
    let address = gateway.address;
    let flood: Vec<_> = (0..SENDERS)
        .map(|_| {
            tokio::spawn(async move {
                for _ in 0..FLOOD / SENDERS {
                    assert_eq!(send(address, &forged("shop", "evt", BODY)).await.unwrap().status, 401);
                }
            })
        })
        .collect();
    for n in 0..50 {
        assert_eq!(send(address, &webhook("shop", &format!("evt_{n}"), BODY)).await.unwrap().status, 202);
    }
    for sender in flood {
        sender.await.unwrap();
    }
    let seconds = began.elapsed().as_secs() as usize + 1;
    // What is in the queue when the gateway ends is stored before it has ended.
    gateway.drained().await;
    let entries = inbox(&mesh.connection).await;
    assert!((10..=10 * seconds).contains(&entries.len()), "{} in {seconds} s", entries.len());
    let at: Vec<_> = entries.iter().map(|(_, entry)| entry.received_at.unwrap()).collect();
    assert!(at.is_sorted_by_key(|at| (at.seconds, at.nanos)));
}

/// Without its log the inbox loses what it cannot keep, and no answer waits for it.
#[tokio::test]
async fn without_nats_refusals_are_as_quick_and_not_kept() {
    let mesh = Mesh::start(1).await;
    let gateway = mesh.gateway().await;
    mesh.server.pause();
    for n in 0..300 {
        let request = forged("shop", "evt", BODY);
        let answer = tokio::time::timeout(ANSWER_PATIENCE, send(gateway.address, &request)).await;
        assert_eq!(answer.unwrap_or_else(|_| panic!("answer {n} waits")).unwrap().status, 401);
    }
    mesh.server.resume();
    mesh.server.restart().await;
    let connected = async || streams::state(&mesh.connection, REJECTED_STREAM).await.is_ok();
    assert!(eventually(PATIENCE, connected).await);
    let before = inbox(&mesh.connection).await.len();
    // It keeps entries again automatically.
    let grows = async || {
        send(gateway.address, &forged("shop", "evt", BODY)).await.unwrap();
        inbox(&mesh.connection).await.len() > before
    };
    assert!(eventually(PATIENCE, grows).await);
    gateway.drained().await;
}
