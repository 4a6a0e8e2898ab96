//! The newest entries of one shard, bounded by number and bytes. Pure.

use std::{collections::VecDeque, sync::Arc};

use weft_proto::ids::StreamSeq;

use crate::event::StoredEvent;

/// Entries of one ring: a client that is later by more than this reads the log itself.
const ENTRIES_MAX: usize = 1024;
/// Memory that one entry takes besides its payload: headers, ids and the allocation itself.
const ENTRY_OVERHEAD_BYTES: usize = 1024;

/// One message of the stream.
#[derive(Debug, Clone)]
pub(super) struct RingEntry {
    pub seq: StreamSeq,
    /// `None`: heads, or a message that is not an event of this mesh. It only moves positions.
    pub event: Option<Arc<StoredEvent>>,
}

impl RingEntry {
    pub fn bytes(&self) -> usize {
        self.event.as_ref().map_or(64, |event| event.event.payload.len() + ENTRY_OVERHEAD_BYTES)
    }
}

/// Where a position stands in relation to a ring.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Coverage {
    /// The ring holds everything after the position that has been read.
    Covered,
    /// Something between the position and the ring's oldest entry has been evicted, or was never in it.
    Evicted,
    /// The position is beyond what the shared reader has read.
    Ahead,
}

/// Entries of a stream without a gap between them.
#[derive(Debug)]
pub(super) struct Ring {
    entries: VecDeque<RingEntry>,
    /// The ring holds all messages of the stream in `floor + 1..=end`.
    floor: StreamSeq,
    end: StreamSeq,
    bytes: usize,
    bytes_max: usize,
    /// Grows whenever the stream turns out to be another one: positions of an earlier generation mean nothing.
    generation: u64,
}

impl Ring {
    /// An empty ring whose next entry follows `end`.
    pub fn new(end: StreamSeq, bytes_max: usize) -> Self {
        Self { entries: VecDeque::new(), floor: end, end, bytes: 0, bytes_max, generation: 0 }
    }

    /// Drops everything; the next entry follows `end`. `other_log`: the stream is not the one that was read before.
    pub fn restart(&mut self, end: StreamSeq, other_log: bool) {
        let generation = self.generation + u64::from(other_log);
        *self = Self { generation, ..Self::new(end, self.bytes_max) };
    }

    pub fn generation(&self) -> u64 {
        self.generation
    }

    /// Adds the next entry of the stream, and evicts the oldest ones that no longer fit. After a gap nothing older is
    /// kept: a tail before the gap asks the log what became of the messages in it.
    pub fn push(&mut self, entry: RingEntry) {
        if entry.seq != self.end.next() {
            self.entries.clear();
            self.bytes = 0;
            self.floor = StreamSeq(entry.seq.0.saturating_sub(1));
        }
        self.end = entry.seq;
        self.bytes += entry.bytes();
        self.entries.push_back(entry);
        while self.entries.len() > 1 && (self.entries.len() > ENTRIES_MAX || self.bytes > self.bytes_max) {
            let Some(evicted) = self.entries.pop_front() else { break };
            self.bytes -= evicted.bytes();
            self.floor = evicted.seq;
        }
    }

    pub fn coverage(&self, position: StreamSeq) -> Coverage {
        if position < self.floor {
            Coverage::Evicted
        } else if position > self.end {
            Coverage::Ahead
        } else {
            Coverage::Covered
        }
    }

    /// The entries after a position that is covered.
    pub fn after(&self, position: StreamSeq) -> impl Iterator<Item = &RingEntry> {
        let start = self.entries.partition_point(|entry| entry.seq <= position);
        self.entries.range(start..)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn entry(seq: u64) -> RingEntry {
        RingEntry { seq: StreamSeq(seq), event: None }
    }

    proptest! {
        /// A covered position gets every later message of the stream, once and in order; a stream may have gaps.
        #[test]
        fn a_covered_position_misses_nothing(
            start in 0u64..5, gaps in proptest::collection::vec(prop_oneof![9 => Just(0u64), 1 => 1u64..3], 1..60),
            bytes_max in 64usize..2048,
        ) {
            let mut ring = Ring::new(StreamSeq(start), bytes_max);
            let mut stream = Vec::new();
            let mut seq = start;
            for gap in gaps {
                seq += 1 + gap;
                stream.push(seq);
                ring.push(entry(seq));
                prop_assert!(ring.bytes <= bytes_max.max(64) && !ring.entries.is_empty());
                for position in 0..=seq {
                    if ring.coverage(StreamSeq(position)) == Coverage::Covered {
                        let got: Vec<u64> = ring.after(StreamSeq(position)).map(|entry| entry.seq.0).collect();
                        let expected: Vec<u64> = stream.iter().copied().filter(|seq| *seq > position).collect();
                        prop_assert_eq!(got, expected);
                    }
                }
                prop_assert_eq!(ring.coverage(StreamSeq(seq)), Coverage::Covered);
                prop_assert_eq!(ring.coverage(StreamSeq(seq + 1)), Coverage::Ahead);
            }
        }
    }

    #[test]
    fn the_number_of_entries_is_bounded_and_a_restart_forgets_them() {
        let mut ring = Ring::new(StreamSeq(0), usize::MAX);
        for seq in 1..=ENTRIES_MAX as u64 + 3 {
            ring.push(entry(seq));
        }
        assert_eq!(ring.entries.len(), ENTRIES_MAX);
        assert_eq!(ring.coverage(StreamSeq(2)), Coverage::Evicted);
        assert_eq!(ring.coverage(StreamSeq(3)), Coverage::Covered);
        ring.restart(StreamSeq(9000), false);
        assert_eq!((ring.coverage(StreamSeq(8999)), ring.generation()), (Coverage::Evicted, 0));
        assert_eq!(ring.after(StreamSeq(9000)).count(), 0);
        ring.restart(StreamSeq(5), true);
        assert_eq!((ring.coverage(StreamSeq(5)), ring.generation()), (Coverage::Covered, 1));
    }
}
