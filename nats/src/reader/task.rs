//! The task behind a reader: takes messages from a consumer, and makes a new one from its own position when need be.

use std::time::Duration;

use rand::RngExt as _;
use tokio::sync::mpsc;
use weft_proto::ids::StreamSeq;

use super::{Batch, ReadError, ReaderOptions, consumer::Consumer};
use crate::{connect::Connection, streams};

/// The pauses between two tries to make a consumer: a server that comes back is read from at once, one that does not is
/// left alone.
const PAUSE: (Duration, Duration) = (Duration::from_millis(20), Duration::from_secs(1));
/// So many failures in a row are no hiccup any more: somebody should know.
const FAILURES_QUIET: u32 = 10;
/// How long an orderly end may take. Past that the server forgets the consumer by itself.
const END_PATIENCE: Duration = Duration::from_secs(1);

#[derive(Debug)]
pub(super) struct Task {
    connection: Connection,
    options: ReaderOptions,
    position: StreamSeq,
    consumer: Option<Consumer>,
    /// Faults since the consumer was last heard.
    failures: u32,
}

/// Why a consumer is given up.
#[derive(Debug)]
pub(super) enum Fault {
    /// Try again after a pause.
    Passing(String),
    /// Tell the caller.
    Lasting(ReadError),
}

impl Task {
    pub fn new(connection: Connection, options: ReaderOptions, position: StreamSeq) -> Self {
        Self { connection, options, position, consumer: None, failures: 0 }
    }

    /// Reads until nobody takes the batches any more.
    pub async fn run(mut self, batches: mpsc::Sender<Result<Batch, ReadError>>) {
        tokio::select! {
            () = batches.closed() => {}
            () = self.read(&batches) => {}
        }
        self.connection.note_refusal(&self.options.stream, &self.options.name, None);
        let _ = tokio::time::timeout(END_PATIENCE, self.remove_consumer()).await;
    }

    async fn read(&mut self, batches: &mpsc::Sender<Result<Batch, ReadError>>) {
        loop {
            let result = match self.receive().await {
                Ok(batch) => Ok(batch),
                Err(Fault::Passing(problem)) => {
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
                tokio::time::sleep(PAUSE.1).await;
            }
        }
    }

    async fn recover(&mut self, problem: &str) {
        self.failures = self.failures.saturating_add(1);
        let (stream, position) = (&self.options.stream, self.position.0);
        if self.failures == FAILURES_QUIET {
            tracing::warn!(stream, position, problem, "reader cannot go on");
        } else {
            tracing::debug!(stream, position, problem, "reader starts over");
        }
        self.remove_consumer().await;
        tokio::time::sleep(self.pause()).await;
        self.connection.connected().await;
    }

    async fn remove_consumer(&mut self) {
        if let Some(consumer) = self.consumer.take() {
            consumer.remove(&self.connection, &self.options.stream).await;
        }
    }

    /// A pause that grows with each failure, jittered so that readers do not come all at once.
    fn pause(&self) -> Duration {
        let doubled = PAUSE.0.saturating_mul(1 << self.failures.min(8));
        doubled.min(PAUSE.1).mul_f64(rand::rng().random_range(0.5..=1.0))
    }

    /// Waits for a message and takes what is there with it.
    async fn receive(&mut self) -> Result<Batch, Fault> {
        let Self { connection, options, position, consumer, failures } = self;
        let consumer = match consumer {
            Some(consumer) => consumer,
            None => consumer.insert(make_consumer(connection, options, *position).await?),
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
        if let Some(last) = batch.messages.last() {
            self.position = last.seq.next();
        }
        Ok(batch)
    }
}

/// Makes a consumer that starts at `position`, if the stream has that.
async fn make_consumer(
    connection: &Connection,
    options: &ReaderOptions,
    position: StreamSeq,
) -> Result<Consumer, Fault> {
    let stream = &options.stream;
    if !connection.is_connected() {
        return Err(Fault::Passing("not connected".into()));
    }
    let state = streams::state(connection, stream).await.map_err(|error| Fault::Passing(error.to_string()))?;
    if position > state.last.next() {
        return Err(Fault::Lasting(ReadError::Behind { stream: stream.clone(), position, last: state.last }));
    }
    if position < state.first && position > StreamSeq(1) {
        return Err(Fault::Lasting(ReadError::Gone { stream: stream.clone(), position, first: state.first }));
    }
    Consumer::make(connection, options, position).await
}
