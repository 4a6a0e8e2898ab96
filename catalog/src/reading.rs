//! The catalog from the bucket's messages, applied in order, and whether it is complete. Pure.
//!
//! An entry is the value of its last *sound* message: one that is sealed as this entry and for the place where it
//! stands, with a value or with its removal. Any other message on its subject, also a marker of a deletion or a purge
//! or an earlier value that was published again, was not written there by the mesh, and changes nothing.
//!
//! A value states which message of its entry it follows. That may be one that was sealed with another master key: while keys are
//! exchanged, processes write with either. A reader that has only one of the keys passes the other's messages over, and
//! accepts what follows them.
//!
//! Values of the earlier format (`wft1`) claim no place. They count up to the sequence at which the catalog was resealed, which
//! every value sealed since then contains.
//!
//! The bucket keeps a limited number of messages of an entry, so foreign messages can push out the sound ones. Then the
//! entry's value is lost, and the catalog is not complete. While an entry has fewer messages than the bucket keeps,
//! none was evicted: without a sound one the entry has never been there. So a reader that starts late either reaches the same
//! conclusion as a reader that has seen all messages, or none.

use std::{
    collections::{BTreeMap, VecDeque},
    sync::Arc,
};

use weft_nats::{message::Stored, streams::CATALOG_HISTORY};

use super::{
    apply::Unusable,
    bucket::KEY_USED,
    entry::Kind,
    seal::{MasterKey, OpenError, Opened},
    snapshot::Snapshot,
};

/// A catalog that is being read.
#[derive(Debug, Clone)]
pub(super) struct Reading {
    prefix: String,
    master: MasterKey,
    /// When the bucket was created, in unix nanoseconds.
    bucket_created_ns: i64,
    /// Values of the form before count up to this sequence.
    legacy_through: u64,
    /// The last value of the form before that has counted.
    legacy_last: u64,
    /// The catalog as the messages so far make it; [`conclude`](Self::conclude) sets whether it is complete.
    pub snapshot: Arc<Snapshot>,
    /// By the entry's name in the bucket.
    seen: BTreeMap<String, Seen>,
}

/// The messages of one entry.
#[derive(Debug, Clone, Default)]
struct Seen {
    /// Revision of the last message, sound or not.
    last: u64,
    sound: Option<Sound>,
    /// Messages that the mesh has not written there.
    foreign: i64,
    /// One was sealed for another bucket.
    other_bucket: bool,
    /// Whether one was written by the mesh and cannot be read by this version.
    unsound: bool,
    /// The id of another master key that one claims to be sealed with.
    other_key: Option<String>,
    /// Revisions of the messages behind the sound one that claim to be sealed with another master key: the newest, as many
    /// as the bucket keeps.
    by_other_keys: VecDeque<u64>,
}

/// The last message that counts.
#[derive(Debug, Clone, Copy)]
struct Sound {
    revision: u64,
    removed: bool,
    /// It is of the form before.
    legacy: bool,
    /// It is sealed with another key than the one that seals now.
    by_older_key: bool,
}

/// Where an entry may be written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Base {
    /// The sequence of the last message on the entry's subject, also of a foreign one; 0: there is none.
    pub last: u64,
    /// The sequence of the last sound message; 0: there is none.
    pub previous: u64,
}

/// Entries that are to be sealed again.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Stale {
    /// Those of the form before.
    Form,
    /// Those too that are sealed with another key than the one that seals now.
    FormOrKey,
}

/// An entry that is to be sealed again.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct StaleEntry {
    /// Its name in the bucket.
    pub entry: String,
    /// The sequence of the message that counts.
    pub revision: u64,
    /// Where it may be written.
    pub base: Base,
}

impl Seen {
    /// Takes a message that counts.
    fn take(&mut self, sound: Sound) {
        self.sound = Some(sound);
        self.by_other_keys.clear();
    }

    fn note(&mut self, revision: u64, problem: Unusable) {
        match problem {
            Unusable::Sealed(OpenError::OtherKey { id }) => {
                self.other_key = Some(id);
                self.by_other_keys.push_back(revision);
                if self.by_other_keys.len() > usize::try_from(CATALOG_HISTORY).unwrap_or_default() {
                    self.by_other_keys.pop_front();
                }
            }
            Unusable::Sealed(OpenError::OtherBucket) => self.other_bucket = true,
            Unusable::Sealed(OpenError::Forged | OpenError::Replayed(_) | OpenError::Outdated(_)) => self.foreign += 1,
            Unusable::Encoded(_) | Unusable::Misnamed(_) => self.unsound = true,
        }
    }

    /// Whether the entry's value is lost.
    fn is_lost(&self) -> bool {
        self.sound.is_none() && (self.unsound || self.other_bucket || self.foreign >= CATALOG_HISTORY)
    }

    /// Whether the entry's last message may have been that of revision `previous`, for a process with more keys.
    fn may_follow(&self, previous: u64) -> bool {
        self.sound.is_none_or(|sound| sound.revision == previous) || self.by_other_keys.contains(&previous)
    }

    fn base(&self) -> Base {
        Base { last: self.last, previous: self.sound.map_or(0, |sound| sound.revision) }
    }

    fn unknown_key(&self) -> Option<&String> {
        self.other_key.as_ref().filter(|_| self.sound.is_none())
    }
}

impl Reading {
    /// Of subjects that begin with `prefix`, in a bucket that was created at `bucket_created_ns`; nothing has been read yet.
    /// Values of the form before count up to `legacy_through`, the greatest number where that is not known.
    pub fn new(prefix: &str, master: &MasterKey, bucket_created_ns: i64, legacy_through: u64) -> Self {
        Self {
            prefix: prefix.to_owned(),
            master: master.clone(),
            bucket_created_ns,
            legacy_through,
            legacy_last: 0,
            snapshot: Arc::default(),
            seen: BTreeMap::new(),
        }
    }

    /// When the bucket was created, and up to where values of the form before count in it, as far as is known; the greatest
    /// number: without an end.
    pub fn legacy_end(&self) -> (i64, u64) {
        (self.bucket_created_ns, self.legacy_through)
    }

    /// True if a value was accepted and a later message shows that it is outdated: everything must be read again.
    pub fn is_outdated(&self) -> bool {
        self.legacy_last > self.legacy_through
    }

    /// The entries that are to be sealed again, removed ones too.
    pub fn stale(&self, which: Stale) -> Vec<StaleEntry> {
        let is_stale = |sound: &Sound| sound.legacy || (which == Stale::FormOrKey && sound.by_older_key);
        let stale = |(entry, seen): (&String, &Seen)| {
            let sound = seen.sound.filter(is_stale)?;
            Some(StaleEntry { entry: entry.clone(), revision: sound.revision, base: seen.base() })
        };
        self.seen.iter().filter_map(stale).collect()
    }

    /// Takes a message. Whether it counts, that is, has made its entry what it is now. What does not is logged and passed
    /// over: the last sound value stays.
    pub fn apply(&mut self, message: &Stored) -> bool {
        let Some(entry) = self.entry_of(message) else { return false };
        let Some((kind, name)) = entry.split_once('.') else { return false };
        if kind == KEY_USED {
            self.snapshot_mut().note_use(name, message);
            return true;
        }
        let Some(kind) = Kind::parse(kind) else { return false };
        let seen = self.seen.entry(entry.to_owned()).or_default();
        seen.last = message.seq.0;
        let opened = self.master.open(entry, &message.headers, &message.payload);
        let claims = opened.as_ref().ok().and_then(|opened| opened.claims);
        let by_older_key = opened.as_ref().is_ok_and(|opened| opened.by_older_key);
        if let Some(claims) = claims.filter(|claims| claims.bucket_created_ns == self.bucket_created_ns) {
            // Wherever it stands now: it was sealed by the mesh for this bucket.
            self.legacy_through = self.legacy_through.min(claims.legacy_through);
        }
        let place = Place {
            bucket_created_ns: self.bucket_created_ns,
            legacy_through: self.legacy_through,
            sequence: message.seq.0,
        };
        let counts = opened.and_then(|opened| place.check(opened, seen)).map_err(Unusable::from);
        match counts.and_then(|value| Arc::make_mut(&mut self.snapshot).take(kind, name, &value, message)) {
            Ok(removed) => {
                let legacy = claims.is_none();
                if legacy {
                    self.legacy_last = message.seq.0;
                }
                seen.take(Sound { revision: message.seq.0, removed, legacy, by_older_key });
                return true;
            }
            Err(problem) => {
                let (key, revision) = (&message.subject, message.seq.0);
                tracing::error!(key, revision, %problem, "catalog entry makes no sense and is passed over");
                seen.note(revision, problem);
            }
        }
        false
    }

    /// Says whether the catalog is complete, once all that was there has been taken.
    pub fn conclude(&mut self) {
        let other_key = self.seen.values().find_map(Seen::unknown_key).cloned();
        let lost: Vec<_> =
            self.seen.iter().filter(|(_, seen)| seen.is_lost()).map(|(entry, _)| entry.clone()).collect();
        let complete = other_key.is_none() && lost.is_empty();
        let known = &self.snapshot;
        if (&known.other_key, &known.lost, known.complete) != (&other_key, &lost, complete) {
            let snapshot = self.snapshot_mut();
            (snapshot.other_key, snapshot.lost, snapshot.complete) = (other_key, lost, complete);
        }
    }

    /// The name of a message's entry in the bucket.
    pub fn entry_of<'a>(&self, message: &'a Stored) -> Option<&'a str> {
        message.subject.strip_prefix(&self.prefix)
    }

    /// The snapshot, to be changed: copied where someone has it.
    pub fn snapshot_mut(&mut self) -> &mut Snapshot {
        Arc::make_mut(&mut self.snapshot)
    }

    /// Where an entry with the revision `expected` may be written; 0: a missing entry. `None`: it has another revision,
    /// or its value is lost.
    pub fn base(&self, entry: &str, expected: u64) -> Option<Base> {
        let Some(seen) = self.seen.get(entry) else {
            return (expected == 0).then_some(Base { last: 0, previous: 0 });
        };
        if seen.is_lost() || seen.unknown_key().is_some() {
            return None;
        }
        let revision = seen.sound.filter(|sound| !sound.removed).map_or(0, |sound| sound.revision);
        (revision == expected).then_some(seen.base())
    }
}

/// Where a message stands.
struct Place {
    bucket_created_ns: i64,
    legacy_through: u64,
    sequence: u64,
}

impl Place {
    /// The value, if it was sealed for this place, behind the messages of its entry that were `seen`.
    fn check(&self, opened: Opened, seen: &Seen) -> Result<Vec<u8>, OpenError> {
        match opened.claims {
            None if self.sequence > self.legacy_through => Err(OpenError::Outdated(self.legacy_through)),
            None => Ok(opened.value),
            Some(claims) if claims.bucket_created_ns != self.bucket_created_ns => Err(OpenError::OtherBucket),
            Some(claims) if claims.sequence != self.sequence => Err(OpenError::Replayed(claims.sequence)),
            // 0: the entry's messages had been purged when it was written, so it begins again.
            Some(claims) if claims.previous != 0 && !seen.may_follow(claims.previous) => {
                Err(OpenError::Replayed(claims.sequence))
            }
            Some(_) => Ok(opened.value),
        }
    }
}

#[cfg(test)]
mod tests;
