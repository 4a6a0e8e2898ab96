//! P4: a slow receiver costs the receivers of other subscriptions no throughput.

use std::time::Duration;

use axum::{Router, http::StatusCode};
use tokio::net::TcpListener;

use crate::support::{Log, Receiver, Running};

/// More than the process has slots: each may be a lane that waits for the slow receiver.
const WORKFLOWS: usize = 200;
/// Slots that the fast subscription may use, with the slow one or without. It leaves the others to the slow one, which takes
/// all of them.
const FAST: u32 = 8;
const EVENTS: usize = 5000;
/// Time of the slow receiver for each request.
const DELAY: Duration = Duration::from_secs(2);
/// Minimum of the rate with the slow receiver ÷ the rate without. A subscription that waits for the other one's slots or memory
/// has a hundredth; what lies between is the machine, which others use at the same time.
const RATIO_MIN: f64 = 0.6;
/// Pairs of runs, of which one has to reach it.
const PAIRS: usize = 5;

/// Events a second at the fast receiver. The slow subscription may use all slots of the process.
async fn rate(has_slow: bool) -> f64 {
    let mut log = Log::start().await;
    let fast = Receiver::start(|_| 200).await;
    log.subscribe_with("fast", &fast, 1, |subscription| subscription.concurrency = FAST).await;
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    if has_slow {
        log.subscribe_at("slow", listener.local_addr().unwrap(), 1, |_| ()).await;
    }
    let answer = async || {
        tokio::time::sleep(DELAY).await;
        StatusCode::OK
    };
    let slow = tokio::spawn(async move { axum::serve(listener, Router::new().fallback(answer)).await });
    log.events(EVENTS, WORKFLOWS).await;
    let folder = tempfile::tempdir().unwrap();
    let worker = Running::start(&log, folder.path());
    let requests = fast.until_delivered(EVENTS).await;
    worker.abort().await;
    slow.abort();
    let times = requests.iter().map(|request| request.at);
    let (first, last) = (times.clone().min().unwrap(), times.max().unwrap());
    EVENTS as f64 / Duration::try_from(last.duration_since(first)).unwrap().as_secs_f64()
}

/// The short form of `weft bench worker slow-receiver`, whose bound is 0.9.
#[tokio::test(flavor = "multi_thread")]
async fn a_slow_receiver_leaves_a_fast_one_its_throughput() {
    let mut ratios = Vec::new();
    while ratios.last().is_none_or(|ratio| *ratio < RATIO_MIN) {
        assert!(ratios.len() < PAIRS, "with a slow receiver ÷ without: {ratios:?}");
        let without = rate(false).await;
        ratios.push(rate(true).await / without);
    }
}
