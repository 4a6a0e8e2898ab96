//! Followers of the catalog: what they see through restarts of the server and of a bucket that is made again.

use super::*;

#[tokio::test]
async fn a_watch_is_complete_only_when_the_bucket_has_been_read() {
    let server = TestServer::start().await;
    let connection = server.connection("test").await;
    let catalog = Catalog::new(connection.clone(), master_key());
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
    let mut watch = Catalog::new(connection.clone(), master_key()).watch(CancellationToken::new());
    let catalog = Catalog::new(server.connection("writer").await, master_key());
    let kept = catalog.put_source(&source("kept"), 0).await.unwrap();
    let gone = catalog.put_source(&source("gone"), 0).await.unwrap();
    see(&mut watch, |snapshot| names(snapshot) == ["gone", "kept"]).await;

    // The server is away, then changes before the watcher is back.
    server.kill();
    see_disconnected(&connection).await;
    assert_eq!(names(&watch.borrow()), ["gone", "kept"], "what was known stays in force");
    server.restart().await;
    let catalog = Catalog::new(server.connection("writer again").await, master_key());
    catalog.delete_source("gone", gone).await.unwrap();
    catalog.put_source(&source("new"), 0).await.unwrap();
    let snapshot = see(&mut watch, |snapshot| names(snapshot) == ["kept", "new"]).await;
    assert!(snapshot.complete);
    assert_eq!(snapshot.sources["kept"].revision, kept);
    // And what comes after.
    catalog.put_source(&source("kept"), kept).await.unwrap();
    see(&mut watch, |snapshot| snapshot.sources["kept"].revision > kept).await;
}

/// A bucket that is another than before (restored, recreated) replaces what was known of the old one.
#[tokio::test]
async fn a_watch_follows_the_bucket_that_is_there() {
    let server = TestServer::start().await;
    let connection = server.connection("watcher").await;
    ensure(&connection).await;
    let catalog = Catalog::new(connection.clone(), master_key());
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
