//! Views for operators: long workflows from their newest end, operator and reason of a pause, ages next to times, refused
//! requests of a span of time, help in groups; and exit codes.

use std::{process::Output, time::Duration};

use bytes::Bytes;
use jiff::Timestamp;
use tempfile::TempDir;
use tokio::process::Command;
use weft_services::mesh::{SOURCE, SUBSCRIPTION, Up, Wiring};
use weft_testkit::eventually;

use crate::{
    commands::Operator,
    mesh::{PATIENCE, accepted, program, provide_tls},
};

/// `weft up` with a subscription whose receiver is unreachable.
struct QuietMesh {
    up: Up,
    wiring: Wiring,
    folder: TempDir,
}

impl QuietMesh {
    async fn start() -> Self {
        provide_tls();
        let folder = tempfile::tempdir().unwrap();
        let wiring = Wiring::new();
        let up = Up::start(&program(), folder.path(), &wiring.config(Some("http://127.0.0.1:9/"))).await.unwrap();
        Self { up, wiring, folder }
    }

    async fn send(&self, workflow: &str, count: u32) {
        let sender = self.up.sender().unwrap();
        for number in 0..count {
            let id = format!("{workflow}-{number}");
            let body = Bytes::from_static(br#"{"type":"order.changed"}"#);
            accepted(&sender, &self.wiring, workflow, &id, body).await;
        }
    }

    async fn run(&self, args: &[&str]) -> Output {
        let data = self.folder.path().join("data");
        Operator::of(&self.up, &data, &self.wiring).answer(args).await
    }

    /// Standard output and standard error of a command that succeeds.
    async fn text(&self, args: &[&str]) -> (String, String) {
        let Output { status, stdout, stderr } = self.run(args).await;
        let (stdout, stderr) = (String::from_utf8(stdout).unwrap(), String::from_utf8(stderr).unwrap());
        assert_eq!(status.code(), Some(0), "{args:?}: {stderr}");
        (stdout, stderr)
    }

    /// A line about a command that does not end with this code.
    async fn unlike(&self, code: i32, args: &[&str]) -> Option<String> {
        let data = self.folder.path().join("data");
        let operator = Operator::of(&self.up, &data, &self.wiring);
        let answer = if code == 4 { operator.run(args).await } else { operator.answer(args).await };
        let Output { status, stderr, .. } = answer;
        let text = || format!("{code} expected, {status}: {args:?}: {}", String::from_utf8_lossy(&stderr));
        (status.code() != Some(code)).then(text)
    }

    async fn json(&self, args: &[&str]) -> serde_json::Value {
        serde_json::from_str(&self.text(&[args, &["-o", "json"]].concat()).await.0).unwrap()
    }
}

/// The stuck event of a busy workflow is on its newest page; what is left out is said, on either end.
#[tokio::test]
async fn a_long_workflow_is_shown_from_either_end() {
    let mut mesh = QuietMesh::start().await;
    mesh.send("order-1", 12).await;
    let numbers = |workflow: &serde_json::Value| -> Vec<u64> {
        let events = workflow["events"].as_array().unwrap();
        events.iter().map(|event| event["sequenceNumber"].as_u64().unwrap()).collect()
    };
    let get = ["workflow", "get", "order-1", "-n", "5"];
    let newest = [&get[..], &["--newest"]].concat();
    assert_eq!(numbers(&mesh.json(&get).await), [1, 2, 3, 4, 5]);
    assert_eq!(numbers(&mesh.json(&newest).await), [12, 11, 10, 9, 8]);
    let (_, stderr) = mesh.text(&get).await;
    let expected = "weft: only the first 5 are shown, there are more: those after #5; -n sets how many, --newest shows the \
                    newest\n";
    assert_eq!(stderr, expected);
    let (table, stderr) = mesh.text(&[&newest[..], &["-o", "table"]].concat()).await;
    let expected = "weft: only the newest 5 are shown, there are more: those before #8; -n sets how many\n";
    assert_eq!(stderr, expected);
    assert!(table.find("order.changed").is_some() && table.contains("Z ("), "{table}");
    for all in [&["workflow", "get", "order-1", "-n", "12"][..], &["workflow", "get", "order-1", "--newest"]] {
        assert_eq!(mesh.text(all).await.1, "", "{all:?}: that is all of it");
    }
    assert_eq!(mesh.run(&["workflow", "get", "absent", "--newest"]).await.status.code(), Some(3));
    mesh.up.stop().await.unwrap();
}

/// A lane that stands still says who stopped it, when and why, whether the lane or its subscription was stopped.
#[tokio::test]
async fn paused_lanes_say_who_paused_them_and_why() {
    let mut mesh = QuietMesh::start().await;
    mesh.send("order-1", 1).await;
    let lane = ["order-1", "--subscription", SUBSCRIPTION];
    let paused = ["workflow", "pause"].iter().chain(&lane).chain(&["--reason", "refund in dispute"]);
    mesh.text(&paused.copied().collect::<Vec<_>>()).await;
    let lanes = ["workflow", "lanes", "--state", "paused"];
    // The event may be read after the command.
    assert!(eventually(PATIENCE, async || mesh.json(&lanes).await.as_array().map(Vec::len) == Some(1)).await);
    let found = mesh.json(&lanes).await;
    let pause = &found[0]["pause"];
    assert_eq!((&found[0]["workflowId"], &pause["ofSubscription"]), (&"order-1".into(), &false.into()), "{found}");
    assert_eq!((&pause["operator"], &pause["reason"]), (&"bootstrap".into(), &"refund in dispute".into()), "{found}");
    assert!(pause["pausedAt"].is_string(), "{found}");
    let (table, _) = mesh.text(&[&lanes[..], &["-o", "table"]].concat()).await;
    assert!(table.contains("paused by bootstrap: refund in dispute") && table.contains("Z ("), "{table}");
    // A retry of it says the same.
    let retry = ["workflow", "retry", "order-1", "--subscription", SUBSCRIPTION, "-o", "table"];
    let (retried, _) = mesh.text(&retry).await;
    assert!(retried.contains("paused by bootstrap: refund in dispute"), "{retried}");

    let resume: Vec<_> = ["workflow", "resume"].iter().chain(&lane).copied().collect();
    mesh.text(&resume).await;
    assert!(eventually(PATIENCE, async || mesh.json(&lanes).await == serde_json::json!([])).await);
    mesh.text(&["subscription", "pause", SUBSCRIPTION, "--reason", "moving house"]).await;
    let stopped = async || {
        let found = mesh.json(&lanes).await;
        found[0]["pause"]["ofSubscription"] == true && found[0]["pause"]["operator"] == "bootstrap"
    };
    assert!(eventually(PATIENCE, stopped).await, "{}", mesh.json(&lanes).await);
    let (table, _) = mesh.text(&[&lanes[..], &["-o", "table"]].concat()).await;
    assert!(table.contains("subscription paused by bootstrap: moving house"), "{table}");
    mesh.up.stop().await.unwrap();
}

/// Refused requests of a span of time, listed and selected for a retry by the same filter.
#[tokio::test]
async fn refused_requests_are_selected_by_a_span_of_time() {
    let mut mesh = QuietMesh::start().await;
    let sender = mesh.up.sender().unwrap();
    // At different times, as far as an entry names its time.
    let posted = Timestamp::now();
    for number in 0..2 {
        assert!(eventually(PATIENCE, async || Timestamp::now() >= posted + number * Duration::from_millis(2)).await);
        let refused = sender.post(SOURCE, Some("order-1"), &[], Bytes::from_static(b"{}")).await.unwrap();
        assert_eq!(refused.status, 401);
    }
    let listed = async || mesh.json(&["rejected", "list"]).await.as_array().map(Vec::len) == Some(2);
    assert!(eventually(PATIENCE, listed).await);
    let all = mesh.json(&["rejected", "list"]).await;
    let (newest, oldest) = (all[0]["receivedAt"].as_str().unwrap(), all[1]["receivedAt"].as_str().unwrap());
    let count = async |args: &[&str]| {
        let found = mesh.json(&[&["rejected", "list"], args].concat()).await;
        found.as_array().unwrap().len()
    };
    assert_eq!(count(&["--until", "1h"]).await, 0);
    assert_eq!(count(&["--since", "1h", "--until", "0s"]).await, 2);
    // Received before: the time itself is not part of it.
    let time = |text: &str| text.parse::<Timestamp>().unwrap();
    assert!(time(newest) > time(oldest), "{newest} {oldest}");
    assert_eq!(count(&["--until", newest]).await, 1);
    assert_eq!(count(&["--until", oldest]).await, 0);
    let dry_run = mesh.json(&["rejected", "retry", "--until", newest, "--dry-run"]).await;
    assert_eq!(dry_run.as_array().map(Vec::len), Some(1), "{dry_run}");
    assert_eq!(mesh.run(&["rejected", "list", "--until", "yesterday"]).await.status.code(), Some(2));
    mesh.up.stop().await.unwrap();
}

/// Exit codes are the same for the same cause, regardless of the command.
#[tokio::test]
async fn one_cause_has_one_exit_code() {
    let mut mesh = QuietMesh::start().await;
    mesh.send("order-1", 1).await;
    let unknown = "00000000-0000-0000-0000-000000000000";
    let letter = format!("{SUBSCRIPTION}:{unknown}");
    let mut wrong = Vec::new();
    // Not found.
    for args in [
        &["event", "get", unknown][..],
        &["event", "get", "not-an-id"],
        &["workflow", "get", "absent"],
        &["workflow", "retry", "absent", "--subscription", SUBSCRIPTION],
        &["dlq", "get", &letter],
        &["dlq", "redrive", &letter],
        &["dlq", "discard", &letter],
        &["replay", "get", unknown],
        &["replay", "cancel", unknown],
        &["replay", "start", unknown],
        &["replay", "start", "--all", "--subscription", "absent", "--yes"],
        &["rejected", "get", "4711"],
        &["source", "get", "absent"],
        &["source", "delete", "absent", "--yes"],
        &["subscription", "get", "absent"],
        &["subscription", "pause", "absent"],
        &["subscription", "test", "absent"],
        &["key", "get", "absent"],
        &["shard", "adopt", "9", "--dry-run"],
        &["event", "send", "--source", "absent", "--type", "a"],
    ] {
        wrong.extend(mesh.unlike(3, args).await);
    }
    // Usage.
    for args in [
        &["event", "tail", "--since", "2026-11-21", "-n", "1"][..],
        &["dlq", "list", "--since", "yesterday"],
        &["dlq", "list", "--status", "opn"],
        &["dlq", "redrive"],
        &["dlq", "redrive", "--all", "--type", "a"],
        &["workflow", "lanes", "--state", "stuck"],
        &["rejected", "get", "x"],
        &["replay", "start"],
        &["source", "create", "UPPER", "--scheme", "github", "--secret", "0123456789"],
        &["subscription", "create", "s", "--url", "not a url", "--secret", "0123456789"],
        &["apply", "-f", "/nonexistent.toml"],
        &["dlq", "list", "--server", "nonsense"],
        &["event", "send", "--source", SOURCE, "--type", "a", "--gateway", "nonsense"],
    ] {
        wrong.extend(mesh.unlike(2, args).await);
    }
    // Refused, or without effect.
    for args in [
        &["dlq", "list", "--token", "wrong"][..],
        &["source", "get", SOURCE, "--token", "wrong"],
        &["dlq", "redrive", "--all", "--yes"],
        &["workflow", "resume", "order-1", "--subscription", SUBSCRIPTION],
    ] {
        wrong.extend(mesh.unlike(1, args).await);
    }
    mesh.up.stop().await.unwrap();
    // Unavailable.
    for args in [&["dlq", "list"][..], &["source", "list"], &["event", "send", "--source", SOURCE, "--type", "a"]] {
        wrong.extend(mesh.unlike(4, args).await);
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
}

/// Help needs no mesh: commands in groups, examples at the nouns.
#[tokio::test]
async fn help_is_in_groups_with_examples() {
    let help = async |args: &[&str]| {
        let output = Command::new(program()).args(args).output().await.unwrap();
        assert_eq!(output.status.code(), Some(0), "{args:?}");
        String::from_utf8(output.stdout).unwrap()
    };
    let text = help(&["--help"]).await;
    for part in ["Run:\n  up ", "Repair:\n  dlq ", "Configure:\n", "Examples:\n  weft up ", "Exit codes: 0 done"] {
        assert!(text.contains(part), "{part:?}: {text}");
    }
    assert!(!text.contains('\u{1b}'), "a pipe gets no colours: {text:?}");
    assert!(help(&["workflow", "--help"]).await.contains("weft workflow get order-42 --newest"));
    // Without a command the help is an error of usage.
    let output = Command::new(program()).output().await.unwrap();
    assert_eq!(output.status.code(), Some(2));
    assert!(String::from_utf8(output.stderr).unwrap().contains("Repair:"));
}

/// An event is found by its filters and names, and explained: what it waits for, what the receiver said, how many wait after it.
#[tokio::test]
async fn events_are_found_and_explained() {
    let mut mesh = QuietMesh::start().await;
    mesh.send("order-1", 3).await;
    let away = async || mesh.json(&["workflow", "lanes", "--state", "away"]).await[0]["waitingEvents"] == 2;
    assert!(eventually(PATIENCE, away).await, "{}", mesh.json(&["workflow", "lanes"]).await);

    let listed = mesh.json(&["event", "list", "--source", SOURCE, "--type", "order.*", "--since", "1h"]).await;
    let numbers: Vec<_> = listed.as_array().unwrap().iter().map(|event| event["sequenceNumber"].as_u64()).collect();
    assert_eq!(numbers, [Some(3), Some(2), Some(1)], "{listed}");
    assert!(listed[2]["storedAt"].is_string() && listed[2]["data"].is_null(), "{listed}");
    let retrying = mesh.json(&["event", "list", "--status", "retrying", "--subscription", SUBSCRIPTION]).await;
    assert_eq!(retrying[0]["deliveryId"], "order-1-0", "{retrying}");
    assert_eq!(mesh.json(&["event", "list", "--status", "delivered"]).await, serde_json::json!([]));
    let search = ["event", "list", "--contains", "order.changed", "-n", "2", "-o", "jsonl"];
    let (found, notice) = mesh.text(&search).await;
    assert_eq!(found.lines().count(), 2, "{found}");
    let token = notice.split("--page-token ").nth(1).and_then(|rest| rest.split(' ').next()).unwrap();
    let (rest, _) = mesh.text(&[&search[..], &["--page-token", token]].concat()).await;
    assert_eq!(rest.lines().count(), 1, "{rest}");
    let (table, _) = mesh.text(&["event", "list", "-o", "table"]).await;
    assert!(table.contains("EVENT") && table.contains("Z ("), "{table}");

    let id = listed[2]["eventId"].as_str().unwrap();
    for name in [id, &id[..8], "order-1-0"] {
        let (shown, _) = mesh.text(&["event", "get", name, "-o", "table"]).await;
        assert!(shown.contains(id), "{name}: {shown}");
        let stages = shown.split("STAGE").nth(1).unwrap_or_else(|| panic!("a waterfall: {shown}"));
        for stage in ["received", "stored", "attempt 1", "━"] {
            assert!(stages.contains(stage), "{stage}: {shown}");
        }
    }
    assert_eq!(mesh.run(&["event", "get", "order-1-9"]).await.status.code(), Some(3));
    let (page, _) = mesh.text(&["event", "explain", "order-1-0", "-o", "table"]).await;
    for part in
        ["waits for", "which is away", "receiver said", "2 events of the workflow wait", "next attempt", "to do"]
    {
        assert!(page.contains(part), "{part}: {page}");
    }
    let (page, _) = mesh.text(&["event", "explain", "order-1-2", "-o", "table"]).await;
    assert!(page.contains(&format!("#1 of its workflow ({id})")), "{page}");
    let explained = mesh.json(&["workflow", "explain", "order-1"]).await;
    assert_eq!(explained["subscriptions"][0]["waitingEvents"], 2, "{explained}");
    assert_eq!(mesh.run(&["workflow", "explain", "absent"]).await.status.code(), Some(3));
    mesh.up.stop().await.unwrap();
}
