//! The lease of a shard: a key in the lease bucket that names the leader. It is a hint: correctness does not depend on
//! it.
//!
//! Written by a raw publish with an expected revision and a TTL: the client library drops the TTL when the key has been
//! deleted before.

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

/// Lifetime of a lease without renewal. While a suspended leader is named, the other gateways contend. The server
/// counts whole seconds, and removes a key up to one and a half late.
pub(super) const TTL: Duration = Duration::from_secs(5);
/// Longest wait for an answer: the next check comes soon.
const ANSWER_MAX: Duration = Duration::from_secs(2);

/// The content of the key.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct LeaseHint {
    /// `None`: no leader.
    pub holder: Option<Name>,
    /// Revision of the newest message of the key, also of a deletion; 0 without one.
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
    /// Claims name `me`.
    pub fn new(connection: Connection, key: String, me: Name) -> Self {
        Self { connection, key, me }
    }

    /// Reads the key.
    ///
    /// # Errors
    ///
    /// Any failure; all are transient.
    pub async fn read(&self) -> Result<LeaseHint, String> {
        let stream = bucket_stream(LEASES_BUCKET);
        let read = timeout(ANSWER_MAX, direct::last_by_subject(&self.connection, &stream, &self.key)).await;
        let message = read.map_err(|_| no_answer())?.map_err(|error| error.to_string())?;
        Ok(match message {
            None => LeaseHint { holder: None, revision: 0 },
            Some(message) => {
                // Deletion markers are empty. An invalid name must not become part of a subject.
                let holder = std::str::from_utf8(&message.payload).ok().filter(|holder| super::is_name(holder));
                LeaseHint { holder: holder.map(Name::from), revision: message.seq.0 }
            }
        })
    }

    /// Claims or renews the lease; returns the new revision. `None`: the revision is not `expected`.
    ///
    /// # Errors
    ///
    /// As [`read`](Self::read).
    pub async fn claim(&self, expected: u64) -> Result<Option<u64>, String> {
        let mut headers = expecting(expected);
        headers.insert("Nats-TTL", format!("{}s", TTL.as_secs()).as_str());
        self.write(headers, self.me.as_bytes().to_vec().into()).await
    }

    /// Releases the lease, unless another gateway holds it.
    ///
    /// # Errors
    ///
    /// As [`read`](Self::read); the lease then expires.
    pub async fn release(&self, expected: u64) -> Result<(), String> {
        let mut headers = expecting(expected);
        headers.insert("KV-Operation", "DEL");
        self.write(headers, Bytes::new()).await.map(|_| ())
    }

    async fn write(&self, headers: HeaderMap, payload: Bytes) -> Result<Option<u64>, String> {
        // The client queues while disconnected: the claim would be made too late.
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
