//! Destinations: where events are delivered.
//!
//! A [`Destination`] delivers events of one lane, in order, and returns how many of them, counted from the first, were
//! accepted, and why the next was not. [`Destinations`] holds the destination of each subscription (HTTP, gRPC, NATS,
//! PostgreSQL, or code of the embedding program) and makes single attempts.

use std::{collections::HashMap, sync::Arc, time::Duration};

use async_trait::async_trait;
use bytes::Bytes;
use jiff::Timestamp;
use parking_lot::RwLock;
use weft_catalog::{Filters, delivery_url::InvalidUrl};
use weft_expression::{CompileError, Expression};
use weft_nats::{clock::ServerClock, connect::Connection, event::StoredEvent};
use weft_proto::{
    ids::{EventId, Run, ShardId, SubscriptionUid},
    v1::{self, AttemptClass},
};

use self::{
    address::{AddressRules, RefusedAddress},
    clients::{HttpClients, InvalidClient},
    expression::ExpressionFailure,
    oauth2::{InvalidAuth, TokenSources},
    signature::InvalidSecret,
};
use crate::{
    lane::{AttemptEnd, AttemptResult},
    ownership::LeaseGuard,
};

pub mod address;
mod auth;
mod body;
pub mod clients;
mod cloudevents;
mod connection;
mod credentials;
mod expression;
mod failure;
pub mod grpc;
pub mod http;
mod lookups;
pub mod nats;
pub mod oauth2;
mod planned;
pub mod postgres;
mod proxy;
mod request;
pub mod resolver;
mod response;
pub mod retry_after;
mod send;
pub mod signature;
mod stages;
#[cfg(test)]
mod tests;
pub mod tls;

pub use expression::transformed;
pub use planned::PlannedRequest;
pub use stages::Stages;

/// One attempt to deliver an event.
#[derive(Debug, Clone)]
pub struct Delivery {
    /// The event.
    pub event: Arc<StoredEvent>,
    /// The subscription.
    pub uid: SubscriptionUid,
    /// Live, or a redrive or replay.
    pub run: Run,
    /// Number of this attempt in its run, from 1.
    pub number: u32,
    /// The event that the lane delivered before; `None`: none, or it is unordered.
    pub lane_previous: Option<EventId>,
    /// The event's shard of the log.
    pub shard: ShardId,
    /// The fencing epoch of the shard's owner; 0 when an admin sends a test delivery.
    pub epoch: u64,
    /// Timeout of the attempt, connecting and reading the response included.
    pub timeout: Duration,
    /// The clock for signatures: receivers refuse timestamps that are minutes off, as those of the local clock may be.
    pub clock: ServerClock,
    /// The owner's lease: once no attempt may start, nothing is sent. To be checked again after any wait.
    pub lease: LeaseGuard,
    /// Where a destination notes how far the attempt is, for its record.
    pub stages: Stages,
}

/// Kind of a failure.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FailureKind {
    /// No connection, so nothing was sent: the same applies to every event. Retried; uses up no retry.
    Unreachable,
    /// The receiver, or a proxy before it, answered that it is unavailable. Retried.
    Unavailable,
    /// This attempt failed, such as by a timeout or a status that the event may have caused. Retried.
    Failed,
    /// The receiver rejects this event: a dead letter.
    Rejected,
    /// The endpoint accepts no events any more: its subscription pauses.
    EndpointRetired,
    /// Weft's own configuration does not allow the call, so nothing was sent: all events of the subscription wait until it is
    /// changed. It is not counted as an attempt.
    Held,
    /// Nothing was sent, since the owner's lease has run out. The next owner makes the attempt.
    NotSent,
}

/// No attempt was made, since the owner's lease has run out.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("nothing was sent: the worker's lease has run out")]
pub struct NotSent;

/// Why an event was not accepted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Failure {
    /// The kind, which decides about retries.
    pub kind: FailureKind,
    /// Its class for the record.
    pub class: AttemptClass,
    /// HTTP status; 0: none.
    pub status: u16,
    /// Error message.
    pub error: String,
    /// First [`RESPONSE_BYTES_MAX`] of the response.
    pub response: Bytes,
    /// Minimum wait before the next attempt, as the receiver asked.
    pub retry_after: Option<Duration>,
}

/// Result of a delivery of several events.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DeliveryResult {
    /// Number of events, counted from the first, that the receiver accepted. Of the others only the next was attempted.
    pub count: usize,
    /// Why the next was not accepted; `None` when all were.
    pub failure: Option<Failure>,
    /// HTTP status of a success; 0: none.
    pub status: u16,
    /// First [`RESPONSE_BYTES_MAX`] of the response to the last success.
    pub response: Bytes,
    /// The failure is known to be of the next event, and not of all events that were sent with it. It always is if events
    /// before it were accepted, or if there was only one. Otherwise the events are delivered again in smaller batches, until
    /// the one at fault is alone.
    pub is_attributed: bool,
}

/// Bytes of a response that are kept.
pub const RESPONSE_BYTES_MAX: usize = 1024;

/// A receiver of events.
#[async_trait]
pub trait Destination: std::fmt::Debug + Send + Sync {
    /// Delivers events of one lane, in order, at least one. It ends within the [`timeout`](Delivery::timeout), which nothing else
    /// enforces: a lane waits for its attempt.
    async fn deliver(&self, deliveries: &[Delivery]) -> DeliveryResult;

    /// Checks whether it may be called, without calling it.
    ///
    /// # Errors
    ///
    /// [`RefusedAddress`]: its address must not be called.
    async fn check(&self) -> Result<(), RefusedAddress> {
        Ok(())
    }

    /// The request that a delivery of these events would make, with its secrets hidden. Nothing is called.
    fn planned(&self, deliveries: &[Delivery]) -> PlannedRequest {
        PlannedRequest::envelopes(deliveries)
    }
}

/// Why a subscription has no destination.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum InvalidDestination {
    /// Its uid is invalid.
    #[error("uid is not a UUID; create the subscription again")]
    Uid,
    /// It has none, or one of a later version.
    #[error(
        "destination is missing, or of a kind that this version does not know; give it a type: http, grpc, nats or postgres"
    )]
    Kind,
    /// It names code that this process does not have.
    #[error("destination: this worker has no code named {name:?}; start one that has")]
    Custom {
        /// As configured.
        name: String,
    },
    /// Its URL is invalid.
    #[error("destination: {0}")]
    Url(#[from] InvalidUrl),
    /// A connection string, a name or the SQL is invalid.
    #[error("destination: {problem}")]
    Postgres {
        /// The problem and the fix.
        problem: String,
    },
    /// Its secret is invalid.
    #[error("destination: {0}")]
    Secret(#[from] InvalidSecret),
    /// Its certificates or its proxy cannot be used.
    #[error("destination: {0}")]
    Client(#[from] InvalidClient),
    /// It cannot authenticate itself.
    #[error("destination: {0}")]
    Auth(#[from] InvalidAuth),
    /// Another setting of an HTTP destination is invalid.
    #[error("destination: {problem}")]
    Http {
        /// Which one, and why.
        problem: String,
    },
    /// An expression of the subscription is not one of this version.
    #[error("{field}: {problem}")]
    Expression {
        /// The field of the subscription.
        field: &'static str,
        /// As the compiler says.
        problem: CompileError,
    },
    /// A field of a NATS destination is invalid.
    #[error("destination: {problem}")]
    Nats {
        /// The field and the problem.
        problem: String,
    },
}

/// The destination of each subscription.
#[derive(Debug)]
pub struct Destinations {
    clients: Arc<HttpClients>,
    tokens: TokenSources,
    nats_clients: nats::NatsClients,
    /// The process' connection to the mesh's server.
    own_nats: Option<Connection>,
    /// Connections to PostgreSQL.
    pools: postgres::Pools,
    custom: HashMap<String, Arc<dyn Destination>>,
    by_subscription: RwLock<HashMap<SubscriptionUid, Entry>>,
}

/// A destination, and the transform of what it is given.
#[derive(Debug, Clone)]
struct Usable {
    destination: Arc<dyn Destination>,
    transform: Option<Arc<Expression>>,
}

/// A subscription's destination.
#[derive(Debug, Clone)]
enum Entry {
    Usable(Usable),
    /// It could not be created, and is tried again with each delivery: the cause may be outside of the catalog.
    Unusable(Arc<v1::Subscription>),
}

impl Destinations {
    /// No destinations yet. The rules say which addresses may be called.
    pub fn new(rules: impl Into<AddressRules>) -> Self {
        Self::with_clients(Arc::new(HttpClients::new(rules)))
    }

    /// No destinations yet, with shared clients.
    pub fn with_clients(clients: Arc<HttpClients>) -> Self {
        let nats_clients = nats::NatsClients::new(clients.resolver().clone());
        let (pools, custom, by_subscription) = (postgres::Pools::default(), HashMap::new(), RwLock::default());
        Self { clients, tokens: TokenSources::default(), nats_clients, own_nats: None, pools, custom, by_subscription }
    }

    /// Publishes on the mesh's server through this connection.
    #[must_use]
    pub fn with_own_nats(self, connection: Connection) -> Self {
        Self { own_nats: Some(connection), ..self }
    }

    /// Adds destinations that are code of this process, by name.
    #[must_use]
    pub fn with_custom(self, custom: HashMap<String, Arc<dyn Destination>>) -> Self {
        Self { custom, ..self }
    }

    /// Creates or replaces the destination of a subscription.
    ///
    /// # Errors
    ///
    /// [`InvalidDestination`]: its deliveries are held until the destination can be created.
    pub fn put(&self, subscription: &v1::Subscription) -> Result<(), InvalidDestination> {
        let uid = SubscriptionUid::from_slice(&subscription.uid).ok_or(InvalidDestination::Uid)?;
        let usable = expression::transform_of(subscription)
            .and_then(|transform| Ok(Usable { destination: self.make(subscription)?, transform }));
        let (entry, made) = match usable {
            Ok(usable) => (Entry::Usable(usable), Ok(())),
            // An earlier one is out of date.
            Err(problem) => (Entry::Unusable(Arc::new(subscription.clone())), Err(problem)),
        };
        self.by_subscription.write().insert(uid, entry);
        made
    }

    /// Creates the destination of a subscription without adding it.
    ///
    /// # Errors
    ///
    /// [`InvalidDestination`].
    pub fn make(&self, subscription: &v1::Subscription) -> Result<Arc<dyn Destination>, InvalidDestination> {
        match subscription.destination.as_ref().and_then(|destination| destination.kind.as_ref()) {
            Some(v1::destination::Kind::Http(http)) => {
                let is_batched = subscription.batch.is_some_and(|batch| batch.max_events > 1);
                Ok(Arc::new(http::HttpDestination::new(http, is_batched, &self.clients, &self.tokens)?))
            }
            Some(v1::destination::Kind::Custom(custom)) => {
                let unknown = || InvalidDestination::Custom { name: custom.name.clone() };
                self.custom.get(&custom.name).cloned().ok_or_else(unknown)
            }
            Some(v1::destination::Kind::Nats(nats)) => {
                let own = self.own_nats.as_ref();
                Ok(Arc::new(nats::NatsDestination::new(subscription, nats, own, &self.nats_clients)?))
            }
            Some(v1::destination::Kind::Grpc(grpc)) => {
                Ok(Arc::new(grpc::GrpcDestination::new(subscription, grpc, &self.clients, &self.tokens)?))
            }
            Some(v1::destination::Kind::Postgres(postgres)) => {
                Ok(Arc::new(postgres::PostgresDestination::new(postgres, &self.clients, &self.pools)?))
            }
            None => Err(InvalidDestination::Kind),
        }
    }

    /// Removes the destination of a subscription.
    pub fn remove(&self, uid: SubscriptionUid) {
        self.by_subscription.write().remove(&uid);
    }

    /// The destination of a subscription, created now where that has failed before.
    fn of(&self, uid: SubscriptionUid) -> Result<Usable, String> {
        let entry = self.by_subscription.read().get(&uid).cloned();
        match entry {
            Some(Entry::Usable(usable)) => Ok(usable),
            Some(Entry::Unusable(subscription)) => {
                self.put(&subscription).map_err(|problem| problem.to_string())?;
                self.of(uid)
            }
            None => Err("the subscription has no destination in this worker".into()),
        }
    }

    /// Makes one attempt of one event.
    ///
    /// # Errors
    ///
    /// [`NotSent`].
    pub async fn deliver(&self, delivery: Delivery) -> Result<AttemptEnd, NotSent> {
        self.deliver_batch(&[delivery], None).await?.pop().ok_or(NotSent)
    }

    /// Makes one attempt, of one event or several of one lane. Returns the ends of the events that were accepted, and of the
    /// next one if it was not. An event on which the filters or the transform fail is not sent: those before it are, and it
    /// is the next one.
    ///
    /// # Errors
    ///
    /// [`NotSent`].
    pub async fn deliver_batch(
        &self,
        deliveries: &[Delivery],
        filters: Option<&Filters>,
    ) -> Result<Vec<AttemptEnd>, NotSent> {
        let Some(first) = deliveries.first() else { return Ok(Vec::new()) };
        // Also for destinations that do not check the lease.
        if !first.lease.may_attempt() {
            return Err(NotSent);
        }
        let (destination, transform) = match self.of(first.uid) {
            Ok(Usable { destination, transform }) => (Ok(destination), transform),
            Err(problem) => (Err(problem), None),
        };
        let (ready, failure) = expression::prepare(deliveries, filters, transform.as_deref());
        let mut ends = if ready.is_empty() { Vec::new() } else { send::to(destination, &ready).await? };
        let all_accepted = ends.len() == ready.len() && ends.iter().all(|end| end.result == AttemptResult::Delivered);
        if let Some(ExpressionFailure { result, error }) = failure.filter(|_| all_accepted) {
            let now = Timestamp::now();
            ends.push(AttemptEnd {
                result,
                class: AttemptClass::Expression,
                status: 0,
                is_attributed: true,
                error,
                response: Bytes::new(),
                retry_after: None,
                started_at: now,
                ended_at: now,
                connected_ms: None,
                answered_ms: None,
            });
        }
        Ok(ends)
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

    /// A failure without a connection.
    pub fn unreachable(class: AttemptClass, error: impl Into<String>) -> Self {
        Self { kind: FailureKind::Unreachable, ..Self::failed(class, error) }
    }

    /// A failure by Weft's own configuration.
    pub fn held(class: AttemptClass, error: impl Into<String>) -> Self {
        Self { kind: FailureKind::Held, ..Self::failed(class, error) }
    }
}

impl DeliveryResult {
    /// All `count` events were accepted.
    pub fn all(count: usize) -> Self {
        Self { count, failure: None, status: 0, response: Bytes::new(), is_attributed: false }
    }

    /// No event was accepted. Of several events, which one is at fault is not known.
    pub fn failed(failure: Failure) -> Self {
        Self { failure: Some(failure), ..Self::all(0) }
    }
}
