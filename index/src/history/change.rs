//! Changes that the writing thread of a history applies.

use jiff::Timestamp;
use redb::WriteTransaction;
use weft_nats::{message::Stored, subject::Layout};
use weft_proto::{
    ids::{ShardId, StreamSeq},
    internal,
};

use super::{
    apply::StreamKind,
    sweep::{Expired, LaneCursor},
    tables::Tables,
};
use crate::projection::{self, Position, Projector};

/// A change for the writing thread.
pub(super) enum Change {
    /// Messages of one read of a source.
    Messages {
        /// Index of the source.
        index: usize,
        /// In order, without the payloads that are not needed.
        messages: Vec<Stored>,
    },
    /// A source continues at `first`: earlier messages were dropped before they were read.
    Skip {
        /// Index of the source.
        index: usize,
        /// The first sequence kept.
        first: StreamSeq,
    },
    /// A part of a shard's checkpoint, before OUTCOMES is read from `from` on.
    Checkpoint { shard: ShardId, from: StreamSeq, part: CheckpointPart },
    /// Expired rows are to be removed.
    Sweep(Expired),
}

/// A part of a checkpoint.
pub(super) enum CheckpointPart {
    Chunks(Vec<internal::CheckpointChunk>),
    /// The end, and when it was stored, in unix milliseconds.
    End(Box<internal::CheckpointEnd>, i64),
}

/// State after a commit.
#[derive(Debug, Clone)]
pub(super) struct Committed {
    /// The applied position of each source.
    pub positions: Vec<StreamSeq>,
    /// Storage time of the last applied message of each source.
    pub stored_at: Vec<Option<Timestamp>>,
    /// Sweeps made in this round.
    pub sweeps: u64,
    /// Whether the last one was incomplete.
    pub more_to_sweep: bool,
}

/// Applies changes, with the positions after them.
pub(super) struct Projection {
    layout: Layout,
    sources: Vec<StreamKind>,
    positions: Vec<Position>,
    sweeps: u64,
    more_to_sweep: bool,
    lanes: LaneCursor,
}

impl Projection {
    /// Continues at these positions, one for each source.
    pub fn new(layout: Layout, sources: Vec<StreamKind>, positions: Vec<Position>) -> Self {
        Self { layout, sources, positions, sweeps: 0, more_to_sweep: false, lanes: LaneCursor::default() }
    }

    /// The present state of the file.
    pub fn committed(&self) -> Committed {
        let positions = self.positions.iter().map(|position| position.cursor).collect();
        let stored_at = self.positions.iter().map(|position| position.mark.map(|mark| mark.stored_at)).collect();
        Committed { positions, stored_at, sweeps: self.sweeps, more_to_sweep: self.more_to_sweep }
    }
}

impl Projector for Projection {
    type Change = Change;
    type Committed = Committed;

    fn apply(&mut self, transaction: &WriteTransaction, changes: Vec<Change>) -> Result<Committed, redb::Error> {
        let mut touched = vec![false; self.sources.len()];
        {
            let mut tables = Tables::open(transaction)?;
            for change in changes {
                match change {
                    Change::Messages { index, messages } => {
                        for message in &messages {
                            tables.apply(self.layout, self.sources[index], message)?;
                            self.positions[index].advance(message);
                        }
                        touched[index] = true;
                    }
                    Change::Skip { index, first } => {
                        let position = &mut self.positions[index];
                        position.cursor = StreamSeq(first.0.saturating_sub(1));
                        position.mark = None;
                        touched[index] = true;
                    }
                    Change::Checkpoint { shard, from, part } => tables.apply_checkpoint(shard, from, &part)?,
                    Change::Sweep(expired) => {
                        tables.flush()?;
                        self.more_to_sweep = tables.sweep(self.layout, &expired, &mut self.lanes)?;
                        self.sweeps += 1;
                    }
                }
            }
            tables.flush()?;
            tables.write_stats()?;
        }
        for (index, _) in touched.iter().enumerate().filter(|(_, touched)| **touched) {
            let stream = self.sources[index].stream(self.layout);
            projection::set_position(transaction, &stream, &self.positions[index])?;
        }
        Ok(self.committed())
    }
}
