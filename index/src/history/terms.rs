//! Terms of the secondary index of events, and the changes of their sets that gather in memory during a transaction. Pure.

use std::collections::{BTreeMap, HashMap};

use super::bits::place;

/// Kind of a term: its first byte.
pub(super) const ALL: u8 = b'a';
pub(super) const DELIVERY: u8 = b'd';
pub(super) const RECORDED: u8 = b'r';
pub(super) const SOURCE: u8 = b's';
pub(super) const TYPE: u8 = b't';
pub(super) const WORKFLOW: u8 = b'w';
/// After each kind.
pub(super) const AFTER: [u8; 1] = [b'z'];

/// State of an event for a subscription, by its newest run.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) enum Class {
    /// It has an attempt or a run, and no outcome.
    Open,
    Delivered,
    DeadLettered,
    Discarded,
    Resolved,
    /// No subscription took it; of the nil uid.
    Unrouted,
}

impl Class {
    pub(super) const ALL: [Self; 6] =
        [Self::Open, Self::Delivered, Self::DeadLettered, Self::Discarded, Self::Resolved, Self::Unrouted];

    pub(super) const fn byte(self) -> u8 {
        match self {
            Self::Open => b'o',
            Self::Delivered => b'd',
            Self::DeadLettered => b'x',
            Self::Discarded => b'c',
            Self::Resolved => b'r',
            Self::Unrouted => b'u',
        }
    }
}

pub(super) type Term = Vec<u8>;

pub(super) fn term(kind: u8, value: &[u8]) -> Term {
    let mut term = Vec::with_capacity(1 + value.len());
    term.push(kind);
    term.extend_from_slice(value);
    term
}

pub(super) fn delivery_term(uid: &[u8; 16], class: Class) -> Term {
    let mut term = term(DELIVERY, uid);
    term.push(class.byte());
    term
}

/// The terms of an event.
#[derive(Debug, Clone, Copy)]
pub(super) struct Terms<'e> {
    pub workflow: &'e str,
    pub event_type: &'e str,
    pub source: &'e str,
}

/// Changes of sets that have not been written yet.
#[derive(Debug, Default)]
pub(super) struct Changes {
    pub(super) sets: BTreeMap<(u32, u64, Term), Vec<(u16, bool)>>,
    /// Sources, and the newest event of each.
    pub(super) sources: HashMap<String, u64>,
}

impl Changes {
    pub(super) fn note(&mut self, shard: u32, seq: u64, term: Term, present: bool) {
        let (segment, place) = place(seq);
        self.sets.entry((shard, segment, term)).or_default().push((place, present));
    }

    /// An event is, or is no longer, at a place.
    pub fn event(&mut self, shard: u32, seq: u64, of: Terms<'_>, present: bool) {
        self.note(shard, seq, vec![ALL], present);
        self.note(shard, seq, term(WORKFLOW, of.workflow.as_bytes()), present);
        self.note(shard, seq, term(TYPE, of.event_type.as_bytes()), present);
        self.note(shard, seq, term(SOURCE, of.source.as_bytes()), present);
        if present && !self.sources.contains_key(of.source) {
            self.sources.insert(of.source.to_owned(), seq);
        }
    }
}
