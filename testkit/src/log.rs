//! A log on a server.

use weft_nats::{
    connect::Connection,
    options::LogOptions,
    streams::{self, LogSpec},
    subject::Layout,
};

use crate::TestServer;

/// A log with this number of shards, for bodies of 1 MiB.
pub fn spec(shards: u32) -> LogSpec {
    LogSpec { log: LogOptions { shards, ..LogOptions::default() }, body_bytes_max: 1 << 20, ..LogSpec::default() }
}

/// A server with the streams of a log.
#[derive(Debug)]
pub struct TestLog {
    /// The server, without users.
    pub server: TestServer,
    /// A connection to it.
    pub connection: Connection,
    /// The names of the streams.
    pub layout: Layout,
    /// The log that was made.
    pub spec: LogSpec,
}

impl TestLog {
    /// A server with a log of one shard.
    ///
    /// # Panics
    ///
    /// As [`of`](Self::of).
    pub async fn start() -> Self {
        Self::of(spec(1)).await
    }

    /// A server with this log.
    ///
    /// # Panics
    ///
    /// When the server does not start, or does not take the log.
    pub async fn of(spec: LogSpec) -> Self {
        let server = TestServer::start().await;
        let connection = server.connection("test").await;
        let layout = streams::ensure(&connection, &spec).await.expect("the server takes the log");
        Self { server, connection, layout, spec }
    }
}
