//! Messages in a JetStream stream, on the mesh's server or another one.
//!
//! An event is stored once. Its id is the message's, so within the duplicate window of the stream the server recognises a
//! repeat. Where the subject belongs to one workflow, this does not depend on the window: a message is published only after
//! the last message of its subject that is known here (`Nats-Expected-Last-Subject-Sequence`), and what is known is read from
//! the stream before the first publish to a subject and after each answer that is uncertain (`known`).

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use async_trait::async_trait;
use bytes::Bytes;
use tokio::time::{Instant, sleep, timeout_at};
use weft_catalog::subject_template::SubjectTemplate;
use weft_nats::{
    connect::Connection,
    message::Outgoing,
    user_streams::{EXPECTED_STREAM, PublishError, UserStreams},
};
use weft_proto::{
    ids::{Run, SubscriptionUid},
    v1::{self, AttemptClass},
};

use self::{clients::NatsClient, known::KnownSubjects};
use super::{
    Delivery, DeliveryResult, Destination, Failure, FailureKind, InvalidDestination, NotSent, PlannedRequest,
    address::RefusedAddress,
};

pub(super) mod clients;
mod known;
mod message;
mod tls;

pub(super) use clients::NatsClients;

/// Publishes of one attempt: each failed for a message on the subject that another sender stored in between.
const PUBLISHES_MAX: u32 = 8;
/// Wait before a publish is repeated, multiplied by the number of the repeat: the other message is being stored.
const CONFLICT_WAIT: Duration = Duration::from_millis(10);

/// A stream.
#[derive(Debug)]
pub struct NatsDestination {
    subscription: String,
    uid: String,
    subject: SubjectTemplate,
    stream: String,
    link: Link,
    /// `None`: the events of a workflow are published at the same time, or share their subject with other workflows.
    known: Option<KnownSubjects>,
}

/// Where the stream is.
#[derive(Debug)]
enum Link {
    /// On the mesh's server.
    Own(Own),
    Other(Arc<NatsClient>),
}

/// The mesh's server, as this process sees it.
#[derive(Debug)]
enum Own {
    Usable(Box<UserStreams>),
    /// Reason, with the remedy.
    Unusable(String),
}

impl NatsDestination {
    /// The destination of a subscription. `own`: the connection of the process to the mesh's server.
    ///
    /// # Errors
    ///
    /// [`InvalidDestination::Nats`]: a field of it is invalid.
    pub(super) fn new(
        subscription: &v1::Subscription,
        nats: &v1::NatsDestination,
        own: Option<&Connection>,
        clients: &NatsClients,
    ) -> Result<Self, InvalidDestination> {
        let invalid = |problem| InvalidDestination::Nats { problem };
        let subject = SubjectTemplate::parse(&nats.subject).map_err(|problem| invalid(format!("subject {problem}")))?;
        let link = if nats.url.is_empty() {
            Link::Own(own_server(own, &subject, &nats.subject))
        } else {
            Link::Other(clients.get(nats).map_err(invalid)?)
        };
        let is_exact = subject.names_workflow() && weft_catalog::is_ordered(subscription);
        let uid = SubscriptionUid::from_slice(&subscription.uid).ok_or(InvalidDestination::Uid)?;
        Ok(Self {
            subscription: subscription.name.clone(),
            uid: uid.to_string(),
            subject,
            stream: nats.stream.clone(),
            link,
            known: is_exact.then(KnownSubjects::default),
        })
    }

    /// JetStream, connected.
    async fn streams(&self) -> Result<UserStreams, Failure> {
        match &self.link {
            Link::Own(Own::Usable(streams)) => Ok(streams.as_ref().clone()),
            Link::Own(Own::Unusable(problem)) => Err(Failure::held(AttemptClass::Protocol, problem.clone())),
            Link::Other(client) => client.streams().await,
        }
    }

    /// Stores one event. Returns what is shown as the response.
    async fn store(&self, delivery: &Delivery, deadline: Instant) -> Result<Bytes, Failure> {
        let event = &delivery.event.event;
        let subject = self.subject.subject(event).map_err(rejected)?;
        let sent = AtomicBool::new(false);
        let stored = timeout_at(deadline, self.store_at(delivery, &subject, &sent)).await;
        let stored = stored.unwrap_or_else(|_| Err(self.timed_out(delivery.timeout, sent.into_inner())));
        if stored.is_err()
            && let Some(known) = &self.known
        {
            known.forget(&subject);
        }
        stored
    }

    async fn store_at(&self, delivery: &Delivery, subject: &str, sent: &AtomicBool) -> Result<Bytes, Failure> {
        let streams = self.streams().await?;
        let event = &delivery.event.event;
        for publish in 0..PUBLISHES_MAX {
            if publish > 0 {
                sleep(CONFLICT_WAIT * publish).await;
            }
            let last = match &self.known {
                Some(known) => {
                    let reader = known::Reader { streams: &streams, stream: &self.stream, uid: &self.uid };
                    match known.last(&reader, subject, delivery).await.map_err(unread)? {
                        known::Last::At(seq) => Some(seq),
                        known::Last::Stored => return Ok(shown(&self.stream, "stored before")),
                    }
                }
                None => None,
            };
            // After the waits: the next owner may have the shard by now.
            if !delivery.lease.may_attempt() {
                return Err(not_sent());
            }
            let message = Outgoing {
                subject: subject.to_owned(),
                headers: message::headers(delivery, &self.subscription, &self.uid),
                payload: message::payload(event),
            };
            sent.store(true, Ordering::Relaxed);
            match streams.publish(&self.stream, &message, last).await {
                Ok(ack) => {
                    if let Some(known) = &self.known {
                        // A duplicate is not the last message, and a redrive may precede live events that are stored.
                        let is_last = !ack.duplicate && delivery.run == Run::LIVE;
                        if is_last { known.stored(subject, ack.seq) } else { known.forget(subject) }
                    }
                    let how = if ack.duplicate { "duplicate of" } else { "sequence" };
                    return Ok(shown(&self.stream, &format!("{how} {}", ack.seq)));
                }
                Err(PublishError::Conflict) => {
                    if let Some(known) = &self.known {
                        known.forget(subject);
                    }
                }
                Err(error) => return Err(failure(&error)),
            }
        }
        Err(failure(&PublishError::Conflict))
    }

    fn timed_out(&self, timeout: Duration, sent: bool) -> Failure {
        let ms = timeout.as_millis();
        if sent {
            let error = format!(
                "no ack of stream {} within {ms} ms; check that its user may publish to the subject",
                self.stream
            );
            Failure::failed(AttemptClass::Timeout, error)
        } else {
            Failure::unreachable(AttemptClass::Connect, format!("stream {} not reached within {ms} ms", self.stream))
        }
    }
}

/// The mesh's server, if it may be published to.
fn own_server(own: Option<&Connection>, subject: &SubjectTemplate, text: &str) -> Own {
    let Some(connection) = own else {
        return Own::Unusable(
            "only workers may publish to streams on the mesh's own server, and this process is none; a test that does not send shows \
             the message, and an event that the subscription matches is delivered by its worker"
                .into(),
        );
    };
    if !connection.options().publish.iter().any(|pattern| subject.is_within(pattern)) {
        return Own::Unusable(format!(
            "subject {text:?} is not within [nats] publish of this worker's configuration, which names the subjects of the \
             mesh's own server that may be published to"
        ));
    }
    Own::Usable(Box::new(UserStreams::on_own_server(connection)))
}

#[async_trait]
impl Destination for NatsDestination {
    /// One publish after the other: an event is stored only after those before it.
    async fn deliver(&self, deliveries: &[Delivery]) -> DeliveryResult {
        let mut result = DeliveryResult::all(0);
        let Some(first) = deliveries.first() else { return result };
        let deadline = Instant::now() + first.timeout;
        for delivery in deliveries {
            match self.store(delivery, deadline).await {
                Ok(response) => {
                    result.count += 1;
                    result.response = response;
                }
                Err(failure) => {
                    result.failure = Some(failure);
                    result.is_attributed = true;
                    break;
                }
            }
        }
        result
    }

    async fn check(&self) -> Result<(), RefusedAddress> {
        match &self.link {
            Link::Own(_) => Ok(()),
            Link::Other(client) => client.check().await,
        }
    }

    /// The first event as a message: the target is its subject, and the headers are the message's. The server is also
    /// asked to take the subject's expected last sequence, which is not known without a call.
    fn planned(&self, deliveries: &[Delivery]) -> PlannedRequest {
        let Some(first) = deliveries.first() else { return PlannedRequest::default() };
        let event = &first.event.event;
        let message = message::headers(first, &self.subscription, &self.uid);
        let expected = (EXPECTED_STREAM.to_string(), self.stream.clone());
        let headers = message.iter().map(|(name, value)| (name.to_owned(), value.to_owned()));
        PlannedRequest {
            method: "PUB".into(),
            target: self.subject.subject(event).unwrap_or_else(|problem| format!("none: {problem}")),
            headers: headers.chain([expected]).collect(),
            body: message::payload(event),
        }
    }
}

fn shown(stream: &str, what: &str) -> Bytes {
    format!("{stream}: {what}").into()
}

fn rejected(problem: String) -> Failure {
    Failure { kind: FailureKind::Rejected, ..Failure::failed(AttemptClass::Protocol, problem) }
}

fn not_sent() -> Failure {
    Failure { kind: FailureKind::NotSent, ..Failure::failed(AttemptClass::Connect, NotSent.to_string()) }
}

/// The stream cannot be read, so nothing was sent.
fn unread(problem: String) -> Failure {
    unavailable(&format!("the stream cannot be read: {problem}"))
}

fn unavailable(problem: &str) -> Failure {
    Failure { kind: FailureKind::Unavailable, ..Failure::failed(AttemptClass::Protocol, problem) }
}

/// Meaning of a failed publish for the event.
fn failure(error: &PublishError) -> Failure {
    match error {
        // A stream that does not exist, is full or without a leader says nothing about the event, unless others are stored.
        PublishError::Unavailable(_) | PublishError::Full(_) | PublishError::ConnectionLost => {
            unavailable(&error.to_string())
        }
        PublishError::TooLarge(problem) => rejected(problem.clone()),
        PublishError::Conflict | PublishError::Refused(_) | PublishError::Unknown(_) => {
            Failure::failed(AttemptClass::Protocol, error.to_string())
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Guards: only a message that no stream will ever take is given up at once.
    #[test]
    fn what_a_failed_publish_means() {
        for (error, kind) in [
            (PublishError::Unavailable(String::new()), FailureKind::Unavailable),
            (PublishError::Full(String::new()), FailureKind::Unavailable),
            (PublishError::ConnectionLost, FailureKind::Unavailable),
            (PublishError::TooLarge(String::new()), FailureKind::Rejected),
            (PublishError::Conflict, FailureKind::Failed),
            (PublishError::Refused(String::new()), FailureKind::Failed),
            (PublishError::Unknown(String::new()), FailureKind::Failed),
        ] {
            assert_eq!(failure(&error).kind, kind, "{error:?}");
        }
    }
}
