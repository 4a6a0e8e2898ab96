//! Copies of dead letters that DLQ does not take.

use weft_catalog::Catalog;
use weft_nats::{
    append::publish,
    conditions::Conditions,
    direct,
    erasure::{Author, Erasure, remove},
    event::StoredEvent,
    message::Stored,
    streams,
    subject::DLQ_STREAM,
};
use weft_proto::{
    ids::StreamSeq,
    internal::{self, subscription_change::Change},
};
use weft_testkit::{eventually, master_key};

use crate::support::{Log, PATIENCE, Receiver, Request, Running, delete};

/// More commits with dead letters than any queue between driver and copies has places.
const DEAD: usize = 100;
const LARGE: usize = 64 * 1024;

/// Sets the largest message that DLQ takes.
async fn limit_copies(log: &Log, bytes: i32) {
    let jetstream = log.connection.jetstream();
    let mut config = jetstream.get_stream(DLQ_STREAM).await.unwrap().cached_info().config.clone();
    config.max_message_size = bytes;
    jetstream.update_stream(config).await.unwrap();
}

/// Copies in the commits.
async fn recorded(log: &Log, kind: internal::CopyStateKind) -> Vec<internal::CopyState> {
    let is_of_kind = |state: &&internal::CopyState| state.kind() == kind;
    let commits =
        log.commits(|commits| commits.iter().flat_map(|commit| &commit.copies).any(|state| is_of_kind(&state))).await;
    commits.iter().flat_map(|commit| &commit.copies).filter(is_of_kind).cloned().collect()
}

fn sequences(copies: &[Stored], whole: bool) -> Vec<u64> {
    let is_wanted = |copy: &&Stored| copy.headers.get("weft-payload-missing").is_none() == whole;
    let mut sequences: Vec<u64> = copies
        .iter()
        .filter(is_wanted)
        .map(|copy| copy.headers.get("weft-seq").unwrap().as_str().parse().unwrap())
        .collect();
    sequences.sort_unstable();
    sequences
}

/// P4: a copy that DLQ refuses for its size is recorded and shown, and everything else continues: later events, other copies, a
/// drain. When the limit is raised the copy is made. Before, the shard stood still after 64 more commits, and a drain failed.
#[tokio::test(flavor = "multi_thread")]
async fn a_refused_copy_holds_back_nothing() {
    let mut log = Log::start().await;
    limit_copies(&log, LARGE as i32 / 2).await;
    let receiver = Receiver::start(|request: &Request| if request.workflow == "fine" { 200 } else { 422 }).await;
    log.subscribe("billing", &receiver, 1).await;
    let folder = tempfile::tempdir().unwrap();
    let conditions = Conditions::default();
    let shown = conditions.clone();
    let start = |log: &Log| Running::start_with(log, folder.path(), |worker| worker.conditions(shown.clone()));
    let worker = start(&log);
    assert!(log.large_event("large", LARGE).await);
    let workflows = ["sick".to_owned(), "fine".to_owned()];
    log.events_of(2 * DEAD, &workflows).await;
    receiver.until_delivered(DEAD).await;
    let small: Vec<u64> = (1..=DEAD as u64).map(|number| number * 2).collect();
    let copies = log.read(DLQ_STREAM, |copies| sequences(copies, true).len() == DEAD).await;
    assert_eq!(sequences(&copies, true), small);
    assert_eq!(sequences(&copies, false), [1], "what is refused is named without its payload");
    let refused = recorded(&log, internal::CopyStateKind::Refused).await;
    assert_eq!(refused.len(), 1);
    assert!(refused[0].problem.contains("size"), "{}", refused[0].problem);
    let is_shown = async || {
        let text = conditions.lines().join("\n");
        text.contains("1 are refused by DLQ") && text.contains("billing, sequence 1")
    };
    assert!(eventually(PATIENCE, is_shown).await, "{:?}", conditions.lines());

    // A new owner knows of it, also without its file, and tries again.
    worker.stop().await;
    assert!(conditions.lines().is_empty(), "another owner shows it");
    std::fs::remove_file(folder.path().join("ledger-0.redb")).unwrap();
    let worker = start(&log);
    assert!(eventually(PATIENCE, async || !conditions.lines().is_empty()).await);
    worker.stop().await;
    limit_copies(&log, -1).await;
    let worker = start(&log);
    let copies = log.read(DLQ_STREAM, |copies| sequences(copies, true).len() == DEAD + 1).await;
    let whole = copies.iter().rfind(|copy| copy.headers.get("weft-seq").unwrap().as_str() == "1").unwrap();
    assert!(whole.payload.len() > LARGE);
    assert_eq!(recorded(&log, internal::CopyStateKind::Stored).await.len(), 1);
    assert!(eventually(PATIENCE, async || conditions.lines().is_empty()).await);
    worker.stop().await;
}

/// P4: the same without a stream DLQ. Once it is there again each copy is made, from OUTCOMES and EVENTS.
#[tokio::test(flavor = "multi_thread")]
async fn without_a_dlq_the_shard_goes_on_and_the_copies_follow() {
    let mut log = Log::start().await;
    let receiver = Receiver::start(|request: &Request| if request.workflow == "fine" { 200 } else { 422 }).await;
    log.subscribe("billing", &receiver, 1).await;
    let folder = tempfile::tempdir().unwrap();
    let conditions = Conditions::default();
    let worker = Running::start_with(&log, folder.path(), |worker| worker.conditions(conditions.clone()));
    // It has made its streams.
    log.commits(|commits| !commits.is_empty()).await;
    log.connection.jetstream().delete_stream(DLQ_STREAM).await.unwrap();
    // More than are kept in memory.
    let workflows: Vec<String> = ["fine".to_owned()].into_iter().chain((0..4).map(|n| format!("sick{n}"))).collect();
    log.events_of(10 * DEAD, &workflows).await;
    receiver.until_delivered(2 * DEAD).await;
    log.outcomes(10 * DEAD).await;
    let is_shown = async || conditions.lines().join("\n").contains("wait: billing");
    assert!(eventually(PATIENCE, is_shown).await, "{:?}", conditions.lines());
    streams::ensure(&log.connection, &log.spec).await.unwrap();
    let copies = log.read(DLQ_STREAM, |copies| copies.len() == 8 * DEAD).await;
    let wanted: Vec<u64> = (1..=10 * DEAD as u64).filter(|sequence| sequence % 5 != 1).collect();
    assert_eq!(sequences(&copies, true), wanted);
    assert!(eventually(PATIENCE, async || conditions.lines().is_empty()).await);
    worker.stop().await;
}

/// P5: a subscription is deleted before DLQ takes the copies of its dead letters. They are made under its name, by the owner
/// that settled the events and by the next one. Before, they were made under its uid, and the admin listed all of its dead
/// letters under that.
#[tokio::test(flavor = "multi_thread")]
async fn copies_have_the_name_of_a_subscription_that_was_deleted_meanwhile() {
    for with_next_owner in [false, true] {
        let mut log = Log::start().await;
        let receiver = Receiver::start(|_| 422).await;
        log.subscribe("billing", &receiver, 1).await;
        let (folder, next_folder) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let mut worker = Running::start(&log, folder.path());
        log.commits(|commits| !commits.is_empty()).await;
        log.connection.jetstream().delete_stream(DLQ_STREAM).await.unwrap();
        log.events(5, 5).await;
        log.outcomes(5).await;
        delete(&Catalog::new(log.connection.clone(), master_key()), "billing").await;
        let is_closed = |change: &internal::SubscriptionChange| matches!(change.change, Some(Change::Closed(_)));
        log.commits(|commits| commits.iter().flat_map(|commit| &commit.subscriptions).any(is_closed)).await;
        if with_next_owner {
            worker.stop().await;
            worker = Running::start(&log, next_folder.path());
        }
        streams::ensure(&log.connection, &log.spec).await.unwrap();
        let copies = log.read(DLQ_STREAM, |copies| copies.len() == 5).await;
        for copy in copies {
            assert!(copy.subject.starts_with("dlq.billing."), "{}", copy.subject);
            assert_eq!(copy.headers.get("weft-subscription").unwrap().as_str(), "billing");
        }
        worker.stop().await;
    }
}

/// The copy of a dead letter waits in memory while its event is erased: no payload comes into DLQ after the erasure, which had
/// no copy to remove.
#[tokio::test(flavor = "multi_thread")]
async fn a_copy_that_waits_while_its_event_is_erased_leaves_no_payload() {
    let mut log = Log::start().await;
    let receiver = Receiver::start(|_: &Request| 422).await;
    log.subscribe("billing", &receiver, 1).await;
    let folder = tempfile::tempdir().unwrap();
    let worker = Running::start(&log, folder.path());
    log.events(1, 1).await;
    log.read(DLQ_STREAM, |copies| copies.len() == 1).await;
    let connection = log.connection.clone();
    let jetstream = connection.jetstream();
    let config = jetstream.get_stream(DLQ_STREAM).await.unwrap().cached_info().config.clone();
    jetstream.delete_stream(DLQ_STREAM).await.unwrap();
    let events = log.events(2, 2).await;
    log.outcomes(3).await;
    let erased = direct::get(&log.connection, "EVENTS", StreamSeq(2)).await.unwrap().unwrap();
    let stored = StoredEvent { seq: erased.seq, stored_at: erased.stored_at, event: events[0].clone() };
    let by = Author { operator: "ann".into(), reason: String::new(), request_id: "r".into(), at: erased.stored_at };
    let record = Erasure::new(stored, [0; 32], None, by).encode(log.layout);
    publish(&log.connection, &record).await.unwrap();
    remove(&log.connection, "EVENTS", StreamSeq(2)).await.unwrap();
    jetstream.create_stream(config).await.unwrap();
    // Copies of one subscription are made in order: that of the second event comes after the first.
    log.read(DLQ_STREAM, |copies| copies.iter().any(|copy| copy.subject.contains(&events[1].id.to_string()))).await;
    let copies = log.read(DLQ_STREAM, |_| true).await;
    let of_erased: Vec<_> = copies.iter().filter(|copy| copy.subject.contains(&events[0].id.to_string())).collect();
    assert!(of_erased.is_empty(), "{of_erased:?}");
    worker.stop().await;
}
