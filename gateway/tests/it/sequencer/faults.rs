//! The server killed, silent, and overrun.

use super::*;
use weft_testkit::{add_consumers, eventually};

/// P1, P2, P3 through `kill -9` of the server under load: nothing acknowledged is lost, nothing is double, numbers are
/// contiguous, and at most one sender of a delivery was answered that it is new.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_killed_server_loses_and_doubles_nothing() {
    const SENDERS: u64 = 8;
    const EACH: u64 = 60;
    let mesh = Mesh::start().await;
    let folders = [folder(), folder()];
    let gateways = [mesh.sequencer(&folders[0]).await, mesh.sequencer(&folders[1]).await];
    let (counted, mut count) = watch::channel(0);
    let mut senders = JoinSet::new();
    for sender in 0..SENDERS {
        let sequencers = gateways.each_ref().map(|gateway| gateway.sequencer.clone());
        let counted = counted.clone();
        senders.spawn(async move {
            let mut receipts = Vec::new();
            for delivery in 0..EACH {
                let workflow = ["a", "b", "c"][(sender % 3) as usize];
                let wanted = event(workflow, sender * EACH + delivery);
                // Each delivery goes to both, as from a sender that is sure of nothing.
                for sequencer in &sequencers {
                    receipts.push(insist(sequencer, wanted.clone()).await);
                }
                counted.send_modify(|count| *count += 1);
            }
            receipts
        });
    }
    for quarter in 1..=3 {
        count.wait_for(|count| *count >= quarter * SENDERS * EACH / 4).await.unwrap();
        mesh.server().kill();
        mesh.server().restart().await;
    }
    let receipts: Vec<Receipt> = senders.join_all().await.into_iter().flatten().collect();
    let events = mesh.events().await;
    assert_eq!(events.len() as u64, SENDERS * EACH);
    let mut news: HashMap<EventId, u32> = HashMap::new();
    let stored: HashMap<EventId, &Event> = events.iter().map(|event| (event.id, event)).collect();
    for receipt in receipts {
        let event = stored[&receipt.event_id];
        assert_eq!((event.sequence_number, event.previous), (receipt.sequence_number, receipt.previous));
        let new = news.entry(receipt.event_id).or_default();
        *new += u32::from(!receipt.duplicate);
        assert!(*new <= 1, "{} was answered as new twice", receipt.event_id);
    }
}

/// A silent server: 503 by the deadline, at once where too much waits, and a repeat gets the receipt.
#[tokio::test]
async fn a_silent_server_is_answered_for_in_time() {
    let mesh = Mesh::start().await;
    let folder = folder();
    let mut options = SequencerOptions::new(folder.path().to_owned(), &mesh.spec, weft_testkit::master_key());
    options.submit_timeout = Duration::from_secs(3);
    let gateway = mesh.sequencer_with(options).await;
    mesh.server().pause();
    let large = |delivery| NewEvent { payload: Bytes::from(vec![b'1'; 1 << 20]), ..event("a", delivery) };
    let answers =
        futures_util::future::join_all((0..80).map(|delivery| gateway.sequencer.submit(large(delivery)))).await;
    let count = |error: SubmitError| answers.iter().filter(|answer| **answer == Err(error.clone())).count();
    let (unavailable, overloaded) = (count(SubmitError::Unavailable), count(SubmitError::Overloaded));
    assert_eq!(unavailable + overloaded, 80);
    assert!((10..=70).contains(&unavailable), "64 MiB may wait, {unavailable} did");
    mesh.server().resume();
    let receipt = gateway.insist(large(0)).await;
    assert_eq!(receipt.event_id, large(0).id);
    assert!(eventually(PATIENCE, async || !mesh.events().await.is_empty()).await);
}

/// A body of the largest size is taken; one that makes the message larger than the log takes is refused alone.
#[tokio::test]
async fn one_event_too_large_fails_nobody_else() {
    let mesh = Mesh::start().await;
    let folder = folder();
    let gateway = mesh.sequencer(&folder).await;
    let sized = |delivery, bytes| NewEvent { payload: Bytes::from(vec![b'1'; bytes]), ..event("a", delivery) };
    let events = [sized(1, 10), sized(2, 1 << 20), sized(3, (1 << 20) + (128 << 10)), sized(4, 10)];
    let answers = futures_util::future::join_all(events.map(|event| gateway.sequencer.submit(event))).await;
    assert_eq!(answers[2], Err(SubmitError::TooLarge));
    assert_eq!(answers.iter().filter(|answer| answer.is_ok()).count(), 3);
    assert_eq!(mesh.events().await.len(), 3);
    let connects = gateway.connection.client().statistics().connects.load(std::sync::atomic::Ordering::Relaxed);
    assert_eq!(connects, 1, "the server closes the connection of who sends it more than it takes");
}

/// The server refuses one event of a group, for a reason that was not seen here: the others are stored.
#[tokio::test]
async fn an_event_that_the_server_refuses_fails_nobody_else() {
    let mesh = Mesh::start().await;
    let folder = folder();
    let gateway = mesh.sequencer(&folder).await;
    let mut config = mesh.connection.jetstream().get_stream("EVENTS").await.unwrap().cached_info().config.clone();
    config.max_message_size = 4 * 1024;
    mesh.connection.jetstream().update_stream(config).await.unwrap();
    let mut events: Vec<NewEvent> = (0..40).map(|delivery| event("a", delivery)).collect();
    events[17].payload = Bytes::from(vec![b'1'; 8 * 1024]);
    let answers = futures_util::future::join_all(events.into_iter().map(|event| gateway.sequencer.submit(event))).await;
    for (delivery, answer) in answers.iter().enumerate() {
        assert_eq!(answer.as_ref().err(), (delivery == 17).then_some(&SubmitError::TooLarge), "{delivery}");
    }
    assert_eq!(mesh.events().await.len(), 39);
}

/// P2, P3: other clients have taken every consumer of EVENTS. Gateways that start, and those that append by turns, read on by
/// pages: each delivery is accepted once, numbered without a gap.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn without_a_consumer_gateways_accept_each_event_once() {
    let mesh = Mesh::start().await;
    let folders = [folder(), folder()];
    let first = mesh.sequencer(&folders[0]).await;
    for delivery in 1..=20 {
        first.insist(event("a", delivery)).await;
    }
    first.stop().await;
    let consumers = async || streams::consumers(&mesh.connection, "EVENTS").await.unwrap();
    assert!(eventually(PATIENCE, async || consumers().await.count == 0).await);
    add_consumers(&mesh.connection, "EVENTS", consumers().await.limit).await;
    let gateways = [mesh.sequencer(&folders[0]).await, mesh.sequencer(&folders[1]).await];
    for delivery in 10..=60 {
        let receipt = gateways[delivery as usize % 2].insist(event("a", delivery)).await;
        assert_eq!(receipt.sequence_number.0, delivery);
        assert!(delivery > 20 || receipt.duplicate, "{delivery}");
        let again = gateways[(delivery as usize + 1) % 2].insist(event("a", delivery)).await;
        assert!(again.duplicate && again.sequence_number == receipt.sequence_number, "{delivery}");
    }
    assert_eq!(mesh.events().await.len(), 60);
}
