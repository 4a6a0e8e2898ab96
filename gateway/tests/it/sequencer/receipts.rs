//! The receipts' file: deleted, damaged, of another log; and what outlives the events.

use std::fs;

use weft_nats::{options::Span, streams::LogSpec};
use weft_testkit::{SmallDisk, eventually};

use super::*;

/// Failure row "index file deleted, corrupt": rebuilt from the log, and known is what was known.
#[tokio::test]
async fn lost_and_damaged_receipts_are_rebuilt_from_the_log() {
    let mesh = Mesh::start().await;
    let folder = folder();
    let gateway = mesh.sequencer(&folder).await;
    let mut firsts = Vec::new();
    for delivery in 0..30 {
        firsts.push(gateway.insist(event(["a", "b"][delivery as usize % 2], delivery)).await);
    }
    gateway.stop().await;
    let file = receipts_file(&folder);
    for round in 0..3u64 {
        match round {
            0 => fs::remove_file(&file).unwrap(),
            1 => fs::write(&file, "not a database").unwrap(),
            _ => {}
        }
        let gateway = mesh.sequencer(&folder).await;
        for (delivery, first) in (0..).zip(&firsts) {
            let again = gateway.insist(event(first.workflow.as_str(), delivery)).await;
            assert_eq!(again, Receipt { duplicate: true, ..first.clone() });
        }
        let next = gateway.insist(event("a", 100 + round)).await;
        assert_eq!((next.sequence_number.0, next.duplicate), (16 + round, false));
        gateway.stop().await;
    }
    assert_eq!(mesh.events().await.len(), 33);
}

/// A workflow whose events have all left the log continues at its next number, also at a gateway that has never seen them.
#[tokio::test]
async fn heads_outlive_their_events() {
    let log = weft_nats::options::LogOptions {
        // A head is carried forward within the second half of it, also on a busy machine.
        retention: Span::secs(8),
        dedup_horizon: Span::secs(1),
        ..weft_nats::options::LogOptions::default()
    };
    let mesh = Mesh::with(LogSpec { log, ..spec(1) }).await;
    let folders = [folder(), folder()];
    let gateway = mesh.sequencer(&folders[0]).await;
    for delivery in 1..=3 {
        gateway.insist(event("a", delivery)).await;
    }
    let last = gateway.insist(event("b", 1)).await;
    let gone = async || mesh.events().await.is_empty();
    assert!(eventually(PATIENCE, gone).await, "retention ends");
    let fresh = mesh.sequencer(&folders[1]).await;
    let next = fresh.insist(event("a", 4)).await;
    assert_eq!((next.sequence_number.0, next.previous), (4, Some(event("a", 3).id)));
    let next = gateway.insist(event("b", 2)).await;
    assert_eq!((next.sequence_number.0, next.previous), (2, Some(last.event_id)));
}

/// Beyond the dedup horizon a repeat is a new event, and the server does not hold it back for longer.
#[tokio::test]
async fn a_repeat_beyond_the_horizon_is_new() {
    let log =
        weft_nats::options::LogOptions { dedup_horizon: Span::secs(1), ..weft_nats::options::LogOptions::default() };
    let mesh = Mesh::with(LogSpec { log, ..spec(1) }).await;
    let folder = folder();
    let gateway = mesh.sequencer(&folder).await;
    let first = gateway.insist(event("a", 1)).await;
    let mut others = 0;
    let new_again = async || {
        // Stream time advances only with messages.
        others += 1;
        gateway.insist(event("b", others)).await;
        let again = gateway.insist(event("a", 1)).await;
        assert!(again.duplicate || again.previous == Some(first.event_id));
        !again.duplicate
    };
    assert!(eventually(PATIENCE, new_again).await);
}

/// A stream that was removed and made again is another log: nothing of the old one is known, loudly.
#[tokio::test]
async fn another_log_is_noticed_by_who_works_and_by_who_starts() {
    let mesh = Mesh::start().await;
    let folders = [folder(), folder()];
    let gateway = mesh.sequencer(&folders[0]).await;
    let stopped = mesh.sequencer(&folders[1]).await;
    for delivery in 1..=5 {
        gateway.insist(event("a", delivery)).await;
    }
    stopped.stop().await;
    mesh.connection.jetstream().delete_stream("EVENTS").await.unwrap();
    streams::ensure(&mesh.connection, &mesh.spec).await.unwrap();
    let first = gateway.insist(event("a", 6)).await;
    assert_eq!((first.sequence_number.0, first.previous), (1, None));
    let second = gateway.insist(event("a", 3)).await;
    assert_eq!((second.sequence_number.0, second.duplicate), (2, false));
    let started = mesh.sequencer(&folders[1]).await;
    let third = started.insist(event("a", 4)).await;
    assert_eq!((third.sequence_number.0, third.duplicate), (3, false));
    assert_eq!(mesh.events().await.len(), 3);
}

#[tokio::test]
async fn an_unusable_folder_is_an_error_that_names_it() {
    let mesh = Mesh::start().await;
    let folder = folder();
    let file = folder.path().join("file");
    fs::write(&file, "").unwrap();
    let options = SequencerOptions::new(file.join("below"), &mesh.spec, weft_testkit::master_key());
    let (told, _missing) = watch::channel(None);
    let (drain, tasks) = (CancellationToken::new(), TaskTracker::new());
    let started = forwarding::start(mesh.connection.clone(), mesh.layout, options, told, drain, &tasks).await;
    let error = started.unwrap_err().to_string();
    assert!(error.contains("file/below") && error.contains("--data"), "{error}");
}

/// Receipts that cannot be written are named on `/readyz` with the reason, and continue automatically when they can be again.
#[tokio::test]
async fn receipts_on_a_full_disk_are_named_until_there_is_room() {
    let folder = folder();
    let Some(disk) = SmallDisk::mount(folder.path(), 16 << 20) else { return };
    let mesh = Mesh::start().await;
    let mut options = SequencerOptions::new(folder.path().to_owned(), &mesh.spec, weft_testkit::master_key());
    // Commits every half second.
    options.dedup_horizon = Duration::from_secs(8);
    let mut gateway = mesh.sequencer_with(options).await;
    gateway.insist(event("a", 1)).await;
    disk.fill().unwrap();
    let mut delivery = 1;
    let named = |missing: &Option<String>| {
        missing.as_ref().is_some_and(|missing| missing.starts_with("receipts: ") && missing.contains("No space left"))
    };
    let patience = tokio::time::Instant::now() + PATIENCE;
    // A commit may still find room inside the file.
    while !named(&gateway.missing.borrow_and_update()) {
        assert!(tokio::time::Instant::now() < patience, "waits for {:?}", *gateway.missing.borrow());
        match gateway.sequencer.submit(event("a", delivery + 1)).await {
            Ok(_) => delivery += 1,
            Err(_) => _ = tokio::time::timeout(Duration::from_millis(20), gateway.missing.changed()).await,
        }
    }
    disk.make_room().unwrap();
    gateway.ready().await;
    assert_eq!(gateway.insist(event("a", delivery + 1)).await.sequence_number.0, delivery + 1);
    assert_eq!(mesh.events().await.len() as u64, delivery + 1);
    gateway.stop().await;
}
