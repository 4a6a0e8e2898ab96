//! Two processes with one worker id: one of them runs on a copy of the other's data folder.

use std::{fs, path::Path, time::Duration};

use tokio::time::Instant;
use weft_nats::options::Span;
use weft_proto::internal;

use crate::support::{Log, Receiver, Running, assert_in_order};

/// Longer than a busy machine holds up a worker.
const LEASE: Span = Span::secs(5);
/// More than two lives of a lease: enough for two workers that take the shard from each other to do so.
const WATCHED: Duration = Duration::from_secs(12);

/// Copies what says who a worker is.
fn copy_id(from: &Path, to: &Path) {
    fs::copy(from.join("worker.id"), to.join("worker.id")).unwrap();
}

fn newest_epoch(commits: &[internal::Commit]) -> u64 {
    commits.iter().map(|commit| commit.epoch).max().unwrap_or(0)
}

/// P3, P4: the process that was there first keeps its shards; the copy is never ready and takes nothing.
#[tokio::test(flavor = "multi_thread")]
async fn a_copy_of_a_running_worker_is_never_ready_and_moves_no_shard() {
    let mut log = Log::start().await;
    let receiver = Receiver::start(|_| 200).await;
    log.subscribe("billing", &receiver, 1).await;
    let (folder, copy) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let mut first = Running::start_leased(&log, folder.path(), LEASE, |worker| worker);
    log.events(10, 2).await;
    receiver.until_delivered(10).await;
    first.until_missing(|missing| missing.is_none()).await;
    copy_id(folder.path(), copy.path());
    let epoch = newest_epoch(&log.commits(|commits| !commits.is_empty()).await);

    let mut second = Running::start_leased(&log, copy.path(), LEASE, |worker| worker);
    let said = second.until_missing(|missing| missing.is_some_and(|text| text.contains("another process"))).await;
    assert!(said.unwrap().contains("worker.id"), "it says what to do");
    let end = Instant::now() + WATCHED;
    let mut delivered = 10;
    while Instant::now() < end {
        log.events(2, 2).await;
        delivered += 2;
        receiver.until_delivered(delivered).await;
        assert!(second.missing().is_some(), "the copy is not ready");
        tokio::time::sleep(Duration::from_millis(250)).await;
    }
    let commits = log.commits(|commits| !commits.is_empty()).await;
    assert_eq!(newest_epoch(&commits), epoch, "the shard has not moved");
    let requests = receiver.until_delivered(delivered).await;
    assert_in_order(&requests, 2, delivered as u64 / 2);
    assert_eq!(requests.len(), delivered, "nothing was delivered twice");

    // Once the first has ended in good order, the copy is the only one.
    first.stop().await;
    second.until_missing(|missing| missing.is_none()).await;
    log.events(2, 2).await;
    receiver.until_delivered(delivered + 2).await;
    second.stop().await;
}

/// A worker that was killed and starts again on its folder has its shards back before the lease runs out.
#[tokio::test(flavor = "multi_thread")]
async fn a_worker_that_was_killed_has_its_lease_back_before_it_runs_out() {
    const LONG_LEASE: Span = Span::secs(30);
    let mut log = Log::start().await;
    let receiver = Receiver::start(|_| 200).await;
    log.subscribe("billing", &receiver, 1).await;
    let folder = tempfile::tempdir().unwrap();
    let worker = Running::start_leased(&log, folder.path(), LONG_LEASE, |worker| worker);
    log.events(10, 2).await;
    receiver.until_delivered(10).await;
    worker.abort().await;
    let started = Instant::now();
    let worker = Running::start_leased(&log, folder.path(), LONG_LEASE, |worker| worker);
    log.events(2, 2).await;
    receiver.until_delivered(12).await;
    let took = started.elapsed();
    assert!(took < LONG_LEASE.0, "{took:?}");
    worker.stop().await;
}
