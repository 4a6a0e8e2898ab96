//! The catalog behind a connection: reads and changes by revision.

use std::{sync::Arc, time::Duration};

use async_nats::HeaderMap;
use parking_lot::{Mutex, MutexGuard};
use prost::Message;
use weft_nats::{
    admin_requests::{self, Requests},
    connect::Connection,
};
use weft_proto::{
    ids::StreamSeq,
    v1::{ApiKey, Source, Subscription},
};

use super::{
    bucket::{KEY, KEY_USED, SOURCE, SUBSCRIPTION},
    change::Change,
    entry::Value,
    seal::MasterKey,
    stamp::{self, Stamp},
    validate::{validate_key, validate_source, validate_subscription},
};

mod follow;
mod reached;
mod scan;
mod store;

use reached::Reached;
use scan::Kept;
use store::LegacyEnd;
pub use store::Resealed;

/// Value of a removed entry. An entry's value contains its name, so no other value is empty.
const REMOVED: &[u8] = b"";
/// How long reading the whole bucket may take: some thousand entries take some milliseconds.
const READ_PATIENCE: Duration = Duration::from_secs(10);
/// Messages asked for at a time.
const READ_MESSAGES: usize = 1000;
/// Bytes asked for at a time.
const READ_BYTES: usize = 4 << 20;

/// Why the catalog did not take a change.
#[derive(Debug, thiserror::Error)]
pub enum CatalogError {
    /// Someone else changed it meanwhile: read, decide again.
    #[error("{key} was changed by someone else; read it again and decide again")]
    Conflict {
        /// The key.
        key: String,
    },
    /// The value breaks a rule.
    #[error("{key}: {problem}")]
    Invalid {
        /// The key.
        key: String,
        /// The problem and the fix.
        problem: String,
    },
    /// No server, no bucket, no answer. A change may have been stored all the same: read before it is tried again.
    #[error("the catalog is unavailable: {0}")]
    Unavailable(String),
}

/// Reads and changes the catalog. What one of its clones has written or read, none of them reads the catalog without.
#[derive(Debug, Clone)]
pub struct Catalog {
    connection: Connection,
    key: MasterKey,
    reached: Arc<Mutex<Reached>>,
    legacy_end: Arc<LegacyEnd>,
    /// The newest reading of [`present`](Self::present).
    kept: Arc<tokio::sync::Mutex<Option<Kept>>>,
    /// Held while an entry is written.
    writing: Arc<tokio::sync::Mutex<()>>,
    /// The sequence up to which the newest value of [`watch`](Self::watch) holds every change.
    followed: Arc<tokio::sync::watch::Sender<StreamSeq>>,
}

impl Catalog {
    /// The bucket need not exist yet.
    pub fn new(connection: Connection, key: MasterKey) -> Self {
        Self {
            connection,
            key,
            reached: Arc::default(),
            legacy_end: Arc::default(),
            kept: Arc::default(),
            writing: Arc::default(),
            followed: Arc::new(tokio::sync::watch::Sender::new(StreamSeq(0))),
        }
    }

    /// The connection that it is read and changed through.
    pub fn connection(&self) -> &Connection {
        &self.connection
    }

    /// The key that it is sealed with.
    pub fn master_key(&self) -> &MasterKey {
        &self.key
    }

    /// Requests to an admin, for changes that this process's own user may not make.
    pub fn requests(&self) -> Requests {
        Requests::new(self.connection.clone(), self.key.tags(admin_requests::TAG_PURPOSE))
    }

    fn reached(&self) -> MutexGuard<'_, Reached> {
        self.reached.lock()
    }

    /// Stores a source. `expected` is the revision that the caller has read; 0: it must not exist. Returns the new revision.
    ///
    /// # Errors
    ///
    /// [`CatalogError`].
    pub async fn put_source(&self, source: &Source, expected: u64) -> Result<u64, CatalogError> {
        let key = format!("{SOURCE}.{}", source.name);
        validate_source(source).map_err(|problem| CatalogError::Invalid { key: key.clone(), problem })?;
        self.put(key, HeaderMap::new(), source.encode_to_vec(), expected).await
    }

    /// Stores a subscription, as [`put_source`](Self::put_source).
    ///
    /// # Errors
    ///
    /// [`CatalogError`].
    pub async fn put_subscription(&self, subscription: &Subscription, expected: u64) -> Result<u64, CatalogError> {
        let key = format!("{SUBSCRIPTION}.{}", subscription.name);
        validate_subscription(subscription).map_err(|problem| CatalogError::Invalid { key: key.clone(), problem })?;
        self.put(key, HeaderMap::new(), subscription.encode_to_vec(), expected).await
    }

    /// Stores an API key, as [`put_source`](Self::put_source).
    ///
    /// # Errors
    ///
    /// [`CatalogError`].
    pub async fn put_key(&self, api_key: &ApiKey, expected: u64) -> Result<u64, CatalogError> {
        let key = format!("{KEY}.{}", api_key.id);
        validate_key(api_key).map_err(|problem| CatalogError::Invalid { key: key.clone(), problem })?;
        self.put(key, HeaderMap::new(), api_key.encode_to_vec(), expected).await
    }

    /// Stores when an API key was used last, in unix milliseconds; the last write wins. Not sealed: gateways may write
    /// this and nothing else.
    ///
    /// # Errors
    ///
    /// [`CatalogError::Unavailable`].
    pub async fn put_key_use(&self, id: &str, at_ms: i64) -> Result<(), CatalogError> {
        self.publish(format!("{KEY_USED}.{id}"), HeaderMap::new(), at_ms.to_string().into_bytes()).await.map(drop)
    }

    /// Removes a source that has the revision `expected`.
    ///
    /// # Errors
    ///
    /// [`CatalogError`].
    pub async fn delete_source(&self, name: &str, expected: u64) -> Result<(), CatalogError> {
        self.delete(format!("{SOURCE}.{name}"), HeaderMap::new(), expected).await
    }

    /// Removes a subscription that has the revision `expected`.
    ///
    /// # Errors
    ///
    /// [`CatalogError`].
    pub async fn delete_subscription(&self, name: &str, expected: u64) -> Result<(), CatalogError> {
        self.delete(format!("{SUBSCRIPTION}.{name}"), HeaderMap::new(), expected).await
    }

    /// Revokes an API key that has the revision `expected`.
    ///
    /// # Errors
    ///
    /// [`CatalogError`].
    pub async fn delete_key(&self, id: &str, expected: u64) -> Result<(), CatalogError> {
        self.delete(format!("{KEY}.{id}"), HeaderMap::new(), expected).await
    }

    /// Stores what was decided, stamped.
    ///
    /// # Errors
    ///
    /// [`CatalogError`].
    pub async fn write(&self, change: &Change, stamp: &Stamp) -> Result<(), CatalogError> {
        let key = format!("{}.{}", change.kind.as_str(), change.name);
        let mut headers = stamp.headers(change.action);
        if let Some(uid) = change.removed {
            headers.insert(stamp::UID, uid.to_string());
        }
        let value = match &change.value {
            None => return self.delete(key, headers, change.expected).await,
            Some(Value::Source(source)) => source.encode_to_vec(),
            Some(Value::Subscription(subscription)) => subscription.encode_to_vec(),
            Some(Value::Key(api_key)) => api_key.encode_to_vec(),
        };
        self.put(key, headers, value, change.expected).await.map(drop)
    }

    async fn put(&self, key: String, headers: HeaderMap, value: Vec<u8>, expected: u64) -> Result<u64, CatalogError> {
        self.store(key, headers, &value, expected).await
    }

    /// Stores that an entry is removed: sealed as its values are, so that only a process with the master key can remove
    /// it.
    async fn delete(&self, key: String, mut headers: HeaderMap, expected: u64) -> Result<(), CatalogError> {
        // A missing key has no revision, and its removal would only add a message.
        if expected == 0 {
            return Err(CatalogError::Conflict { key });
        }
        // For people who look with the tools of NATS; readers of the catalog go by the sealed value.
        headers.insert(stamp::KV_OPERATION, "DEL");
        self.store(key, headers, REMOVED, expected).await.map(drop)
    }
}
