//! Receivers that cannot be reached for a short time.

use std::time::Duration;

use tokio::net::TcpSocket;
use weft_proto::{internal, v1};

use crate::support::{Log, Receiver, Running, assert_in_order};

/// An outage that is shorter than any retry policy expects: no attempt has reached the receiver, so none counts.
#[tokio::test(flavor = "multi_thread")]
async fn attempts_that_reach_no_receiver_use_up_no_retries() {
    let exponential = |max_retries| v1::Retry {
        max_retries,
        base_ms: 100,
        factor: 1.5,
        max_ms: 500,
        jitter: 0.0,
        ..Default::default()
    };
    let schedule = v1::Retry { schedule_ms: vec![50], ..exponential(0) };
    for (outage_ms, retry) in [(200, exponential(0)), (1500, exponential(0)), (1500, exponential(3)), (1500, schedule)]
    {
        let mut log = Log::start().await;
        // Bound, and not listening yet: connections are refused, and no other process takes the port.
        let socket = TcpSocket::new_v4().unwrap();
        socket.bind(([127, 0, 0, 1], 0).into()).unwrap();
        let address = socket.local_addr().unwrap();
        log.subscribe_at("billing", address, 1, |subscription| subscription.retry = Some(retry)).await;
        log.events(20, 2).await;
        let folder = tempfile::tempdir().unwrap();
        let worker = Running::start(&log, folder.path());
        tokio::time::sleep(Duration::from_millis(outage_ms)).await;
        let receiver = Receiver::at(socket.listen(1024).unwrap(), |_| 200);
        let requests = receiver.until_delivered(20).await;
        worker.stop().await;
        assert_in_order(&requests, 2, 10);
        let attempts = requests.iter().map(|request| request.attempt).max().unwrap();
        assert!(attempts < 40, "an absent receiver is not called in a loop: {attempts} attempts");
        let outcomes = log.outcomes(20).await;
        assert!(outcomes.iter().all(|outcome| outcome.kind() == internal::OutcomeKind::Delivered), "{outcomes:?}");
    }
}
