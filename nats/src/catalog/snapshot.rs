//! What the bucket's messages, taken in order, make of the catalog. Pure.

use std::{collections::BTreeMap, sync::Arc};

use async_nats::HeaderMap;
use prost::Message;
use weft_proto::v1::{ApiKey, Source, Subscription};

use super::{KEY, Removal, SOURCE, SUBSCRIPTION};
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
    /// Whether the bucket has been read to its end: until then nothing may be decided by what is missing.
    pub complete: bool,
    /// Sources by name.
    pub sources: BTreeMap<String, Revised<Arc<Source>>>,
    /// Subscriptions by name.
    pub subscriptions: BTreeMap<String, Revised<Arc<Subscription>>>,
    /// API keys by id.
    pub keys: BTreeMap<String, Revised<Arc<ApiKey>>>,
    /// Who removed a subscription, by its uid: of those whose removal the bucket still knows.
    pub removals: BTreeMap<Vec<u8>, Removal>,
}

impl Snapshot {
    /// Takes a message of the bucket. What cannot be decoded is logged and passed over: the last sound value stays.
    pub(super) fn apply(&mut self, prefix: &str, message: &Stored) {
        let Some((kind, name)) = message.subject.strip_prefix(prefix).and_then(|key| key.split_once('.')) else {
            return;
        };
        match kind {
            SOURCE => change(&mut self.sources, name, message, |source: &Source| &source.name),
            SUBSCRIPTION => {
                if removes(&message.headers)
                    && let Some(removed) = self.subscriptions.get(name)
                {
                    self.removals.insert(removed.value.uid.clone(), Removal::of(&message.headers));
                }
                change(&mut self.subscriptions, name, message, |subscription: &Subscription| &subscription.name)
            }
            KEY => change(&mut self.keys, name, message, |key: &ApiKey| &key.id),
            _ => {}
        }
    }
}

fn change<T: Message + Default>(
    entries: &mut BTreeMap<String, Revised<Arc<T>>>,
    name: &str,
    message: &Stored,
    name_of: impl Fn(&T) -> &String,
) {
    if removes(&message.headers) {
        entries.remove(name);
        return;
    }
    let problem = match T::decode(message.payload.clone()) {
        Ok(value) if name_of(&value) == name => {
            entries.insert(name.to_owned(), Revised { revision: message.seq.0, value: Arc::new(value) });
            return;
        }
        Ok(value) => format!("it names itself {:?}", name_of(&value)),
        Err(error) => error.to_string(),
    };
    tracing::error!(
        key = message.subject,
        revision = message.seq.0,
        problem,
        "catalog entry makes no sense and is passed over"
    );
}

/// Whether a message removes its key: deleted or purged by a client, or expired.
pub(super) fn removes(headers: &HeaderMap) -> bool {
    let operation = headers.get("KV-Operation").map(|operation| operation.as_str());
    matches!(operation, Some("DEL" | "PURGE")) || headers.get("Nats-Marker-Reason").is_some()
}

#[cfg(test)]
mod tests {
    use jiff::Timestamp;
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

    fn source(name: &str) -> Vec<u8> {
        Source { name: name.into(), ..Source::default() }.encode_to_vec()
    }

    #[test]
    fn the_last_sound_value_of_a_key_counts() {
        let mut snapshot = Snapshot::default();
        let mut revisions = |messages: &[Stored]| {
            messages.iter().for_each(|message| snapshot.apply("$KV.b.", message));
            snapshot.sources.iter().map(|(name, source)| (name.clone(), source.revision)).collect::<Vec<_>>()
        };
        let stored = [
            message(1, "source.a", None, source("a")),
            message(2, "source.b", None, source("b")),
            message(3, "source.a", None, source("a")),
        ];
        assert_eq!(revisions(&stored), [("a".to_owned(), 3), ("b".to_owned(), 2)]);
        let nonsense = [
            message(4, "source.a", None, vec![0xff, 0xff]),
            message(5, "source.b", None, source("a")),
            message(6, "source", None, source("c")),
            message(7, "other.c", None, source("c")),
        ];
        assert_eq!(revisions(&nonsense), [("a".to_owned(), 3), ("b".to_owned(), 2)]);
        for (seq, header) in [(8, ("KV-Operation", "DEL")), (9, ("Nats-Marker-Reason", "MaxAge"))] {
            let name = if seq == 8 { "source.a" } else { "source.b" };
            revisions(&[message(seq, name, Some(header), Vec::new())]);
        }
        assert_eq!(revisions(&[]), []);
    }
}
