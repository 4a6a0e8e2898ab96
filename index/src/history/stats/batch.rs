//! Counts of a transaction that are not written yet. Pure.

use std::collections::HashMap;

use super::cell::Cell;

/// Kind of a label.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(in crate::history) enum Dimension {
    /// Everything; its label is empty.
    Total = 0,
    Source = 1,
    Type = 2,
    /// By uid.
    Subscription = 3,
    /// Code of refused requests.
    Code = 4,
    /// Dead letters of a subscription, by uid, without those of the mesh's own events.
    DeadLetters = 5,
}

impl Dimension {
    /// Maximum number of labels: a person reads them, and senders choose types.
    pub fn labels_max(self) -> usize {
        match self {
            Self::Total => 1,
            Self::Source | Self::Type | Self::Code => 50,
            Self::Subscription | Self::DeadLetters => 100,
        }
    }
}

/// Cells that are not written yet.
#[derive(Debug, Default)]
pub(in crate::history) struct Batch {
    /// By minute, kind of label, and label.
    pub cells: HashMap<(u64, Dimension, String), Cell>,
}

impl Batch {
    pub fn cell(&mut self, minute: u64, dimension: Dimension, label: &str) -> &mut Cell {
        self.cells.entry((minute, dimension, label.to_owned())).or_default()
    }
}
