//! The catalog's subscriptions by uid, for the names and the deliveries that are still to come.

use std::{collections::HashMap, sync::Arc};

use weft_nats::catalog::{Snapshot, pattern_matches};
use weft_proto::v1::Subscription;

use super::tables::{EventRow, Uid, View};

/// Subscriptions by uid.
pub(super) struct Subscriptions(HashMap<Uid, Arc<Subscription>>);

impl Subscriptions {
    pub fn of(catalog: &Snapshot) -> Self {
        let subscriptions = catalog.subscriptions.values().filter_map(|subscription| {
            let uid: Uid = subscription.value.uid[..].try_into().ok()?;
            Some((uid, Arc::clone(&subscription.value)))
        });
        Self(subscriptions.collect())
    }

    pub fn get(&self, uid: &Uid) -> Option<&Subscription> {
        self.0.get(uid).map(Arc::as_ref)
    }

    pub fn uids(&self) -> impl Iterator<Item = &Uid> {
        self.0.keys()
    }

    /// The subscription's name: of the catalog, else as the log remembers it, else its uid.
    pub fn name(&self, view: &View, uid: &Uid) -> Result<String, redb::Error> {
        if let Some(subscription) = self.0.get(uid) {
            return Ok(subscription.name.clone());
        }
        let remembered = view.names.get(uid)?.map(|name| name.value().to_owned());
        Ok(remembered.unwrap_or_else(|| uuid::Uuid::from_bytes(*uid).to_string()))
    }
}

/// Whether a subscription, as it is now, takes an event.
pub(super) fn takes(subscription: &Subscription, shard: u32, seq: u64, event: &EventRow) -> bool {
    let start = subscription.starts.get(shard as usize).copied().unwrap_or(1).max(1);
    seq >= start
        && (subscription.sources.is_empty() || subscription.sources.contains(&event.source))
        && subscription.types.iter().any(|pattern| pattern_matches(pattern, &event.event_type))
}
