//! Sources and subscriptions: prost messages in the KV bucket `weft_catalog`, under `source.<name>` and
//! `subscription.<name>`, changed by revision and watched by every role.

use std::{collections::BTreeMap, sync::Arc};

use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use weft_proto::v1::{Source, Subscription};

use crate::connect::Connection;

/// Something of the catalog with the revision of its key: grows with every change in the bucket.
#[derive(Debug, Clone, PartialEq)]
pub struct Revised<T> {
    /// The bucket's revision that wrote it.
    pub revision: u64,
    /// The value.
    pub value: T,
}

/// The catalog at one moment.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Snapshot {
    /// Whether the bucket has been read to its end: until then nothing may be decided by what is missing.
    pub complete: bool,
    /// Sources by name.
    pub sources: BTreeMap<String, Revised<Arc<Source>>>,
    /// Subscriptions by name.
    pub subscriptions: BTreeMap<String, Revised<Arc<Subscription>>>,
}

/// Why the catalog did not take a change.
#[derive(Debug, thiserror::Error)]
pub enum CatalogError {
    /// Someone else changed it meanwhile: read, decide again.
    #[error("{key} was changed by someone else")]
    Conflict {
        /// The key.
        key: String,
    },
    /// The value breaks a rule.
    #[error("{key}: {problem}")]
    Invalid {
        /// The key.
        key: String,
        /// What is wrong and what would be right.
        problem: String,
    },
    /// No server, no bucket, no answer.
    #[error("the catalog is not there: {0}")]
    Unavailable(String),
}

/// Reads and changes the catalog.
#[derive(Debug, Clone)]
pub struct Catalog {
    connection: Connection,
}

impl Catalog {
    /// The bucket need not exist yet.
    pub fn new(connection: Connection) -> Self {
        Self { connection }
    }

    /// Follows the catalog: the receiver's value changes within a second of every change. A stored value that cannot be
    /// decoded is logged and passed over. Ends with `cancel`; lives through restarts of the server.
    pub fn watch(&self, cancel: CancellationToken) -> watch::Receiver<Arc<Snapshot>> {
        let _ = (&self.connection, cancel);
        todo!()
    }

    /// The catalog as it stands now, read to its end.
    ///
    /// # Errors
    ///
    /// [`CatalogError::Unavailable`].
    pub async fn read(&self) -> Result<Snapshot, CatalogError> {
        todo!()
    }

    /// Stores a source. `expected` is the revision that the caller has read; 0: it must not exist. Returns the new revision.
    ///
    /// # Errors
    ///
    /// [`CatalogError`].
    pub async fn put_source(&self, source: &Source, expected: u64) -> Result<u64, CatalogError> {
        let _ = (source, expected);
        todo!()
    }

    /// Stores a subscription, as [`put_source`](Self::put_source).
    ///
    /// # Errors
    ///
    /// [`CatalogError`].
    pub async fn put_subscription(&self, subscription: &Subscription, expected: u64) -> Result<u64, CatalogError> {
        let _ = (subscription, expected);
        todo!()
    }

    /// Removes a source.
    ///
    /// # Errors
    ///
    /// [`CatalogError`].
    pub async fn delete_source(&self, name: &str, expected: u64) -> Result<(), CatalogError> {
        let _ = (name, expected);
        todo!()
    }

    /// Removes a subscription.
    ///
    /// # Errors
    ///
    /// [`CatalogError`].
    pub async fn delete_subscription(&self, name: &str, expected: u64) -> Result<(), CatalogError> {
        let _ = (name, expected);
        todo!()
    }
}

/// Checks a source for what no gateway could work with.
///
/// # Errors
///
/// What is wrong and what would be right, in one line.
pub fn validate_source(source: &Source) -> Result<(), String> {
    let _ = source;
    todo!()
}

/// Checks a subscription for what no worker could work with.
///
/// # Errors
///
/// What is wrong and what would be right, in one line.
pub fn validate_subscription(subscription: &Subscription) -> Result<(), String> {
    let _ = subscription;
    todo!()
}

/// Whether a type pattern (`*` is any run of characters, nothing else is special) takes a type.
pub fn pattern_matches(pattern: &str, text: &str) -> bool {
    let _ = (pattern, text);
    todo!()
}
