//! Defaults of each scheme, which a source need not configure.

use weft_proto::v1::{ApiKeyScheme, ShopifyScheme, SlackScheme, StripeScheme};

use super::*;

fn of(configured: Scheme) -> Source {
    Source { name: "shop".into(), verification: scheme(configured), ..Source::default() }
}

fn identified(source: &Source, pairs: &[(&str, &str)], body: &str) -> Result<NewEvent, IdentifyError> {
    identify_with(source, Some("w"), &headers(pairs), body)
}

#[test]
fn stripe_brings_both_in_the_body() {
    let source = of(Scheme::Stripe(StripeScheme::default()));
    let body = r#"{"id":"evt_1NG8Du2eZvKYlo2CUI79vXWy","object":"event","type":"payment_intent.succeeded"}"#;
    let event = identified(&source, &[], body).unwrap();
    assert_eq!(event.delivery_id.as_deref(), Some("evt_1NG8Du2eZvKYlo2CUI79vXWy"));
    assert_eq!((event.event_type.as_str(), event.receipt_on_id_reuse), ("payment_intent.succeeded", true));
    assert_eq!(event.time, Timestamp::UNIX_EPOCH, "the time is the signed one");
    let error = identified(&source, &[], r#"{"type":"t"}"#).unwrap_err();
    assert_eq!(error, IdentifyError::MissingDeliveryId { place: "at /id of the body".into() });
}

#[test]
fn slack_wraps_its_events() {
    let source = of(Scheme::Slack(SlackScheme::default()));
    let body = r#"{"type":"event_callback","event_id":"Ev08MFMKH6","event":{"type":"app_mention"}}"#;
    let event = identified(&source, &[("x-slack-retry-num", "1")], body).unwrap();
    assert_eq!(event.delivery_id.as_deref(), Some("Ev08MFMKH6"));
    assert_eq!((event.event_type.as_str(), event.receipt_on_id_reuse), ("app_mention", true));
}

/// Slack's buttons and commands come as forms: no JSON, no event id.
#[test]
fn slacks_forms_are_taken_where_the_source_says_what_they_are() {
    let source = Source {
        body: BodyKind::Any.into(),
        delivery_id: delivery_rule(DeliveryFrom::Digest(true)),
        r#type: Some(Rule { from: Some(RuleFrom::Fixed("slack.interaction".into())) }),
        ..of(Scheme::Slack(SlackScheme::default()))
    };
    let form = [("content-type", "application/x-www-form-urlencoded")];
    let event = identified(&source, &form, "payload=%7B%22trigger_id%22%3A%221%22%7D").unwrap();
    assert_eq!((event.event_type.as_str(), event.content_type.as_str()), ("slack.interaction", form[0].1));
    let other = identified(&source, &form, "payload=%7B%22trigger_id%22%3A%222%22%7D").unwrap();
    assert_ne!(event.id, other.id);
}

#[test]
fn shopify_brings_both_in_headers_of_either_family() {
    let source = of(Scheme::Shopify(ShopifyScheme::default()));
    for family in ["X-Shopify", "Shopify"] {
        let (id, topic) = (format!("{family}-Webhook-Id"), format!("{family}-Topic"));
        let event = identified(&source, &[(&id, "b54557e4"), (&topic, "orders/create")], "{}").unwrap();
        assert_eq!(event.delivery_id.as_deref(), Some("b54557e4"));
        assert_eq!((event.event_type.as_str(), event.receipt_on_id_reuse), ("orders/create", true));
    }
    let error = identified(&source, &[("X-Shopify-Topic", "t")], "{}").unwrap_err();
    let place = "in header x-shopify-event-id or x-shopify-webhook-id or shopify-webhook-id".into();
    assert_eq!(error, IdentifyError::MissingDeliveryId { place });
    // One id for an event and all its subscriptions is the source's choice.
    let by_event = Source { delivery_id: delivery_rule(DeliveryFrom::Header("X-Shopify-Event-Id".into())), ..source };
    let pairs = [("X-Shopify-Event-Id", "e-1"), ("X-Shopify-Webhook-Id", "w-1"), ("X-Shopify-Topic", "t")];
    assert_eq!(identified(&by_event, &pairs, "{}").unwrap().delivery_id.as_deref(), Some("e-1"));
}

/// The header that a rule names may be of the family that is not signed: the signed id counts.
#[test]
fn a_signed_id_cannot_be_replaced_by_a_header() {
    for name in ["webhook-id", "Svix-Id"] {
        let source = Source { delivery_id: delivery_rule(DeliveryFrom::Header(name.into())), ..standard() };
        let event = identified(&source, &[(name, "forged")], r#"{"type":"t"}"#).unwrap();
        assert_eq!(event.delivery_id.as_deref(), Some("evt_1"), "{name}");
    }
    let own = Source { delivery_id: delivery_rule(DeliveryFrom::Header("x-own".into())), ..standard() };
    let event = identified(&own, &[("x-own", "theirs")], r#"{"type":"t"}"#).unwrap();
    assert_eq!(event.delivery_id.as_deref(), Some("theirs"));
}

/// The configuration of the source takes precedence over the defaults of its scheme.
#[test]
fn a_source_may_say_otherwise() {
    let source = Source {
        r#type: pointer_rule("/action"),
        delivery_id: delivery_rule(DeliveryFrom::Pointer("/n".into())),
        on_id_reuse: OnIdReuse::Conflict.into(),
        ..of(Scheme::Github(GithubScheme::default()))
    };
    let pairs = [("X-GitHub-Event", "push"), ("X-GitHub-Delivery", "guid")];
    let event = identified(&source, &pairs, r#"{"action":"opened","n":7}"#).unwrap();
    assert_eq!((event.event_type.as_str(), event.delivery_id.as_deref()), ("opened", Some("7")));
    assert!(!event.receipt_on_id_reuse);
    assert!(Rules::compile(&of(Scheme::ApiKey(ApiKeyScheme {}))).unwrap_err().starts_with("delivery_id"));
}
