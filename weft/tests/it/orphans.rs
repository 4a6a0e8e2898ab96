//! Subscriptions that the catalog has lost without a removal: adopted by the commands and by `weft up`, or
//! discarded.

use std::{
    fs,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
};

use bytes::Bytes;
use weft_services::{
    mesh::{SUBSCRIPTION, Up, Wiring},
    receiver::{Answer, Arrival, Receiver},
};
use weft_testkit::{TestServer, eventually};

use crate::{
    commands::Operator,
    mesh::{Mesh, PATIENCE, accepted, program, provide_tls},
    restore::until_ready,
};

/// A receiver that is away until it is opened.
fn switch() -> (Arc<AtomicBool>, impl Fn(&Arrival) -> Answer + Send + Sync + 'static) {
    let is_open = Arc::new(AtomicBool::new(false));
    let opened = Arc::clone(&is_open);
    (is_open, move |_: &Arrival| Answer::now(if opened.load(Ordering::SeqCst) { 200 } else { 503 }))
}

/// Removes the subscription's entry as no operator does by `weft`: nothing says that it was removed.
async fn purge(server: &TestServer) {
    let connection = server.connection("purge").await;
    let bucket = connection.jetstream().get_stream("KV_weft_catalog").await.unwrap();
    bucket.purge().filter(format!("$KV.weft_catalog.subscription.{SUBSCRIPTION}")).await.unwrap();
}

async fn until_attempted(receiver: &Receiver, event: &str) {
    let attempted = |arrivals: &[Arrival]| arrivals.iter().any(|arrival| arrival.event_id == event);
    assert!(receiver.until(PATIENCE, attempted).await, "{event} is attempted");
}

async fn until_delivered(receiver: &Receiver, workflow: &str, numbers: &[u64]) {
    let delivered = |arrivals: &[Arrival]| {
        let taken = arrivals.iter().filter(|arrival| arrival.status == 200 && arrival.workflow_id == workflow);
        taken.map(|arrival| arrival.sequence_number).eq(numbers.iter().copied())
    };
    assert!(receiver.until(PATIENCE, delivered).await, "{:?}", receiver.arrivals());
}

/// P5: a subscription whose entry was purged is named on `/readyz` and by `subscription list`, keeps its backlog and what
/// comes meanwhile, and delivers all of it once an operator adopts it. Purged again, it is discarded by an operator's command.
#[tokio::test(flavor = "multi_thread")]
async fn an_operator_adopts_or_discards_a_lost_subscription() {
    let (is_open, rule) = switch();
    let mut mesh = Mesh::start(rule).await;
    let (secret, data) = (mesh.wiring.sender_secret.clone(), mesh.folder().join("admin/data"));
    let gateway = format!("http://{}", mesh.gateway.variable("WEFT_GATEWAY__LISTEN").unwrap());
    let operator = Operator { data: &data, gateway, secret: &secret };
    let uid = operator.lines(&["subscription", "get", SUBSCRIPTION]).await[0]["uid"].as_str().unwrap().to_owned();
    let first = mesh.send("order-1", "first").await;
    until_attempted(&mesh.receiver, &first.event_id).await;

    purge(&mesh.server).await;
    mesh.worker.restart().await.unwrap();
    let named = |status: u16, text: &str| status == 200 && text.contains("orphaned subscription billing");
    until_ready(&mesh.worker, named).await;
    mesh.send("order-1", "second").await;
    let list = operator.answer(&["subscription", "list"]).await;
    let said = String::from_utf8_lossy(&list.stderr).into_owned();
    assert!(said.contains(&format!("weft subscription discard {uid}")), "{said}");
    let file = mesh.folder().join("billing.toml");
    fs::write(&file, mesh.wiring.config(Some(&mesh.receiver.url()))).unwrap();
    let adopt = ["subscription", "adopt", SUBSCRIPTION, "-f", file.to_str().unwrap()];
    let dry = &operator.lines(&[&adopt[..], &["--dry-run"]].concat()).await[0];
    assert_eq!((&dry["uid"], &dry["dryRun"], &dry["lanes"]), (&uid.clone().into(), &true.into(), &1.into()), "{dry}");
    assert_eq!(operator.code(&["subscription", "get", SUBSCRIPTION]).await, Some(3), "nothing was changed");
    is_open.store(true, Ordering::SeqCst);
    let adopted = &operator.lines(&[&adopt[..], &["--reason", "catalog restored"]].concat()).await[0];
    assert_eq!(adopted["uid"], *uid, "{adopted}");
    until_delivered(&mesh.receiver, "order-1", &[1, 2]).await;
    until_ready(&mesh.worker, |status, text| status == 200 && !text.contains("orphaned")).await;
    assert_eq!(operator.code(&adopt).await, Some(3), "it is not lost any more");

    is_open.store(false, Ordering::SeqCst);
    let last = mesh.send("order-1", "third").await;
    until_attempted(&mesh.receiver, &last.event_id).await;
    purge(&mesh.server).await;
    mesh.worker.restart().await.unwrap();
    until_ready(&mesh.worker, named).await;
    let discard = ["subscription", "discard", &uid];
    let dry = &operator.lines(&[&discard[..], &["--dry-run"]].concat()).await[0];
    assert_eq!(dry["name"], SUBSCRIPTION, "{dry}");
    let discarded = &operator.lines(&[&discard[..], &["--yes", "--reason", "the receiver is gone"]].concat()).await[0];
    assert_eq!((&discarded["closed"], &discarded["pending"]), (&1.into(), &0.into()), "{discarded}");
    let status = async || operator.lines(&["event", "get", &last.event_id]).await[0]["status"].clone();
    assert!(eventually(PATIENCE, async || status().await == "discarded").await, "{}", status().await);
    until_ready(&mesh.worker, |status, text| status == 200 && !text.contains("orphaned")).await;
    assert_ne!(operator.code(&[&discard[..], &["--yes"]].concat()).await, Some(0), "nothing is left to discard");
}

/// P5: `weft up` with a file that names a lost subscription adopts it with its uid: its backlog is delivered.
#[tokio::test(flavor = "multi_thread")]
async fn weft_up_adopts_a_lost_subscription_of_its_file() {
    provide_tls();
    let (server, folder, wiring) = (TestServer::start().await, tempfile::tempdir().unwrap(), Wiring::new());
    let (is_open, rule) = switch();
    let receiver = Receiver::start(([127, 0, 0, 1], 0).into(), &wiring.receiver_secret, rule).await.unwrap();
    let config = format!("[nats]\nurl = \"{}\"\n{}", server.url(), wiring.config(Some(&receiver.url())));
    let mut up = Up::start(&program(), folder.path(), &config).await.unwrap();
    let data = folder.path().join("data");
    let uid = async |up: &Up| {
        let operator = Operator::of(up, &data, &wiring);
        operator.lines(&["subscription", "get", SUBSCRIPTION]).await[0]["uid"].clone()
    };
    let before = uid(&up).await;
    let (sender, body) = (up.sender().unwrap(), Bytes::from_static(br#"{"type":"order.paid","data":{}}"#));
    for id in ["first", "second"] {
        accepted(&sender, &wiring, "order-1", id, body.clone()).await;
    }
    assert!(receiver.until(PATIENCE, |arrivals| !arrivals.is_empty()).await, "its head is attempted");
    assert!(up.stop().await.unwrap().success());

    purge(&server).await;
    is_open.store(true, Ordering::SeqCst);
    let mut up = Up::start(&program(), folder.path(), &config).await.unwrap();
    until_delivered(&receiver, "order-1", &[1, 2]).await;
    assert_eq!(uid(&up).await, before);
    let log = fs::read_to_string(folder.path().join("weft.log")).unwrap();
    assert!(log.contains("adopted=1"), "{log}");
    assert!(up.stop().await.unwrap().success());
}
