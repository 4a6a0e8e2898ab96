//! The catalog: changed by revision, watched through everything that happens to the server.

use std::{sync::Arc, time::Duration};

use prost::Message as _;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use weft_nats::{
    async_nats::HeaderMap,
    catalog::{Catalog, CatalogError, Snapshot},
    connect::Connection,
    streams::{self, LogSpec},
    testing::TestServer,
};
use weft_proto::v1::{
    Destination, HttpDestination, Source, StandardScheme, Subscription, Verification, destination, verification,
};

const PATIENCE: Duration = Duration::from_secs(15);
const SECRET: &str = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw";

fn source(name: &str) -> Source {
    let scheme =
        verification::Scheme::Standard(StandardScheme { secrets: vec![SECRET.into()], tolerance_ms: Some(1000) });
    Source { name: name.into(), verification: Some(Verification { scheme: Some(scheme) }), ..Source::default() }
}

fn subscription(name: &str) -> Subscription {
    let http = HttpDestination { url: "http://127.0.0.1:1/".into(), secrets: vec![SECRET.into()], format: 1 };
    Subscription {
        uid: vec![1; 16],
        name: name.into(),
        types: vec!["*".into()],
        timeout_ms: 1000,
        concurrency: 1,
        destination: Some(Destination { kind: Some(destination::Kind::Http(http)) }),
        ..Subscription::default()
    }
}

async fn ensure(connection: &Connection) {
    streams::ensure(connection, &LogSpec { body_bytes_max: 1 << 20, ..LogSpec::default() }).await.unwrap();
}

async fn see(watch: &mut watch::Receiver<Arc<Snapshot>>, what: impl FnMut(&Arc<Snapshot>) -> bool) -> Arc<Snapshot> {
    tokio::time::timeout(PATIENCE, watch.wait_for(what)).await.expect("the change is seen").unwrap().clone()
}

fn names(snapshot: &Snapshot) -> Vec<&str> {
    snapshot.sources.keys().map(String::as_str).collect()
}

#[tokio::test]
async fn a_change_needs_the_revision_that_was_read() {
    let server = TestServer::start().await;
    let connection = server.connection("test").await;
    let catalog = Catalog::new(connection.clone(), weft_nats::testing::master_key());
    assert!(matches!(catalog.put_source(&source("a"), 0).await, Err(CatalogError::Unavailable(_))), "no bucket yet");
    ensure(&connection).await;

    let conflict = |result: Result<_, CatalogError>| assert!(matches!(result, Err(CatalogError::Conflict { .. })));
    let first = catalog.put_source(&source("a"), 0).await.unwrap();
    conflict(catalog.put_source(&source("a"), 0).await.map(drop));
    let second = catalog.put_source(&source("a"), first).await.unwrap();
    assert!(second > first);
    conflict(catalog.put_source(&source("a"), first).await.map(drop));
    conflict(catalog.delete_source("a", first).await);
    conflict(catalog.delete_source("nobody", 0).await);
    catalog.delete_source("a", second).await.unwrap();
    assert!(catalog.read().await.unwrap().sources.is_empty());
    // After a deletion the key can be made again, and only once.
    let again = catalog.put_source(&source("a"), 0).await.unwrap();
    conflict(catalog.put_source(&source("a"), 0).await.map(drop));
    catalog.put_subscription(&subscription("b"), 0).await.unwrap();

    let snapshot = catalog.read().await.unwrap();
    assert!(snapshot.complete);
    assert_eq!((snapshot.sources["a"].revision, &*snapshot.sources["a"].value), (again, &source("a")));
    assert_eq!(&*snapshot.subscriptions["b"].value, &subscription("b"));
    let invalid = catalog.put_subscription(&Subscription { types: vec![], ..subscription("c") }, 0).await;
    assert!(matches!(invalid, Err(CatalogError::Invalid { .. })));
}

/// A burst of changes wakes the followers a few times, not once for each: each time costs them a look at all entries. The
/// last of them is seen all the same, and entries are found by the uid of their subscription.
#[tokio::test]
async fn a_burst_of_changes_is_published_in_few_snapshots() {
    const ENTRIES: u8 = 200;
    let server = TestServer::start().await;
    let connection = server.connection("test").await;
    ensure(&connection).await;
    let catalog = Catalog::new(connection, weft_nats::testing::master_key());
    let mut watch = catalog.watch(CancellationToken::new());
    see(&mut watch, |snapshot| snapshot.complete).await;
    let start = std::time::Instant::now();
    let following = tokio::spawn(async move {
        let mut wakes = 0;
        while watch.borrow_and_update().subscriptions.len() < usize::from(ENTRIES) {
            watch.changed().await.unwrap();
            wakes += 1;
        }
        (wakes, watch)
    });
    for n in 1..=ENTRIES {
        let value = Subscription { uid: vec![n; 16], ..subscription(&format!("s{n}")) };
        catalog.put_subscription(&value, 0).await.unwrap();
    }
    let (wakes, watch) = tokio::time::timeout(PATIENCE, following).await.expect("all are seen").unwrap();
    // Ten a second, and one at each end.
    let most = start.elapsed().as_millis() / 100 + 2;
    assert!(wakes <= most, "{wakes} of at most {most}");
    let snapshot = watch.borrow().clone();
    assert_eq!(snapshot.subscription_of(&[7; 16]).map(|found| found.value.name.as_str()), Some("s7"));
    assert!(snapshot.subscription_of(&[0; 16]).is_none());
    let revision = snapshot.subscriptions["s7"].revision;
    catalog.delete_subscription("s7", revision).await.unwrap();
    assert!(catalog.read().await.unwrap().subscription_of(&[7; 16]).is_none());
}

/// Of many who decide on the same revision one is taken: the control plane loses no change.
#[tokio::test]
async fn of_racing_changes_one_is_taken() {
    let server = TestServer::start().await;
    let connection = server.connection("test").await;
    ensure(&connection).await;
    let catalog = Catalog::new(connection, weft_nats::testing::master_key());
    let first = source("a");
    let puts = futures_util::future::join_all((0..8).map(|_| catalog.put_source(&first, 0))).await;
    assert_eq!(puts.iter().filter(|put| put.is_ok()).count(), 1, "{puts:?}");
    assert!(puts.iter().all(|put| matches!(put, Ok(_) | Err(CatalogError::Conflict { .. }))), "{puts:?}");
}

#[tokio::test]
async fn a_watch_is_complete_only_when_the_bucket_has_been_read() {
    let server = TestServer::start().await;
    let connection = server.connection("test").await;
    let catalog = Catalog::new(connection.clone(), weft_nats::testing::master_key());
    let mut early = catalog.watch(CancellationToken::new());
    assert!(!early.borrow().complete);
    ensure(&connection).await;
    // An empty bucket has been read, too.
    assert!(names(&*see(&mut early, |snapshot| snapshot.complete).await).is_empty());
    for number in 0..40 {
        catalog.put_source(&source(&format!("s-{number}")), 0).await.unwrap();
    }
    see(&mut early, |snapshot| snapshot.sources.len() == 40).await;
    let cancel = CancellationToken::new();
    let mut late = catalog.watch(cancel.clone());
    let complete = see(&mut late, |snapshot| snapshot.complete).await;
    assert_eq!(complete.sources.len(), 40, "never half a catalog");
    cancel.cancel();
    let ended = async { while late.changed().await.is_ok() {} };
    tokio::time::timeout(PATIENCE, ended).await.expect("a watch ends with its token");
}

#[tokio::test]
async fn a_watch_lives_through_restarts_and_sees_what_it_missed() {
    let server = TestServer::start().await;
    let connection = server.connection("watcher").await;
    ensure(&connection).await;
    let mut watch = Catalog::new(connection.clone(), weft_nats::testing::master_key()).watch(CancellationToken::new());
    let catalog = Catalog::new(server.connection("writer").await, weft_nats::testing::master_key());
    let kept = catalog.put_source(&source("kept"), 0).await.unwrap();
    let gone = catalog.put_source(&source("gone"), 0).await.unwrap();
    see(&mut watch, |snapshot| names(snapshot) == ["gone", "kept"]).await;

    // The server is away, then changes before the watcher is back.
    server.kill();
    see_disconnected(&connection).await;
    assert_eq!(names(&watch.borrow()), ["gone", "kept"], "what was known stays in force");
    server.restart().await;
    let catalog = Catalog::new(server.connection("writer again").await, weft_nats::testing::master_key());
    catalog.delete_source("gone", gone).await.unwrap();
    catalog.put_source(&source("new"), 0).await.unwrap();
    let snapshot = see(&mut watch, |snapshot| names(snapshot) == ["kept", "new"]).await;
    assert!(snapshot.complete);
    assert_eq!(snapshot.sources["kept"].revision, kept);
    // And what comes after.
    catalog.put_source(&source("kept"), kept).await.unwrap();
    see(&mut watch, |snapshot| snapshot.sources["kept"].revision > kept).await;
}

/// A bucket that is another than before (restored, made anew) replaces what was known of the old one.
#[tokio::test]
async fn a_watch_follows_the_bucket_that_is_there() {
    let server = TestServer::start().await;
    let connection = server.connection("watcher").await;
    ensure(&connection).await;
    let catalog = Catalog::new(connection.clone(), weft_nats::testing::master_key());
    let mut watch = catalog.watch(CancellationToken::new());
    for name in ["a", "b", "c"] {
        catalog.put_source(&source(name), 0).await.unwrap();
    }
    see(&mut watch, |snapshot| snapshot.sources.len() == 3).await;
    connection.jetstream().delete_stream("KV_weft_catalog").await.unwrap();
    ensure(&connection).await;
    catalog.put_source(&source("d"), 0).await.unwrap();
    see(&mut watch, |snapshot| names(snapshot) == ["d"]).await;
}

async fn see_disconnected(connection: &Connection) {
    let away = weft_nats::testing::eventually(PATIENCE, async || !connection.is_connected()).await;
    assert!(away, "the connection is lost");
}

/// What others have written over an entry, as a value or as a marker of its removal, neither changes nor removes it: for who
/// watches, for who starts later, and for who writes next. Where nothing of the entry is left, the catalog says so.
#[tokio::test]
async fn what_others_write_over_an_entry_does_not_count() {
    let server = TestServer::start().await;
    let connection = server.connection("test").await;
    ensure(&connection).await;
    let catalog = Catalog::new(connection.clone(), weft_nats::testing::master_key());
    let revision = catalog.put_source(&source("shop"), 0).await.unwrap();
    let mut watch = catalog.watch(CancellationToken::new());
    see(&mut watch, |snapshot| names(snapshot) == ["shop"]).await;
    let overwrite = async |header: Option<(&str, &str)>, payload: Vec<u8>| {
        let mut headers = HeaderMap::new();
        header.into_iter().for_each(|(name, value)| headers.insert(name, value));
        let subject = "$KV.weft_catalog.source.shop";
        let stored = connection.jetstream().publish_with_headers(subject, headers, payload.into()).await.unwrap();
        stored.await.unwrap().sequence
    };
    overwrite(Some(("KV-Operation", "DEL")), Vec::new()).await;
    overwrite(Some(("KV-Operation", "PURGE")), Vec::new()).await;
    overwrite(None, source("shop").encode_to_vec()).await;
    // Behind them: who sees this has seen them.
    catalog.put_source(&source("behind"), 0).await.unwrap();
    let seen = see(&mut watch, |snapshot| snapshot.sources.contains_key("behind")).await;
    assert_eq!((seen.sources["shop"].revision, seen.complete), (revision, true));
    assert_eq!(*seen, catalog.read().await.unwrap(), "who starts late concludes the same");

    // It is changed and removed as ever.
    assert!(matches!(catalog.put_source(&source("shop"), 0).await, Err(CatalogError::Conflict { .. })));
    let revision = catalog.put_source(&source("shop"), revision).await.unwrap();
    overwrite(None, b"forged".to_vec()).await;
    catalog.delete_source("shop", revision).await.unwrap();
    overwrite(None, b"forged".to_vec()).await;
    see(&mut watch, |snapshot| names(snapshot) == ["behind"]).await;
    let revision = catalog.put_source(&source("shop"), 0).await.unwrap();

    // Written over until nothing of it is left: who knew it goes on, who comes anew knows that it does not know.
    for _ in 0..5 {
        overwrite(Some(("KV-Operation", "DEL")), Vec::new()).await;
    }
    catalog.put_source(&source("last"), 0).await.unwrap();
    let seen = see(&mut watch, |snapshot| snapshot.sources.contains_key("last")).await;
    assert_eq!((seen.sources["shop"].revision, seen.complete), (revision, true));
    let late = catalog.read().await.unwrap();
    assert!(!late.complete && late.missing().unwrap().contains("source.shop"), "{late:?}");
    let mut late = catalog.watch(CancellationToken::new());
    see(&mut late, |snapshot| !snapshot.lost.is_empty() && !snapshot.complete).await;

    // Mended as it says.
    let bucket = connection.jetstream().get_stream("KV_weft_catalog").await.unwrap();
    bucket.purge().filter("$KV.weft_catalog.source.shop").await.unwrap();
    catalog.put_source(&source("shop"), 0).await.unwrap();
    assert_eq!(names(&*see(&mut late, |snapshot| snapshot.complete).await), ["behind", "last", "shop"]);
}
