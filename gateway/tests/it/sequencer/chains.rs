//! Many events of one sender: all taken in or none, in order, and without a hole.

use futures_util::future::join_all;
use weft_gateway::sequencer::NotTaken;

use super::*;

/// A batch for which there is no room is refused before anything of it is appended; one for which there is, is not.
#[tokio::test]
async fn an_overload_refuses_a_batch_as_a_whole() {
    const PLACES: u64 = 16;
    let mesh = Mesh::start().await;
    let folder = folder();
    let mut options = SequencerOptions::new(folder.path().to_owned(), &mesh.spec, weft_testkit::master_key());
    options.queue_events_max = PLACES as usize;
    let gateway = mesh.sequencer_with(options).await;
    let batch = |from: u64, count: u64| (from..from + count).map(|delivery| event("a", delivery)).collect();
    let refused = gateway.sequencer.submit_all(batch(0, PLACES + 1)).await;
    assert_eq!(refused, Err(NotTaken { at: None, error: SubmitError::Overloaded }));
    let mut large = batch(0, 3);
    large[1].payload = Bytes::from(vec![b'1'; 4 << 20]);
    let refused = gateway.sequencer.submit_all(large).await;
    assert_eq!(refused, Err(NotTaken { at: Some(1), error: SubmitError::TooLarge }));
    assert!(mesh.events().await.is_empty());
    // Two at once: a batch that finds too little room is refused whole.
    let both = join_all([0, PLACES].map(|from| gateway.sequencer.submit_all(batch(from, PLACES)))).await;
    let taken: Vec<_> = both.iter().filter_map(|answers| answers.as_ref().ok()).collect();
    assert!(!taken.is_empty() && taken.iter().all(|answers| answers.iter().all(Result::is_ok)));
    assert_eq!(mesh.events().await.len(), taken.len() * PLACES as usize);
}

/// Nothing of a line behind what is refused is accepted, though all of it was submitted before the first answer.
#[tokio::test]
async fn a_refusal_ends_its_line() {
    let mesh = Mesh::start().await;
    let folder = folder();
    let gateway = mesh.sequencer(&folder).await;
    gateway.sequencer.submit(event("a", 7)).await.unwrap();
    let mut line = gateway.sequencer.publish_stream();
    let mut neighbour = gateway.sequencer.publish_stream();
    let mut pending = Vec::new();
    let mut others = Vec::new();
    for delivery in 0..40 {
        let mut wanted = event("a", delivery);
        if delivery == 7 {
            wanted.payload = Bytes::from_static(b"other");
        }
        pending.push(line.submit(wanted, line.deadline()).unwrap());
        others.push(neighbour.submit(event("b", 100 + delivery), neighbour.deadline()).unwrap());
    }
    let answers = join_all(pending.into_iter().map(|pending| pending.receipt())).await;
    assert!(answers[..7].iter().all(Result::is_ok));
    assert_eq!(answers[7], Err(SubmitError::IdReused));
    assert!(answers[8..].iter().all(|answer| *answer == Err(SubmitError::PredecessorRefused)), "{answers:?}");
    assert!(join_all(others.into_iter().map(|pending| pending.receipt())).await.iter().all(Result::is_ok));
    assert_eq!(
        line.submit(event("a", 50), line.deadline()).unwrap().receipt().await,
        Err(SubmitError::PredecessorRefused)
    );
    assert_eq!(mesh.events().await.iter().filter(|event| event.workflow.as_str() == "a").count(), 8);
}

/// P3 through kills of the server: a sender that continues after its last receipt, with everything submitted before the
/// first answer, finds its events in the log in the order in which it has them.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn lines_stand_in_order_through_kills() {
    const EVENTS: u64 = 600;
    const WINDOW: u64 = 50;
    let mesh = Mesh::start().await;
    let folder = folder();
    let gateway = mesh.sequencer(&folder).await;
    let (counted, mut count) = watch::channel(0);
    let wanted = |delivery| event(["a", "b", "c"][(delivery % 3) as usize], delivery);
    let sending = async {
        let mut next = 0;
        while next < EVENTS {
            let mut line = gateway.sequencer.publish_stream();
            let window: Vec<_> = (next..EVENTS.min(next + WINDOW))
                .map_while(|delivery| line.submit(wanted(delivery), line.deadline()).ok())
                .collect();
            for pending in window {
                match pending.receipt().await {
                    Ok(_) => next += 1,
                    Err(_) => {
                        line.cut();
                        break;
                    }
                }
            }
            counted.send_replace(next);
            tokio::task::yield_now().await;
        }
    };
    let killing = async {
        for quarter in 1..=3 {
            count.wait_for(|count| *count >= quarter * EVENTS / 4).await.unwrap();
            mesh.server().kill();
            mesh.server().restart().await;
        }
    };
    tokio::join!(sending, killing);
    let order: Vec<_> = mesh.events().await.into_iter().map(|event| event.id).collect();
    let sent: Vec<_> = (0..EVENTS).map(|delivery| wanted(delivery).id).collect();
    assert_eq!(order, sent);
}
