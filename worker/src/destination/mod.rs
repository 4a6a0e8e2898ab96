//! Where events go.
//!
//! A [`Destination`] takes events of one lane, in order, and says how many of them, counted from the first, it has taken,
//! and why it did not take the next. [`Destinations`] holds the one of each subscription and makes single deliveries of
//! it: HTTP, or code of the program that embeds the worker.

use std::{
    collections::HashMap,
    sync::{Arc, PoisonError, RwLock},
    time::{Duration, Instant},
};

use async_trait::async_trait;
use bytes::Bytes;
use ipnet::IpNet;
use jiff::Timestamp;
use weft_nats::{catalog::delivery_url::InvalidUrl, clock::ServerClock, event::StoredEvent};
use weft_proto::{
    ids::{EventId, Run, SubscriptionUid},
    v1::{self, AttemptClass},
};

use self::{address::RefusedAddress, clients::HttpClients, signature::InvalidSecret};
use crate::{
    lane::{AttemptEnd, AttemptResult},
    ownership::LeaseGuard,
};

pub mod address;
mod body;
pub mod clients;
mod connection;
mod failure;
pub mod http;
mod lookups;
pub mod resolver;
mod response;
pub mod retry_after;
pub mod signature;
#[cfg(test)]
mod tests;

/// One attempt to deliver an event.
#[derive(Debug, Clone)]
pub struct Delivery {
    /// The event.
    pub event: Arc<StoredEvent>,
    /// Whose.
    pub uid: SubscriptionUid,
    /// Live, or a redrive or replay.
    pub run: Run,
    /// Number of this attempt in its run, from 1.
    pub number: u32,
    /// The event that the lane delivered before; `None`: none, or not known to matter.
    pub lane_previous: Option<EventId>,
    /// The shard's owner: grows with each.
    pub epoch: u64,
    /// How long it may take, connecting and reading the answer included.
    pub timeout: Duration,
    /// The time that it is signed with: receivers refuse signatures that are some minutes off, and the local wall clock may
    /// be.
    pub clock: ServerClock,
    /// The owner's: once it may start no attempt, nothing of this is sent. Asked again where something was waited for.
    pub lease: LeaseGuard,
}

/// What a failure means for the event and for the receiver's other events.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FailureKind {
    /// No connection came about, so nothing was sent: the same holds for every event. Attempted again; uses up no retry.
    Unreachable,
    /// The receiver, or what stands before it, answered that it is unavailable. Attempted again.
    Unavailable,
    /// This attempt failed, such as by a time-out or a status that may be the event's fault. Attempted again.
    Failed,
    /// The receiver never takes this event: a dead letter.
    Rejected,
    /// The receiver wants no event any more, whichever: its subscription pauses.
    EndpointRetired,
    /// Our own configuration does not allow the call, so nothing was sent: all events of the subscription wait until it is
    /// changed. It uses up no retry and is no attempt.
    Held,
    /// Nothing was sent, since the owner may start no attempt any more. Its successor makes the attempt.
    NotSent,
}

/// Nothing was sent, since the owner may start no attempt any more: no attempt was made.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("nothing was sent: the worker's lease has run out")]
pub struct NotSent;

/// Why an event was not taken.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Failure {
    /// What it means.
    pub kind: FailureKind,
    /// What it was.
    pub class: AttemptClass,
    /// HTTP status; 0: none.
    pub status: u16,
    /// For a person.
    pub error: String,
    /// First [`RESPONSE_BYTES_MAX`] of the response.
    pub response: Bytes,
    /// What the receiver asked for.
    pub retry_after: Option<Duration>,
}

/// How a delivery of several events ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Taken {
    /// How many of them, counted from the first, the receiver has. The others count as not attempted, but for the next.
    pub count: usize,
    /// Why the next was not taken; `None` when all were.
    pub failure: Option<Failure>,
    /// HTTP status of a success; 0: none.
    pub status: u16,
    /// First [`RESPONSE_BYTES_MAX`] of a success' response.
    pub response: Bytes,
}

/// What of a response is kept.
pub const RESPONSE_BYTES_MAX: usize = 1024;

/// Somewhere that events can be delivered to.
#[async_trait]
pub trait Destination: std::fmt::Debug + Send + Sync {
    /// Delivers events of one lane, in order, each attempt within its own time-out.
    async fn deliver(&self, deliveries: &[Delivery]) -> Taken;

    /// Whether it may be called, as far as can be told without calling it.
    ///
    /// # Errors
    ///
    /// [`RefusedAddress`]: it lies where nothing may be called.
    async fn check(&self) -> Result<(), RefusedAddress> {
        Ok(())
    }
}

/// Why a subscription has no destination.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum InvalidDestination {
    /// Its uid cannot be read.
    #[error("uid is not a UUID; create the subscription anew")]
    Uid,
    /// It has none, or one of a later version.
    #[error("destination is missing, or of a kind that this version does not know; give it one of type http")]
    Kind,
    /// It goes to code that this process does not have.
    #[error("destination: this worker has no code named {name:?}; start one that has")]
    Custom {
        /// As configured.
        name: String,
    },
    /// Its URL cannot be called.
    #[error("destination: {0}")]
    Url(#[from] InvalidUrl),
    /// Nothing could be signed.
    #[error("destination: {0}")]
    Secret(#[from] InvalidSecret),
    /// The process cannot make a client.
    #[error("no HTTP client: {cause}")]
    Client {
        /// What is missing.
        cause: String,
    },
}

/// The destination of each subscription.
#[derive(Debug)]
pub struct Destinations {
    clients: Arc<HttpClients>,
    custom: HashMap<String, Arc<dyn Destination>>,
    by_subscription: RwLock<HashMap<SubscriptionUid, Entry>>,
}

/// A subscription's destination.
#[derive(Debug, Clone)]
enum Entry {
    Usable(Arc<dyn Destination>),
    /// It could not be made, and is tried again with each delivery: what is missing may be outside of the catalog.
    Unusable(Arc<v1::Subscription>),
}

impl Destinations {
    /// None yet. `allow_networks`: private networks that may be reached.
    pub fn new(allow_networks: Vec<IpNet>) -> Self {
        Self::with_clients(Arc::new(HttpClients::new(allow_networks)))
    }

    /// None yet, with the clients of others.
    pub fn with_clients(clients: Arc<HttpClients>) -> Self {
        Self { clients, custom: HashMap::new(), by_subscription: RwLock::default() }
    }

    /// With code of the process to deliver to, by name.
    #[must_use]
    pub fn with_custom(self, custom: HashMap<String, Arc<dyn Destination>>) -> Self {
        Self { custom, ..self }
    }

    /// Makes the destination of a subscription, also in the place of an earlier one.
    ///
    /// # Errors
    ///
    /// [`InvalidDestination`]: its deliveries are held until the destination can be made.
    pub fn put(&self, subscription: &v1::Subscription) -> Result<(), InvalidDestination> {
        let uid = SubscriptionUid::from_slice(&subscription.uid).ok_or(InvalidDestination::Uid)?;
        let (entry, made) = match self.make(subscription) {
            Ok(destination) => (Entry::Usable(destination), Ok(())),
            // Not the earlier one: that is no longer wanted.
            Err(problem) => (Entry::Unusable(Arc::new(subscription.clone())), Err(problem)),
        };
        self.by_subscription.write().unwrap_or_else(PoisonError::into_inner).insert(uid, entry);
        made
    }

    /// The destination that a subscription would have.
    ///
    /// # Errors
    ///
    /// [`InvalidDestination`].
    pub fn make(&self, subscription: &v1::Subscription) -> Result<Arc<dyn Destination>, InvalidDestination> {
        match subscription.destination.as_ref().and_then(|destination| destination.kind.as_ref()) {
            Some(v1::destination::Kind::Http(http)) => Ok(Arc::new(http::HttpDestination::new(http, &self.clients)?)),
            Some(v1::destination::Kind::Custom(custom)) => {
                let unknown = || InvalidDestination::Custom { name: custom.name.clone() };
                self.custom.get(&custom.name).cloned().ok_or_else(unknown)
            }
            None => Err(InvalidDestination::Kind),
        }
    }

    /// A subscription is gone.
    pub fn remove(&self, uid: SubscriptionUid) {
        self.by_subscription.write().unwrap_or_else(PoisonError::into_inner).remove(&uid);
    }

    /// The destination of a subscription, made now where it could not be made before.
    fn of(&self, uid: SubscriptionUid) -> Result<Arc<dyn Destination>, String> {
        let entry = self.by_subscription.read().unwrap_or_else(PoisonError::into_inner).get(&uid).cloned();
        match entry {
            Some(Entry::Usable(destination)) => Ok(destination),
            Some(Entry::Unusable(subscription)) => {
                self.put(&subscription).map_err(|problem| problem.to_string())?;
                self.of(uid)
            }
            None => Err("the subscription has no destination in this worker".into()),
        }
    }

    /// Makes one attempt.
    ///
    /// # Errors
    ///
    /// [`NotSent`].
    pub async fn deliver(&self, delivery: Delivery) -> Result<AttemptEnd, NotSent> {
        // Also for code that does not ask.
        if !delivery.lease.may_attempt() {
            return Err(NotSent);
        }
        let (started_at, started) = (Timestamp::now(), Instant::now());
        let taken = match self.of(delivery.uid) {
            Ok(destination) => destination.deliver(std::slice::from_ref(&delivery)).await,
            Err(problem) => Taken::failed(Failure::held(AttemptClass::Protocol, problem)),
        };
        // The wall clock may have stepped meanwhile.
        let ended_at = started_at.checked_add(started.elapsed()).unwrap_or(started_at);
        Ok(match taken.failure {
            None => AttemptEnd {
                result: AttemptResult::Delivered,
                class: AttemptClass::Delivered,
                status: taken.status,
                error: String::new(),
                response: taken.response,
                retry_after: None,
                started_at,
                ended_at,
            },
            Some(failure) => AttemptEnd {
                result: attempt_result(failure.kind)?,
                class: failure.class,
                status: failure.status,
                error: failure.error,
                response: failure.response,
                retry_after: failure.retry_after,
                started_at,
                ended_at,
            },
        })
    }
}

/// What a failure means for its lane.
fn attempt_result(kind: FailureKind) -> Result<AttemptResult, NotSent> {
    match kind {
        FailureKind::Unreachable => Ok(AttemptResult::Unreachable),
        FailureKind::Unavailable => Ok(AttemptResult::Unavailable),
        FailureKind::Failed => Ok(AttemptResult::Failed),
        FailureKind::Rejected => Ok(AttemptResult::Rejected),
        FailureKind::EndpointRetired => Ok(AttemptResult::EndpointRetired),
        FailureKind::Held => Ok(AttemptResult::Held),
        FailureKind::NotSent => Err(NotSent),
    }
}

impl Failure {
    /// An attempt that failed without an answer and may succeed later.
    pub fn failed(class: AttemptClass, error: impl Into<String>) -> Self {
        Self {
            kind: FailureKind::Failed,
            class,
            status: 0,
            error: error.into(),
            response: Bytes::new(),
            retry_after: None,
        }
    }

    /// No connection came about.
    pub fn unreachable(class: AttemptClass, error: impl Into<String>) -> Self {
        Self { kind: FailureKind::Unreachable, ..Self::failed(class, error) }
    }

    /// Our own configuration does not allow the call.
    pub fn held(class: AttemptClass, error: impl Into<String>) -> Self {
        Self { kind: FailureKind::Held, ..Self::failed(class, error) }
    }
}

impl Taken {
    /// So many were taken: all.
    pub fn all(count: usize) -> Self {
        Self { count, failure: None, status: 0, response: Bytes::new() }
    }

    /// None was taken.
    pub fn failed(failure: Failure) -> Self {
        Self { count: 0, failure: Some(failure), status: 0, response: Bytes::new() }
    }
}
