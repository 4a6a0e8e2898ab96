//! Messages on their way into and out of a stream.

use async_nats::HeaderMap;
use bytes::Bytes;
use jiff::Timestamp;
use weft_proto::ids::StreamSeq;

use crate::headers::Headers;

/// A message to be appended.
#[derive(Debug, Clone)]
pub struct Outgoing {
    /// Where to.
    pub subject: String,
    /// Its headers, without the ones that appending adds (expectation, batch).
    pub headers: Headers,
    /// Body of the message.
    pub payload: Bytes,
}

impl Outgoing {
    /// Size that the server counts against `max_payload` and `max_msg_size`, in bytes: the payload and the encoded
    /// headers, with room for the headers that appending adds.
    pub fn encoded_size(&self) -> usize {
        /// `NATS/1.0`, the closing line, and the longest expectation and batch headers.
        const APPEND_HEADERS: usize = 256;
        self.payload.len() + self.headers.size() + self.subject.len() + APPEND_HEADERS
    }
}

/// Size of headers as lines: name, value, separator and line end.
fn lines_size(headers: &HeaderMap) -> usize {
    let lines = headers.iter().flat_map(|(name, values)| {
        let name: &str = name.as_ref();
        values.iter().map(move |value| name.len() + value.as_str().len() + 4)
    });
    lines.sum()
}

/// A message as it is stored.
#[derive(Debug, Clone)]
pub struct Stored {
    /// Its place in the stream.
    pub seq: StreamSeq,
    /// When the server stored it.
    pub stored_at: Timestamp,
    /// Subject of the message.
    pub subject: String,
    /// Its headers, including the ones that appending added.
    pub headers: HeaderMap,
    /// Body of the message.
    pub payload: Bytes,
}

impl Stored {
    /// Approximate size in its stream, in bytes.
    pub fn stored_size(&self) -> usize {
        /// `NATS/1.0`, the closing line, and what the server writes with each message.
        const RECORD: usize = 30;
        self.subject.len() + self.payload.len() + lines_size(&self.headers) + RECORD
    }
}
