//! A log that is full again and again.

use std::collections::BTreeMap;

use bytes::Bytes;
use weft_nats::{
    options::{LogOptions, MaxBytes},
    streams,
};
use weft_services::{
    mesh::{SOURCE, Wiring},
    receiver::Answer,
    sender::Sender,
};
use weft_testkit::eventually;

use crate::mesh::{Mesh, PATIENCE, sender_to};

const LIMIT: u64 = 1024 * 1024;
const BODY_BYTES: usize = 20 * 1024;

/// Posts one event until it is accepted. Its number in its workflow.
async fn send(sender: &Sender, wiring: &Wiring, workflow: &str, delivery: &str) -> u64 {
    let filling = "x".repeat(BODY_BYTES);
    let body = Bytes::from(format!(r#"{{"type":"order.changed","data":"{filling}"}}"#));
    let mut number = None;
    let accepted = eventually(PATIENCE, async || {
        let answer =
            sender.send(SOURCE, Some(workflow), &wiring.signing(), delivery, None, body.clone()).await.unwrap();
        assert!(answer.receipt().is_some() || answer.status == 503, "{:?}", answer.detail());
        number = answer.receipt().map(|receipt| receipt.sequence_number);
        number.is_some()
    });
    assert!(accepted.await, "{delivery} is accepted");
    number.unwrap()
}

/// P3, P5: settled events are dropped to make room; every workflow's numbers continue, also those of a workflow whose events
/// have all been dropped, also at a gateway that has never read them.
#[tokio::test(flavor = "multi_thread")]
async fn numbers_go_on_when_settled_events_are_dropped() {
    let log = LogOptions { max_bytes: MaxBytes::Bytes(LIMIT), ..LogOptions::default() };
    let mesh = Mesh::on(log, Wiring::new(), |_| Answer::now(200)).await;
    let sender = mesh.sender();
    for workflow in ["idle", "asleep"] {
        for number in 1..=2 {
            assert_eq!(send(&sender, &mesh.wiring, workflow, &format!("{workflow}-{number}")).await, number);
        }
    }
    // Several times what the log holds.
    let mut sent = BTreeMap::from(["idle", "asleep"].map(|workflow| (workflow.to_owned(), 2)));
    for number in 1..=50 {
        for workflow in ["a", "b", "c"] {
            assert_eq!(send(&sender, &mesh.wiring, workflow, &format!("{workflow}-{number}")).await, number);
        }
    }
    sent.extend(["a", "b", "c"].map(|workflow| (workflow.to_owned(), 50)));
    let connection = mesh.server.connection("test").await;
    assert!(streams::state(&connection, "EVENTS").await.unwrap().first.0 > 100, "most of it has been dropped");
    mesh.assert_delivered(&sent).await;

    assert_eq!(send(&sender, &mesh.wiring, "idle", "idle-3").await, 3);
    let fresh = mesh.another("gateway", "fresh").await;
    // Of the first nothing but its head is left in the log.
    for (workflow, number) in [("asleep", 3), ("idle", 4), ("a", 51)] {
        let delivery = format!("{workflow}-{number}");
        assert_eq!(send(&sender_to(&fresh), &mesh.wiring, workflow, &delivery).await, number);
    }
}

/// P5: a log full of unsettled events refuses further ones, and says so.
#[tokio::test(flavor = "multi_thread")]
async fn a_log_full_of_unsettled_events_says_so() {
    let log = LogOptions { max_bytes: MaxBytes::Bytes(LIMIT), ..LogOptions::default() };
    let wiring = Wiring { retry: r#"{ max_retries = 9, base = "1h", max = "1h" }"#.into(), ..Wiring::new() };
    let mesh = Mesh::on(log, wiring, |_| Answer::now(500)).await;
    let (sender, signing) = (mesh.sender(), mesh.wiring.signing());
    let body = Bytes::from(format!(r#"{{"type":"order.changed","data":"{}"}}"#, "x".repeat(BODY_BYTES)));
    for number in 1..=2 * LIMIT / BODY_BYTES as u64 {
        let answer =
            sender.send(SOURCE, Some("a"), &signing, &format!("a-{number}"), None, body.clone()).await.unwrap();
        if answer.receipt().is_none() {
            assert_eq!((answer.status, answer.code().as_deref()), (503, Some("log_full")), "{:?}", answer.detail());
            return;
        }
    }
    panic!("twice what the log holds was accepted");
}
