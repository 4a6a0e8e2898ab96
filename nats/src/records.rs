//! Records: messages of gateways, workers and admins in the log other than events.
//!
//! A client that may create consumers can make the server deliver stored events to any subject, those of OUTCOMES and
//! COMMANDS among them, and an event's body is chosen by its sender. Such a message keeps the headers that it was stored
//! with. So a record has a header that no event has, and counts only with it.

use prost::Message;
use weft_proto::{
    ids::EventId,
    internal::{Head, Heads},
};

use crate::{
    headers::{Headers, MESSAGE_ID},
    message::{Outgoing, Stored},
};

/// The header of every record. Events never have it: their headers' names are fixed, and those of a sender's headers that
/// are kept have a prefix.
pub const RECORD: &str = "weft-record";
/// Its value: the version of the records.
const VERSION: &str = "1";

/// The headers of a record.
pub fn headers() -> Headers {
    let mut headers = Headers::default();
    headers.put(RECORD, VERSION);
    headers
}

/// The message that stores a record.
pub fn encode(subject: String, record: &impl Message) -> Outgoing {
    Outgoing { subject, headers: headers(), payload: record.encode_to_vec().into() }
}

/// The most heads of one message: some 90 KiB, which the smallest `max_payload` takes.
pub const MESSAGE_HEADS_MAX: usize = 500;

/// The message that carries heads forward, at most [`MESSAGE_HEADS_MAX`], and its id, by which it is recognised when it is
/// read back.
pub fn heads(subject: String, heads: Vec<Head>) -> (EventId, Outgoing) {
    let id = EventId::unique();
    let mut message = encode(subject, &Heads { heads });
    message.headers.put(MESSAGE_ID, id);
    (id, message)
}

/// The record of a message; `None` when it is none of ours.
pub fn decode<T: Message + Default>(message: &Stored) -> Option<T> {
    message.headers.get(RECORD)?;
    T::decode(message.payload.clone()).ok()
}
