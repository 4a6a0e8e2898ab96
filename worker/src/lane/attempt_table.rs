//! Attempts in flight.

use std::{collections::HashMap, sync::Arc};

use weft_nats::event::StoredEvent;

use super::{AttemptId, input::Work};

/// An attempt in flight.
#[derive(Debug)]
pub(super) struct Started {
    /// The delivery of its first event.
    pub work: Work,
    /// Its events, in order.
    pub events: Vec<Arc<StoredEvent>>,
    /// Its number among the attempts of its first event.
    pub number: u32,
    /// Revision of the subscription's policy when it started.
    pub revision: u64,
    /// As [`Turn::fresh`](super::schedule::Turn::fresh) when it started.
    pub fresh: bool,
}

/// The attempts in flight, by id.
#[derive(Debug, Default)]
pub(super) struct AttemptTable {
    in_flight: HashMap<AttemptId, Started>,
    next: u64,
}

impl AttemptTable {
    /// Adds an attempt, with a new id.
    pub fn start(&mut self, started: Started) -> AttemptId {
        let id = AttemptId(self.next);
        self.next += 1;
        self.in_flight.insert(id, started);
        id
    }

    /// Removes an attempt that has ended.
    pub fn finish(&mut self, id: AttemptId) -> Option<Started> {
        self.in_flight.remove(&id)
    }
}
