//! Compare-and-append: a writer that has read a stream up to sequence S appends what must stand at S + 1.
//!
//! The first message carries `Nats-Expected-Last-Sequence: S`. If another writer has appended in the meantime, the
//! append fails, so every decision of the writer holds for exactly the log that it was made on. A few messages are
//! published one by one, each expecting the sequence that the last ack returned; more are published as one atomic
//! batch, whose fsync is paid once.
//!
//! Success is only an ack without `duplicate` and with the sequence that was expected. Everything else means: read on to
//! the stream's end, decide again, append again. An uncertain append is no special case: of two copies, a late one and a
//! new one, only the first can be stored, and reading on finds it.
//!
//! `Nats-Expected-Last-Msg-Id` is never sent: on replicated streams a mismatch stops the stream for ever.

use std::{fmt::Display, time::Duration};

use async_nats::{
    HeaderMap,
    client::{Client, PublishError, PublishErrorKind, RequestErrorKind},
};
use bytes::Bytes;
use tokio::time::{Instant, timeout_at};
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

const EXPECTED_LAST_SEQUENCE: &str = "Nats-Expected-Last-Sequence";
const BATCH_ID: &str = "Nats-Batch-Id";
const BATCH_SEQUENCE: &str = "Nats-Batch-Sequence";
const BATCH_COMMIT: &str = "Nats-Batch-Commit";

/// How long an append may take, however many acks it waits for. A slow disk syncs in well under a second; who waits
/// longer than this is better served by a 503 and a repeat.
const APPEND_TIMEOUT: Duration = Duration::from_secs(4);

/// Appends to one stream. One append at a time: `append` takes `&mut self`.
#[derive(Debug)]
pub struct Appender {
    connection: Connection,
    crossover: Crossover,
    batch_ids: String,
    batches: u64,
}

/// Failure of an append.
#[derive(Debug, thiserror::Error)]
#[error("{kind}")]
pub struct AppendError {
    /// How many leading messages are certainly stored, at the sequences that follow the expected one. Of an atomic batch
    /// it is none.
    pub stored: usize,
    /// The error that stopped it.
    pub kind: AppendErrorKind,
}

/// Error that stopped an append; it determines what the writer does next.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum AppendErrorKind {
    /// Another writer was first, or an earlier copy of this append arrived after all (10071, 10164, 10158, 10201, an ack
    /// that says `duplicate`, an ack with another sequence). Read on, decide again.
    #[error("the stream has moved on{}", last.map(|last| format!(" to {last}")).unwrap_or_default())]
    Conflict {
        /// The end that the append was compared with, where the server told it. On a replicated stream it counts appends
        /// that are under way: they cannot be read yet, and they vanish with their leader. So it says how far to read on,
        /// and proves nothing.
        last: Option<StreamSeq>,
    },
    /// It may or may not have been stored (time-out, no answer, connection lost, batch abandoned). Read on to the
    /// stream's end, decide again.
    #[error("no answer from the log: {0}")]
    Unknown(String),
    /// No server, no stream, no leader, or a disk that takes nothing. Not stored, save that a disk which fails midway may
    /// keep a prefix: read on before deciding again.
    #[error("event log unavailable: {0}")]
    Unavailable(String),
    /// EVENTS is at its `max_bytes` (10077 and kin): certainly not stored.
    #[error("the log is full: {0}")]
    Full(String),
    /// The server refuses this append because of its content, such as a message over `max_msg_size`: certainly not
    /// stored. A batch of several is to be repeated one by one, so that one bad message fails no other message.
    #[error("the log refuses it: {0}")]
    Refused(String),
}

impl AppendErrorKind {
    fn after(self, stored: usize) -> AppendError {
        AppendError { stored, kind: self }
    }
}

impl Appender {
    /// Appends to the stream that takes the messages' subjects.
    pub fn new(connection: Connection) -> Self {
        let batch_ids = uuid::Uuid::new_v4().simple().to_string();
        Self { connection, crossover: Crossover::default(), batch_ids, batches: 0 }
    }

    /// Whether this number of messages would be published as a batch now, and not one by one.
    pub fn batches(&self, messages: usize) -> bool {
        self.crossover.prefers_batch(messages)
    }

    /// Appends `messages` behind `expected`, the stream's last sequence as the caller knows it. Returns the stream's new
    /// last sequence: `expected` + the number of messages.
    ///
    /// More than [`BATCH_MESSAGES_MAX`] messages or [`BATCH_BYTES_MAX`] bytes go in several parts, one after the other.
    /// Every prefix of what is appended must be a valid state: a failure may leave one.
    ///
    /// # Errors
    ///
    /// [`AppendError`]: how much is certainly stored, and what to do. It comes within some seconds.
    pub async fn append(&mut self, expected: StreamSeq, messages: &[Outgoing]) -> Result<StreamSeq, AppendError> {
        // While it is disconnected the client queues: the message would arrive when no caller waits for it any more.
        if !self.connection.is_connected() {
            return Err(AppendErrorKind::Unavailable("not connected".into()).after(0));
        }
        let deadline = Instant::now() + APPEND_TIMEOUT;
        let mut last = expected;
        let mut left = messages;
        while !left.is_empty() {
            let (part, rest) = left.split_at(leading_part(left));
            let appended = if self.batches(part.len()) {
                self.append_batch(&mut last, part, deadline).await
            } else {
                self.append_singly(&mut last, part, deadline).await
            };
            appended.map_err(|kind| kind.after((last.0 - expected.0) as usize))?;
            left = rest;
        }
        Ok(last)
    }

    /// Moves `last` with each message that is stored.
    async fn append_singly(
        &mut self,
        last: &mut StreamSeq,
        messages: &[Outgoing],
        deadline: Instant,
    ) -> Result<(), AppendErrorKind> {
        let started = Instant::now();
        for message in messages {
            let headers = message.headers.to_wire(&[(EXPECTED_LAST_SEQUENCE, &last)]);
            let expected = Expected { last: last.next(), batch: None };
            self.commit(message, headers, &expected, deadline).await?;
            *last = expected.last;
        }
        self.crossover.singles_took(messages.len(), started.elapsed());
        Ok(())
    }

    /// Moves `last` when all is stored.
    async fn append_batch(
        &mut self,
        last: &mut StreamSeq,
        messages: &[Outgoing],
        deadline: Instant,
    ) -> Result<(), AppendErrorKind> {
        let Some((closing, leading)) = messages.split_last() else { return Ok(()) };
        let started = Instant::now();
        self.batches += 1;
        let id = format!("{}-{}", self.batch_ids, self.batches);
        let expects = *last;
        let headers_of = |index: usize, message: &Outgoing| {
            let place = index + 1;
            let batch: [(&str, &dyn Display); 4] =
                [(BATCH_COMMIT, &"1"), (BATCH_ID, &id), (BATCH_SEQUENCE, &place), (EXPECTED_LAST_SEQUENCE, &expects)];
            // The last commits the batch, the first says what it stands on.
            let (from, to) = (usize::from(index < leading.len()), if index == 0 { 4 } else { 3 });
            message.headers.to_wire(batch.get(from..to).unwrap_or_default())
        };
        for (index, message) in leading.iter().enumerate() {
            self.stage(message, headers_of(index, message), deadline).await?;
        }
        let headers = headers_of(leading.len(), closing);
        let expected = Expected { last: StreamSeq(last.0 + messages.len() as u64), batch: Some(messages.len()) };
        self.commit(closing, headers, &expected, deadline).await?;
        *last = expected.last;
        self.crossover.batch_took(messages.len(), started.elapsed());
        Ok(())
    }

    /// Sends a message of a batch that a later message will commit. Without a reply subject: the server answers only
    /// the commit. All messages use one connection, so they arrive in order. Until the commit is sent, nothing can have
    /// been stored.
    async fn stage(&self, message: &Outgoing, headers: HeaderMap, deadline: Instant) -> Result<(), AppendErrorKind> {
        let client = self.connection.client();
        let publish = client.publish_with_headers(message.subject.clone(), headers, message.payload.clone());
        // Waits when the client's queue is full, as it is when the server takes nothing.
        let sent = timeout_at(deadline, publish).await.map_err(|_| AppendErrorKind::Unavailable(no_answer()))?;
        sent.map_err(|error: PublishError| match error.kind() {
            PublishErrorKind::MaxPayloadExceeded | PublishErrorKind::InvalidSubject => {
                AppendErrorKind::Refused(error.to_string())
            }
            PublishErrorKind::Send => AppendErrorKind::Unavailable(error.to_string()),
        })
    }

    async fn commit(
        &self,
        message: &Outgoing,
        headers: HeaderMap,
        expected: &Expected,
        deadline: Instant,
    ) -> Result<(), AppendErrorKind> {
        let answer = answer(self.connection.client(), message, headers, deadline).await?;
        ack::check(&answer, expected)
    }
}

/// How many leading messages go as one part: at least one, within the bounds of a batch.
fn leading_part(messages: &[Outgoing]) -> usize {
    let mut bytes = 0usize;
    let within = messages.iter().take(BATCH_MESSAGES_MAX).take_while(|message| {
        bytes = bytes.saturating_add(message.encoded_size());
        bytes <= BATCH_BYTES_MAX
    });
    within.count().clamp(1, messages.len().max(1))
}

/// Sends a publish and waits for its ack.
async fn answer(
    client: &Client,
    message: &Outgoing,
    headers: HeaderMap,
    deadline: Instant,
) -> Result<Bytes, AppendErrorKind> {
    // The deadline bounds the wait for a place in the client's queue, too, which the request's own time-out does not.
    let request = async_nats::Request::new().headers(headers).payload(message.payload.clone()).timeout(None);
    let sent = timeout_at(deadline, client.send_request(message.subject.clone(), request)).await;
    match sent.map_err(|_| AppendErrorKind::Unknown(no_answer()))? {
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

fn no_answer() -> String {
    format!("no answer in {} s", APPEND_TIMEOUT.as_secs())
}

/// Publishes one message without an expected last sequence: for messages on which no decision depends.
///
/// # Errors
///
/// [`AppendErrorKind`], never a conflict.
pub async fn publish(connection: &Connection, message: &Outgoing) -> Result<(), AppendErrorKind> {
    if !connection.is_connected() {
        return Err(AppendErrorKind::Unavailable("not connected".into()));
    }
    let deadline = Instant::now() + APPEND_TIMEOUT;
    let answer = answer(connection.client(), message, message.headers.to_wire(&[]), deadline).await?;
    ack::check_stored(&answer)
}

/// Publishes one message of which the stream must hold none on its subject yet. `Ok(false)`: there was one.
///
/// # Errors
///
/// [`AppendErrorKind`], never a conflict.
pub async fn publish_once(connection: &Connection, message: &Outgoing) -> Result<bool, AppendErrorKind> {
    match publish_after(connection, message, StreamSeq(0)).await {
        Ok(()) => Ok(true),
        Err(AppendErrorKind::Conflict { .. }) => Ok(false),
        Err(kind) => Err(kind),
    }
}

/// Publishes one message of which `last` is the newest that the stream holds on its subject; 0: it holds none.
///
/// # Errors
///
/// [`AppendErrorKind`]; a conflict when the newest is another.
pub async fn publish_after(
    connection: &Connection,
    message: &Outgoing,
    last: StreamSeq,
) -> Result<(), AppendErrorKind> {
    if !connection.is_connected() {
        return Err(AppendErrorKind::Unavailable("not connected".into()));
    }
    let headers = message.headers.to_wire(&[("Nats-Expected-Last-Subject-Sequence", &last)]);
    let deadline = Instant::now() + APPEND_TIMEOUT;
    let answer = answer(connection.client(), message, headers, deadline).await?;
    ack::check_stored(&answer)
}
