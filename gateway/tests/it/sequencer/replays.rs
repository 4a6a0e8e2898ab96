//! A signed body under another id: the replay guard of sources whose ids are not signed.

use weft_index::receipts::replay_key;

use super::*;

/// Body `n`, sent under another id, type and workflow each time.
fn guarded(n: u64, attempt: u64) -> NewEvent {
    NewEvent {
        event_type: format!("type-{attempt}"),
        payload: Bytes::from(format!("{{\"body\":{n}}}")),
        receipt_on_id_reuse: true,
        replay_guard: true,
        ..event(&format!("workflow-{attempt}"), n * 1000 + attempt)
    }
}

#[tokio::test]
async fn a_body_under_another_id_gets_the_first_receipt() {
    let mesh = Mesh::start().await;
    let folder = folder();
    let gateway = mesh.sequencer(&folder).await;
    let first = gateway.insist(guarded(1, 0)).await;
    let replayed = Receipt { duplicate: true, ..first.clone() };
    for attempt in 0..5 {
        assert_eq!(gateway.insist(guarded(1, attempt)).await, replayed, "{attempt}");
    }
    assert!(!gateway.insist(guarded(2, 0)).await.duplicate, "another body is another event");
    let of_another = NewEvent { source: "bank".into(), ..guarded(1, 9) };
    assert!(!gateway.insist(of_another).await.duplicate, "of another source");
    let unguarded = NewEvent { replay_guard: false, ..guarded(1, 10) };
    assert!(!gateway.insist(unguarded).await.duplicate, "where the source does not guard against it");
    assert_eq!(mesh.events().await.len(), 4);
}

/// It is known after a restart, to a gateway that builds its receipts from the log, and to one that reads.
#[tokio::test]
async fn replays_are_known_wherever_the_log_is_read() {
    let mesh = Mesh::start().await;
    let folders = [folder(), folder()];
    let gateway = mesh.sequencer(&folders[0]).await;
    let mut first = Vec::new();
    for n in 0..40 {
        first.push(Receipt { duplicate: true, ..gateway.insist(guarded(n, 0)).await });
    }
    gateway.stop().await;
    let restarted = mesh.sequencer(&folders[0]).await;
    let other = mesh.sequencer(&folders[1]).await;
    for (n, first) in (0..).zip(&first) {
        assert_eq!(restarted.insist(guarded(n, 1)).await, *first);
        assert_eq!(other.insist(guarded(n, 2)).await, *first);
    }
    restarted.stop().await;
    std::fs::remove_file(receipts_file(&folders[0])).unwrap();
    let rebuilt = mesh.sequencer(&folders[0]).await;
    for (n, first) in (0..).zip(&first) {
        assert_eq!(rebuilt.insist(guarded(n, 3)).await, *first);
    }
    assert_eq!(mesh.events().await.len(), 40);
}

/// The same body at two gateways at once, under different ids: one event.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_gateways_that_meet_with_a_body_accept_it_once() {
    let mesh = Mesh::start().await;
    let folders = [folder(), folder()];
    let gateways = [mesh.sequencer(&folders[0]).await, mesh.sequencer(&folders[1]).await];
    let mut senders = JoinSet::new();
    for n in 0..60 {
        for attempt in 0..6 {
            let sequencer = gateways[attempt as usize % 2].sequencer.clone();
            senders.spawn(async move { (n, insist(&sequencer, guarded(n, attempt)).await) });
        }
    }
    let mut receipts: HashMap<u64, Vec<Receipt>> = HashMap::new();
    for (n, receipt) in senders.join_all().await {
        receipts.entry(n).or_default().push(receipt);
    }
    assert_eq!(mesh.events().await.len(), 60);
    for (n, all) in receipts {
        let first = &all[0];
        assert!(all.iter().all(|receipt| receipt.event_id == first.event_id), "{n}: {all:?}");
        assert!(all.iter().filter(|receipt| !receipt.duplicate).count() <= 1, "{n}: {all:?}");
    }
}

/// A path, which is not signed, may name a workflow of another shard: the body is found there.
#[tokio::test]
async fn replays_are_found_in_other_shards() {
    let mesh = Mesh::with(spec(4)).await;
    let folder = folder();
    let gateway = mesh.sequencer(&folder).await;
    let first = gateway.insist(guarded(1, 0)).await;
    for attempt in 1..9 {
        let replayed = gateway.insist(guarded(1, attempt)).await;
        assert_eq!(replayed, Receipt { duplicate: true, ..first.clone() }, "{attempt}");
    }
}

/// The stored key is the same for all versions of the code.
#[test]
fn a_replay_key_is_a_function_of_source_and_body() {
    assert_eq!(replay_key("shop", b"{}").to_string(), "3b8868eb-aab3-879b-b1d9-eec9bded6a79");
    assert_ne!(replay_key("shop", b"{}"), replay_key("sho", b"p{}"));
}

/// The same body at the same moment to workflows of all shards, each under another id: one event, even if some senders
/// disconnect.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_body_that_comes_to_several_shards_at_once_is_accepted_once() {
    const BODIES: u64 = 50;
    let mesh = Mesh::with(spec(4)).await;
    let folder = folder();
    let gateway = mesh.sequencer(&folder).await;
    let mut senders = JoinSet::new();
    for n in 0..BODIES {
        for attempt in 0..8 {
            let sequencer = gateway.sequencer.clone();
            senders.spawn(async move {
                if attempt % 4 == 0 {
                    // Long enough to be on its way.
                    let hangs_up = Duration::from_micros(attempt * 100);
                    let _ = tokio::time::timeout(hangs_up, sequencer.submit(guarded(n, attempt))).await;
                    return None;
                }
                Some((n, insist(&sequencer, guarded(n, attempt)).await))
            });
        }
    }
    let mut ids: HashMap<u64, Vec<EventId>> = HashMap::new();
    for (n, receipt) in senders.join_all().await.into_iter().flatten() {
        ids.entry(n).or_default().push(receipt.event_id);
    }
    let mut stored = 0;
    for shard in mesh.layout.all() {
        stored += streams::state(&mesh.connection, &mesh.layout.events_stream(shard)).await.unwrap().last.0;
    }
    assert_eq!(stored, BODIES);
    assert!(ids.values().all(|ids| ids.iter().all(|id| *id == ids[0])));
}
