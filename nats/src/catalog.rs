//! Sources and subscriptions: prost messages in the KV bucket `weft_catalog`, under `source.<name>` and
//! `subscription.<name>`, changed by revision and watched by every role.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use async_nats::jetstream::kv::{self, CreateErrorKind, Operation, UpdateErrorKind};
use futures_util::StreamExt as _;
use prost::Message as _;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use weft_proto::v1::{Source, Subscription};

use crate::{connect::Connection, subject::CATALOG_BUCKET};

mod pattern;
mod validate;

pub use pattern::pattern_matches;
pub use validate::{validate_source, validate_subscription};

/// The pause between two tries to follow the catalog: changes are to be live within a second.
const RETRY_PAUSE: Duration = Duration::from_millis(300);
/// How often a follower asks whether the bucket has moved on without it: what a watch that died silently costs at most.
const CHECK_INTERVAL: Duration = Duration::from_secs(5);

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

impl Snapshot {
    /// Takes an entry of the bucket. What cannot be decoded is logged and passed over.
    fn apply(&mut self, entry: &kv::Entry) {
        let Some((kind, name)) = entry.key.split_once('.') else { return };
        let deleted = entry.operation != Operation::Put;
        match (kind, deleted) {
            ("source", true) => drop(self.sources.remove(name)),
            ("subscription", true) => drop(self.subscriptions.remove(name)),
            ("source", false) => insert(&mut self.sources, name, entry, Source::decode(entry.value.clone())),
            ("subscription", false) => {
                insert(&mut self.subscriptions, name, entry, Subscription::decode(entry.value.clone()));
            }
            _ => {}
        }
    }
}

fn insert<T>(
    into: &mut BTreeMap<String, Revised<Arc<T>>>,
    name: &str,
    entry: &kv::Entry,
    decoded: Result<T, prost::DecodeError>,
) {
    match decoded {
        Ok(value) => drop(into.insert(name.to_owned(), Revised { revision: entry.revision, value: Arc::new(value) })),
        Err(error) => tracing::error!(key = entry.key, %error, "catalog entry cannot be decoded and is ignored"),
    }
}

impl Catalog {
    /// The bucket need not exist yet.
    pub fn new(connection: Connection) -> Self {
        Self { connection }
    }

    /// Follows the catalog: the receiver's value changes within a second of every change. A stored value that cannot be
    /// decoded is logged and passed over. Ends with `cancel`; lives through restarts of the server.
    pub fn watch(&self, cancel: CancellationToken) -> watch::Receiver<Arc<Snapshot>> {
        let (sender, receiver) = watch::channel(Arc::new(Snapshot::default()));
        let catalog = self.clone();
        // Logs its own faults and ends with `cancel`.
        tokio::spawn(async move {
            loop {
                let ended = tokio::select! {
                    () = cancel.cancelled() => return,
                    ended = catalog.follow(&sender) => ended,
                };
                if let Err(problem) = ended {
                    tracing::debug!(problem, "catalog watch starts over");
                }
                tokio::select! {
                    () = cancel.cancelled() => return,
                    () = tokio::time::sleep(RETRY_PAUSE) => {}
                }
            }
        });
        receiver
    }

    /// Follows the bucket with one watch, for as long as that lives.
    async fn follow(&self, sender: &watch::Sender<Arc<Snapshot>>) -> Result<(), String> {
        self.connection.connected().await;
        let store = self.store().await.map_err(|error| error.to_string())?;
        let last = store.status().await.map_err(|error| error.to_string())?.info.state.last_sequence;
        let mut entries = store.watch_with_history(">").await.map_err(|error| error.to_string())?;
        let mut snapshot = Snapshot { complete: last == 0, ..Snapshot::default() };
        let mut seen = 0;
        if snapshot.complete {
            publish(sender, &snapshot);
        }
        loop {
            let entry = match tokio::time::timeout(CHECK_INTERVAL, entries.next()).await {
                Ok(Some(Ok(entry))) => entry,
                Ok(Some(Err(error))) => return Err(error.to_string()),
                Ok(None) => return Err("the watch has ended".into()),
                Err(_silence) => {
                    let last = store.status().await.map_err(|error| error.to_string())?.info.state.last_sequence;
                    if last > seen && seen > 0 {
                        return Err(format!("the watch stands at {seen}, the bucket at {last}"));
                    }
                    continue;
                }
            };
            seen = entry.revision;
            snapshot.apply(&entry);
            snapshot.complete |= entry.delta == 0 || seen >= last;
            if snapshot.complete {
                publish(sender, &snapshot);
            }
        }
    }

    /// The catalog as it stands now, read to its end.
    ///
    /// # Errors
    ///
    /// [`CatalogError::Unavailable`].
    pub async fn read(&self) -> Result<Snapshot, CatalogError> {
        let store = self.store().await?;
        let unavailable = |error: &dyn std::fmt::Display| CatalogError::Unavailable(error.to_string());
        let mut snapshot = Snapshot { complete: true, ..Snapshot::default() };
        let mut keys = store.keys().await.map_err(|error| unavailable(&error))?;
        while let Some(key) = keys.next().await {
            let key = key.map_err(|error| unavailable(&error))?;
            if let Some(entry) = store.entry(key).await.map_err(|error| unavailable(&error))? {
                snapshot.apply(&entry);
            }
        }
        Ok(snapshot)
    }

    /// Stores a source. `expected` is the revision that the caller has read; 0: it must not exist. Returns the new revision.
    ///
    /// # Errors
    ///
    /// [`CatalogError`].
    pub async fn put_source(&self, source: &Source, expected: u64) -> Result<u64, CatalogError> {
        let key = format!("source.{}", source.name);
        validate_source(source).map_err(|problem| CatalogError::Invalid { key: key.clone(), problem })?;
        self.put(key, source.encode_to_vec(), expected).await
    }

    /// Stores a subscription, as [`put_source`](Self::put_source).
    ///
    /// # Errors
    ///
    /// [`CatalogError`].
    pub async fn put_subscription(&self, subscription: &Subscription, expected: u64) -> Result<u64, CatalogError> {
        let key = format!("subscription.{}", subscription.name);
        validate_subscription(subscription).map_err(|problem| CatalogError::Invalid { key: key.clone(), problem })?;
        self.put(key, subscription.encode_to_vec(), expected).await
    }

    /// Removes a source.
    ///
    /// # Errors
    ///
    /// [`CatalogError`].
    pub async fn delete_source(&self, name: &str, expected: u64) -> Result<(), CatalogError> {
        self.delete(format!("source.{name}"), expected).await
    }

    /// Removes a subscription.
    ///
    /// # Errors
    ///
    /// [`CatalogError`].
    pub async fn delete_subscription(&self, name: &str, expected: u64) -> Result<(), CatalogError> {
        self.delete(format!("subscription.{name}"), expected).await
    }

    async fn put(&self, key: String, value: Vec<u8>, expected: u64) -> Result<u64, CatalogError> {
        let store = self.store().await?;
        if expected == 0 {
            return store.create(&key, value.into()).await.map_err(|error| match error.kind() {
                CreateErrorKind::AlreadyExists => CatalogError::Conflict { key },
                _ => CatalogError::Unavailable(error.to_string()),
            });
        }
        store.update(&key, value.into(), expected).await.map_err(|error| match error.kind() {
            UpdateErrorKind::WrongLastRevision => CatalogError::Conflict { key },
            _ => CatalogError::Unavailable(error.to_string()),
        })
    }

    async fn delete(&self, key: String, expected: u64) -> Result<(), CatalogError> {
        let store = self.store().await?;
        store.delete_expect_revision(&key, Some(expected)).await.map_err(|error| {
            if error.kind() == UpdateErrorKind::WrongLastRevision {
                CatalogError::Conflict { key }
            } else {
                CatalogError::Unavailable(error.to_string())
            }
        })
    }

    async fn store(&self) -> Result<kv::Store, CatalogError> {
        if !self.connection.is_connected() {
            return Err(CatalogError::Unavailable("not connected".into()));
        }
        let jetstream = self.connection.jetstream();
        jetstream.get_key_value(CATALOG_BUCKET).await.map_err(|error| CatalogError::Unavailable(error.to_string()))
    }
}

fn publish(sender: &watch::Sender<Arc<Snapshot>>, snapshot: &Snapshot) {
    sender.send_if_modified(|current| {
        let changed = **current != *snapshot;
        if changed {
            *current = Arc::new(snapshot.clone());
        }
        changed
    });
}
