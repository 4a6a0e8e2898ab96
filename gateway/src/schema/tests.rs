//! The choice of the schema for an event, and the effect of each mode. What a schema accepts is tested in the schema
//! crate.

use jiff::Timestamp;
use weft_proto::{
    ids::{EventId, WorkflowId},
    v1::{SchemaRule, schema_rule},
};

use super::*;

fn rule(pattern: &str, mode: SchemaMode, schema: &str) -> SchemaRule {
    let schema = schema_rule::Schema::JsonSchema(schema.into());
    SchemaRule { r#type: pattern.into(), schema: Some(schema), mode: mode.into() }
}

fn schemas(rules: Vec<SchemaRule>) -> Schemas {
    let source = v1::Source { name: "shop".into(), schemas: rules, ..v1::Source::default() };
    Schemas::compile(&source, Turns::default()).unwrap()
}

fn event(event_type: &str, payload: impl Into<Bytes>) -> NewEvent {
    NewEvent {
        id: EventId::of_delivery("shop", "evt_1"),
        workflow: WorkflowId::new("w").unwrap(),
        event_type: event_type.into(),
        source: "shop".into(),
        time: Timestamp::UNIX_EPOCH,
        received_at: Timestamp::UNIX_EPOCH,
        delivery_id: Some("evt_1".into()),
        content_type: "application/json".into(),
        data_pointer: String::new(),
        verified_by: "standard/0".into(),
        traceparent: None,
        quarantine: None,
        kept_headers: vec![],
        payload: payload.into(),
        receipt_on_id_reuse: false,
        replay_guard: false,
    }
}

const NUMBER: &str = r#"{"properties":{"total":{"type":"number"}}}"#;

/// The first rule that takes the type counts, and a type that none takes is free.
#[tokio::test]
async fn the_first_rule_that_takes_the_type_counts() {
    let schemas = schemas(vec![
        rule("order.paid", SchemaMode::Quarantine, "true"),
        rule("order.*", SchemaMode::Quarantine, "false"),
    ]);
    for (event_type, quarantined) in [("order.paid", false), ("order.void", true), ("other", false)] {
        let mut event = event(event_type, "{}");
        schemas.judge(&mut event).await.unwrap();
        assert_eq!(event.quarantine.is_some(), quarantined, "{event_type}");
    }
}

#[tokio::test]
async fn a_mode_decides_what_becomes_of_a_violation() {
    let judge = async |mode| {
        let mut event = event("t", r#"{"total":"s3cret"}"#);
        schemas(vec![rule("*", mode, NUMBER)]).judge(&mut event).await.map(|()| event.quarantine)
    };
    assert_eq!(judge(SchemaMode::Warn).await.unwrap(), None);
    let reason = judge(SchemaMode::Quarantine).await.unwrap().unwrap();
    assert_eq!(reason, r#"schema_invalid: /total: value is not of type "number" (rule /properties/total/type)"#);
    let problem = judge(SchemaMode::Reject).await.unwrap_err();
    assert_eq!(problem.code(), Code::SchemaInvalid);
    let printed = format!("{problem:?}");
    assert!(printed.contains("/total") && !printed.contains("s3cret"), "{printed}");
}

/// It is the event's data that is judged: the part that the source's pointer names, `null` where that is nothing.
#[tokio::test]
async fn data_is_judged_and_not_the_body() {
    let schemas = schemas(vec![rule("*", SchemaMode::Quarantine, r#"{"type":["integer","null"]}"#)]);
    for (pointer, quarantined) in [("/data", false), ("", true), ("/gone", false)] {
        let mut event = NewEvent { data_pointer: pointer.into(), ..event("t", r#"{"data":7}"#) };
        schemas.judge(&mut event).await.unwrap();
        assert_eq!(event.quarantine.is_some(), quarantined, "{pointer:?}");
    }
    let mut text = NewEvent { content_type: "text/plain".into(), ..event("t", "7") };
    schemas.judge(&mut text).await.unwrap();
    assert!(text.quarantine.unwrap().contains("media type"));
}

/// Large data is judged elsewhere with the same answer, and while all turns are taken it waits instead of piling up.
#[tokio::test(start_paused = true)]
async fn large_data_is_judged_in_turn() {
    let schemas = schemas(vec![rule("*", SchemaMode::Quarantine, r#"{"maxItems":1}"#)]);
    let large = format!("[{}1]", "1,".repeat(INLINE_BYTES_MAX));
    let mut event = event("t", large);
    schemas.judge(&mut event).await.unwrap();
    assert!(event.quarantine.take().unwrap().starts_with("schema_invalid: (root): "));

    let all = u32::try_from(schemas.turns.0.available_permits()).unwrap();
    let _taken = schemas.turns.0.acquire_many(all).await.unwrap();
    let problem = schemas.judge(&mut event).await.unwrap_err();
    assert_eq!(problem.code(), Code::Overloaded);
}

#[test]
fn a_schema_that_does_not_compile_is_named() {
    let rules = vec![rule("*", SchemaMode::Warn, "true"), rule("*", SchemaMode::Warn, "{")];
    let source = v1::Source { schemas: rules, ..v1::Source::default() };
    let problem = Schemas::compile(&source, Turns::default()).unwrap_err();
    assert!(problem.starts_with("schema[1]: is not JSON"), "{problem}");
}
