//! The catalog: changed by revision, watched through everything that happens to the server.

use std::{sync::Arc, time::Duration};

use base64::{Engine as _, prelude::BASE64_STANDARD};
use prost::Message as _;
use ring::{
    aead::{Aad, CHACHA20_POLY1305, LessSafeKey, NONCE_LEN, Nonce, UnboundKey},
    digest::{SHA256, digest},
};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use weft_catalog::{Catalog, CatalogError, MasterKey, Snapshot};
use weft_nats::{
    async_nats::HeaderMap,
    connect::Connection,
    direct,
    message::Stored,
    streams::{self, LogSpec},
};
use weft_proto::ids::StreamSeq;
use weft_proto::v1::{
    ApiKey, Destination, HttpDestination, Source, StandardScheme, Subscription, Verification, destination, verification,
};
use weft_testkit::{MASTER_KEY, PATIENCE, TestServer, master_key};

mod following;

const SECRET: &str = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw";

fn source(name: &str) -> Source {
    let scheme =
        verification::Scheme::Standard(StandardScheme { secrets: vec![SECRET.into()], tolerance_ms: Some(1000) });
    Source { name: name.into(), verification: Some(Verification { scheme: Some(scheme) }), ..Source::default() }
}

pub fn subscription(name: &str) -> Subscription {
    let http = HttpDestination {
        url: "http://127.0.0.1:1/".into(),
        secrets: vec![SECRET.into()],
        format: 1,
        ..Default::default()
    };
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
    let catalog = Catalog::new(connection.clone(), master_key());
    assert!(matches!(catalog.put_source(&source("a"), 0).await, Err(CatalogError::Unavailable(_))), "no bucket yet");
    ensure(&connection).await;

    let conflict = |result: Result<_, CatalogError>| assert!(matches!(result, Err(CatalogError::Conflict { .. })));
    let first = catalog.put_source(&source("a"), 0).await.unwrap();
    conflict(catalog.put_source(&source("a"), 0).await.map(drop));
    let second = catalog.put_source(&source("a"), first).await.unwrap();
    assert!(second > first);
    conflict(catalog.put_source(&source("a"), first).await.map(drop));
    conflict(catalog.delete_source("a", first).await);
    conflict(catalog.delete_source("absent", 0).await);
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

/// A series of requests reads each change once, so that it costs no more with thousands of entries. It reads the catalog as it
/// stands, changed by any client.
#[tokio::test]
async fn a_series_of_readings_reads_what_has_come_and_sees_every_change() {
    const ENTRIES: u16 = 200;
    let server = TestServer::start().await;
    let connection = server.connection("test").await;
    ensure(&connection).await;
    let other = Catalog::new(server.connection("other").await, master_key());
    for number in 0..ENTRIES {
        other.put_source(&source(&format!("s{number}")), 0).await.unwrap();
    }
    let catalog = Catalog::new(connection.clone(), master_key());
    let received = || connection.client().statistics().in_bytes.load(std::sync::atomic::Ordering::Relaxed);
    let before = received();
    let first = catalog.present().await.unwrap();
    let whole = received() - before;
    assert_eq!((first.sources.len(), first.complete), (usize::from(ENTRIES), true));

    let before = received();
    other.delete_source("s0", first.sources["s0"].revision).await.unwrap();
    let second = catalog.present().await.unwrap();
    let further = received() - before;
    assert!(!second.sources.contains_key("s0") && first.sources.contains_key("s0"), "the first one stays as it was");
    assert!(further * 10 < whole, "{further} bytes after {whole}");
    let created = other.put_source(&source("s0"), 0).await.unwrap();
    assert_eq!(catalog.present().await.unwrap().sources["s0"].revision, created);
    assert_eq!(*catalog.present().await.unwrap(), *catalog.read().await.unwrap());

    // A purge, which no message of the bucket shows.
    let bucket = connection.jetstream().get_stream("KV_weft_catalog").await.unwrap();
    bucket.purge().filter("$KV.weft_catalog.source.s7").await.unwrap();
    assert!(!catalog.present().await.unwrap().sources.contains_key("s7"));

    // Another bucket under the same name.
    connection.jetstream().delete_stream("KV_weft_catalog").await.unwrap();
    ensure(&connection).await;
    other.put_source(&source("only"), 0).await.unwrap();
    assert_eq!(names(&catalog.present().await.unwrap()), ["only"]);
}

/// A burst of changes wakes the followers a few times, not once for each: each time costs them a look at all entries. The
/// last of them is seen all the same, and entries are found by the uid of their subscription.
#[tokio::test]
async fn a_burst_of_changes_is_published_in_few_snapshots() {
    const ENTRIES: u8 = 200;
    let server = TestServer::start().await;
    let connection = server.connection("test").await;
    ensure(&connection).await;
    let catalog = Catalog::new(connection, master_key());
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
async fn one_of_concurrent_changes_succeeds() {
    let server = TestServer::start().await;
    let connection = server.connection("test").await;
    ensure(&connection).await;
    let catalog = Catalog::new(connection, master_key());
    let first = source("a");
    let puts = futures_util::future::join_all((0..8).map(|_| catalog.put_source(&first, 0))).await;
    assert_eq!(puts.iter().filter(|put| put.is_ok()).count(), 1, "{puts:?}");
    assert!(puts.iter().all(|put| matches!(put, Ok(_) | Err(CatalogError::Conflict { .. }))), "{puts:?}");
}

async fn see_disconnected(connection: &Connection) {
    let away = weft_testkit::eventually(PATIENCE, async || !connection.is_connected()).await;
    assert!(away, "the connection is lost");
}

/// Messages that others have written over an entry, as a value or as a marker of its removal, neither change nor remove
/// it: for a follower, for a reader that starts later, and for the next writer. Where nothing of the entry is left, the
/// catalog says so.
#[tokio::test]
async fn what_others_write_over_an_entry_does_not_count() {
    let server = TestServer::start().await;
    let connection = server.connection("test").await;
    ensure(&connection).await;
    let catalog = Catalog::new(connection.clone(), master_key());
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
    // After the foreign messages: a reader that sees this one has seen them.
    catalog.put_source(&source("behind"), 0).await.unwrap();
    let seen = see(&mut watch, |snapshot| snapshot.sources.contains_key("behind")).await;
    assert_eq!((seen.sources["shop"].revision, seen.complete), (revision, true));
    assert_eq!(*seen, *catalog.read().await.unwrap(), "who starts late concludes the same");

    // It is changed and removed as ever.
    assert!(matches!(catalog.put_source(&source("shop"), 0).await, Err(CatalogError::Conflict { .. })));
    let revision = catalog.put_source(&source("shop"), revision).await.unwrap();
    overwrite(None, b"forged".to_vec()).await;
    catalog.delete_source("shop", revision).await.unwrap();
    overwrite(None, b"forged".to_vec()).await;
    see(&mut watch, |snapshot| names(snapshot) == ["behind"]).await;
    let revision = catalog.put_source(&source("shop"), 0).await.unwrap();

    // Written over until nothing of it is left: a follower that knew it keeps it, a new reader knows that it does not
    // know.
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

    // Repaired as the message says.
    let bucket = connection.jetstream().get_stream("KV_weft_catalog").await.unwrap();
    bucket.purge().filter("$KV.weft_catalog.source.shop").await.unwrap();
    catalog.put_source(&source("shop"), 0).await.unwrap();
    assert_eq!(names(&*see(&mut late, |snapshot| snapshot.complete).await), ["behind", "last", "shop"]);
}

const BUCKET: &str = "KV_weft_catalog";

/// Every message of an entry, oldest first.
async fn stored(connection: &Connection, entry: &str) -> Vec<Stored> {
    let subject = format!("$KV.weft_catalog.{entry}");
    direct::range(connection, BUCKET, StreamSeq(1), &subject, 100, 1 << 20).await.unwrap()
}

/// Publishes a message of the bucket again, as a user of NATS who may publish there and has no master key.
async fn publish_again(connection: &Connection, message: &Stored, header: Option<(&str, &str)>) {
    let mut headers = HeaderMap::new();
    for (name, values) in message.headers.iter() {
        // With the writer's expectations the server would refuse it.
        if !name.to_string().starts_with("Nats-") {
            values.iter().for_each(|value| headers.append(name.clone(), value.clone()));
        }
    }
    header.into_iter().for_each(|(name, value)| headers.insert(name, value));
    let jetstream = connection.jetstream();
    let ack = jetstream.publish_with_headers(message.subject.clone(), headers, message.payload.clone()).await.unwrap();
    // A bucket that refuses it is as good.
    let _ = ack.await;
}

/// A revoked key stays revoked, a removed subscription is not brought back or discarded again, an old URL does not come
/// back, and stamps are those of the author of the change, regardless of what a user of NATS without the master key
/// publishes again.
#[tokio::test]
async fn nothing_that_is_published_again_changes_the_catalog() {
    let server = TestServer::start().await;
    let connection = server.connection("test").await;
    ensure(&connection).await;
    let catalog = Catalog::new(connection.clone(), master_key());
    let mut watch = catalog.watch(CancellationToken::new());
    let key = ApiKey { id: "ab12cd34".into(), digest: vec![7; 32], scopes: vec![1], ..ApiKey::default() };
    let revision = catalog.put_key(&key, 0).await.unwrap();
    catalog.delete_key("ab12cd34", revision).await.unwrap();
    let revision = catalog.put_subscription(&subscription("gone"), 0).await.unwrap();
    catalog.delete_subscription("gone", revision).await.unwrap();
    catalog.put_subscription(&Subscription { uid: vec![2; 16], ..subscription("gone") }, 0).await.unwrap();
    let revision = catalog.put_source(&source("moved"), 0).await.unwrap();
    let now = Source { max_body_bytes: 7, ..source("moved") };
    catalog.put_source(&now, revision).await.unwrap();

    let entries = ["key.ab12cd34", "subscription.gone", "source.moved"];
    let mut captured = Vec::new();
    for entry in entries {
        captured.extend(stored(&connection, entry).await);
    }
    assert_eq!(captured.len(), 7);
    let expected = |snapshot: &Snapshot| {
        snapshot.keys.is_empty()
            && snapshot.subscriptions["gone"].value.uid == vec![2; 16]
            && *snapshot.sources["moved"].value == now
            && !snapshot.removals.contains_key(&vec![2; 16])
    };
    assert!(expected(&catalog.read().await.unwrap()));
    // A rollup would take away what was there before, so that a role that starts later saw nothing else.
    for header in [None, Some(("weft-operator", "intruder")), Some(("Nats-Rollup", "sub"))] {
        for message in &captured {
            publish_again(&connection, message, header).await;
            let snapshot = catalog.read().await.unwrap();
            assert!(!snapshot.complete || expected(&snapshot), "{} {header:?}", message.subject);
        }
    }
    let last = streams::state(&connection, BUCKET).await.unwrap().last;
    let follower = see(&mut watch, |snapshot| snapshot.position.sequence >= last.0).await;
    assert!(expected(&follower), "who follows keeps what it knew");
    // A role that starts late finds entries lost and decides nothing; it never finds the old values.
    let late = Catalog::new(server.connection("late").await, master_key()).read().await.unwrap();
    assert!(!late.complete && late.keys.is_empty(), "{:?}", late.lost);
}

/// Seals a value in the form of an earlier version: `wft1`, the key's id, a nonce, ciphertext and tag; the entry's name is
/// authenticated with it.
fn seal_as_before(entry: &str, value: &[u8]) -> Vec<u8> {
    let master = BASE64_STANDARD.decode(MASTER_KEY).unwrap();
    let key = LessSafeKey::new(UnboundKey::new(&CHACHA20_POLY1305, &master).unwrap());
    let nonce: [u8; NONCE_LEN] = rand::random();
    let mut text = value.to_vec();
    let nonce_of = Nonce::assume_unique_for_key(nonce);
    key.seal_in_place_append_tag(nonce_of, Aad::from(entry.as_bytes()), &mut text).unwrap();
    [&b"wft1"[..], &digest(&SHA256, &master).as_ref()[..4], &nonce, &text].concat()
}

/// Entries of an earlier version are read, resealed with their stamp, and count from then on only where they stand.
#[tokio::test]
async fn a_catalog_of_the_form_before_is_read_and_resealed() {
    let server = TestServer::start().await;
    let connection = server.connection("test").await;
    ensure(&connection).await;
    let master = master_key();
    let publish = async |entry: &str, value: &[u8]| {
        let subject = format!("$KV.weft_catalog.{entry}");
        let mut headers = HeaderMap::new();
        headers.insert("weft-operator", "ab12cd34");
        headers.insert("weft-action", "created");
        headers.insert("weft-request-id", "r-1");
        let sealed = seal_as_before(entry, value);
        connection.jetstream().publish_with_headers(subject, headers, sealed.into()).await.unwrap().await.unwrap();
    };
    let key = ApiKey { id: "ab12cd34".into(), digest: vec![7; 32], scopes: vec![1], ..ApiKey::default() };
    publish("key.ab12cd34", &key.encode_to_vec()).await;
    publish("key.ab12cd34", b"").await;
    publish("source.a", &source("a").encode_to_vec()).await;
    publish("subscription.b", &subscription("b").encode_to_vec()).await;
    let revoked = stored(&connection, "key.ab12cd34").await.remove(0);

    let catalog = Catalog::new(connection.clone(), master.clone());
    let mut watch = catalog.watch(CancellationToken::new());
    let before = catalog.read().await.unwrap();
    assert!(before.complete && before.keys.is_empty() && before.sources.len() == 1);
    assert_eq!(catalog.reseal().await.unwrap(), 3, "the removal, too");
    assert_eq!(catalog.reseal().await.unwrap(), 0);
    let after = catalog.read().await.unwrap();
    assert_eq!(after.subscriptions["b"].value, before.subscriptions["b"].value);
    assert!(after.subscriptions["b"].revision > before.subscriptions["b"].revision);
    assert_eq!(after.authors, before.authors, "the stamp stays");

    // As NATS user: what was captured before, under this and any other entry's name that it is sealed as.
    for header in [None, Some(("Nats-Rollup", "sub"))] {
        publish_again(&connection, &revoked, header).await;
        for role in ["admin", "gateway"] {
            let late = Catalog::new(server.connection(role).await, master.clone()).read().await.unwrap();
            assert!(late.keys.is_empty(), "{role} {header:?}");
        }
    }
    let last = streams::state(&connection, BUCKET).await.unwrap().last;
    assert!(see(&mut watch, |snapshot| snapshot.position.sequence >= last.0).await.keys.is_empty());
    // It is changed and removed as any other.
    let revision = after.sources["a"].revision;
    catalog.delete_source("a", revision).await.unwrap();
    assert!(catalog.read().await.unwrap().sources.is_empty());
}

/// Uses of keys are written to the same bucket all the time, and take the place that a change was sealed for.
#[tokio::test]
async fn changes_are_stored_while_the_uses_of_keys_are_noted() {
    let server = TestServer::start().await;
    let connection = server.connection("test").await;
    ensure(&connection).await;
    let catalog = Catalog::new(connection, master_key());
    let stop = CancellationToken::new();
    let noting = {
        let (catalog, stop) = (catalog.clone(), stop.clone());
        tokio::spawn(async move {
            let mut at = 0;
            // As often as from three thousand keys in use.
            let mut ticks = tokio::time::interval(Duration::from_millis(20));
            while !stop.is_cancelled() {
                ticks.tick().await;
                at += 60_000;
                catalog.put_key_use("ab12cd34", at).await.unwrap();
            }
            at / 60_000
        })
    };
    for number in 0..50 {
        catalog.put_source(&source(&format!("s{number}")), 0).await.unwrap();
    }
    stop.cancel();
    assert!(noting.await.unwrap() > 0);
    assert_eq!(catalog.read().await.unwrap().sources.len(), 50);
}

/// Keys are exchanged while the mesh runs: entries of the old key are read, sealed again with their stamp, and afterwards
/// the old key is not needed. Sealing again does nothing more.
#[tokio::test]
async fn a_catalog_is_resealed_with_the_first_key() {
    let server = TestServer::start().await;
    let connection = server.connection("test").await;
    ensure(&connection).await;
    let of_old = Catalog::new(connection.clone(), master_key());
    let revision = of_old.put_source(&source("a"), 0).await.unwrap();
    of_old.put_source(&source("b"), 0).await.unwrap();
    of_old.put_source(&source("c"), 0).await.unwrap();
    of_old.delete_source("a", revision).await.unwrap();
    let new = MasterKey::parse(&MasterKey::generate()).unwrap();
    let both = Catalog::new(connection.clone(), new.clone().with_others([master_key()]).unwrap());
    let mut following = both.watch(CancellationToken::new());
    // One that seals with the old key meanwhile is sealed again, too.
    of_old.put_source(&source("d"), 0).await.unwrap();
    let before = both.read().await.unwrap();
    assert!(before.complete && before.sources.len() == 3);
    assert_eq!(
        both.reseal().await.unwrap(),
        0,
        "only the command exchanges keys: other processes may not have the new one"
    );
    assert!(of_old.read().await.unwrap().complete);

    let mut said = Vec::new();
    assert_eq!(both.reseal_with_first_key(|progress| said.push(progress)).await.unwrap(), 4, "the removal, too");
    assert_eq!(said.first().map(|first| (first.sealed, first.remaining)), Some((0, 4)));
    assert_eq!(said.last().map(|last| (last.sealed, last.remaining)), Some((4, 0)));
    assert_eq!(both.reseal_with_first_key(|_| ()).await.unwrap(), 0);
    let of_new = Catalog::new(connection.clone(), new).read().await.unwrap();
    assert!(of_new.complete, "{:?}", of_new.missing());
    let names = |snapshot: &Snapshot| snapshot.sources.keys().cloned().collect::<Vec<_>>();
    assert_eq!((names(&of_new), &of_new.authors), (names(&before), &before.authors));
    let last = streams::state(&connection, BUCKET).await.unwrap().last;
    assert!(see(&mut following, |snapshot| snapshot.position.sequence >= last.0).await.complete);
    // A process without the new key sees that one is missing as soon as an entry has no value of the old one.
    both.put_source(&source("e"), 0).await.unwrap();
    let missing = of_old.read().await.unwrap().missing().unwrap();
    assert!(missing.contains("master key"), "{missing}");
}
