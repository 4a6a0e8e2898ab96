//! A shard: its configuration, its inbox, and the reasons for which a session ends.

use std::path::PathBuf;

use jiff::Timestamp;
use tokio::sync::{mpsc, oneshot, watch};
use tokio_util::sync::CancellationToken;
use weft_index::{
    projection::{Mismatch, Position, StorageError, WriterGone},
    receipts::{Accepted, Horizons, Receipts},
};
use weft_nats::{
    connect::Connection,
    reader::{OrderedReader, ReadError, ReaderOptions},
    subject::Layout,
};
use weft_proto::ids::{EventId, ShardId, StreamSeq};

use super::{
    append_notice::AppendNotice, options::SequencerOptions, overlay::LogMismatch, progress::Progress,
    remote::AppendObserver, submission::Submission,
};

/// Messages of one read.
const READ_MESSAGES_MAX: usize = 500;

/// Configuration and shared state of a shard.
#[derive(Debug)]
pub(super) struct Shard {
    pub id: ShardId,
    pub layout: Layout,
    pub stream: String,
    pub connection: Connection,
    pub options: SequencerOptions,
    pub path: PathBuf,
    pub drain: CancellationToken,
    pub progress: Progress,
    /// The receipts, while they have caught up with the log.
    pub current: watch::Sender<Option<Receipts>>,
    /// Observer of the appends.
    pub observer: Option<Box<dyn AppendObserver>>,
}

/// The input of a shard.
#[derive(Debug)]
pub(super) struct Inbox {
    pub queue: mpsc::Receiver<Submission>,
    pub asks: mpsc::Receiver<Ask>,
    /// Append notices of other gateways.
    pub notices: mpsc::Receiver<AppendNotice>,
}

/// A question to a shard's sequencer.
#[derive(Debug)]
pub(super) enum Ask {
    /// Where does this event stand, beyond the receipts' file?
    Position { id: EventId, answer: oneshot::Sender<Option<Accepted>> },
    /// Which event has this replay key, beyond the receipts' file? And what is stream time?
    Replay { key: EventId, answer: oneshot::Sender<(Option<(EventId, Accepted)>, Timestamp)> },
    /// Answers once everything up to `end` has been read.
    Reach { end: StreamSeq, answer: oneshot::Sender<()> },
}

impl Ask {
    /// True if the caller no longer waits.
    pub fn is_closed(&self) -> bool {
        match self {
            Self::Position { answer, .. } => answer.is_closed(),
            Self::Replay { answer, .. } => answer.is_closed(),
            Self::Reach { answer, .. } => answer.is_closed(),
        }
    }
}

/// Why a session ends before its time.
#[derive(Debug, thiserror::Error)]
pub(super) enum Fault {
    /// The receipts' file was made of another log.
    #[error("the receipts are of another log: {0}")]
    File(Mismatch),
    /// The log is another one than was read or appended to. The file may hold less, and still be of this log.
    #[error("the log is another one: {0}")]
    Log(#[from] Mismatch),
    /// The log is another one than was appended to.
    #[error("{0}")]
    LogMismatch(#[from] LogMismatch),
    /// The log cannot be read on from where the receipts stand.
    #[error("{0}")]
    Read(#[from] ReadError),
    /// The file cannot be read or written.
    #[error("the receipts' file fails: {0}")]
    Storage(#[from] StorageError),
    /// The writer has ended; its own error says why.
    #[error("the receipts are no longer written")]
    Written,
}

impl From<WriterGone> for Fault {
    fn from(_: WriterGone) -> Self {
        Self::Written
    }
}

impl Shard {
    pub fn horizons(&self) -> Horizons {
        self.options.horizons()
    }

    /// Reads the log from `from` on, as long as it is the one in which `known` is a position.
    pub fn reader(&self, from: StreamSeq, known: Position) -> OrderedReader {
        let options = ReaderOptions {
            stream: self.stream.clone(),
            name: format!("receipts-{}", self.id),
            from,
            filter: None,
            batch_messages_max: READ_MESSAGES_MAX,
            known: Some(known),
            pages: true,
        };
        OrderedReader::new(self.connection.clone(), options)
    }
}
