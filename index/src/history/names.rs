//! The catalog's subscriptions by uid, for the names and the deliveries that are still to come.

use std::{collections::HashMap, sync::Arc};

use weft_catalog::Snapshot;
use weft_nats::{event::OWN_SOURCE, pattern::pattern_matches};
use weft_proto::{ids::ShardId, internal, v1::Subscription};

use super::tables::{EventRow, UID_MIN, Uid, View, decode};

/// Subscriptions by uid.
#[derive(Debug)]
pub(super) struct Subscriptions {
    by_uid: HashMap<Uid, Arc<Subscription>>,
    /// Position up to which the catalog has been read; `None` until it is complete.
    position: Option<(i64, u64)>,
}

impl Subscriptions {
    pub fn of(catalog: &Snapshot) -> Self {
        let subscriptions = catalog.subscriptions.values().filter_map(|subscription| {
            let uid: Uid = subscription.value.uid[..].try_into().ok()?;
            Some((uid, Arc::clone(&subscription.value)))
        });
        let position = (catalog.position.created_ns, catalog.position.sequence);
        Self { by_uid: subscriptions.collect(), position: catalog.complete.then_some(position) }
    }

    /// Whether a subscription delivers nothing: it is paused, or missing from the catalog although the log knows it. A catalog
    /// that has not been read as far as the shard's owner has read it is ignored.
    pub fn is_stopped(&self, uid: &Uid, in_log: Option<&internal::SubscriptionState>) -> bool {
        let acted_on =
            in_log.map(|state| state.catalog.map_or((0, 0), |acted_on| (acted_on.created_ns, acted_on.sequence)));
        let is_missing = || acted_on.is_some_and(|acted_on| self.position.is_some_and(|read| read >= acted_on));
        self.by_uid.get(uid).map_or_else(is_missing, |subscription| subscription.paused)
    }

    pub fn get(&self, uid: &Uid) -> Option<&Subscription> {
        self.by_uid.get(uid).map(Arc::as_ref)
    }

    pub fn uids(&self) -> impl Iterator<Item = &Uid> {
        self.by_uid.keys()
    }

    /// The subscription's name: from the catalog, else from the log, else its uid.
    pub fn name(&self, view: &View, uid: &Uid) -> Result<String, redb::Error> {
        if let Some(subscription) = self.by_uid.get(uid) {
            return Ok(subscription.name.clone());
        }
        let remembered = view.names.get(uid)?.map(|name| name.value().to_owned());
        Ok(remembered.unwrap_or_else(|| uuid::Uuid::from_bytes(*uid).to_string()))
    }
}

/// The subscriptions that owners have opened, closed ones included, by shard.
pub(super) fn uids(view: &View) -> Result<Vec<(u32, Uid)>, redb::Error> {
    let mut uids = Vec::new();
    for row in view.subscriptions.range((0, &UID_MIN)..)? {
        let (key, _) = row?;
        let (shard, uid) = key.value();
        uids.push((shard, *uid));
    }
    Ok(uids)
}

/// Those of the subscriptions that are open.
pub(super) fn open(
    view: &View,
    uids: &[(u32, Uid)],
) -> Result<Vec<(ShardId, internal::SubscriptionState)>, redb::Error> {
    let mut open = Vec::new();
    for (shard, uid) in uids {
        let Some(state) = view.subscriptions.get((*shard, uid))? else { continue };
        let state: internal::SubscriptionState = decode(state.value())?;
        if !state.closed {
            open.push((ShardId(*shard), internal::SubscriptionState { subscription: uid.to_vec(), ..state }));
        }
    }
    Ok(open)
}

/// Whether a subscription's present filter matches an event.
pub(super) fn takes(subscription: &Subscription, shard: u32, seq: u64, event: &EventRow) -> bool {
    let start = subscription.starts.get(shard as usize).copied().unwrap_or(1).max(1);
    seq >= start
        && (subscription.sources.is_empty() && event.source != OWN_SOURCE
            || subscription.sources.contains(&event.source))
        && subscription.types.iter().any(|pattern| pattern_matches(pattern, &event.event_type))
}
