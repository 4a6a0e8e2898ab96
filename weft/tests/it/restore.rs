//! Streams that were restored, lost, or deleted, and processes on copied data folders: what processes refuse, and how an
//! operator lets them continue.

use std::{fs, path::PathBuf};

use serde_json::Value;
use weft_nats::{server::free_port, subject::Layout};
use weft_proto::ids::{ShardId, WorkflowId};
use weft_services::{
    mesh::{RoleProcess, SUBSCRIPTION, Up, Wiring},
    process::Process,
    receiver::{Answer, Arrival, Receiver},
    sender::Sender,
};
use weft_testkit::{MASTER_KEY, eventually};

use crate::{
    commands::Operator,
    mesh::{Mesh, PATIENCE, post, program, provide_tls, role, send, sender_to},
};

/// Waits until `/readyz` of a process is as wanted; its last answer.
pub async fn until_ready(process: &RoleProcess, wanted: impl Fn(u16, &str) -> bool) -> String {
    until_ready_at(process.variable("WEFT_OPS__LISTEN").unwrap(), wanted).await
}

/// As [`until_ready`], of the process whose operations endpoints are at an address.
async fn until_ready_at(address: &str, wanted: impl Fn(u16, &str) -> bool) -> String {
    let url = format!("http://{address}/readyz");
    let mut last = String::new();
    let is_wanted = eventually(PATIENCE, async || {
        // A process that has just started does not listen yet.
        let Ok(response) = reqwest::get(&url).await else { return false };
        let (status, text) = (response.status().as_u16(), response.text().await.unwrap_or_default());
        last = format!("{status} {text}");
        wanted(status, &text)
    });
    let is_wanted = is_wanted.await;
    assert!(is_wanted, "{last}");
    last
}

struct Scene {
    mesh: Mesh,
    secret: String,
    data: PathBuf,
}

impl Scene {
    async fn start() -> Self {
        Self::sharded(1).await
    }

    async fn sharded(shards: u32) -> Self {
        let mesh = Mesh::sharded(shards, Wiring::new(), |_: &Arrival| Answer::OK).await;
        let (secret, data) = (mesh.wiring.sender_secret.clone(), mesh.folder().join("admin/data"));
        Self { mesh, secret, data }
    }

    fn operator(&self) -> Operator<'_> {
        let gateway = format!("http://{}", self.mesh.gateway.variable("WEFT_GATEWAY__LISTEN").unwrap());
        Operator { data: &self.data, gateway, secret: &self.secret }
    }

    /// Sends events of two workflows; their ids.
    async fn send(&self, name: &str, count: usize) -> Vec<String> {
        let mut ids = Vec::new();
        for number in 0..count {
            let receipt = self.mesh.send(&format!("{name}-{}", number % 2), &format!("{name}-{number}")).await;
            ids.push(receipt.event_id);
        }
        ids
    }

    async fn until_delivered(&self, ids: &[String]) {
        let all = |arrivals: &[Arrival]| ids.iter().all(|id| arrivals.iter().any(|arrival| arrival.event_id == *id));
        assert!(self.mesh.receiver.until(PATIENCE, all).await, "not every event is delivered");
    }
}

/// P1, P5: EVENTS is put back to a copy of 10 of 30 events while everything else stays, and 30 more are accepted. The shard
/// stands still, says so, and delivers all of them once an operator has it adopted; nothing is shown as delivered that was
/// not.
#[tokio::test(flavor = "multi_thread")]
async fn a_restored_log_is_refused_until_it_is_adopted_and_then_delivers_everything() {
    let scene = Scene::start().await;
    let mesh = &scene.mesh;
    let kept = scene.send("kept", 10).await;
    scene.until_delivered(&kept).await;
    let copy = tempfile::tempdir().unwrap();
    mesh.server.kill();
    mesh.server.copy_stream("EVENTS", copy.path());
    mesh.server.restart().await;
    let lost = scene.send("lost", 20).await;
    scene.until_delivered(&lost).await;
    let operator = scene.operator();
    let settled = async || {
        let shards = operator.lines(&["shard", "list", "-o", "jsonl"]).await;
        shards[0]["eventsCommitted"]["sequence"] == 30
    };
    assert!(eventually(PATIENCE, settled).await, "everything is committed");

    mesh.server.kill();
    mesh.server.restore_stream("EVENTS", copy.path());
    mesh.server.restart().await;
    let said = until_ready(&mesh.worker, |status, text| status == 503 && text.contains("stopped")).await;
    assert!(said.contains("shard 0") && said.contains("EVENTS") && said.contains("weft shard adopt 0"), "{said}");
    // Also while the history has not noticed yet that the log is another.
    let plan = &operator.lines(&["shard", "adopt", "0", "--dry-run", "-o", "jsonl"]).await[0];
    let after = plan["eventsAfter"]["sequence"].as_u64().unwrap();
    assert_eq!((&plan["lostEvents"], &plan["deliveredEvents"]), (&20.into(), &(10 - after).into()), "{plan}");
    let new = scene.send("new", 30).await;
    let delivered = mesh.receiver.arrivals();
    assert!(new.iter().all(|id| delivered.iter().all(|arrival| arrival.event_id != *id)), "nothing is attempted");
    let before = &operator.lines(&["event", "get", &new[5], "-o", "jsonl"]).await[0];
    assert_eq!(before["deliveries"].as_array().map(Vec::len), Some(0), "{before}");

    let list = &operator.lines(&["shard", "list", "-o", "jsonl"]).await[0];
    assert_eq!(list["state"], "stopped", "{list}");
    let plan = &operator.lines(&["shard", "adopt", "0", "--dry-run", "-o", "jsonl"]).await[0];
    assert_eq!(plan["adopted"], false);
    let after = plan["eventsAfter"]["sequence"].as_u64().unwrap();
    assert!((1..=10).contains(&after), "{plan}");
    assert_eq!(plan["deliveredEvents"], 40 - after, "{plan}");
    assert_eq!(plan["lostEvents"], 20, "{plan}");
    assert_eq!(operator.code(&["shard", "adopt", "0"]).await, Some(2), "a reason is required");
    let too_late = operator.answer(&["shard", "adopt", "0", "--from", "30", "--reason", "restored"]).await;
    assert!(String::from_utf8_lossy(&too_late.stderr).contains("undelivered"), "{too_late:?}");
    let adopted = &operator.lines(&["shard", "adopt", "0", "--reason", "restored", "-o", "jsonl"]).await[0];
    assert_eq!(adopted["adopted"], true, "{adopted}");

    until_ready(&mesh.worker, |status, _| status == 200).await;
    scene.until_delivered(&new).await;
    let statuses = async || {
        let mut statuses = Vec::new();
        for id in [&new[0], &new[29]] {
            let event: Value = operator.lines(&["event", "get", id, "-o", "jsonl"]).await.remove(0);
            statuses.push(event["status"].clone());
        }
        statuses == ["delivered", "delivered"]
    };
    assert!(eventually(PATIENCE, statuses).await, "each shows its own delivery");
    assert_eq!(operator.code(&["event", "get", &lost[0]]).await, Some(3), "a lost event is not shown");
    let again = operator.answer(&["shard", "adopt", "0", "--reason", "restored"]).await;
    assert!(String::from_utf8_lossy(&again.stderr).contains("not stopped"), "{again:?}");
}

/// A stream that is known to have existed is not created as an empty one: the process names it and waits.
#[tokio::test(flavor = "multi_thread")]
async fn a_log_that_disappeared_is_not_replaced_by_an_empty_one() {
    let mut scene = Scene::start().await;
    let ids = scene.send("kept", 4).await;
    scene.until_delivered(&ids).await;
    let mesh = &mut scene.mesh;
    for process in [&mut mesh.gateway, &mut mesh.worker, &mut mesh.admin] {
        process.stop().await.unwrap();
    }
    let connection = mesh.server.connection("test").await;
    for stream in ["EVENTS", "OUTCOMES", "COMMANDS"] {
        connection.jetstream().delete_stream(stream).await.unwrap();
    }
    for process in [&mut mesh.gateway, &mut mesh.worker, &mut mesh.admin] {
        process.restart().await.unwrap();
    }
    for process in [&mesh.gateway, &mesh.worker, &mesh.admin] {
        let said = until_ready(process, |status, text| status == 503 && text.contains("--new-log")).await;
        assert!(said.contains("EVENTS"), "{said}");
    }
    assert!(connection.jetstream().get_stream("EVENTS").await.is_err(), "nothing is created");
    // One admin is started with `--new-log`; the others then find a log.
    mesh.admin.stop().await.unwrap();
    let data = mesh.folder().join("admin/data");
    let env = vec![
        ("WEFT_NATS__URL".to_owned(), mesh.server.url().to_owned()),
        ("WEFT_MASTER_KEY".to_owned(), MASTER_KEY.to_owned()),
        ("WEFT_DATA".to_owned(), data.display().to_string()),
    ];
    let command = ["admin", "--new-log"];
    let mut admin = RoleProcess::start_as(&program(), &command, "admin", &mesh.folder().join("again"), env).unwrap();
    admin.ready().await.unwrap();
    for process in [&mesh.worker, &mesh.gateway] {
        until_ready(process, |status, _| status == 200).await;
    }
    let receipt = send(&sender_to(&mesh.gateway), &mesh.wiring, "kept-0", "kept-0").await;
    assert_eq!(receipt.sequence_number, 1, "nothing of the old log is left");
}

/// OUTCOMES with data prove that EVENTS existed, also to a process with a new data folder.
#[tokio::test(flavor = "multi_thread")]
async fn a_log_of_which_a_stream_disappeared_is_not_completed_by_an_empty_one() {
    let scene = Scene::start().await;
    let ids = scene.send("kept", 4).await;
    scene.until_delivered(&ids).await;
    let connection = scene.mesh.server.connection("test").await;
    connection.jetstream().delete_stream("EVENTS").await.unwrap();
    let fresh = role("gateway", "fresh", &scene.mesh.server, scene.mesh.folder());
    let said = until_ready(&fresh, |status, text| status == 503 && text.contains("--new-log")).await;
    assert!(said.contains("stream EVENTS does not exist, and OUTCOMES holds data"), "{said}");
    let answer = post(&sender_to(&fresh), &scene.mesh.wiring, "kept-0", "kept-9").await.unwrap();
    assert_eq!(answer.status, 503);
}

/// P3: a process on a copy of a running worker's data folder is never ready and takes no shard.
#[tokio::test(flavor = "multi_thread")]
async fn a_worker_on_a_copied_data_folder_is_never_ready() {
    let scene = Scene::start().await;
    let mesh = &scene.mesh;
    let first = scene.send("first", 4).await;
    scene.until_delivered(&first).await;
    let copy = mesh.folder().join("copy/data/worker");
    fs::create_dir_all(&copy).unwrap();
    for file in ["worker.id", "streams"] {
        fs::copy(mesh.folder().join("worker/data/worker").join(file), copy.join(file)).unwrap();
    }
    let epoch = async || scene.operator().lines(&["shard", "list", "-o", "jsonl"]).await[0]["epoch"].clone();
    let before = epoch().await;
    let twin = role("worker", "copy", &mesh.server, mesh.folder());
    let said = until_ready(&twin, |status, text| status == 503 && text.contains("another process")).await;
    assert!(said.contains("worker.id"), "{said}");
    let later = scene.send("later", 4).await;
    scene.until_delivered(&later).await;
    until_ready(&twin, |status, _| status == 503).await;
    assert_eq!(epoch().await, before, "no shard has moved");
    until_ready(&mesh.worker, |status, _| status == 200).await;
}

/// P1, P3, P5: of two shards one lost a part of its commands and the other a part of its events. Each stops independently, is
/// adopted separately, and then delivers new events and executes new commands, also those at lower sequences of COMMANDS
/// than the lost ones had.
#[tokio::test(flavor = "multi_thread")]
async fn shards_whose_commands_or_events_were_rolled_back_go_on_by_adoption() {
    let scene = Scene::sharded(2).await;
    let (mesh, operator) = (&scene.mesh, scene.operator());
    let of_shard = |shard: u32| {
        let mut names = (0..).map(|number| format!("order-{number}"));
        names.find(|name| Layout::new(2).shard_of(&WorkflowId::new(name.as_str()).unwrap()) == ShardId(shard)).unwrap()
    };
    let (commands, events) = (of_shard(0), of_shard(1));
    let send = async |workflow: &str, name: &str, count: usize| {
        let mut ids = Vec::new();
        for number in 0..count {
            ids.push(mesh.send(workflow, &format!("{name}-{workflow}-{number}")).await.event_id);
        }
        ids
    };
    let order = async |verb: &str| {
        let args = ["workflow", verb, commands.as_str(), "--subscription", SUBSCRIPTION];
        // Code 4 asks the operator to try again: the admin may not be connected yet after the server was restarted.
        let done = eventually(PATIENCE, async || {
            let output = operator.answer(&args).await;
            let code = output.status.code();
            assert!(matches!(code, Some(0 | 4)), "{verb}: {}", String::from_utf8_lossy(&output.stderr));
            code == Some(0)
        });
        assert!(done.await, "{verb}");
    };
    let kept = [send(&commands, "kept", 2).await, send(&events, "kept", 2).await].concat();
    scene.until_delivered(&kept).await;
    order("pause").await;
    let copy = tempfile::tempdir().unwrap();
    let streams = ["COMMANDS_0", "EVENTS_1"];
    mesh.server.kill();
    for stream in streams {
        mesh.server.copy_stream(stream, &copy.path().join(stream));
    }
    mesh.server.restart().await;
    for verb in ["resume", "pause", "resume"] {
        order(verb).await;
    }
    let lost = send(&events, "lost", 5).await;
    scene.until_delivered(&lost).await;
    let committed = async || operator.lines(&["shard", "list"]).await[1]["eventsCommitted"]["sequence"] == 7;
    assert!(eventually(PATIENCE, committed).await, "everything is committed");

    mesh.server.kill();
    for stream in streams {
        mesh.server.restore_stream(stream, &copy.path().join(stream));
    }
    mesh.server.restart().await;
    let is_stopped = |status, text: &str| {
        status == 503 && text.contains("weft shard adopt 0") && text.contains("weft shard adopt 1")
    };
    let said = until_ready(&mesh.worker, is_stopped).await;
    assert!(said.contains("COMMANDS_0") && said.contains("EVENTS_1"), "{said}");
    let adopt = async |shard: &str| {
        let adopted = operator.lines(&["shard", "adopt", shard, "--reason", "restored"]).await.remove(0);
        assert_eq!(adopted["adopted"], true, "{adopted}");
    };
    let plan = &operator.lines(&["shard", "adopt", "1", "--dry-run"]).await[0];
    assert_eq!((&plan["lostEvents"], &plan["closedRuns"]), (&5.into(), &0.into()), "{plan}");
    adopt("0").await;
    let said = until_ready(&mesh.worker, |status, text| status == 503 && !text.contains("adopt 0")).await;
    assert!(said.contains("weft shard adopt 1"), "{said}");
    let new = send(&commands, "new", 2).await;
    scene.until_delivered(&new).await;
    adopt("1").await;
    until_ready(&mesh.worker, |status, _| status == 200).await;
    let new = send(&events, "new", 2).await;
    scene.until_delivered(&new).await;

    order("pause").await;
    let waits = send(&commands, "waits", 1).await;
    let paused = async || operator.lines(&["event", "get", &waits[0]]).await[0]["status"] == "paused";
    assert!(eventually(PATIENCE, paused).await);
    order("resume").await;
    scene.until_delivered(&waits).await;
}

/// The server's folder of `weft up` was deleted: it does not create a new log without `--new-log`, and its message names that.
#[tokio::test(flavor = "multi_thread")]
async fn weft_up_does_not_replace_a_deleted_log_silently() {
    provide_tls();
    let (folder, wiring) = (tempfile::tempdir().unwrap(), Wiring::new());
    let receiver = Receiver::start(([127, 0, 0, 1], 0).into(), &wiring.receiver_secret, |_| Answer::OK).await.unwrap();
    let mut spec = Up::spec(&program(), folder.path(), &wiring.config(Some(&receiver.url()))).unwrap();
    let ops = format!("127.0.0.1:{}", free_port().unwrap());
    spec.env.push(("WEFT_OPS__LISTEN".into(), ops.clone()));
    let mut process = Process::start(&spec).unwrap();
    let endpoints = process.ready().await.unwrap();
    let sender = Sender::new(endpoints.get("gateway").unwrap()).unwrap();
    for number in 1..=2 {
        let receipt = send(&sender, &wiring, "order-1", &format!("old-{number}")).await;
        assert_eq!(receipt.sequence_number, number);
    }
    assert!(process.stop().await.unwrap().success());
    fs::remove_dir_all(folder.path().join("data/nats")).unwrap();

    let mut process = Process::start(&spec).unwrap();
    let said = until_ready_at(&ops, |status, text| status == 503 && text.contains("--new-log")).await;
    assert!(said.contains("stream EVENTS does not exist, and the data folder was used with it"), "{said}");
    assert!(process.stop().await.unwrap().success());

    spec.args.push("--new-log".into());
    let mut process = Process::start(&spec).unwrap();
    let endpoints = process.ready().await.unwrap();
    let sender = Sender::new(endpoints.get("gateway").unwrap()).unwrap();
    let receipt = send(&sender, &wiring, "order-1", "new").await;
    assert_eq!((receipt.sequence_number, receipt.duplicate), (1, false));
    let delivered = |arrivals: &[Arrival]| arrivals.iter().any(|arrival| arrival.event_id == receipt.event_id);
    assert!(receiver.until(PATIENCE, delivered).await);
    assert!(process.stop().await.unwrap().success());
}
