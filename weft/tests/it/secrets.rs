//! Secrets never appear: not in a log of any level, a metric, an answer, or a file that is not meant for them.

use std::{
    fs,
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
    process::Output,
};

use bytes::Bytes;
use tokio::process::Command;
use weft_services::{
    mesh::{SOURCE, Up, Wiring},
    process::{Endpoints, Process},
    receiver::{Answer, Receiver},
    sender::{Sender, Signing},
};
use weft_testkit::eventually;

use crate::mesh::{PATIENCE, accepted, program, provide_tls};

/// The admin's token, as the configuration gives it.
const TOKEN: &str = "weft_bootstrap_5tR0ngAdm1nT0kenThatNobodySees";
/// An API key that no mesh has.
const KEY: &str = "weft_ab12cd34_0123456789abcdefghijklmnopqrstuv";
/// A password that a sender puts where none belongs.
const PASSWORD: &str = "a-senders-hunter2-password";

/// Texts that must not appear, with their names.
struct Secrets(Vec<(&'static str, String)>);

impl Secrets {
    /// Names of the secrets in these bytes.
    fn in_bytes(&self, bytes: &[u8]) -> Vec<&'static str> {
        let holds = |secret: &str| bytes.windows(secret.len()).any(|window| window == secret.as_bytes());
        self.0.iter().filter(|(_, secret)| holds(secret)).map(|(name, _)| *name).collect()
    }

    #[track_caller]
    fn assert_not_in(&self, place: &str, bytes: &[u8]) {
        assert_eq!(self.in_bytes(bytes), Vec::<&str>::new(), "in {place}");
    }
}

/// Every regular file below a folder.
fn files(folder: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    // The server may replace a file meanwhile.
    for entry in fs::read_dir(folder).into_iter().flatten() {
        let path = entry.unwrap().path();
        // Links lead nowhere that is not looked at, and sockets hold nothing.
        let Ok(kind) = fs::symlink_metadata(&path).map(|metadata| metadata.file_type()) else { continue };
        if kind.is_dir() {
            found.extend(files(&path));
        } else if kind.is_file() {
            found.push(path);
        }
    }
    found
}

/// The files that are meant to hold secrets, below the data folder. The catalog's store is none: it is sealed.
const MEANT: [&str; 7] = [
    "client.toml",
    "master.key",
    "admin/token",
    "nats/tail.url",
    "nats/context/tail.json",
    "nats/users.json",
    "nats/nats.conf",
];

/// Whether a file is meant to hold secrets; such a file is its owner's alone.
fn is_meant_for_secrets(path: &Path) -> bool {
    let text = path.display().to_string();
    let meant = MEANT.iter().any(|meant| text.contains(meant));
    let mode = fs::metadata(path).unwrap().permissions().mode();
    assert!(!meant || mode & 0o077 == 0, "{text} has mode {mode:o}");
    meant
}

/// The mesh, its log at the finest level, with secrets wherever there can be one.
async fn start(folder: &Path, config: &str) -> (Process, Endpoints) {
    let admin = format!("[admin]\nlisten = \"127.0.0.1:0\"\ntoken = \"{TOKEN}\"\n");
    let mut spec = Up::spec(&program(), folder, config).unwrap();
    let file = folder.join("weft.toml");
    let text = fs::read_to_string(&file).unwrap().replace("[admin]\nlisten = \"127.0.0.1:0\"\n", &admin);
    assert!(text.contains(TOKEN));
    fs::write(&file, text).unwrap();
    spec.env.extend([("WEFT_LOG".into(), "trace".into()), ("RUST_LOG".into(), "trace".into())]);
    let mut process = Process::start(&spec).unwrap();
    let endpoints = process.ready().await.unwrap();
    (process, endpoints)
}

/// The passwords of the embedded server's users.
fn nats_passwords(data: &Path) -> Vec<String> {
    let users = files(&data.join("nats")).into_iter().find(|path| path.ends_with("users.json")).unwrap();
    let users: serde_json::Value = serde_json::from_slice(&fs::read(users).unwrap()).unwrap();
    users.as_object().unwrap().values().map(|password| password.as_str().unwrap().to_owned()).collect()
}

/// Requests that are refused in every way that is known to the gateway, with secrets wherever a sender could put one.
/// Returns the answers.
async fn provoke(gateway: &str, wiring: &Wiring) -> Vec<u8> {
    let client = reqwest::Client::new();
    let secret = wiring.sender_secret.trim_start_matches("whsec_");
    let webhook = format!("{gateway}/api/v1/webhooks/{SOURCE}");
    let body = format!(r#"{{"type":"t","leak":"{secret}"}}"#);
    let post = |url: String| client.post(url).body(body.clone());
    let signed = wiring.signing().headers("evt_bad", 1, None, body.as_bytes()).unwrap();
    let stale = signed.iter().fold(post(format!("{webhook}/w")), |request, (name, value)| request.header(name, value));
    let requests = [
        post(webhook.clone()),
        post(format!("{webhook}/{secret}?token={PASSWORD}")).header("x-api-key", KEY),
        post(webhook.clone()).header("authorization", format!("Bearer {TOKEN}")).header("cookie", PASSWORD),
        post(webhook.clone()).header("webhook-signature", secret).header("x-other", KEY).header("webhook-id", "1"),
        post(webhook.clone()).header("content-encoding", "gzip").bearer_auth(TOKEN),
        post(webhook.clone()).basic_auth("user", Some(PASSWORD)),
        stale,
        post(format!("{gateway}/api/v1/webhooks/unknown?key={KEY}")).header("x-api-key", KEY),
        client.get(format!("{gateway}/api/v1/webhooks/events")).header("x-api-key", KEY),
        client.get(format!("{gateway}/api/v1/webhooks/events?since=x")).header("x-api-key", TOKEN),
        post(format!("{gateway}/api/v1/events")).header("x-api-key", KEY),
        post(format!("{gateway}/api/v1/events")).header("content-type", "application/json").bearer_auth(TOKEN),
        client.get(format!("{gateway}/api/v1/events/x")).bearer_auth(TOKEN),
        client.get(format!("{gateway}/api/v1/{KEY}")),
    ];
    let mut answers = Vec::new();
    for request in requests {
        let response = request.send().await.unwrap();
        assert!(response.status().is_client_error(), "{response:?}");
        answers.extend(format!("{:?}", response.headers()).into_bytes());
        answers.extend(response.bytes().await.unwrap());
    }
    answers
}

async fn weft(data: &Path, args: &[&str]) -> Output {
    Command::new(program()).args(args).env("WEFT_DATA", data).kill_on_drop(true).output().await.unwrap()
}

#[tokio::test]
async fn debug_logs_hold_no_secret() {
    provide_tls();
    let folder = tempfile::tempdir().unwrap();
    let data = folder.path().join("data");
    let wiring = Wiring::new();
    // It takes one event and refuses the other for good.
    let rule = |arrival: &weft_services::receiver::Arrival| {
        if arrival.event_type == "order.bad" { Answer::now(422) } else { Answer::OK }
    };
    let receiver = Receiver::start(([127, 0, 0, 1], 0).into(), &wiring.receiver_secret, rule).await.unwrap();
    let (mut process, endpoints) = start(folder.path(), &wiring.config(Some(&receiver.url()))).await;
    let gateway = endpoints.get("gateway").unwrap();

    let sender = Sender::new(gateway).unwrap();
    for (id, event_type) in [("evt_1", "order.good"), ("evt_2", "order.bad")] {
        let body = Bytes::from(format!(r#"{{"type":"{event_type}"}}"#));
        accepted(&sender, &wiring, "w", id, body).await;
    }
    let forged = Signing { secret: weft_services::mesh::secret(), ..wiring.signing() };
    let refused = sender.send(SOURCE, Some("w"), &forged, "evt_3", None, Bytes::from_static(b"{}")).await.unwrap();
    assert_eq!(refused.status, 401);
    let answers = provoke(gateway, &wiring).await;
    let dead = async || !weft(&data, &["dlq", "list"]).await.stdout.is_empty();
    assert!(eventually(PATIENCE, dead).await);
    let commands = [
        &["rejected", "list", "-o", "json"][..],
        &["rejected", "retry", "--all"],
        &["rejected", "get", "1"],
        &["dlq", "list", "-o", "json"],
        &["dlq", "list", "--token", "wrong"],
        &["event", "tail", "--from-beginning", "--limit", "2"],
    ];
    let mut printed = Vec::new();
    for command in commands {
        let output = weft(&data, command).await;
        printed.extend([output.stdout, output.stderr].concat());
    }
    let metrics = reqwest::get(format!("{}/metrics", endpoints.get("ops").unwrap())).await.unwrap();
    let metrics = metrics.bytes().await.unwrap();
    assert!(String::from_utf8_lossy(&metrics).contains("weft_gateway_rejected_kept_total"));

    let bare = |secret: &str| secret.trim_start_matches("whsec_").trim_end_matches('=').to_owned();
    let mut secrets = Secrets(vec![
        ("the source's secret", bare(&wiring.sender_secret)),
        ("the destination's secret", bare(&wiring.receiver_secret)),
        ("the admin's token", TOKEN.into()),
        ("an API key", KEY.into()),
        ("a sender's password", PASSWORD.into()),
    ]);
    secrets.0.extend(nats_passwords(&data).into_iter().map(|password| ("a NATS password", password)));
    assert!(secrets.0.len() >= 9);
    secrets.assert_not_in("what was announced", format!("{endpoints:?}").as_bytes());
    secrets.assert_not_in("answers", &answers);
    secrets.assert_not_in("the commands' output", &printed);
    secrets.assert_not_in("metrics", &metrics);
    process.stop().await.unwrap();

    let log = fs::read(folder.path().join("weft.log")).unwrap();
    let text = String::from_utf8_lossy(&log);
    assert!(text.contains("DEBUG") && text.contains("async_nats"), "the log is at its finest level");
    for (name, secret) in &secrets.0 {
        if let Some(line) = text.lines().find(|line| line.contains(secret.as_str())) {
            panic!("{name} in the log: {line}");
        }
    }
    let mut looked_at = 0;
    for path in files(&data).iter().filter(|path| !is_meant_for_secrets(path)) {
        secrets.assert_not_in(&path.display().to_string(), &fs::read(path).unwrap());
        looked_at += 1;
    }
    assert!(looked_at >= 5, "streams, their indexes, and the projections");
}

/// A wrong value is reported by its key, never by its text, for all keys that may hold a secret.
#[tokio::test]
async fn configuration_errors_hold_no_secret() {
    let folder = tempfile::tempdir().unwrap();
    let source = |verify: &str| format!("[[source]]\nname = \"shop\"\nverify = {verify}\n");
    let subscription = |destination: &str| {
        format!("[[subscription]]\nname = \"billing\"\ndestination = {{ type = \"http\", {destination} }}\n")
    };
    let configs = [
        source(&format!(r#"{{ scheme = "standard", secrets = "{PASSWORD}" }}"#)),
        source(&format!(r#"{{ scheme = "standard", secrets = ["{PASSWORD}"] }}"#)),
        source(&format!(r#"{{ scheme = "standard", secrets = [["{PASSWORD}"]] }}"#)),
        source(&format!(r#"{{ scheme = "standard", secrets = ["whsec_{PASSWORD}!"] }}"#)),
        source(&format!(r#"{{ scheme = "github", secret = "{PASSWORD}" }}"#)),
        subscription(&format!(r#"url = "https://user:{PASSWORD}@127.0.0.1/", secret = "x""#)),
        subscription(&format!(r#"url = "https://a.example/", secret = "{PASSWORD}""#)),
        subscription(&format!(r#"url = "https://a.example/", secret = {{ text = "{PASSWORD}" }}"#)),
        format!("[admin]\ntoken = [\"{PASSWORD}\"]\n"),
        format!("[admin]\ntoken = \"{PASSWORD}\n"),
        format!("[nats]\npassword = \"{PASSWORD}\"\nurl = \"nats://127.0.0.1:1\"\n"),
        format!("[nats]\nurl = \"nats://user:{PASSWORD}@127.0.0.1:port\"\n"),
        format!("[nats]\ncreds = \"{PASSWORD}\"\nurl = \"nats://127.0.0.1:1\"\n"),
    ];
    let secrets = Secrets(vec![("the secret", PASSWORD.into())]);
    for config in configs {
        let file = folder.path().join("weft.toml");
        let ports = ["gateway", "ops"].map(|section| format!("[{section}]\nlisten = \"127.0.0.1:0\"\n")).concat();
        let admin = if config.contains("[admin]") { "" } else { "[admin]\nlisten = \"127.0.0.1:0\"\n" };
        fs::write(&file, format!("{config}{ports}{admin}")).unwrap();
        let mut command = Command::new(program());
        command.arg("up").arg("--config").arg(&file).current_dir(folder.path());
        command.env("WEFT_LOG", "trace").env_remove("RUST_LOG").kill_on_drop(true);
        let ended = tokio::time::timeout(PATIENCE, command.output()).await;
        let output = ended.unwrap_or_else(|_| panic!("it starts with {config}")).unwrap();
        assert_eq!(output.status.code(), Some(1), "{config}");
        secrets.assert_not_in(&config, &[output.stdout, output.stderr].concat());
    }
}
