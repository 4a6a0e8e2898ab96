//! Foreign messages in the log, and events that it no longer holds.

use weft_nats::async_nats::jetstream::stream::Stream;

use super::*;

async fn stream(mesh: &Mesh) -> Stream {
    mesh.connection.jetstream().get_stream("EVENTS").await.unwrap()
}

/// A foreign message from `nats pub` blocks no gateway.
#[tokio::test]
async fn foreign_messages_are_passed_over() {
    let mesh = Mesh::start().await;
    let folders = [folder(), folder()];
    let gateway = mesh.sequencer(&folders[0]).await;
    for delivery in 1..=5 {
        for subject in ["events.a", "heads.0"] {
            mesh.connection.jetstream().publish(subject, "not ours".into()).await.unwrap().await.unwrap();
        }
        assert_eq!(gateway.insist(event("a", delivery)).await.sequence_number.0, delivery);
    }
    let fresh = mesh.sequencer(&folders[1]).await;
    assert_eq!(fresh.insist(event("a", 6)).await.sequence_number.0, 6);
}

/// The end of a log is its last sequence also if the message there has been purged: no gateway waits for it for ever.
#[tokio::test]
async fn purged_messages_delay_no_append() {
    let mesh = Mesh::start().await;
    let folders = [folder(), folder()];
    let gateway = mesh.sequencer(&folders[0]).await;
    gateway.insist(event("a", 1)).await;
    gateway.insist(event("b", 1)).await;
    let purge = async || stream(&mesh).await.purge().filter("events.b").await.unwrap();
    purge().await;
    // Who has no file yet, and who begins between the file's end and the log's.
    for delivery in 1..=2 {
        let other = mesh.sequencer(&folders[1]).await;
        assert_eq!(other.insist(event("a", 1 + delivery)).await.sequence_number.0, 1 + delivery);
        other.insist(event("b", 1 + delivery)).await;
        other.stop().await;
        purge().await;
    }
    assert_eq!(gateway.insist(event("a", 9)).await.sequence_number.0, 4);
}

/// A log that was emptied is still the same log: the numbering continues where it is known.
#[tokio::test]
async fn numbers_go_on_in_a_purged_log() {
    let mesh = Mesh::start().await;
    let folders = [folder(), folder()];
    let gateway = mesh.sequencer(&folders[0]).await;
    for delivery in 1..=3 {
        gateway.insist(event("a", delivery)).await;
    }
    stream(&mesh).await.purge().await.unwrap();
    assert_eq!(gateway.insist(event("a", 4)).await.sequence_number.0, 4);
    // The file is sure to have all of it once it has been caught up with.
    gateway.stop().await;
    mesh.sequencer(&folders[0]).await.stop().await;
    stream(&mesh).await.purge().await.unwrap();
    let again = mesh.sequencer(&folders[0]).await;
    assert_eq!(again.insist(event("a", 5)).await.sequence_number.0, 5);
    stream(&mesh).await.purge().await.unwrap();
    // Where nothing is known they begin: heads are carried only by who is there before the events go.
    let fresh = mesh.sequencer(&folders[1]).await;
    assert_eq!(fresh.insist(event("d", 1)).await.sequence_number.0, 1);
}

/// A full log refuses at once, and takes again once there is room.
#[tokio::test]
async fn a_full_log_says_so() {
    let mut small = spec(1);
    small.log.max_bytes = weft_nats::options::MaxBytes::Bytes(64 * 1024);
    let mesh = Mesh::with(small).await;
    let folder = folder();
    let gateway = mesh.sequencer(&folder).await;
    let large = |delivery| NewEvent { payload: Bytes::from(vec![b'1'; 20 * 1024]), ..event("a", delivery) };
    let mut refused = None;
    for delivery in 1..=10 {
        if let Err(error) = gateway.sequencer.submit(large(delivery)).await {
            refused = Some((delivery, error));
            break;
        }
    }
    let (delivery, error) = refused.expect("ten events do not fit");
    assert_eq!(error, SubmitError::Full);
    stream(&mesh).await.purge().await.unwrap();
    assert_eq!(gateway.insist(large(delivery)).await.sequence_number.0, delivery);
}

/// `log_full` is for a log at its own limit, in which an operator may make room. While the disk is full the log is unavailable,
/// which is transient; senders are answered at once, and nothing is written.
#[tokio::test]
async fn a_full_disk_is_not_reported_as_a_full_log() {
    let mesh = Mesh::start().await;
    let folder = folder();
    let (disk, storage) = watch::channel(Some("disk full: 3.1 MiB free".to_owned()));
    let options = SequencerOptions::new(folder.path().to_owned(), &mesh.spec, weft_testkit::master_key());
    let gateway = mesh.sequencer_with(SequencerOptions { storage: Some(storage), ..options }).await;
    let asked = tokio::time::Instant::now();
    let refused = gateway.sequencer.submit(event("w", 1)).await.unwrap_err();
    assert_eq!(refused, SubmitError::Unavailable);
    assert!(asked.elapsed() < Duration::from_secs(1));
    assert!(mesh.events().await.is_empty());
    disk.send_replace(None);
    assert!(!gateway.insist(event("w", 1)).await.duplicate);
}
