//! The configuration's sources and subscriptions in the catalog of a real server.

use std::path::Path;

use bytes::Bytes;
use jiff::Timestamp;
use uuid::Uuid;
use weft_catalog::{Catalog, MasterKey};
use weft_nats::{append::Appender, connect::Connection, message::Outgoing, streams, subject::Layout};
use weft_proto::ids::StreamSeq;
use weft_services::{
    apply::{Applied, ApplyError, apply},
    config::{Config, DesiredCatalog},
    mesh::Wiring,
};
use weft_testkit::{TestLog, TestServer, eventually, spec};

use crate::mesh::PATIENCE;

struct Log {
    _server: TestServer,
    connection: Connection,
    layout: Layout,
}

impl Log {
    async fn start() -> Self {
        let TestLog { server, connection, layout, .. } = TestLog::start().await;
        Self { _server: server, connection, layout }
    }

    /// Appends `count` messages after `last`.
    async fn append(&self, last: u64, count: usize) {
        let message = Outgoing { subject: "events.a".into(), headers: Default::default(), payload: Bytes::from("{}") };
        let mut appender = Appender::new(self.connection.clone());
        appender.append(StreamSeq(last), &vec![message; count]).await.unwrap();
    }

    async fn apply(&self, desired: &DesiredCatalog) -> Applied {
        apply(&self.catalog(), self.layout, desired, &Uuid::now_v7().to_string()).await.unwrap()
    }

    fn catalog(&self) -> Catalog {
        Catalog::new(self.connection.clone(), weft_testkit::master_key())
    }

    async fn starts(&self, name: &str) -> Vec<u64> {
        let snapshot = self.catalog().read().await.unwrap();
        snapshot.subscriptions[name].value.starts.clone()
    }
}

fn subscription(name: &str, start: &str) -> String {
    let secret = Wiring::new().receiver_secret;
    format!(
        "[[subscription]]\nname = \"{name}\"\nstart = \"{start}\"\n\
         destination = {{ type = \"http\", url = \"http://127.0.0.1:1/\", secret = \"{secret}\" }}\n"
    )
}

fn desired(text: String) -> DesiredCatalog {
    Config::parse(Path::new("weft.toml"), text, [], None).unwrap().catalog
}

/// `start` becomes a sequence when the subscription is made, and stays that.
#[tokio::test]
async fn starts_are_resolved_when_a_subscription_is_made() {
    let log = Log::start().await;
    assert_eq!(log.apply(&desired(subscription("first", "now"))).await, Applied { created: 1, ..Applied::default() });
    assert_eq!(log.starts("first").await, [1], "on an empty log that is the beginning");

    log.append(0, 5).await;
    let stored = weft_nats::direct::get(&log.connection, "EVENTS", StreamSeq(5)).await.unwrap().unwrap().stored_at;
    assert!(eventually(PATIENCE, async || Timestamp::now() > stored).await);
    let between = Timestamp::now();
    log.append(5, 4).await;
    let wanted = [
        ("now", "now".to_owned(), 10),
        ("beginning", "beginning".to_owned(), 1),
        ("between", between.to_string(), 6),
        ("long-ago", "2001-01-01T00:00:00Z".to_owned(), 1),
        ("to-come", "2999-01-01T00:00:00Z".to_owned(), 10),
    ];
    let text: String = wanted.iter().map(|(name, start, _)| subscription(name, start)).collect();
    let desired = desired(text);
    log.apply(&desired).await;
    for (name, _, start) in wanted {
        assert_eq!(log.starts(name).await, [start], "{name}");
    }
    log.append(9, 1).await;
    assert_eq!(log.apply(&desired).await, Applied::default(), "the same again changes nothing");
    assert_eq!(log.starts("now").await, [10]);
}

/// Several processes with one file at the same moment: each subscription is made once.
#[tokio::test]
async fn concurrent_applies_agree() {
    let log = Log::start().await;
    let text: String = (0..5).map(|number| subscription(&format!("s-{number}"), "now")).collect();
    let desired = desired(text);
    let (a, b, c) = tokio::join!(log.apply(&desired), log.apply(&desired), log.apply(&desired));
    assert_eq!(a.created + b.created + c.created, 5);
    assert_eq!(a.updated + b.updated + c.updated, 0);
}

/// A catalog that cannot be decrypted is not used. After the loss of the key the operator removes the catalog and applies it
/// again; the events stay.
#[tokio::test]
async fn a_catalog_of_another_key_is_not_written() {
    let log = Log::start().await;
    log.append(0, 3).await;
    let desired = desired(subscription("billing", "beginning"));
    log.apply(&desired).await;
    let before = log.catalog().read().await.unwrap();
    let other = MasterKey::parse(&MasterKey::generate()).unwrap();
    let other = Catalog::new(log.connection.clone(), other);
    let refused = apply(&other, log.layout, &desired, "again").await;
    assert!(
        matches!(&refused, Err(ApplyError::Unavailable(problem)) if problem.contains("WEFT_MASTER_KEY")),
        "{refused:?}"
    );
    assert_eq!(log.catalog().read().await.unwrap(), before);

    log.connection.jetstream().delete_stream("KV_weft_catalog").await.unwrap();
    streams::ensure(&log.connection, &spec(1)).await.unwrap();
    assert_eq!(
        apply(&other, log.layout, &desired, "after-loss").await.unwrap(),
        Applied { created: 1, ..Applied::default() }
    );
    assert_eq!(other.read().await.unwrap().subscriptions["billing"].value.starts, [1]);
    assert_eq!(streams::state(&log.connection, "EVENTS").await.unwrap().last, StreamSeq(3));
}
