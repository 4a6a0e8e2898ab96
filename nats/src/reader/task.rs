//! The task behind a reader: takes messages from a consumer, and makes a new one from its own position when need be.

use std::time::Duration;

use rand::RngExt as _;
use tokio::{
    sync::{mpsc, watch},
    time::Instant,
};
use weft_proto::ids::StreamSeq;

use super::{Batch, Delivered, ReadError, ReaderOptions, consumer::Consumer, fault::Fault};
use crate::{
    backoff::Backoff,
    connect::Connection,
    direct,
    position::{self, Mark, Mismatch, Position, PositionCheck},
    streams::{self, StreamState},
};

/// The pauses between two tries to make a consumer: a server that comes back is read from at once, one that does not is
/// left alone.
const RETRY: Backoff = Backoff::new(Duration::from_millis(40), Duration::from_secs(1));
/// How often the stream's end is looked at while pages are read, and for how long until a consumer is tried again.
const PAGE: (Duration, Duration) = (Duration::from_millis(50), Duration::from_secs(1));
/// About what one page may hold.
const PAGE_BYTES: usize = 8 * 1024 * 1024;
/// This number of failures in a row is not a short disturbance any more: it is logged as a warning.
const FAILURES_QUIET: u32 = 10;
/// How long an orderly end may take. Past that the server deletes the consumer when it is inactive.
const END_PATIENCE: Duration = Duration::from_secs(1);

#[derive(Debug)]
pub(super) struct Task {
    connection: Connection,
    options: ReaderOptions,
    position: StreamSeq,
    /// Properties that distinguish the stream from another one. Its cursor is before `position`.
    known: Option<Position>,
    consumer: Option<Consumer>,
    /// Counts the consumers that were given up.
    losses: watch::Sender<u64>,
    /// Faults since the consumer was last heard.
    failures: u32,
}

impl Task {
    pub fn new(
        connection: Connection,
        options: ReaderOptions,
        position: StreamSeq,
        losses: watch::Sender<u64>,
    ) -> Self {
        let known = options.known.clone();
        Self { connection, options, position, known, consumer: None, losses, failures: 0 }
    }

    /// Reads until the receiver of the batches is dropped.
    pub async fn run(mut self, batches: mpsc::Sender<Result<Delivered, ReadError>>) {
        tokio::select! {
            () = batches.closed() => {}
            () = self.read(&batches) => {}
        }
        let ReaderOptions { stream, name, pages, .. } = &self.options;
        self.connection.note_refusal((stream, name), *pages, None);
        let _ = tokio::time::timeout(END_PATIENCE, self.remove_consumer()).await;
    }

    async fn read(&mut self, batches: &mpsc::Sender<Result<Delivered, ReadError>>) {
        loop {
            let result = match self.receive().await {
                Ok(batch) => Ok(Delivered { batch, known: self.known.clone() }),
                Err(Fault::Passing(problem) | Fault::Refused(problem)) => {
                    self.recover(&problem).await;
                    continue;
                }
                Err(Fault::Lasting(error)) => Err(error),
            };
            let failed = result.is_err();
            if batches.send(result).await.is_err() {
                return;
            }
            if failed {
                self.remove_consumer().await;
                tokio::time::sleep(RETRY.max()).await;
            }
        }
    }

    async fn recover(&mut self, problem: &str) {
        self.failures = self.failures.saturating_add(1);
        let (stream, position) = (&self.options.stream, self.position.0);
        if self.failures == FAILURES_QUIET {
            tracing::warn!(stream, position, problem, "reader cannot continue");
        } else {
            tracing::debug!(stream, position, problem, "reader starts over");
        }
        self.remove_consumer().await;
        tokio::time::sleep(self.pause()).await;
        self.connection.connected().await;
    }

    async fn remove_consumer(&mut self) {
        if let Some(consumer) = self.consumer.take() {
            self.losses.send_modify(|losses| *losses += 1);
            consumer.remove(&self.connection, &self.options.stream).await;
        }
    }

    /// A pause that grows with each failure, jittered so that readers do not come all at once.
    fn pause(&self) -> Duration {
        RETRY.after(self.failures).mul_f64(rand::rng().random_range(0.5..=1.0))
    }

    /// Waits for a message and takes what is there with it.
    async fn receive(&mut self) -> Result<Batch, Fault> {
        while self.consumer.is_none() {
            let end = self.verify().await?;
            match Consumer::make(&self.connection, &self.options, self.position).await {
                Ok(consumer) => self.consumer = Some(consumer),
                Err(Fault::Refused(_)) if self.options.pages => {
                    if let Some(batch) = self.page(end).await? {
                        return Ok(batch);
                    }
                }
                Err(fault) => return Err(fault),
            }
        }
        let Self { connection, options, position, consumer: Some(consumer), failures, .. } = self else {
            return Err(Fault::Passing("no consumer".into()));
        };
        let mut batch = Batch::default();
        {
            let mut ended = std::pin::pin!(connection.ended(consumer.epoch));
            loop {
                consumer.request(connection, &options.stream).await?;
                let message = tokio::select! {
                    // What has come is taken, also when the connection has ended meanwhile.
                    biased;
                    message = consumer.message() => message?,
                    () = &mut ended => return Err(Fault::Passing("the connection has ended".into())),
                };
                *failures = 0;
                if consumer.take(message, *position, &mut batch)? {
                    break;
                }
            }
        }
        if let Err(fault) = consumer.take_waiting(options.batch_messages_max, &mut batch) {
            // What came before the fault counts; the consumer does not.
            tracing::debug!(?fault, "reader starts over after this batch");
            self.remove_consumer().await;
        }
        self.advance(&batch);
        Ok(batch)
    }

    fn advance(&mut self, batch: &Batch) {
        if let Some(last) = batch.messages.last() {
            self.position = last.seq.next();
            if let Some(known) = &mut self.known {
                known.advance(last);
            }
        }
    }

    /// Reads a page by direct get: as right as a consumer's first messages, since the position has just been compared.
    /// Unlike messages of the same consumer, the next page gives no guarantee of continuity, so each page counts as a
    /// consumer that is lost. `None`: nothing has come for a while.
    async fn page(&mut self, end: StreamSeq) -> Result<Option<Batch>, Fault> {
        let until = Instant::now() + PAGE.1;
        let Self { connection, options, position, .. } = self;
        let subject = options.filter.as_deref().unwrap_or(">");
        loop {
            let (messages_max, stream) = (options.batch_messages_max, &options.stream);
            let page = direct::range(connection, stream, *position, subject, messages_max, PAGE_BYTES).await;
            let messages = page.map_err(|error| Fault::Passing(error.to_string()))?;
            if let Some(last) = messages.last() {
                let batch = Batch { pending: end.0.saturating_sub(last.seq.0), messages };
                self.failures = 0;
                self.losses.send_modify(|losses| *losses += 1);
                self.advance(&batch);
                return Ok(Some(batch));
            }
            if Instant::now() >= until {
                return Ok(None);
            }
            tokio::time::sleep(PAGE.0).await;
        }
    }

    /// Compares the position with the stream: one question for its state, and one direct get for the message at the
    /// cursor, where that is known. The stream's end.
    async fn verify(&mut self) -> Result<StreamSeq, Fault> {
        let Self { connection, options: ReaderOptions { stream, .. }, position, known, .. } = self;
        if !connection.is_connected() {
            return Err(Fault::Passing("not connected".into()));
        }
        let passing = |error: streams::EnsureError| Fault::Passing(error.to_string());
        let through = StreamSeq(position.0 - 1);
        let expected = match &*known {
            Some(known) => known.clone(),
            None => {
                let state = streams::state(connection, stream).await.map_err(passing)?;
                Position { created: state.created, cursor: through, mark: None }
            }
        };
        let verified = position::verify_reaching(connection, stream, &expected, through).await;
        let (state, check, at_cursor) = verified.map_err(passing)?;
        if let PositionCheck::Rebuild(mismatch) = check {
            let error = another(stream, *position, expected, mismatch, state, at_cursor);
            return Err(Fault::Lasting(error));
        }
        *known = Some(expected);
        if *position < state.first && *position > StreamSeq(1) {
            let error = ReadError::Gone { stream: stream.clone(), position: *position, first: state.first };
            return Err(Fault::Lasting(error));
        }
        Ok(state.last)
    }
}

/// The error of a position that is not one in this stream.
fn another(
    stream: &str,
    position: StreamSeq,
    known: Position,
    mismatch: Mismatch,
    state: StreamState,
    at_cursor: Option<Mark>,
) -> ReadError {
    let stream = stream.to_owned();
    match mismatch {
        Mismatch::Behind { last, .. } => ReadError::Behind { stream, position, last },
        Mismatch::Created { .. } | Mismatch::Message { .. } => {
            let found = Position { created: state.created, cursor: known.cursor.min(state.last), mark: at_cursor };
            ReadError::Another { stream, known: Box::new(known), found: Box::new(found) }
        }
    }
}
