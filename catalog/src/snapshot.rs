//! The catalog at one moment. Pure.

use std::{
    collections::{BTreeMap, HashMap},
    sync::Arc,
};

use jiff::Timestamp;
use weft_nats::subject::CATALOG_BUCKET;
use weft_proto::{
    internal::CatalogPosition,
    v1::{ApiKey, Source, Subscription},
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

/// Author and reason of an entry's removal; empty where its removal does not say.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Removal {
    /// The id of a key, or `bootstrap`.
    pub operator: String,
    /// For people.
    pub reason: String,
    /// The bucket's revision that says so.
    pub revision: u64,
}

impl Snapshot {
    /// The subscription of a uid.
    pub fn subscription_of(&self, uid: &[u8]) -> Option<&Revised<Arc<Subscription>>> {
        self.names.get(uid).and_then(|name| self.subscriptions.get(name))
    }

    /// Whether a uid is that of a subscription, or of one that was removed.
    pub fn knows(&self, uid: &[u8]) -> bool {
        self.subscription_of(uid).is_some() || self.removals.contains_key(uid)
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
