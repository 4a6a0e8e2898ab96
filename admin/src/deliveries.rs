//! Interface to the code that delivers.
//!
//! The worker delivers, and admin and worker never import each other. So the admin defines this trait, and
//! the binary, which knows both, implements it with the worker's code: a test delivery is checked and
//! signed like any delivery.

use weft_nats::event::StoredEvent;
use weft_proto::{internal, v1};

/// Statements that create tables.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Migration {
    /// The statements.
    pub statements: Vec<String>,
    /// Host, port and name of each database that they were run in.
    pub databases: Vec<String>,
}

/// An event that a sender of a source might send.
#[derive(Debug, Clone, Copy)]
pub struct Sample<'a> {
    /// The delivery id.
    pub id: &'a str,
    /// The type.
    pub event_type: &'a str,
    /// The workflow's id.
    pub workflow: &'a str,
}

/// Makes deliveries outside of the log, and signs samples.
#[tonic::async_trait]
pub trait Deliveries: std::fmt::Debug + Send + Sync {
    /// Whether a subscription's destination may be called.
    ///
    /// # Errors
    ///
    /// The reason, in one line. A name that cannot be resolved at the moment is not an error.
    async fn check(&self, subscription: &v1::Subscription) -> Result<(), String>;

    /// Plans the delivery of an event; nothing is called.
    ///
    /// # Errors
    ///
    /// The reason why there is no destination, in one line.
    async fn plan(&self, subscription: &v1::Subscription, event: StoredEvent) -> Result<v1::PlannedDelivery, String>;

    /// One signed attempt to deliver an event.
    ///
    /// # Errors
    ///
    /// The reason why there is no destination, in one line.
    async fn deliver(&self, subscription: &v1::Subscription, event: StoredEvent) -> Result<internal::Attempt, String>;

    /// A sample as a sender of the source signs it, with a body that the source's rules can read.
    ///
    /// # Errors
    ///
    /// Why there is none, in one line.
    fn sign(&self, source: &v1::Source, sample: &Sample<'_>) -> Result<internal::SignedSample, String>;

    /// Creates the tables that a destination needs, where they are missing.
    ///
    /// # Errors
    ///
    /// The problem, in one line; of a destination without tables that it has none.
    async fn migrate(&self, _subscription: &v1::Subscription, _dry_run: bool) -> Result<Migration, String> {
        Err("only a destination of type postgres has tables".into())
    }
}
