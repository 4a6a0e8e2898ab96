//! Writes of keys of the bucket of leases.
//!
//! They are raw publishes with an expected revision and a time to live: the client library's `create` drops the time to live
//! where the key was deleted before.

use std::time::Duration;

use async_nats::{HeaderMap, HeaderValue, jetstream::context::PublishErrorKind};
use bytes::Bytes;
use tokio::time::timeout;

use crate::connect::Connection;

/// The kind of a write.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Write {
    /// Puts a value.
    Put(Bytes),
    /// Deletes the key.
    Delete,
}

/// Writes the key of a subject, expecting its revision; 0: it does not exist. What is written expires after `ttl`, in whole
/// seconds. Returns the new revision; `None`: the key was written since. An ack after `patience` is useless.
///
/// # Errors
///
/// The error of the server, or that it did not answer; both are transient.
pub async fn write(
    connection: &Connection,
    subject: String,
    write: Write,
    expected: u64,
    ttl: Option<Duration>,
    patience: Duration,
) -> Result<Option<u64>, String> {
    // A disconnected client queues messages: a claim would be sent when it is out of date.
    if !connection.is_connected() {
        return Err("not connected".into());
    }
    let mut headers = HeaderMap::new();
    headers.insert("Nats-Expected-Last-Subject-Sequence", HeaderValue::from(expected));
    if let Some(ttl) = ttl {
        headers.insert("Nats-TTL", format!("{}s", ttl.as_secs()).as_str());
    }
    let payload = match write {
        Write::Put(value) => value,
        Write::Delete => {
            headers.insert("KV-Operation", "DEL");
            Bytes::new()
        }
    };
    let jetstream = connection.jetstream();
    let written = async { jetstream.publish_with_headers(subject, headers, payload).await?.await };
    match timeout(patience, written).await {
        Ok(Ok(ack)) => Ok(Some(ack.sequence)),
        Ok(Err(error)) if error.kind() == PublishErrorKind::WrongLastSequence => Ok(None),
        Ok(Err(error)) => Err(error.to_string()),
        Err(_) => Err("no answer in time".into()),
    }
}
