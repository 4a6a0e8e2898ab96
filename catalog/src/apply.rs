//! Messages of the bucket, applied to a snapshot. Pure.

use std::{collections::BTreeMap, sync::Arc};

use async_nats::HeaderMap;
use jiff::Timestamp;
use prost::Message;
use weft_nats::message::Stored;

use super::{
    bucket::KEY_USED,
    entry::{Entry, Kind},
    seal::OpenError,
    snapshot::{Revised, Snapshot},
    stamp,
};

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
                    self.authors.insert(name.to_owned(), stamp::author_of(&message.headers));
                } else {
                    self.authors.remove(name);
                    if let Some(uid) = removed.or_else(|| stamp::removed_uid(&message.headers)) {
                        self.removals.insert(uid, stamp::removal(message));
                    }
                }
            }
        }
        Ok(value.is_none())
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
