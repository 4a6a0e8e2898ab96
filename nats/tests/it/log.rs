//! The log's own operations against a real nats-server.

use std::time::Duration;

use bytes::Bytes;
use weft_nats::{
    connect::Connection,
    headers::Headers,
    message::{Outgoing, Stored},
    reader::{OrderedReader, ReaderOptions},
    streams::{self, LogSpec},
    testing::TestServer,
};
use weft_proto::ids::StreamSeq;

mod append;
mod connect;
mod direct;
mod reader;

/// How long anything may take before it counts as never.
const PATIENCE: Duration = Duration::from_secs(60);

async fn log() -> (TestServer, Connection) {
    let server = TestServer::start().await;
    let connection = server.connection("test").await;
    streams::ensure(&connection, &spec()).await.unwrap();
    (server, connection)
}

fn spec() -> LogSpec {
    LogSpec { body_bytes_max: 1 << 20, ..LogSpec::default() }
}

fn message(text: &str) -> Outgoing {
    Outgoing { subject: "events.w".into(), headers: Headers::default(), payload: Bytes::from(text.to_owned()) }
}

fn messages(count: usize) -> Vec<Outgoing> {
    (0..count).map(|number| message(&number.to_string())).collect()
}

fn reader(connection: &Connection, from: u64) -> OrderedReader {
    let options = ReaderOptions {
        stream: "EVENTS".into(),
        name: "test".into(),
        from: StreamSeq(from),
        filter: None,
        batch_messages_max: 500,
        known: None,
        pages: false,
    };
    OrderedReader::new(connection.clone(), options)
}

async fn read(reader: &mut OrderedReader, count: usize) -> Vec<Stored> {
    let mut messages = Vec::new();
    while messages.len() < count {
        let batch = tokio::time::timeout(PATIENCE, reader.next()).await.expect("messages").unwrap();
        assert!(!batch.messages.is_empty());
        messages.extend(batch.messages);
    }
    messages
}
