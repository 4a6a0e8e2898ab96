//! Reads of a stream before an event is published.

use weft_nats::async_nats::{HeaderMap, header::NATS_EXPECTED_LAST_SUBJECT_SEQUENCE};

use super::*;

/// Messages of a subject: more than an attempt of [`SHORT`] reads, and fewer than are read at most.
const MANY: u64 = 8000;
/// Timeout of an attempt.
const SHORT: Duration = Duration::from_millis(100);
/// Attempts after which a read that starts again each time would still not have come to its end.
const ATTEMPTS: usize = 300;

/// Guards: an event of a subject with more messages than an attempt can read is delivered at last, since the next attempt reads
/// on where a timeout has interrupted the one before.
#[tokio::test(flavor = "multi_thread")]
async fn a_long_read_continues_after_a_timeout() {
    let orders = Orders::start().await;
    let jetstream = orders.connection.jetstream();
    let mut acks = Vec::new();
    for last in 0..MANY {
        // As another subscription has stored them: nothing ends the read before the first message.
        let mut headers = HeaderMap::new();
        headers.insert(NATS_EXPECTED_LAST_SUBJECT_SEQUENCE, last.to_string());
        acks.push(jetstream.publish_with_headers("orders.order%2E42.paid", headers, "other".into()).await.unwrap());
        if acks.len() == 100 {
            for ack in acks.drain(..) {
                ack.await.unwrap();
            }
        }
    }
    let process = orders.process();
    let mut interrupted = 0;
    loop {
        let end = process.deliver(Delivery { timeout: SHORT, ..orders.delivery(1) }).await.unwrap();
        if end.result == AttemptResult::Delivered {
            break;
        }
        assert_eq!(end.result, AttemptResult::Unreachable, "nothing was sent: {}", end.error);
        interrupted += 1;
        assert!(interrupted < ATTEMPTS, "the read comes to no end");
    }
    assert!(interrupted > 0, "the whole subject was read in one attempt: this test shows nothing");
    let stored = messages(&orders.connection, "ORDERS").await;
    assert_eq!((stored.len() as u64, number_of(&stored[MANY as usize])), (MANY + 1, 1));
}

/// Guards: a redrive says nothing of the live events that may be stored before it. A worker that has redriven an event finds those
/// that its predecessor has stored without a commit.
#[tokio::test]
async fn after_a_redrive_live_events_are_looked_for_again() {
    let orders = Orders::start().await;
    // Number 1 is a dead letter; 2 is stored, and its commit is lost with the worker.
    delivered(&orders.process(), orders.delivery(2)).await;
    assert_eq!(orders.numbers().await, [2]);
    let next = orders.process();
    delivered(&next, Delivery { run: Run(9), ..orders.delivery(1) }).await;
    assert_eq!(orders.numbers().await, [2, 1]);
    let end = delivered(&next, orders.delivery(2)).await;
    assert_eq!(&end.response[..], b"ORDERS: stored before");
    delivered(&next, orders.delivery(3)).await;
    assert_eq!(orders.numbers().await, [2, 1, 3]);
}
