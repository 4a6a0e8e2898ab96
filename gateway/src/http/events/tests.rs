//! Tests of each mode, read into one event, and of every refusal that needs no log.

use std::{collections::BTreeMap, time::Duration};

use bytes::Bytes;
use jiff::Timestamp;
use serde_json::json;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use weft_catalog::{Revised, Snapshot, keys::Keys};
use weft_nats::options::Secret;
use weft_proto::{
    ids::EventId,
    v1::{ApiKey, Scope, Source},
};

use super::*;
use crate::{
    admission::{Admission, TrustedProxies},
    http::body,
    options::RateLimits,
    sources::Sources,
};

const BOOTSTRAP: &str = "s3cret";
const LIMITED: &str = "weft_abcd1234_0123456789abcdef0123456789abcdef";
const TRACE: &str = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";

fn headers(headers: &[(&str, &str)]) -> HeaderMap {
    headers.iter().map(|(name, value)| (name.parse::<http::HeaderName>().unwrap(), value.parse().unwrap())).collect()
}

/// An API with the source `shop`, and a key that may send `orders` in `order-…` only.
fn api(complete: bool) -> Api {
    use sha2::{Digest as _, Sha256};
    let key = ApiKey {
        id: "abcd1234".into(),
        digest: Sha256::digest(LIMITED).to_vec(),
        scopes: vec![Scope::Ingest.into()],
        sources: vec!["orders".into()],
        workflow_prefixes: vec!["order-".into()],
        ..ApiKey::default()
    };
    let shop = Source { name: "shop".into(), ..Source::default() };
    let snapshot = Snapshot {
        complete,
        sources: BTreeMap::from([("shop".to_owned(), Revised { revision: 1, value: Arc::new(shop) })]),
        keys: BTreeMap::from([(key.id.clone(), Revised { revision: 1, value: Arc::new(key) })]),
        ..Snapshot::default()
    };
    let (_, catalog) = watch::channel(Arc::new(snapshot));
    let keys = Keys::new(Some(&Secret::new(BOOTSTRAP)), catalog.clone());
    let limits = body::Limits { bytes_max: 1 << 20, time: Duration::from_secs(5), depth_max: 512 };
    let admission = Admission::new(&RateLimits::default(), TrustedProxies::default());
    Api::new(Sources::new(catalog), keys, admission, limits, CancellationToken::new())
}

/// The caller that sends these headers.
fn caller<'a>(api: &'a Api, given: &[(&str, &str)]) -> Caller<'a> {
    Caller::of(api, api.authorize(&Client::default(), &headers(given), Scope::Ingest).unwrap())
}

/// The event of a request, or why there is none.
fn read(given: &[(&str, &str)], body: impl Into<Bytes>) -> Result<NewEvent, Problem> {
    let api = api(true);
    let (given, body) = (headers(given), body.into());
    let draft = single(Form::of(&given)?, &given, &body)?;
    caller(&api, &[("x-api-key", BOOTSTRAP)]).admit(draft)
}

fn refused(given: &[(&str, &str)], body: impl Into<Bytes>) -> (Code, String) {
    let problem = read(given, body).expect_err("refused");
    (problem.code(), problem.detail().to_owned())
}

fn structured(event: serde_json::Value) -> Result<NewEvent, Problem> {
    read(&[("content-type", "application/cloudevents+json; charset=utf-8")], event.to_string())
}

fn cloudevent() -> serde_json::Value {
    json!({ "specversion": "1.0", "id": "A234-1234", "source": "/mycontext", "type": "com.example", "subject": "w" })
}

fn with(member: &str, value: impl Into<serde_json::Value>) -> serde_json::Value {
    let mut event = cloudevent();
    event[member] = value.into();
    event
}

const BINARY: [(&str, &str); 4] =
    [("ce-specversion", "1.0"), ("ce-id", "A234-1234"), ("ce-source", "/mycontext"), ("ce-type", "com.example")];

fn binary(more: &[(&'static str, &'static str)], body: &'static str) -> Result<NewEvent, Problem> {
    read(&[&BINARY, more].concat(), body)
}

/// The same event says the same in every mode, and its data is the sender's bytes.
#[test]
fn all_content_modes_give_the_same_event() {
    let data = r#"{ "b" : 1.50, "a" : 2 }"#;
    let attributes = r#""id":"A234-1234","source":"/mycontext","type":"com.example","time":"2018-04-05T17:31:00Z""#;
    let structured = format!(
        r#"{{"specversion":"1.0",{attributes},"subject":"w","comexampleext":"x","n":7,"traceparent":"{TRACE}","data": {data} }}"#
    );
    let plain = format!(r#"{{{attributes},"workflowId":"w","data":{data}}}"#);
    let binary = [
        &BINARY[..],
        &[
            ("ce-time", "2018-04-05T17:31:00Z"),
            ("ce-subject", "w"),
            ("ce-comexampleext", "x"),
            ("ce-n", "7"),
            ("traceparent", TRACE),
            ("content-type", "application/json"),
        ],
    ]
    .concat();
    let kept = vec![
        ("ce-comexampleext".to_owned(), "x".to_owned()),
        ("ce-n".to_owned(), "7".to_owned()),
        ("ce-subject".to_owned(), "w".to_owned()),
    ];
    for (event, kept) in [
        (read(&binary, data), &kept),
        (read(&[("content-type", "application/cloudevents+json"), ("traceparent", TRACE)], structured), &kept),
        (read(&[("content-type", "application/json"), ("traceparent", TRACE)], plain), &Vec::new()),
    ] {
        let event = event.unwrap();
        assert_eq!(event.id, EventId::of_delivery("/mycontext", "A234-1234"));
        assert_eq!((event.delivery_id.as_deref(), event.source.as_str()), (Some("A234-1234"), "/mycontext"));
        assert_eq!((event.event_type.as_str(), event.workflow.as_str()), ("com.example", "w"));
        assert_eq!(event.time, "2018-04-05T17:31:00Z".parse::<Timestamp>().unwrap());
        assert_eq!((event.content_type.as_str(), &event.payload[..]), ("application/json", data.as_bytes()));
        assert_eq!(event.traceparent.as_deref(), Some(TRACE));
        assert_eq!((&event.kept_headers, event.verified_by.as_str()), (kept, "api_key/bootstrap"));
        assert!(event.data_pointer.is_empty() && !event.receipt_on_id_reuse);
    }
}

/// `partitionkey`, else `workflowid`, else `subject`.
#[test]
fn the_workflow_is_the_first_that_is_named() {
    let all = json!({ "partitionkey": "p", "workflowid": "i", "subject": "s" });
    for (left_out, workflow, kept) in [
        (&[][..], "p", &["ce-subject", "ce-workflowid"][..]),
        (&["partitionkey"], "i", &["ce-subject"]),
        (&["partitionkey", "workflowid"], "s", &["ce-subject"]),
    ] {
        let mut event = cloudevent();
        event.as_object_mut().unwrap().extend(all.as_object().unwrap().clone());
        left_out.iter().for_each(|name| event[*name] = serde_json::Value::Null);
        let event = structured(event).unwrap();
        assert_eq!(event.workflow.as_str(), workflow);
        assert_eq!(event.kept_headers.iter().map(|(name, _)| name).collect::<Vec<_>>(), kept);
    }
    let (code, _) = refused(&BINARY, "");
    assert_eq!(code, Code::MissingWorkflow);
    assert_eq!(structured(with("partitionkey", "")).unwrap_err().code(), Code::InvalidWorkflow);
}

/// Data in each way that the JSON format has.
#[test]
fn structured_data_is_json_text_or_bytes() {
    let data = |members: &str| {
        let text = cloudevent().to_string().replacen('{', &format!("{{{members},"), 1);
        let event = read(&[("content-type", "application/cloudevents+json")], text);
        event.map(|event| (event.content_type, event.payload.to_vec()))
    };
    let is = |content_type: &str, payload: &[u8]| (content_type.to_owned(), payload.to_vec());
    assert_eq!(data(r#""data":  1.0e1 "#).unwrap(), is("application/json", b"1.0e1"));
    assert_eq!(data(r#""data":null"#).unwrap(), is("application/json", b"null"));
    assert_eq!(data(r#""data":"\u0041""#).unwrap(), is("application/json", br#""\u0041""#));
    assert_eq!(data(r#""x":1"#).unwrap(), is("application/json", b""));
    let xml = r#""datacontenttype":"text/xml","data":"<a b=\"c\"/>""#;
    assert_eq!(data(xml).unwrap(), is("text/xml", br#"<a b="c"/>"#));
    let bytes = r#""datacontenttype":"application/x","data_base64":"AAH/""#;
    assert_eq!(data(bytes).unwrap(), is("application/x", &[0, 1, 255]));
    assert_eq!(data(r#""data_base64":"e30=""#).unwrap(), is("application/json", b"{}"));
    for bad in [
        r#""data":1,"data_base64":"AAH/""#,
        r#""data_base64":"?""#,
        r#""data_base64":7"#,
        r#""data_base64":"AAH/""#,
        r#""datacontenttype":"text/xml","data":{}"#,
    ] {
        assert_eq!(data(bad).unwrap_err().code(), Code::MalformedBody, "{bad}");
    }
}

/// Header values are unquoted and percent-decoded once.
#[test]
fn binary_headers_are_decoded() {
    for (sent, is) in
        [("Euro%20%E2%82%AC", "Euro €"), (r#""a \"b\" c""#, r#"a "b" c"#), ("a%2520b", "a%20b"), ("100%", "100%")]
    {
        assert_eq!(binary(&[("ce-subject", sent)], "").unwrap().workflow.as_str(), is);
    }
    for bad in ["%FF", "a%0Ab"] {
        assert_eq!(binary(&[("ce-subject", bad)], "").unwrap_err().code(), Code::MalformedBody, "{bad}");
    }
    let untyped = binary(&[("ce-subject", "w")], "x").unwrap();
    assert_eq!((untyped.content_type.as_str(), &untyped.payload[..]), ("application/octet-stream", &b"x"[..]));
    let not_json = binary(&[("ce-subject", "w"), ("content-type", "application/json")], "{");
    assert_eq!(not_json.unwrap_err().code(), Code::MalformedBody);
}

#[test]
fn attributes_that_break_a_rule_are_refused() {
    for (event, code, said) in [
        (with("specversion", "0.3"), Code::MalformedBody, "0.3"),
        (with("specversion", json!(null)), Code::MalformedBody, "specversion"),
        (with("id", ""), Code::MissingDeliveryId, "id"),
        (with("id", json!(null)), Code::MissingDeliveryId, "id"),
        (with("id", "é"), Code::MissingDeliveryId, "printable"),
        (with("source", ""), Code::MalformedBody, "source"),
        (with("source", json!(null)), Code::MalformedBody, "source"),
        (with("source", "x".repeat(257)), Code::MalformedBody, "256"),
        (with("source", "shop"), Code::OutOfScope, "signed webhooks"),
        (with("type", json!(null)), Code::MissingType, "type"),
        (with("time", "yesterday"), Code::MalformedBody, "yesterday"),
        (with("subject", "x".repeat(129)), Code::InvalidWorkflow, "128"),
        (with("Ext", "x"), Code::MalformedBody, "Ext"),
        (with("e-x", "x"), Code::MalformedBody, "e-x"),
        (with("ext", json!({})), Code::MalformedBody, "ext"),
        (with("ext", "a\nb"), Code::MalformedBody, "control"),
        (with("ext", "x".repeat(16 * 1024)), Code::BodyTooLarge, "attributes"),
        (with("datacontenttype", "x".repeat(257)), Code::MalformedBody, "media type"),
    ] {
        let problem = structured(event.clone()).expect_err(said);
        assert_eq!(problem.code(), code, "{event}");
        assert!(problem.detail().contains(said), "{}", problem.detail());
    }
    let many: serde_json::Map<_, _> = (0..70).map(|n| (format!("x{n}"), n.into())).collect();
    assert_eq!(structured(many.into()).unwrap_err().code(), Code::MalformedBody);
    for name in ["ce-id", "ce-datacontenttype", "ce-data", "ce-e-x"] {
        let mut given = headers(&BINARY);
        given.append(name, "x".parse().unwrap());
        let refused = single(Form::Binary, &given, &Bytes::new());
        assert_eq!(refused.unwrap_err().code(), Code::MalformedBody, "{name}");
    }
}

#[test]
fn plain_json_has_six_members() {
    let plain = |body: &'static str| read(&[("content-type", "application/json")], body);
    let event = plain(r#"{"type":"t","workflowId":42}"#).unwrap();
    assert_eq!((event.source.as_str(), event.workflow.as_str(), &event.payload[..]), ("api", "42", &b"null"[..]));
    assert_eq!((event.delivery_id, event.time), (None, event.received_at));
    assert_ne!(event.id, plain(r#"{"type":"t","workflowId":42}"#).unwrap().id, "each is a separate event");
    for (body, code, said) in [
        (r#"{"workflowId":"w"}"#, Code::MissingType, "type"),
        (r#"{"type":"t"}"#, Code::MissingWorkflow, "workflowId"),
        (r#"{"type":"t","workflowId":"w","Id":"x"}"#, Code::MalformedBody, "\"Id\""),
        (r#"{"specversion":"1.0","type":"t"}"#, Code::MalformedBody, "cloudevents+json"),
        (r#"[{"type":"t","workflowId":"w"}]"#, Code::MalformedBody, "object"),
        (r#"{"type":"t","workflowId":"w"} {}"#, Code::MalformedBody, "object"),
        ("", Code::MalformedBody, "object"),
    ] {
        let problem = plain(body).expect_err(body);
        assert_eq!(problem.code(), code, "{body}");
        assert!(problem.detail().contains(said), "{}", problem.detail());
    }
    let not_text = read(&[("content-type", "application/json")], &b"{\"type\":\"\xff\"}"[..]);
    assert_eq!(not_text.unwrap_err().code(), Code::MalformedBody);
}

/// `Idempotency-Key` names what has no name, and may not contradict one.
#[test]
fn an_idempotency_key_is_the_delivery_id() {
    let send = |more: &[(&str, &str)], body: &'static str| {
        read(&[&[("content-type", "application/json")], more].concat(), body).map(|event| event.delivery_id)
    };
    let (unnamed, named) = (r#"{"type":"t","workflowId":"w"}"#, r#"{"type":"t","workflowId":"w","id":"a"}"#);
    for header in IDEMPOTENCY_KEYS {
        assert_eq!(send(&[(header, "a")], unnamed).unwrap().as_deref(), Some("a"));
        assert_eq!(send(&[(header, "a")], named).unwrap().as_deref(), Some("a"));
        assert_eq!(send(&[(header, "b")], named).unwrap_err().code(), Code::MissingDeliveryId);
    }
    let two = [("idempotency-key", "a"), ("x-idempotency-key", "b")];
    assert_eq!(send(&two, unnamed).unwrap_err().code(), Code::MissingDeliveryId);
}

#[test]
fn other_media_types_are_415() {
    for content_type in [
        "text/plain",
        "application/x-www-form-urlencoded",
        "application/cloudevents",
        "application/cloudevents+avro",
        "",
    ] {
        assert_eq!(refused(&[("content-type", content_type)], "{}").0, Code::UnsupportedMediaType, "{content_type}");
    }
    assert_eq!(refused(&[], "{}").0, Code::UnsupportedMediaType);
    // Part of a binary event is a binary event that lacks something.
    assert_eq!(refused(&[("ce-type", "t"), ("content-type", "text/plain")], "").0, Code::MalformedBody);
}

/// A caller sends what its key's limits allow, and no source name while the catalog is incomplete: the source may be
/// configured.
#[test]
fn a_caller_sends_what_its_key_allows() {
    let send = |complete: bool, source: &str, workflow: &str| {
        let api = api(complete);
        let body = json!({ "type": "t", "workflowId": workflow, "source": source }).to_string();
        caller(&api, &[("authorization", &format!("Bearer {LIMITED}"))]).admit(plain::read(&body)?)
    };
    assert_eq!(send(true, "orders", "order-1").unwrap().verified_by, "api_key/abcd1234");
    for (source, workflow) in [("orders", "cart-1"), ("api", "order-1"), ("shop", "order-1"), ("weft", "order-1")] {
        assert_eq!(send(true, source, workflow).unwrap_err().code(), Code::OutOfScope, "{source} {workflow}");
    }
    assert_eq!(send(false, "orders", "order-1").unwrap_err().code(), Code::Starting);
}

/// One bad event refuses its batch, and is named.
#[test]
fn a_batch_is_checked_whole() {
    let api = api(true);
    let caller = caller(&api, &[("x-api-key", BOOTSTRAP)]);
    let admit = |draft| caller.admit(draft);
    let read = |events: &serde_json::Value| batch(&HeaderMap::new(), events.to_string().as_bytes(), admit);
    let good: Vec<_> = (0..BATCH_EVENTS_MAX).map(|n| with("id", n.to_string())).collect();
    let ids: Vec<_> = read(&json!(good)).unwrap().into_iter().map(|event| event.delivery_id.unwrap()).collect();
    assert_eq!(ids, (0..BATCH_EVENTS_MAX).map(|n| n.to_string()).collect::<Vec<_>>(), "in order");
    assert!(read(&json!([])).unwrap().is_empty());
    let too_many = [good, vec![cloudevent()]].concat();
    assert_eq!(read(&json!(too_many)).unwrap_err().code(), Code::BodyTooLarge);
    for (bad, code) in [
        (with("type", ""), Code::MissingType),
        (with("source", "shop"), Code::OutOfScope),
        (json!("x"), Code::MalformedBody),
    ] {
        let problem = read(&json!([cloudevent(), cloudevent(), cloudevent(), bad])).unwrap_err();
        assert_eq!(problem.code(), code);
        assert!(problem.detail().starts_with("event 3: "), "{}", problem.detail());
    }
    assert_eq!(read(&cloudevent()).unwrap_err().code(), Code::MalformedBody);
    let keyed = batch(&headers(&[("idempotency-key", "a")]), b"[]", admit);
    assert_eq!(keyed.unwrap_err().code(), Code::MissingDeliveryId);
}
