//! Output of commands with payloads chosen by senders, and their end when the output is closed.

use std::{
    path::{Path, PathBuf},
    process::Stdio,
};

use bytes::Bytes;
use tempfile::TempDir;
use tokio::process::Command;
use weft_services::{
    mesh::{SOURCE, SUBSCRIPTION, Up, Wiring},
    receiver::{Answer, Receiver},
};
use weft_testkit::eventually;

use crate::{
    commands::Operator,
    mesh::{PATIENCE, accepted, program, provide_tls},
};

/// Numbers that no 64-bit type holds, escapes that no text holds, several lines, and a depth beyond recursion limits.
fn awkward() -> String {
    let depth = 400;
    format!(
        "{{\n  \"type\": \"order.bad\",\r\n  \"n\": [9007199254740993, 12345678901234567890123, 1e400, -0, 1.10],\n  \
         \"s\": [\"a\\u0000b\", \"\\ud800\", \"x  y\"],\n  \"c\": \"\u{9b}31m\u{7f}\u{202e}\u{200b}\",\n  \"deep\": {}1{}\n}}",
        "[".repeat(depth),
        "]".repeat(depth)
    )
}

/// `weft up` with a receiver that refuses each event for good.
struct RefusingMesh {
    up: Up,
    wiring: Wiring,
    data: PathBuf,
    _receiver: Receiver,
    _folder: TempDir,
}

impl RefusingMesh {
    async fn start() -> Self {
        provide_tls();
        let folder = tempfile::tempdir().unwrap();
        let wiring = Wiring::new();
        let rule = |_: &weft_services::receiver::Arrival| Answer::now(422);
        let receiver = Receiver::start(([127, 0, 0, 1], 0).into(), &wiring.receiver_secret, rule).await.unwrap();
        let up = Up::start(&program(), folder.path(), &wiring.config(Some(&receiver.url()))).await.unwrap();
        let data = folder.path().join("data");
        Self { up, wiring, data, _receiver: receiver, _folder: folder }
    }

    fn operator(&self) -> Operator<'_> {
        Operator::of(&self.up, &self.data, &self.wiring)
    }
}

async fn text(operator: &Operator<'_>, args: &[&str]) -> String {
    let output = operator.answer(args).await;
    assert_eq!(output.status.code(), Some(0), "{args:?}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

/// Runs a shell command line with the operator's environment; its exit code and stderr.
async fn shell(data: &Path, line: &str) -> (Option<i32>, String) {
    let mut command = Command::new("bash");
    command.args(["-c", &format!("set -o pipefail; {line}")]).env("WEFT_DATA", data).env("WEFT", program());
    let output = command.stdin(Stdio::null()).output().await.unwrap();
    (output.status.code(), String::from_utf8(output.stderr).unwrap())
}

/// Output of a command on a terminal.
async fn terminal(data: &Path, args: &str) -> String {
    let line = format!("{} {args}", program().display());
    let mut command = Command::new("script");
    command.args(["-q", "-e", "-c", &line, "/dev/null"]).env("WEFT_DATA", data).env("TERM", "xterm");
    let output = command.stdin(Stdio::null()).output().await.unwrap();
    let text = String::from_utf8(output.stdout).unwrap();
    assert!(output.status.success(), "{args}: {text}");
    text
}

/// Every format prints what was sent, unchanged; on a terminal's formats nothing of it controls the terminal.
#[tokio::test]
async fn payloads_are_printed_as_they_were_sent() {
    let mut mesh = RefusingMesh::start().await;
    let (operator, data) = (mesh.operator(), mesh.data.clone());
    let sender = mesh.up.sender().unwrap();
    for id in ["evt_1", "evt_2", "evt_3"] {
        accepted(&sender, &mesh.wiring, "order-1", id, Bytes::from(awkward())).await;
    }
    let event = "adc8ac26-5f51-590c-a093-d32f0b5c22c7";
    let letter = format!("{SUBSCRIPTION}:{event}");
    assert!(eventually(PATIENCE, async || operator.lines(&["dlq", "list"]).await.len() == 3).await);

    let one_line = r#""n":[9007199254740993,12345678901234567890123,1e400,-0,1.10],"s":["a\u0000b","\ud800","x  y"]"#;
    for (args, lines) in [
        (vec!["event", "get", event], 1),
        (vec!["event", "tail", "--from-beginning", "-n", "2"], 2),
        (vec!["workflow", "get", "order-1"], 1),
        (vec!["dlq", "get", &letter], 1),
    ] {
        let jsonl = text(&operator, &[&args[..], &["-o", "jsonl"]].concat()).await;
        assert_eq!(jsonl.lines().count(), lines, "{args:?}");
        assert!(jsonl.lines().all(|line| line.contains(one_line) && line.contains("\u{202e}")), "{args:?}: {jsonl}");
        let yaml = text(&operator, &[&args[..], &["-o", "yaml"]].concat()).await;
        for spelling in ["- 9007199254740993\n", "- 1e400\n", "- -0\n", "- 1.10\n", r#"- "a\u0000b""#, r#"- "\ud800""#]
        {
            assert!(yaml.contains(spelling), "{args:?} {spelling:?}: {yaml}");
        }
        let json = text(&operator, &[&args[..], &["-o", "json"]].concat()).await;
        assert!(json.contains("12345678901234567890123"), "{args:?}");
        let table = text(&operator, &[&args[..], &["-o", "table"]].concat()).await;
        assert!(!table.chars().any(|char| char.is_control() && char != '\n'), "{args:?}: {table:?}");
        assert!(!table.contains(['\u{202e}', '\u{200b}']), "{args:?}: {table:?}");
    }

    // On a terminal every format is harmless, and JSON keeps its value.
    for format in ["table", "json", "jsonl", "yaml"] {
        for args in ["event tail --from-beginning -n 1", &format!("event get {event}"), "workflow get order-1"] {
            let shown = terminal(&data, &format!("{args} -o {format}")).await;
            let harmless = |char: char| !char.is_control() || matches!(char, '\r' | '\n' | '\t');
            assert!(
                shown.chars().all(harmless) && !shown.contains(['\u{202e}', '\u{200b}']),
                "{args} -o {format}: {shown:?}"
            );
            let listed = args.starts_with("event tail") || args.starts_with("workflow");
            let has_data = format != "table" || !listed;
            assert!(!has_data || shown.contains("\\u202e"), "{args} -o {format}: {shown:?}");
        }
    }

    // `head` ends after one line; the command has more to write.
    for line in [
        "\"$WEFT\" event tail --from-beginning -o jsonl | head -n 1",
        "\"$WEFT\" event tail --from-beginning -o yaml | head -n 1",
        "\"$WEFT\" dlq list -o jsonl | head -c 1",
        "\"$WEFT\" dlq list -o json | true",
        "\"$WEFT\" sign --secret whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw --body /dev/null | true",
    ] {
        let ended = tokio::time::timeout(PATIENCE, shell(&data, line)).await;
        assert_eq!(ended.unwrap_or_else(|_| panic!("{line} does not end")), (Some(0), String::new()), "{line}");
    }
    let (code, _) = shell(&data, "\"$WEFT\" dlq list --status opn 2>&1 | true").await;
    assert_eq!(code, Some(2), "a closed stderr changes nothing");
    // A command that fails still says so.
    let (code, _) = shell(&data, "\"$WEFT\" dlq redrive --all -o json | true").await;
    assert_eq!(code, Some(1), "each failed again");
    let (code, stderr) = shell(&data, "\"$WEFT\" dlq list > /dev/full").await;
    assert!(code == Some(1) && stderr.contains("stdout"), "{code:?} {stderr}");
    mesh.up.stop().await.unwrap();
}

/// A list that was cut says so, and a workflow is shown completely for any size of its events.
#[tokio::test]
async fn lists_that_are_cut_say_so() {
    let mut mesh = RefusingMesh::start().await;
    let operator = mesh.operator();
    let sender = mesh.up.sender().unwrap();
    // Pages of the services end at 3 MiB.
    let body = format!(r#"{{"type":"order.paid","data":"{}"}}"#, "x".repeat(900_000));
    for number in 0..6 {
        let id = format!("evt_{number}");
        accepted(&sender, &mesh.wiring, "order-1", &id, Bytes::from(body.clone())).await;
    }
    assert!(eventually(PATIENCE, async || operator.lines(&["dlq", "list"]).await.len() == 6).await);
    let refused = sender.post(SOURCE, Some("order-1"), &[], Bytes::from_static(b"{}")).await.unwrap();
    let again = sender.post(SOURCE, Some("order-1"), &[], Bytes::from_static(b"{}")).await.unwrap();
    assert_eq!((refused.status, again.status), (401, 401));
    assert!(eventually(PATIENCE, async || operator.lines(&["rejected", "list"]).await.len() == 2).await);

    let whole = operator.answer(&["workflow", "get", "order-1"]).await;
    let workflow: serde_json::Value = serde_json::from_slice(&whole.stdout).unwrap();
    assert_eq!(workflow["events"].as_array().map(Vec::len), Some(6));
    assert!(whole.stderr.is_empty(), "{:?}", String::from_utf8_lossy(&whole.stderr));

    for (args, shown) in [
        (["workflow", "get", "order-1", "-n", "5"].as_slice(), 1),
        (&["dlq", "list", "-n", "5"], 5),
        (&["dlq", "list", "-n", "0"], 0),
        (&["rejected", "list", "-n", "1"], 1),
    ] {
        let output = operator.answer(args).await;
        let stderr = String::from_utf8(output.stderr).unwrap();
        assert!(stderr.contains("there are more") && stderr.lines().count() == 1, "{args:?}: {stderr}");
        assert_eq!(String::from_utf8(output.stdout).unwrap().lines().count(), shown, "{args:?}");
        assert_eq!(output.status.code(), Some(0));
    }
    for args in [["dlq", "list", "-n", "6"].as_slice(), &["workflow", "get", "order-1", "-n", "6"]] {
        assert!(operator.answer(args).await.stderr.is_empty(), "{args:?}: that is all of it");
    }
    mesh.up.stop().await.unwrap();
}

/// A mistyped log filter ends a role, and a command, with one line that names the variable; nothing else is done.
#[tokio::test]
async fn an_invalid_log_filter_is_an_error() {
    let folder = tempfile::tempdir().unwrap();
    for args in [&["gateway"][..], &["sign", "--secret", "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"]] {
        let mut command = tokio::process::Command::new(program());
        command.args(args).current_dir(folder.path()).env("WEFT_LOG", "inof").kill_on_drop(true);
        let output = tokio::time::timeout(PATIENCE, command.output()).await.unwrap().unwrap();
        let said = String::from_utf8(output.stderr).unwrap();
        assert_eq!((output.status.code(), said.lines().count()), (Some(1), 1), "{args:?}: {said}");
        assert!(said.contains("WEFT_LOG") && output.stdout.is_empty(), "{said}");
    }
}

/// With `format = "json"` each line is an object with the values as fields.
#[tokio::test]
async fn log_lines_are_json_where_that_is_asked_for() {
    use tokio::io::{AsyncBufReadExt as _, BufReader};
    let folder = tempfile::tempdir().unwrap();
    let config =
        "[log_output]\nformat = \"json\"\n[nats]\nurl = \"nats://127.0.0.1:1\"\n[ops]\nlisten = \"127.0.0.1:0\"\n";
    std::fs::write(folder.path().join("weft.toml"), config).unwrap();
    let mut command = tokio::process::Command::new(program());
    command.arg("worker").current_dir(folder.path()).env("WEFT_LOG", "debug").kill_on_drop(true);
    let mut role = command.stdout(std::process::Stdio::null()).stderr(std::process::Stdio::piped()).spawn().unwrap();
    let mut lines = BufReader::new(role.stderr.take().unwrap()).lines();
    let line = tokio::time::timeout(PATIENCE, lines.next_line()).await.unwrap().unwrap().unwrap();
    let line: serde_json::Value = serde_json::from_str(&line).unwrap_or_else(|error| panic!("{error}: {line}"));
    for field in ["timestamp", "level", "target", "message"] {
        assert!(line[field].is_string(), "{field}: {line}");
    }
    role.kill().await.unwrap();
}
