//! A log that is rolled back to a backup while a gateway is away, and has grown again when it comes back.

use std::{path::Path, sync::Arc};

use super::*;
use weft_testkit::Proxy;

impl Mesh {
    /// A sequencer that reaches the server through a proxy.
    async fn sequencer_behind(&self, proxy: &Proxy, folder: &Path) -> Running {
        let mut options = SequencerOptions::new(folder.to_owned(), &self.spec, weft_testkit::master_key());
        options.forwards = false;
        options.submit_timeout = Duration::from_secs(1);
        let nats = weft_nats::options::NatsOptions { url: Some(proxy.url()), ..Default::default() };
        let connection = Connection::connect(&nats, "sequencer").await.unwrap();
        tokio::time::timeout(PATIENCE, connection.connected()).await.unwrap();
        self.sequencer_on(connection, options).await
    }
}

/// P1, P2: the gateway was cut off while the log was restored to three events and took eight others. It must not answer
/// 200 for an event that is not in the log any more: its sender would never send it again. It did, with the number that
/// the event once had, and numbered on by heads that were not there.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_gateway_that_was_cut_off_knows_no_event_that_was_rolled_back() {
    let mesh = Mesh::start().await;
    let server = mesh.server();
    let proxy = Proxy::start(server.url()).await;
    let folders = [folder(), folder()];
    let away = mesh.sequencer_behind(&proxy, folders[0].path()).await;
    for delivery in 1..=3 {
        away.insist(event("kept", delivery)).await;
    }
    let backup = server.backup().await;
    for delivery in 1..=8 {
        away.insist(event("lost", delivery)).await;
    }
    proxy.cut();
    server.restore(&backup).await;
    mesh.connection.connected().await;
    let other = mesh.sequencer(&folders[1]).await;
    for delivery in 1..=12 {
        other.insist(event("others", delivery)).await;
    }
    proxy.mend();
    // The senders repeat what they have receipts for.
    for delivery in 1..=8 {
        let started = tokio::time::Instant::now();
        let receipt = away.insist(event("lost", delivery)).await;
        let events = mesh.events().await;
        assert!(
            events.iter().any(|event| event.id == receipt.event_id),
            "lost {delivery}: {receipt:?} after {:?} of {} events",
            started.elapsed(),
            events.len()
        );
        assert_eq!(receipt.sequence_number.0, delivery);
    }
    for delivery in 1..=3 {
        assert!(away.insist(event("kept", delivery)).await.duplicate);
    }
    assert_eq!(away.insist(event("others", 13)).await.sequence_number.0, 13);
    assert_eq!(mesh.events().await.len(), 3 + 12 + 8 + 1);
}

/// P2: the same where each append has taken the log long. How long an answer takes says nothing of how long
/// it may be relied on.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_log_that_was_slow_is_compared_before_a_repeat_is_answered() {
    const SLOW: Duration = Duration::from_millis(400);
    let mesh = Mesh::start().await;
    let server = mesh.server();
    let proxy = Proxy::start(server.url()).await;
    let folder = folder();
    let away = mesh.sequencer_behind(&proxy, folder.path()).await;
    let backup = server.backup().await;
    away.insist(event("lost", 1)).await;
    for delivery in 2..=16 {
        server.pause();
        let append = away.insist(event("lost", delivery));
        let resume = async {
            tokio::time::sleep(SLOW).await;
            server.resume();
        };
        tokio::join!(append, resume);
    }
    proxy.cut();
    server.restore(&backup).await;
    let answer = away.sequencer.submit(event("lost", 1)).await;
    assert!(answer.is_err(), "{answer:?} of a log that does not hold it");
    proxy.mend();
    assert!(!away.insist(event("lost", 1)).await.duplicate);
}

/// P2: a gateway that did not run while the log was restored finds messages of the log before in its socket. That they
/// arrive just now does not say that the log is still the same.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn messages_that_waited_while_a_gateway_did_not_run_are_no_news_of_the_log() {
    let mesh = Arc::new(Mesh::start().await);
    let proxy = Arc::new(Proxy::start(mesh.server().url()).await);
    let folders = [folder(), folder()];
    let backup = mesh.server().backup().await;
    // One thread, so that it can be held up as a whole.
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
    let path = folders[0].path().to_owned();
    let (there, through) = (mesh.clone(), proxy.clone());
    let away = runtime.spawn(async move { there.sequencer_behind(&through, &path).await }).await.unwrap();
    let other = mesh.sequencer(&folders[1]).await;
    away.insist(event("lost", 1)).await;
    let (release, held) = std::sync::mpsc::channel::<()>();
    let (holds, holding) = tokio::sync::oneshot::channel();
    runtime.spawn(async move {
        let _ = holds.send(());
        let _ = held.recv();
    });
    holding.await.unwrap();
    // These go to its reader while it does not run.
    for delivery in 1..=50 {
        other.insist(event("others", delivery)).await;
    }
    proxy.cut();
    mesh.server().restore(&backup).await;
    drop(release);
    let read = async {
        for _ in 0..100 {
            tokio::task::yield_now().await;
        }
    };
    runtime.spawn(read).await.unwrap();
    let answer = away.sequencer.submit(event("lost", 1)).await;
    assert!(answer.is_err(), "{answer:?} of a log that does not hold it");
    proxy.mend();
    assert!(!away.insist(event("lost", 1)).await.duplicate);
    away.stop().await;
    runtime.shutdown_background();
}

/// The same where the log has grown to exactly the length that it had: the sequences are equal.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_log_of_the_same_length_is_told_by_its_messages() {
    let mesh = Mesh::start().await;
    let server = mesh.server();
    let proxy = Proxy::start(server.url()).await;
    let folders = [folder(), folder()];
    let away = mesh.sequencer_behind(&proxy, folders[0].path()).await;
    away.insist(event("kept", 1)).await;
    let backup = server.backup().await;
    for delivery in 1..=300 {
        away.insist(event("lost", delivery)).await;
    }
    proxy.cut();
    server.restore(&backup).await;
    mesh.connection.connected().await;
    let other = mesh.sequencer(&folders[1]).await;
    for delivery in 1..=300 {
        other.insist(event("others", delivery)).await;
    }
    proxy.mend();
    let receipt = away.insist(event("lost", 300)).await;
    assert_eq!((receipt.sequence_number.0, receipt.duplicate), (1, false));
    assert_eq!(away.insist(event("others", 301)).await.sequence_number.0, 301);
    mesh.events().await;
}
