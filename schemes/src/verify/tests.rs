//! The vectors of the schemes' own documents, and what must hold for any of them.

use ::hmac::{Hmac, KeyInit as _, Mac as _};
use http::{HeaderMap, HeaderName, HeaderValue};
use jiff::Timestamp;
use sha2::Sha256;
use standardwebhooks::Webhook;
use weft_proto::v1::{
    GithubScheme, HmacScheme, NoneScheme, SignatureEncoding, Source, StandardScheme, Verification,
    verification::Scheme as Configured,
};

use super::*;

mod properties;
mod providers;
mod public_keys;
mod senders;
mod traps;

const STANDARD_SECRET: &str = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw";
const OTHER_SECRET: &str = "whsec_b3RoZXItc2VjcmV0LW90aGVyLXNlY3JldA==";

fn verifier(scheme: Configured) -> Result<Verifier, CompileError> {
    Verifier::compile(&Source {
        name: "shop".into(),
        verification: Some(Verification { scheme: Some(scheme) }),
        ..Source::default()
    })
}

fn standard(secrets: &[&str]) -> Verifier {
    let secrets = secrets.iter().map(|secret| (*secret).to_owned()).collect();
    verifier(Configured::Standard(StandardScheme { secrets, tolerance_ms: None })).unwrap()
}

fn github() -> Verifier {
    verifier(Configured::Github(GithubScheme { secrets: vec!["It's a Secret to Everybody".into()] })).unwrap()
}

fn template(scheme: HmacScheme) -> Result<Verifier, CompileError> {
    verifier(Configured::Hmac(scheme))
}

fn headers(pairs: &[(&str, &str)]) -> HeaderMap {
    pairs
        .iter()
        .map(|(name, value)| (name.parse::<HeaderName>().unwrap(), HeaderValue::from_str(value).unwrap()))
        .collect()
}

/// Signs with the reference library.
fn signed(secret: &str, id: &str, at: i64, body: &str) -> HeaderMap {
    let signature = Webhook::new(secret).unwrap().sign(id, at, body.as_bytes()).unwrap();
    headers(&[("webhook-id", id), ("webhook-timestamp", &at.to_string()), ("webhook-signature", &signature)])
}

fn at(seconds: i64) -> Timestamp {
    Timestamp::from_second(seconds).unwrap()
}

#[test]
fn the_vector_of_standard_webhooks_holds() {
    let request = headers(&[
        ("webhook-id", "msg_p5jXN8AQM9LWM0D4loKWxJek"),
        ("webhook-timestamp", "1614265330"),
        ("webhook-signature", "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE="),
    ]);
    let verified =
        standard(&[STANDARD_SECRET]).verify(&request, br#"{"test": 2432232314}"#, at(1_614_265_330)).unwrap();
    assert_eq!(verified.by(), "standard/0");
    assert_eq!(verified.id.as_deref(), Some("msg_p5jXN8AQM9LWM0D4loKWxJek"));
    assert_eq!(verified.timestamp, Some(at(1_614_265_330)));
}

#[test]
fn the_vector_of_github_holds() {
    let signature = "sha256=757107ea0eb2509fc211221cce984b8a37570b6d7586c22c46f4379c8b043e17";
    let verified = github()
        .verify(&headers(&[("X-Hub-Signature-256", signature)]), b"Hello, World!", Timestamp::UNIX_EPOCH)
        .unwrap();
    assert_eq!((verified.by().as_str(), verified.id, verified.timestamp), ("github/0", None, None));
}

/// The scheme `hmac` covers the vectors of Stripe, Slack-like and Shopify signatures.
#[test]
fn the_vectors_of_other_senders_hold_by_template() {
    let shopify = template(HmacScheme {
        secrets: vec!["shopify_client_secret".into()],
        header: "X-Shopify-Hmac-SHA256".into(),
        encoding: SignatureEncoding::Base64.into(),
        ..HmacScheme::default()
    })
    .unwrap();
    let request = headers(&[("x-shopify-hmac-sha256", "QLoko1nOMU3ss70x1hgycOVcFYPIia/SabpZvFIJLoM=")]);
    assert_eq!(shopify.verify(&request, br#"{"id":1}"#, at(0)).unwrap().by(), "hmac/0");

    let timed = template(HmacScheme {
        secrets: vec!["whsec_test_secret".into()],
        header: "x-signature".into(),
        prefix: "v1=".into(),
        template: "{timestamp}.{body}".into(),
        timestamp_header: "x-time".into(),
        tolerance_ms: Some(60_000),
        ..HmacScheme::default()
    })
    .unwrap();
    let signature = "v1=8042376f6ca064adbe037642a718227dfd59047137eb49497a54c49eb0cfb724";
    let request = headers(&[("x-signature", signature), ("x-time", "1700000000")]);
    let body = br#"{"id":"evt_test","object":"event"}"#;
    assert_eq!(timed.verify(&request, body, at(1_700_000_060)).unwrap().timestamp, Some(at(1_700_000_000)));
    assert_eq!(
        timed.verify(&request, body, at(1_700_000_061)),
        Err(VerifyError::OutOfWindow {
            signed: at(1_700_000_000),
            by: Duration::from_secs(61),
            direction: Direction::Behind,
            tolerance: Duration::from_secs(60)
        })
    );
}

#[test]
fn a_rotation_takes_either_secret_and_either_signature() {
    let both = standard(&[OTHER_SECRET, STANDARD_SECRET]);
    let mut request = signed(STANDARD_SECRET, "m1", 1000, "{}");
    assert_eq!(both.verify(&request, b"{}", at(1000)).unwrap().by(), "standard/1");
    let mine = request["webhook-signature"].to_str().unwrap().to_owned();
    let list = format!("v1a,AAAA v2,x v1,not-base64 v1,AAAA {mine}");
    request.insert("webhook-signature", list.parse().unwrap());
    assert_eq!(both.verify(&request, b"{}", at(1000)).unwrap().by(), "standard/1");
}

#[test]
fn svix_names_are_taken_too() {
    let request = signed(STANDARD_SECRET, "m1", 1000, "{}");
    let svix = request.iter().map(|(name, value)| {
        (name.as_str().replace("webhook-", "svix-").parse::<HeaderName>().unwrap(), value.clone())
    });
    assert!(standard(&[STANDARD_SECRET]).verify(&svix.collect(), b"{}", at(1000)).is_ok());
}

#[test]
fn freshness_is_measured_both_ways() {
    let verifier = standard(&[STANDARD_SECRET]);
    let request = signed(STANDARD_SECRET, "m1", 10_000, "{}");
    let verify = |now: i64| verifier.verify(&request, b"{}", at(now));
    assert!(verify(10_300).is_ok() && verify(9_700).is_ok());
    let text = |now| verify(now).unwrap_err().to_string();
    assert_eq!(text(10_301), "the signed timestamp is 301s behind the gateway's clock; at most 300s are allowed");
    assert_eq!(text(9_000), "the signed timestamp is 1000s ahead of the gateway's clock; at most 300s are allowed");
    // An unsigned timestamp has no effect: the signature is invalid.
    let mut moved = request.clone();
    moved.insert("webhook-timestamp", "1".parse().unwrap());
    assert_eq!(verifier.verify(&moved, b"{}", at(10_000)), Err(VerifyError::Invalid));
}

/// Waiving freshness waives nothing else: the signature must hold, and it gives the time.
#[test]
fn what_was_kept_is_verified_but_for_its_age() {
    let verifier = standard(&[STANDARD_SECRET]);
    let request = signed(STANDARD_SECRET, "m1", 10_000, "{}");
    let verify = |freshness, body: &[u8]| verifier.verify_with(freshness, &request, body, at(99_000));
    assert!(matches!(verify(Freshness::Required, b"{}"), Err(VerifyError::OutOfWindow { .. })));
    assert_eq!(verify(Freshness::Waived, b"{}").unwrap().timestamp, Some(at(10_000)));
    assert_eq!(verify(Freshness::Waived, b"{ }"), Err(VerifyError::Invalid));
}

#[test]
fn each_missing_header_is_named() {
    let request = signed(STANDARD_SECRET, "m1", 1000, "{}");
    for header in ["webhook-id", "webhook-timestamp", "webhook-signature"] {
        let mut without = request.clone();
        without.remove(header);
        let error = standard(&[STANDARD_SECRET]).verify(&without, b"{}", at(1000)).unwrap_err();
        assert_eq!(error, VerifyError::Missing { header: HeaderName::from_static(header) });
    }
    assert!(matches!(github().verify(&request, b"{}", at(0)), Err(VerifyError::Missing { .. })));
}

/// A secret in all spellings in which senders show it and shells pass it.
#[test]
fn secrets_verify_in_every_spelling() {
    let request = signed(STANDARD_SECRET, "m1", 1000, "{}");
    for spelled in [
        format!("v1,{STANDARD_SECRET}"),
        format!(" \"v1,{STANDARD_SECRET}\"\r\n"),
        format!("\u{feff}{STANDARD_SECRET}"),
        format!("v1,{OTHER_SECRET}|v1,{STANDARD_SECRET}"),
    ] {
        let verified = standard(&[OTHER_SECRET, &spelled]).verify(&request, b"{}", at(1000)).unwrap();
        assert_eq!(verified.by(), "standard/1", "{spelled:?}");
    }
    let mut literal = headers(&[]);
    literal.insert(
        "x-hub-signature-256",
        "sha256=757107ea0eb2509fc211221cce984b8a37570b6d7586c22c46f4379c8b043e17".parse().unwrap(),
    );
    for spelled in
        ["It's a Secret to Everybody\n", "\u{feff}It's a Secret to Everybody", " \"It's a Secret to Everybody\" "]
    {
        let verifier =
            verifier(Configured::Github(GithubScheme { secrets: vec!["another one".into(), spelled.into()] }));
        assert_eq!(
            verifier.unwrap().verify(&literal, b"Hello, World!", at(0)).unwrap().by(),
            "github/1",
            "{spelled:?}"
        );
    }
    for blank in ["", " ", "\n", "\"\""] {
        assert!(verifier(Configured::Github(GithubScheme { secrets: vec![blank.into()] })).is_err());
    }
}

/// A tolerance of nothing is nothing, and not the default.
#[test]
fn a_tolerance_of_zero_is_zero() {
    let scheme = StandardScheme { secrets: vec![STANDARD_SECRET.into()], tolerance_ms: Some(0) };
    let verifier = verifier(Configured::Standard(scheme)).unwrap();
    let request = signed(STANDARD_SECRET, "m1", 1000, "{}");
    assert!(verifier.verify(&request, b"{}", at(1000)).is_ok());
    for now in [999, 1001, 1299] {
        assert!(matches!(verifier.verify(&request, b"{}", at(now)), Err(VerifyError::OutOfWindow { .. })), "{now}");
    }
}

/// One signed text, cut at another full stop, is not another request.
#[test]
fn a_signed_text_is_cut_in_one_way_only() {
    let verifier = standard(&[STANDARD_SECRET]);
    // Signed was id `m`, timestamp `1000`, body `2000.{}`.
    let genuine = signed(STANDARD_SECRET, "m", 1000, "2000.{}");
    assert!(verifier.verify(&genuine, b"2000.{}", at(1000)).is_ok());
    let mut shifted = genuine.clone();
    shifted.insert("webhook-id", "m.1000".parse().unwrap());
    shifted.insert("webhook-timestamp", "2000".parse().unwrap());
    assert!(matches!(verifier.verify(&shifted, b"{}", at(2000)), Err(VerifyError::Malformed { .. })));
    let mut shifted = genuine;
    shifted.insert("webhook-timestamp", "1000.2000".parse().unwrap());
    assert!(matches!(verifier.verify(&shifted, b"{}", at(1000)), Err(VerifyError::Malformed { .. })));
}

#[test]
fn what_could_never_verify_is_refused_at_compile_time() {
    let complete = HmacScheme { secrets: vec!["s".into()], header: "x-s".into(), ..HmacScheme::default() };
    assert!(template(complete.clone()).is_ok());
    for (problem, scheme) in [
        ("no secrets", HmacScheme { secrets: vec![], ..complete.clone() }),
        ("is empty", HmacScheme { secrets: vec![String::new()], ..complete.clone() }),
        ("header", HmacScheme { header: "no name".into(), ..complete.clone() }),
        ("does not sign the body", HmacScheme { template: "{timestamp}".into(), ..complete.clone() }),
        ("timestamp_header", HmacScheme { template: "{timestamp}.{body}".into(), ..complete.clone() }),
        ("is not signed", HmacScheme { timestamp_header: "x-t".into(), ..complete.clone() }),
        ("between {id}", HmacScheme { template: "{id}{body}".into(), id_header: "x-i".into(), ..complete.clone() }),
        ("between {id}", HmacScheme { template: "{body}{id}".into(), id_header: "x-i".into(), ..complete.clone() }),
        ("none of", HmacScheme { template: "{body}{nonce}".into(), ..complete.clone() }),
        ("without its", HmacScheme { template: "{body".into(), ..complete }),
    ] {
        let error = template(scheme).unwrap_err().to_string();
        assert!(error.starts_with("source shop: verify: ") && error.contains(problem), "{error}");
    }
    let not_base64 = StandardScheme { secrets: vec!["whsec_!".into()], tolerance_ms: None };
    assert!(verifier(Configured::Standard(not_base64)).unwrap_err().problem.contains("base64"));
    assert!(Verifier::compile(&Source::default()).unwrap_err().problem.contains("no scheme"));
    assert!(verifier(Configured::None(NoneScheme {})).unwrap().verify(&HeaderMap::new(), b"", at(0)).is_ok());
}

/// Secrets are never printed.
#[test]
fn debug_shows_no_secret() {
    let text = format!("{:?}", github());
    assert!(text.contains("[secret]") && !text.contains("Everybody"), "{text}");
}
