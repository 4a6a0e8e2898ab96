//! Starts: events before a worker or a subscription exists, and events at the same moment.

use std::{
    collections::{BTreeMap, BTreeSet},
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
};

use tokio::{sync::watch, task::JoinSet};
use tokio_util::sync::CancellationToken;
use weft_catalog::Catalog;
use weft_nats::{
    streams::{self, LogSpec},
    subject::Layout,
};
use weft_services::{
    apply::apply,
    config::Config,
    mesh::Wiring,
    receiver::{Answer, Receiver},
};
use weft_testkit::{TestServer, eventually, master_key};

use crate::{
    mesh::{Mesh, PATIENCE, post, provide_tls, role, send, sender_to},
    order,
};

const SHARDS: u32 = 2;
const SENDERS: usize = 16;

/// P5: a gateway takes events before the first worker ever comes to this log, and all of them are delivered.
#[tokio::test(flavor = "multi_thread")]
async fn the_first_worker_delivers_what_came_before_it() {
    provide_tls();
    let (server, folder, wiring) = (TestServer::start().await, tempfile::tempdir().unwrap(), Wiring::new());
    let listen = ([127, 0, 0, 1], 0).into();
    let receiver = Receiver::start(listen, &wiring.receiver_secret, |_| Answer::OK).await.unwrap();
    let mut gateway = role("gateway", "gateway", &server, folder.path());
    let connection = server.connection("test").await;
    let spec = LogSpec { body_bytes_max: 1 << 20, ..LogSpec::default() };
    let layout = streams::ensure(&connection, &spec).await.unwrap();
    gateway.ready().await.unwrap();
    let config = Config::parse(Path::new("weft.toml"), wiring.config(Some(&receiver.url())), [], None).unwrap();
    apply(&Catalog::new(connection, master_key()), layout, &config.catalog, "test").await.unwrap();

    let sender = sender_to(&gateway);
    let mut events = BTreeMap::new();
    // The gateway follows the catalog, within a second.
    let knows_source = async || post(&sender, &wiring, "w0", "0").await.is_ok_and(|answer| answer.status != 404);
    assert!(eventually(PATIENCE, knows_source).await);
    for number in 0..100 {
        let workflow = format!("w{}", number % 10);
        let receipt = send(&sender, &wiring, &workflow, &number.to_string()).await;
        events.insert(workflow, receipt.sequence_number);
    }
    let _worker = role("worker", "worker", &server, folder.path());
    assert!(receiver.until(PATIENCE, |arrivals| arrivals.len() >= 100).await, "all of them");
    order::check(&receiver.arrivals(), &events).unwrap();
}

/// P5: events answered 202 after the creation of a subscription with `start = "now"` has returned are delivered to it,
/// also under load.
#[tokio::test(flavor = "multi_thread")]
async fn a_subscription_created_under_load_gets_everything_accepted_since() {
    let mesh = Mesh::sharded(SHARDS, Wiring::new(), |_| Answer::OK).await;
    let listen = ([127, 0, 0, 1], 0).into();
    let late = Receiver::start(listen, &mesh.wiring.receiver_secret, |_| Answer::OK).await.unwrap();
    let (created, stop) = (Arc::new(AtomicBool::new(false)), CancellationToken::new());
    let (counter, mut accepted) = watch::channel(0);
    let counter = Arc::new(counter);
    let mut senders = JoinSet::new();
    for number in 0..SENDERS {
        let (sender, wiring, counter) = (mesh.sender(), mesh.wiring.clone(), counter.clone());
        let (created, stop) = (created.clone(), stop.clone());
        senders.spawn(async move {
            let mut since = Vec::new();
            for event in 0.. {
                if stop.is_cancelled() {
                    break;
                }
                // Read before it is sent: then it is certain that it was answered later.
                let is_created = created.load(Ordering::SeqCst);
                let receipt = send(&sender, &wiring, &format!("w{number}"), &format!("{number}-{event}")).await;
                if is_created {
                    since.push(receipt.event_id);
                }
                counter.send_modify(|count| *count += 1);
            }
            since
        });
    }
    accepted.wait_for(|count| *count >= 200).await.unwrap();
    let text = mesh.wiring.config(Some(&late.url())).replace("name = \"billing\"", "name = \"late\"\nstart = \"now\"");
    let config = Config::parse(Path::new("weft.toml"), text, [], None).unwrap();
    let catalog = Catalog::new(mesh.server.connection("operator").await, master_key());
    apply(&catalog, Layout::new(SHARDS), &config.catalog, "late").await.unwrap();
    created.store(true, Ordering::SeqCst);
    let before = *accepted.borrow();
    accepted.wait_for(|count| *count >= before + 400).await.unwrap();
    stop.cancel();

    let since: BTreeSet<String> = senders.join_all().await.into_iter().flatten().collect();
    assert!(since.len() >= 100, "it was busy");
    let has_all = late.until(PATIENCE, |arrivals| {
        let arrived: BTreeSet<&str> = arrivals.iter().map(|arrival| arrival.event_id.as_str()).collect();
        since.iter().all(|event| arrived.contains(event.as_str()))
    });
    assert!(has_all.await, "something was accepted after the creation and not delivered");
    let arrivals = late.arrivals();
    assert!(arrivals.len() < *accepted.borrow(), "it began in the midst");
    let mut last = BTreeMap::<&str, u64>::new();
    for arrival in &arrivals {
        if let Some(before) = last.insert(&arrival.workflow_id, arrival.sequence_number) {
            assert_eq!(arrival.sequence_number, before + 1, "{}", arrival.workflow_id);
        }
    }
}
