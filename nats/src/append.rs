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

use std::time::{Duration, Instant};

use async_nats::{
    HeaderMap, HeaderValue,
    client::{Client, RequestErrorKind},
};
use bytes::Bytes;
use weft_proto::ids::StreamSeq;

use crate::{connect::Connection, message::Outgoing};

mod ack;
mod crossover;

use ack::Expected;
use crossover::Crossover;

/// The most messages of one atomic batch: the server's own limit.
pub const BATCH_MESSAGES_MAX: usize = 1000;
/// The most bytes of one atomic batch, so that its staging stays small and a slow disk answers in time.
pub const BATCH_BYTES_MAX: usize = 8 * 1024 * 1024;

/// How long the server may take for an ack. A slow disk syncs in well under a second; who waits longer than this is
/// better served by a 503 and a repeat.
const ACK_TIMEOUT: Duration = Duration::from_secs(4);

/// Appends to one stream. One append at a time: `append` takes `&mut self`.
#[derive(Debug)]
pub struct Appender {
    connection: Connection,
    crossover: Crossover,
    batch_ids: String,
    batches: u64,
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
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
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

impl AppendErrorKind {
    fn after(self, stored: usize) -> AppendError {
        AppendError { stored, kind: self }
    }
}

impl Appender {
    /// Appends to whatever stream takes the messages' subjects.
    pub fn new(connection: Connection) -> Self {
        let batch_ids = uuid::Uuid::new_v4().simple().to_string();
        Self { connection, crossover: Crossover::default(), batch_ids, batches: 0 }
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
        if messages.is_empty() {
            return Ok(expected);
        }
        // While it is disconnected the client queues: the message would arrive when nobody waits for it any more.
        if !self.connection.is_connected() {
            return Err(AppendErrorKind::Unavailable("not connected".into()).after(0));
        }
        if messages.len() > BATCH_MESSAGES_MAX {
            let text = format!("{} messages at once; at most {BATCH_MESSAGES_MAX}", messages.len());
            return Err(AppendErrorKind::Refused(text).after(0));
        }
        if self.crossover.prefers_batch(messages.len()) {
            self.append_batch(expected, messages).await.map_err(|kind| kind.after(0))
        } else {
            self.append_singly(expected, messages).await
        }
    }

    async fn append_singly(&mut self, expected: StreamSeq, messages: &[Outgoing]) -> Result<StreamSeq, AppendError> {
        let started = Instant::now();
        let mut last = expected;
        for (stored, message) in messages.iter().enumerate() {
            let mut headers = message.headers.clone();
            headers.insert("Nats-Expected-Last-Sequence", HeaderValue::from(last.0));
            let expected = Expected { last: last.next(), batch: None };
            self.request(message, headers, &expected).await.map_err(|kind| kind.after(stored))?;
            last = last.next();
        }
        self.crossover.singles_took(messages.len(), started.elapsed());
        Ok(last)
    }

    async fn append_batch(&mut self, expected: StreamSeq, messages: &[Outgoing]) -> Result<StreamSeq, AppendErrorKind> {
        let started = Instant::now();
        self.batches += 1;
        let id = format!("{}-{}", self.batch_ids, self.batches);
        let last_index = messages.len() - 1;
        for (index, message) in messages.iter().enumerate() {
            let mut headers = message.headers.clone();
            headers.insert("Nats-Batch-Id", id.as_str());
            headers.insert("Nats-Batch-Sequence", HeaderValue::from(index as u64 + 1));
            if index == 0 {
                headers.insert("Nats-Expected-Last-Sequence", HeaderValue::from(expected.0));
            }
            if index < last_index {
                // No reply subject: the server answers only the commit. All go on one connection, so in order.
                let client = self.connection.client();
                client
                    .publish_with_headers(message.subject.clone(), headers, message.payload.clone())
                    .await
                    .map_err(|error| AppendErrorKind::Unknown(error.to_string()))?;
            } else {
                headers.insert("Nats-Batch-Commit", "1");
                let end = StreamSeq(expected.0 + messages.len() as u64);
                self.request(message, headers, &Expected { last: end, batch: Some(messages.len()) }).await?;
            }
        }
        self.crossover.batch_took(messages.len(), started.elapsed());
        Ok(StreamSeq(expected.0 + messages.len() as u64))
    }

    async fn request(
        &self,
        message: &Outgoing,
        headers: HeaderMap,
        expected: &Expected,
    ) -> Result<(), AppendErrorKind> {
        let answer = answer(self.connection.client(), &message.subject, headers, message.payload.clone()).await?;
        ack::check(&answer, expected)
    }
}

/// Sends a publish and waits for its ack.
async fn answer(client: &Client, subject: &str, headers: HeaderMap, payload: Bytes) -> Result<Bytes, AppendErrorKind> {
    let request = async_nats::Request::new().headers(headers).payload(payload).timeout(Some(ACK_TIMEOUT));
    match client.send_request(subject.to_owned(), request).await {
        Ok(message) => Ok(message.payload),
        Err(error) => Err(match error.kind() {
            RequestErrorKind::NoResponders => AppendErrorKind::Unavailable("no stream takes it, or no leader".into()),
            RequestErrorKind::InvalidSubject | RequestErrorKind::MaxPayloadExceeded => {
                AppendErrorKind::Refused(error.to_string())
            }
            _ => AppendErrorKind::Unknown(error.to_string()),
        }),
    }
}

/// Publishes one message of which the stream must hold none on its subject yet. `Ok(false)`: there was one.
///
/// # Errors
///
/// [`AppendErrorKind`], never a conflict.
pub async fn publish_once(connection: &Connection, message: &Outgoing) -> Result<bool, AppendErrorKind> {
    if !connection.is_connected() {
        return Err(AppendErrorKind::Unavailable("not connected".into()));
    }
    let mut headers = message.headers.clone();
    headers.insert("Nats-Expected-Last-Subject-Sequence", "0");
    let answer = answer(connection.client(), &message.subject, headers, message.payload.clone()).await?;
    match ack::check_stored(&answer) {
        Ok(()) => Ok(true),
        Err(AppendErrorKind::Conflict { .. }) => Ok(false),
        Err(kind) => Err(kind),
    }
}
