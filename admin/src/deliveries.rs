//! What the admin asks of the code that delivers.
//!
//! Deliveries are the worker's, and admin and worker never import each other. So the admin says here what it wants, and
//! the binary, which knows both, hands it the worker's own code: whatever is judged or signed at a test is judged and
//! signed as at a delivery.

use weft_nats::event::StoredEvent;
use weft_proto::v1;

/// Makes deliveries that are no part of the log.
#[tonic::async_trait]
pub trait Deliveries: std::fmt::Debug + Send + Sync {
    /// Whether a subscription's destination may be called.
    ///
    /// # Errors
    ///
    /// Why not, in one line. A name that cannot be resolved now is no reason.
    async fn check(&self, subscription: &v1::Subscription) -> Result<(), String>;

    /// One signed attempt to deliver an event.
    ///
    /// # Errors
    ///
    /// Why there is nothing to call, in one line.
    async fn deliver(&self, subscription: &v1::Subscription, event: StoredEvent) -> Result<v1::Attempt, String>;
}
