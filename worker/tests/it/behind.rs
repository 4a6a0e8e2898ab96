//! Subscriptions that are behind the log: created with an earlier start, or paused with a backlog.

use weft_proto::internal::{self, subscription_change::Change};

use crate::support::{Log, Receiver, Running, assert_in_order, assert_once};

/// No gap and no repeat where its own reader meets the shared one, however busy the log is meanwhile.
#[tokio::test(flavor = "multi_thread")]
async fn an_earlier_start_meets_a_busy_log() {
    let mut log = Log::start().await;
    let (early, late) = (Receiver::start(|_| 200).await, Receiver::start(|_| 200).await);
    log.subscribe("early", &early, 1).await;
    let folder = tempfile::tempdir().unwrap();
    let worker = Running::start(&log, folder.path());
    log.events(1000, 10).await;
    early.until(|requests| !requests.is_empty()).await;
    log.subscribe("late", &late, 1).await;
    // As fast as they are delivered: a backlog that grows with the time until the catalog is read would take for ever.
    while late.requests.lock().unwrap().is_empty() {
        log.events(20, 10).await;
        early.until_delivered(log.end() as usize).await;
    }
    // It reads on its own, or has just joined.
    for _ in 0..20 {
        log.events(50, 10).await;
    }
    let sent = log.end() as usize;
    for receiver in [&early, &late] {
        let requests = receiver.until_delivered(sent).await;
        assert_in_order(&requests, 10, sent as u64 / 10);
    }
    worker.stop().await;
    for receiver in [&early, &late] {
        assert_once(receiver);
    }
}

/// The backlog of a pause outlives its worker, and comes in order and once when the subscription resumes, while more arrives.
#[tokio::test(flavor = "multi_thread")]
async fn the_backlog_of_a_pause_comes_in_order_and_once() {
    let mut log = Log::start().await;
    let (paused, other) = (Receiver::start(|_| 200).await, Receiver::start(|_| 200).await);
    log.subscribe("paused", &paused, 1).await;
    log.subscribe("other", &other, 1).await;
    let folder = tempfile::tempdir().unwrap();
    let worker = Running::start(&log, folder.path());
    log.events(200, 20).await;
    paused.until_delivered(200).await;
    log.pause("paused", true).await;
    log.events(1000, 20).await;
    other.until_delivered(1200).await;
    worker.stop().await;
    log.events(200, 20).await;
    let worker = Running::start(&log, folder.path());
    other.until_delivered(1400).await;
    log.pause("paused", false).await;
    for _ in 0..10 {
        log.events(40, 20).await;
    }
    for receiver in [&paused, &other] {
        let requests = receiver.until_delivered(1800).await;
        assert_in_order(&requests, 20, 90);
    }
    worker.stop().await;
    for receiver in [&paused, &other] {
        assert_once(receiver);
    }
}

/// P3, P4: the lanes of a pause are bounded, however many workflows wait: beyond the bound the subscription reads on its
/// own, across a restart without its file, and comes in order and once when it resumes.
#[tokio::test(flavor = "multi_thread")]
async fn a_pause_of_many_workflows_detaches() {
    const WORKFLOWS: usize = 1500;
    let mut log = Log::start().await;
    let (paused, other) = (Receiver::start(|_| 200).await, Receiver::start(|_| 200).await);
    let subscription = log.subscribe_with("paused", &paused, 1, |subscription| subscription.paused = true).await;
    log.subscribe("other", &other, 1).await;
    let folder = tempfile::tempdir().unwrap();
    let worker = Running::start(&log, folder.path());
    log.events(2 * WORKFLOWS, WORKFLOWS).await;
    other.until_delivered(2 * WORKFLOWS).await;
    let detached_at = |commit: &internal::Commit| {
        let changes = commit.subscriptions.iter().filter(|change| change.subscription == subscription.uid);
        changes
            .filter_map(|change| if let Some(Change::Detached(own)) = &change.change { Some(own.next) } else { None })
            .next_back()
    };
    let commits = log.commits(|commits| commits.iter().any(|commit| detached_at(commit).is_some())).await;
    assert_eq!(commits.iter().rev().find_map(detached_at), Some(1001), "it waits before the workflow without a lane");
    worker.stop().await;
    let folder = tempfile::tempdir().unwrap();
    let worker = Running::start(&log, folder.path());
    log.events(WORKFLOWS, WORKFLOWS).await;
    other.until_delivered(3 * WORKFLOWS).await;
    log.pause("paused", false).await;
    for receiver in [&paused, &other] {
        let requests = receiver.until_delivered(3 * WORKFLOWS).await;
        assert_in_order(&requests, WORKFLOWS, 3);
    }
    worker.stop().await;
    for receiver in [&paused, &other] {
        assert_once(receiver);
    }
}
