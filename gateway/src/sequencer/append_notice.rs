//! Append notices: what another gateway has appended, applied like an ack.

use std::time::Duration;

use weft_index::receipts::Accepted;
use weft_proto::ids::{EventId, StreamSeq};

/// Maximum age of a notice by the log server's clock. Older ones are discarded and the gateway reads the log instead, because
/// it derives the storage time from the notice's time, which may be late by far less than
/// [`LATE_MAX`](weft_index::receipts::LATE_MAX).
pub(crate) const NOTICE_AGE_MAX: Duration = Duration::from_secs(2);

/// Consecutive events of the log; at least one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct AppendNotice {
    events: Vec<(EventId, Accepted)>,
}

impl AppendNotice {
    /// `None` if there are no events, or they are not consecutive.
    pub fn new(events: Vec<(EventId, Accepted)>) -> Option<Self> {
        let contiguous = events.is_sorted_by(|(_, a), (_, b)| a.seq.next() == b.seq);
        let begins = events.first().is_some_and(|(_, first)| first.seq > StreamSeq(0));
        (contiguous && begins).then_some(Self { events })
    }

    /// The sequence before the first event.
    pub fn behind(&self) -> StreamSeq {
        StreamSeq(self.events.first().map_or(0, |(_, first)| first.seq.0.saturating_sub(1)))
    }

    /// The sequence of the last event.
    pub fn end(&self) -> StreamSeq {
        self.events.last().map_or(StreamSeq(0), |(_, last)| last.seq)
    }

    /// In their order.
    pub fn events(&self) -> impl Iterator<Item = &(EventId, Accepted)> {
        self.events.iter()
    }

    /// In their order.
    pub fn into_events(self) -> Vec<(EventId, Accepted)> {
        self.events
    }
}
