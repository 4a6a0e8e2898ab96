use http::HeaderValue;
use weft_proto::v1::{
    DeliveryIdRule, GithubScheme, HmacScheme, NoneScheme, Rule, StandardScheme, Verification, verification::Scheme,
};

use super::*;

mod schemes;

fn scheme(scheme: Scheme) -> Option<Verification> {
    Some(Verification { scheme: Some(scheme) })
}

fn standard() -> Source {
    Source {
        name: "shop".into(),
        verification: scheme(Scheme::Standard(StandardScheme::default())),
        workflow: pointer_rule("/data/orderId"),
        ..Source::default()
    }
}

fn pointer_rule(pointer: &str) -> Option<Rule> {
    Some(Rule { from: Some(RuleFrom::Pointer(pointer.into())) })
}

fn header_rule(name: &str) -> Option<Rule> {
    Some(Rule { from: Some(RuleFrom::Header(name.into())) })
}

fn delivery_rule(from: DeliveryFrom) -> Option<DeliveryIdRule> {
    Some(DeliveryIdRule { from: Some(from) })
}

fn headers(pairs: &[(&str, &str)]) -> HeaderMap {
    pairs
        .iter()
        .map(|(name, value)| (name.parse::<HeaderName>().unwrap(), HeaderValue::from_str(value).unwrap()))
        .collect()
}

const RECEIVED: &str = "2026-11-21T02:00:00.140Z";

fn identify_with(
    source: &Source,
    path_workflow: Option<&str>,
    headers: &HeaderMap,
    body: &str,
) -> Result<NewEvent, IdentifyError> {
    let verified = Verified {
        signer: weft_schemes::Signer::Secret { scheme: "standard", index: 0 },
        id: Some("evt_1".into()),
        timestamp: Some(Timestamp::UNIX_EPOCH),
    };
    Rules::compile(source).unwrap().identify(&Request {
        path_workflow,
        headers,
        body: &Bytes::copy_from_slice(body.as_bytes()),
        verified: &verified,
        received_at: RECEIVED.parse().unwrap(),
    })
}

fn identify(source: &Source, body: &str) -> Result<NewEvent, IdentifyError> {
    identify_with(source, None, &HeaderMap::new(), body)
}

#[test]
fn a_standard_webhook_needs_no_rules_but_the_workflows() {
    let body = r#"{"type":"order.paid","data":{"orderId":42}}"#;
    let event = identify(&standard(), body).unwrap();
    assert_eq!(event.id.to_string(), "adc8ac26-5f51-590c-a093-d32f0b5c22c7");
    assert_eq!(event.workflow.as_str(), "42");
    assert_eq!(event.event_type, "order.paid");
    assert_eq!(event.delivery_id.as_deref(), Some("evt_1"));
    assert_eq!((event.time, event.received_at), (Timestamp::UNIX_EPOCH, RECEIVED.parse().unwrap()));
    assert_eq!((event.content_type.as_str(), event.verified_by.as_str()), (event::JSON, "standard/0"));
    assert_eq!(event.payload, body.as_bytes());
    assert!(!event.receipt_on_id_reuse);
}

#[test]
fn github_brings_type_and_delivery_in_headers() {
    let source = Source {
        name: "code".into(),
        verification: scheme(Scheme::Github(GithubScheme::default())),
        workflow: pointer_rule("/repository/full_name"),
        ..Source::default()
    };
    let request = headers(&[("X-GitHub-Event", "push"), ("X-GitHub-Delivery", "72d3162e-cc78")]);
    let event = identify_with(&source, None, &request, r#"{"repository":{"full_name":"a/b"}}"#).unwrap();
    assert_eq!((event.event_type.as_str(), event.workflow.as_str()), ("push", "a/b"));
    assert_eq!(event.delivery_id.as_deref(), Some("72d3162e-cc78"));
    assert!(event.receipt_on_id_reuse);
    let error = identify_with(&source, Some("w"), &headers(&[("X-GitHub-Event", "push")]), "{}").unwrap_err();
    assert_eq!(error, IdentifyError::MissingDeliveryId { place: "in header x-github-delivery".into() });
}

#[test]
fn the_path_wins_over_the_rule() {
    let body = r#"{"type":"t","data":{"orderId":"ruled"}}"#;
    let named = |path| identify_with(&standard(), path, &HeaderMap::new(), body).unwrap().workflow.to_string();
    assert_eq!(named(None), "ruled");
    assert_eq!(named(Some("order.*>é 42")), "order.*>é 42");
}

#[test]
fn a_workflow_is_missing_or_invalid() {
    let rule = identify(&standard(), r#"{"type":"t","data":{"orderId":null}}"#).unwrap_err();
    assert_eq!(rule, IdentifyError::MissingWorkflow { place: "at /data/orderId of the body".into() });
    let unruled = Source { workflow: None, ..standard() };
    assert!(matches!(identify(&unruled, r#"{"type":"t"}"#), Err(IdentifyError::MissingWorkflow { .. })));
    for (path, invalid) in [
        ("", InvalidId::Empty),
        ("a\0b", InvalidId::ControlCharacter),
        (&*"x".repeat(129), InvalidId::TooLong { max: 128 }),
    ] {
        let error = identify_with(&unruled, Some(path), &HeaderMap::new(), r#"{"type":"t"}"#).unwrap_err();
        assert_eq!(error, IdentifyError::InvalidWorkflow(invalid));
    }
}

#[test]
fn types_have_bounds() {
    for (kind, taken) in
        [("x".repeat(256), true), ("x".repeat(257), false), (String::new(), false), ("a\\n".into(), false)]
    {
        let body = format!(r#"{{"type":"{kind}","data":{{"orderId":"w"}}}}"#);
        assert_eq!(identify(&standard(), &body).is_ok(), taken, "{kind:.10}");
    }
    let fixed = Source { r#type: Some(Rule { from: Some(RuleFrom::Fixed("ping".into())) }), ..standard() };
    assert_eq!(identify(&fixed, r#"{"data":{"orderId":"w"}}"#).unwrap().event_type, "ping");
    let headed = Source { r#type: header_rule("x-type"), ..standard() };
    let missing = identify(&headed, r#"{"data":{"orderId":"w"}}"#).unwrap_err();
    assert_eq!(missing, IdentifyError::MissingType { place: "in header x-type".into() });
}

#[test]
fn delivery_ids_come_from_where_the_source_says() {
    let with = |from| Source { delivery_id: delivery_rule(from), ..standard() };
    let body = r#"{"type":"t","id":"d-7","data":{"orderId":"w"}}"#;
    let id = |source: &Source| identify(source, body).map(|event| event.delivery_id);
    assert_eq!(id(&with(DeliveryFrom::Pointer("/id".into()))), Ok(Some("d-7".into())));
    let digest = identify(&with(DeliveryFrom::Digest(true)), body).unwrap();
    assert_eq!(digest.delivery_id.as_deref().map(str::len), Some(64));
    assert_eq!(digest.id, identify(&with(DeliveryFrom::Digest(true)), body).unwrap().id);
    let none = with(DeliveryFrom::None(true));
    let (first, second) = (identify(&none, body).unwrap(), identify(&none, body).unwrap());
    assert_eq!(first.delivery_id, None);
    assert_ne!(first.id, second.id);
    // 256 printable bytes are taken; 257, none, and others are not.
    for (text, taken) in
        [("x".repeat(256), true), ("x".repeat(257), false), (String::new(), false), ("é".into(), false)]
    {
        let body = format!(r#"{{"type":"t","id":"{text}","data":{{"orderId":"w"}}}}"#);
        assert_eq!(identify(&with(DeliveryFrom::Pointer("/id".into())), &body).is_ok(), taken, "{text:.10}");
    }
}

#[test]
fn only_a_source_of_json_wants_json() {
    for body in ["{", "", "{} {}"] {
        assert_eq!(identify(&standard(), body).unwrap_err(), IdentifyError::MalformedBody);
    }
    let any = Source {
        body: BodyKind::Any.into(),
        workflow: header_rule("x-workflow"),
        r#type: header_rule("x-type"),
        ..standard()
    };
    let mut request = headers(&[("x-workflow", "w"), ("x-type", "t")]);
    let content_type = |request: &HeaderMap| identify_with(&any, None, request, "plain").unwrap().content_type;
    assert_eq!(content_type(&request), "application/octet-stream");
    request.insert("content-type", HeaderValue::from_static("text/plain"));
    assert_eq!(content_type(&request), "text/plain");
    // JSON under a careless name is JSON.
    let form = headers(&[("content-type", "application/x-www-form-urlencoded")]);
    let event = identify_with(&standard(), Some("w"), &form, r#"{"type":"t"}"#).unwrap();
    assert_eq!(event.content_type, event::JSON);
}

#[test]
fn headers_are_kept_where_the_source_says_so_and_within_bounds() {
    let source = Source { keep_headers: vec!["X-Shop".into(), "X-Gone".into()], ..standard() };
    let keep = |value: &str| identify_with(&source, Some("w"), &headers(&[("x-shop", value)]), r#"{"type":"t"}"#);
    assert_eq!(keep("Köln").unwrap().kept_headers, [("x-shop".to_owned(), "Köln".to_owned())]);
    assert_eq!(keep(&"x".repeat(KEPT_HEADERS_BYTES_MAX)).unwrap_err(), IdentifyError::HeadersTooLarge);
}

#[test]
fn a_trace_context_is_kept_when_it_is_one() {
    let trace = |value: &str| {
        let request = headers(&[("traceparent", value)]);
        identify_with(&standard(), Some("w"), &request, r#"{"type":"t"}"#).unwrap().traceparent
    };
    let context = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";
    assert_eq!(trace(context).as_deref(), Some(context));
    for bad in ["", "x", "00-0AF7651916CD43DD8448EB211C80319C-b7ad6b7169203331-01", "00-0-0-0"] {
        assert_eq!(trace(bad), None, "{bad}");
    }
}

#[test]
fn rules_that_cannot_work_are_refused() {
    let hmac = Source { verification: scheme(Scheme::Hmac(HmacScheme::default())), ..standard() };
    let none = Source { verification: scheme(Scheme::None(NoneScheme {})), ..standard() };
    for (source, problem) in [
        (hmac, "delivery_id"),
        (none, "delivery_id"),
        (Source { workflow: pointer_rule("orderId"), ..standard() }, "workflow"),
        (Source { r#type: header_rule("no name"), ..standard() }, "type"),
        (Source { data_pointer: "x".into(), ..standard() }, "data"),
        (Source { keep_headers: vec!["no name".into()], ..standard() }, "keep_headers"),
    ] {
        let error = Rules::compile(&source).unwrap_err();
        assert!(error.starts_with(problem), "{error}");
    }
}

/// A data pointer that finds nothing is reported for the first event, and not for events where it finds a null.
#[test]
fn a_data_pointer_that_finds_nothing_is_reported_once() {
    let source = Source { data_pointer: "/data/object".into(), ..standard() };
    let rules = Rules::compile(&source).unwrap();
    let event = |body: &str| identify_with(&source, Some("w"), &HeaderMap::new(), body).unwrap();
    let without = event(r#"{"type":"t","data":{}}"#);
    assert_eq!(rules.missing_data(&event(r#"{"type":"t","data":{"object":null}}"#)), None);
    assert_eq!(rules.missing_data(&without), Some("/data/object"));
    assert_eq!(rules.missing_data(&without), None);
    let whole = Rules::compile(&standard()).unwrap();
    assert_eq!(whole.missing_data(&without), None);
}

#[test]
fn a_pointer_to_the_whole_body_is_named_in_words() {
    let source = Source { workflow: pointer_rule(""), ..standard() };
    let problem = identify_with(&source, None, &HeaderMap::new(), r#"{"type":"t"}"#).unwrap_err();
    assert!(problem.to_string().contains("no workflow id as the whole body"), "{problem}");
}
