//! `weft sign`, `weft verify` and `weft event send`, for each scheme as a sender uses it.

use std::{path::Path, process::Output};

use serde_json::Value;
use tokio::process::Command;
use weft_services::mesh::Up;
use weft_testkit::eventually;

use crate::{
    commands::Operator,
    mesh::{PATIENCE, program, provide_tls},
};

/// Svix's published pair.
const PUBLIC: &str = "whpk_1SiA4o9hyqTCpIqC5V9HUakiiaeACeqfZTInDBbOir4=";
const PRIVATE: &str = "whsk_6Xb/dCcHpPea21PS1N9VY/NZW723CEc77N4rJCubMbfVKIDij2HKpMKkioLlX0dRqSKJp4AJ6p9lMicMFs6Kvg==";
const SHARED: &str = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw";
/// A custom rule.
const OWN: [&str; 4] = ["--template", "{timestamp}.{id}.{body}", "--encoding", "base64"];

/// Scheme, the secret that signs, the one that verifies, and further flags of both.
const WAYS: [(&str, &str, &str, &[&str]); 8] = [
    ("standard", SHARED, SHARED, &[]),
    ("standard", PRIVATE, PUBLIC, &[]),
    ("github", "It's a Secret to Everybody", "It's a Secret to Everybody", &[]),
    ("stripe", "whsec_test_secret", "whsec_test_secret", &[]),
    ("slack", "8f742231b10e8888abcd99yyyzzz85a5", "8f742231b10e8888abcd99yyyzzz85a5", &[]),
    ("shopify", "shopify_client_secret", "shopify_client_secret", &[]),
    ("hmac", "0123456789abcdef", "0123456789abcdef", &[]),
    ("hmac", "0123456789abcdef", "0123456789abcdef", &OWN),
];

async fn weft(folder: &Path, args: &[&str]) -> Output {
    let mut command = Command::new(program());
    command.args(args).current_dir(folder).env("WEFT_TEST_SECRET", "k").kill_on_drop(true).output().await.unwrap()
}

/// Exit code, and output or error text.
async fn said(folder: &Path, args: &[&str]) -> (i32, String) {
    let output = weft(folder, args).await;
    let text = if output.status.success() { output.stdout } else { output.stderr };
    (output.status.code().unwrap(), String::from_utf8(text).unwrap())
}

/// The headers that `weft sign` makes of body.json.
async fn signed(folder: &Path, scheme: &str, secret: &str, more: &[&str]) -> Vec<String> {
    let sign = ["sign", "--scheme", scheme, "--secret", secret, "--body", "body.json"];
    let (code, text) = said(folder, &[&sign[..], more].concat()).await;
    assert_eq!(code, 0, "{text}");
    text.lines().map(str::to_owned).collect()
}

async fn verified(folder: &Path, scheme: &str, secret: &str, headers: &[String], more: &[&str]) -> (i32, String) {
    let mut args = vec!["verify", "--scheme", scheme, "--secret", secret, "--body", "body.json"];
    args.extend(headers.iter().flat_map(|header| ["--header", header.as_str()]));
    args.extend(more);
    said(folder, &args).await
}

/// A request signed by `weft sign` is verified by `weft verify`, which names the secret; with a changed byte of the body it fails.
#[tokio::test]
async fn a_signed_request_is_verified_only_if_unchanged() {
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path();
    let body = folder.join("body.json");
    for (scheme, signing, verifying, more) in WAYS {
        std::fs::write(&body, r#"{"total":1}"#).unwrap();
        let headers = signed(folder, scheme, signing, more).await;
        let (code, text) = verified(folder, scheme, verifying, &headers, more).await;
        assert_eq!(code, 0, "{scheme}: {text}");
        let verdict: Value = serde_json::from_str(&text).unwrap();
        assert_eq!(verdict["verifiedBy"], format!("{scheme}/0"));
        std::fs::write(&body, r#"{"total":2}"#).unwrap();
        let (code, text) = verified(folder, scheme, verifying, &headers, more).await;
        assert!(code == 1 && text.contains("signature_invalid: "), "{scheme}: {code} {text}");
        assert!(!text.contains(verifying), "{text}");
    }
}

/// Refusals have the gateway's codes; invalid flags are usage errors.
#[tokio::test]
async fn verify_names_what_is_wrong_with_a_request() {
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path();
    std::fs::write(folder.join("body.json"), "{}").unwrap();
    let verified = async |secret, headers, more| verified(folder, "stripe", secret, headers, more).await;

    let old = signed(folder, "stripe", "whsec_old_secret", &["--timestamp", "1700000000"]).await;
    let (code, text) = verified("whsec_old_secret", &old, &[]).await;
    assert!(code == 1 && text.contains("timestamp_out_of_window: "), "{code} {text}");
    let (code, text) = verified("whsec_old_secret", &old, &["--any-age", "-o", "table"]).await;
    assert_eq!((code, text.trim()), (0, "ok: stripe/0, signed at 2023-11-14T22:13:20Z"));
    let (code, text) = verified("whsec_new", &old, &["--secret", "whsec_old_secret", "--any-age"]).await;
    assert!(code == 0 && text.contains("stripe/1"), "a rotation: {code} {text}");
    let (code, text) = verified("whsec_old_secret", &[], &[]).await;
    assert!(code == 1 && text.contains("signature_missing: header stripe-signature"), "{code} {text}");
    let twice = [old.clone(), old.clone()].concat();
    let (code, text) = verified("whsec_old_secret", &twice, &["--any-age"]).await;
    assert!(code == 1 && text.contains("must be there once"), "{code} {text}");

    for (secret, more) in
        [("sk_live_hush", &[][..]), ("whsec_hush", &["--prefix", "v1="]), ("whsec_hush", &["-H", "x"])]
    {
        let (code, text) = verified(secret, &old, more).await;
        assert!(code == 2 && !text.contains("hush"), "{code} {text}");
    }
    let (code, text) =
        said(folder, &["sign", "--scheme", "stripe", "--secret", "whsec_old_secret", "--id", "evt_1"]).await;
    assert!(code == 2 && text.contains("--id"), "{code} {text}");
    let (code, text) = said(folder, &["sign", "--secret", SHARED, "--id", "a\nb", "--body", "body.json"]).await;
    assert!(code == 2 && text.lines().count() == 1 && text.contains(r"a\nb"), "{code} {text}");
}

/// `weft event send` is taken by a source of each scheme that says nothing but its secret.
#[tokio::test]
async fn events_are_sent_by_every_scheme() {
    provide_tls();
    let folder = tempfile::tempdir().unwrap();
    let named = |index: usize, scheme: &str| format!("{scheme}-{index}");
    let mut config = String::new();
    for (index, (scheme, _, secret, more)) in WAYS.iter().enumerate() {
        let own = r#", header = "X-Signature", prefix = "sha256=""#;
        let template = r#", encoding = "base64", template = "{timestamp}.{id}.{body}", timestamp_header = "X-Timestamp", id_header = "X-Delivery-Id""#;
        let (keys, delivery_id) = match (*scheme, more.is_empty()) {
            ("hmac", true) => (own.to_owned(), "delivery_id = { header = \"X-Delivery-Id\" }\n"),
            ("hmac", false) => (format!("{own}{template}"), "delivery_id = { header = \"X-Delivery-Id\" }\n"),
            _ => (String::new(), ""),
        };
        let name = named(index, scheme);
        config.push_str(&format!(
            "[[source]]\nname = \"{name}\"\nverify = {{ scheme = \"{scheme}\", secrets = [\"{secret}\"]{keys} }}\n{delivery_id}"
        ));
    }
    let mut up = Up::start(&program(), folder.path(), &config).await.unwrap();
    let gateway = up.endpoints.get("gateway").unwrap().to_owned();
    for (index, (scheme, secret, _, more)) in WAYS.into_iter().enumerate() {
        let operator = Operator { data: &folder.path().join("data"), gateway: gateway.clone(), secret };
        let source = named(index, scheme);
        let send = [
            "event",
            "send",
            "--source",
            &source,
            "--scheme",
            scheme,
            "--workflow",
            &source,
            "--type",
            "order.paid",
            "--id",
            "evt_1",
        ];
        let send = [&send[..], more].concat();
        let first = operator.lines(&send).await;
        assert_eq!((first[0]["workflowId"].as_str(), first[0]["duplicate"].as_bool()), (Some(&*source), Some(false)));
        let again = operator.lines(&send).await;
        assert_eq!(again[0]["duplicate"].as_bool(), Some(true), "{source}: --id is the delivery id");
        let get = ["event", "get", first[0]["eventId"].as_str().unwrap()];
        // The admin's history follows the log.
        assert!(eventually(PATIENCE, async || operator.code(&get).await == Some(0)).await, "{source}");
        let event = operator.lines(&get).await;
        assert_eq!((&event[0]["type"], &event[0]["deliveryId"]), (&"order.paid".into(), &"evt_1".into()), "{source}");
    }
    up.stop().await.unwrap();
}
