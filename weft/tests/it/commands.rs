//! The operator's commands against a running mesh: what they print for programs, and their exit codes.

use std::{path::Path, process::Output, time::Instant};

use serde_json::Value;
use tokio::process::Command;
use weft_nats::server::free_port;
use weft_services::{
    mesh::{SOURCE, SUBSCRIPTION, Up, Wiring},
    receiver::{Answer, Receiver},
};
use weft_testkit::eventually;

use crate::{
    mesh::{PATIENCE, program, provide_tls},
    up::http,
};

/// Runs commands as an operator does, who has the data folder's `client.toml` and the sender's secret.
pub struct Operator<'a> {
    pub data: &'a Path,
    pub gateway: String,
    pub secret: &'a str,
}

impl<'a> Operator<'a> {
    /// The operator of a mesh in one process, whose data folder is `data`.
    pub fn of(up: &Up, data: &'a Path, wiring: &'a Wiring) -> Self {
        let gateway = up.endpoints.get("gateway").unwrap().to_owned();
        Self { data, gateway, secret: &wiring.sender_secret }
    }

    pub async fn run(&self, args: &[&str]) -> Output {
        let mut command = Command::new(program());
        command
            .args(args)
            .env("WEFT_DATA", self.data)
            .env("WEFT_GATEWAY", &self.gateway)
            .env("WEFT_SECRET", self.secret);
        command.kill_on_drop(true).output().await.unwrap()
    }

    /// As [`run`](Self::run), and again while the exit code is 4, which asks for that: a role that was restarted a moment
    /// ago, or a busy machine, makes the server unavailable for a while.
    pub async fn answer(&self, args: &[&str]) -> Output {
        let patience = Instant::now() + PATIENCE;
        loop {
            let output = self.run(args).await;
            if output.status.code() != Some(4) || Instant::now() > patience {
                return output;
            }
        }
    }

    /// The objects that a command prints, one a line.
    pub async fn lines(&self, args: &[&str]) -> Vec<Value> {
        let output = self.answer(args).await;
        assert!(output.status.success(), "{args:?}: {}", String::from_utf8_lossy(&output.stderr));
        let text = String::from_utf8(output.stdout).unwrap();
        text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
    }

    pub async fn code(&self, args: &[&str]) -> Option<i32> {
        self.answer(args).await.status.code()
    }
}

/// One event is refused for good, becomes a dead letter, is found, redriven and shown as delivered.
#[tokio::test]
async fn an_operator_sees_and_redrives_a_dead_letter() {
    provide_tls();
    let folder = tempfile::tempdir().unwrap();
    let wiring = Wiring::new();
    let rule = |arrival: &weft_services::receiver::Arrival| {
        if arrival.event_type == "order.bad" && !arrival.replay { Answer::now(422) } else { Answer::OK }
    };
    let receiver = Receiver::start(([127, 0, 0, 1], 0).into(), &wiring.receiver_secret, rule).await.unwrap();
    let mut up = Up::start(&program(), folder.path(), &wiring.config(Some(&receiver.url()))).await.unwrap();
    let data = folder.path().join("data");
    let operator = Operator::of(&up, &data, &wiring);

    let send = ["event", "send", "--source", SOURCE, "--workflow", "order-1", "--data", r#"{"total":1.50}"#];
    let bad = operator.lines(&[&send[..], &["--type", "order.bad", "--id", "evt_1"]].concat()).await;
    assert_eq!((bad[0]["sequenceNumber"].as_u64(), bad[0]["duplicate"].as_bool()), (Some(1), Some(false)));
    let id = bad[0]["eventId"].as_str().unwrap();
    let good = operator.lines(&[&send[..], &["--type", "order.good"]].concat()).await;
    assert_eq!(good[0]["previousEventId"], *id);
    assert!(receiver.until(PATIENCE, |arrivals| arrivals.len() >= 2).await);

    let letter_id = format!("{SUBSCRIPTION}:{id}");
    assert!(eventually(PATIENCE, async || { operator.lines(&["dlq", "list"]).await.len() == 1 }).await);
    let letters = operator.lines(&["dlq", "list", "--subscription", SUBSCRIPTION]).await;
    assert_eq!((&letters[0]["id"], letters[0]["lastStatus"].as_u64()), (&Value::from(letter_id.as_str()), Some(422)));
    let letter = operator.lines(&["dlq", "get", &letter_id]).await;
    assert_eq!(letter[0]["event"]["data"]["data"]["total"].as_f64(), Some(1.5));

    let redriven = operator.lines(&["dlq", "redrive", &letter_id, "--reason", "fixed"]).await;
    assert_eq!((redriven[0]["selected"].as_u64(), redriven[0]["delivered"].as_u64()), (Some(1), Some(1)));
    assert!(receiver.arrivals().last().is_some_and(|arrival| arrival.replay && arrival.event_id == *id));
    assert!(eventually(PATIENCE, async || { operator.lines(&["dlq", "list"]).await.is_empty() }).await);

    let event = operator.lines(&["event", "get", id]).await;
    assert_eq!((event[0]["workflowId"].as_str(), event[0]["sequenceNumber"].as_u64()), (Some("order-1"), Some(1)));
    assert!(event[0]["deliveries"].as_array().is_some_and(|deliveries| !deliveries.is_empty()));
    let tail = operator.lines(&["event", "tail", "--from-beginning", "--limit", "2"]).await;
    assert_eq!(
        tail.iter().map(|event| event["type"].as_str().unwrap()).collect::<Vec<_>>(),
        ["order.bad", "order.good"]
    );

    assert_eq!(operator.code(&["event", "get", "00000000-0000-0000-0000-000000000000"]).await, Some(3));
    assert_eq!(operator.code(&["dlq", "redrive"]).await, Some(2));
    assert_eq!(operator.code(&["dlq", "list", "--token", "wrong"]).await, Some(1));
    assert_eq!(operator.code(&["event", "send", "--source", "unknown", "--type", "a"]).await, Some(3));
    up.stop().await.unwrap();
    for args in [&["dlq", "list"][..], &["event", "send", "--source", SOURCE, "--type", "a"]] {
        assert_eq!(operator.run(args).await.status.code(), Some(4), "{args:?}");
    }
}

/// Dead letters are counted and discarded; delivered events are replayed; a lane is paused and resumed.
#[tokio::test]
async fn an_operator_discards_replays_and_pauses() {
    provide_tls();
    let folder = tempfile::tempdir().unwrap();
    let wiring = Wiring::new();
    let rule = |arrival: &weft_services::receiver::Arrival| {
        if arrival.event_type == "order.bad" { Answer::now(422) } else { Answer::OK }
    };
    let receiver = Receiver::start(([127, 0, 0, 1], 0).into(), &wiring.receiver_secret, rule).await.unwrap();
    let mut up = Up::start(&program(), folder.path(), &wiring.config(Some(&receiver.url()))).await.unwrap();
    let data = folder.path().join("data");
    let operator = Operator::of(&up, &data, &wiring);
    let send = ["event", "send", "--source", SOURCE, "--workflow", "order-1", "--data", "{}"];
    operator.lines(&[&send[..], &["--type", "order.bad"]].concat()).await;
    let good = operator.lines(&[&send[..], &["--type", "order.good"]].concat()).await;
    let good = good[0]["eventId"].as_str().unwrap();
    assert!(receiver.until(PATIENCE, |arrivals| arrivals.len() >= 2).await);
    let count = async || operator.lines(&["dlq", "stats"]).await.first().and_then(|row| row["count"].as_u64());
    assert!(eventually(PATIENCE, async || count().await == Some(1)).await);
    let closed = operator.lines(&["dlq", "discard", "--all", "--yes", "--reason", "a test order"]).await;
    assert_eq!((closed[0]["selected"].as_u64(), closed[0]["closed"].as_u64()), (Some(1), Some(1)));
    assert_eq!(operator.lines(&["dlq", "stats"]).await[0]["status"], "discarded");
    for verb in ["discard", "resolve", "redrive"] {
        assert_eq!(operator.code(&["dlq", verb, "--all", "--yes"]).await, Some(1), "{verb} changes nothing");
    }

    let delivered = async || operator.lines(&["event", "get", good]).await[0]["status"] == "delivered";
    assert!(eventually(PATIENCE, delivered).await);
    let plan = operator.lines(&["replay", "plan", "--workflow", "order-1"]).await;
    let counts = ["count", "leftOutDiscarded", "leftOutResolved"].map(|key| plan[0][key].as_u64());
    assert_eq!(counts, [Some(1), Some(1), Some(0)], "what was discarded is left out");
    let all = operator.lines(&["replay", "plan", "--workflow", "order-1", "--include", "discarded"]).await;
    assert_eq!((all[0]["count"].as_u64(), all[0]["leftOutDiscarded"].as_u64()), (Some(2), Some(0)));
    let replay = operator.lines(&["event", "replay", good]).await;
    let id = replay[0]["id"].as_str().unwrap().to_owned();
    assert!(receiver.until(PATIENCE, |arrivals| arrivals.iter().any(|arrival| arrival.replay)).await);
    let done = async || operator.lines(&["replay", "get", &id]).await[0]["state"] == "done";
    assert!(eventually(PATIENCE, done).await);
    assert_eq!(operator.lines(&["replay", "list"]).await.len(), 1);
    assert_eq!(operator.code(&["replay", "cancel", &id]).await, Some(1), "it is done");
    assert!(done().await, "and stays so");
    let typo = ["workflow", "pause", "ordr-1", "--subscription", SUBSCRIPTION];
    assert_eq!(operator.code(&typo).await, Some(3), "no event of it is kept");
    assert_eq!(operator.code(&[&typo[..], &["--force"]].concat()).await, Some(0));

    let lane = ["order-1", "--subscription", SUBSCRIPTION];
    operator.lines(&[&["workflow", "pause"][..], &lane].concat()).await;
    let before = receiver.arrivals().len();
    operator.lines(&[&send[..], &["--type", "order.good"]].concat()).await;
    assert_eq!(operator.code(&[&["workflow", "pause"][..], &lane].concat()).await, Some(1), "it is paused already");
    assert_eq!(receiver.arrivals().len(), before);
    operator.lines(&[&["workflow", "resume"][..], &lane].concat()).await;
    assert!(receiver.until(PATIENCE, |arrivals| arrivals.len() > before).await);
    let workflow = operator.lines(&["workflow", "get", "order-1"]).await;
    let statuses: Vec<_> = workflow[0]["events"].as_array().unwrap().iter().map(|event| &event["status"]).collect();
    assert_eq!((statuses.len(), statuses[0]), (3, &Value::from("discarded")));
    assert_eq!(
        operator.code(&[&["workflow", "skip"][..], &["unknown", "--subscription", SUBSCRIPTION]].concat()).await,
        Some(3)
    );
    up.stop().await.unwrap();
}

/// A receiver that is away is seen in every place where an operator looks, and no command hangs because of it.
#[tokio::test]
async fn an_operator_sees_that_a_receiver_is_away_and_waits_only_if_asked_to() {
    provide_tls();
    let folder = tempfile::tempdir().unwrap();
    let wiring = Wiring::new();
    let rule = |arrival: &weft_services::receiver::Arrival| {
        if arrival.event_type == "order.bad" && !arrival.replay { Answer::now(422) } else { Answer::OK }
    };
    let address = ([127, 0, 0, 1], free_port().unwrap()).into();
    let receiver = Receiver::start(address, &wiring.receiver_secret, rule).await.unwrap();
    let mut up = Up::start(&program(), folder.path(), &wiring.config(Some(&receiver.url()))).await.unwrap();
    let data = folder.path().join("data");
    let operator = Operator::of(&up, &data, &wiring);
    let send = ["event", "send", "--source", SOURCE, "--data", "{}"];
    operator.lines(&[&send[..], &["--workflow", "order-1", "--type", "order.bad"]].concat()).await;
    assert!(eventually(PATIENCE, async || operator.lines(&["dlq", "list"]).await.len() == 1).await);
    receiver.stop().await;
    operator.lines(&[&send[..], &["--workflow", "order-2", "--type", "order.good"]].concat()).await;

    let away = async || operator.lines(&["workflow", "lanes", "--state", "away"]).await;
    assert!(eventually(PATIENCE, async || away().await.len() == 1).await);
    let lane = &away().await[0];
    assert_eq!((&lane["workflowId"], &lane["receiver"]["state"]), (&Value::from("order-2"), &Value::from("away")));
    assert!(lane["receiver"]["reason"].as_str().unwrap().contains("no connection"), "{lane}");
    assert!(lane["receiver"]["since"].is_string() && lane["receiver"]["nextAttemptAt"].is_string(), "{lane}");
    let subscription = async || operator.lines(&["subscription", "get", SUBSCRIPTION]).await.remove(0);
    assert!(eventually(PATIENCE, async || subscription().await["receivers"][0]["state"] == "away").await);
    let found = subscription().await;
    assert!(found["receiver"].as_str().unwrap().contains("is away since"), "{found}");
    let ops = up.endpoints.get("ops").unwrap().to_owned();
    let degraded = format!("degraded: shard 0: receiver of {SUBSCRIPTION}: away since");
    let mut shown = (0, String::new());
    let is_degraded = eventually(PATIENCE, async || {
        shown = http(&format!("{ops}/readyz")).await;
        shown.0 == 200 && shown.1.lines().any(|line| line.starts_with(&degraded))
    });
    assert!(is_degraded.await, "{shown:?}");
    let is_away = |line: &str| {
        line.starts_with("weft_worker_receiver_away") && line.contains(SUBSCRIPTION) && line.ends_with(" 1")
    };
    let is_counted = eventually(PATIENCE, async || {
        shown = http(&format!("{ops}/metrics")).await;
        shown.1.lines().any(is_away)
    });
    assert!(is_counted.await, "{}", shown.1);

    let redriven = operator.lines(&["dlq", "redrive", "--all", "--yes"]).await;
    assert_eq!((redriven[0]["selected"].as_u64(), redriven[0]["delivered"].as_u64()), (Some(1), Some(0)));
    assert_eq!(redriven[0]["waitsFor"][0]["subscription"], SUBSCRIPTION);
    let retry = ["workflow", "retry", "order-2", "--subscription", SUBSCRIPTION];
    let retried = operator.lines(&retry).await;
    assert_eq!(retried[0]["lane"]["receiver"]["state"], "away");

    let receiver = Receiver::start(address, &wiring.receiver_secret, rule).await.unwrap();
    assert!(receiver.until(PATIENCE, |arrivals| arrivals.len() >= 2).await, "both are delivered when it is back");
    assert!(eventually(PATIENCE, async || away().await.is_empty()).await);
    assert!(eventually(PATIENCE, async || subscription().await.get("receiver").is_none()).await);
    let redriven = async || operator.lines(&["dlq", "list", "--status", "redriven"]).await.len() == 1;
    assert!(eventually(PATIENCE, redriven).await);
    up.stop().await.unwrap();
}

/// A receiver that answers 503 to one workflow and serves the others is not away, and nothing says so; that workflow's lane says what
/// it waits for.
#[tokio::test]
async fn an_operator_sees_why_one_workflow_waits() {
    provide_tls();
    let folder = tempfile::tempdir().unwrap();
    let wiring = Wiring::new();
    let rule = |arrival: &weft_services::receiver::Arrival| {
        if arrival.workflow_id == "sick" { Answer::now(503) } else { Answer::OK }
    };
    let receiver = Receiver::start(([127, 0, 0, 1], 0).into(), &wiring.receiver_secret, rule).await.unwrap();
    let mut up = Up::start(&program(), folder.path(), &wiring.config(Some(&receiver.url()))).await.unwrap();
    let data = folder.path().join("data");
    let operator = Operator::of(&up, &data, &wiring);
    for workflow in ["sick", "well", "sick"] {
        let send = ["event", "send", "--source", SOURCE, "--data", "{}", "--type", "t", "--workflow", workflow];
        operator.lines(&send).await;
    }
    let mut lanes = Vec::new();
    let waits = eventually(PATIENCE, async || {
        lanes = operator.lines(&["workflow", "lanes", "--state", "waiting"]).await;
        lanes.iter().any(|lane| lane["attempts"].as_u64() >= Some(2))
    });
    assert!(waits.await, "{lanes:?}");
    let [lane] = &lanes[..] else { panic!("{lanes:?}") };
    assert_eq!(lane["workflowId"], "sick");
    assert!(lane["lastError"].as_str().unwrap().contains("503"), "{lane}");
    assert!(lane["nextAttemptAt"].is_string() && lane.get("receiver").is_none(), "{lane}");
    let subscription = operator.lines(&["subscription", "get", SUBSCRIPTION]).await;
    assert_eq!(subscription[0].get("receiver"), None, "{}", subscription[0]);

    // Who gave the event up, and why, is shown with it.
    let head = lane["headEventId"].as_str().unwrap().to_owned();
    let skip =
        ["workflow", "skip", "sick", "--subscription", SUBSCRIPTION, "--event", &head, "--reason", "booked by hand"];
    operator.lines(&skip).await;
    let delivery = async || operator.lines(&["event", "get", &head]).await[0]["deliveries"][0].clone();
    assert!(eventually(PATIENCE, async || delivery().await["status"] == "dead_lettered").await);
    let delivery = delivery().await;
    assert_eq!((&delivery["status"], &delivery["settledReason"]), (&"dead_lettered".into(), &"booked by hand".into()));
    assert!(delivery["settledBy"].is_string(), "{delivery}");
    up.stop().await.unwrap();
}
