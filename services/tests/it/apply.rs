//! The configuration's sources and subscriptions in the catalog of a real server.

use std::path::Path;

use bytes::Bytes;
use jiff::Timestamp;
use weft::{
    apply::{Applied, apply},
    config::{Config, DesiredCatalog},
    mesh::Wiring,
};
use weft_nats::{
    append::Appender,
    catalog::Catalog,
    connect::Connection,
    message::Outgoing,
    streams::{self, LogSpec},
    subject::Layout,
    testing::{TestServer, eventually},
};
use weft_proto::ids::StreamSeq;

use crate::mesh::PATIENCE;

struct Log {
    _server: TestServer,
    connection: Connection,
    layout: Layout,
}

impl Log {
    async fn start() -> Self {
        let server = TestServer::start().await;
        let connection = server.connection("apply").await;
        let spec = LogSpec { body_bytes_max: 1024 * 1024, ..LogSpec::default() };
        let layout = streams::ensure(&connection, &spec).await.unwrap();
        Self { _server: server, connection, layout }
    }

    /// Appends so many messages behind `last`.
    async fn append(&self, last: u64, count: usize) {
        let message = Outgoing { subject: "events.a".into(), headers: Default::default(), payload: Bytes::from("{}") };
        let mut appender = Appender::new(self.connection.clone());
        appender.append(StreamSeq(last), &vec![message; count]).await.unwrap();
    }

    async fn apply(&self, desired: &DesiredCatalog) -> Applied {
        apply(&self.catalog(), self.layout, desired).await.unwrap()
    }

    fn catalog(&self) -> Catalog {
        Catalog::new(self.connection.clone(), weft_nats::testing::master_key())
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
    assert_eq!(log.apply(&desired(subscription("first", "now"))).await, Applied { created: 1, updated: 0 });
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
async fn who_applies_at_the_same_moment_agrees() {
    let log = Log::start().await;
    let text: String = (0..5).map(|number| subscription(&format!("s-{number}"), "now")).collect();
    let desired = desired(text);
    let (a, b, c) = tokio::join!(log.apply(&desired), log.apply(&desired), log.apply(&desired));
    assert_eq!(a.created + b.created + c.created, 5);
    assert_eq!(a.updated + b.updated + c.updated, 0);
}
