//! `weft event send --provider`: what providers send is accepted by sources as docs/events.md sets them up.

use serde_json::Value;
use weft_services::mesh::{Up, Wiring, secret};
use weft_testkit::eventually;

use crate::{
    commands::Operator,
    mesh::{PATIENCE, program, provide_tls},
};

#[tokio::test]
async fn a_source_accepts_what_its_provider_sends() {
    provide_tls();
    let folder = tempfile::tempdir().unwrap();
    let wiring = Wiring::new();
    let mut up = Up::start(&program(), folder.path(), &wiring.config(None)).await.unwrap();
    let data = folder.path().join("data");
    let secret = secret();
    std::fs::write(folder.path().join("secret"), &secret).unwrap();
    let reference = format!("file:{}", folder.path().join("secret").display());
    let operator = Operator { data: &data, gateway: up.endpoints.get("gateway").unwrap().to_owned(), secret: &secret };

    for (provider, scheme, pointer, workflow, event_type) in [
        ("github", "github", "/repository/full_name", "acme/site", "push"),
        ("stripe", "stripe", "/data/object/id", "pi_3MtwBwLkdIwHu7ix28a3tqPa", "payment_intent.succeeded"),
        ("shopify", "shopify", "/id", "820982911946154508", "orders/create"),
        ("slack", "slack", "/event/channel", "C123ABC456", "message"),
        ("standard", "standard", "/data/id", "inv_2fkgYrqQaBwxMBJUhpZVTw", "invoice.paid"),
        ("svix", "standard", "/data/id", "inv_2fkgYrqQaBwxMBJUhpZVTw", "invoice.paid"),
    ] {
        let create = ["source", "create", provider, "--scheme", scheme, "--secret", &reference, "--workflow", pointer];
        let created = operator.lines(&create).await;
        let url = format!("{}/api/v1/webhooks/{provider}", operator.gateway);
        assert_eq!(created[0]["url"], *url);
        let send = ["event", "send", "--source", provider, "--provider", provider, "--id", "delivery-1"];
        // The gateway may not have seen the new source yet.
        let live = async || operator.code(&send).await == Some(0);
        assert!(eventually(PATIENCE, live).await, "{provider}");
        let again = operator.lines(&send).await;
        let is_repeat = again[0]["duplicate"] == true;
        assert_eq!((&again[0]["workflowId"], is_repeat), (&Value::from(workflow), true), "{provider}");
        let id = again[0]["eventId"].as_str().unwrap();
        // The admin's history follows the log.
        assert!(eventually(PATIENCE, async || operator.code(&["event", "get", id]).await == Some(0)).await);
        let event = operator.lines(&["event", "get", id]).await;
        assert_eq!(
            (event[0]["type"].as_str(), event[0]["deliveryId"].as_str()),
            (Some(event_type), Some("delivery-1"))
        );
        let new = operator.lines(&["event", "send", "--source", provider, "--provider", provider]).await;
        let numbers = [&again, &new].map(|answer| answer[0]["sequenceNumber"].as_u64().unwrap());
        assert_eq!(numbers[1], numbers[0] + 1, "{provider}: another event of the same workflow");
    }

    // A given body is sent unchanged.
    let body = r#"{"repository":{"full_name":"acme/other"},"n":1.10}"#;
    let send = ["event", "send", "--source", "github", "--provider", "github", "--type", "issues", "--data", body];
    let sent = operator.lines(&send).await;
    let id = sent[0]["eventId"].as_str().unwrap();
    assert!(eventually(PATIENCE, async || operator.code(&["event", "get", id]).await == Some(0)).await);
    let event = operator.lines(&["event", "get", id]).await;
    assert_eq!((event[0]["workflowId"].as_str(), event[0]["type"].as_str()), (Some("acme/other"), Some("issues")));
    let raw = operator.answer(&["event", "get", id]).await;
    assert!(String::from_utf8(raw.stdout).unwrap().contains(body));

    for wrong in [
        ["--provider", "stripe", "--id", "evt_1", "--data", "{}"].as_slice(),
        &["--provider", "github", "--scheme", "slack"],
        &["--type", "a", "--gateway", "nonsense"],
        &["--type", "a", "--gateway", "ftp://127.0.0.1/"],
        &["--type", "a", "--workflow", ".."],
        &["--type", "a", "--id", "a\nb"],
        &["--scheme", "github"],
    ] {
        let args = [&["event", "send", "--source", "github"], wrong].concat();
        let output = operator.answer(&args).await;
        assert_eq!(output.status.code(), Some(2), "{wrong:?}: {}", String::from_utf8_lossy(&output.stderr));
    }
    up.stop().await.unwrap();
}
