//! Roles as real processes between real senders and a real receiver, while things are killed, stopped and slow.

use std::{
    collections::BTreeMap,
    path::Path,
    sync::{Arc, Mutex},
    time::Duration,
};

use bytes::Bytes;
use rustix::process::Signal;
use tokio::io::AsyncWriteExt as _;
use weft_proto::ids::ShardId;
use weft_services::{
    mesh::{RoleProcess, SOURCE, Wiring},
    receiver::{Answer, Arrival},
};

use weft_testkit::eventually;
use weft_worker::ownership::Bucket;

use crate::{
    load::Load,
    mesh::{Mesh, PATIENCE, post},
    order,
};

fn fails_now_and_then(arrival: &Arrival) -> Answer {
    let fails = arrival.attempt == 1 && arrival.sequence_number.is_multiple_of(5);
    Answer::now(if fails { 503 } else { 200 })
}

/// P1, P2, P3: nats-server, gateway and worker are each killed with -9 under load, then all at once.
#[tokio::test(flavor = "multi_thread")]
async fn kills_lose_repeat_and_reorder_nothing() {
    kill_under_load(&mut Mesh::start(fails_now_and_then).await).await;
}

/// P1, P2, P3 of deliveries in batches, to a receiver that is slower than the senders.
#[tokio::test(flavor = "multi_thread")]
async fn kills_lose_repeat_and_reorder_nothing_of_batches() {
    let slow = |arrival: &Arrival| Answer { delay: Duration::from_millis(50), ..fails_now_and_then(arrival) };
    let mut mesh = Mesh::with(Wiring { max_events: 8, ..Wiring::new() }, slow).await;
    kill_under_load(&mut mesh).await;
    let within = |arrival: &Arrival| arrival.batch_size.is_none_or(|events| (1..=8).contains(&events));
    assert!(mesh.receiver.arrivals().iter().all(within), "no batch is larger than configured");
}

async fn kill_under_load(mesh: &mut Mesh) {
    let mut load = Load::start(mesh, 20, 60);
    load.until_accepted(200).await;
    mesh.gateway.restart().await.unwrap();
    load.until_accepted(400).await;
    mesh.worker.restart().await.unwrap();
    load.until_accepted(600).await;
    mesh.server.kill();
    mesh.server.restart().await;
    load.until_accepted(800).await;
    mesh.server.kill();
    mesh.gateway.kill().await.unwrap();
    mesh.worker.kill().await.unwrap();
    mesh.server.restart().await;
    mesh.gateway.restart().await.unwrap();
    mesh.worker.restart().await.unwrap();
    mesh.assert_delivered(&load.finish().await).await;
}

/// The gateway's and the worker's files are caches: both are deleted under the roles' feet, and nothing changes.
#[tokio::test(flavor = "multi_thread")]
async fn deleted_files_are_built_again() {
    let mut mesh = Mesh::start(fails_now_and_then).await;
    let mut load = Load::start(&mesh, 10, 40);
    load.until_accepted(150).await;
    mesh.gateway.kill().await.unwrap();
    mesh.worker.kill().await.unwrap();
    let mut deleted = 0;
    for role in ["gateway", "worker"] {
        deleted += delete_files(&mesh.folder().join(role), "redb");
    }
    assert!(deleted >= 2, "receipts and ledger were there");
    mesh.gateway.restart().await.unwrap();
    mesh.worker.restart().await.unwrap();
    mesh.assert_delivered(&load.finish().await).await;
}

fn delete_files(folder: &Path, extension: &str) -> usize {
    let mut deleted = 0;
    for entry in std::fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            deleted += delete_files(&path, extension);
        } else if path.extension().is_some_and(|found| found == extension) {
            std::fs::remove_file(path).unwrap();
            deleted += 1;
        }
    }
    deleted
}

/// nats-server is stopped for ten seconds under load: senders get 503 in time, then everything continues, and what was
/// refused is accepted once.
#[tokio::test(flavor = "multi_thread")]
async fn a_log_that_stands_still_is_waited_for() {
    let mesh = Mesh::start(fails_now_and_then).await;
    let mut load = Load::start(&mesh, 10, 40);
    load.until_accepted(100).await;
    mesh.server.pause();
    let stopped = tokio::time::Instant::now();
    let answer = post(&mesh.sender(), &mesh.wiring, "x", "x").await.unwrap();
    assert_eq!((answer.status, answer.code().as_deref()), (503, Some("log_unavailable")));
    assert!(stopped.elapsed() < Duration::from_secs(10), "within the request's deadline");
    tokio::time::sleep_until(stopped + Duration::from_secs(10)).await;
    mesh.server.resume();
    // The refused event may be on the log all the same: its append was under way when the server was stopped. Its sender
    // sends it again, and it has one number either way.
    mesh.send("x", "x").await;
    let mut sent = load.finish().await;
    sent.insert("x".to_owned(), 1);
    mesh.assert_delivered(&sent).await;
}

/// A receiver that works but answers too late gets the same `webhook-id` again, and no later event before it is settled.
#[tokio::test(flavor = "multi_thread")]
async fn an_answer_after_the_time_out_does_not_count() {
    let wiring = Wiring { timeout: "2s".into(), ..Wiring::new() };
    let came: Arc<Mutex<Vec<(u64, u32, String)>>> = Arc::default();
    let coming = came.clone();
    let mesh = Mesh::with(wiring, move |arrival| {
        let Arrival { sequence_number, attempt, event_id, .. } = arrival;
        coming.lock().unwrap().push((*sequence_number, *attempt, event_id.clone()));
        let late = *attempt == 1 && *sequence_number == 2;
        Answer { status: 200, delay: if late { PATIENCE } else { Duration::ZERO } }
    })
    .await;
    for number in 1..=3 {
        mesh.send("w", &format!("w-{number}")).await;
    }
    let third = |arrivals: &[Arrival]| arrivals.iter().any(|arrival| arrival.sequence_number == 3);
    assert!(mesh.receiver.until(PATIENCE, third).await, "each was answered in time once");
    // On a busy machine other answers may be late, too: such an event is repeated as well, and as often.
    let mut came = came.lock().unwrap().clone();
    assert!(
        came.is_sorted_by_key(|(number, attempt, _)| (*number, *attempt)),
        "none before the one before it: {came:?}"
    );
    assert!(came.iter().any(|(number, attempt, _)| (*number, *attempt) == (2, 2)), "the second is repeated: {came:?}");
    came.dedup_by_key(|(number, _, id)| (*number, id.clone()));
    assert_eq!(came.len(), 3, "each with the same webhook-id: {came:?}");
}

/// P2: a sender that hangs up before the answer and sends again has one event, whether the first request was read or not.
#[tokio::test(flavor = "multi_thread")]
async fn a_delivery_repeated_after_a_hang_up_is_one_event() {
    let mesh = Mesh::start(|_| Answer::OK).await;
    let body = Bytes::from_static(b"{\"type\":\"order.changed\",\"data\":{\"id\":\"impatient\"}}");
    let signing = mesh.wiring.signing();
    let headers = signing.headers("impatient", jiff::Timestamp::now().as_second(), None, &body).unwrap();
    let address = mesh.gateway.variable("WEFT_GATEWAY__LISTEN").unwrap();
    let mut socket = tokio::net::TcpStream::connect(address).await.unwrap();
    let mut request = format!(
        "POST /api/v1/webhooks/{SOURCE}/hasty HTTP/1.1\r\nhost: {address}\r\ncontent-type: application/json\r\ncontent-length: {}\r\n",
        body.len()
    );
    for (name, value) in headers {
        request.push_str(&format!("{name}: {value}\r\n"));
    }
    request.push_str("\r\n");
    socket.write_all(request.as_bytes()).await.unwrap();
    socket.write_all(&body).await.unwrap();
    socket.flush().await.unwrap();
    drop(socket);
    let receipt = mesh.send("hasty", "impatient").await;
    assert_eq!((receipt.sequence_number, receipt.previous_event_id), (1, None));
    mesh.send("hasty", "patient").await;
    mesh.assert_delivered(&BTreeMap::from([("hasty".to_owned(), 2)])).await;
}

/// The arrivals that a receiver accepts if it ignores requests of earlier owners.
fn of_newest_owner(arrivals: &[Arrival]) -> Vec<Arrival> {
    let mut newest = 0;
    let accepted = arrivals.iter().filter(|arrival| {
        newest = arrival.epoch.max(newest);
        arrival.epoch == newest
    });
    accepted.cloned().collect()
}

/// The instance that holds the lease of the only shard; `None` while there is none.
async fn owner_of_shard(mesh: &Mesh, leases: &Bucket) -> Option<&'static str> {
    let view = leases.look().await.ok()?;
    let holder = view.leases.get(&ShardId(0))?.holder.clone()?;
    let has_id = |instance: &&'static str| mesh.worker_id(instance) == holder.worker;
    ["worker", "standby"].into_iter().find(has_id)
}

/// Stops the worker that owns the shard, where it is sure to own it; its instance.
async fn stop_owner(mesh: &mut Mesh, standby: &mut RoleProcess) -> &'static str {
    let leases = Bucket::new(mesh.server.connection("judge").await, Duration::from_secs(3));
    let mut stopped = None;
    let is_stopped = eventually(PATIENCE, async || {
        let Some(owner) = owner_of_shard(mesh, &leases).await else { return false };
        let process = if owner == "standby" { &mut *standby } else { &mut mesh.worker };
        process.process().signal(Signal::STOP);
        stopped = Some(owner);
        if owner_of_shard(mesh, &leases).await == stopped {
            return true;
        }
        let process = if owner == "standby" { &mut *standby } else { &mut mesh.worker };
        process.process().signal(Signal::CONT);
        false
    });
    assert!(is_stopped.await, "a worker owns the shard");
    stopped.unwrap()
}

/// P3: a worker that is stopped past its lease while another takes over starts nothing when it wakes up.
#[tokio::test(flavor = "multi_thread")]
async fn a_worker_paused_past_its_lease_delivers_nothing_out_of_order() {
    let mut mesh = Mesh::start(|_| Answer::OK).await;
    let mut standby = mesh.another("worker", "standby").await;
    let mut load = Load::start(&mesh, 10, 60);
    load.until_accepted(100).await;
    // Which of them owns the shard follows from their ids, so that it may be handed over at any moment.
    let owner = stop_owner(&mut mesh, &mut standby).await;
    // The other delivers: its epoch is higher.
    let epoch = mesh.receiver.arrivals().iter().map(|arrival| arrival.epoch).max().unwrap_or(1);
    let taken_over = mesh.receiver.until(PATIENCE, |arrivals| arrivals.iter().any(|arrival| arrival.epoch > epoch));
    assert!(taken_over.await, "the other worker takes over");
    let slept = if owner == "standby" { &mut standby } else { &mut mesh.worker };
    slept.process().signal(Signal::CONT);
    let events = load.finish().await;
    // Requests in flight at the stop may arrive late; a receiver recognises them by their epoch, and the others are in order.
    mesh.receiver.until(PATIENCE, |arrivals| order::check(&of_newest_owner(arrivals), &events).is_ok()).await;
    let arrivals = mesh.receiver.arrivals();
    order::check(&of_newest_owner(&arrivals), &events).unwrap();
    let newest = arrivals.iter().map(|arrival| arrival.epoch).max().unwrap();
    let first_of_newest = arrivals.iter().position(|arrival| arrival.epoch == newest).unwrap();
    let stale = arrivals[first_of_newest..].iter().filter(|arrival| arrival.epoch < newest).count();
    // And nothing new was begun.
    assert!(stale <= 64, "{stale} deliveries of the old owner after the new one's first");
}
