//! Sets of events of one segment: a segment is a run of [`SEGMENT_SEQUENCES`] sequences of EVENTS, and a set has one bit a
//! sequence. Stored as a sorted list while it is short, as a bitmap otherwise. Pure.

/// Sequences of one segment. Within a segment the rows of an index share some hundred pages, so that insertions, whose keys are
/// not in the order of the log, rewrite few of them; a query reads each segment, some hundred for five million events.
pub(super) const SEGMENT_SEQUENCES: u64 = 16_384;

const WORDS: usize = (SEGMENT_SEQUENCES / 64) as usize;
/// Bytes of a stored bitmap. A stored list is shorter: the length distinguishes them.
const MAP_BYTES: usize = (SEGMENT_SEQUENCES / 8) as usize;
/// Entries of a stored list, two bytes each.
const LIST_MAX: usize = MAP_BYTES / 2 - 1;

/// The segment of a sequence, and its place there.
pub(super) fn place(seq: u64) -> (u64, u16) {
    (seq / SEGMENT_SEQUENCES, u16::try_from(seq % SEGMENT_SEQUENCES).unwrap_or_default())
}

/// A set of places in a segment.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Bits(Box<[u64; WORDS]>);

impl Bits {
    pub fn none() -> Self {
        Self(Box::new([0; WORDS]))
    }

    fn word(&self, place: u16) -> u64 {
        self.0.get(usize::from(place / 64)).copied().unwrap_or_default()
    }

    pub fn set(&mut self, place: u16, present: bool) {
        let Some(word) = self.0.get_mut(usize::from(place / 64)) else { return };
        let bit = 1 << (place % 64);
        if present { *word |= bit } else { *word &= !bit }
    }

    pub fn is_empty(&self) -> bool {
        self.0.iter().all(|word| *word == 0)
    }

    pub fn count(&self) -> usize {
        self.0.iter().map(|word| word.count_ones() as usize).sum()
    }

    pub fn add(&mut self, other: &Self) {
        self.0.iter_mut().zip(other.0.iter()).for_each(|(word, other)| *word |= other);
    }

    pub fn keep(&mut self, other: &Self) {
        self.0.iter_mut().zip(other.0.iter()).for_each(|(word, other)| *word &= other);
    }

    pub fn remove(&mut self, other: &Self) {
        self.0.iter_mut().zip(other.0.iter()).for_each(|(word, other)| *word &= !other);
    }

    /// Removes the places outside of `from..=through`.
    pub fn keep_between(&mut self, from: u16, through: u16) {
        for (index, word) in self.0.iter_mut().enumerate() {
            let first = index * 64;
            let below = usize::from(from).saturating_sub(first).min(64);
            let above = (first + 63).saturating_sub(usize::from(through)).min(64);
            *word &= u64::MAX.checked_shl(u32::try_from(below).unwrap_or(64)).unwrap_or(0);
            *word &= u64::MAX.checked_shr(u32::try_from(above).unwrap_or(64)).unwrap_or(0);
        }
    }

    /// The first place at or after `from`.
    pub fn next(&self, from: u16) -> Option<u16> {
        let start = usize::from(from / 64);
        let masked = self.word(from) & u64::MAX.checked_shl(u32::from(from % 64)).unwrap_or(0);
        let first = std::iter::once((start, masked));
        let later = self.0.iter().copied().enumerate().skip(start + 1);
        first.chain(later).find(|(_, word)| *word != 0).and_then(|(index, word)| at(index, word.trailing_zeros()))
    }

    /// The last place at or before `from`.
    pub fn previous(&self, from: u16) -> Option<u16> {
        let start = usize::from(from / 64);
        let masked = self.word(from) & u64::MAX.checked_shr(63 - u32::from(from % 64)).unwrap_or(0);
        let earlier = self.0.iter().copied().enumerate().take(start);
        let mut all = std::iter::once((start, masked)).chain(earlier.rev());
        all.find(|(_, word)| *word != 0).and_then(|(index, word)| at(index, 63 - word.leading_zeros()))
    }

    /// Adds a stored set.
    pub fn add_stored(&mut self, bytes: &[u8]) {
        if bytes.len() == MAP_BYTES {
            let (words, _) = bytes.as_chunks();
            self.0.iter_mut().zip(words).for_each(|(word, bytes)| *word |= u64::from_le_bytes(*bytes));
        } else {
            bytes.as_chunks().0.iter().for_each(|place| self.set(u16::from_le_bytes(*place), true));
        }
    }
}

fn at(index: usize, bit: u32) -> Option<u16> {
    u16::try_from(index * 64 + bit as usize).ok()
}

/// Applies changes to a stored set, in order: a place, and whether it is in the set from then on. Returns the new set as stored;
/// `None` if it is empty.
pub(super) fn changed(stored: Option<&[u8]>, changes: &[(u16, bool)]) -> Option<Vec<u8>> {
    let stored = stored.unwrap_or_default();
    if stored.len() < MAP_BYTES {
        let mut list: Vec<u16> = stored.as_chunks().0.iter().map(|place| u16::from_le_bytes(*place)).collect();
        for (place, present) in changes {
            match list.binary_search(place) {
                Ok(at) if !present => drop(list.remove(at)),
                Err(at) if *present => list.insert(at, *place),
                _ => {}
            }
        }
        if list.len() <= LIST_MAX {
            return (!list.is_empty()).then(|| list.iter().flat_map(|place| place.to_le_bytes()).collect());
        }
    }
    let mut bits = Bits::none();
    bits.add_stored(stored);
    changes.iter().for_each(|(place, present)| bits.set(*place, *present));
    if bits.count() <= LIST_MAX / 2 {
        let mut list = Vec::new();
        let mut next = bits.next(0);
        while let Some(place) = next {
            list.extend_from_slice(&place.to_le_bytes());
            next = place.checked_add(1).and_then(|from| bits.next(from));
        }
        return (!list.is_empty()).then_some(list);
    }
    Some(bits.0.iter().flat_map(|word| word.to_le_bytes()).collect())
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;

    use super::*;

    const LAST: u16 = (SEGMENT_SEQUENCES - 1) as u16;

    fn set(bits: &Bits) -> BTreeSet<u16> {
        (0..=LAST).filter(|place| bits.word(*place) & (1 << (place % 64)) != 0).collect()
    }

    proptest! {
        /// A stored set is the one that the changes make, as a list and as a bitmap, and each stays with later changes.
        #[test]
        fn stored_sets_follow_their_changes(
            steps in proptest::collection::vec((0..=LAST, 1..1_500_u16, any::<bool>()), 1..6),
        ) {
            let (mut stored, mut expected) = (None::<Vec<u8>>, BTreeSet::new());
            for (from, count, present) in steps {
                let changes: Vec<_> =
                    (0..count).map(|step| (((u32::from(from) + 7 * u32::from(step)) % 16_384) as u16, present)).collect();
                for (place, present) in &changes {
                    if *present { expected.insert(*place); } else { expected.remove(place); }
                }
                stored = changed(stored.as_deref(), &changes);
                let mut bits = Bits::none();
                bits.add_stored(stored.as_deref().unwrap_or_default());
                prop_assert_eq!(&set(&bits), &expected);
                prop_assert_eq!(stored.is_none(), expected.is_empty());
            }
        }

        #[test]
        fn places_are_found_in_both_directions(places in proptest::collection::btree_set(0..=LAST, 0..40), from in 0..=LAST) {
            let mut bits = Bits::none();
            places.iter().for_each(|place| bits.set(*place, true));
            prop_assert_eq!(bits.next(from), places.range(from..).next().copied());
            prop_assert_eq!(bits.previous(from), places.range(..=from).next_back().copied());
            prop_assert_eq!(bits.count(), places.len());
            let through = from.saturating_add(500).min(LAST);
            bits.keep_between(from, through);
            prop_assert_eq!(set(&bits), places.range(from..=through).copied().collect::<BTreeSet<_>>());
        }
    }
}
