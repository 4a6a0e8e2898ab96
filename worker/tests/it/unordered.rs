//! Subscriptions that are not ordered: their events wait for no other.

use std::collections::BTreeSet;

use weft_proto::{internal, v1};

use crate::support::{Log, Receiver, Running, assert_once};

fn unordered(subscription: &mut v1::Subscription) {
    subscription.ordered = Some(false);
}

/// P5: an event that fails again and again has its own retries and its own dead letter, and holds back none of its workflow;
/// there is no chain among events that do not wait for each other.
#[tokio::test(flavor = "multi_thread")]
async fn a_failing_event_delays_no_other() {
    let mut log = Log::start().await;
    let receiver = Receiver::start(|request| if request.sequence == 2 { 500 } else { 200 }).await;
    // Long enough for a busy machine to deliver the others meanwhile.
    let slow = v1::Retry { max_retries: 1, base_ms: 8000, factor: 1.0, max_ms: 8000, ..Default::default() };
    log.subscribe_with("loose", &receiver, 1, |subscription| {
        unordered(subscription);
        subscription.retry = Some(slow);
    })
    .await;
    let folder = tempfile::tempdir().unwrap();
    let worker = Running::start(&log, folder.path());
    log.events(200, 1).await;
    let requests = receiver.until_delivered(199).await;
    assert_eq!(requests.iter().filter(|request| request.sequence == 2).count(), 1, "its retry is still to come");
    assert!(requests.iter().all(|request| request.lane_previous.is_none()));
    let outcomes = log.outcomes(200).await;
    worker.stop().await;
    let dead: Vec<_> =
        outcomes.iter().filter(|outcome| outcome.kind() == internal::OutcomeKind::DeadLettered).collect();
    assert_eq!((dead.len(), dead[0].sequence, dead[0].attempts), (1, 2, 2));
    let settled: BTreeSet<_> = outcomes.iter().map(|outcome| outcome.sequence).collect();
    assert_eq!((outcomes.len(), settled.len()), (200, 200), "each event settles once");
}

/// A worker that is killed with events in retry: what is unsettled is attempted again, what is settled is not, and the
/// attempts continue to be counted. The file is lost, so the checkpoint and the commits after it must have all of it.
#[tokio::test(flavor = "multi_thread")]
async fn a_take_over_knows_which_events_are_unsettled() {
    let mut log = Log::start().await;
    let receiver =
        Receiver::start(|request| if request.sequence.is_multiple_of(10) && request.attempt <= 2 { 500 } else { 200 })
            .await;
    let slow = v1::Retry { max_retries: 3, base_ms: 2000, factor: 1.0, max_ms: 2000, ..Default::default() };
    log.subscribe_with("loose", &receiver, 1, |subscription| {
        unordered(subscription);
        subscription.retry = Some(slow);
    })
    .await;
    let folder = tempfile::tempdir().unwrap();
    let worker = Running::start_with(&log, folder.path(), |worker| worker.checkpoint_every(3));
    log.events(100, 2).await;
    receiver.until_delivered(90).await;
    log.outcomes(90).await;
    worker.abort().await;
    std::fs::remove_file(folder.path().join("ledger-0.redb")).unwrap();
    let worker = Running::start(&log, folder.path());
    receiver.until_delivered(100).await;
    let outcomes = log.outcomes(100).await;
    worker.stop().await;
    let settled: BTreeSet<_> = outcomes.iter().map(|outcome| outcome.sequence).collect();
    assert_eq!((outcomes.len(), settled.len()), (100, 100));
    let retried = outcomes.iter().filter(|outcome| outcome.attempts == 3).count();
    assert_eq!(retried, 10, "attempts before the kill count");
}

/// The backlog of a paused subscription comes without a gap or a repeat when it resumes.
#[tokio::test(flavor = "multi_thread")]
async fn a_backlog_is_delivered_once() {
    let mut log = Log::start().await;
    let receiver = Receiver::start(|_| 200).await;
    log.subscribe_with("loose", &receiver, 1, unordered).await;
    let folder = tempfile::tempdir().unwrap();
    let worker = Running::start(&log, folder.path());
    log.events(50, 5).await;
    receiver.until_delivered(50).await;
    log.pause("loose", true).await;
    log.events(3000, 5).await;
    log.pause("loose", false).await;
    receiver.until_delivered(3050).await;
    log.outcomes(3050).await;
    worker.stop().await;
    assert_once(&receiver);
}
