//! The bucket's messages, taken in order: what they make of the catalog, and whether that is all there was. Pure.
//!
//! An entry is what its last *sound* message says: one that is sealed as this entry, with a value or with its removal. Whatever
//! else lies on its subject, also a marker of a deletion or a purge, was not written by the mesh, and changes nothing.
//!
//! The bucket keeps only so many messages of an entry, so others can push out the sound ones. Then nobody can tell what the
//! entry was, and the catalog is not complete. Fewer than the bucket keeps have pushed out nothing: without a sound one the
//! entry has never been there. So whoever starts late comes to no other conclusion than who has seen all, unless to none.

use std::collections::BTreeMap;

use super::{
    KEY_USED, MasterKey,
    entry::Kind,
    seal::OpenError,
    snapshot::{Snapshot, Unusable},
};
use crate::{message::Stored, streams::CATALOG_HISTORY};

/// A catalog that is being read.
#[derive(Debug, Clone)]
pub(super) struct Reading<'a> {
    prefix: &'a str,
    master: &'a MasterKey,
    /// What the messages so far make of it; whether it is complete is said by [`conclude`](Self::conclude).
    pub snapshot: Snapshot,
    /// By the entry's name in the bucket.
    seen: BTreeMap<String, Seen>,
}

/// The messages of one entry.
#[derive(Debug, Clone, Default)]
struct Seen {
    /// The last one's revision, whoever has written it.
    last: u64,
    sound: Option<Sound>,
    /// How many nobody of this mesh has written.
    foreign: i64,
    /// Whether one was written by the mesh and cannot be read by this version.
    unsound: bool,
    /// The id of another master key that one claims to be sealed with.
    other_key: Option<String>,
}

/// The last message that counts.
#[derive(Debug, Clone, Copy)]
struct Sound {
    revision: u64,
    removed: bool,
}

impl Seen {
    fn note(&mut self, problem: Unusable) {
        match problem {
            Unusable::Sealed(OpenError::OtherKey { id }) => self.other_key = Some(id),
            Unusable::Sealed(OpenError::Forged) => self.foreign += 1,
            Unusable::Encoded(_) | Unusable::Misnamed(_) => self.unsound = true,
        }
    }

    /// Whether nobody can tell what the entry is.
    fn is_lost(&self) -> bool {
        self.sound.is_none() && (self.unsound || self.foreign >= CATALOG_HISTORY)
    }

    fn unknown_key(&self) -> Option<&String> {
        self.other_key.as_ref().filter(|_| self.sound.is_none())
    }
}

impl<'a> Reading<'a> {
    /// Of subjects that begin with `prefix`; nothing has been read yet.
    pub fn new(prefix: &'a str, master: &'a MasterKey) -> Self {
        Self { prefix, master, snapshot: Snapshot::default(), seen: BTreeMap::new() }
    }

    /// Takes a message. Whether it counts, that is, has made its entry what it is now. What does not is logged and passed
    /// over: the last sound value stays.
    pub fn apply(&mut self, message: &Stored) -> bool {
        let Some(entry) = message.subject.strip_prefix(self.prefix) else { return false };
        let Some((kind, name)) = entry.split_once('.') else { return false };
        if kind == KEY_USED {
            self.snapshot.note_use(name, message);
            return true;
        }
        let Some(kind) = Kind::parse(kind) else { return false };
        let seen = self.seen.entry(entry.to_owned()).or_default();
        seen.last = message.seq.0;
        let opened = self.master.open(entry, &message.payload).map_err(Unusable::from);
        match opened.and_then(|value| self.snapshot.take(kind, name, &value, message)) {
            Ok(removed) => {
                seen.sound = Some(Sound { revision: message.seq.0, removed });
                return true;
            }
            Err(problem) => {
                let (key, revision) = (&message.subject, message.seq.0);
                tracing::error!(key, revision, %problem, "catalog entry makes no sense and is passed over");
                seen.note(problem);
            }
        }
        false
    }

    /// Says whether the catalog is complete, once all that was there has been taken.
    pub fn conclude(&mut self) {
        let snapshot = &mut self.snapshot;
        snapshot.other_key = self.seen.values().find_map(Seen::unknown_key).cloned();
        snapshot.lost = self.seen.iter().filter(|(_, seen)| seen.is_lost()).map(|(entry, _)| entry.clone()).collect();
        snapshot.complete = snapshot.other_key.is_none() && snapshot.lost.is_empty();
    }

    /// The revision behind which an entry may be written that has the revision `expected`, 0: that is not there. That is its
    /// last message's, whoever wrote it. `None`: it has another revision, or nobody can tell.
    pub fn base(&self, entry: &str, expected: u64) -> Option<u64> {
        let Some(seen) = self.seen.get(entry) else { return (expected == 0).then_some(0) };
        if seen.is_lost() || seen.unknown_key().is_some() {
            return None;
        }
        let revision = seen.sound.filter(|sound| !sound.removed).map_or(0, |sound| sound.revision);
        (revision == expected).then_some(seen.last)
    }
}

#[cfg(test)]
mod tests;
