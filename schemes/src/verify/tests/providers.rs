//! The vectors of Stripe, Slack and Shopify, and what is theirs alone.

use base64::{Engine as _, engine::general_purpose::STANDARD as BASE64};
use weft_proto::v1::{ShopifyScheme, SlackScheme, StripeScheme};

use super::{senders::Provider, *};

const STRIPE_BODY: &[u8] = br#"{"id":"evt_test","object":"event"}"#;
const STRIPE_TAG: &str = "8042376f6ca064adbe037642a718227dfd59047137eb49497a54c49eb0cfb724";

fn stripe() -> Verifier {
    verifier(Configured::Stripe(StripeScheme { secrets: vec!["whsec_test_secret".into()], tolerance_ms: None }))
        .unwrap()
}

fn stripe_verify(signature: &str, now: i64) -> Result<Verified, VerifyError> {
    stripe().verify(&headers(&[("Stripe-Signature", signature)]), STRIPE_BODY, at(now))
}

#[test]
fn the_vector_of_stripe_holds() {
    let verified = stripe_verify(&format!("t=1700000000,v1={STRIPE_TAG}"), 1_700_000_000).unwrap();
    assert_eq!((verified.by().as_str(), verified.timestamp), ("stripe/0", Some(at(1_700_000_000))));
}

/// Both what is too old and what is too new is refused, although Stripe's own libraries look at the first only.
#[test]
fn stripes_time_is_held_both_ways() {
    let signature = format!("t=1700000000,v1={STRIPE_TAG}");
    let verify = |now| stripe_verify(&signature, now);
    assert!(verify(1_700_000_300).is_ok() && verify(1_699_999_700).is_ok());
    for (now, direction) in [(1_700_000_301, Direction::Behind), (1_699_999_699, Direction::Ahead)] {
        let Err(VerifyError::OutOfWindow { by, direction: told, .. }) = verify(now) else { panic!("{now}") };
        assert_eq!((by.as_secs(), told), (301, direction));
    }
}

/// Additions to the header by a rotation, test mode and proxies change nothing.
#[test]
fn stripes_header_may_hold_what_is_for_others() {
    let other = "00".repeat(32);
    for signature in [
        format!("t=1700000000,v1={other},v1={STRIPE_TAG}"),
        format!("t=1700000000,v1=not-hex,v0={other},v1={STRIPE_TAG},v2=x"),
        format!("v1={STRIPE_TAG}, t=1700000000"),
        format!("t=1700000000,,=,x,x=y=z,v1={STRIPE_TAG}"),
    ] {
        assert!(stripe_verify(&signature, 1_700_000_000).is_ok(), "{signature}");
    }
    for signature in [
        format!("t=1700000000,v0={STRIPE_TAG}"),
        format!("t=1700000000,V1={STRIPE_TAG}"),
        format!("t=1700000000,v1={}", STRIPE_TAG.to_uppercase()),
        format!("t=1700000000,v1={}", &STRIPE_TAG[..62]),
        "t=1700000000,v1=".into(),
        "t=1700000000".into(),
    ] {
        assert_eq!(stripe_verify(&signature, 1_700_000_000), Err(VerifyError::Invalid), "{signature}");
    }
    for signature in [
        format!("v1={STRIPE_TAG}"),
        format!("t=1700000000,t=1700000000,v1={STRIPE_TAG}"),
        format!("t=,v1={STRIPE_TAG}"),
        format!("t=-1700000000,v1={STRIPE_TAG}"),
        format!("t=1700000000.0,v1={STRIPE_TAG}"),
        format!("t=01700000000,v1={STRIPE_TAG}"),
        format!("t=99999999999999999999,v1={STRIPE_TAG}"),
        String::new(),
    ] {
        let error = stripe_verify(&signature, 1_700_000_000).unwrap_err();
        assert!(matches!(error, VerifyError::Malformed { .. }), "{signature}: {error}");
    }
}

/// The secret is the key as it stands; the same text means other bytes to Standard Webhooks.
#[test]
fn one_whsec_is_two_keys() {
    let secret = STANDARD_SECRET.to_owned();
    for (signs, verifies) in [(Provider::Stripe, Provider::Standard), (Provider::Standard, Provider::Stripe)] {
        let request = signs.sign(&secret, "m1", 1_700_000_000, b"{}");
        let verify =
            |by: Provider| by.verifier(std::slice::from_ref(&secret)).verify(&request, b"{}", at(1_700_000_000));
        assert!(verify(signs).is_ok());
        assert!(matches!(verify(verifies), Err(VerifyError::Missing { .. })));
    }
    // What a library of Standard Webhooks would take for the key.
    let decoded = BASE64.decode(secret.strip_prefix("whsec_").unwrap()).unwrap();
    let wrong = mac_hex(&decoded, b"1700000000.{}");
    let request = headers(&[("stripe-signature", &format!("t=1700000000,v1={wrong}"))]);
    assert_eq!(
        Provider::Stripe.verifier(&[secret]).verify(&request, b"{}", at(1_700_000_000)),
        Err(VerifyError::Invalid)
    );
}

fn mac_hex(key: &[u8], text: &[u8]) -> String {
    let mut mac = Hmac::<Sha256>::new_from_slice(key).unwrap();
    mac.update(text);
    hex::encode(mac.finalize().into_bytes())
}

const SLACK_SECRET: &str = "8f742231b10e8888abcd99yyyzzz85a5";
const SLACK_BODY: &str = "token=xyzz0WbapA4vBCDEFasx0q6G&team_id=T1DC2JH3J&team_domain=testteamnow\
    &channel_id=G8PSS9T3V&channel_name=foobar&user_id=U2CERLKJA&user_name=roadrunner&command=%2Fwebhook-collect&text=\
    &response_url=https%3A%2F%2Fhooks.slack.com%2Fcommands%2FT1DC2JH3J%2F397700885554%2F96rGlfmibIGlgcZRskXaIFfN\
    &trigger_id=398738663015.47445629121.803a0bc887a14d10d2c447fce8b6703c";

fn slack() -> Verifier {
    verifier(Configured::Slack(SlackScheme { secrets: vec![SLACK_SECRET.into()], tolerance_ms: None })).unwrap()
}

#[test]
fn the_vector_of_slack_holds() {
    let tag = "a2114d57b48eac39b9ad189dd8316235a7b4a8d21a10bd27519666489c69b503";
    let request = headers(&[("X-Slack-Request-Timestamp", "1531420618"), ("X-Slack-Signature", &format!("v0={tag}"))]);
    let verified = slack().verify(&request, SLACK_BODY.as_bytes(), at(1_531_420_618)).unwrap();
    assert_eq!((verified.by().as_str(), verified.timestamp), ("slack/0", Some(at(1_531_420_618))));
    for (now, fresh) in [(1_531_420_918, true), (1_531_420_919, false), (1_531_420_317, false)] {
        assert_eq!(slack().verify(&request, SLACK_BODY.as_bytes(), at(now)).is_ok(), fresh, "{now}");
    }
    for signature in [tag.to_owned(), format!("v1={tag}"), format!("v0={}", tag.to_uppercase()), "v0=".into()] {
        let mut wrong = request.clone();
        wrong.insert("x-slack-signature", signature.parse().unwrap());
        let verified = slack().verify(&wrong, SLACK_BODY.as_bytes(), at(1_531_420_618));
        assert_eq!(verified, Err(VerifyError::Invalid), "{signature}");
    }
}

/// Only Slack's own question is answered, and only of a source of Slack.
#[test]
fn slacks_question_is_told_from_its_events() {
    let question = br#"{"token":"x","challenge":"3eZbrw1aB","type":"url_verification"}"#;
    assert_eq!(slack().challenge(question).as_deref(), Some("3eZbrw1aB"));
    assert_eq!(slack().challenge(br#"{"type":"url_verification"}"#).as_deref(), Some(""));
    for event in [
        &br#"{"type":"event_callback","challenge":"x","event":{"type":"url_verification"}}"#[..],
        br#"{"challenge":"x"}"#,
        br#"["url_verification"]"#,
        b"type=url_verification&challenge=x",
        b"",
    ] {
        assert_eq!(slack().challenge(event), None);
    }
    assert_eq!(stripe().challenge(question), None);
}

fn shopify() -> Verifier {
    verifier(Configured::Shopify(ShopifyScheme { secrets: vec!["shopify_client_secret".into()] })).unwrap()
}

#[test]
fn the_vector_of_shopify_holds_under_both_names() {
    let tag = "QLoko1nOMU3ss70x1hgycOVcFYPIia/SabpZvFIJLoM=";
    for name in ["X-Shopify-Hmac-SHA256", "Shopify-Hmac-Sha256"] {
        let verified = shopify().verify(&headers(&[(name, tag)]), br#"{"id":1}"#, at(0)).unwrap();
        assert_eq!((verified.by().as_str(), verified.id, verified.timestamp), ("shopify/0", None, None));
    }
    for wrong in [
        "",
        "QLoko1nOMU3ss70x1hgycOVcFYPIia/SabpZvFIJLoM",
        "40ba24a359ce314dec",
        "QLoko1nOMU3ss70x1hgycOVcFYPIia_SabpZvFIJLoM=",
    ] {
        let request = headers(&[("x-shopify-hmac-sha256", wrong)]);
        assert_eq!(shopify().verify(&request, br#"{"id":1}"#, at(0)), Err(VerifyError::Invalid), "{wrong}");
    }
    let none = shopify().verify(&HeaderMap::new(), b"", at(0)).unwrap_err();
    assert_eq!(none, VerifyError::Missing { header: HeaderName::from_static("x-shopify-hmac-sha256") });
    // A forged one under the old name is not saved by a good one under the new.
    let both = headers(&[("x-shopify-hmac-sha256", "AAAA"), ("shopify-hmac-sha256", tag)]);
    assert_eq!(shopify().verify(&both, br#"{"id":1}"#, at(0)), Err(VerifyError::Invalid));
}

/// The signature with SHA-1 that GitHub still sends along is not taken for one.
#[test]
fn githubs_older_signature_does_not_count() {
    let request = headers(&[("X-Hub-Signature", "sha1=01dc10d0c83e72ed246219cdd91669667fe2ca59")]);
    let error = github().verify(&request, b"Hello, World!", at(0)).unwrap_err();
    assert_eq!(error, VerifyError::Missing { header: HeaderName::from_static("x-hub-signature-256") });
    let tag = "757107ea0eb2509fc211221cce984b8a37570b6d7586c22c46f4379c8b043e17";
    for signature in [tag.to_owned(), format!("sha1={tag}"), format!("sha256= {tag}"), format!("sha256={tag},")] {
        let request = headers(&[("X-Hub-Signature-256", &signature)]);
        assert_eq!(github().verify(&request, b"Hello, World!", at(0)), Err(VerifyError::Invalid), "{signature}");
    }
}

/// A source that takes API keys accepts no signature.
#[test]
fn a_source_of_api_keys_takes_nothing_here() {
    let keyed = verifier(Configured::ApiKey(weft_proto::v1::ApiKeyScheme {})).unwrap();
    assert!(keyed.takes_key() && !stripe().takes_key());
    assert_eq!(keyed.verify(&headers(&[("x-api-key", "x")]), b"{}", at(0)), Err(VerifyError::KeyNeeded));
    assert_eq!(Verified::of_key("abcd1234").by(), "api_key/abcd1234");
}
