//! Pausing subscriptions whose receiver has asked for no more events: an admin writes it to the catalog.

use std::time::Duration;

use weft_nats::{
    broker::pause::pause_subscription,
    catalog::{Catalog, CatalogError, Stamp},
};
use weft_proto::ids::SubscriptionUid;

use super::Driver;

/// Between two tries.
const PAUSE: Duration = Duration::from_secs(1);

impl Driver {
    /// Pauses a subscription that still has the revision by which its receiver was called.
    pub(super) fn pause_subscription(&mut self, uid: SubscriptionUid, revision: u64, reason: String) {
        while self.pauses.try_join_next().is_some() {}
        tracing::warn!(shard = %self.shard, subscription = %uid, reason, "subscription is paused");
        let operator = format!("worker {}", self.context.worker);
        let reason = format!("{reason} (paused by {operator})");
        let stamp = Stamp { request_id: format!("gone-{uid}-{revision}"), operator, reason };
        // Ends when the catalog has taken it, or with the shard: then the next owner attempts the event and hears the same.
        self.pauses.spawn(pause_until_taken(self.context.pauses.clone(), uid, revision, stamp));
    }
}

/// Whoever changes the subscription meanwhile is right: by the new revision it is attempted again.
async fn pause_until_taken(catalog: Catalog, uid: SubscriptionUid, revision: u64, stamp: Stamp) {
    loop {
        match pause_subscription(&catalog, uid, revision, &stamp).await {
            Ok(()) | Err(CatalogError::Conflict { .. }) => return,
            Err(CatalogError::Invalid { key, problem }) => {
                tracing::error!(key, problem, "subscription cannot be paused; it stands still in this worker");
                return;
            }
            Err(error @ CatalogError::Unavailable(_)) => {
                tracing::warn!(subscription = %uid, %error, "pausing is tried again");
                tokio::time::sleep(PAUSE).await;
            }
        }
    }
}
