//! Filters that change while events wait.

use weft_catalog::Catalog;
use weft_proto::{
    internal::{self, subscription_change::Change},
    v1,
};
use weft_testkit::master_key;

use crate::support::{Log, PATIENCE, Receiver, Running};

/// Gives a subscription another list of types.
async fn retype(log: &Log, name: &str, types: &[&str]) {
    let catalog = Catalog::new(log.connection.clone(), master_key());
    let entry = catalog.read().await.unwrap().subscriptions[name].clone();
    let types = types.iter().map(|text| (*text).to_owned()).collect();
    let value = v1::Subscription { types, ..entry.value.as_ref().clone() };
    catalog.put_subscription(&value, entry.revision).await.unwrap();
}

/// Three workflows whose receiver is away: `w0` has two events that the narrower filter does not take, `w1` both kinds by
/// turns, `w2` only such that it takes.
async fn three_workflows(log: &mut Log) -> usize {
    let events = [("w0", "aa"), ("w1", "abab"), ("w2", "bb")];
    for (workflow, kinds) in events {
        for kind in kinds.chars() {
            log.event_with(workflow, |event| event.event_type = format!("order.{kind}")).await;
        }
    }
    events.iter().map(|(_, kinds)| kinds.len()).sum()
}

/// P5: what a subscription has taken ends with an outcome when its filter becomes narrower meanwhile, whether the worker
/// resumes or another one takes over. Before, events that the new filter did not take vanished without an outcome.
#[tokio::test(flavor = "multi_thread")]
async fn a_narrower_filter_gives_up_nothing_that_was_taken() {
    for restarts in [false, true] {
        let mut log = Log::start().await;
        let receiver = Receiver::start(|_| 503).await;
        let waits = |subscription: &mut v1::Subscription| {
            subscription.types = vec!["order.*".into()];
            subscription.retry = Some(v1::Retry { schedule_ms: vec![500; 100], ..Default::default() });
        };
        log.subscribe_with("bar", &receiver, 1, waits).await;
        let folder = tempfile::tempdir().unwrap();
        let mut worker = Running::start(&log, folder.path());
        let taken = three_workflows(&mut log).await;
        receiver.until(|requests| ["w0", "w1", "w2"].iter().all(|w| requests.iter().any(|r| r.workflow == *w))).await;

        // The lanes are parked, and read their events again by the filter in force.
        if restarts {
            worker.stop().await;
            retype(&log, "bar", &["order.b"]).await;
            worker = Running::start(&log, folder.path());
        } else {
            log.pause("bar", true).await;
            retype(&log, "bar", &["order.b"]).await;
        }
        let back = Receiver::start(|_| 200).await;
        let catalog = Catalog::new(log.connection.clone(), master_key());
        let entry = catalog.read().await.unwrap().subscriptions["bar"].clone();
        let mut value = entry.value.as_ref().clone();
        value.paused = false;
        let http = v1::HttpDestination {
            url: format!("http://{}/", back.address),
            secrets: vec![crate::support::SECRET.into()],
            format: v1::HttpFormat::Envelope.into(),
            ..Default::default()
        };
        value.destination = Some(v1::Destination { kind: Some(v1::destination::Kind::Http(http)) });
        catalog.put_subscription(&value, entry.revision).await.unwrap();
        back.until_delivered(taken).await;
        // From now on the narrower filter counts.
        log.event_with("w0", |event| event.event_type = "order.a".into()).await;
        log.event_with("w0", |event| event.event_type = "order.b".into()).await;
        let requests = back.until_delivered(taken + 1).await;
        let of_w0: Vec<u64> = requests.iter().filter(|r| r.workflow == "w0").map(|r| r.sequence).collect();
        assert_eq!(of_w0, [1, 2, 4], "restarts: {restarts}");
        let outcomes = tokio::time::timeout(PATIENCE, log.outcomes(taken + 2)).await.unwrap();
        worker.stop().await;
        let kinds: Vec<_> = outcomes.iter().filter(|outcome| !outcome.subscription.is_empty()).collect();
        assert_eq!(kinds.len(), taken + 1);
        assert!(kinds.iter().all(|outcome| outcome.kind() == internal::OutcomeKind::Delivered), "{kinds:?}");
    }
}

/// P3: events that a take-over finds unread may have been read by an owner that ignored them and delivered later ones. A filter
/// that has become wider meanwhile takes them from the next event on only.
#[tokio::test(flavor = "multi_thread")]
async fn a_wider_filter_counts_after_the_events_that_an_earlier_owner_may_have_read() {
    let mut log = Log::start().await;
    let receiver = Receiver::start(|_| 200).await;
    let narrow = |subscription: &mut v1::Subscription| subscription.types = vec!["order.b".into()];
    log.subscribe_with("bar", &receiver, 1, narrow).await;
    let folder = tempfile::tempdir().unwrap();
    let worker = Running::start(&log, folder.path());
    log.event_with("w0", |event| event.event_type = "order.b".into()).await;
    receiver.until_delivered(1).await;
    worker.stop().await;
    retype(&log, "bar", &["order.*"]).await;
    for kind in ["a", "b", "a", "b"] {
        log.event_with("w0", |event| event.event_type = format!("order.{kind}")).await;
    }
    let worker = Running::start(&log, folder.path());
    receiver.until_delivered(3).await;
    let counts = |change: &internal::SubscriptionChange| matches!(&change.change, Some(Change::Revised(revised)) if revised.types == ["order.*"] && revised.from == 6);
    log.commits(|commits| commits.iter().any(|commit| commit.subscriptions.iter().any(counts))).await;
    for kind in ["a", "b"] {
        log.event_with("w0", |event| event.event_type = format!("order.{kind}")).await;
    }
    let requests = receiver.until_delivered(5).await;
    worker.stop().await;
    assert_eq!(requests.iter().map(|request| request.sequence).collect::<Vec<_>>(), [1, 3, 5, 6, 7]);
    // Those that the narrow filter ignores are unrouted.
    let outcomes = tokio::time::timeout(PATIENCE, log.outcomes(7)).await.unwrap();
    let unrouted = outcomes.iter().filter(|outcome| outcome.kind() == internal::OutcomeKind::Unrouted);
    assert_eq!(unrouted.map(|outcome| outcome.sequence).collect::<Vec<_>>(), [2, 4]);
}
