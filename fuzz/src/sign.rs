//! Signatures as the schemes' own documents define them, written independently of the code that is under test.

use base64::{Engine as _, prelude::BASE64_STANDARD};
use hmac::{Hmac, KeyInit as _, Mac as _};
use http::{HeaderMap, HeaderName, HeaderValue};
use sha2::Sha256;
use weft_proto::v1::{
    DeliveryIdRule, GithubScheme, HmacScheme, ShopifyScheme, SignatureEncoding, SlackScheme, Source, StandardScheme,
    StripeScheme, Verification, delivery_id_rule, verification::Scheme,
};

/// The base64 of a key of 24 bytes.
const STANDARD_SECRET: &str = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw";
/// A secret of the schemes that take it as it is.
const SECRET: &str = "It's a Secret to Everybody";

/// Headers that a sender of one scheme adds to a body.
pub type Signer = fn(id: &str, timestamp: i64, body: &[u8]) -> Vec<(&'static str, String)>;

/// A source of each scheme that signs, and how its senders sign.
pub fn schemes() -> Vec<(Source, Signer)> {
    let secrets = || vec![SECRET.to_owned()];
    let hmac = HmacScheme {
        secrets: secrets(),
        header: "x-signature".into(),
        prefix: "sha256=".into(),
        encoding: SignatureEncoding::Hex.into(),
        template: "{id}.{timestamp}.{body}".into(),
        timestamp_header: "x-timestamp".into(),
        id_header: "x-id".into(),
        tolerance_ms: None,
    };
    let standard = StandardScheme { secrets: vec![STANDARD_SECRET.into()], tolerance_ms: None };
    vec![
        (source(Scheme::Standard(standard)), standard_headers),
        (source(Scheme::Github(GithubScheme { secrets: secrets() })), github_headers),
        (source(Scheme::Hmac(hmac)), hmac_headers),
        (source(Scheme::Stripe(StripeScheme { secrets: secrets(), tolerance_ms: None })), stripe_headers),
        (source(Scheme::Slack(SlackScheme { secrets: secrets(), tolerance_ms: None })), slack_headers),
        (source(Scheme::Shopify(ShopifyScheme { secrets: secrets() })), shopify_headers),
    ]
}

fn source(scheme: Scheme) -> Source {
    Source {
        name: "shop".into(),
        verification: Some(Verification { scheme: Some(scheme) }),
        delivery_id: Some(DeliveryIdRule { from: Some(delivery_id_rule::From::Digest(true)) }),
        ..Source::default()
    }
}

/// The headers as a server hands them on.
pub fn headers(signed: Vec<(&'static str, String)>) -> HeaderMap {
    let header = |(name, value): (&'static str, String)| {
        (HeaderName::from_static(name), HeaderValue::from_str(&value).expect("printable"))
    };
    signed.into_iter().map(header).collect()
}

fn standard_headers(id: &str, timestamp: i64, body: &[u8]) -> Vec<(&'static str, String)> {
    let key = BASE64_STANDARD.decode(&STANDARD_SECRET["whsec_".len()..]).expect("base64");
    let tag = tag(&key, &[id.as_bytes(), b".", timestamp.to_string().as_bytes(), b".", body]);
    vec![
        ("webhook-id", id.to_owned()),
        ("webhook-timestamp", timestamp.to_string()),
        ("webhook-signature", format!("v1,{}", BASE64_STANDARD.encode(tag))),
    ]
}

fn github_headers(_: &str, _: i64, body: &[u8]) -> Vec<(&'static str, String)> {
    vec![("x-hub-signature-256", format!("sha256={}", hex::encode(tag(SECRET.as_bytes(), &[body]))))]
}

fn hmac_headers(id: &str, timestamp: i64, body: &[u8]) -> Vec<(&'static str, String)> {
    let signed = format!("{id}.{timestamp}.");
    let tag = tag(SECRET.as_bytes(), &[signed.as_bytes(), body]);
    vec![
        ("x-id", id.to_owned()),
        ("x-timestamp", timestamp.to_string()),
        ("x-signature", format!("sha256={}", hex::encode(tag))),
    ]
}

fn stripe_headers(_: &str, timestamp: i64, body: &[u8]) -> Vec<(&'static str, String)> {
    let tag = tag(SECRET.as_bytes(), &[timestamp.to_string().as_bytes(), b".", body]);
    vec![("stripe-signature", format!("t={timestamp},v1={}", hex::encode(tag)))]
}

fn slack_headers(_: &str, timestamp: i64, body: &[u8]) -> Vec<(&'static str, String)> {
    let tag = tag(SECRET.as_bytes(), &[b"v0:", timestamp.to_string().as_bytes(), b":", body]);
    vec![
        ("x-slack-request-timestamp", timestamp.to_string()),
        ("x-slack-signature", format!("v0={}", hex::encode(tag))),
    ]
}

fn shopify_headers(_: &str, _: i64, body: &[u8]) -> Vec<(&'static str, String)> {
    vec![("x-shopify-hmac-sha256", BASE64_STANDARD.encode(tag(SECRET.as_bytes(), &[body])))]
}

fn tag(key: &[u8], parts: &[&[u8]]) -> Vec<u8> {
    let mut mac = Hmac::<Sha256>::new_from_slice(key).expect("a key of any length");
    for part in parts {
        mac.update(part);
    }
    mac.finalize().into_bytes().to_vec()
}
