//! The interface of a shard's sequencer to forwarding.

use std::fmt;

use tokio::sync::mpsc;
use weft_index::receipts::Accepted;
use weft_proto::ids::EventId;

use super::submission::Submission;

/// Events that stay together until they are appended: a single one, or the members of a batch in their order.
pub(crate) type EventBatch = Vec<Submission>;

/// Another gateway that may append this gateway's events.
pub(crate) trait RemoteQueue: fmt::Debug + Send + Sync {
    /// The queue for an event or a batch that has just been submitted; `None`: this gateway appends it.
    fn route(&self) -> Option<&mpsc::Sender<EventBatch>>;
}

/// Learns what this gateway appends.
pub(crate) trait AppendObserver: fmt::Debug + Send + Sync {
    /// These events have just been stored, in the log's order.
    fn appended(&self, events: Vec<(EventId, Accepted)>);
}

/// Both sides of the forwarding of one shard.
#[derive(Debug)]
pub(crate) struct Forwarding {
    pub remote: Box<dyn RemoteQueue>,
    pub observer: Box<dyn AppendObserver>,
}
