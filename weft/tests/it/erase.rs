//! Erasures of a running mesh: deliveries that wait, and a kill in the middle.

use std::{fs, path::Path, time::Duration};

use bytes::Bytes;
use weft_catalog::Catalog;
use weft_nats::{connect::Connection, direct, options::LogOptions, streams::LogSpec, subject::DLQ_STREAM};
use weft_proto::{ids::StreamSeq, v1, words::Word as _};
use weft_services::{
    apply::apply,
    command::admin::{AdminArgs, AdminClient},
    config::Config,
    mesh::{Up, Wiring},
    receiver::{Answer, Receiver},
};
use weft_testkit::{TestCluster, eventually, master_key};

use crate::mesh::{PATIENCE, accepted, program, provide_tls, role_at, sender_to};

/// In each payload.
const MAIL: &str = "jane@example.org";
/// Events of the workflow that is erased while the mesh is killed.
const EVENTS: usize = 200;

fn body(number: usize) -> Bytes {
    Bytes::from(format!(r#"{{"type":"order.changed","data":{{"mail":"{MAIL}","n":{number}}}}}"#))
}

async fn status(admin: &AdminClient, id: &str) -> (String, String) {
    let request = admin.request(v1::GetEventRequest { event_id: id.to_owned(), ..Default::default() });
    let event = admin.events().get_event(request).await.unwrap().into_inner();
    let delivery = event.deliveries.first().map(|delivery| delivery.status().word().to_owned()).unwrap_or_default();
    (event.status().word().to_owned(), delivery)
}

fn of_workflow(workflow: &str) -> v1::EraseEventsRequest {
    v1::EraseEventsRequest {
        workflow_id: workflow.into(),
        reason: "asked for".into(),
        request_id: format!("erase-{workflow}"),
        ..Default::default()
    }
}

/// P4, P5: an event that waits for its retry is erased: it becomes a dead letter, and the next event of its workflow is
/// delivered without it.
#[tokio::test(flavor = "multi_thread")]
async fn a_waiting_event_that_is_erased_does_not_stop_its_lane() {
    let folder = tempfile::tempdir().unwrap();
    let wiring = Wiring { retry: r#"{ max_retries = 9, base = "1h", max = "1h" }"#.into(), ..Wiring::new() };
    let receiver = Receiver::start("127.0.0.1:0".parse().unwrap(), &wiring.receiver_secret, |arrival| {
        if arrival.sequence_number == 1 { Answer::now(500) } else { Answer::OK }
    });
    let receiver = receiver.await.unwrap();
    let mut up = Up::start(&program(), folder.path(), &wiring.config(Some(&receiver.url()))).await.unwrap();
    let sender = up.sender().unwrap();
    let mut ids = Vec::new();
    for number in 1..=2 {
        let (answer, _) = accepted(&sender, &wiring, "customer-7", &format!("evt_{number}"), body(number)).await;
        ids.push(answer.receipt().unwrap().event_id);
    }
    assert!(receiver.until(PATIENCE, |arrivals| arrivals.len() == 1).await, "the first fails, the second waits");
    let admin = up.admin().await.unwrap();
    let request = v1::EraseEventsRequest { event_ids: vec![ids[0].clone()], reason: "r".into(), ..Default::default() };
    let erased = admin.events().erase_events(admin.request(request)).await.unwrap().into_inner();
    assert_eq!(erased.erased, 1);
    assert!(receiver.until(PATIENCE, |arrivals| arrivals.len() == 2).await, "the second is delivered");
    assert!(eventually(PATIENCE, async || status(&admin, &ids[1]).await.0 == "delivered").await);
    let told = async || status(&admin, &ids[0]).await == ("erased".to_owned(), "dead_lettered".to_owned());
    assert!(eventually(PATIENCE, told).await, "{:?}", status(&admin, &ids[0]).await);
    up.stop().await.unwrap();
}

/// A mesh that is killed while it erases finishes that when it is back: no payload is left, no number is lost.
#[tokio::test(flavor = "multi_thread")]
async fn an_erasure_survives_a_kill() {
    let folder = tempfile::tempdir().unwrap();
    let wiring = Wiring::new();
    let config = wiring.config(None);
    let mut up = Up::start(&program(), folder.path(), &config).await.unwrap();
    let sender = up.sender().unwrap();
    for number in 1..=EVENTS {
        accepted(&sender, &wiring, "customer-7", &format!("evt_{number}"), body(number)).await;
    }
    let admin = up.admin().await.unwrap();
    let erasing = {
        let admin = admin.clone();
        tokio::spawn(async move { admin.events().erase_events(admin.request(of_workflow("customer-7"))).await })
    };
    let page = async |admin: &AdminClient| {
        let request = v1::EventsSinceRequest { limit: 1000, ..Default::default() };
        let answer = admin.events().events_since(admin.request(request)).await;
        answer.map(|page| page.into_inner().events).unwrap_or_default()
    };
    let begun = async || page(&admin).await.iter().any(|event| event.erased);
    assert!(eventually(PATIENCE, begun).await);
    up.process.kill().await.unwrap();
    // Interrupted, or finished just before.
    let _ = tokio::time::timeout(Duration::from_secs(10), erasing).await;

    let mut up = Up::start(&program(), folder.path(), &config).await.unwrap();
    let admin = up.admin().await.unwrap();
    let finished = async || {
        let events = page(&admin).await;
        let erased: std::collections::BTreeSet<_> =
            events.iter().filter(|event| event.erased).map(|event| event.sequence_number).collect();
        erased.len() == EVENTS && events.iter().all(|event| event.erased)
    };
    assert!(eventually(PATIENCE, finished).await);
    let (repeat, _) = accepted(&up.sender().unwrap(), &wiring, "customer-7", "evt_1", body(1)).await;
    let repeat = repeat.receipt().unwrap();
    assert!(repeat.duplicate && repeat.sequence_number == 1, "{repeat:?}");
    let (next, _) = accepted(&up.sender().unwrap(), &wiring, "customer-7", "evt_next", body(0)).await;
    assert_eq!(next.receipt().unwrap().sequence_number, EVENTS as u64 + 1);
    up.stop().await.unwrap();
}

/// Whether a message of a stream holds the text, as one of its replicas says.
async fn holds(connection: &Connection, stream: &str) -> bool {
    let messages = direct::range(connection, stream, StreamSeq(1), ">", 1000, 1 << 20).await.unwrap_or_default();
    messages.iter().any(|message| format!("{:?}{:?}", message.headers, message.payload).contains(MAIL))
}

/// Files of messages below a folder that hold the text: those of streams, or those of the servers' Raft logs, which a server
/// compacts from time to time.
fn files_with_mail(folder: &Path, of_streams: bool) -> Vec<String> {
    let mut found = Vec::new();
    for entry in fs::read_dir(folder).into_iter().flatten().filter_map(Result::ok) {
        let path = entry.path();
        if path.is_dir() {
            found.extend(files_with_mail(&path, of_streams));
        } else if path.extension().is_some_and(|extension| extension == "blk")
            && path.components().any(|part| part.as_os_str() == "streams") == of_streams
            && fs::read(&path).is_ok_and(|bytes| bytes.windows(MAIL.len()).any(|part| part == MAIL.as_bytes()))
        {
            found.push(path.display().to_string());
        }
    }
    found
}

/// On three nodes with three replicas, of which one is down while it happens: payloads are gone from the log and from DLQ on all
/// of them, also from the files of their messages, and the numbers continue.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_erasure_reaches_every_replica() {
    provide_tls();
    let cluster = TestCluster::start().await;
    let (folder, wiring) = (tempfile::tempdir().unwrap(), Wiring::new());
    let reject = |_: &weft_services::receiver::Arrival| Answer::now(422);
    let receiver = Receiver::start(([127, 0, 0, 1], 0).into(), &wiring.receiver_secret, reject).await.unwrap();
    let connection = cluster.connection("test").await;
    let mut spec = LogSpec { body_bytes_max: 1024 * 1024, ..LogSpec::default() };
    let layout = cluster.ensure(&connection, &mut spec).await;
    let config = Config::parse(Path::new("weft.toml"), wiring.config(Some(&receiver.url())), [], None).unwrap();
    apply(&Catalog::new(connection.clone(), master_key()), layout, &config.catalog, "test").await.unwrap();
    let leader = cluster.leader(&connection, "EVENTS").await;
    let down = cluster.others(leader).last().unwrap();
    let log = LogOptions { replicas: 3, ..LogOptions::default() };
    let role = |role| role_at(&log, role, role, cluster.url(leader), folder.path(), Vec::new());
    let mut processes = [role("gateway"), role("worker"), role("admin")];
    for process in &mut processes {
        process.ready().await.unwrap();
    }
    let sender = sender_to(&processes[0]);
    for number in 1..=5 {
        accepted(&sender, &wiring, "customer-7", &format!("evt_{number}"), body(number)).await;
    }
    let copied = async || {
        let copies = direct::range(&connection, DLQ_STREAM, StreamSeq(1), ">", 100, 1 << 20).await;
        copies.is_ok_and(|copies| copies.len() == 5)
    };
    assert!(eventually(PATIENCE, copied).await, "five dead letters have their copies");
    let args = AdminArgs { data: folder.path().join("admin/data"), ..AdminArgs::default() };
    let admin = args.connect().await.unwrap();
    let shown = async || {
        let request = admin.request(v1::DeadLetterStatsRequest::default());
        let counts = admin.dead_letters().dead_letter_stats(request).await;
        counts.is_ok_and(|counts| counts.into_inner().counts.iter().map(|count| count.count).sum::<u64>() == 5)
    };
    assert!(eventually(PATIENCE, shown).await, "the admin knows them");
    cluster.kill(down);
    let erased = async || {
        let answer = admin.events().erase_events(admin.request(of_workflow("customer-7"))).await;
        answer.is_ok_and(|answer| answer.into_inner().selected == 5)
    };
    assert!(eventually(PATIENCE, erased).await, "also while a node is down");
    for node in cluster.others(down) {
        let connection = cluster.connection_to(node, "judge").await;
        for stream in ["EVENTS", DLQ_STREAM] {
            assert!(eventually(PATIENCE, async || !holds(&connection, stream).await).await, "{stream} of node {node}");
        }
        let mut left = Vec::new();
        let gone = eventually(PATIENCE, async || {
            left = files_with_mail(cluster.folder(node), true);
            left.is_empty()
        });
        assert!(gone.await, "{left:?}");
    }
    cluster.restart(down).await;
    let restarted = cluster.connection_to(down, "judge").await;
    for stream in ["EVENTS", DLQ_STREAM] {
        assert!(
            eventually(PATIENCE, async || !holds(&restarted, stream).await).await,
            "{stream} of the restarted node"
        );
    }
    let mut left = Vec::new();
    let gone = eventually(PATIENCE, async || {
        left = files_with_mail(cluster.folder(down), true);
        left.is_empty()
    });
    assert!(gone.await, "of the node that was down: {left:?}");
    let in_raft: Vec<_> = (0..3).flat_map(|node| files_with_mail(cluster.folder(node), false)).collect();
    eprintln!("Raft logs that are not compacted yet: {in_raft:?}");
    let (next, _) = accepted(&sender, &wiring, "customer-7", "evt_6", body(0)).await;
    assert_eq!(next.receipt().unwrap().sequence_number, 6);
}
