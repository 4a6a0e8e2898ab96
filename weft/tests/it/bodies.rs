//! Events of more bytes than a later configuration takes.

use std::sync::{Arc, Mutex};

use bytes::Bytes;
use weft_services::{
    mesh::{SOURCE, SUBSCRIPTION, Up, Wiring},
    process::{Endpoints, Process},
    receiver::{Answer, Arrival, Receiver},
    sender::Sender,
};
use weft_testkit::eventually;

use crate::{
    commands::Operator,
    mesh::{PATIENCE, accepted, program, provide_tls},
};

const BODY_BYTES: usize = 5 << 19;

/// P5: bodies of 2.5 MiB are accepted, then `max_body` is lowered to 1 MiB. What is stored is delivered, becomes a dead letter
/// with its payload, and is redriven; only new ones are refused.
#[tokio::test(flavor = "multi_thread")]
async fn a_lower_max_body_is_for_new_events_only() {
    provide_tls();
    let (folder, wiring) = (tempfile::tempdir().unwrap(), Wiring::new());
    let status = Arc::new(Mutex::new((503, 503)));
    let answers = Arc::clone(&status);
    let rule = move |arrival: &Arrival| {
        let (good, bad) = *answers.lock().unwrap();
        Answer::now(if arrival.workflow_id == "bad" { bad } else { good })
    };
    let receiver = Receiver::start(([127, 0, 0, 1], 0).into(), &wiring.receiver_secret, rule).await.unwrap();
    let config = wiring.config(Some(&receiver.url()));
    let start = async |max_body: &str| {
        let mut spec = Up::spec(&program(), folder.path(), &config).unwrap();
        spec.env.push(("WEFT_GATEWAY__MAX_BODY".into(), max_body.into()));
        let mut process = Process::start(&spec).unwrap();
        let endpoints = process.ready().await.unwrap();
        (process, endpoints)
    };
    let body = Bytes::from(format!(r#"{{"type":"order.paid","data":"{}"}}"#, "x".repeat(BODY_BYTES)));
    let sender = |endpoints: &Endpoints| Sender::new(endpoints.get("gateway").unwrap()).unwrap();

    let (mut process, endpoints) = start("3MiB").await;
    for workflow in ["good", "bad"] {
        accepted(&sender(&endpoints), &wiring, workflow, workflow, body.clone()).await;
    }
    assert!(process.stop().await.unwrap().success());

    *status.lock().unwrap() = (200, 422);
    let (mut process, endpoints) = start("1MiB").await;
    let refused = sender(&endpoints).send(SOURCE, Some("good"), &wiring.signing(), "new", None, body).await.unwrap();
    assert_eq!(refused.status, 413);
    let data = folder.path().join("data");
    let gateway = endpoints.get("gateway").unwrap().to_owned();
    let operator = Operator { data: &data, gateway, secret: &wiring.sender_secret };
    let taken = |workflow: &'static str| {
        move |arrivals: &[Arrival]| arrivals.iter().any(|one| one.workflow_id == workflow && one.status == 200)
    };
    assert!(receiver.until(PATIENCE, taken("good")).await);
    let letters = async || operator.lines(&["dlq", "list", "--subscription", SUBSCRIPTION]).await;
    assert!(eventually(PATIENCE, async || letters().await.len() == 1).await);
    *status.lock().unwrap() = (200, 200);
    let id = letters().await[0]["id"].as_str().unwrap().to_owned();
    let letter = &operator.lines(&["dlq", "get", &id]).await[0];
    assert_eq!(letter["event"]["data"]["data"].as_str().map(str::len), Some(BODY_BYTES));
    let redriven = &operator.lines(&["dlq", "redrive", &id, "--reason", "fixed"]).await[0];
    assert_eq!(redriven["delivered"], 1, "{redriven}");
    assert!(receiver.until(PATIENCE, taken("bad")).await);
    assert!(process.stop().await.unwrap().success());
}
