//! Fields that an entry may leave out. Pure.

use weft_proto::v1::Subscription;

/// Whether a subscription's events wait for those before them of the same workflow.
pub fn is_ordered(subscription: &Subscription) -> bool {
    subscription.ordered.unwrap_or(true)
}
