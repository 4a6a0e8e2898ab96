//! Erasures of a running mesh: deliveries that wait, and a kill in the middle.

use std::time::Duration;

use bytes::Bytes;
use weft_proto::v1;
use weft_services::{
    command::admin::AdminClient,
    mesh::{Up, Wiring},
    receiver::{Answer, Receiver},
};
use weft_testkit::eventually;

use crate::mesh::{PATIENCE, accepted, program};

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
    let delivery = event.deliveries.first().map(|delivery| delivery.status.clone()).unwrap_or_default();
    (event.status, delivery)
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
