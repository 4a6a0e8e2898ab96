//! What another gateway has appended, as it says itself: as good as an ack of one's own append.

use std::time::Duration;

use weft_index::receipts::Accepted;
use weft_proto::ids::{EventId, StreamSeq};

/// Maximum age of a notice by the log server's clock. Older ones are discarded and the gateway reads the log instead, because
/// it derives the storage time from the notice's time, which may be late by far less than
/// [`LATE_MAX`](weft_index::receipts::LATE_MAX).
pub(crate) const NOTICE_AGE_MAX: Duration = Duration::from_secs(2);

/// Events that stand one behind the other in the log. Not empty.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct AppendNotice {
    events: Vec<(EventId, Accepted)>,
}

impl AppendNotice {
    /// `None`: there is nothing, or it does not stand one behind the other.
    pub fn new(events: Vec<(EventId, Accepted)>) -> Option<Self> {
        let contiguous = events.is_sorted_by(|(_, a), (_, b)| a.seq.next() == b.seq);
        let begins = events.first().is_some_and(|(_, first)| first.seq > StreamSeq(0));
        (contiguous && begins).then_some(Self { events })
    }

    /// The end of the log that they stand behind.
    pub fn behind(&self) -> StreamSeq {
        StreamSeq(self.events.first().map_or(0, |(_, first)| first.seq.0.saturating_sub(1)))
    }

    /// Where the last of them stands.
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
