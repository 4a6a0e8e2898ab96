//! EVENTS at its `max_bytes`.

use weft_nats::{
    conditions::Conditions,
    options::{MaxBytes, OnFull},
    streams::{self, LogSpec},
    subject::DLQ_STREAM,
};
use weft_proto::internal;
use weft_testkit::eventually;

use crate::support::{Log, PATIENCE, Receiver, Running, spec};

const LIMIT: u64 = 1024 * 1024;
const EVENT_BYTES: usize = 20 * 1024;

fn small(on_full: OnFull) -> LogSpec {
    let mut spec = spec();
    spec.log.max_bytes = MaxBytes::Bytes(LIMIT);
    spec.log.on_full = on_full;
    spec
}

async fn first(log: &Log) -> u64 {
    streams::state(&log.connection, "EVENTS").await.unwrap().first.0
}

/// Unsettled events stay, however full the log is; once it is settled there is room again, also where the log was so
/// full that not even the heads found room.
#[tokio::test(flavor = "multi_thread")]
async fn only_what_is_settled_is_dropped() {
    let mut log = Log::of(small(OnFull::DropSettled)).await;
    let (here, away) = (Receiver::start(|_| 200).await, Receiver::start(|_| 200).await);
    log.subscribe("here", &here, 1).await;
    log.subscribe_with("away", &away, 1, |subscription| subscription.paused = true).await;
    let folder = tempfile::tempdir().unwrap();
    let worker = Running::start(&log, folder.path());
    let mut sent = 0;
    while log.large_event(&format!("w{}", sent % 5), EVENT_BYTES).await {
        sent += 1;
    }
    here.until_delivered(sent).await;
    assert_eq!(first(&log).await, 1, "one subscription has nothing of it");
    log.pause("away", false).await;
    away.until_delivered(sent).await;
    assert!(eventually(PATIENCE, async || first(&log).await > 1).await);
    // As many again, and none is missed.
    for number in 0..sent {
        assert!(eventually(PATIENCE, async || log.large_event(&format!("w{}", number % 5), EVENT_BYTES).await).await);
    }
    for receiver in [&here, &away] {
        receiver.until_delivered(2 * sent).await;
    }
    let bytes_max = async || {
        let stream = log.connection.jetstream().get_stream("EVENTS").await.unwrap();
        u64::try_from(stream.cached_info().config.max_bytes).unwrap()
    };
    assert!(eventually(PATIENCE, async || bytes_max().await == LIMIT).await, "what was lent is given back");
    let outcomes = log.outcomes(4 * sent).await;
    worker.stop().await;
    assert!(outcomes.iter().all(|outcome| outcome.kind() == internal::OutcomeKind::Delivered), "P5: nothing is lost");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_log_that_is_to_refuse_drops_nothing() {
    let mut log = Log::of(small(OnFull::Refuse)).await;
    let receiver = Receiver::start(|_| 200).await;
    log.subscribe("here", &receiver, 1).await;
    let folder = tempfile::tempdir().unwrap();
    let worker = Running::start(&log, folder.path());
    let mut sent = 0;
    while log.large_event("w", EVENT_BYTES).await {
        sent += 1;
    }
    receiver.until_delivered(sent).await;
    log.outcomes(sent).await;
    worker.stop().await;
    assert_eq!(first(&log).await, 1);
}

/// A log above its limit in which everything is settled has room as soon as a worker owns it, also after a restart, where the
/// newest record of OUTCOMES settles nothing. Before, senders were refused until an event was settled, which none could be.
#[tokio::test(flavor = "multi_thread")]
async fn a_settled_log_has_room_after_a_restart() {
    for limit in [LIMIT, LIMIT / 2] {
        let mut log = Log::of(small(OnFull::Refuse)).await;
        let receiver = Receiver::start(|_| 200).await;
        log.subscribe("here", &receiver, 1).await;
        let folder = tempfile::tempdir().unwrap();
        let worker = Running::start(&log, folder.path());
        let mut sent = 0;
        while log.large_event(&format!("w{}", sent % 5), EVENT_BYTES).await {
            sent += 1;
        }
        log.outcomes(sent).await;
        worker.stop().await;
        log.spec.log.on_full = OnFull::DropSettled;
        log.spec.log.max_bytes = MaxBytes::Bytes(limit);
        let worker = Running::start(&log, folder.path());
        let accepted = eventually(PATIENCE, async || log.large_event("w0", EVENT_BYTES).await);
        assert!(accepted.await, "there is room with a limit of {limit}");
        receiver.until_delivered(sent + 1).await;
        worker.stop().await;
    }
}

/// A dead letter without a copy keeps its event in the log, and that is said.
#[tokio::test(flavor = "multi_thread")]
async fn a_dead_letter_without_a_copy_is_not_dropped() {
    let mut log = Log::of(small(OnFull::DropSettled)).await;
    let receiver = Receiver::start(|request| if request.workflow == "sick" { 422 } else { 200 }).await;
    log.subscribe("here", &receiver, 1).await;
    let folder = tempfile::tempdir().unwrap();
    let conditions = Conditions::default();
    let worker = Running::start_with(&log, folder.path(), |worker| worker.conditions(conditions.clone()));
    log.commits(|commits| !commits.is_empty()).await;
    log.connection.jetstream().delete_stream(DLQ_STREAM).await.unwrap();
    assert!(log.large_event("w", EVENT_BYTES).await);
    assert!(log.large_event("sick", EVENT_BYTES).await);
    let mut sent = 0;
    while log.large_event("w", EVENT_BYTES).await {
        sent += 1;
    }
    receiver.until_delivered(sent + 1).await;
    let is_said = async || conditions.lines().join("\n").contains("dead letter without a copy");
    assert!(eventually(PATIENCE, is_said).await, "{:?}", conditions.lines());
    assert!(eventually(PATIENCE, async || first(&log).await == 2).await, "what stands before it is dropped");
    streams::ensure(&log.connection, &log.spec).await.unwrap();
    assert!(eventually(PATIENCE, async || log.large_event("w", EVENT_BYTES).await).await);
    assert!(eventually(PATIENCE, async || conditions.lines().is_empty()).await, "{:?}", conditions.lines());
    worker.stop().await;
}
