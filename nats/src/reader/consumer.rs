//! One pull consumer: asked for messages ahead of need, and trusted only as long as nothing about it is odd.

use std::{fmt::Display, time::Duration};

use async_nats::{
    Message, StatusCode, Subscriber,
    jetstream::{
        ErrorCode,
        consumer::{AckPolicy, DeliverPolicy, ReplayPolicy, pull},
        stream::{ConsumerError, ConsumerErrorKind},
    },
};
use futures_util::{FutureExt as _, StreamExt as _};
use weft_proto::ids::StreamSeq;

use super::{Batch, ReaderOptions, delivery::Delivery, fault::Fault};
use crate::{
    connect::{Connection, Epoch},
    message::Stored,
};

/// How long the server keeps a consumer without pull requests: longer than a request lasts, and short, for the
/// consumers of readers that were killed.
const INACTIVE_THRESHOLD: Duration = Duration::from_secs(60);
/// Messages of one pull request. A second one is sent before the first is used up, so the server never waits for us.
const PULL_MESSAGES: usize = 2000;
/// Bytes of one pull request: what the reader may hold in memory, twice, regardless of the size of the messages.
const PULL_BYTES: usize = 16 * 1024 * 1024;
/// Time after which a pull request expires.
const PULL_EXPIRES: Duration = Duration::from_secs(30);
/// How often the server says that it is there while it has nothing to send.
const HEARTBEAT: Duration = Duration::from_secs(1);
/// Silence for so long means that the consumer is gone: two heartbeats missed.
const SILENCE_MAX: Duration = Duration::from_millis(2_500);

/// Whether the stream or the account has as many consumers as it may have.
fn is_refused(error: &ConsumerError) -> bool {
    matches!(error.kind(), ConsumerErrorKind::JetStream(error) if error.error_code() == ErrorCode::MAXIMUM_CONSUMERS_LIMIT)
}

#[derive(Debug)]
pub(super) struct Consumer {
    /// The connection that it was made on: it is in memory, so another may lead to a server that does not know it.
    pub epoch: Epoch,
    name: String,
    inbox: String,
    messages: Subscriber,
    /// Messages that the requests under way may still bring.
    requested: i64,
    /// The consumer sequence of its last message.
    delivered: u64,
}

impl Consumer {
    pub async fn make(connection: &Connection, options: &ReaderOptions, from: StreamSeq) -> Result<Self, Fault> {
        let passing = |error: &dyn Display| Fault::Passing(error.to_string());
        let epoch = connection.epoch();
        let name = format!("{}-{}", options.name, uuid::Uuid::new_v4().simple());
        let config = pull::Config {
            name: Some(name.clone()),
            deliver_policy: DeliverPolicy::ByStartSequence { start_sequence: from.0 },
            ack_policy: AckPolicy::None,
            replay_policy: ReplayPolicy::Instant,
            filter_subject: options.filter.clone().unwrap_or_default(),
            inactive_threshold: INACTIVE_THRESHOLD,
            num_replicas: 1,
            memory_storage: true,
            ..pull::Config::default()
        };
        let client = connection.client();
        let inbox = client.new_inbox();
        let messages = client.subscribe(inbox.clone()).await.map_err(|error| passing(&error))?;
        let created = connection.jetstream().create_consumer_on_stream(config, &options.stream).await;
        let refused = created.as_ref().err().filter(|error| is_refused(error)).map(ToString::to_string);
        connection.note_refusal((&options.stream, &options.name), options.pages, refused.clone());
        if let Some(problem) = refused {
            return Err(Fault::Refused(problem));
        }
        created.map_err(|error| passing(&error))?;
        Ok(Self { epoch, name, inbox, messages, requested: 0, delivered: 0 })
    }

    /// Keeps more messages asked for than one request brings.
    pub async fn request(&mut self, connection: &Connection, stream: &str) -> Result<(), Fault> {
        while self.requested <= PULL_MESSAGES as i64 {
            let pull = serde_json::json!({
                "batch": PULL_MESSAGES,
                "max_bytes": PULL_BYTES,
                "expires": PULL_EXPIRES.as_nanos() as u64,
                "idle_heartbeat": HEARTBEAT.as_nanos() as u64,
            });
            let subject = connection.api_subject(format_args!("CONSUMER.MSG.NEXT.{stream}.{}", self.name));
            let publish = connection.client().publish_with_reply(subject, self.inbox.clone(), pull.to_string().into());
            publish.await.map_err(|error| Fault::Passing(error.to_string()))?;
            self.requested += PULL_MESSAGES as i64;
        }
        Ok(())
    }

    /// Waits for what comes on the inbox. Safe to cancel.
    pub async fn message(&mut self) -> Result<Message, Fault> {
        let message = tokio::time::timeout(SILENCE_MAX, self.messages.next()).await;
        message
            .map_err(|_| Fault::Passing("silence: missed its heartbeats".into()))?
            .ok_or_else(|| Fault::Passing("subscription closed".into()))
    }

    /// Takes what came on the inbox, as long as it is what must come next, at `position` or later: `true` when it was a
    /// message and is in `batch` now.
    pub fn take(&mut self, message: Message, position: StreamSeq, batch: &mut Batch) -> Result<bool, Fault> {
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

    /// Takes what has come already, after the end of `batch`, until that holds `messages_max`.
    pub fn take_waiting(&mut self, messages_max: usize, batch: &mut Batch) -> Result<(), Fault> {
        while batch.messages.len() < messages_max
            && let Some(last) = batch.messages.last()
            && let Some(Some(message)) = self.messages.next().now_or_never()
        {
            self.take(message, last.seq.next(), batch)?;
        }
        Ok(())
    }

    fn take_status(&mut self, status: StatusCode, message: &Message) -> Result<(), Fault> {
        let text = message.description.as_deref().unwrap_or_default();
        match status.as_u16() {
            // Heartbeat.
            100 => Ok(()),
            // A request has ended, by its time or by its bytes.
            408 => self.request_ended(message),
            409 if text.contains("MaxBytes") || text.contains("Batch Completed") => self.request_ended(message),
            // The consumer is gone or has moved, or the server does not take such requests.
            code => Err(Fault::Passing(format!("status {code} {text}"))),
        }
    }

    fn request_ended(&mut self, message: &Message) -> Result<(), Fault> {
        let left = message.headers.as_ref().and_then(|headers| headers.get("Nats-Pending-Messages"));
        let left = left.and_then(|left| left.as_str().parse::<i64>().ok());
        self.requested -= left.ok_or_else(|| Fault::Passing("a request ended without saying how".into()))?;
        Ok(())
    }

    /// Deletes the consumer on the server, if the server may know it. Best effort: the server also deletes it when it
    /// is inactive.
    pub async fn remove(self, connection: &Connection, stream: &str) {
        if connection.is_connected() && connection.epoch() == self.epoch {
            let subject = connection.api_subject(format_args!("CONSUMER.DELETE.{stream}.{}", self.name));
            // The answer goes to an inbox without a subscription.
            let publish = connection.client().publish_with_reply(subject, self.inbox, bytes::Bytes::new());
            if let Err(error) = publish.await {
                tracing::debug!(stream, name = self.name, %error, "consumer not removed");
            }
        }
    }
}
