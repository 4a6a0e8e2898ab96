//! Filters and transforms: CEL expressions of subscriptions.

use serde_json::{Value, json};
use weft_catalog::Catalog;
use weft_nats::event::Event;
use weft_proto::{
    internal::{self, OutcomeKind},
    v1::{self, DeadLetterReason},
};
use weft_testkit::master_key;

use crate::support::{Log, PATIENCE, Receiver, Request, Running};

fn data(request: &Request) -> Value {
    serde_json::from_slice::<Value>(&request.body).unwrap()["data"].clone()
}

/// Appends an event of a workflow with this data.
async fn send(log: &mut Log, workflow: &str, data: Value) -> Event {
    log.event_with(workflow, |event| event.payload = data.to_string().into()).await
}

/// Changes a subscription.
async fn change(log: &Log, name: &str, with: impl FnOnce(&mut v1::Subscription)) {
    let catalog = Catalog::new(log.connection.clone(), master_key());
    let entry = catalog.read().await.unwrap().subscriptions[name].clone();
    let mut value = entry.value.as_ref().clone();
    with(&mut value);
    catalog.put_subscription(&value, entry.revision).await.unwrap();
}

async fn outcomes(log: &Log, count: usize) -> Vec<internal::Outcome> {
    tokio::time::timeout(PATIENCE, log.outcomes(count)).await.expect("the outcomes")
}

/// P5: an event that no filter takes is unrouted, and the chain of delivered events passes over it.
#[tokio::test(flavor = "multi_thread")]
async fn a_filter_decides_by_the_data_and_the_attributes_of_an_event() {
    let mut log = Log::start().await;
    let receiver = Receiver::start(|_| 200).await;
    let filter = "data.total > 100 && event.workflowId.startsWith('w') && event.type == 'order.paid'";
    log.subscribe_with("bar", &receiver, 1, |subscription| subscription.filter = filter.into()).await;
    let folder = tempfile::tempdir().unwrap();
    let worker = Running::start(&log, folder.path());
    let first = send(&mut log, "w0", json!({ "total": 120 })).await;
    send(&mut log, "w0", json!({ "total": 100 })).await;
    send(&mut log, "x0", json!({ "total": 500 })).await;
    send(&mut log, "w0", json!({ "total": 100.5 })).await;
    let requests = receiver.until_delivered(2).await;
    let outcomes = outcomes(&log, 4).await;
    worker.stop().await;
    assert_eq!(requests.iter().map(|request| request.sequence).collect::<Vec<_>>(), [1, 3]);
    assert_eq!(requests[1].lane_previous.as_deref(), Some(first.id.to_string().as_str()));
    let unrouted = outcomes.iter().filter(|outcome| outcome.kind() == OutcomeKind::Unrouted);
    assert_eq!(unrouted.map(|outcome| outcome.sequence).collect::<Vec<_>>(), [2, 3]);
}

/// A filter without a result ends the delivery of that event as a dead letter that shows the error; its lane continues.
#[tokio::test(flavor = "multi_thread")]
async fn a_filter_that_fails_on_an_event_makes_it_a_dead_letter() {
    let mut log = Log::start().await;
    let receiver = Receiver::start(|_| 200).await;
    log.subscribe_with("bar", &receiver, 1, |subscription| subscription.filter = "data.total > 100".into()).await;
    let folder = tempfile::tempdir().unwrap();
    let worker = Running::start(&log, folder.path());
    send(&mut log, "w0", json!({ "total": 120 })).await;
    send(&mut log, "w0", json!({ "amount": 120 })).await;
    log.event_with("w0", |event| {
        event.payload = "plain".into();
        event.content_type = "text/plain".into();
    })
    .await;
    send(&mut log, "w0", json!({ "total": 130 })).await;
    let requests = receiver.until_delivered(2).await;
    let outcomes = outcomes(&log, 4).await;
    let attempted =
        |commits: &[internal::Commit]| commits.iter().map(|commit| commit.attempts.len()).sum::<usize>() >= 4;
    let commits = log.commits(attempted).await;
    worker.stop().await;
    assert_eq!(requests.iter().map(|request| request.sequence).collect::<Vec<_>>(), [1, 4], "nothing else is sent");
    let mut dead: Vec<_> = outcomes.iter().filter(|outcome| outcome.kind() == OutcomeKind::DeadLettered).collect();
    dead.sort_by_key(|outcome| outcome.sequence);
    assert!(dead.iter().all(|outcome| outcome.reason() == DeadLetterReason::Permanent && outcome.attempts == 1));
    let errors: Vec<_> = dead.iter().map(|outcome| outcome.last_error.as_str()).collect();
    assert_eq!(errors, ["filter: 1:5: no such member: total", "filter: 1:5: bytes has no member total"]);
    let attempts = commits.iter().flat_map(|commit| &commit.attempts);
    let failed = attempts.filter(|attempt| attempt.class() == v1::AttemptClass::Expression);
    assert_eq!(failed.map(|attempt| attempt.sequence).collect::<Vec<_>>(), [2, 3]);
}

/// The receiver gets the result as data; the event on the log, and with it the dead letter, stays as it was sent.
#[tokio::test(flavor = "multi_thread")]
async fn a_transform_makes_the_data_that_is_delivered() {
    let mut log = Log::start().await;
    let receiver = Receiver::start(|_| 200).await;
    let transform = "{'id': data.orderId, 'cents': data.total * 100, 'number': event.sequenceNumber}";
    log.subscribe_with("bar", &receiver, 1, |subscription| subscription.transform = transform.into()).await;
    let folder = tempfile::tempdir().unwrap();
    let worker = Running::start(&log, folder.path());
    send(&mut log, "w0", json!({ "orderId": "o-1", "total": 9_007_199_254_740_993_u64 })).await;
    let broken = send(&mut log, "w0", json!({ "orderId": "o-2" })).await;
    send(&mut log, "w0", json!({ "orderId": "o-3", "total": 3 })).await;
    let requests = receiver.until_delivered(2).await;
    let outcomes = outcomes(&log, 3).await;
    let copies = log.read("DLQ", |messages| !messages.is_empty()).await;
    assert_eq!(data(&requests[0]), json!({ "id": "o-1", "cents": 900_719_925_474_099_300_u64, "number": 1 }));
    assert_eq!(data(&requests[1]), json!({ "id": "o-3", "cents": 300, "number": 3 }));
    assert!(requests.iter().all(|request| request.signed), "the signature is that of the transformed body");
    let dead = outcomes.iter().find(|outcome| outcome.kind() == OutcomeKind::DeadLettered).unwrap();
    assert_eq!(dead.reason(), DeadLetterReason::TransformFailed);
    assert_eq!((dead.sequence, dead.last_error.as_str()), (2, "transform: 1:35: no such member: total"));
    assert_eq!(copies[0].payload, broken.payload);
    worker.stop().await;
}

/// P5: as with type patterns, a narrower expression gives up nothing that was taken, whether the worker resumes or another one
/// takes over; an event that was taken under the earlier one is delivered also where the newer one fails on it.
#[tokio::test(flavor = "multi_thread")]
async fn a_narrower_expression_gives_up_nothing_that_was_taken() {
    for restarts in [false, true] {
        let mut log = Log::start().await;
        let away = Receiver::start(|_| 503).await;
        let waits = |subscription: &mut v1::Subscription| {
            subscription.filter = "data.kind in ['a', 'b']".into();
            subscription.retry = Some(v1::Retry { schedule_ms: vec![500; 100], ..Default::default() });
        };
        log.subscribe_with("bar", &away, 1, waits).await;
        let folder = tempfile::tempdir().unwrap();
        let mut worker = Running::start(&log, folder.path());
        for (workflow, kinds) in [("w0", "aa"), ("w1", "abcab"), ("w2", "bb")] {
            for kind in kinds.chars() {
                send(&mut log, workflow, json!({ "kind": kind.to_string() })).await;
            }
        }
        away.until(|requests| ["w0", "w1", "w2"].iter().all(|w| requests.iter().any(|r| r.workflow == *w))).await;
        let narrow =
            |subscription: &mut v1::Subscription| subscription.filter = "data.kind == 'b' && data.size > 0".into();
        if restarts {
            worker.stop().await;
            change(&log, "bar", narrow).await;
            worker = Running::start(&log, folder.path());
        } else {
            log.pause("bar", true).await;
            change(&log, "bar", narrow).await;
            log.pause("bar", false).await;
        }
        let back = Receiver::start(|_| 200).await;
        log.point_at("bar", &back).await;
        back.until_delivered(8).await;
        // From now on the narrower one counts.
        send(&mut log, "w0", json!({ "kind": "a", "size": 1 })).await;
        send(&mut log, "w0", json!({ "kind": "b", "size": 1 })).await;
        let requests = back.until_delivered(9).await;
        let of = |workflow: &str| -> Vec<u64> {
            requests.iter().filter(|request| request.workflow == workflow).map(|request| request.sequence).collect()
        };
        assert_eq!((of("w0"), of("w1")), (vec![1, 2, 4], vec![1, 2, 4, 5]), "restarts: {restarts}");
        let outcomes = outcomes(&log, 11).await;
        worker.stop().await;
        let ended: Vec<_> = outcomes.iter().filter(|outcome| !outcome.subscription.is_empty()).collect();
        assert_eq!(ended.len(), 9);
        assert!(ended.iter().all(|outcome| outcome.kind() == OutcomeKind::Delivered), "{ended:?}");
    }
}
