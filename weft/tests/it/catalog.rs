//! Sources, subscriptions and keys by command, on a running mesh: what is changed is live, and no secret is ever printed.

use std::{fs, net::TcpListener, path::PathBuf};

use serde_json::{Value, json};
use tempfile::TempDir;
use weft_services::{
    mesh::{SOURCE, SUBSCRIPTION, Up, Wiring},
    receiver::{Answer, Arrival, Receiver},
};
use weft_testkit::eventually;

use crate::{
    commands::Operator,
    mesh::{PATIENCE, program, provide_tls},
};

/// A mesh with one source, and a receiver that nothing is delivered to yet.
struct Scene {
    folder: TempDir,
    data: PathBuf,
    wiring: Wiring,
    receiver: Receiver,
    up: Up,
}

impl Scene {
    /// Subscriptions may call this machine.
    async fn start(rule: impl Fn(&Arrival) -> Answer + Send + Sync + 'static) -> Self {
        let loopback = "\n[worker]\nallow_networks = [\"127.0.0.0/8\", \"::1/128\"]\n";
        Self::start_with(rule, |wiring, _| wiring.config(None) + loopback).await
    }

    /// With the configuration for the receiver's URL.
    async fn start_with(
        rule: impl Fn(&Arrival) -> Answer + Send + Sync + 'static,
        config: impl FnOnce(&Wiring, &str) -> String,
    ) -> Self {
        provide_tls();
        let folder = tempfile::tempdir().unwrap();
        let wiring = Wiring::new();
        let receiver = Receiver::start(([127, 0, 0, 1], 0).into(), &wiring.receiver_secret, rule).await.unwrap();
        let up = Up::start(&program(), folder.path(), &config(&wiring, &receiver.url())).await.unwrap();
        fs::write(folder.path().join("receiver.secret"), &wiring.receiver_secret).unwrap();
        fs::write(folder.path().join("sender.secret"), &wiring.sender_secret).unwrap();
        let data = folder.path().join("data");
        Self { folder, data, wiring, receiver, up }
    }

    fn operator(&self) -> Operator<'_> {
        Operator::of(&self.up, &self.data, &self.wiring)
    }

    fn secret(&self, whose: &str) -> String {
        format!("file:{}", self.folder.path().join(format!("{whose}.secret")).display())
    }

    /// Writes a file and returns its name.
    fn file(&self, name: &str, text: &str) -> String {
        let path = self.folder.path().join(name);
        fs::write(&path, text).unwrap();
        path.display().to_string()
    }

    /// The only line of a command, which holds no secret.
    async fn line(&self, args: &[&str]) -> Value {
        let mut lines = self.lines(args).await;
        assert_eq!(lines.len(), 1, "{args:?}: {lines:?}");
        lines.remove(0)
    }

    async fn lines(&self, args: &[&str]) -> Vec<Value> {
        let lines = self.operator().lines(args).await;
        let text = serde_json::to_string(&lines).unwrap();
        for secret in [&self.wiring.sender_secret, &self.wiring.receiver_secret] {
            assert!(!text.contains(&secret["whsec_".len()..]), "{args:?} prints a secret");
        }
        lines
    }

    async fn send(&self, source: &str, workflow: &str, delivery_id: &str) -> Value {
        let args = ["event", "send", "--source", source, "--workflow", workflow, "--type", "order.paid"];
        self.line(&[&args[..], &["--id", delivery_id]].concat()).await
    }
}

/// A subscription's life: made, tested, delivered to, paused, changed, removed with what it has pending.
#[tokio::test]
async fn a_subscription_is_managed_on_a_running_mesh() {
    let scene = Scene::start(|arrival| match arrival.workflow_id.as_str() {
        "stuck" => Answer::now(500),
        _ => Answer::OK,
    })
    .await;
    let (url, secret) = (scene.receiver.url(), scene.secret("receiver"));
    let create = ["subscription", "create", "billing", "--url", &url, "--types", "order.*,weft.*", "--secret", &secret];
    let made = scene.line(&create).await;
    assert_eq!((&made["name"], &made["destination"]["secrets"]), (&json!("billing"), &json!(1)));
    assert_eq!((&made["paused"], &made["timeout"]), (&json!(false), &json!("15s")));

    let tested = scene.line(&["subscription", "test", "billing", "--send", "--body", r#"{"hello":"world"}"#]).await;
    assert_eq!((&tested["delivered"], &tested["httpStatus"]), (&json!(true), &json!(200)));
    let arrivals = scene.receiver.arrivals();
    assert_eq!((arrivals[0].event_type.as_str(), arrivals[0].signed), ("weft.test", true));

    scene.send(SOURCE, "order-1", "evt_1").await;
    assert!(scene.receiver.until(PATIENCE, |arrivals| arrivals.len() >= 2).await);
    let paused = scene.line(&["subscription", "pause", "billing", "--reason", "moving"]).await;
    assert_eq!((&paused["paused"], &paused["pauseReason"]), (&json!(true), &json!("moving")));
    let slower = scene.line(&["subscription", "update", "billing", "--timeout", "30s"]).await;
    assert_eq!((&slower["paused"], &slower["timeout"]), (&json!(true), &json!("30s")));
    scene.line(&["subscription", "resume", "billing"]).await;
    scene.send(SOURCE, "order-1", "evt_2").await;
    assert!(scene.receiver.until(PATIENCE, |arrivals| arrivals.len() >= 3).await);
    assert!(scene.receiver.arrivals().iter().all(|arrival| arrival.signed), "an update keeps the secret");
    assert_eq!(scene.lines(&["subscription", "list"]).await.len(), 1);

    let stuck = scene.send(SOURCE, "stuck", "evt_3").await;
    let id = stuck["eventId"].as_str().unwrap();
    scene.line(&["subscription", "delete", "billing", "--yes", "--reason", "closed"]).await;
    let status = async || scene.line(&["event", "get", id]).await["deliveries"][0]["status"].clone();
    assert!(eventually(PATIENCE, async || status().await == "discarded").await, "{}", status().await);

    let operator = scene.operator();
    assert_eq!(operator.code(&["subscription", "get", "billing"]).await, Some(3));
    assert_eq!(operator.code(&["subscription", "delete", "billing", "-y"]).await, Some(3));
    assert_eq!(operator.code(&["subscription", "create"]).await, Some(2));
    assert_eq!(
        operator.code(&["subscription", "create", "Billing", "--url", &url, "--secret", &secret]).await,
        Some(2)
    );
    let inside = ["subscription", "create", "inside", "--url", "http://10.0.0.1/", "--secret", &secret];
    let output = operator.answer(&inside).await;
    let text = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.code() == Some(2) && text.contains("private and not allowed"), "{text}");
}

/// `weft up` allows the ports of its file's receivers on this machine, and no others: neither its own services, which trust local
/// callers, nor any other.
#[tokio::test]
async fn a_subscription_does_not_lead_to_the_mesh_itself() {
    let scene = Scene::start_with(|_| Answer::OK, |wiring, receiver| wiring.config(Some(receiver))).await;
    let secret = scene.secret("receiver");
    for (endpoint, host) in
        [("admin", "127.0.0.1"), ("ops", "localhost"), ("nats", "[::ffff:127.0.0.1]"), ("gateway", "127.1")]
    {
        let endpoint = scene.up.endpoints.get(endpoint).unwrap();
        let url = format!("http://{host}:{}/", endpoint.rsplit_once(':').unwrap().1);
        let create = ["subscription", "create", "inside", "--url", &url, "--secret", &secret];
        let output = scene.operator().answer(&create).await;
        let text = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.code() == Some(2) && text.contains("a port of Weft itself"), "{url}: {text}");
    }
    let other = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let create = ["subscription", "create", "inside", "--url", &format!("http://{other}/"), "--secret", &secret];
    let output = scene.operator().run(&create).await;
    let text = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.code() == Some(2) && text.contains("is loopback and not allowed"), "{text}");
    let known = scene.receiver.url();
    scene.line(&["subscription", "create", "second", "--url", &known, "--secret", &secret]).await;
}

/// `weft check destination` says for each address whether it may be called, why not, and how to allow it.
#[tokio::test]
async fn a_destination_is_checked_without_a_call() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("weft.toml");
    let text = "[worker]\nallow_networks = [\"10.0.0.0/8\"]\ndeny_ports = [8443]\n[[subscription]]\nname = \"billing\"\n\
                destination = { type = \"http\", url = \"http://127.0.0.1:9999/\", secret = \"whsec_cXVpY2tzdGFydC1iaWxsaW5nLXNlY3JldC0x\" }\n";
    std::fs::write(&file, text).unwrap();
    for (args, code, said) in [
        (vec!["https://192.168.0.1/"], 1, "192.168.0.1 is private and not allowed; to allow it add its network"),
        (vec!["https://10.0.0.1/"], 0, ""),
        (vec!["https://10.0.0.1:8443/"], 1, "10.0.0.1:8443 is a denied port; to allow it remove 8443"),
        (vec!["http://127.0.0.1:9999/"], 1, "127.0.0.1 is loopback"),
        (vec!["http://0x7f.1:9999/", "--up"], 0, ""),
        (vec!["ftp://10.0.0.1/"], 2, "url begins with neither"),
    ] {
        let output = tokio::process::Command::new(program())
            .args(["check", "destination"])
            .args(&args)
            .arg("--config")
            .arg(&file)
            .output()
            .await
            .unwrap();
        let text = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.code() == Some(code) && text.contains(said), "{args:?}: {:?} {text}", output.status);
    }
}

/// A receiver that refuses is found by the test, not by the first event.
#[tokio::test]
async fn a_test_delivery_says_what_is_wrong() {
    let scene = Scene::start(|_| Answer::now(401)).await;
    let (url, secret) = (scene.receiver.url(), scene.secret("receiver"));
    scene.line(&["subscription", "create", "billing", "--url", &url, "--secret", &secret]).await;
    let output = scene.operator().answer(&["subscription", "test", "billing", "--send"]).await;
    let answer: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!((&answer["delivered"], &answer["outcome"]), (&json!(false), &json!("http_status")));
    assert_eq!((output.status.code(), &answer["httpStatus"]), (Some(1), &json!(401)));
}

/// Filter and transform are set, shown and taken away by flags; a wrong one is refused with its place. A test shows what would
/// be sent, and calls nothing.
#[tokio::test]
async fn a_filter_and_a_transform_are_set_and_tested() {
    let scene = Scene::start(|_| Answer::OK).await;
    let (url, secret) = (scene.receiver.url(), scene.secret("receiver"));
    let filter = "data.total > 100";
    let create = ["subscription", "create", "billing", "--url", &url, "--secret", &secret, "--filter", filter];
    let made = scene.line(&[&create[..], &["--transform", "{'cents': data.total * 100}"]].concat()).await;
    assert_eq!((&made["filter"], &made["transform"]), (&json!(filter), &json!("{'cents': data.total * 100}")));
    let wrong = scene.operator().answer(&["subscription", "update", "billing", "--filter", "total > 100"]).await;
    let text = String::from_utf8_lossy(&wrong.stderr);
    assert!(text.contains("filter: 1:1: unknown name total"), "{text}");

    let event = scene.file("event.json", r#"{"type":"order.paid","workflowId":"order-42","data":{"total":120}}"#);
    let tested = scene.line(&["subscription", "test", "billing", "--file", &event]).await;
    assert_eq!((&tested["matched"], &tested["sent"]), (&json!(true), &json!(false)));
    assert_eq!(tested["data"], json!({ "cents": 12000 }));
    assert_eq!((&tested["request"]["method"], &tested["request"]["target"]), (&json!("POST"), &json!(url)));
    let headers = tested["request"]["headers"].as_array().unwrap();
    assert!(headers.contains(&json!(["weft-workflow-id", "order-42"])), "{headers:?}");
    assert!(headers.iter().any(|header| header[0] == "webhook-signature"), "{headers:?}");
    let body: Value = serde_json::from_str(tested["request"]["body"].as_str().unwrap()).unwrap();
    assert_eq!((&body["data"], &body["workflowId"]), (&json!({ "cents": 12000 }), &json!("order-42")));

    let small = scene.file("small.json", r#"{"type":"order.paid","data":{"total":1}}"#);
    let output = scene.operator().answer(&["subscription", "test", "billing", "--file", &small]).await;
    let answer: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!((output.status.code(), &answer["mismatch"]), (Some(1), &json!("its filter is false")));
    let plain = scene.line(&["subscription", "update", "billing", "--filter", "", "--transform", ""]).await;
    assert_eq!((&plain["filter"], &plain["transform"]), (&Value::Null, &Value::Null));
}

/// A source is made by flags, sent to, its secret rotated, and removed; a file does the same.
#[tokio::test]
async fn a_source_is_managed_on_a_running_mesh() {
    let scene = Scene::start(|_| Answer::OK).await;
    let secret = scene.secret("sender");
    let made = scene.line(&["source", "create", "store", "--secret", &secret, "--reason", "opened"]).await;
    assert_eq!((&made["name"], &made["verify"]["scheme"]), (&json!("store"), &json!("standard")));
    let accepted = async |id: String| {
        let send = ["event", "send", "--source", "store", "--workflow", "w", "--type", "a", "--id", &id];
        scene.operator().code(&send).await == Some(0)
    };
    // A change is live at every gateway within a second.
    assert!(eventually(PATIENCE, async || accepted("evt_1".into()).await).await);
    let other = scene.file("other.secret", &Wiring::new().sender_secret);
    let updated = scene.line(&["source", "update", "store", "--secret", &format!("file:{other}")]).await;
    assert_eq!(updated["verify"]["secrets"], 1);
    assert!(eventually(PATIENCE, async || !accepted("evt_2".into()).await).await, "the old secret is gone");

    let file = scene.file(
        "sources.toml",
        &format!("[[source]]\nname = \"mill\"\nverify = {{ scheme = \"github\", secrets = [\"{secret}\"] }}\n"),
    );
    let mill = scene.line(&["source", "create", "-f", &file]).await;
    assert_eq!((&mill["name"], &mill["onIdReuse"]), (&json!("mill"), &json!("receipt")));
    let names: Vec<_> = scene.lines(&["source", "list"]).await.iter().map(|source| source["name"].clone()).collect();
    assert_eq!(names, ["mill", SOURCE, "store"]);
    assert_eq!(scene.operator().code(&["source", "create", "-f", &file]).await, Some(1), "it is there already");
    scene.line(&["source", "delete", "mill"]).await;
    assert_eq!(scene.operator().code(&["source", "get", "mill"]).await, Some(3));
}

/// The file of a mesh that runs is changed and applied without a restart and without NATS.
#[tokio::test]
async fn a_file_is_applied_to_a_running_mesh() {
    let scene = Scene::start(|_| Answer::OK).await;
    let (sender, receiver) = (scene.secret("sender"), scene.secret("receiver"));
    let text = format!(
        "[[source]]\nname = \"{SOURCE}\"\nverify = {{ scheme = \"standard\", secrets = [\"{sender}\"] }}\n\
         [[subscription]]\nname = \"{SUBSCRIPTION}\"\n\
         destination = {{ type = \"http\", url = \"{}\", secret = \"{receiver}\" }}\n",
        scene.receiver.url()
    );
    let file = scene.file("wanted.toml", &text);
    let dry = scene.line(&["apply", "-f", &file, "--dry-run"]).await;
    assert_eq!((&dry["name"], &dry["action"]), (&json!(SUBSCRIPTION), &json!("created")));
    assert!(scene.lines(&["subscription", "list"]).await.is_empty());
    assert_eq!(scene.line(&["apply", "-f", &file, "--reason", "first"]).await, dry);
    scene.send(SOURCE, "order-1", "evt_1").await;
    assert!(scene.receiver.until(PATIENCE, |arrivals| !arrivals.is_empty()).await);

    let slower = scene.file("wanted.toml", &text.replace("[[subscription]]", "[[subscription]]\ntimeout = \"30s\""));
    let changed = scene.line(&["apply", "-f", &slower]).await;
    assert_eq!(changed["diff"], json!(["- timeout = \"15s\"", "+ timeout = \"30s\""]));
    assert!(scene.lines(&["apply", "-f", &slower]).await.is_empty(), "the same again changes nothing");

    let empty = scene.file("empty.toml", "");
    assert!(scene.lines(&["apply", "-f", &empty]).await.is_empty(), "nothing goes without --prune");
    let gone = scene.lines(&["apply", "-f", &empty, "--prune", "-y"]).await;
    let told: Vec<_> = gone.iter().map(|change| (change["name"].as_str().unwrap(), &change["action"])).collect();
    assert_eq!(told, [(SOURCE, &json!("deleted")), (SUBSCRIPTION, &json!("deleted"))]);
    let broken = scene.file("broken.toml", "[[source]]\nname = \"x\"\n");
    assert_eq!(scene.operator().code(&["apply", "-f", &broken]).await, Some(2));
}

/// A key opens what its scopes say from the moment it is shown, and nothing once it is revoked.
#[tokio::test]
async fn a_key_is_made_used_and_revoked() {
    let scene = Scene::start(|_| Answer::OK).await;
    let create = ["key", "create", "ci", "--scope", "read", "--workflow-prefix", "order-", "--expires", "30d"];
    let made = scene.line(&create).await;
    let (id, key) = (made["id"].as_str().unwrap(), made["key"].as_str().unwrap());
    assert!(key.starts_with(&format!("weft_{id}_")), "{made}");
    assert_eq!((&made["scopes"], &made["workflowPrefixes"]), (&json!(["read"]), &json!(["order-"])));

    let client = reqwest::Client::new();
    let url = format!("{}/api/v1/webhooks/events", scene.up.endpoints.get("gateway").unwrap());
    let status = async || client.get(&url).bearer_auth(key).send().await.unwrap().status().as_u16();
    assert!(eventually(PATIENCE, async || status().await == 200).await);
    let listed = scene.line(&["key", "list"]).await;
    assert!(!listed.to_string().contains(key) && listed["id"] == id, "{listed}");
    let narrowed = scene.line(&["key", "update", id, "--scope", "ingest"]).await;
    assert_eq!((&narrowed["scopes"], &narrowed["name"]), (&json!(["ingest"]), &json!("ci")));
    assert!(eventually(PATIENCE, async || status().await == 403).await);
    scene.line(&["key", "delete", id, "--reason", "leaked"]).await;
    assert!(eventually(PATIENCE, async || status().await == 401).await);
    assert_eq!(scene.operator().code(&["key", "create", "ci", "--scope", "root"]).await, Some(2));
}

/// Each limit of a key can be lifted separately; contradictory flags are an error.
#[tokio::test]
async fn the_limits_of_a_key_are_lifted() {
    let scene = Scene::start(|_| Answer::OK).await;
    let create = ["key", "create", "ci", "--scope", "ingest", "--source", "shop", "--workflow-prefix", "order-"];
    let made = scene.line(&[&create[..], &["--expires", "30d"]].concat()).await;
    let id = made["id"].as_str().unwrap();
    let limits = |key: &Value| ["sources", "workflowPrefixes", "expiresAt"].map(|limit| is_set(&key[limit]));
    assert_eq!(limits(&made), [true, true, true], "{made}");
    for (flag, left) in [
        ("--all-workflows", [true, false, true]),
        ("--no-expires", [true, false, false]),
        ("--all-sources", [false, false, false]),
    ] {
        let lifted = scene.line(&["key", "update", id, flag]).await;
        assert_eq!((limits(&lifted), &lifted["scopes"]), (left, &json!(["ingest"])), "{flag}: {lifted}");
    }
    for contradiction in [
        ["--all-sources", "--source=shop"],
        ["--all-workflows", "--workflow-prefix=order-"],
        ["--no-expires", "--expires=30d"],
    ] {
        let args = [&["key", "update", id][..], &contradiction].concat();
        assert_eq!(scene.operator().code(&args).await, Some(2), "{contradiction:?}");
    }
}

/// Neither missing nor empty.
fn is_set(value: &Value) -> bool {
    !value.is_null() && value.as_array().is_none_or(|values| !values.is_empty())
}
