//! Interface to the code that delivers.
//!
//! The worker delivers, and admin and worker never import each other. So the admin defines this trait, and
//! the binary, which knows both, implements it with the worker's code: a test delivery is checked and
//! signed like any delivery.

use weft_nats::event::StoredEvent;
use weft_proto::v1;

/// Makes deliveries outside of the log.
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
    async fn deliver(&self, subscription: &v1::Subscription, event: StoredEvent) -> Result<v1::Attempt, String>;
}
