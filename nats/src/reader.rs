//! A stream in order from a sequence on, without end.
//!
//! A thin reader over a plain pull consumer (ack none, in memory) that makes its consumer anew from its own position
//! whenever anything is odd: a gap in the consumer's sequence, a missed heartbeat, a consumer that is gone, a server
//! that restarted. The client library's own ordered consumer restarts at the stream's beginning when it is reset before
//! its first message and needs up to a minute to notice that its consumer is gone.
//!
//! The position moves only with what [`OrderedReader::next`] has returned, and a new consumer starts at the position, so
//! a reset can neither skip nor repeat.

use std::time::Duration;

use async_nats::{
    Message, StatusCode, Subscriber,
    jetstream::consumer::{AckPolicy, DeliverPolicy, ReplayPolicy, pull},
};
use futures_util::StreamExt as _;
use rand::RngExt as _;
use tokio::sync::mpsc;
use tokio_util::task::AbortOnDropHandle;
use weft_proto::ids::StreamSeq;

use crate::{connect::Connection, message::Stored, streams};

mod delivery;

use delivery::Delivery;

/// What to read.
#[derive(Debug, Clone)]
pub struct ReaderOptions {
    /// The stream.
    pub stream: String,
    /// The consumer's name: letters, digits, `-` and `_`. Each new consumer adds a number of its own, so that a late
    /// message of an old one is told from the new one's, and readers of the same name do not disturb each other.
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
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
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
        /// The first sequence wanted.
        position: StreamSeq,
        /// The stream's last sequence.
        last: StreamSeq,
    },
}

/// How long the server keeps the consumer of a reader that is gone.
pub const INACTIVE_THRESHOLD: Duration = Duration::from_secs(60);

/// Messages of one pull request. Two requests are always under way, so the server never waits for us.
const PULL_MESSAGES: usize = 2000;
/// Bytes of one pull request: what the reader may hold in memory, twice, whatever the size of the messages.
const PULL_BYTES: usize = 16 * 1024 * 1024;
/// When a pull request ends by itself.
const PULL_EXPIRES: Duration = Duration::from_secs(30);
/// How often the server says that it is there while it has nothing to send.
const HEARTBEAT: Duration = Duration::from_secs(1);
/// Silence for so long means that the consumer is gone: two heartbeats missed.
const SILENCE_MAX: Duration = Duration::from_millis(2_500);
/// The pauses between two tries to make a consumer.
const PAUSE: (Duration, Duration) = (Duration::from_millis(20), Duration::from_secs(1));

/// Batches that wait for the caller while the next is read.
const BATCHES_AHEAD: usize = 1;

/// Reads one stream. Dropping it ends its subscription; the server forgets its consumer by the inactivity threshold.
#[derive(Debug)]
pub struct OrderedReader {
    batches: mpsc::Receiver<Result<Batch, ReadError>>,
    position: StreamSeq,
    /// Reads ahead, so that a caller who drops the future of `next` again and again still gets its consumer made.
    _task: AbortOnDropHandle<()>,
}

#[derive(Debug)]
struct Task {
    connection: Connection,
    options: ReaderOptions,
    position: StreamSeq,
    consumer: Option<Consumer>,
    /// Tries since the last message.
    failures: u32,
}

/// A consumer of ours.
#[derive(Debug)]
struct Consumer {
    name: String,
    inbox: String,
    messages: Subscriber,
    /// Messages and bytes that the requests under way may still bring.
    requested: i64,
    /// The consumer sequence of its last message.
    delivered: u64,
}

/// Why a consumer is given up.
#[derive(Debug)]
enum Fault {
    /// Try again after a pause.
    Passing(String),
    /// Tell the caller.
    Lasting(ReadError),
}

impl OrderedReader {
    /// Starts to read. Does not wait for the server.
    pub fn new(connection: Connection, options: ReaderOptions) -> Self {
        let position = StreamSeq(options.from.0.max(1));
        let (sender, batches) = mpsc::channel(BATCHES_AHEAD);
        let task = Task { connection, options, position, consumer: None, failures: 0 };
        // Ends with this reader; its faults come out of `next`.
        let task = AbortOnDropHandle::new(tokio::spawn(task.run(sender)));
        Self { batches, position, _task: task }
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
        match self.batches.recv().await {
            Some(Ok(batch)) => {
                if let Some(last) = batch.messages.last() {
                    self.position = last.seq.next();
                }
                Ok(batch)
            }
            Some(Err(error)) => Err(error),
            // The task ends only with this reader.
            None => std::future::pending().await,
        }
    }

    /// The next sequence wanted.
    pub fn position(&self) -> StreamSeq {
        self.position
    }
}

impl Task {
    async fn run(mut self, batches: mpsc::Sender<Result<Batch, ReadError>>) {
        loop {
            let result = match self.receive().await {
                Ok(batch) => {
                    self.failures = 0;
                    Ok(batch)
                }
                Err(fault) => {
                    self.consumer = None;
                    self.failures = self.failures.saturating_add(1);
                    match fault {
                        Fault::Lasting(error) => Err(error),
                        Fault::Passing(problem) => {
                            let (stream, position) = (&self.options.stream, self.position.0);
                            tracing::debug!(stream, position, problem, "reader starts over");
                            tokio::time::sleep(self.pause()).await;
                            self.connection.connected().await;
                            continue;
                        }
                    }
                }
            };
            let failed = result.is_err();
            if batches.send(result).await.is_err() {
                return;
            }
            if failed {
                tokio::time::sleep(PAUSE.1).await;
            }
        }
    }

    /// A pause that grows with each failure, jittered so that readers do not come all at once.
    fn pause(&self) -> Duration {
        let doubled = PAUSE.0.saturating_mul(1 << self.failures.min(8));
        doubled.min(PAUSE.1).mul_f64(rand::rng().random_range(0.5..=1.0))
    }

    async fn receive(&mut self) -> Result<Batch, Fault> {
        if self.consumer.is_none() {
            self.consumer = Some(self.make_consumer().await?);
        }
        let consumer = self.consumer.as_mut().ok_or_else(|| Fault::Passing("no consumer".into()))?;
        consumer.request(&self.connection, &self.options.stream).await?;
        let mut batch = Batch::default();
        loop {
            let wait = tokio::time::timeout(SILENCE_MAX, consumer.messages.next());
            let message = wait
                .await
                .map_err(|_| Fault::Passing("silence: missed its heartbeats".into()))?
                .ok_or_else(|| Fault::Passing("subscription closed".into()))?;
            if consumer.take(message, self.position, &mut batch)? {
                break;
            }
            // A heartbeat, or the end of a request.
            consumer.request(&self.connection, &self.options.stream).await?;
        }
        // From here on nothing waits, so that a dropped future loses nothing: what is there comes along.
        while batch.messages.len() < self.options.batch_messages_max.max(1) {
            let Some(Some(message)) = futures_util::FutureExt::now_or_never(consumer.messages.next()) else { break };
            let from = batch.messages.last().map_or(self.position, |last| last.seq.next());
            if let Err(fault) = consumer.take(message, from, &mut batch) {
                // What came before the fault counts; the consumer does not.
                tracing::debug!(?fault, "reader starts over after this batch");
                self.consumer = None;
                break;
            }
        }
        if let Some(last) = batch.messages.last() {
            self.position = last.seq.next();
        }
        Ok(batch)
    }

    async fn make_consumer(&self) -> Result<Consumer, Fault> {
        let passing = |error: &dyn std::fmt::Display| Fault::Passing(error.to_string());
        let stream = &self.options.stream;
        if !self.connection.is_connected() {
            return Err(Fault::Passing("not connected".into()));
        }
        let state = streams::state(&self.connection, stream).await.map_err(|error| passing(&error))?;
        if self.position > state.last.next() {
            let (position, last) = (self.position, state.last);
            return Err(Fault::Lasting(ReadError::Behind { stream: stream.clone(), position, last }));
        }
        if self.position < state.first && self.position > StreamSeq(1) {
            let (position, first) = (self.position, state.first);
            return Err(Fault::Lasting(ReadError::Gone { stream: stream.clone(), position, first }));
        }
        let name = format!("{}-{}", self.options.name, uuid::Uuid::new_v4().simple());
        let config = pull::Config {
            name: Some(name.clone()),
            deliver_policy: DeliverPolicy::ByStartSequence { start_sequence: self.position.0 },
            ack_policy: AckPolicy::None,
            replay_policy: ReplayPolicy::Instant,
            filter_subject: self.options.filter.clone().unwrap_or_default(),
            inactive_threshold: INACTIVE_THRESHOLD,
            num_replicas: 1,
            memory_storage: true,
            ..pull::Config::default()
        };
        let client = self.connection.client();
        let inbox = client.new_inbox();
        let messages = client.subscribe(inbox.clone()).await.map_err(|error| passing(&error))?;
        self.connection.jetstream().create_consumer_on_stream(config, stream).await.map_err(|error| passing(&error))?;
        Ok(Consumer { name, inbox, messages, requested: 0, delivered: 0 })
    }
}

impl Consumer {
    /// Keeps two requests' worth of messages asked for.
    async fn request(&mut self, connection: &Connection, stream: &str) -> Result<(), Fault> {
        while self.requested <= PULL_MESSAGES as i64 {
            let pull = serde_json::json!({
                "batch": PULL_MESSAGES,
                "max_bytes": PULL_BYTES,
                "expires": PULL_EXPIRES.as_nanos() as u64,
                "idle_heartbeat": HEARTBEAT.as_nanos() as u64,
            });
            let subject = format!("$JS.API.CONSUMER.MSG.NEXT.{stream}.{}", self.name);
            let publish = connection.client().publish_with_reply(subject, self.inbox.clone(), pull.to_string().into());
            publish.await.map_err(|error| Fault::Passing(error.to_string()))?;
            self.requested += PULL_MESSAGES as i64;
        }
        Ok(())
    }

    /// Takes what came on the inbox: `true` when it was a message and is in `batch` now.
    fn take(&mut self, message: Message, position: StreamSeq, batch: &mut Batch) -> Result<bool, Fault> {
        if let Some(status) = message.status {
            return self.take_status(status, &message).map(|()| false);
        }
        let reply = message.reply.as_deref().unwrap_or_default();
        let delivery =
            Delivery::parse(reply).ok_or_else(|| Fault::Passing(format!("no delivery subject: {reply:?}")))?;
        if delivery.consumer_seq != self.delivered + 1 || delivery.stream_seq < position {
            return Err(Fault::Passing(format!("a gap behind delivery {}", self.delivered)));
        }
        self.delivered += 1;
        self.requested -= 1;
        batch.pending = delivery.pending;
        batch.messages.push(Stored {
            seq: delivery.stream_seq,
            stored_at: delivery.stored_at,
            subject: message.subject.to_string(),
            headers: message.headers.unwrap_or_default(),
            payload: message.payload,
        });
        Ok(true)
    }

    fn take_status(&mut self, status: StatusCode, message: &Message) -> Result<(), Fault> {
        match status.as_u16() {
            // Heartbeat.
            100 => Ok(()),
            // A request has ended: by its time (404, 408), or by its bytes (409, which may not mean the consumer's end).
            404 | 408 | 409 => {
                let text = message.description.as_deref().unwrap_or_default();
                let ended = ["Consumer Deleted", "Consumer is push based", "Server Shutdown", "Leadership Change"];
                if ended.iter().any(|end| text.contains(end)) {
                    return Err(Fault::Passing(text.to_owned()));
                }
                let left = message.headers.as_ref().and_then(|headers| headers.get("Nats-Pending-Messages"));
                let left = left.and_then(|left| left.as_str().parse::<i64>().ok()).unwrap_or(PULL_MESSAGES as i64);
                self.requested -= left;
                Ok(())
            }
            code => Err(Fault::Passing(format!("status {code}"))),
        }
    }
}
