//! The roles as processes on a cluster of three nats-servers, with a log of three replicas.

use std::{
    collections::BTreeMap,
    path::Path,
    time::{Duration, Instant},
};

use weft_catalog::Catalog;
use weft_nats::{options::LogOptions, streams::LogSpec};
use weft_services::{
    apply::apply,
    config::Config,
    mesh::Wiring,
    receiver::{Answer, Arrival, Receiver},
};
use weft_testkit::{TestCluster, master_key};

use crate::{
    mesh::{PATIENCE, post, provide_tls, role_at, send, sender_to},
    order,
};

/// By when a sender has an answer.
const DEADLINE: Duration = Duration::from_secs(5);
/// Additional time for a busy machine.
const LATE: Duration = Duration::from_secs(4);

/// Two gateways, a worker and three servers, of which two stand still for a while: meanwhile each sender is answered 503 by
/// its deadline, at either gateway; afterwards everything that is sent is accepted once and delivered in order.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_cluster_without_a_leader_refuses_in_time_and_goes_on() {
    provide_tls();
    let cluster = TestCluster::start().await;
    let folder = tempfile::tempdir().unwrap();
    let wiring = Wiring::new();
    let accept = |_: &Arrival| Answer { status: 200, delay: Duration::ZERO };
    let receiver = Receiver::start(([127, 0, 0, 1], 0).into(), &wiring.receiver_secret, accept).await.unwrap();
    let connection = cluster.connection("test").await;
    let mut spec = LogSpec { body_bytes_max: 1024 * 1024, ..LogSpec::default() };
    let layout = cluster.ensure(&connection, &mut spec).await;
    let text = wiring.config(Some(&receiver.url()));
    let config = Config::parse(Path::new("weft.toml"), text, [], None).unwrap();
    apply(&Catalog::new(connection.clone(), master_key()), layout, &config.catalog, "test").await.unwrap();
    let stays = cluster.others(cluster.leader(&connection, "EVENTS").await).next().unwrap();
    let log = LogOptions { replicas: 3, ..LogOptions::default() };
    let role = |role, instance| role_at(&log, role, instance, cluster.url(stays), folder.path(), Vec::new());
    let mut processes = [role("gateway", "first"), role("gateway", "second"), role("worker", "worker")];
    for process in &mut processes {
        process.ready().await.unwrap();
    }
    let senders = [sender_to(&processes[0]), sender_to(&processes[1])];
    for number in 1..=4 {
        send(&senders[number % 2], &wiring, "w", &format!("before-{number}")).await;
    }
    for node in cluster.others(stays) {
        cluster.pause(node);
    }
    for round in 0..3 {
        for sender in &senders {
            let started = Instant::now();
            let delivery_id = format!("during-{round}");
            let new = post(sender, &wiring, "w", &delivery_id);
            let repeat = post(sender, &wiring, "w", "before-1");
            let (new, repeat) = tokio::join!(new, repeat);
            assert_eq!(new.unwrap().status, 503);
            repeat.unwrap();
            assert!(started.elapsed() < DEADLINE + LATE, "answered after {:?}", started.elapsed());
        }
    }
    for node in cluster.others(stays) {
        cluster.resume(node);
    }
    for round in 0..3 {
        send(&senders[1], &wiring, "w", &format!("during-{round}")).await;
    }
    for number in 1..=4 {
        assert!(send(&senders[number % 2], &wiring, "w", &format!("before-{number}")).await.duplicate);
    }
    let events = BTreeMap::from([("w".to_owned(), 7)]);
    receiver.until(PATIENCE, |arrivals| order::check(arrivals, &events).is_ok()).await;
    order::check(&receiver.arrivals(), &events).unwrap();
}
