//! Leases against a real nats-server.

use std::time::Duration;

use tokio_util::sync::CancellationToken;
use weft_proto::ids::ShardId;
use weft_worker::ownership::Leases;

use crate::support::{Log, PATIENCE};

fn leases(log: &Log, worker: &str) -> Leases {
    Leases::new(log.connection.clone(), worker.into(), Duration::from_secs(1))
}

/// Waits until the lease is there for the taking.
async fn acquire(leases: &Leases) -> weft_worker::ownership::Lease {
    let taking = async {
        loop {
            match leases.acquire(ShardId(0)).await.unwrap() {
                Ok(lease) => return lease,
                Err(_holder) => tokio::time::sleep(Duration::from_millis(20)).await,
            }
        }
    };
    tokio::time::timeout(PATIENCE, taking).await.expect("the lease runs out")
}

#[tokio::test]
async fn a_lease_is_its_holders_until_it_runs_out() {
    let log = Log::start().await;
    let (one, two) = (leases(&log, "one"), leases(&log, "two"));
    let first = one.acquire(ShardId(0)).await.unwrap().unwrap();
    assert_eq!(two.acquire(ShardId(0)).await.unwrap().unwrap_err(), "one");
    // Nobody renews it.
    drop(first);
    acquire(&two).await;
    assert_eq!(one.acquire(ShardId(0)).await.unwrap().unwrap_err(), "two");
}

#[tokio::test]
async fn a_holder_retakes_its_own_lease_at_once() {
    let log = Log::start().await;
    let one = leases(&log, "one");
    drop(one.acquire(ShardId(0)).await.unwrap().unwrap());
    assert!(one.acquire(ShardId(0)).await.unwrap().is_ok());
}

#[tokio::test]
async fn a_kept_lease_outlives_its_time_and_a_released_one_is_free_at_once() {
    let log = Log::start().await;
    let (one, two) = (leases(&log, "one"), leases(&log, "two"));
    let release = CancellationToken::new();
    let (tenure, keeping) = one.acquire(ShardId(0)).await.unwrap().unwrap().keep(release.clone());
    let keeper = tokio::spawn(keeping);
    // Longer than its time to live.
    let outlived = tokio::time::timeout(Duration::from_secs(3), tenure.lost().cancelled_owned()).await;
    assert!(outlived.is_err(), "it is not lost");
    assert!(tenure.may_attempt());
    assert_eq!(two.acquire(ShardId(0)).await.unwrap().unwrap_err(), "one");
    release.cancel();
    keeper.await.unwrap();
    assert!(two.acquire(ShardId(0)).await.unwrap().is_ok(), "free at once");
}

#[tokio::test]
async fn a_holder_that_cannot_renew_stops_in_time() {
    let log = Log::start().await;
    let (tenure, keeping) =
        leases(&log, "one").acquire(ShardId(0)).await.unwrap().unwrap().keep(CancellationToken::new());
    let keeper = tokio::spawn(keeping);
    log.server.pause();
    tokio::time::timeout(PATIENCE, tenure.lost().cancelled_owned()).await.expect("it is lost");
    assert!(!tenure.may_attempt(), "no attempt starts beyond two thirds of the time to live");
    log.server.resume();
    keeper.await.unwrap();
}
