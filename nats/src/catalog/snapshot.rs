//! What the bucket's messages, taken in order, make of the catalog. Pure.

use std::{collections::BTreeMap, sync::Arc};

use async_nats::HeaderMap;
use jiff::Timestamp;
use prost::Message;
use weft_proto::v1::{ApiKey, Source, Subscription};

use super::{KEY, KEY_USED, MasterKey, Removal, SOURCE, SUBSCRIPTION, seal::OpenError};
use crate::message::Stored;

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
    /// Sources by name.
    pub sources: BTreeMap<String, Revised<Arc<Source>>>,
    /// Subscriptions by name.
    pub subscriptions: BTreeMap<String, Revised<Arc<Subscription>>>,
    /// API keys by id.
    pub keys: BTreeMap<String, Revised<Arc<ApiKey>>>,
    /// When API keys were used last, by id, to the minute. Empty in what a follower of the catalog sees.
    pub keys_used: BTreeMap<String, Timestamp>,
    /// Who removed a subscription, by its uid: of those whose removal the bucket still knows.
    pub removals: BTreeMap<Vec<u8>, Removal>,
}

impl Snapshot {
    /// Takes a message of the bucket. What cannot be decoded is logged and passed over: the last sound value stays.
    pub(super) fn apply(&mut self, prefix: &str, key: &MasterKey, message: &Stored) {
        let Some(entry) = message.subject.strip_prefix(prefix) else { return };
        let Some((kind, name)) = entry.split_once('.') else { return };
        if kind == KEY_USED {
            self.note_use(name, message);
            return;
        }
        if kind == SUBSCRIPTION
            && removes(&message.headers)
            && let Some(removed) = self.subscriptions.get(name)
        {
            self.removals.insert(removed.value.uid.clone(), Removal::of(&message.headers));
        }
        let entry = Entry { key, entry, name, message };
        let changed = match kind {
            SOURCE => entry.change(&mut self.sources, |source| &source.name),
            SUBSCRIPTION => entry.change(&mut self.subscriptions, |subscription| &subscription.name),
            KEY => entry.change(&mut self.keys, |key| &key.id),
            _ => Ok(()),
        };
        match changed {
            Ok(()) => {}
            // Its value may be anything: nothing can be said of the catalog as a whole.
            Err(Unusable::Sealed(OpenError::OtherKey { id })) => {
                self.complete = false;
                self.other_key = Some(id);
            }
            Err(problem) => {
                let (key, revision) = (&message.subject, message.seq.0);
                tracing::error!(key, revision, %problem, "catalog entry makes no sense and is passed over");
            }
        }
    }

    fn note_use(&mut self, id: &str, message: &Stored) {
        if removes(&message.headers) {
            self.keys_used.remove(id);
            return;
        }
        // Whoever can write here can say anything, so it is believed no more than this.
        let ms = std::str::from_utf8(&message.payload).ok().and_then(|text| text.parse().ok());
        let Some(used) = ms.and_then(|ms| Timestamp::from_millisecond(ms).ok()) else { return };
        let latest = self.keys_used.get(id).is_none_or(|known| *known < used);
        if latest {
            self.keys_used.insert(id.to_owned(), used);
        }
    }

    /// What is missing for it to be decided by, for people; `None`: nothing.
    pub fn missing(&self) -> Option<String> {
        match &self.other_key {
            Some(id) => Some(format!(
                "catalog: sealed with another master key ({id}); set WEFT_MASTER_KEY, or copy master.key from the data \
                 folder that it was made in"
            )),
            None if self.complete => None,
            None => Some("catalog: not read to its end yet".into()),
        }
    }
}

/// A message of the bucket on its way to a value.
struct Entry<'a> {
    key: &'a MasterKey,
    /// The entry's name in the bucket.
    entry: &'a str,
    /// What of it names the value.
    name: &'a str,
    message: &'a Stored,
}

/// Why an entry cannot be used.
#[derive(Debug, thiserror::Error)]
enum Unusable {
    #[error(transparent)]
    Sealed(#[from] OpenError),
    #[error(transparent)]
    Encoded(#[from] prost::DecodeError),
    #[error("it names itself {0:?}")]
    Misnamed(String),
}

impl Entry<'_> {
    fn change<T: Message + Default>(
        &self,
        entries: &mut BTreeMap<String, Revised<Arc<T>>>,
        name_of: impl Fn(&T) -> &String,
    ) -> Result<(), Unusable> {
        if removes(&self.message.headers) {
            entries.remove(self.name);
            return Ok(());
        }
        let value = T::decode(self.key.open(self.entry, &self.message.payload)?.as_slice())?;
        if name_of(&value) != self.name {
            return Err(Unusable::Misnamed(name_of(&value).clone()));
        }
        let revised = Revised { revision: self.message.seq.0, value: Arc::new(value) };
        entries.insert(self.name.to_owned(), revised);
        Ok(())
    }
}

/// Whether a message only tells when a key was used.
pub(super) fn is_use(prefix: &str, message: &Stored) -> bool {
    let kind = message.subject.strip_prefix(prefix).and_then(|entry| entry.split_once('.'));
    kind.is_some_and(|(kind, _)| kind == KEY_USED)
}

/// Whether a message removes its key: deleted or purged by a client, or expired.
pub(super) fn removes(headers: &HeaderMap) -> bool {
    let operation = headers.get("KV-Operation").map(|operation| operation.as_str());
    matches!(operation, Some("DEL" | "PURGE")) || headers.get("Nats-Marker-Reason").is_some()
}

#[cfg(test)]
mod tests {
    use weft_proto::ids::StreamSeq;

    use super::*;

    fn message(seq: u64, key: &str, header: Option<(&str, &str)>, payload: Vec<u8>) -> Stored {
        let mut headers = HeaderMap::new();
        header.into_iter().for_each(|(name, value)| headers.insert(name, value));
        Stored {
            seq: StreamSeq(seq),
            stored_at: Timestamp::UNIX_EPOCH,
            subject: format!("$KV.b.{key}"),
            headers,
            payload: payload.into(),
        }
    }

    fn source(key: &MasterKey, entry: &str, name: &str) -> Vec<u8> {
        key.seal(entry, &Source { name: name.into(), ..Source::default() }.encode_to_vec())
    }

    #[test]
    fn the_last_sound_value_of_a_key_counts() {
        let key = MasterKey::parse(&MasterKey::generate()).unwrap();
        let named = |entry: &str, name: &str| source(&key, entry, name);
        let mut snapshot = Snapshot::default();
        let mut revisions = |messages: &[Stored]| {
            messages.iter().for_each(|message| snapshot.apply("$KV.b.", &key, message));
            snapshot.sources.iter().map(|(name, source)| (name.clone(), source.revision)).collect::<Vec<_>>()
        };
        let stored = [
            message(1, "source.a", None, named("source.a", "a")),
            message(2, "source.b", None, named("source.b", "b")),
            message(3, "source.a", None, named("source.a", "a")),
        ];
        assert_eq!(revisions(&stored), [("a".to_owned(), 3), ("b".to_owned(), 2)]);
        let nonsense = [
            message(4, "source.a", None, vec![0xff, 0xff]),
            message(5, "source.b", None, named("source.b", "a")),
            message(6, "source", None, named("source", "c")),
            message(7, "other.c", None, named("other.c", "c")),
            // Not sealed, and sealed as another entry.
            message(8, "source.a", None, Source { name: "a".into(), ..Source::default() }.encode_to_vec()),
            message(9, "source.a", None, named("source.b", "a")),
        ];
        assert_eq!(revisions(&nonsense), [("a".to_owned(), 3), ("b".to_owned(), 2)]);
        for (seq, header) in [(10, ("KV-Operation", "DEL")), (11, ("Nats-Marker-Reason", "MaxAge"))] {
            let name = if seq == 10 { "source.a" } else { "source.b" };
            revisions(&[message(seq, name, Some(header), Vec::new())]);
        }
        assert_eq!(revisions(&[]), []);
    }

    /// The latest use counts, whichever gateway writes last; nonsense is passed over.
    #[test]
    fn the_latest_use_of_a_key_counts() {
        let key = MasterKey::parse(&MasterKey::generate()).unwrap();
        let mut snapshot = Snapshot { complete: true, ..Snapshot::default() };
        for (seq, text) in [(1, "120000"), (2, "60000"), (3, "x"), (4, "99999999999999999999")] {
            snapshot.apply("$KV.b.", &key, &message(seq, "key-used.ab12cd34", None, text.as_bytes().to_vec()));
        }
        assert_eq!(snapshot.keys_used["ab12cd34"].as_second(), 120);
        assert!(snapshot.complete && snapshot.keys.is_empty());
        assert!(is_use("$KV.b.", &message(1, "key-used.ab12cd34", None, Vec::new())));
        assert!(!is_use("$KV.b.", &message(1, "key.ab12cd34", None, Vec::new())));
    }

    /// Nothing is decided by a catalog of which a part cannot be read, and people are told what to do.
    #[test]
    fn entries_of_another_key_leave_the_catalog_incomplete() {
        let (ours, theirs) = (MasterKey::generate(), MasterKey::generate());
        let (ours, theirs) = (MasterKey::parse(&ours).unwrap(), MasterKey::parse(&theirs).unwrap());
        let mut snapshot = Snapshot { complete: true, ..Snapshot::default() };
        assert_eq!(snapshot.missing(), None);
        snapshot.apply("$KV.b.", &ours, &message(1, "source.a", None, source(&theirs, "source.a", "a")));
        assert!(!snapshot.complete && snapshot.sources.is_empty());
        let missing = snapshot.missing().unwrap();
        assert!(missing.contains(&theirs.id()) && missing.contains("WEFT_MASTER_KEY"), "{missing}");
    }
}
