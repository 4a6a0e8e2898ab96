//! Output of the command in every format, as snapshots, and on a narrow terminal: what scripts and people rely on. What
//! differs from run to run is replaced.

use std::{path::Path, process::Stdio};

use bytes::Bytes;
use regex::Regex;
use tokio::process::Command;
use weft_services::{
    mesh::{SUBSCRIPTION, Up, Wiring},
    receiver::{Answer, Arrival, Receiver},
};
use weft_testkit::eventually;

use crate::{
    commands::Operator,
    mesh::{PATIENCE, accepted, program, provide_tls},
};

/// Ids, times and ages replaced by their names.
fn stable(text: &str) -> String {
    let mut text = text.to_owned();
    for (pattern, name) in [
        (r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d+)?Z", "[time]"),
        (r"\((now|\d+[smhd] ago|in \d+[smhd])\)", "([age])"),
        // Of version 7: by the clock.
        (r"[0-9a-f]{8}-[0-9a-f]{4}-7[0-9a-f]{3}-[0-9a-f]{4}-[0-9a-f]{12}", "[uuid]"),
        (r"127\.0\.0\.1:\d+", "[address]"),
        (r"[─]+", "─"),
        (r" +\n", "\n"),
        (r"(\S)  +", "$1  "),
    ] {
        text = Regex::new(pattern).unwrap().replace_all(&text, name).into_owned();
    }
    text
}

/// Output and exit code of a command.
async fn shown(operator: &Operator<'_>, args: &[&str]) -> String {
    let output = operator.answer(args).await;
    let text = |bytes: &[u8]| String::from_utf8(bytes.to_vec()).unwrap();
    let (out, err) = (text(&output.stdout), text(&output.stderr));
    stable(&format!("$ weft {}\n{out}{err}exit {}\n", args.join(" "), output.status.code().unwrap()))
}

/// Output of a command on a terminal of this width.
async fn on_terminal(data: &Path, columns: u32, args: &str) -> String {
    let line = format!("stty cols {columns}; {} {args}", program().display());
    let mut command = Command::new("script");
    command.args(["-q", "-e", "-c", &line, "/dev/null"]).env("WEFT_DATA", data).env("TERM", "xterm");
    let output = command.stdin(Stdio::null()).output().await.unwrap();
    String::from_utf8(output.stdout).unwrap().replace('\r', "")
}

/// A mesh with one dead letter, which failed again after a redrive, in every format; then without a server.
#[tokio::test]
async fn every_format_prints_what_it_always_printed() {
    provide_tls();
    let folder = tempfile::tempdir().unwrap();
    let wiring = Wiring::new();
    let rule = |_: &Arrival| Answer::now(422);
    let receiver = Receiver::start(([127, 0, 0, 1], 0).into(), &wiring.receiver_secret, rule).await.unwrap();
    let mut up = Up::start(&program(), folder.path(), &wiring.config(Some(&receiver.url()))).await.unwrap();
    let data = folder.path().join("data");
    let operator = Operator::of(&up, &data, &wiring);
    let sender = up.sender().unwrap();
    // Wide characters; control and bidirectional ones are refused in a type.
    let body = Bytes::from("{\"type\": \"注文.bad\", \"n\": 1.10}");
    accepted(&sender, &wiring, "order-1", "evt_1", body).await;
    assert!(eventually(PATIENCE, async || operator.lines(&["dlq", "list"]).await.len() == 1).await);
    let failed = operator.code(&["dlq", "redrive", "--all", "--yes", "--reason", "database is back"]).await;
    assert_eq!(failed, Some(1), "it fails again");

    for format in ["table", "json", "jsonl", "yaml"] {
        let mut text = String::new();
        for args in [
            &["dlq", "list"][..],
            &["dlq", "stats"],
            &["audit", "list", "--action", "Redrive*"],
            &["audit", "list", "--operator", "7h3k2m9q"],
            &["source", "list"],
        ] {
            text.push_str(&shown(&operator, &[args, &["-o", format]].concat()).await);
        }
        insta::assert_snapshot!(format!("output_{format}"), text);
    }
    let health = shown(&operator, &["check", "health"]).await;
    insta::assert_snapshot!("health", health);
    let critical = operator.run(&["check", "health", "--critical-dead-letters", "1"]).await;
    assert_eq!(critical.status.code(), Some(2));
    let wrong = operator.run(&["check", "health", "--token", "wrong"]).await;
    assert_eq!(wrong.status.code(), Some(3), "what cannot be found out is unknown");

    let narrow = on_terminal(&data, 60, "dlq list").await;
    let id = format!("{SUBSCRIPTION}:adc8ac26-5f51-590c-a093-d32f0b5c22c7");
    assert!(narrow.lines().any(|line| line.contains(&id)), "an id is never wrapped: {narrow}");
    assert!(narrow.contains("-o json has all)"), "{narrow}");

    // A token that is not known, and no server: one line each, with what to do.
    let wrong = shown(&operator, &["dlq", "list", "--token", "wrong"]).await;
    insta::assert_snapshot!("wrong_token", wrong);
    up.stop().await.unwrap();
    let down = operator.run(&["audit", "list"]).await;
    assert_eq!(down.status.code(), Some(4));
    let stderr = String::from_utf8(down.stderr).unwrap();
    assert!(stderr.contains("is `weft up` running?") && stderr.lines().count() == 1, "{stderr}");
    assert_eq!(operator.run(&["check", "health"]).await.status.code(), Some(2), "nothing is delivered: critical");
}

async fn output(args: &[&str], variables: &[(&str, &str)]) -> (Option<i32>, String) {
    let folder = tempfile::tempdir().unwrap();
    let mut command = Command::new(program());
    command.args(args).current_dir(folder.path()).envs(variables.iter().copied());
    let output = command.output().await.unwrap();
    (output.status.code(), String::from_utf8(output.stdout).unwrap())
}

/// Completion scripts know the nouns, their verbs and the options; manual pages exist for each command.
#[tokio::test]
async fn shells_and_man_know_every_command() {
    for shell in ["bash", "zsh", "fish"] {
        let (code, script) = output(&["completion", shell], &[]).await;
        assert_eq!(code, Some(0), "{shell}");
        assert!(["redrive", "audit", "dry-run"].iter().all(|word| script.contains(word)), "{shell}");
    }
    let folder = tempfile::tempdir().unwrap();
    let (code, _) = output(&["man", "--dir", folder.path().to_str().unwrap()], &[]).await;
    let page = std::fs::read_to_string(folder.path().join("weft-dlq-redrive.1")).unwrap();
    assert!(code == Some(0) && page.contains("Deliver dead letters again"), "{page}");
    let (code, page) = output(&["man"], &[]).await;
    assert!(code == Some(0) && page.contains(".TH weft 1"), "{page}");
}

/// A key's value comes from the environment where it is set there, and no secret is printed.
#[tokio::test]
async fn the_effective_configuration_says_where_its_values_come_from() {
    let variables = [("WEFT_GATEWAY__LISTEN", "127.0.0.1:1"), ("WEFT_ADMIN__TOKEN", "hush-hush-hush-hush-hush")];
    let (code, text) = output(&["config", "show", "--set", "-o", "jsonl"], &variables).await;
    assert_eq!(code, Some(0));
    let lines: Vec<_> = text.lines().collect();
    let expected = [
        r#"{"key":"gateway.listen","value":"127.0.0.1:1","from":"WEFT_GATEWAY__LISTEN"}"#,
        r#"{"key":"admin.token","value":"[secret]","from":"WEFT_ADMIN__TOKEN"}"#,
    ];
    assert_eq!(lines, expected);
}
