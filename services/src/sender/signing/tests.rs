//! The providers' published vectors, and that the gateway takes what is signed here, whole only.

use clap::ValueEnum as _;
use http::{HeaderMap, HeaderName, HeaderValue};
use jiff::Timestamp;
use proptest::prelude::*;

use super::*;
use crate::command::verify::verifier;

/// Svix's published pair.
const PUBLIC: &str = "whpk_1SiA4o9hyqTCpIqC5V9HUakiiaeACeqfZTInDBbOir4=";
const PRIVATE: &str = "whsk_6Xb/dCcHpPea21PS1N9VY/NZW723CEc77N4rJCubMbfVKIDij2HKpMKkioLlX0dRqSKJp4AJ6p9lMicMFs6Kvg==";
const SHARED: &str = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw";
/// Slack's documented form body, of which only the signature is looked at here.
const SLACK_BODY: &str = "token=xyzz0WbapA4vBCDEFasx0q6G&team_id=T1DC2JH3J&team_domain=testteamnow&channel_id=G8PSS9T3V&channel_name=foobar&user_id=U2CERLKJA&user_name=roadrunner&command=%2Fwebhook-collect&text=&response_url=https%3A%2F%2Fhooks.slack.com%2Fcommands%2FT1DC2JH3J%2F397700885554%2F96rGlfmibIGlgcZRskXaIFfN&trigger_id=398738663015.47445629121.803a0bc887a14d10d2c447fce8b6703c";

/// A signed header's value.
fn header(signing: &Signing, id: &str, timestamp: i64, body: &[u8], name: &str) -> String {
    let headers = signing.headers(id, timestamp, Some("push"), body).unwrap();
    headers.into_iter().find(|(header, _)| header == name).unwrap().1
}

#[test]
fn signatures_are_the_schemes_vectors() {
    let standard = (br#"{"test": 2432232314}"#.as_slice(), "msg_p5jXN8AQM9LWM0D4loKWxJek", 1_614_265_330);
    for (scheme, secret, (body, id, time), name, signature) in [
        (Scheme::Standard, SHARED, standard, "webhook-signature", "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE="),
        (
            Scheme::Standard,
            PRIVATE,
            standard,
            "webhook-signature",
            "v1a,hnO3f9T8Ytu9HwrXslvumlUpqtNVqkhqw/enGzPCXe5BdqzCInXqYXFymVJaA7AZdpXwVLPo3mNl8EM+m7TBAg==",
        ),
        (
            Scheme::Github,
            "It's a Secret to Everybody",
            (b"Hello, World!", "guid", 0),
            "X-Hub-Signature-256",
            "sha256=757107ea0eb2509fc211221cce984b8a37570b6d7586c22c46f4379c8b043e17",
        ),
        (
            Scheme::Stripe,
            "whsec_test_secret",
            (br#"{"id":"evt_test","object":"event"}"#, "", 1_700_000_000),
            "Stripe-Signature",
            "t=1700000000,v1=8042376f6ca064adbe037642a718227dfd59047137eb49497a54c49eb0cfb724",
        ),
        (
            Scheme::Slack,
            "8f742231b10e8888abcd99yyyzzz85a5",
            (SLACK_BODY.as_bytes(), "", 1_531_420_618),
            "X-Slack-Signature",
            "v0=a2114d57b48eac39b9ad189dd8316235a7b4a8d21a10bd27519666489c69b503",
        ),
        (
            Scheme::Shopify,
            "shopify_client_secret",
            (br#"{"id":1}"#, "hook-1", 0),
            "X-Shopify-Hmac-SHA256",
            "QLoko1nOMU3ss70x1hgycOVcFYPIia/SabpZvFIJLoM=",
        ),
        // RFC 4231, case 2.
        (
            Scheme::Hmac,
            "Jefe",
            (b"what do ya want for nothing?", "evt-1", 0),
            "X-Signature",
            "sha256=5bdcc146bf60754e6a042426089575c75a003f089d2739839dec58b964ec3843",
        ),
    ] {
        assert_eq!(header(&Signing::new(scheme, secret), id, time, body, name), signature, "{scheme:?}");
    }
}

/// Id and type stand where each provider has them.
#[test]
fn ids_and_types_are_named_in_the_providers_headers() {
    for (scheme, id, event_type) in [
        (Scheme::Standard, Some("webhook-id"), None),
        (Scheme::Github, Some("X-GitHub-Delivery"), Some("X-GitHub-Event")),
        (Scheme::Stripe, None, None),
        (Scheme::Slack, None, None),
        (Scheme::Shopify, Some("X-Shopify-Webhook-Id"), Some("X-Shopify-Topic")),
        (Scheme::Hmac, Some("X-Delivery-Id"), None),
    ] {
        let headers = Signing::new(scheme, SHARED).headers("the id", 1, Some("the type"), b"{}").unwrap();
        let named = |wanted: &str| headers.iter().find(|(_, value)| value == wanted).map(|(name, _)| name.as_str());
        assert_eq!((named("the id"), named("the type")), (id, event_type), "{scheme:?}");
        assert_eq!((id.is_some(), event_type.is_some()), (scheme.id_in_header(), scheme.type_in_header()));
        assert_eq!(scheme.to_possible_value().unwrap().get_name(), scheme.name());
    }
}

#[test]
fn a_secret_is_never_shown() {
    for secret in ["whsec_not base64", "whsk_not base64", "whsk_bm90IGJhc2U2NA==", ""] {
        let signing = Signing::new(Scheme::Standard, secret);
        assert_eq!(format!("{signing:?}"), "Standard");
        let problem = signing.headers("a", 1, None, b"").unwrap_err();
        assert!(!problem.contains("not base64") && !problem.contains("bm90"), "{problem}");
    }
}

#[test]
fn a_template_that_is_none_is_refused() {
    for template in ["{nonce}.{body}", "{body"] {
        let hmac = HmacOptions { template: Some(template.into()), ..HmacOptions::default() };
        let problem = Signing { hmac, ..Signing::new(Scheme::Hmac, "k") }.headers("a", 1, None, b"").unwrap_err();
        assert!(problem.contains("{timestamp}"), "{problem}");
    }
}

/// One way to sign, with the secret by which it is verified.
fn ways() -> impl Strategy<Value = (Signing, String)> {
    let usual = |scheme, secret: &str| (Signing::new(scheme, secret), secret.to_owned());
    let own = HmacOptions {
        signature_header: Some("X-Own".into()),
        prefix: Some("sig ".into()),
        encoding: Some(Encoding::Base64),
        template: Some("{timestamp}.{body}.{id}".into()),
        timestamp_header: None,
        id_header: Some("X-Own-Id".into()),
    };
    prop::sample::select(vec![
        usual(Scheme::Standard, SHARED),
        (Signing::new(Scheme::Standard, PRIVATE), PUBLIC.to_owned()),
        usual(Scheme::Github, "It's a Secret to Everybody"),
        usual(Scheme::Stripe, "whsec_test_secret"),
        usual(Scheme::Slack, "8f742231b10e8888abcd99yyyzzz85a5"),
        usual(Scheme::Shopify, "shopify_client_secret"),
        usual(Scheme::Hmac, "0123456789abcdef"),
        (Signing { hmac: own, ..Signing::new(Scheme::Hmac, "0123456789abcdef") }, "0123456789abcdef".to_owned()),
    ])
}

/// Whether a header is signed: informational ones are not.
fn is_signed(signing: &Signing, name: &HeaderName) -> bool {
    let unsigned = ["x-github-delivery", "x-github-event", "x-shopify-webhook-id", "x-shopify-topic", "x-delivery-id"];
    !unsigned.contains(&name.as_str()) || signing.hmac.template.is_some()
}

proptest! {
    /// The gateway's verifier accepts requests signed here, and refuses them with one changed byte of the body or of a signed
    /// header.
    #[test]
    fn the_gateway_takes_what_is_signed_whole(
        (signing, secret) in ways(), body in proptest::collection::vec(any::<u8>(), 1..40), id in "[a-zA-Z0-9_]{1,20}",
        time in 1_000_000_000i64..2_000_000_000, place in any::<prop::sample::Index>(),
        index in any::<prop::sample::Index>(), change in 1u8..,
    ) {
        let verifier = verifier(signing.scheme, &[secret], None, &signing.hmac).unwrap();
        let now = Timestamp::from_second(time).unwrap();
        let signed = signing.headers(&id, time, Some("push"), &body).unwrap();
        let mut headers: HeaderMap = signed.iter()
            .map(|(name, value)| (name.parse::<HeaderName>().unwrap(), HeaderValue::from_str(value).unwrap()))
            .collect();
        let verified = verifier.verify(&headers, &body, now);
        prop_assert!(verified.is_ok(), "{:?}: {verified:?}", signing);
        prop_assert_eq!(verified.unwrap().timestamp, signing.signs_time().then_some(now));

        let names: Vec<_> = headers.keys().filter(|name| is_signed(&signing, name)).cloned().collect();
        let mut body = body;
        match names.get(place.index(names.len() + 1)) {
            Some(name) => {
                let mut value = headers[name].as_bytes().to_vec();
                let index = index.index(value.len());
                // Hex of a template may be spelt in capitals, too: another spelling is no other signature.
                prop_assume!(change != b' ' || signing.scheme != Scheme::Hmac);
                value[index] ^= change;
                let Ok(value) = HeaderValue::from_bytes(&value) else { return Ok(()) };
                headers.insert(name, value);
            }
            None => {
                let index = index.index(body.len());
                body[index] ^= change;
            }
        }
        prop_assert!(verifier.verify(&headers, &body, now).is_err(), "{:?}", signing);
    }
}
