//! Sources, subscriptions and API keys: prost messages in the KV bucket `weft_catalog`, under `source.<name>`,
//! `subscription.<name>` and `key.<id>`, sealed (`seal`) with the master key, changed by revision and watched by every role.
//!
//! - `reading`, `snapshot`: what the bucket's messages make of it; `matcher`: which events a subscription takes;
//!   `filters`: which ones it took, by the filters that it has had.
//! - [`change`] and `plan`: what is to be changed, decided on a snapshot; [`mod@diff`], [`fields`], [`entry`]: what that is,
//!   in words and without secrets. Pure.
//! - [`keys`]: how API keys are made, and what the caller that sends one may do.
//! - [`requests`]: what other roles ask an admin for.
//! - [`edit`]: makes changes, stamped (`stamp`) and recorded; `start`: where a new subscription begins.
//!
//! A follower reads the whole bucket after each disconnection, and replaces what it knew by what it reads: a bucket
//! that was restored or recreated in the meantime needs no special case, and no role decides by half a catalog. In
//! between it reads new messages, like any reader of a stream.

use std::{
    pin::pin,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use async_nats::HeaderMap;
use prost::Message;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use weft_nats::{
    broker::{self, Requests},
    connect::Connection,
    direct,
    position::Position,
    reader::{OrderedReader, ReaderOptions},
    streams::{self, Presence, StreamState},
    subject::{CATALOG_BUCKET, bucket_stream},
};
use weft_proto::{
    ids::StreamSeq,
    v1::{ApiKey, CatalogChange, CatalogPosition, Source, Subscription},
};

use change::Change;
use entry::Value;
pub use entry::is_ordered;
use reached::Reached;
use reading::Reading;
use stamp::Trail;
use store::LegacyEnd;

pub mod change;
pub mod delivery_url;
pub mod diff;
pub mod edit;
pub mod entry;
pub mod fields;
mod filters;
pub mod keys;
mod matcher;
mod orphan;
mod plan;
mod reached;
mod reading;
pub mod requests;
mod seal;
mod snapshot;
mod stamp;
mod start;
mod store;
#[cfg(feature = "testing")]
pub mod testing;
mod validate;

pub use filters::{Filters, Match, apply_change, cut_off, is_covered};
pub use matcher::Matcher;
pub use orphan::{Orphan, orphans};
pub use plan::{Desired, DesiredSubscription, plan};
pub use seal::MasterKey;
pub use snapshot::{Author, Revised, Snapshot};
pub use stamp::{Removal, Stamp};
pub use start::{Locate, LocateError, Start};
pub use validate::{source_warnings, validate_key, validate_source, validate_subscription};

/// First token of the keys of sources.
const SOURCE: &str = "source";
/// First token of the keys of subscriptions.
const SUBSCRIPTION: &str = "subscription";
/// First token of the keys of API keys.
const KEY: &str = "key";
/// First token of the keys of API keys' last uses.
const KEY_USED: &str = "key-used";

/// Value of a removed entry. An entry's value contains its name, so no other value is empty.
const REMOVED: &[u8] = b"";
/// The pause between two tries to follow the catalog: a change is to be live within a second.
const RETRY_PAUSE: Duration = Duration::from_millis(200);
/// How long reading the whole bucket may take: some thousand entries take some milliseconds.
const READ_PATIENCE: Duration = Duration::from_secs(10);
/// The pause before a replica is asked again that had less than the leader says there is.
const REPLICA_PAUSE: Duration = Duration::from_millis(20);
/// The pause before a leader is asked again that lags: it catches up, or another is elected, within seconds.
const LEADER_PAUSE: Duration = Duration::from_millis(100);
/// At most one snapshot is published in this time: each costs its followers a look at all entries, and changes of thousands
/// of entries come one by one. A change after a pause is published at once.
const PUBLISH_INTERVAL: Duration = Duration::from_millis(100);
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
    #[error("the catalog is not there: {0}")]
    Unavailable(String),
}

/// Reads and changes the catalog. What one of its clones has written or read, none of them reads the catalog without.
#[derive(Debug, Clone)]
pub struct Catalog {
    connection: Connection,
    key: MasterKey,
    reached: Arc<Mutex<Reached>>,
    legacy_end: Arc<LegacyEnd>,
    /// Held while an entry is written.
    writing: Arc<tokio::sync::Mutex<()>>,
}

impl Catalog {
    /// The bucket need not exist yet.
    pub fn new(connection: Connection, key: MasterKey) -> Self {
        Self { connection, key, reached: Arc::default(), legacy_end: Arc::default(), writing: Arc::default() }
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
        Requests::new(self.connection.clone(), self.key.tags(broker::TAG_PURPOSE))
    }

    /// Follows the catalog: the receiver's value changes within a second of every change. A stored value that cannot be
    /// decoded is logged and passed over. Ends with `cancel`; lives through restarts of the server.
    pub fn watch(&self, cancel: CancellationToken) -> watch::Receiver<Arc<Snapshot>> {
        let (sender, receiver) = watch::channel(Arc::new(Snapshot::default()));
        let catalog = self.clone();
        // Ends with `cancel`, or when no receiver is left; errors are transient, and it retries.
        tokio::spawn(async move {
            let following = async {
                while !sender.is_closed() {
                    let problem = catalog.follow(&sender).await;
                    tracing::debug!(problem, "catalog is read again");
                    tokio::time::sleep(RETRY_PAUSE).await;
                }
            };
            tokio::select! {
                () = following => {}
                () = sender.closed() => {}
                () = cancel.cancelled() => {}
            }
        });
        receiver
    }

    /// Reads the whole bucket and then new messages, until the bucket must be read again from the beginning; returns
    /// the reason.
    async fn follow(&self, sender: &watch::Sender<Arc<Snapshot>>) -> String {
        self.connection.connected().await;
        let mut disconnected = pin!(self.connection.changed());
        let prefix = prefix();
        let (mut reading, known) = match self.scan(&prefix, None).await {
            Ok(scanned) => scanned,
            Err(error) => return error.to_string(),
        };
        // Uses of keys come all the time and decide nothing: they wake no receiver.
        reading.snapshot.keys_used.clear();
        let mut reader = OrderedReader::new(
            self.connection.clone(),
            ReaderOptions {
                stream: stream(),
                name: "catalog".into(),
                from: known.cursor.next(),
                filter: None,
                batch_messages_max: READ_MESSAGES,
                known: Some(known),
                pages: true,
            },
        );
        publish(sender, &reading.snapshot);
        let mut published = Instant::now();
        // Whether something has come that is not published yet.
        let mut changed = false;
        loop {
            let wait = PUBLISH_INTERVAL.saturating_sub(published.elapsed());
            let batch = tokio::select! {
                biased;
                () = tokio::time::sleep(wait), if changed => {
                    publish(sender, &reading.snapshot);
                    (published, changed) = (Instant::now(), false);
                    continue;
                }
                batch = reader.next() => batch,
                () = &mut disconnected => return "the connection has changed".into(),
            };
            match batch {
                // New messages may have repaired what could not be read; it may also be gone from the bucket.
                Ok(_) if !reading.snapshot.complete => return "not all of it could be read".into(),
                Ok(batch) => {
                    if let Some(last) = batch.messages.last() {
                        self.reached().note(last.seq);
                    }
                    let decisive = batch.messages.iter().filter(|message| !snapshot::is_use(&prefix, message));
                    for message in decisive {
                        reading.apply(message);
                        changed = true;
                        reading.snapshot.position.sequence = message.seq.0;
                    }
                    if reading.is_outdated() {
                        return "the catalog has been resealed".into();
                    }
                    self.legacy_end.learn(&reading);
                    reading.conclude();
                }
                Err(error) => return error.to_string(),
            }
        }
    }

    /// The catalog as it stands now, read to its end.
    ///
    /// # Errors
    ///
    /// [`CatalogError::Unavailable`].
    pub async fn read(&self) -> Result<Snapshot, CatalogError> {
        self.scan(&prefix(), None).await.map(|(reading, _)| reading.snapshot)
    }

    /// The catalog as it stands now, and what of it was written by one request.
    pub(crate) async fn read_with_trail(
        &self,
        request_id: &str,
    ) -> Result<(Snapshot, Vec<CatalogChange>), CatalogError> {
        let mut trail = Trail::new(request_id);
        let snapshot = self.scan(&prefix(), Some(&mut trail)).await?.0.snapshot;
        Ok((snapshot, trail.written))
    }

    /// Reads the bucket up to where the leader says that it ends. Returns what it holds, and the position after it.
    async fn scan<'a>(
        &'a self,
        prefix: &'a str,
        mut trail: Option<&mut Trail<'_>>,
    ) -> Result<(Reading<'a>, Position), CatalogError> {
        loop {
            if let Some(trail) = trail.as_deref_mut() {
                trail.written.clear();
            }
            let (reading, position) = self.scan_once(prefix, trail.as_deref_mut()).await?;
            self.legacy_end.learn(&reading);
            // Once: what was learned holds from the start of the next reading.
            if !reading.is_outdated() {
                return Ok((reading, position));
            }
        }
    }

    async fn scan_once<'a>(
        &'a self,
        prefix: &'a str,
        mut trail: Option<&mut Trail<'_>>,
    ) -> Result<(Reading<'a>, Position), CatalogError> {
        let unavailable = |error: &dyn std::fmt::Display| CatalogError::Unavailable(error.to_string());
        let deadline = Instant::now() + READ_PATIENCE;
        let stream = stream();
        let state = self.end(&stream, deadline).await?;
        let created_ns = created_ns(&state);
        let mut reading = Reading::new(prefix, &self.key, created_ns, self.legacy_end.of(created_ns));
        reading.snapshot.position = CatalogPosition { created_ns, sequence: state.last.0 };
        let before_first = StreamSeq(state.first.0.saturating_sub(1));
        let mut position = Position { cursor: before_first, ..Position::start(state.created) };
        while position.cursor < state.last {
            let found =
                direct::range(&self.connection, &stream, position.cursor.next(), ">", READ_MESSAGES, READ_BYTES);
            let messages = found.await.map_err(|error| unavailable(&error))?;
            let Some(last) = messages.last() else {
                // The last messages may have been purged; else the replica that answered is behind.
                let presence = streams::presence(&self.connection, &stream, position.cursor, state.last).await;
                if presence.is_ok_and(|(_, presence)| presence == Presence::Absent) {
                    break;
                }
                if Instant::now() > deadline {
                    return Err(CatalogError::Unavailable(format!(
                        "{stream} is known up to {}, and not readable",
                        state.last
                    )));
                }
                tokio::time::sleep(REPLICA_PAUSE).await;
                continue;
            };
            // More may have come meanwhile.
            let read = &mut reading.snapshot.position;
            read.sequence = read.sequence.max(last.seq.0);
            self.reached().note(last.seq);
            position.advance(last);
            for message in &messages {
                match trail.as_deref_mut() {
                    Some(trail) => trail.apply(&mut reading, prefix, message),
                    None => {
                        reading.apply(message);
                    }
                }
            }
        }
        reading.conclude();
        Ok((reading, position))
    }

    /// The state of the bucket's stream by a leader that reaches as far as this process knows.
    async fn end(&self, stream: &str, deadline: Instant) -> Result<StreamState, CatalogError> {
        loop {
            let view = streams::leader_view(&self.connection, stream).await;
            let view = view.map_err(|error| CatalogError::Unavailable(error.to_string()))?;
            if self.reached().accepts(&view, Instant::now()) {
                return Ok(view.state);
            }
            if Instant::now() > deadline {
                let known = self.reached().sequence();
                let problem = format!("its leader lags: it ends at {}, and {known} has been read", view.state.last);
                return Err(CatalogError::Unavailable(format!("{stream}: {problem}")));
            }
            tokio::time::sleep(LEADER_PAUSE).await;
        }
    }

    fn reached(&self) -> MutexGuard<'_, Reached> {
        self.reached.lock().unwrap_or_else(PoisonError::into_inner)
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
        // A key that is not there has no revision, and a removal of it would be noise.
        if expected == 0 {
            return Err(CatalogError::Conflict { key });
        }
        // For people who look with the tools of NATS; readers of the catalog go by the sealed value.
        headers.insert(stamp::KV_OPERATION, "DEL");
        self.store(key, headers, REMOVED, expected).await.map(drop)
    }
}

/// Notifies the followers of a snapshot that differs from the one that they have.
fn publish(sender: &watch::Sender<Arc<Snapshot>>, snapshot: &Snapshot) {
    sender.send_if_modified(|known| {
        let changed = **known != *snapshot;
        if changed {
            *known = Arc::new(snapshot.clone());
        }
        changed
    });
}

/// When a stream was made, in unix nanoseconds.
fn created_ns(state: &StreamState) -> i64 {
    i64::try_from(state.created.as_nanosecond()).unwrap_or_default()
}

/// The stream behind the bucket.
fn stream() -> String {
    bucket_stream(CATALOG_BUCKET)
}

/// Common prefix of the subjects of all keys.
fn prefix() -> String {
    format!("$KV.{CATALOG_BUCKET}.")
}

fn subject(key: &str) -> String {
    format!("$KV.{CATALOG_BUCKET}.{key}")
}
