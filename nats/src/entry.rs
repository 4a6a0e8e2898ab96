//! Messages of EVENTS: events, and the records between them.

use weft_proto::internal::Heads;

use crate::{
    erasure::Erasure,
    event::{DecodeError, Event},
    message::Stored,
    records,
    subject::Layout,
};

/// A message of EVENTS, decoded.
#[derive(Debug, Clone)]
pub enum Entry {
    /// An event.
    Event(Box<Event>),
    /// Heads carried forward.
    Heads(Heads),
    /// The record of an erased event.
    Erased(Box<Erasure>),
    /// A message that Weft did not write: to be counted and passed over.
    Foreign(DecodeError),
}

impl Entry {
    /// Decodes a message of EVENTS. Never fails: a message that Weft did not write is [`Entry::Foreign`].
    pub fn decode(layout: Layout, message: &Stored) -> Self {
        if message.subject.starts_with("heads.") {
            return records::decode(message).map_or(Self::Foreign(DecodeError::Record), Self::Heads);
        }
        if Erasure::is_meant(message) {
            let erasure = Erasure::decode(layout, message).map(Box::new);
            return erasure.map_or(Self::Foreign(DecodeError::Record), Self::Erased);
        }
        match Event::decode(layout, message) {
            Ok(event) => Self::Event(Box::new(event)),
            Err(error) => Self::Foreign(error),
        }
    }
}
