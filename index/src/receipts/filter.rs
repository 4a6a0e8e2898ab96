//! A blocked Bloom filter over the keys of one segment: most look-ups of an unknown key end here, without reading a page.
//!
//! Putze, Sanders, Singler, "Cache-, Hash- and Space-Efficient Bloom Filters" (2007): all bits of a key lie in one block of
//! 512 bits, a cache line. With 12 bits a key and 6 bits set, about 1 in 100 unknown keys passes. A filter is built while
//! the rows are written, so it needs no list of the keys.

use weft_proto::ids::{EventId, WorkflowId};

/// Bits of a filter for each key: 15 MB for ten million keys.
const BITS_PER_KEY: u64 = 12;
/// Bits that a key sets in its block.
const PROBES: u32 = 6;
/// 64-bit words of a block.
const WORDS: usize = 8;
const BLOCK_BYTES: usize = WORDS * 8;

/// The keys of one segment, approximately: it may pass an unknown key, it never refuses a known one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Filter {
    blocks: Vec<[u64; WORDS]>,
}

impl Filter {
    /// An empty filter with room for `keys` keys.
    pub fn with_room(keys: u64) -> Self {
        let blocks = keys.saturating_mul(BITS_PER_KEY).div_ceil(64 * WORDS as u64).max(1);
        Self { blocks: vec![[0; WORDS]; usize::try_from(blocks).unwrap_or(1)] }
    }

    /// Adds the key with this hash.
    pub fn insert(&mut self, hash: u64) {
        let index = self.block(hash);
        if let Some(block) = self.blocks.get_mut(index) {
            for (word, bit) in probes(hash) {
                block[word] |= bit;
            }
        }
    }

    /// Whether a key with this hash may have been added.
    pub fn may_contain(&self, hash: u64) -> bool {
        let Some(block) = self.blocks.get(self.block(hash)) else { return true };
        probes(hash).all(|(word, bit)| block[word] & bit != 0)
    }

    /// Stored form: little-endian words.
    pub fn to_bytes(&self) -> Vec<u8> {
        self.blocks.iter().flatten().flat_map(|word| word.to_le_bytes()).collect()
    }

    /// The inverse of [`to_bytes`](Self::to_bytes); `None` for invalid bytes.
    pub fn from_bytes(bytes: &[u8]) -> Option<Self> {
        if bytes.is_empty() || !bytes.len().is_multiple_of(BLOCK_BYTES) {
            return None;
        }
        let word = |bytes: &[u8]| bytes.try_into().map(u64::from_le_bytes).ok();
        let block = |bytes: &[u8]| {
            let mut block = [0; WORDS];
            for (place, bytes) in block.iter_mut().zip(bytes.chunks_exact(8)) {
                *place = word(bytes)?;
            }
            Some(block)
        };
        Some(Self { blocks: bytes.chunks_exact(BLOCK_BYTES).map(block).collect::<Option<_>>()? })
    }

    /// The block of a hash: its high half, scaled to the number of blocks.
    fn block(&self, hash: u64) -> usize {
        let scaled = (u128::from(hash >> 32) * self.blocks.len() as u128) >> 32;
        usize::try_from(scaled).unwrap_or(0)
    }
}

/// The hash of an event id. Stored filters depend on it, so a change of it is a change of the file's format.
pub(super) fn of_id(id: &EventId) -> u64 {
    let [high, low] = [&id.as_bytes()[..8], &id.as_bytes()[8..]]
        .map(|half| half.iter().fold(0u64, |word, byte| (word << 8) | u64::from(*byte)));
    mix(mix(high) ^ low)
}

/// The hash of a workflow id: FNV-1a, mixed. As [`of_id`], part of the file's format.
pub(super) fn of_workflow(workflow: &WorkflowId) -> u64 {
    mix(workflow
        .as_str()
        .bytes()
        .fold(0xcbf2_9ce4_8422_2325, |hash, byte| (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3)))
}

/// The finalizer of SplitMix64.
fn mix(mut word: u64) -> u64 {
    word = (word ^ (word >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    word = (word ^ (word >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    word ^ (word >> 31)
}

/// The bits of a hash within its block: nine bits of the mixed hash each.
fn probes(hash: u64) -> impl Iterator<Item = (usize, u64)> {
    let mixed = mix(hash);
    (0..PROBES).map(move |probe| {
        let bit = (mixed >> (9 * probe)) & 0x1ff;
        ((bit >> 6) as usize, 1 << (bit & 63))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn hash(n: u64) -> u64 {
        of_id(&EventId::of_delivery("test", &n.to_string()))
    }

    #[test]
    fn a_known_key_passes_and_few_unknown_ones_do() {
        let mut filter = Filter::with_room(10_000);
        (0..10_000).for_each(|n| filter.insert(hash(n)));
        let stored = Filter::from_bytes(&filter.to_bytes()).unwrap();
        assert_eq!(stored, filter);
        assert!((0..10_000).all(|n| stored.may_contain(hash(n))));
        let passed = (10_000..110_000).filter(|n| stored.may_contain(hash(*n))).count();
        assert!(passed < 2_500, "{passed} of 100,000 unknown keys pass");
    }

    #[test]
    fn workflow_ids_that_differ_in_a_digit_spread() {
        let mut filter = Filter::with_room(10_000);
        let hash = |n: u64| of_workflow(&WorkflowId::new(format!("order-{n}")).unwrap());
        (0..10_000).for_each(|n| filter.insert(hash(n)));
        let passed = (10_000..110_000).filter(|n| filter.may_contain(hash(*n))).count();
        assert!(passed < 2_500, "{passed} of 100,000 unknown keys pass");
    }

    #[test]
    fn bytes_of_another_length_are_no_filter() {
        assert_eq!(Filter::from_bytes(&[]), None);
        assert_eq!(Filter::from_bytes(&[0; BLOCK_BYTES + 1]), None);
    }
}
