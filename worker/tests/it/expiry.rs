//! Events that EVENTS drops before they are settled.

use std::time::Duration;

use weft_nats::{message::Stored, options::Span, streams::LogSpec, subject::DLQ_STREAM};
use weft_proto::v1;

use crate::support::{Log, Receiver, Running, spec};

/// Waiting events become dead letters in its last tenth, which is long enough for a busy machine.
const RETENTION: Span = Span::secs(15);

fn short_lived() -> LogSpec {
    let mut spec = spec();
    spec.log.retention = RETENTION;
    spec.log.dedup_horizon = Span(Duration::from_millis(500));
    spec
}

/// P5: a paused backlog and a blocked event become dead letters with their payload before the log drops them.
#[tokio::test(flavor = "multi_thread")]
async fn an_event_that_waits_too_long_becomes_a_dead_letter_with_its_payload() {
    let mut log = Log::of(short_lived()).await;
    let receiver = Receiver::start(|request| if request.sequence == 1 { 422 } else { 200 }).await;
    let blocks = |subscription: &mut v1::Subscription| subscription.set_on_exhausted(v1::OnExhausted::Block);
    log.subscribe_with("blocking", &receiver, 1, blocks).await;
    let paused = log.subscribe_with("paused", &receiver, 1, |subscription| subscription.paused = true).await;
    let folder = tempfile::tempdir().unwrap();
    let worker = Running::start(&log, folder.path());
    let events = log.events(3, 1).await;
    let wanted: Vec<_> = [("paused", 0), ("paused", 1), ("paused", 2), ("blocking", 0)]
        .map(|(name, event)| (format!("dlq.{name}.w0.{}.{}.0", events[event].id, event + 1), &events[event].payload))
        .into();
    let is_there = |copies: &[Stored], subject: &str| copies.iter().any(|copy| copy.subject == subject);
    let copies = log.read(DLQ_STREAM, |copies| wanted.iter().all(|(subject, _)| is_there(copies, subject))).await;
    for (subject, payload) in wanted {
        let copy = copies.iter().find(|copy| copy.subject == subject).unwrap();
        assert_eq!((copy.headers.get("weft-reason").unwrap().as_str(), &copy.payload), ("expired", payload));
    }
    // The lane of the blocked event continues with the rest.
    let outcomes = log.outcomes(6).await;
    worker.stop().await;
    let of_paused = outcomes.iter().filter(|outcome| outcome.subscription == paused.uid);
    assert!(of_paused.clone().all(|outcome| outcome.reason() == v1::DeadLetterReason::Expired));
    assert_eq!(of_paused.count(), 3);
}

/// P5: events that the log dropped while no worker ran are recorded, and their lane continues after them.
#[tokio::test(flavor = "multi_thread")]
async fn dropped_events_are_recorded() {
    let mut log = Log::start().await;
    let (receiver, other) = (Receiver::start(|_| 200).await, Receiver::start(|_| 200).await);
    log.subscribe("other", &other, 1).await;
    log.subscribe_with("paused", &receiver, 1, |subscription| subscription.paused = true).await;
    let folder = tempfile::tempdir().unwrap();
    let worker = Running::start(&log, folder.path());
    log.events(10, 1).await;
    // They have been read, and wait in its lane.
    log.outcomes(10).await;
    worker.stop().await;
    let stream = log.connection.jetstream().get_stream("EVENTS").await.unwrap();
    stream.purge().sequence(6).await.unwrap();
    log.pause("paused", false).await;
    let worker = Running::start(&log, folder.path());
    let requests = receiver.until_delivered(5).await;
    worker.stop().await;
    assert_eq!(requests.iter().map(|request| request.sequence).collect::<Vec<_>>(), [6, 7, 8, 9, 10]);
    let outcomes = log.outcomes(16).await;
    let gone: Vec<_> = outcomes.iter().filter(|outcome| outcome.from > 0).collect();
    assert_eq!(gone.len(), 1);
    assert_eq!((gone[0].from, gone[0].sequence, gone[0].reason()), (1, 5, v1::DeadLetterReason::Expired));
}
