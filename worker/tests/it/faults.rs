//! Faults around a worker: servers that die or stall, owners that change, logs that are restored.

use jiff::Timestamp;
use weft_catalog::Catalog;
use weft_nats::{conditions::Conditions, streams};
use weft_proto::{
    ids::SubscriptionUid,
    internal::{self, outcome_record::Record, subscription_change::Change},
    v1,
};
use weft_testkit::{add_consumers, consumer_names, eventually, try_add_consumer};

use crate::support::{Log, PATIENCE, Receiver, Running, SHORT_LEASE, assert_in_order, delete};

/// P1: nats-server killed while deliveries are under way.
#[tokio::test(flavor = "multi_thread")]
async fn a_killed_server_costs_no_event_and_no_order() {
    let mut log = Log::start().await;
    let receiver = Receiver::start(|_| 200).await;
    let subscription = log.subscribe("billing", &receiver, 1).await;
    let folder = tempfile::tempdir().unwrap();
    log.events(1000, 10).await;
    let worker = Running::start(&log, folder.path());
    receiver.until_delivered(200).await;
    log.server.kill();
    log.server.restart().await;
    tokio::time::timeout(PATIENCE, log.connection.connected()).await.unwrap();
    let requests = receiver.until_delivered(1000).await;
    assert_in_order(&requests, 10, 100);
    worker.stop().await;
    let outcomes = log.outcomes(1000).await;
    let uid = SubscriptionUid::from_slice(&subscription.uid).unwrap();
    assert!(outcomes.iter().all(|outcome| outcome.subscription == uid.as_bytes()));
    assert_eq!(outcomes.len(), 1000);
}

/// P1, P3: nats-server stands still for longer than the lease lives: the shard is released, taken again, and continues.
#[tokio::test(flavor = "multi_thread")]
async fn a_stalled_server_ends_the_lease_and_costs_no_order() {
    let mut log = Log::start().await;
    let receiver = Receiver::start(|_| 200).await;
    log.subscribe("billing", &receiver, 1).await;
    let folder = tempfile::tempdir().unwrap();
    log.events(2000, 10).await;
    let mut worker = Running::start_leased(&log, folder.path(), SHORT_LEASE, |worker| worker);
    receiver.until_delivered(100).await;
    log.server.pause();
    worker.until_missing(|missing| missing.is_some_and(|text| text.contains("lease"))).await;
    log.server.resume();
    let requests = receiver.until_delivered(2000).await;
    assert_in_order(&requests, 10, 200);
    worker.stop().await;
    assert_eq!(log.outcomes(2000).await.len(), 2000, "P5: exactly one outcome per event");
}

/// A restart waits for exactly the moment that was committed, and continues to count attempts.
#[tokio::test(flavor = "multi_thread")]
async fn a_retry_keeps_its_time_and_number_through_a_restart() {
    let mut log = Log::start().await;
    let receiver = Receiver::start(|request| if request.attempt == 1 { 503 } else { 200 }).await;
    let retry = v1::Retry { schedule_ms: vec![6_000], ..Default::default() };
    log.subscribe_with("billing", &receiver, 1, |subscription| subscription.retry = Some(retry)).await;
    let folder = tempfile::tempdir().unwrap();
    let worker = Running::start(&log, folder.path());
    log.events(1, 1).await;
    let commits = log.commits(|commits| commits.iter().any(|commit| !commit.attempts.is_empty())).await;
    worker.abort().await;
    std::fs::remove_file(folder.path().join("ledger-0.redb")).unwrap();
    let attempt = commits.iter().find_map(|commit| commit.attempts.first()).unwrap();
    let due = Timestamp::from_millisecond(attempt.next_attempt_at_ms).unwrap();
    assert!(due > Timestamp::now(), "the restart comes before the retry");

    let worker = Running::start(&log, folder.path());
    let requests = receiver.until_delivered(1).await;
    let attempts: Vec<_> = requests.iter().map(|request| (request.attempt, request.answered)).collect();
    assert_eq!(attempts, [(1, 503), (2, 200)]);
    let late = requests[1].at.duration_since(due);
    assert!(!late.is_negative() && late.as_secs() < 10, "{late:?} after its time");
    worker.stop().await;
}

/// The fence: once another owner has written, the previous one can commit nothing, and starts over after it.
#[tokio::test(flavor = "multi_thread")]
async fn an_owner_that_is_fenced_off_commits_nothing_and_starts_over() {
    let mut log = Log::start().await;
    let receiver = Receiver::start(|_| 200).await;
    log.subscribe("billing", &receiver, 1).await;
    let folder = tempfile::tempdir().unwrap();
    let worker = Running::start(&log, folder.path());
    log.events(20, 4).await;
    receiver.until_delivered(20).await;
    log.outcomes(20).await;
    let newest = log.commits(|commits| commits.iter().any(|commit| commit.cursor == 20)).await.pop().unwrap();
    let other = internal::Commit {
        epoch: newest.epoch + 1000,
        worker: "another".into(),
        cursor: newest.cursor,
        commands_cursor: newest.commands_cursor,
        ..Default::default()
    };
    log.publish("outcomes.0", &internal::OutcomeRecord { record: Some(Record::Commit(other.clone())) }).await;
    log.events(20, 4).await;
    // The first owner attempts some, cannot commit, and stops; as its successor it repeats those, in order.
    log.outcomes(40).await;
    let requests = receiver.until(|requests| requests.iter().any(|request| request.epoch > other.epoch)).await;
    assert_in_order(&requests, 4, 10);
    worker.stop().await;
    let commits = log.commits(|_| true).await;
    let foreign = commits.iter().position(|commit| commit.epoch == other.epoch).unwrap();
    assert!(commits[..foreign].iter().all(|commit| commit.epoch <= newest.epoch));
    assert!(commits[foreign + 1..].iter().all(|commit| commit.epoch > other.epoch), "nothing of the old epoch follows");
}

/// P5: what a deleted subscription has pending is closed for good, in the log, and a restart does not take it up again.
#[tokio::test(flavor = "multi_thread")]
async fn a_deleted_subscription_is_closed_and_stays_closed() {
    let mut log = Log::start().await;
    let (down, up) = (Receiver::start(|_| 503).await, Receiver::start(|_| 200).await);
    let retry = v1::Retry { schedule_ms: vec![100; 100], ..Default::default() };
    let doomed = log.subscribe_with("doomed", &down, 1, |subscription| subscription.retry = Some(retry)).await;
    log.subscribe("kept", &up, 1).await;
    let folder = tempfile::tempdir().unwrap();
    let worker = Running::start(&log, folder.path());
    log.events(4, 2).await;
    down.until(|requests| requests.len() > 3).await;
    let catalog = Catalog::new(log.connection.clone(), weft_testkit::master_key());
    delete(&catalog, "doomed").await;
    let is_closed = |change: &internal::SubscriptionChange| {
        change.subscription == doomed.uid && matches!(change.change, Some(Change::Closed(_)))
    };
    log.commits(|commits| commits.iter().flat_map(|commit| &commit.subscriptions).any(is_closed)).await;
    worker.stop().await;
    let seen = down.requests.lock().unwrap().len();
    let worker = Running::start(&log, folder.path());
    log.events(4, 2).await;
    up.until_delivered(8).await;
    worker.stop().await;
    assert_eq!(down.requests.lock().unwrap().len(), seen);
}

/// One user of NATS may take all the consumers of a stream, since the server does not limit them by user. An owner that is
/// refused one delivers all the same, with its stored order, and says so; it has a consumer again once there is room.
#[tokio::test(flavor = "multi_thread")]
async fn without_a_consumer_the_owner_reads_on() {
    let mut log = Log::start().await;
    let receiver = Receiver::start(|_| 200).await;
    log.subscribe("billing", &receiver, 1).await;
    let folder = tempfile::tempdir().unwrap();
    log.events(10, 1).await;
    let conditions = Conditions::default();
    let mut worker = Running::start_with(&log, folder.path(), |worker| worker.conditions(conditions.clone()));
    receiver.until_delivered(10).await;
    let consumers = streams::consumers(&log.connection, "EVENTS").await.unwrap();
    add_consumers(&log.connection, "EVENTS", consumers.limit - consumers.count).await;
    let connection = log.connection.clone();
    let names = async |prefix: &str| {
        let names = consumer_names(&connection, "EVENTS").await;
        names.into_iter().filter(|name| name.starts_with(prefix)).count()
    };
    let refused = eventually(PATIENCE, async || {
        remove_consumers(&log, "worker-events-").await;
        // The place that has become free; the worker may have been faster.
        let _ = try_add_consumer(&log.connection, "EVENTS").await;
        let consumers = streams::consumers(&log.connection, "EVENTS").await.unwrap();
        consumers.count == consumers.limit && names("worker-events-").await == 0
    });
    assert!(refused.await);
    for more in 2..5 {
        log.events(10, 1).await;
        receiver.until_delivered(more * 10).await;
    }
    let says = async || conditions.lines().iter().any(|line| line.contains("reader worker-events-0 of EVENTS refused"));
    assert!(eventually(PATIENCE, says).await, "{:?}", conditions.lines());
    worker.until_missing(|missing| missing.is_none()).await;
    remove_consumers(&log, "other-").await;
    assert!(eventually(PATIENCE, async || names("worker-events-").await == 1).await);
    assert!(eventually(PATIENCE, async || conditions.lines().is_empty()).await, "{:?}", conditions.lines());
    log.events(10, 1).await;
    receiver.until_delivered(50).await;
    worker.stop().await;
}

async fn remove_consumers(log: &Log, prefix: &str) {
    let stream = log.connection.jetstream().get_stream("EVENTS").await.unwrap();
    for name in consumer_names(&log.connection, "EVENTS").await.iter().filter(|name| name.starts_with(prefix)) {
        // One that is gone already is gone.
        let _ = stream.delete_consumer(name).await;
    }
}
