//! Schemas from the configuration to the receiver.

use serde_json::Value;
use weft_services::{
    mesh::{SOURCE, SUBSCRIPTION, Up, Wiring},
    receiver::{Answer, Arrival, Receiver},
};
use weft_testkit::eventually;

use crate::{
    commands::Operator,
    mesh::{PATIENCE, program, provide_tls},
};

/// The total of an order is a number; other totals of type `order.strict` are refused.
const SCHEMAS: &str = r#"data = { pointer = "/data" }
schema = [
    { type = "order.strict", mode = "reject", json_schema = '{"properties":{"total":{"type":"number"}}}' },
    { type = "order.*", mode = "quarantine", json_schema = '{"properties":{"total":{"type":"number"}}}' },
]
"#;

/// P3, P5: an event whose data breaks its schema is accepted and numbered, its workflow continues without it, it is listed
/// as a dead letter with the violation, and a redrive delivers it as it was sent. With mode `reject` it is
/// refused instead, and leaves no gap.
#[tokio::test]
async fn a_quarantined_event_waits_for_its_redrive() {
    provide_tls();
    let folder = tempfile::tempdir().unwrap();
    let wiring = Wiring::new();
    let receiver = Receiver::start(([127, 0, 0, 1], 0).into(), &wiring.receiver_secret, |_| Answer::OK).await.unwrap();
    let config =
        wiring.config(Some(&receiver.url())).replace("[[subscription]]", &format!("{SCHEMAS}[[subscription]]"));
    let mut up = Up::start(&program(), folder.path(), &config).await.unwrap();
    let data = folder.path().join("data");
    let operator = Operator::of(&up, &data, &wiring);
    let order = |event_type: &'static str, data: &'static str| {
        ["event", "send", "--source", SOURCE, "--workflow", "order-1", "--type", event_type, "--data", data]
    };

    let bad = operator.lines(&order("order.placed", r#"{"total":"s3cret"}"#)).await;
    assert_eq!((bad[0]["sequenceNumber"].as_u64(), bad[0]["duplicate"].as_bool()), (Some(1), Some(false)));
    let refused = operator.answer(&order("order.strict", r#"{"total":"s3cret"}"#)).await;
    let told = String::from_utf8(refused.stderr).unwrap();
    assert!(!refused.status.success() && told.contains("/total: value is not of type"), "{told}");
    assert!(!told.contains("s3cret"), "{told}");
    let good = operator.lines(&order("order.placed", r#"{"total":1.50}"#)).await;
    assert_eq!((good[0]["sequenceNumber"].as_u64(), &good[0]["previousEventId"]), (Some(2), &bad[0]["eventId"]));

    let id = bad[0]["eventId"].as_str().unwrap();
    assert!(receiver.until(PATIENCE, |arrivals| !arrivals.is_empty()).await);
    let seen = |arrivals: Vec<Arrival>| arrivals.iter().map(|a| (a.sequence_number, a.replay)).collect::<Vec<_>>();
    assert_eq!(seen(receiver.arrivals()), [(2, false)], "the quarantined one is not attempted");

    let letter_id = format!("{SUBSCRIPTION}:{id}");
    assert!(eventually(PATIENCE, async || operator.lines(&["dlq", "list"]).await.len() == 1).await);
    let letter = &operator.lines(&["dlq", "get", &letter_id]).await[0];
    assert_eq!((letter["reason"].as_str(), letter["attempts"].as_u64()), (Some("schema_invalid"), Some(0)));
    let error = letter["lastError"].as_str().unwrap();
    assert!(error.starts_with("/total: value is not of type") && !error.contains("s3cret"), "{error}");
    assert_eq!((&letter["firstFailedAt"], &letter["lastStatus"]), (&Value::Null, &Value::Null));
    assert_eq!(letter["event"]["data"]["total"], "s3cret", "the event is kept as it was sent");

    let redriven = operator.lines(&["dlq", "redrive", &letter_id, "--reason", "the receiver can take it now"]).await;
    assert_eq!((redriven[0]["selected"].as_u64(), redriven[0]["delivered"].as_u64()), (Some(1), Some(1)));
    assert_eq!(seen(receiver.arrivals()), [(2, false), (1, true)]);
    assert!(eventually(PATIENCE, async || operator.lines(&["dlq", "list"]).await.is_empty()).await);
    up.stop().await.unwrap();
}
