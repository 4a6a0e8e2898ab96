//! A supervised server with its users, as tests start it and connect to it.

use std::path::Path;

use weft_nats::{
    connect::Connection,
    options::{LogOptions, MESSAGE_OVERHEAD_BYTES, NatsOptions},
    server::{ServerOptions, find_program},
    streams::{self, EnsureError, LogSpec},
};
use weft_proto::ids::StreamSeq;

use crate::{PATIENCE, eventually};

/// A server that is stored in a folder, on a free port.
pub fn options(folder: &Path) -> ServerOptions {
    ServerOptions {
        program: find_program().unwrap(),
        folder: folder.to_owned(),
        log: LogOptions::default(),
        max_payload: (1 << 20) + MESSAGE_OVERHEAD_BYTES,
        port: 0,
        publish: Vec::new(),
        launcher: Vec::new(),
    }
}

/// Connects as a user of the server.
pub async fn connect(user: &NatsOptions) -> Connection {
    let connection = Connection::connect(user, "test").await.unwrap();
    tokio::time::timeout(PATIENCE, connection.connected()).await.expect("the user is let in");
    connection
}

/// Makes the streams.
pub async fn ensure(connection: &Connection) {
    streams::ensure(connection, &LogSpec { body_bytes_max: 1 << 20, ..LogSpec::default() }).await.unwrap();
}

/// The last sequence of a stream, as soon as the server answers: it may have been restarted a moment ago.
pub async fn last(connection: &Connection, stream: &str) -> StreamSeq {
    let mut last = Err(EnsureError::Unavailable(String::new()));
    let is_answered = async || {
        last = streams::state(connection, stream).await.map(|state| state.last);
        !matches!(last, Err(EnsureError::Unavailable(_)))
    };
    assert!(eventually(PATIENCE, is_answered).await, "the server answers");
    last.unwrap()
}

/// Publishes and waits until the server has seen it, stored or refused.
pub async fn publish(connection: &Connection, subject: &str) {
    connection.client().publish(subject.to_owned(), "x".into()).await.unwrap();
    let seen = connection.client().request(connection.api_subject("INFO"), "".into());
    tokio::time::timeout(PATIENCE, seen).await.expect("the server answers").unwrap();
}
