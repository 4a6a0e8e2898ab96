//! A gateway that appends alone does not read its own events back, and knows them and others' all the same.

use futures_util::future::join_all;

use super::*;
use weft_testkit::eventually;

/// Without a preferred appender: each appends for itself.
async fn gateway(mesh: &Mesh, folder: &TempDir) -> Running {
    let options = SequencerOptions::new(folder.path().to_owned(), &mesh.spec, weft_testkit::master_key());
    mesh.sequencer_with(SequencerOptions { forwards: false, ..options }).await
}

/// Number of consumers that read the log.
pub async fn readers(mesh: &Mesh) -> usize {
    mesh.connection.jetstream().get_stream("EVENTS").await.unwrap().cached_info().state.consumer_count
}

/// P2, P3: from its acks alone a gateway recognises repeats and continues the numbering; the comparison detects another
/// gateway's event; and while the gateway appends nothing it reads the appends of others.
#[tokio::test]
async fn a_lone_writer_reads_only_events_of_others() {
    let mesh = Mesh::start().await;
    let folders = [folder(), folder()];
    let one = gateway(&mesh, &folders[0]).await;
    let mut count = 0;
    let reads_no_more = async || {
        let group = (count..count + 100).map(|delivery| one.insist(event("a", delivery)));
        assert!(join_all(group).await.iter().all(|receipt| !receipt.duplicate));
        count += 100;
        readers(&mesh).await == 0
    };
    assert!(eventually(PATIENCE, reads_no_more).await);
    for (delivery, duplicate) in [(0, true), (count - 1, true), (count, false)] {
        assert_eq!(one.insist(event("a", delivery)).await.duplicate, duplicate);
    }

    let other = gateway(&mesh, &folders[1]).await;
    let theirs = other.insist(event("a", count + 1)).await;
    assert_eq!((theirs.sequence_number.0, theirs.previous), (count + 2, Some(event("a", count).id)));
    let ours = one.insist(event("a", count + 2)).await;
    assert_eq!((ours.sequence_number.0, ours.previous), (count + 3, Some(theirs.event_id)));
    let again = one.insist(event("a", count + 1)).await;
    assert_eq!(again, Receipt { duplicate: true, ..theirs });
    assert!(eventually(PATIENCE, async || readers(&mesh).await == 2).await);

    // What it knew by acks is in its file.
    one.stop().await;
    let one = gateway(&mesh, &folders[0]).await;
    for delivery in 0..count + 3 {
        assert!(one.insist(event("a", delivery)).await.duplicate);
    }
    assert_eq!(mesh.events().await.len() as u64, count + 3);
}

/// Failure row "nats-server killed": what was acked and not yet confirmed is read after all.
#[tokio::test]
async fn a_lone_writer_continues_after_a_server_restart() {
    let mesh = Mesh::start().await;
    let folder = folder();
    let gateway = gateway(&mesh, &folder).await;
    for round in 0..3 {
        let group = (0..400).map(|delivery| gateway.insist(event("a", round * 400 + delivery)));
        join_all(group).await;
        mesh.server().kill();
        mesh.server().restart().await;
    }
    let next = gateway.insist(event("a", 1200)).await;
    assert_eq!(next.sequence_number.0, 1201);
    assert_eq!(mesh.events().await.len(), 1201);
}
