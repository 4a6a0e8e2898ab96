//! One of several sequencers appends for all.

use std::sync::{
    Arc,
    atomic::{AtomicUsize, Ordering},
};

use futures_util::{StreamExt as _, future::join_all};

use super::{alone::readers, *};
use weft_testkit::eventually;

/// The gateway that appends, according to the lease key.
pub async fn holder(mesh: &Mesh) -> Option<String> {
    let key = mesh.layout.appender_key(ShardId(0));
    let message = direct::last_by_subject(&mesh.connection, "KV_weft_leases", &key).await.unwrap()?;
    Some(String::from_utf8(message.payload.to_vec()).unwrap()).filter(|holder| !holder.is_empty())
}

/// It appends for all from now on, a delivery of workflow `a` first.
pub async fn takes_the_role(mesh: &Mesh, gateway: &Running, delivery: u64) {
    gateway.insist(event("a", delivery)).await;
    assert!(eventually(PATIENCE, async || holder(mesh).await.is_some()).await, "somebody appends");
}

/// Requests that gateways send each other, from now on.
async fn requests(mesh: &Mesh) -> Arc<AtomicUsize> {
    let mut heard = mesh.connection.client().subscribe("forward.*.*.events").await.unwrap();
    mesh.connection.client().flush().await.unwrap();
    let count = Arc::new(AtomicUsize::new(0));
    let counted = count.clone();
    tokio::spawn(async move {
        while heard.next().await.is_some() {
            counted.fetch_add(1, Ordering::Relaxed);
        }
    });
    count
}

/// The first gateway takes the role, others forward their events to it, and all answers agree with the log.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn gateways_forward_their_events_to_the_preferred_one() {
    let mesh = Mesh::start().await;
    let folders = [folder(), folder()];
    let preferred = mesh.sequencer(&folders[0]).await;
    let requests = requests(&mesh).await;
    takes_the_role(&mesh, &preferred, 1).await;
    assert_eq!(requests.load(Ordering::Relaxed), 0, "a gateway alone forwards nothing");

    let other = mesh.sequencer(&folders[1]).await;
    let mut number = 1;
    let forwarded = async || {
        number += 1;
        let receipt = other.insist(event("a", number)).await;
        assert_eq!((receipt.sequence_number.0, receipt.duplicate), (number, false));
        requests.load(Ordering::Relaxed) > 0
    };
    assert!(eventually(PATIENCE, forwarded).await, "events are forwarded");
    let first = other.insist(event("a", 1)).await;
    assert_eq!((first.sequence_number.0, first.duplicate), (1, true));
    let reused = NewEvent { payload: Bytes::from_static(b"{}"), ..event("a", 1) };
    assert_eq!(other.sequencer.submit(reused.clone()).await, Err(SubmitError::IdReused));
    let receipt = other.sequencer.submit(NewEvent { receipt_on_id_reuse: true, ..reused }).await;
    assert_eq!(receipt, Ok(first));
    assert_eq!(mesh.events().await.len() as u64, number);
}

/// P2, P3: a gateway that forwards events is notified of the appends and does not read them; and it knows all of them when
/// the other gateway is gone.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_forwarding_gateway_is_notified_of_appends() {
    let mesh = Mesh::start().await;
    let folders = [folder(), folder()];
    let preferred = mesh.sequencer(&folders[0]).await;
    takes_the_role(&mesh, &preferred, 0).await;
    let other = mesh.sequencer(&folders[1]).await;
    let mut count = 1;
    let reads_no_more = async || {
        let group = (count..count + 100).map(|delivery| {
            let gateway = if delivery % 2 == 0 { &preferred } else { &other };
            gateway.insist(event("a", delivery))
        });
        assert!(join_all(group).await.iter().all(|receipt| !receipt.duplicate));
        count += 100;
        readers(&mesh).await == 0
    };
    assert!(eventually(PATIENCE, reads_no_more).await);
    preferred.stop().await;

    for delivery in [0, 2, count - 2, count - 1] {
        assert!(other.insist(event("a", delivery)).await.duplicate, "{delivery}");
    }
    let mut numbers = Vec::new();
    for delivery in count..count + 3 {
        numbers.push(other.insist(event("a", delivery)).await.sequence_number.0);
    }
    assert!(numbers.iter().copied().eq(count + 1..count + 4), "{numbers:?}");
    // The appends that it was notified of are in its file.
    other.stop().await;
    let other = mesh.sequencer(&folders[1]).await;
    for delivery in 0..count + 3 {
        assert!(other.insist(event("a", delivery)).await.duplicate, "{delivery}");
    }
    assert_eq!(mesh.events().await.len() as u64, count + 3);
}

/// P3: a forwarded batch keeps its order; and no event of a publish stream after a refused one is accepted, also at a
/// gateway that forwards other events meanwhile.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn chains_keep_their_order_beside_events_that_are_handed_on() {
    const LINE: u64 = 40;
    let mesh = Mesh::start().await;
    let folders = [folder(), folder()];
    let preferred = mesh.sequencer(&folders[0]).await;
    takes_the_role(&mesh, &preferred, 0).await;
    let other = mesh.sequencer(&folders[1]).await;
    let requests = requests(&mesh).await;
    let mut warm_up = 10_000;
    let forwarded = async || {
        warm_up += 1;
        other.insist(event("c", warm_up)).await;
        requests.load(Ordering::Relaxed) > 0
    };
    assert!(eventually(PATIENCE, forwarded).await, "events are forwarded");

    let reused = NewEvent { payload: Bytes::from_static(b"other"), ..event("a", 0) };
    let sent = requests.load(Ordering::Relaxed);
    let batch = (0..LINE).map(|place| if place == 7 { reused.clone() } else { event("d", 1000 + place) }).collect();
    let batched = other.sequencer.submit_all(batch).await.unwrap();
    assert_eq!(batched[7], Err(SubmitError::IdReused));
    let numbers: Vec<_> = batched.into_iter().flatten().map(|receipt| receipt.sequence_number.0).collect();
    assert!(numbers.iter().copied().eq(1..LINE), "{numbers:?}");
    assert!(eventually(PATIENCE, async || requests.load(Ordering::Relaxed) > sent).await, "a batch is forwarded");

    let sent = requests.load(Ordering::Relaxed);
    let mut line = other.sequencer.publish_stream();
    let mut lined = Vec::new();
    let mut alone = JoinSet::new();
    for delivery in 1..LINE {
        let next = if delivery == LINE / 2 { reused.clone() } else { event("a", delivery) };
        lined.push(line.submit(next, line.deadline()).unwrap());
        let sequencer = other.sequencer.clone();
        alone.spawn(async move { sequencer.submit(event("b", 100 + delivery)).await });
    }
    let mut answers = Vec::new();
    for pending in lined {
        answers.push(pending.receipt().await);
    }
    let (before, behind) = answers.split_at(LINE as usize / 2 - 1);
    assert!(before.iter().all(Result::is_ok), "{before:?}");
    assert_eq!(behind[0], Err(SubmitError::IdReused));
    assert!(behind[1..].iter().all(|answer| *answer == Err(SubmitError::PredecessorRefused)), "{behind:?}");
    assert!(alone.join_all().await.iter().all(Result::is_ok));
    assert!(requests.load(Ordering::Relaxed) > sent, "the others are forwarded meanwhile");
}

/// A draining gateway hands the role over first, and no sender waits for a gateway that has left.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_drain_hands_the_role_over() {
    let mesh = Mesh::start().await;
    let folders = [folder(), folder()];
    let [preferred, other] = [mesh.sequencer(&folders[0]).await, mesh.sequencer(&folders[1]).await];
    takes_the_role(&mesh, &preferred, 1).await;
    let before = holder(&mesh).await;
    let senders: JoinSet<_> = (2..200)
        .map(|delivery| {
            let sequencer = other.sequencer.clone();
            async move { sequencer.submit(event("a", delivery)).await }
        })
        .collect();
    preferred.stop().await;
    let receipts = senders.join_all().await;
    assert!(receipts.iter().all(|receipt| receipt.as_ref().is_ok_and(|receipt| !receipt.duplicate)), "{receipts:?}");
    assert_ne!(holder(&mesh).await, before, "the role has been given back");
    let mut number = 200;
    let taken = async || {
        number += 1;
        other.insist(event("a", number)).await;
        holder(&mesh).await.is_some()
    };
    assert!(eventually(PATIENCE, taken).await, "who stays takes it");
    assert_eq!(mesh.events().await.len() as u64, number - 1);
}
