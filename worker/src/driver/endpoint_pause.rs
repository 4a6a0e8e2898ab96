//! Pauses subscriptions whose endpoint has retired: an admin writes that to the catalog.

use std::time::Duration;

use weft_catalog::{Catalog, CatalogError, Stamp, requests::pause_subscription};
use weft_proto::ids::SubscriptionUid;

use super::Driver;

/// Time between two tries.
const PAUSE: Duration = Duration::from_secs(1);

impl Driver {
    /// Pauses a subscription, unless it has another revision than the one that was delivered by.
    pub(super) fn pause_subscription(&mut self, uid: SubscriptionUid, revision: u64, reason: String) {
        while self.pauses.try_join_next().is_some() {}
        tracing::warn!(shard = %self.shard, subscription = %uid, reason, "subscription is paused");
        let operator = format!("worker {}", self.context.worker);
        let reason = format!("{reason} (paused by {operator})");
        let stamp = Stamp { request_id: format!("gone-{uid}-{revision}"), operator, reason };
        // Ends when the catalog has taken it, or with the shard: then the next owner attempts the event and gets the same answer.
        self.pauses.spawn(pause_until_taken(self.context.pauses.clone(), uid, revision, stamp));
    }
}

/// Returns once the catalog has taken the pause, or the subscription has another revision, which wins.
async fn pause_until_taken(catalog: Catalog, uid: SubscriptionUid, revision: u64, stamp: Stamp) {
    loop {
        match pause_subscription(&catalog, uid, revision, &stamp).await {
            Ok(()) | Err(CatalogError::Conflict { .. }) => return,
            Err(CatalogError::Invalid { key, problem }) => {
                tracing::error!(key, problem, "subscription cannot be paused; its lanes stop in this worker");
                return;
            }
            Err(error @ CatalogError::Unavailable(_)) => {
                tracing::warn!(subscription = %uid, %error, "pausing the subscription failed; retrying");
                tokio::time::sleep(PAUSE).await;
            }
        }
    }
}
