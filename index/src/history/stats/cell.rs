//! Counts and histograms of a minute, of everything or of one label. Pure.

use super::histogram::{Histogram, HistogramRow};

/// Counts of events, deliveries and attempts.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Counts {
    /// Events stored.
    pub accepted: u64,
    /// Refused requests that were kept.
    pub rejected: u64,
    /// Deliveries that the receiver took.
    pub delivered: u64,
    /// Deliveries that became dead letters.
    pub dead_lettered: u64,
    /// Deliveries that an operator discarded.
    pub discarded: u64,
    /// Dead letters that an operator declared resolved.
    pub resolved: u64,
    /// Events that no subscription took.
    pub unrouted: u64,
    /// Attempts that ended.
    pub attempts: u64,
    /// Those that were not the first of their delivery.
    pub retried: u64,
    /// Those that failed.
    pub failed: u64,
}

impl Counts {
    /// Adds others.
    pub fn add(&mut self, other: &Self) {
        for (mine, others) in self.fields().into_iter().zip(other.values()) {
            *mine = mine.saturating_add(others);
        }
    }

    fn fields(&mut self) -> [&mut u64; 10] {
        let Self {
            accepted,
            rejected,
            delivered,
            dead_lettered,
            discarded,
            resolved,
            unrouted,
            attempts,
            retried,
            failed,
        } = self;
        [accepted, rejected, delivered, dead_lettered, discarded, resolved, unrouted, attempts, retried, failed]
    }

    fn values(&self) -> [u64; 10] {
        let mut copy = *self;
        copy.fields().map(|field| *field)
    }
}

/// Histograms of how long the stages of events took.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Latencies {
    /// From the receipt of the request to its storage.
    pub accept: Histogram,
    /// From there to the first attempt.
    pub wait: Histogram,
    /// The attempts that succeeded.
    pub deliver: Histogram,
    /// From the receipt to the delivery.
    pub total: Histogram,
}

impl Latencies {
    /// Adds others.
    pub fn add(&mut self, other: &Self) {
        self.accept.add(&other.accept);
        self.wait.add(&other.wait);
        self.deliver.add(&other.deliver);
        self.total.add(&other.total);
    }
}

/// Counts and histograms.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Cell {
    /// The counts.
    pub counts: Counts,
    /// The histograms.
    pub latencies: Latencies,
}

impl Cell {
    /// Adds another one.
    pub fn add(&mut self, other: &Self) {
        self.counts.add(&other.counts);
        self.latencies.add(&other.latencies);
    }
}

/// A cell as it is stored.
#[derive(Clone, PartialEq, prost::Message)]
pub(in crate::history) struct CellRow {
    /// The counts in the order of [`Counts`]; fewer where the rest is zero.
    #[prost(uint64, repeated, tag = "1")]
    counts: Vec<u64>,
    #[prost(message, optional, tag = "2")]
    accept: Option<HistogramRow>,
    #[prost(message, optional, tag = "3")]
    wait: Option<HistogramRow>,
    #[prost(message, optional, tag = "4")]
    deliver: Option<HistogramRow>,
    #[prost(message, optional, tag = "5")]
    total: Option<HistogramRow>,
}

impl From<&Cell> for CellRow {
    fn from(cell: &Cell) -> Self {
        let Latencies { accept, wait, deliver, total } = &cell.latencies;
        Self {
            counts: cell.counts.values().to_vec(),
            accept: accept.to_row(),
            wait: wait.to_row(),
            deliver: deliver.to_row(),
            total: total.to_row(),
        }
    }
}

impl From<&CellRow> for Cell {
    fn from(row: &CellRow) -> Self {
        let mut cell = Self::default();
        for (field, value) in cell.counts.fields().into_iter().zip(&row.counts) {
            *field = *value;
        }
        let Latencies { accept, wait, deliver, total } = &mut cell.latencies;
        let stored = [(accept, &row.accept), (wait, &row.wait), (deliver, &row.deliver), (total, &row.total)];
        for (histogram, row) in stored {
            if let Some(row) = row {
                histogram.add_row(row);
            }
        }
        cell
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cell_survives_its_row() {
        let counts =
            Counts { accepted: 1, rejected: 2, delivered: 3, dead_lettered: 4, failed: 10, ..Counts::default() };
        let mut cell = Cell { counts, ..Cell::default() };
        cell.latencies.accept.record(1_500);
        cell.latencies.total.record(2_000_000);
        assert_eq!(Cell::from(&CellRow::from(&cell)), cell);
        let mut twice = cell.clone();
        twice.add(&cell);
        assert_eq!(twice.counts.failed, 20);
        assert_eq!(twice.latencies.total.count(), 2);
    }
}
