//! Who appends, as one key in the bucket of leases says it. A hint: nothing depends on its being true.
//!
//! A raw publish with an expectation and a time to live, as for workers' leases: the client library's own creation forgets
//! the time to live where the key has been deleted before.

use std::time::Duration;

use bytes::Bytes;
use tokio::time::timeout;
use weft_nats::{
    async_nats::{HeaderMap, HeaderValue, jetstream::context::PublishErrorKind},
    connect::Connection,
    direct,
    subject::{LEASES_BUCKET, bucket_stream},
};

use super::Name;

/// How long a claim lives without renewal. A forwarding appender that stands still is in nobody's way, but while it is
/// named the others contend: some seconds. The server counts whole seconds, and removes up to one and a half too late.
pub(super) const TTL: Duration = Duration::from_secs(5);
/// How long an answer may take: the next look comes soon enough.
const ANSWER_MAX: Duration = Duration::from_secs(2);

/// What the key says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct LeaseHint {
    /// `None`: nobody appends, or did so long ago.
    pub holder: Option<Name>,
    /// The key's newest message, if only that of its deletion; 0 where there is none.
    pub revision: u64,
}

/// The key of one shard.
#[derive(Debug)]
pub(super) struct LeaseKey {
    connection: Connection,
    key: String,
    me: Name,
}

impl LeaseKey {
    /// Claims are in the name of `me`.
    pub fn new(connection: Connection, key: String, me: Name) -> Self {
        Self { connection, key, me }
    }

    /// What the key says now.
    ///
    /// # Errors
    ///
    /// What the server says, or that it does not; it passes.
    pub async fn read(&self) -> Result<LeaseHint, String> {
        let stream = bucket_stream(LEASES_BUCKET);
        let read = timeout(ANSWER_MAX, direct::last_by_subject(&self.connection, &stream, &self.key)).await;
        let message = read.map_err(|_| no_answer())?.map_err(|error| error.to_string())?;
        Ok(match message {
            None => LeaseHint { holder: None, revision: 0 },
            Some(message) => {
                // A marker of a deletion is empty. What is no name becomes part of no subject.
                let holder = std::str::from_utf8(&message.payload).ok().filter(|holder| super::is_name(holder));
                LeaseHint { holder: holder.map(Name::from), revision: message.seq.0 }
            }
        })
    }

    /// Claims the role, or renews the claim; the key's new revision. `None`: somebody has written behind `expected`.
    ///
    /// # Errors
    ///
    /// As [`read`](Self::read).
    pub async fn claim(&self, expected: u64) -> Result<Option<u64>, String> {
        let mut headers = expecting(expected);
        headers.insert("Nats-TTL", format!("{}s", TTL.as_secs()).as_str());
        self.write(headers, self.me.as_bytes().to_vec().into()).await
    }

    /// Gives the role back, unless somebody has taken it.
    ///
    /// # Errors
    ///
    /// As [`read`](Self::read); then it runs out by itself.
    pub async fn release(&self, expected: u64) -> Result<(), String> {
        let mut headers = expecting(expected);
        headers.insert("KV-Operation", "DEL");
        self.write(headers, Bytes::new()).await.map(|_| ())
    }

    async fn write(&self, headers: HeaderMap, payload: Bytes) -> Result<Option<u64>, String> {
        // While it is disconnected the client queues: a claim would be made when nobody means it any more.
        if !self.connection.is_connected() {
            return Err("not connected".into());
        }
        let jetstream = self.connection.jetstream();
        let written = async { jetstream.publish_with_headers(self.key.clone(), headers, payload).await?.await };
        match timeout(ANSWER_MAX, written).await {
            Ok(Ok(ack)) => Ok(Some(ack.sequence)),
            Ok(Err(error)) if error.kind() == PublishErrorKind::WrongLastSequence => Ok(None),
            Ok(Err(error)) => Err(error.to_string()),
            Err(_) => Err(no_answer()),
        }
    }
}

fn expecting(revision: u64) -> HeaderMap {
    let mut headers = HeaderMap::new();
    headers.insert("Nats-Expected-Last-Subject-Sequence", HeaderValue::from(revision));
    headers
}

fn no_answer() -> String {
    format!("no answer in {} s", ANSWER_MAX.as_secs())
}
