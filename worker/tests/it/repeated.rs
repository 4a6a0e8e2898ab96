//! One event id at several places of the log: a delivery that is repeated after the dedup horizon.

use std::time::Duration;

use bytes::Bytes;
use weft_nats::{
    append::publish_once,
    event::Event,
    options::Span,
    streams::LogSpec,
    subject::{DLQ_STREAM, unplaced_dead_letter_subject},
};
use weft_proto::{
    internal::{self, command::Action},
    v1,
};

use crate::support::{Log, Receiver, Request, Running, spec};

/// A log whose server forgets message ids soon.
fn short_horizon() -> LogSpec {
    let mut spec = spec();
    spec.log.dedup_horizon = Span(Duration::from_millis(500));
    spec
}

/// Two events with one id, and the commands that redrive their dead letters.
async fn first_and_second(log: &mut Log) -> [Event; 2] {
    let first = log.event_with("w0", |event| event.payload = Bytes::from_static(b"\"FIRST\"")).await;
    let second = log
        .event_with("w0", |event| {
            event.id = first.id;
            event.payload = Bytes::from_static(b"\"SECOND\"");
        })
        .await;
    [first, second]
}

async fn redrive(log: &Log, subscription: &v1::Subscription, event: &Event, sequences: &[u64]) {
    let item = |sequence: &u64| internal::RedriveItem {
        subscription: subscription.uid.clone(),
        subscription_name: subscription.name.clone(),
        sequence: *sequence,
        workflow_id: event.workflow.to_string(),
        event_id: event.id.to_vec(),
        ..Default::default()
    };
    let redrive = internal::Redrive { items: sequences.iter().map(item).collect() };
    let command =
        internal::Command { request_id: "again".into(), action: Some(Action::Redrive(redrive)), ..Default::default() };
    log.publish("commands.0", &command).await;
}

/// The bodies that were redriven, in order.
fn redriven(requests: &[Request]) -> Vec<String> {
    let replays = requests.iter().filter(|request| request.replay);
    let data = replays.map(|request| serde_json::from_slice::<serde_json::Value>(&request.body).unwrap());
    data.map(|envelope| envelope["data"].as_str().unwrap_or_default().to_owned()).collect()
}

/// Each of two dead letters with one event id has a separate copy, and a redrive delivers each its own body, from
/// EVENTS and from the copies alike.
#[tokio::test(flavor = "multi_thread")]
async fn events_with_one_id_are_redriven_each_with_its_own_body() {
    for is_expired in [false, true] {
        let mut log = Log::of(short_horizon()).await;
        let receiver = Receiver::start(|request| if request.replay { 200 } else { 422 }).await;
        let subscription = log.subscribe("billing", &receiver, 1).await;
        let [first, _] = first_and_second(&mut log).await;
        let folder = tempfile::tempdir().unwrap();
        let worker = Running::start(&log, folder.path());
        let copies = log.read(DLQ_STREAM, |messages| messages.len() == 2).await;
        let payloads: Vec<_> = copies.iter().map(|copy| copy.payload.clone()).collect();
        assert_eq!(payloads, ["\"FIRST\"", "\"SECOND\""]);
        if is_expired {
            let stream = log.connection.jetstream().get_stream("EVENTS").await.unwrap();
            stream.purge().sequence(3).await.unwrap();
        }
        redrive(&log, &subscription, &first, &[1, 2]).await;
        let requests = receiver.until(|requests| requests.iter().filter(|request| request.replay).count() == 2).await;
        assert_eq!(redriven(&requests), ["FIRST", "SECOND"], "expired from EVENTS: {is_expired}");
        worker.stop().await;
    }
}

/// A copy that an earlier version named without the sequence is delivered for the event it was made of, and for no other
/// event with the same id.
#[tokio::test(flavor = "multi_thread")]
async fn a_copy_without_a_place_in_its_name_is_only_its_own_events() {
    let mut log = Log::of(short_horizon()).await;
    let receiver = Receiver::start(|request| if request.replay { 200 } else { 422 }).await;
    let subscription = log.subscribe("billing", &receiver, 1).await;
    let [first, _] = first_and_second(&mut log).await;
    let folder = tempfile::tempdir().unwrap();
    let worker = Running::start(&log, folder.path());
    let copies = log.read(DLQ_STREAM, |messages| messages.len() == 2).await;
    // As the earlier version left them: one copy for the two.
    let mut earlier = first.encode(log.layout);
    for name in ["Nats-Msg-Id", "weft-seq", "weft-run", "weft-subscription-uid", "weft-reason"] {
        earlier.headers.set(name, copies[0].headers.get(name).unwrap().as_str());
    }
    earlier.headers.set("Nats-Msg-Id", "earlier");
    earlier.subject = unplaced_dead_letter_subject("billing", &first.workflow, first.id, 0);
    let dlq = log.connection.jetstream().get_stream(DLQ_STREAM).await.unwrap();
    dlq.purge().await.unwrap();
    assert!(publish_once(&log.connection, &earlier).await.unwrap());
    log.connection.jetstream().get_stream("EVENTS").await.unwrap().purge().sequence(3).await.unwrap();

    redrive(&log, &subscription, &first, &[1, 2]).await;
    let outcomes = log.outcomes(4).await;
    let of_runs: Vec<_> = outcomes.iter().filter(|outcome| outcome.run > 0).map(|o| (o.sequence, o.kind())).collect();
    assert_eq!(of_runs, [(1, internal::OutcomeKind::Delivered), (2, internal::OutcomeKind::DeadLettered)]);
    worker.stop().await;
    assert_eq!(redriven(&receiver.requests.lock().unwrap()), ["FIRST"], "the second's payload is kept nowhere");
}
