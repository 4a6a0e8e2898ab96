//! The log's own operations against a real nats-server.

use bytes::Bytes;
use weft_nats::{
    connect::Connection,
    headers::Headers,
    message::{Outgoing, Stored},
    reader::{OrderedReader, ReaderOptions},
};
use weft_proto::ids::StreamSeq;
use weft_testkit::{PATIENCE, TestLog, TestServer};

mod append;
mod connect;
mod direct;
mod reader;

async fn log() -> (TestServer, Connection) {
    let TestLog { server, connection, .. } = TestLog::start().await;
    (server, connection)
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
