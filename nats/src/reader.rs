//! A stream in order from a sequence on, without end.
//!
//! A thin reader over a plain pull consumer (ack none, in memory, fixed name) that makes its consumer anew from its own
//! position whenever anything is odd: a gap in the consumer's sequence, a missed heartbeat, a consumer that is gone, a
//! server that restarted. The client library's own ordered consumer restarts at the stream's beginning when it is reset
//! before its first message and needs up to a minute to notice that its consumer is gone.

use std::time::Duration;

use weft_proto::ids::StreamSeq;

use crate::{connect::Connection, message::Stored};

/// What to read.
#[derive(Debug, Clone)]
pub struct ReaderOptions {
    /// The stream.
    pub stream: String,
    /// The consumer's name: letters, digits, `-` and `_`; one at a time per stream.
    pub name: String,
    /// The first sequence wanted; 0 and 1 both mean the oldest.
    pub from: StreamSeq,
    /// Only messages of this subject. Filtered readers cost the server much on streams with many subjects.
    pub filter: Option<String>,
    /// The most messages of one [`Batch`].
    pub batch_messages_max: usize,
}

/// Messages in stream order.
#[derive(Debug, Default)]
pub struct Batch {
    /// At least one.
    pub messages: Vec<Stored>,
    /// How many messages the stream held behind the last of these when the server sent it: 0 at the stream's end.
    pub pending: u64,
}

/// Why a reader cannot go on. Faults that pass (no server, no leader) are not among them: it waits and tries again.
#[derive(Debug, thiserror::Error)]
pub enum ReadError {
    /// Messages between the reader's position and the stream's first have been dropped before they were read.
    #[error("{stream} starts at {first}, behind the position {position}: messages in between are gone")]
    Gone {
        /// The stream.
        stream: String,
        /// The first sequence wanted.
        position: StreamSeq,
        /// The first sequence kept.
        first: StreamSeq,
    },
    /// The stream ends before the reader's position: it is not the stream that was read before.
    #[error("{stream} ends at {last}, before the position {position}: it is another or a restored stream")]
    Behind {
        /// The stream.
        stream: String,
        /// The last sequence read.
        position: StreamSeq,
        /// The stream's last sequence.
        last: StreamSeq,
    },
}

/// Reads one stream. Dropping it ends its consumer, at the latest by the server's inactivity threshold.
#[derive(Debug)]
pub struct OrderedReader {
    connection: Connection,
    options: ReaderOptions,
}

/// How long the server keeps the consumer of a reader that is gone.
pub const INACTIVE_THRESHOLD: Duration = Duration::from_secs(60);

impl OrderedReader {
    /// Starts to read. Does not wait for the server.
    pub fn new(connection: Connection, options: ReaderOptions) -> Self {
        Self { connection, options }
    }

    /// The next messages, as many as are there, at least one. Waits for as long as there is none, through restarts of the
    /// server. Safe to cancel: nothing is lost when the future is dropped.
    ///
    /// With `filter`, sequences have gaps; without, a gap means messages that the stream has dropped (interior deletes).
    ///
    /// # Errors
    ///
    /// [`ReadError`]: the reader stands at its position and says why it cannot go on; calling again tries again.
    pub async fn next(&mut self) -> Result<Batch, ReadError> {
        let _ = (&self.connection, &self.options);
        todo!()
    }

    /// The next sequence wanted.
    pub fn position(&self) -> StreamSeq {
        todo!()
    }
}
