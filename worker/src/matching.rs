//! The subscriptions of the catalog as a worker uses them.

use std::sync::Arc;

use weft_nats::catalog::{Matcher, Revised};
use weft_proto::v1;

/// A subscription of the catalog as a worker uses it for one shard.
#[derive(Debug, Clone)]
pub struct Compiled {
    /// Which events it takes.
    pub matcher: Matcher,
    /// What it says.
    pub subscription: Revised<Arc<v1::Subscription>>,
}
