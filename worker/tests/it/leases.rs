//! Leases against a real nats-server.

use std::time::Duration;

use tokio_util::sync::CancellationToken;
use weft_proto::ids::ShardId;
use weft_testkit::eventually;
use weft_worker::ownership::{Bucket, Holder, Lease, Leases, WorkerId};

use crate::support::{Log, PATIENCE};

const SHARD: ShardId = ShardId(0);
/// Time to live of a lease: several times what a busy machine needs between two requests.
const LIFE: Duration = Duration::from_secs(3);

fn bucket(log: &Log) -> Bucket {
    Bucket::new(log.connection.clone(), LIFE)
}

fn leases(log: &Log, worker: &str) -> Leases {
    Leases::new(bucket(log), Holder::new(WorkerId(worker.into())))
}

/// The holder of the lease, and its revision.
async fn held(log: &Log) -> (Option<String>, u64) {
    let roster = bucket(log).look().await.unwrap();
    let lease = roster.leases.get(&SHARD);
    lease.map_or((None, 0), |lease| (lease.holder.as_ref().map(|holder| holder.worker.0.clone()), lease.revision))
}

/// Claims the lease as it is seen now.
async fn claim(log: &Log, leases: &Leases) -> Lease {
    leases.claim(SHARD, held(log).await.1).await.unwrap().unwrap()
}

#[tokio::test]
async fn a_lease_is_its_holders_until_it_runs_out() {
    let log = Log::start().await;
    let (one, two) = (leases(&log, "one"), leases(&log, "two"));
    let first = claim(&log, &one).await;
    assert!(two.claim(SHARD, 0).await.unwrap().is_none(), "it was claimed first");
    assert_eq!(held(&log).await.0.as_deref(), Some("one"));
    // It is not renewed.
    drop(first);
    assert!(eventually(PATIENCE, async || held(&log).await.0.is_none()).await, "it runs out");
    let _second = claim(&log, &two).await;
    assert_eq!(held(&log).await.0.as_deref(), Some("two"));
}

#[tokio::test]
async fn a_holder_retakes_its_own_lease_at_once() {
    let log = Log::start().await;
    let one = leases(&log, "one");
    drop(claim(&log, &one).await);
    claim(&log, &one).await;
}

#[tokio::test]
async fn a_kept_lease_outlives_its_time_and_a_released_one_is_free_at_once() {
    let log = Log::start().await;
    let (one, two) = (leases(&log, "one"), leases(&log, "two"));
    let release = CancellationToken::new();
    let (lease, keeping) = claim(&log, &one).await.keep(release.clone());
    let keeper = tokio::spawn(keeping);
    // Longer than its time to live.
    let outlived = tokio::time::timeout(2 * LIFE, lease.lost().cancelled_owned()).await;
    assert!(outlived.is_err(), "it is not lost");
    assert!(lease.may_attempt());
    assert_eq!(held(&log).await.0.as_deref(), Some("one"));
    release.cancel();
    keeper.await.unwrap();
    assert_eq!(held(&log).await.0, None, "free at once");
    claim(&log, &two).await;
}

#[tokio::test]
async fn a_holder_that_cannot_renew_stops_in_time() {
    let log = Log::start().await;
    let one = leases(&log, "one");
    let (lease, keeping) = claim(&log, &one).await.keep(CancellationToken::new());
    let keeper = tokio::spawn(keeping);
    log.server.pause();
    tokio::time::timeout(PATIENCE, lease.lost().cancelled_owned()).await.expect("it is lost");
    assert!(!lease.may_attempt(), "no attempt starts beyond two thirds of the time to live");
    log.server.resume();
    keeper.await.unwrap();
}
