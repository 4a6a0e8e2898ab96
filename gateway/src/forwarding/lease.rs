//! The lease of a shard: a key in the lease bucket that names the appender. It is a hint: correctness does not depend on
//! it.

use std::time::Duration;

use tokio::time::timeout;
use weft_nats::{
    connect::Connection,
    direct,
    leases::{self, Write},
    subject::{LEASES_BUCKET, bucket_stream},
};

use super::Name;

/// Lifetime of a lease without renewal. While a suspended appender is named, the other gateways contend. The server
/// counts whole seconds, and removes a key up to one and a half late.
pub(super) const TTL: Duration = Duration::from_secs(5);
/// Longest wait for an answer: the next check comes soon.
const ANSWER_MAX: Duration = Duration::from_secs(2);

/// The content of the key.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct LeaseHint {
    /// `None`: no appender.
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
        let message = read.map_err(|_| "no answer in time")?.map_err(|error| error.to_string())?;
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
        let holder = Write::Put(self.me.as_bytes().to_vec().into());
        leases::write(&self.connection, self.key.clone(), holder, expected, Some(TTL), ANSWER_MAX).await
    }

    /// Releases the lease, unless another gateway holds it.
    ///
    /// # Errors
    ///
    /// As [`read`](Self::read); the lease then expires.
    pub async fn release(&self, expected: u64) -> Result<(), String> {
        leases::write(&self.connection, self.key.clone(), Write::Delete, expected, None, ANSWER_MAX).await.map(drop)
    }
}
