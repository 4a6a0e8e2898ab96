//! A stream in order from a sequence on, without end.
//!
//! A thin reader over a plain pull consumer (ack none, in memory) that recreates its consumer from its own position
//! after any irregularity: a gap in the consumer's sequence, a missed heartbeat, a consumer that is gone, a server that
//! restarted. The client library's own ordered consumer restarts at the stream's beginning when it is reset before its
//! first message and needs up to a minute to notice that its consumer is gone.
//!
//! A new consumer starts after the last message that was taken from the old one, so a reset can neither skip nor
//! repeat.
//!
//! A sequence alone does not identify a message: the stream may have been restored from a backup or made again. So the
//! reader keeps a [`Position`], the stream's creation time and a mark of the last message, and compares it with the stream
//! whenever it makes a consumer. Where it differs it returns [`ReadError::Another`] and reads nothing.
//!
//! A stream takes a limited number of consumers, and any user that may create one may create them all. So readers
//! without which a role does not do its work continue without a consumer while they are refused one, by pages.
//!
//! A reader's memory is bounded: the messages that it has asked the server for and one batch that waits for the caller.

use tokio::sync::{mpsc, watch};
use weft_proto::ids::StreamSeq;

use crate::{connect::Connection, message::Stored, position::Position};

mod consumer;
mod delivery;
mod fault;
mod task;

use task::Task;

/// Options of a reader.
#[derive(Debug, Clone)]
pub struct ReaderOptions {
    /// The stream.
    pub stream: String,
    /// The consumer's name: letters, digits, `-` and `_`. Each new consumer adds a unique suffix, so that readers of
    /// the same name do not disturb each other.
    pub name: String,
    /// The first sequence wanted; 0 and 1 both mean the oldest.
    pub from: StreamSeq,
    /// Only messages of this subject. Filtered readers cost the server much on streams with many subjects.
    pub filter: Option<String>,
    /// The most messages of one [`Batch`].
    pub batch_messages_max: usize,
    /// The caller's position in the stream: its cursor is before `from`. `None`: unknown; the reader then learns the
    /// stream's creation time from its first consumer, and the mark from the messages that it reads.
    pub known: Option<Position>,
    /// While the stream takes no more consumers: read pages by direct get, which takes more requests. Otherwise the reader
    /// waits until there is room.
    pub pages: bool,
}

/// Messages in stream order.
#[derive(Debug, Default)]
pub struct Batch {
    /// At least one.
    pub messages: Vec<Stored>,
    /// How many messages the stream held after the batch's last one when the server sent it: 0 at the stream's end.
    pub pending: u64,
}

/// Why a reader cannot continue. Transient faults (no server, no leader) are not among them: it waits and tries again.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ReadError {
    /// Messages between the reader's position and the stream's first have been dropped before they were read.
    #[error("{stream} starts at {first}, after the position {position}: messages in between are gone")]
    Gone {
        /// The stream.
        stream: String,
        /// The first sequence wanted.
        position: StreamSeq,
        /// The first sequence kept.
        first: StreamSeq,
    },
    /// The stream was made at another time than the one that was read before, or another message stands at the reader's
    /// cursor: it was made again or restored.
    #[error("{stream} is another or a restored stream: the known position is {known}, and the stream has {found}")]
    Another {
        /// The stream.
        stream: String,
        /// The reader's position.
        known: Box<Position>,
        /// The stream's position at the same cursor, or at its end.
        found: Box<Position>,
    },
    /// The stream ends before the reader's position: it is not the stream that was read before. Of a replicated stream it
    /// comes only after [`LAGGING_LEADER_MAX`](crate::position::LAGGING_LEADER_MAX).
    #[error("{stream} ends at {last}, before the position {position}: it is another or a restored stream")]
    Behind {
        /// The stream.
        stream: String,
        /// The first sequence wanted.
        position: StreamSeq,
        /// The stream's last sequence.
        last: StreamSeq,
    },
}

/// Batches that wait for the caller while the next is read.
const BATCHES_AHEAD: usize = 1;

/// Reads one stream. Dropping it ends its consumer.
#[derive(Debug)]
pub struct OrderedReader {
    batches: mpsc::Receiver<Result<Delivered, ReadError>>,
    position: StreamSeq,
    known: Option<Position>,
    losses: watch::Receiver<u64>,
}

/// A batch, and the reader's position after it.
#[derive(Debug)]
struct Delivered {
    batch: Batch,
    known: Option<Position>,
}

impl OrderedReader {
    /// Starts to read. Does not wait for the server.
    pub fn new(connection: Connection, options: ReaderOptions) -> Self {
        let position = StreamSeq(options.from.0.max(1));
        let (sender, batches) = mpsc::channel(BATCHES_AHEAD);
        let (lost, losses) = watch::channel(0);
        let known = options.known.clone();
        // A separate task, so that a caller that drops the future of `next` again and again still gets its messages. It
        // ends with this reader, and its faults come out of `next`.
        tokio::spawn(Task::new(connection, options, position, lost).run(sender));
        Self { batches, position, known, losses }
    }

    /// The next messages, as many as are there, at least one. Waits for as long as there is none, through restarts of the
    /// server. Safe to cancel: nothing is lost when the future is dropped.
    ///
    /// With `filter`, sequences have gaps; without, a gap means messages that the stream has dropped (interior deletes).
    ///
    /// # Errors
    ///
    /// [`ReadError`]: the reader stands at its position and says why it cannot continue; calling again tries again.
    pub async fn next(&mut self) -> Result<Batch, ReadError> {
        match self.batches.recv().await {
            Some(Ok(Delivered { batch, known })) => {
                self.known = known;
                if let Some(last) = batch.messages.last() {
                    self.position = last.seq.next();
                }
                Ok(batch)
            }
            Some(Err(error)) => Err(error),
            // The task ends only with this reader, or with the runtime.
            None => std::future::pending().await,
        }
    }

    /// The next sequence wanted.
    pub fn position(&self) -> StreamSeq {
        self.position
    }

    /// The position after the last message that [`next`](Self::next) returned, or else the one that was given; `None`
    /// while nothing is known of the stream.
    pub fn known(&self) -> Option<&Position> {
        self.known.as_ref()
    }

    /// The number of consumers that this reader has lost. While it does not change, messages come from a consumer that was
    /// made on the verified stream.
    pub fn losses(&self) -> watch::Receiver<u64> {
        self.losses.clone()
    }
}
