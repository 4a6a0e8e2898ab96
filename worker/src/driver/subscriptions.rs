//! News of the catalog: subscriptions that come, change and go.

use std::{collections::HashSet, sync::Arc, time::Duration};

use weft_nats::catalog::{Matcher, Removal, Revised, Snapshot, is_ordered};
use weft_proto::{
    ids::{ShardId, StreamSeq, SubscriptionUid},
    v1,
};

use super::{Driver, DriverError};
use crate::{
    lane::{Input, OnExhausted, RetryPolicy, Rules},
    matching::Compiled,
};

impl Driver {
    /// Brings lanes, matching and destinations to the catalog. Nothing is decided by what a catalog that has not been
    /// read to its end does not say.
    pub(super) fn catalog_changed(&mut self, snapshot: &Snapshot) -> Result<(), DriverError> {
        if !snapshot.complete {
            return Ok(());
        }
        let mut there = HashSet::new();
        for subscription in snapshot.subscriptions.values() {
            let Some(uid) = SubscriptionUid::from_slice(&subscription.value.uid) else { continue };
            there.insert(uid);
            let known = self.subscriptions.get(&uid).map(|compiled| compiled.subscription.revision);
            // Most of a catalog is as it was: a matcher is made for what has changed only.
            if known == Some(subscription.revision) {
                continue;
            }
            let Some(matcher) = Matcher::new(&subscription.value, self.shard) else { continue };
            if let Err(problem) = self.context.destinations.put(&subscription.value) {
                tracing::error!(subscription = subscription.value.name, %problem, "subscription cannot be delivered to");
            }
            let rules = rules(subscription, uid, self.shard, self.context.layout.shards());
            let start = matcher.start;
            self.subscriptions.insert(Compiled { matcher, subscription: subscription.clone() });
            if !self.backfills.knows(uid) && start <= self.lanes.cursor() {
                self.backfills.begin(uid);
            }
            self.backfills.seen(uid);
            self.handle(Input::Subscribed(rules))?;
        }
        let gone: Vec<SubscriptionUid> =
            self.subscriptions.uids().chain(self.backfills.restored()).filter(|uid| !there.contains(uid)).collect();
        for uid in gone {
            self.subscriptions.remove(&uid);
            self.backfills.forget(uid);
            self.context.destinations.remove(uid);
            let Removal { operator, reason } =
                snapshot.removals.get(uid.as_bytes().as_slice()).cloned().unwrap_or_default();
            self.handle(Input::Unsubscribed { uid, operator, reason })?;
        }
        self.matching = true;
        Ok(())
    }
}

/// What the lanes must know of a subscription. Each of the shards has its part of what the receiver bears, so that
/// workers need not ask each other; of less than one each, each has one.
fn rules(subscription: &Revised<Arc<v1::Subscription>>, uid: SubscriptionUid, shard: ShardId, shards: u32) -> Rules {
    let value = &subscription.value;
    let start = value.starts.get(shard.0 as usize).copied().unwrap_or(1).max(1);
    Rules {
        uid,
        name: value.name.clone(),
        revision: subscription.revision,
        start: StreamSeq(start),
        concurrency: (value.concurrency / shards).max(1) as usize,
        gap: value.rate.as_ref().filter(|rate| rate.count > 0).map(|rate| gap(rate, shards)),
        retry: retry(value.retry.as_ref()),
        on_exhausted: match value.on_exhausted() {
            v1::OnExhausted::Block => OnExhausted::Block,
            v1::OnExhausted::DeadLetter | v1::OnExhausted::Unspecified => OnExhausted::DeadLetter,
        },
        ordered: is_ordered(value),
        paused: value.paused,
    }
}

/// The time between two attempts in one shard.
fn gap(rate: &v1::Rate, shards: u32) -> Duration {
    Duration::from_millis(rate.period_ms).saturating_mul(shards) / rate.count.max(1)
}

/// The contract's defaults where the subscription says nothing.
fn retry(retry: Option<&v1::Retry>) -> RetryPolicy {
    match retry {
        Some(retry) if !retry.schedule_ms.is_empty() => {
            RetryPolicy::Schedule(retry.schedule_ms.iter().copied().map(Duration::from_millis).collect())
        }
        Some(retry) => RetryPolicy::Exponential {
            max_retries: retry.max_retries,
            base: Duration::from_millis(retry.base_ms),
            factor: retry.factor,
            max: Duration::from_millis(retry.max_ms),
            jitter: retry.jitter,
        },
        None => RetryPolicy::Exponential {
            max_retries: 3,
            base: Duration::from_secs(1),
            factor: 2.0,
            max: Duration::from_secs(3600),
            jitter: 0.2,
        },
    }
}
