//! Notices of commands in addition to their results: warnings, operators of decisions, and advice for a wrong address.

use std::process::Stdio;

use tokio::{io::AsyncWriteExt as _, process::Command};
use weft_services::{
    mesh::{SOURCE, SUBSCRIPTION, Up, Wiring},
    process::Process,
    receiver::{Answer, Receiver},
    sender::Sender,
};
use weft_testkit::eventually;

use crate::{
    commands::Operator,
    mesh::{PATIENCE, accepted, program, provide_tls},
};

#[tokio::test]
async fn commands_say_what_an_operator_would_miss() {
    provide_tls();
    let folder = tempfile::tempdir().unwrap();
    let wiring = Wiring::new();
    let rule = |_: &weft_services::receiver::Arrival| Answer::now(422);
    let receiver = Receiver::start(([127, 0, 0, 1], 0).into(), &wiring.receiver_secret, rule).await.unwrap();
    let config =
        wiring.config(Some(&receiver.url())).replace("[[subscription]]\n", "[[subscription]]\ntypes = [\"order.*\"]\n");
    let mut up = Up::start(&program(), folder.path(), &config).await.unwrap();
    let data = folder.path().join("data");
    std::fs::write(folder.path().join("secret"), &wiring.receiver_secret).unwrap();
    let reference = format!("file:{}", folder.path().join("secret").display());
    let operator = Operator::of(&up, &data, &wiring);
    let said = async |args: &[&str]| {
        let output = operator.answer(args).await;
        let stderr = String::from_utf8(output.stderr).unwrap();
        (output.status.code(), String::from_utf8(output.stdout).unwrap(), stderr)
    };

    // A source without a workflow rule, a source that does not exist, an update that changes nothing.
    let (code, _, stderr) = said(&["source", "create", "bare", "--secret", &reference]).await;
    assert!(code == Some(0) && stderr.contains("missing_workflow") && stderr.contains("--workflow"), "{stderr}");
    // It takes nothing that is sent below: a worker follows a pause only some moments later.
    let create =
        ["subscription", "create", "audit", "--url", &receiver.url(), "--secret", &reference, "--types", "audit.*"];
    let (code, _, stderr) = said(&[&create[..], &["--sources", "shpo"]].concat()).await;
    assert!(code == Some(0) && stderr.contains("\"shpo\"") && stderr.contains("did you mean \"shop\"?"), "{stderr}");
    let (code, _, stderr) = said(&["subscription", "update", "audit", "--sources", "shop"]).await;
    assert_eq!((code, stderr.as_str()), (Some(0), ""));
    let (code, _, stderr) = said(&["subscription", "update", "audit", "--sources", "shop"]).await;
    assert!(code == Some(0) && stderr.contains("nothing has changed"), "{stderr}");
    let (code, stdout, _) = said(&["subscription", "pause", "audit", "--reason", "a test", "-o", "table"]).await;
    assert!(code == Some(0) && stdout.starts_with("audit is paused: a test"), "{stdout}");

    // Where the gateway listens there is no admin. The stored token is only for its own server, so one is given.
    let (code, _, stderr) =
        said(&["dlq", "list", "--server", &operator.gateway, "--token", &wiring.sender_secret]).await;
    assert!(code == Some(2) && stderr.contains("not an admin") && stderr.contains("--server"), "{code:?} {stderr}");

    // Unrouted, and resolved by an operator.
    let send = ["event", "send", "--source", SOURCE, "--workflow", "order-1"];
    let lost = operator.lines(&[&send[..], &["--type", "charge.failed"]].concat()).await;
    let lost = lost[0]["eventId"].as_str().unwrap().to_owned();
    let unrouted = async || operator.lines(&["event", "get", &lost]).await[0]["status"] == "unrouted";
    assert!(eventually(PATIENCE, unrouted).await);
    let (_, stdout, _) = said(&["event", "get", &lost, "-o", "table"]).await;
    assert!(stdout.contains("no subscription takes charge.failed"), "{stdout}");

    let sent = operator.lines(&[&send[..], &["--type", "order.paid"]].concat()).await;
    let event = sent[0]["eventId"].as_str().unwrap().to_owned();
    assert!(eventually(PATIENCE, async || operator.lines(&["dlq", "list"]).await.len() == 1).await);
    let letter = format!("{SUBSCRIPTION}:{event}");
    operator.lines(&["dlq", "resolve", &letter, "--reason", "paid by hand"]).await;
    for args in [["event", "get", &event], ["dlq", "get", &letter]] {
        let (_, json, _) = said(&args).await;
        assert!(json.contains(r#""settledBy":"bootstrap","settledReason":"paid by hand""#), "{json}");
        let (_, table, _) = said(&[&args[..], &["-o", "table"]].concat()).await;
        assert!(table.contains("bootstrap") && table.contains("paid by hand"), "{table}");
    }
    let (_, stdout, stderr) = said(&["dlq", "list", "-o", "table"]).await;
    assert_eq!((stdout.as_str(), stderr.as_str()), ("", "none\n"));

    // Words that are none are refused with those that there are.
    for args in [
        ["dlq", "list", "--status", "opn"],
        ["dlq", "list", "--reason-code", "bogus"],
        ["workflow", "lanes", "--state", "stuk"],
    ] {
        let (code, _, stderr) = said(&args).await;
        assert!(code == Some(2) && stderr.contains("possible values"), "{args:?}: {stderr}");
    }
    assert_eq!(operator.code(&["rejected", "list", "--reason-code", "bogus"]).await, Some(2));
    for (time, code) in [("2026-11-21t02:00:00z", 0), ("2026-11-21T03:30:00.123456789012+01:30", 0), ("2026-11-21", 2)]
    {
        assert_eq!(operator.code(&["dlq", "list", "--since", time]).await, Some(code), "{time}");
    }

    // A file from standard input.
    let mut command = Command::new(program());
    command
        .args(["apply", "-f", "-", "--dry-run"])
        .env("WEFT_DATA", &data)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped());
    let mut child = command.spawn().unwrap();
    let file = config.replace(SUBSCRIPTION, "other");
    child.stdin.take().unwrap().write_all(file.as_bytes()).await.unwrap();
    let output = child.wait_with_output().await.unwrap();
    let stdout = String::from_utf8(output.stdout).unwrap();
    assert!(output.status.success() && stdout.contains(r#""name":"other","action":"created""#), "{stdout}");
    up.stop().await.unwrap();
    let log = std::fs::read_to_string(folder.path().join("weft.log")).unwrap();
    assert!(log.contains("SIGTERM") && log.contains("drained"), "{log}");
}

/// Load balancers see `draining` before the port closes, and until then events are accepted.
#[tokio::test]
async fn a_gateway_accepts_for_its_drain_delay() {
    provide_tls();
    let folder = tempfile::tempdir().unwrap();
    let wiring = Wiring::new();
    let mut spec = Up::spec(&program(), folder.path(), &wiring.config(None)).unwrap();
    spec.env.push(("WEFT_GATEWAY__DRAIN_DELAY".into(), "10s".into()));
    let mut process = Process::start(&spec).unwrap();
    let endpoints = process.ready().await.unwrap();
    let ops = endpoints.get("ops").unwrap().to_owned();
    let sender = Sender::new(endpoints.get("gateway").unwrap()).unwrap();
    process.signal(rustix::process::Signal::TERM);
    let draining = async || crate::up::http(&format!("{ops}/readyz")).await.1.contains("draining");
    assert!(eventually(PATIENCE, draining).await);
    let body = bytes::Bytes::from_static(br#"{"type":"order.paid","data":{}}"#);
    accepted(&sender, &wiring, "order-1", "evt_1", body).await;
    assert_eq!(process.ended().await.unwrap().code(), Some(0));
}
