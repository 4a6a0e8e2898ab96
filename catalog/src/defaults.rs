//! Fields that an entry may leave out. Pure.

use weft_proto::v1::{Retry, Subscription};

/// Whether a subscription's events wait for those before them of the same workflow.
pub fn is_ordered(subscription: &Subscription) -> bool {
    subscription.ordered.unwrap_or(true)
}

/// The retry policy of a subscription without one.
pub fn default_retry() -> Retry {
    Retry { max_retries: 3, base_ms: 1000, factor: 2.0, max_ms: 60 * 60 * 1000, jitter: 0.2, schedule_ms: Vec::new() }
}
