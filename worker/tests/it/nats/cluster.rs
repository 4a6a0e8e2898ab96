//! Streams with three replicas.

use weft_testkit::TestCluster;

use super::*;

const EVENTS: u64 = 30;
/// Number of the event during whose delivery the leader is killed.
const KILLED_AT: u64 = 10;

/// Guards: exactly once, in order, also when the leader of the stream is lost while an event is being stored. Its answer is lost,
/// and the next leader is asked whether the event is there.
#[tokio::test(flavor = "multi_thread")]
async fn a_stream_that_loses_its_leader_holds_each_event_once_and_in_order() {
    let cluster = TestCluster::start().await;
    let connection = cluster.connection("test").await;
    let replicated = stream::Config { num_replicas: 3, duplicate_window: NO_WINDOW, ..config() };
    add_stream(&connection, replicated).await;
    let leader = cluster.leader(&connection, "ORDERS").await;
    let survivor = cluster.others(leader).next().unwrap();
    let uid = SubscriptionUid::unique();
    let new_process = || {
        let process = here();
        process.put(&subscription(uid, |nats| nats.url = cluster.url(survivor).into())).unwrap();
        process
    };
    let deliver = async |process: &Destinations, number: u64| {
        let delivery = delivery_to(uid, |event| {
            event.id = EventId::of_delivery("shop", &number.to_string());
            event.sequence_number = SequenceNumber(number);
        });
        // As a lane does: the same event until it is stored.
        let stored = async || {
            let end = process.deliver(Delivery { timeout: Duration::from_secs(2), ..delivery.clone() }).await.unwrap();
            end.result == AttemptResult::Delivered
        };
        assert!(eventually(PATIENCE, stored).await, "event {number}");
    };
    let process = new_process();
    for number in 1..=EVENTS {
        if number == KILLED_AT {
            tokio::join!(deliver(&process, number), async { cluster.kill(leader) });
        } else {
            deliver(&process, number).await;
        }
    }
    let left = cluster.connection_to(survivor, "left").await;
    let numbers: Vec<_> = messages(&left, "ORDERS").await.iter().map(|message| number_of(message)).collect();
    assert_eq!(numbers, (1..=EVENTS).collect::<Vec<_>>());
    // The one that was lost has what the others have.
    cluster.restart(leader).await;
    let mut stream = left.jetstream().get_stream("ORDERS").await.unwrap();
    let is_whole = async || {
        let info = stream.info().await.ok();
        let replicas = info.and_then(|info| info.cluster.as_ref()).map(|cluster| cluster.replicas.clone());
        replicas.is_some_and(|replicas| replicas.len() == 2 && replicas.iter().all(|replica| replica.current))
    };
    assert!(eventually(PATIENCE, is_whole).await, "the replicas are current");
    // By the worker that takes the shard over.
    deliver(&new_process(), EVENTS).await;
    assert_eq!(messages(&left, "ORDERS").await.len() as u64, EVENTS, "stored before");
}
