//! Compare-and-append: a writer that has read a stream up to sequence S appends what must stand at S + 1.
//!
//! The first message carries `Nats-Expected-Last-Sequence: S`. Whoever else wrote meanwhile makes the append fail, so
//! every decision of the writer holds for exactly the log that it was made on. A few messages go one by one, each
//! expecting the sequence that the last ack returned; more go as one atomic batch, whose fsync is paid once.
//!
//! Success is only an ack without `duplicate` and with the sequence that was expected. Everything else means: read on to
//! the stream's end, decide again, append again. An uncertain append is no special case: of two copies, a late one and a
//! new one, only the first can be stored, and reading on finds it.
//!
//! `Nats-Expected-Last-Msg-Id` is never sent: on replicated streams a mismatch stops the stream for ever.

use weft_proto::ids::StreamSeq;

use crate::{connect::Connection, message::Outgoing};

/// The most messages of one atomic batch: the server's own limit.
pub const BATCH_MESSAGES_MAX: usize = 1000;
/// The most bytes of one atomic batch, so that its staging stays small and a slow disk answers in time.
pub const BATCH_BYTES_MAX: usize = 8 * 1024 * 1024;

/// Appends to one stream. One append at a time: `append` takes `&mut self`.
#[derive(Debug)]
pub struct Appender {
    connection: Connection,
}

/// How an append ended otherwise than wholly stored.
#[derive(Debug, thiserror::Error)]
#[error("{kind}")]
pub struct AppendError {
    /// How many leading messages are certainly stored, at the sequences that follow the expected one. Never more than 0
    /// for an atomic batch.
    pub stored: usize,
    /// What stopped it.
    pub kind: AppendErrorKind,
}

/// What stopped an append, and so what the writer does next.
#[derive(Debug, thiserror::Error)]
pub enum AppendErrorKind {
    /// Another writer was first, or an earlier copy of this append arrived after all (10071, 10164, 10158, 10201, an ack
    /// that says `duplicate`, an ack with another sequence). Read on, decide again.
    #[error("the stream has moved on{}", last.map(|last| format!(" to {last}")).unwrap_or_default())]
    Conflict {
        /// The stream's end, where the server told it.
        last: Option<StreamSeq>,
    },
    /// It may or may not have been stored (time-out, no answer, connection lost, batch abandoned). Read on to the
    /// stream's end, decide again.
    #[error("no answer from the log: {0}")]
    Unknown(String),
    /// No server, no stream, no leader: certainly not stored.
    #[error("the log is not there: {0}")]
    Unavailable(String),
    /// EVENTS is at its `max_bytes` (10077 and kin): certainly not stored.
    #[error("the log is full: {0}")]
    Full(String),
    /// The server refuses this append for what it holds, such as a message over `max_msg_size`: certainly not stored.
    /// A batch of several is to be repeated one by one, so that one bad message fails nobody else.
    #[error("the log refuses it: {0}")]
    Refused(String),
}

impl Appender {
    /// Appends to whatever stream takes the messages' subjects.
    pub fn new(connection: Connection) -> Self {
        Self { connection }
    }

    /// Appends `messages` behind `expected`, the stream's last sequence as the caller knows it. Returns the stream's new
    /// last sequence: `expected` + the number of messages.
    ///
    /// At most [`BATCH_MESSAGES_MAX`] messages and [`BATCH_BYTES_MAX`] bytes. Every prefix of what is appended must be a
    /// valid state: when it goes one by one, a failure leaves a prefix.
    ///
    /// # Errors
    ///
    /// [`AppendError`]: how much is certainly stored, and what to do.
    pub async fn append(&mut self, expected: StreamSeq, messages: &[Outgoing]) -> Result<StreamSeq, AppendError> {
        let _ = (&self.connection, expected, messages);
        todo!()
    }
}
