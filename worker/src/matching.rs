//! The subscriptions of the catalog with their matchers.

use std::{collections::HashMap, sync::Arc};

use weft_catalog::{Matcher, Revised, input_of};
use weft_nats::event::StoredEvent;
use weft_proto::{ids::SubscriptionUid, v1};

mod index;

use index::MatchIndex;

/// A subscription of the catalog, compiled for one shard.
#[derive(Debug, Clone)]
pub struct CompiledSubscription {
    /// Matches the events that it takes.
    pub matcher: Matcher,
    /// Its catalog entry.
    pub subscription: Revised<Arc<v1::Subscription>>,
}

/// The subscriptions of one shard, with an index of their types and sources.
#[derive(Debug, Default)]
pub struct Subscriptions {
    compiled: HashMap<SubscriptionUid, CompiledSubscription>,
    /// An index of `compiled`.
    index: MatchIndex,
}

impl Subscriptions {
    /// The subscription of a uid.
    pub fn get(&self, uid: &SubscriptionUid) -> Option<&CompiledSubscription> {
        self.compiled.get(uid)
    }

    /// Adds a subscription, or replaces an earlier revision of it.
    pub fn insert(&mut self, compiled: CompiledSubscription) {
        let uid = compiled.matcher.uid;
        self.remove(&uid);
        self.index.insert(uid, compiled.matcher.types(), compiled.matcher.sources());
        self.compiled.insert(uid, compiled);
    }

    /// Removes a subscription.
    pub fn remove(&mut self, uid: &SubscriptionUid) {
        if let Some(old) = self.compiled.remove(uid) {
            self.index.remove(*uid, old.matcher.types(), old.matcher.sources());
        }
    }

    /// All uids, in no order.
    pub fn uids(&self) -> impl Iterator<Item = SubscriptionUid> {
        self.compiled.keys().copied()
    }

    /// The subscriptions that match an event, by uid.
    pub fn matching(&self, event: &StoredEvent) -> impl Iterator<Item = SubscriptionUid> {
        let candidates = self.index.candidates(&event.event.source, &event.event.event_type);
        let input = input_of(&event.event);
        let takes =
            move |uid: &SubscriptionUid| self.get(uid).is_some_and(|found| found.matcher.takes_with(event, &input));
        candidates.into_iter().filter(takes)
    }
}
