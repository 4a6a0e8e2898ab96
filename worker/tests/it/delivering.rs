//! From EVENTS to receivers, through failures, restarts and take-overs.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

use weft_catalog::Catalog;
use weft_proto::{internal, v1};
use weft_testkit::eventually;

use crate::support::{
    Log, PATIENCE, Receiver, Running, SHORT_LEASE, assert_in_order, assert_in_order_but, assert_once,
};

/// P3: with a fifth of the first attempts failing, every workflow arrives in order, signed, with its chain unbroken.
#[tokio::test(flavor = "multi_thread")]
async fn delivers_in_order_through_failures() {
    let mut log = Log::start().await;
    let receiver =
        Receiver::start(|request| if request.attempt == 1 && request.sequence % 5 == 0 { 500 } else { 200 }).await;
    log.subscribe("billing", &receiver, 1).await;
    log.events(500, 20).await;
    let folder = tempfile::tempdir().unwrap();
    let worker = Running::start(&log, folder.path());
    let requests = receiver.until_delivered(500).await;
    assert_in_order(&requests, 20, 25);
    assert!(requests.iter().all(|request| request.signed));
    for workflow in 0..20 {
        let delivered: Vec<_> = requests
            .iter()
            .filter(|request| request.workflow == format!("w{workflow}") && request.answered == 200)
            .collect();
        assert_eq!(delivered[0].lane_previous, None);
        for pair in delivered.windows(2) {
            assert_eq!(pair[1].lane_previous.as_deref(), Some(pair[0].id.as_str()), "the lane's chain has no gap");
        }
    }
    worker.stop().await;
    let outcomes = log.outcomes(500).await;
    assert_eq!(outcomes.len(), 500, "P5: exactly one outcome per event");
}

/// P3, P5: a worker that is stopped at any point continues exactly there, with its file, without it, and with one that is
/// damaged.
#[tokio::test(flavor = "multi_thread")]
async fn a_worker_continues_where_it_stopped_with_and_without_its_file() {
    let mut log = Log::start().await;
    let receiver =
        Receiver::start(|request| if request.attempt == 1 && request.sequence % 7 == 0 { 503 } else { 200 }).await;
    log.subscribe("billing", &receiver, 1).await;
    let folder = tempfile::tempdir().unwrap();
    log.events(600, 10).await;
    let file = folder.path().join("ledger-0.redb");
    for round in 0..3 {
        let worker = Running::start(&log, folder.path());
        receiver.until_delivered(120 * (round + 1)).await;
        worker.abort().await;
        match round {
            0 => {}
            1 => std::fs::remove_file(&file).unwrap(),
            _ => std::fs::write(&file, "this is no database").unwrap(),
        }
    }
    let worker = Running::start(&log, folder.path());
    let requests = receiver.until_delivered(600).await;
    assert_in_order(&requests, 10, 60);
    let epochs: Vec<u64> = requests.iter().map(|request| request.epoch).collect();
    assert!(epochs.windows(2).all(|pair| pair[0] <= pair[1]), "the epoch grows with each owner");
    worker.stop().await;
    assert_eq!(log.outcomes(600).await.len(), 600, "P5: exactly one outcome per event");
}

/// A dead letter is copied with its context, the lane continues, a redrive delivers it once, however often it is requested.
#[tokio::test(flavor = "multi_thread")]
async fn dead_letters_are_copied_and_redriven_once() {
    let mut log = Log::start().await;
    let receiver = Receiver::start(|request| if request.sequence == 2 && !request.replay { 422 } else { 200 }).await;
    let subscription = log.subscribe("billing", &receiver, 1).await;
    let events = log.events(3, 1).await;
    let folder = tempfile::tempdir().unwrap();
    let worker = Running::start(&log, folder.path());
    let requests = receiver.until_delivered(2).await;
    let third = requests.iter().find(|request| request.sequence == 3).unwrap();
    assert_eq!(third.lane_previous, Some(events[0].id.to_string()), "the dead letter is no part of the chain");

    let copies = log.read("DLQ", |messages| !messages.is_empty()).await;
    let copy = &copies[0];
    assert_eq!(copy.subject, format!("dlq.billing.w0.{}.2.0", events[1].id));
    assert_eq!(copy.payload, events[1].payload);
    let header = |name: &str| copy.headers.get(name).map(|value| value.as_str().to_owned()).unwrap_or_default();
    assert_eq!((header("weft-reason"), header("weft-attempts")), ("permanent".into(), "1".into()));
    assert_eq!((header("weft-last-status"), header("ce-id")), ("422".into(), events[1].id.to_string()));

    // The record of what others have done is nothing to carry out, and holds up nothing.
    let record = internal::command::Action::Retry(internal::RejectedRetry { entries: vec![1], ..Default::default() });
    let record = internal::Command { request_id: "fixed".into(), action: Some(record), ..Default::default() };
    log.publish("commands.0", &record).await;
    for _ in 0..2 {
        redrive(&log, &subscription, &events[1], 2).await;
    }
    let requests = receiver.until_delivered(3).await;
    let replays: Vec<_> = requests.iter().filter(|request| request.replay).collect();
    assert_eq!((replays.len(), replays[0].sequence, replays[0].attempt), (1, 2, 1));
    // Both commands are handled when the next event has been delivered and the worker has drained.
    log.events(1, 1).await;
    receiver.until_delivered(4).await;
    worker.stop().await;
    let outcomes = log.outcomes(5).await;
    let of_second: Vec<_> =
        outcomes.iter().filter(|outcome| outcome.sequence == 2).map(|o| (o.run, o.kind())).collect();
    assert_eq!(of_second, [(0, internal::OutcomeKind::DeadLettered), (2, internal::OutcomeKind::Delivered)]);
    let replays = receiver.requests.lock().unwrap().iter().filter(|request| request.replay).count();
    assert_eq!(replays, 1, "the same request acts once");
}

/// Asks for one dead letter to be delivered again, always with the same request id.
async fn redrive(log: &Log, subscription: &v1::Subscription, event: &weft_nats::event::Event, sequence: u64) {
    let item = internal::RedriveItem {
        subscription: subscription.uid.clone(),
        subscription_name: subscription.name.clone(),
        sequence,
        workflow_id: event.workflow.to_string(),
        event_id: event.id.to_vec(),
        run: 0,
        ..Default::default()
    };
    let command = internal::Command {
        request_id: "request-1".into(),
        operator: "test".into(),
        reason: "receiver is fixed".into(),
        at_ms: 1,
        action: Some(internal::command::Action::Redrive(internal::Redrive { items: vec![item] })),
        ..Default::default()
    };
    log.publish("commands.0", &command).await;
}

/// A worker that loses its lease to another stops, and the other delivers everything in order.
#[tokio::test(flavor = "multi_thread")]
async fn a_second_worker_takes_over_from_one_that_was_aborted() {
    let mut log = Log::start().await;
    let receiver = Receiver::start(|_| 200).await;
    log.subscribe("billing", &receiver, 1).await;
    let (one, two) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let first = Running::start_leased(&log, one.path(), SHORT_LEASE, |worker| worker);
    log.events(100, 5).await;
    receiver.until_delivered(100).await;
    let second = Running::start_leased(&log, two.path(), SHORT_LEASE, |worker| worker);
    first.abort().await;
    log.events(100, 5).await;
    let requests = receiver.until_delivered(200).await;
    assert_in_order(&requests, 5, 40);
    assert!(requests.last().unwrap().epoch > requests[0].epoch);
    second.stop().await;
}

/// A subscription that begins at the beginning of a log that is already being delivered misses nothing and repeats
/// nothing, also while events keep coming.
#[tokio::test(flavor = "multi_thread")]
async fn a_late_subscription_begins_where_it_says() {
    let mut log = Log::start().await;
    let (early, late) = (Receiver::start(|_| 200).await, Receiver::start(|_| 200).await);
    log.subscribe("early", &early, 1).await;
    let folder = tempfile::tempdir().unwrap();
    let worker = Running::start(&log, folder.path());
    log.events(700, 7).await;
    early.until_delivered(700).await;
    log.subscribe("late", &late, 1).await;
    log.events(700, 7).await;
    let requests = late.until_delivered(1400).await;
    assert_in_order(&requests, 7, 200);
    early.until_delivered(1400).await;
    worker.stop().await;
    assert_once(&late);
}

/// P5: an event that no subscription takes is settled, too.
#[tokio::test(flavor = "multi_thread")]
async fn events_that_no_subscription_takes_are_unrouted() {
    let mut log = Log::start().await;
    let folder = tempfile::tempdir().unwrap();
    let worker = Running::start(&log, folder.path());
    log.events(3, 1).await;
    let outcomes = log.outcomes(3).await;
    assert!(outcomes.iter().all(|outcome| outcome.kind() == internal::OutcomeKind::Unrouted));
    worker.stop().await;
}

/// A take-over without a file begins at the newest checkpoint and knows everything: what is unsettled, what waits for its
/// retry, which dead letters are open, what each lane delivered last.
#[tokio::test(flavor = "multi_thread")]
async fn a_checkpoint_takes_the_place_of_the_file() {
    let mut log = Log::start().await;
    let receiver = Receiver::start(|request| if request.sequence == 3 && !request.replay { 422 } else { 200 }).await;
    let subscription = log.subscribe("billing", &receiver, 1).await;
    let folder = tempfile::tempdir().unwrap();
    let worker = Running::start_with(&log, folder.path(), |worker| worker.checkpoint_every(4));
    let events = log.events(40, 4).await;
    receiver.until_delivered(36).await;
    log.checkpoint(|_| true).await;
    worker.stop().await;

    std::fs::remove_file(folder.path().join("ledger-0.redb")).unwrap();
    // What the checkpoint covers is gone: nothing else can say it.
    log.expire_outcomes(log.checkpoint(|_| true).await.end.position).await;

    let worker = Running::start(&log, folder.path());
    let more = log.events(4, 4).await;
    let requests = receiver.until_delivered(40).await;
    assert_in_order_but(&requests, 4, 11, 3);
    let first = requests.iter().find(|request| request.id == more[0].id.to_string()).unwrap();
    assert_eq!(first.lane_previous, more[0].previous.map(|id| id.to_string()), "the lane's chain continues");
    let dead = events.iter().find(|event| event.sequence_number.0 == 3).unwrap();
    redrive(&log, &subscription, dead, 9).await;
    receiver.until_delivered(41).await;
    worker.stop().await;
    let live = receiver.requests.lock().unwrap().iter().filter(|r| r.answered == 200 && !r.replay).count();
    assert_eq!(live, 40, "nothing that was settled came again");
}

/// 410 pauses the subscription with a reason, and keeps the event; resumed, it continues with that event.
#[tokio::test(flavor = "multi_thread")]
async fn a_retired_endpoint_pauses_its_subscription() {
    let mut log = Log::start().await;
    let (leaving, staying) =
        (Receiver::start(|request| if request.attempt == 1 { 410 } else { 200 }).await, Receiver::start(|_| 200).await);
    log.subscribe("leaving", &leaving, 1).await;
    log.subscribe("staying", &staying, 1).await;
    let folder = tempfile::tempdir().unwrap();
    let worker = Running::start(&log, folder.path());
    log.events(3, 1).await;
    let catalog = Catalog::new(log.connection.clone(), weft_testkit::master_key());
    let paused = async || catalog.read().await.unwrap().subscriptions["leaving"].clone();
    assert!(eventually(PATIENCE, async || paused().await.value.paused).await);
    let entry = paused().await;
    let reason = &entry.value.pause_reason;
    assert!(
        reason.contains("410") && reason.contains("event 1 of workflow w0") && reason.contains("worker"),
        "{reason}"
    );
    staying.until_delivered(3).await;
    assert_eq!(leaving.requests.lock().unwrap().len(), 1, "nothing more is attempted");
    let resumed = v1::Subscription { paused: false, ..entry.value.as_ref().clone() };
    catalog.put_subscription(&resumed, entry.revision).await.unwrap();
    leaving.until(|requests| requests.iter().any(|request| request.sequence == 1 && request.attempt == 2)).await;
    worker.stop().await;
}

/// Deploys of ten seconds: what stands before one receiver answers 503, and at another's address no process listens. With the
/// usual retries and no circuit, everything would be dead letters after seven seconds. The neighbour is delivered to as ever.
#[tokio::test(flavor = "multi_thread")]
async fn an_outage_of_ten_seconds_makes_no_dead_letters_and_delays_no_other_subscription() {
    const OUTAGE: Duration = Duration::from_secs(10);
    let mut log = Log::start().await;
    let is_down = Arc::new(AtomicBool::new(false));
    let down = Arc::clone(&is_down);
    let away = Receiver::start(move |_| if down.load(Ordering::SeqCst) { 503 } else { 200 }).await;
    let near = Receiver::start(|_| 200).await;
    let usual =
        v1::Retry { max_retries: 3, base_ms: 1000, factor: 2.0, max_ms: 3_600_000, jitter: 0.2, ..Default::default() };
    log.subscribe_with("away", &away, 1, |subscription| subscription.retry = Some(usual.clone())).await;
    log.subscribe("near", &near, 1).await;
    let closed = tokio::net::TcpSocket::new_v4().unwrap();
    closed.bind(([127, 0, 0, 1], 0).into()).unwrap();
    let address = closed.local_addr().unwrap();
    log.subscribe_at("closed", address, 1, |subscription| subscription.retry = Some(usual)).await;
    let folder = tempfile::tempdir().unwrap();
    let worker = Running::start(&log, folder.path());
    let mut sent = log.events(20, 20).await.len();
    near.until_delivered(sent).await;
    away.until_delivered(sent).await;

    is_down.store(true, Ordering::SeqCst);
    let gone = Instant::now();
    let mut slowest = Duration::ZERO;
    while gone.elapsed() < OUTAGE {
        let at = Instant::now();
        sent += log.events(20, 20).await.len();
        near.until_delivered(sent).await;
        slowest = slowest.max(at.elapsed());
    }
    is_down.store(false, Ordering::SeqCst);
    let opened = Receiver::at(closed.listen(1024).unwrap(), |_| 200);
    let requests = away.until_delivered(sent).await;
    assert_in_order(&requests, 20, sent as u64 / 20);
    assert_in_order(&opened.until_delivered(sent).await, 20, sent as u64 / 20);
    worker.stop().await;
    let outcomes = log.outcomes(3 * sent).await;
    assert!(outcomes.iter().all(|outcome| outcome.kind() == internal::OutcomeKind::Delivered), "no dead letter");
    let failed = requests.iter().filter(|request| request.answered == 503).count();
    assert!((2..100).contains(&failed), "the circuit holds {sent} events back: {failed} attempts failed");
    assert!(slowest < OUTAGE / 2, "P4: twenty events to the neighbour took {slowest:?}");
}

/// A receiver is unavailable for a moment, to the only workflow, and there is hardly a retry: with failures that count it would
/// be a dead letter at once.
#[tokio::test(flavor = "multi_thread")]
async fn a_moment_of_503_uses_up_no_retry() {
    for max_retries in [0, 1] {
        let mut log = Log::start().await;
        let receiver = Receiver::start(|request| if request.attempt <= 2 { 503 } else { 200 }).await;
        let few = v1::Retry { max_retries, base_ms: 50, factor: 1.0, max_ms: 50, ..Default::default() };
        log.subscribe_with("billing", &receiver, 1, |subscription| subscription.retry = Some(few)).await;
        let folder = tempfile::tempdir().unwrap();
        let worker = Running::start(&log, folder.path());
        log.events(1, 1).await;
        let requests = receiver.until_delivered(1).await;
        assert_eq!(requests.iter().map(|request| request.attempt).collect::<Vec<_>>(), [1, 2, 3]);
        let commits = log.commits(|commits| commits.iter().any(|commit| !commit.outcomes.is_empty())).await;
        worker.stop().await;
        let attempts: Vec<bool> =
            commits.iter().flat_map(|commit| &commit.attempts).map(|attempt| attempt.uncounted).collect();
        assert_eq!(attempts, [true, true, false]);
        let kinds: Vec<_> = commits.iter().flat_map(|commit| &commit.outcomes).map(internal::Outcome::kind).collect();
        assert_eq!(kinds, [internal::OutcomeKind::Delivered]);
    }
}
