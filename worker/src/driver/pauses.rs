//! Pausing subscriptions whose receiver wants nothing any more: the only change of the catalog that a worker makes.

use std::time::Duration;

use weft_nats::catalog::{
    Catalog, CatalogError, Stamp,
    change::{Action, pause},
};
use weft_proto::ids::SubscriptionUid;

use super::Driver;

/// Between two tries.
const PAUSE: Duration = Duration::from_secs(1);

impl Driver {
    /// Pauses a subscription that still has the revision by which its receiver was called.
    pub(super) fn pause(&mut self, uid: SubscriptionUid, revision: u64, reason: String) {
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
        match try_pause(&catalog, uid, revision, &stamp).await {
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

async fn try_pause(catalog: &Catalog, uid: SubscriptionUid, revision: u64, stamp: &Stamp) -> Result<(), CatalogError> {
    let snapshot = catalog.read().await?;
    let entry = snapshot.subscription_of(uid.as_bytes());
    let Some(entry) = entry.filter(|entry| entry.revision == revision) else { return Ok(()) };
    match pause(&snapshot, &entry.value.name, Some(&stamp.reason)) {
        Ok(Some(change)) => {
            debug_assert_eq!((change.action, change.expected), (Action::Paused, revision));
            catalog.write(&change, stamp).await
        }
        // Paused already, or just deleted.
        Ok(None) | Err(_) => Ok(()),
    }
}
