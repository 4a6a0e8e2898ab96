//! The catalog at one moment. Pure.

use std::{
    collections::{BTreeMap, HashMap},
    sync::Arc,
};

use async_nats::HeaderMap;
use jiff::Timestamp;
use prost::Message;
use weft_nats::{message::Stored, subject::CATALOG_BUCKET};
use weft_proto::v1::{ApiKey, CatalogPosition, Source, Subscription};

use super::{
    KEY_USED, Removal,
    entry::{Entry, Kind},
    seal::OpenError,
    stamp::{author_of, removed_uid},
};

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
    /// Whether the bucket has been read to its end, and all of it could be opened: until then nothing may be decided by
    /// what is missing.
    pub complete: bool,
    /// The id of another master key that entries are sealed with.
    pub other_key: Option<String>,
    /// Entries whose value is lost, by their names in the bucket.
    pub lost: Vec<String>,
    /// Sources by name.
    pub sources: BTreeMap<String, Revised<Arc<Source>>>,
    /// Subscriptions by name.
    pub subscriptions: BTreeMap<String, Revised<Arc<Subscription>>>,
    /// API keys by id.
    pub keys: BTreeMap<String, Revised<Arc<ApiKey>>>,
    /// When API keys were used last, by id, to the minute. Empty in what a follower of the catalog sees.
    pub keys_used: BTreeMap<String, Timestamp>,
    /// Names of subscriptions by uid, as far as the catalog was read from its bucket.
    pub names: HashMap<Vec<u8>, String>,
    /// Removals of subscriptions, with their authors, by uid: those that the bucket still knows.
    pub removals: BTreeMap<Vec<u8>, Removal>,
    /// Authors of the subscriptions' current values, by name.
    pub authors: BTreeMap<String, Author>,
    /// How far the bucket has been read. A follower does not count the uses of keys.
    pub position: CatalogPosition,
}

/// Author of an entry's current value.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Author {
    /// The id of a key, or `bootstrap`; empty where the entry does not say.
    pub operator: String,
    /// The entry is as it was created.
    pub is_creator: bool,
}

impl Snapshot {
    /// Takes the value of an entry as its message holds it, opened: empty where it says that the entry is removed. Whether
    /// it is.
    pub(super) fn take(&mut self, kind: Kind, name: &str, value: &[u8], message: &Stored) -> Result<bool, Unusable> {
        let value = Some(value).filter(|value| !value.is_empty());
        let revision = message.seq.0;
        match kind {
            Kind::Source => change(&mut self.sources, name, revision, value)?,
            Kind::Key => change(&mut self.keys, name, revision, value)?,
            Kind::Subscription => {
                let removed = self.subscriptions.get(name).map(|known| known.value.uid.clone());
                change(&mut self.subscriptions, name, revision, value)?;
                // Another entry may have been given the same uid meanwhile.
                if let Some(uid) = &removed
                    && self.names.get(uid).is_some_and(|of| of == name)
                {
                    self.names.remove(uid);
                }
                if let Some(known) = self.subscriptions.get(name) {
                    self.names.insert(known.value.uid.clone(), name.to_owned());
                    self.authors.insert(name.to_owned(), author_of(&message.headers));
                } else {
                    self.authors.remove(name);
                    if let Some(uid) = removed.or_else(|| removed_uid(&message.headers)) {
                        self.removals.insert(uid, Removal { revision, ..Removal::of(&message.headers) });
                    }
                }
            }
        }
        Ok(value.is_none())
    }

    /// The subscription of a uid.
    pub fn subscription_of(&self, uid: &[u8]) -> Option<&Revised<Arc<Subscription>>> {
        self.names.get(uid).and_then(|name| self.subscriptions.get(name))
    }

    pub(super) fn note_use(&mut self, id: &str, message: &Stored) {
        if removes(&message.headers) {
            self.keys_used.remove(id);
            return;
        }
        // Other processes can write anything here, so only a valid time is accepted.
        let ms = std::str::from_utf8(&message.payload).ok().and_then(|text| text.parse().ok());
        let Some(used) = ms.and_then(|ms| Timestamp::from_millisecond(ms).ok()) else { return };
        let latest = self.keys_used.get(id).is_none_or(|known| *known < used);
        if latest {
            self.keys_used.insert(id.to_owned(), used);
        }
    }

    /// Reason that no decision may be based on it, for people; `None`: there is no reason.
    pub fn missing(&self) -> Option<String> {
        match &self.other_key {
            Some(id) => Some(format!(
                "catalog: sealed with another master key ({id}); set WEFT_MASTER_KEY, or copy master.key from the data \
                 folder that it was made in"
            )),
            None if !self.lost.is_empty() => Some(format!(
                "catalog: {} cannot be read: others have written over it, or it was sealed for another bucket; purge its subject in KV_{CATALOG_BUCKET}, then \
                 create it again; a subscription keeps its backlog meanwhile, and `weft subscription adopt <name> --file` \
                 creates it with its uid",
                self.lost.join(", ")
            )),
            None if self.complete => None,
            None => Some("catalog: not read to its end yet".into()),
        }
    }
}

/// Why an entry cannot be used.
#[derive(Debug, thiserror::Error)]
pub(super) enum Unusable {
    #[error(transparent)]
    Sealed(#[from] OpenError),
    #[error(transparent)]
    Encoded(#[from] prost::DecodeError),
    #[error("it names itself {0:?}")]
    Misnamed(String),
}

/// Makes an entry what a message says; `None`: removed.
fn change<T: Entry + Message + Default>(
    entries: &mut BTreeMap<String, Revised<Arc<T>>>,
    name: &str,
    revision: u64,
    value: Option<&[u8]>,
) -> Result<(), Unusable> {
    let Some(value) = value else {
        entries.remove(name);
        return Ok(());
    };
    let value = T::decode(value)?;
    if value.id() != name {
        return Err(Unusable::Misnamed(value.id().to_owned()));
    }
    entries.insert(name.to_owned(), Revised { revision, value: Arc::new(value) });
    Ok(())
}

/// Whether a message only states when a key was used.
pub(super) fn is_use(prefix: &str, message: &Stored) -> bool {
    let kind = message.subject.strip_prefix(prefix).and_then(|entry| entry.split_once('.'));
    kind.is_some_and(|(kind, _)| kind == KEY_USED)
}

/// Whether a message removes its key: deleted or purged by a client, or expired. Believed of what is not sealed only.
fn removes(headers: &HeaderMap) -> bool {
    let operation = headers.get("KV-Operation").map(|operation| operation.as_str());
    matches!(operation, Some("DEL" | "PURGE")) || headers.get("Nats-Marker-Reason").is_some()
}
