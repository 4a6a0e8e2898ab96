//! The secondary index of events: for each segment of a shard the sets of events with a term. Terms are an event's workflow,
//! type and source, and its state for a subscription.
//!
//! Changes gather in memory during a transaction (`terms`), and are written once a term and segment.

use std::collections::{BTreeSet, HashMap};

use redb::{ReadableTable as _, Table};
use weft_nats::pattern::pattern_matches;
use weft_proto::{
    ids::ShardId,
    internal::{self, OutcomeKind},
};

use super::{
    bits::{Bits, SEGMENT_SEQUENCES, changed, place},
    names::Subscriptions,
    tables::{DeliveryRow, SWEPT, Tables, UID_MAX, UID_MIN, Uid, View, decode, encode, get},
    terms::{AFTER, ALL, Class, DELIVERY, RECORDED, SOURCE, TYPE, Term, WORKFLOW, delivery_term, term},
};

fn class_of(row: &DeliveryRow) -> Class {
    match row.outcome.as_ref().map(internal::Outcome::kind) {
        Some(OutcomeKind::Delivered) => Class::Delivered,
        Some(OutcomeKind::DeadLettered | OutcomeKind::Cancelled) => Class::DeadLettered,
        Some(OutcomeKind::Discarded) => Class::Discarded,
        Some(OutcomeKind::Resolved) => Class::Resolved,
        Some(OutcomeKind::Unrouted) => Class::Unrouted,
        Some(OutcomeKind::Unspecified) | None => Class::Open,
    }
}

impl Tables<'_> {
    /// Writes a delivery's row, and its class into the index.
    pub(super) fn put_delivery(&mut self, key: (u32, u64, &Uid, u64), row: &DeliveryRow) -> Result<(), redb::Error> {
        let (shard, seq, uid, run) = key;
        let before = self.deliveries.insert(key, &encode(row)[..])?;
        let before = before.map(|row| decode::<DeliveryRow>(row.value())).transpose()?;
        if run > 0 {
            return self.classify(shard, seq, uid);
        }
        // The live run is settled before there is another one.
        let class = class_of(row);
        match before.map(|before| class_of(&before)) {
            Some(before) if before == class => return Ok(()),
            Some(before) => self.changes.note(shard, seq, delivery_term(uid, before), false),
            None => self.changes.note(shard, seq, vec![RECORDED], true),
        }
        self.changes.note(shard, seq, delivery_term(uid, class), true);
        Ok(())
    }

    /// Writes the class of a delivery by the row of its newest run.
    pub(super) fn classify(&mut self, shard: u32, seq: u64, uid: &Uid) -> Result<(), redb::Error> {
        let newest = self.deliveries.range((shard, seq, uid, 0)..=(shard, seq, uid, u64::MAX))?.next_back();
        let newest = newest.transpose()?.map(|(_, row)| decode::<DeliveryRow>(row.value())).transpose()?;
        let class = newest.as_ref().map(class_of);
        for other in Class::ALL {
            self.changes.note(shard, seq, delivery_term(uid, other), Some(other) == class);
        }
        if class.is_some() {
            self.changes.note(shard, seq, vec![RECORDED], true);
        }
        Ok(())
    }

    /// Writes the gathered changes. Segments whose events have all expired have none.
    pub fn flush(&mut self) -> Result<(), redb::Error> {
        let changes = std::mem::take(&mut self.changes);
        let mut kept_from = HashMap::new();
        for ((shard, segment, term), changes) in &changes.sets {
            let first = match kept_from.get(shard) {
                Some(first) => *first,
                None => {
                    let swept = self.marks.get((SWEPT, *shard))?.map_or(0, |swept| swept.value());
                    let first = place(swept.saturating_add(1)).0;
                    kept_from.insert(*shard, first);
                    first
                }
            };
            if *segment < first {
                continue;
            }
            let key = (*shard, *segment, &term[..]);
            let set = changed(self.postings.get(key)?.as_ref().map(redb::AccessGuard::value), changes);
            match set {
                Some(set) => drop(self.postings.insert(key, &set[..])?),
                None => drop(self.postings.remove(key)?),
            }
        }
        for (source, seq) in &changes.sources {
            if self.sources.get(source.as_str())?.is_none() {
                self.sources.insert(source.as_str(), *seq)?;
            }
        }
        Ok(())
    }

    /// Removes the sets of segments whose events have all expired.
    pub(super) fn sweep_postings(&mut self, shard: u32, swept: u64) -> Result<(), redb::Error> {
        let first = place(swept.saturating_add(1)).0;
        let expired = (shard, 0, &[][..])..(shard, first, &[][..]);
        let has_any = self.postings.range(expired.clone())?.next().is_some();
        if has_any {
            self.postings.retain_in(expired, |_, _| false)?;
        }
        Ok(())
    }

    /// Removes what became of the events from `lost` on.
    pub(super) fn void_postings(&mut self, shard: u32, lost: u64) -> Result<(), redb::Error> {
        self.flush()?;
        let (first, from) = place(lost);
        let mut void: Vec<(u64, Term)> = Vec::new();
        for row in self.postings.range((shard, first, &[][..])..=(shard, u64::MAX, &AFTER[..]))? {
            let key = row?.0;
            let (_, segment, term) = key.value();
            if term.first().is_some_and(|kind| [DELIVERY, RECORDED].contains(kind)) {
                void.push((segment, term.to_vec()));
            }
        }
        for (segment, term) in void {
            let key = (shard, segment, &term[..]);
            let mut gone = Bits::none();
            add(&self.postings, key, &mut gone)?;
            if segment == first {
                gone.keep_between(from, u16::MAX);
            }
            let mut next = gone.next(0);
            while let Some(place) = next {
                let seq = segment * SEGMENT_SEQUENCES + u64::from(place);
                self.changes.note(shard, seq, term.clone(), false);
                next = place.checked_add(1).and_then(|from| gone.next(from));
            }
        }
        self.flush()
    }
}

type Key<'k> = (u32, u64, &'k [u8]);

fn add(table: &Table<'_, Key<'static>, &'static [u8]>, key: Key<'_>, bits: &mut Bits) -> Result<(), redb::Error> {
    if let Some(set) = table.get(key)? {
        bits.add_stored(set.value());
    }
    Ok(())
}

/// Index of one segment of a shard.
pub(super) struct Segment<'v> {
    pub view: &'v View,
    pub shard: ShardId,
    pub segment: u64,
}

impl Segment<'_> {
    fn set(&self, term: &[u8]) -> Result<Bits, redb::Error> {
        let mut bits = Bits::none();
        if let Some(set) = self.view.postings.get((self.shard.0, self.segment, term))? {
            bits.add_stored(set.value());
        }
        Ok(bits)
    }

    /// All of its events.
    pub fn all(&self) -> Result<Bits, redb::Error> {
        self.set(&[ALL])
    }

    /// Its events with an outcome, an attempt or a run.
    pub fn recorded(&self) -> Result<Bits, redb::Error> {
        self.set(&[RECORDED])
    }

    pub fn workflow(&self, workflow: &str) -> Result<Bits, redb::Error> {
        self.set(&term(WORKFLOW, workflow.as_bytes()))
    }

    pub fn source(&self, source: &str) -> Result<Bits, redb::Error> {
        self.set(&term(SOURCE, source.as_bytes()))
    }

    /// Its events whose type a pattern takes.
    pub fn types(&self, pattern: &str) -> Result<Bits, redb::Error> {
        let literal = pattern.split('*').next().unwrap_or_default();
        if literal.len() == pattern.len() {
            return self.set(&term(TYPE, pattern.as_bytes()));
        }
        if pattern == "*" {
            return self.all();
        }
        let mut bits = Bits::none();
        let first = term(TYPE, literal.as_bytes());
        let range = (self.shard.0, self.segment, &first[..])..=(self.shard.0, self.segment, &AFTER[..]);
        for row in self.view.postings.range(range)? {
            let (key, set) = row?;
            let found = key.value().2;
            if !found.starts_with(&first) {
                break;
            }
            let event_type = found.get(1..).and_then(|text| std::str::from_utf8(text).ok());
            if event_type.is_some_and(|event_type| pattern_matches(pattern, event_type)) {
                bits.add_stored(set.value());
            }
        }
        Ok(bits)
    }

    /// States of its events by subscription, of one or of all.
    pub fn classes(&self, of: Option<&Uid>) -> Result<HashMap<(Uid, Class), Bits>, redb::Error> {
        let first = term(DELIVERY, of.map_or(&[][..], |uid| &uid[..]));
        let mut classes = HashMap::new();
        let range = (self.shard.0, self.segment, &first[..])..=(self.shard.0, self.segment, &AFTER[..]);
        for row in self.view.postings.range(range)? {
            let (key, set) = row?;
            let found = key.value().2;
            if !found.starts_with(&first) {
                break;
            }
            let Some((uid, byte)) = found.get(1..).and_then(|rest| rest.split_first_chunk::<16>()) else { continue };
            let Some(class) = Class::ALL.into_iter().find(|class| [class.byte()] == *byte) else { continue };
            let mut bits = Bits::none();
            bits.add_stored(set.value());
            classes.insert((*uid, class), bits);
        }
        Ok(classes)
    }
}

/// The filters that a subscription has had in a shard.
#[derive(Debug)]
pub(super) struct Taker {
    pub uid: Uid,
    /// It takes events from this sequence on.
    pub from: u64,
    /// It has been deleted.
    pub closed: bool,
    /// Patterns of types, and sources; no source: all.
    pub filters: Vec<(Vec<String>, Vec<String>)>,
}

impl Taker {
    /// The subscriptions of a shard: those of the log, and those of the catalog that the log does not know yet.
    pub fn all(view: &View, subscriptions: &Subscriptions, shard: ShardId) -> Result<Vec<Self>, redb::Error> {
        let mut uids: BTreeSet<Uid> = subscriptions.uids().copied().collect();
        for row in view.subscriptions.range((shard.0, &UID_MIN)..=(shard.0, &UID_MAX))? {
            uids.insert(*row?.0.value().1);
        }
        let takers = uids.iter().map(|uid| Self::of(view, subscriptions, shard, uid));
        takers.filter_map(Result::transpose).collect()
    }

    /// A subscription in a shard; `None` if neither the log nor the catalog knows it.
    pub fn of(
        view: &View,
        subscriptions: &Subscriptions,
        shard: ShardId,
        uid: &Uid,
    ) -> Result<Option<Self>, redb::Error> {
        let in_log: Option<internal::SubscriptionState> = get(&view.subscriptions, (shard.0, uid))?;
        let in_catalog = subscriptions.get(uid);
        let from = match (&in_log, in_catalog) {
            (Some(state), _) => state.from,
            (None, Some(known)) => known.starts.get(shard.0 as usize).copied().unwrap_or(1),
            (None, None) => return Ok(None),
        };
        let of_log = in_log.iter().flat_map(|state| &state.filters);
        let mut filters: Vec<_> = of_log.map(|filter| (filter.types.clone(), filter.sources.clone())).collect();
        filters.extend(in_catalog.map(|known| (known.types.clone(), known.sources.clone())));
        filters.dedup();
        // Only earlier versions have written about it: its filter is not known.
        if filters.iter().all(|(types, _)| types.is_empty()) {
            filters.push((vec!["*".to_owned()], Vec::new()));
        }
        Ok(Some(Self { uid: *uid, from, closed: in_log.is_some_and(|state| state.closed), filters }))
    }

    /// The events of a segment that the subscription may take.
    pub fn taken(&self, segment: &Segment<'_>) -> Result<Bits, redb::Error> {
        let mut taken = Bits::none();
        let (from_segment, from) = place(self.from);
        if segment.segment < from_segment {
            return Ok(taken);
        }
        for (types, sources) in &self.filters {
            let mut of_filter = Bits::none();
            for pattern in types {
                of_filter.add(&segment.types(pattern)?);
            }
            if !sources.is_empty() {
                let mut of_sources = Bits::none();
                for source in sources {
                    of_sources.add(&segment.source(source)?);
                }
                of_filter.keep(&of_sources);
            }
            taken.add(&of_filter);
        }
        if segment.segment == from_segment {
            taken.keep_between(from, u16::MAX);
        }
        Ok(taken)
    }
}
