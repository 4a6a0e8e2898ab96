//! Changes of the catalog: subscriptions are added, revised, removed or orphaned.
//!
//! Only a removal that names an operator closes a subscription. One that is missing without a removal is orphaned: it keeps
//! its backlog until it is adopted or discarded. A snapshot that ends before the position that the shard has acted on is
//! ignored until the server confirms that there is no more: then the catalog was restored from an earlier copy.

use std::{collections::HashSet, sync::Arc, time::Duration};

use tokio::{
    task::{JoinError, JoinSet},
    time::{Instant, sleep},
};
use weft_catalog::{Author, Catalog, Matcher, Removal, Revised, Snapshot, default_retry, is_ordered};
use weft_proto::{
    ids::{ShardId, StreamSeq, SubscriptionUid},
    internal, v1,
};

use super::{Driver, DriverError, aborted};
use crate::{
    lane::{Input, OnExhausted, RetryPolicy, SubscriptionPolicy},
    matching::CompiledSubscription,
};

/// How long a catalog that ends before the position that the shard has acted on may be that of a server that lags.
const CONFIRM_TIMEOUT: Duration = Duration::from_secs(10);
/// Time between two reads of the catalog meanwhile.
const CONFIRM_PAUSE: Duration = Duration::from_millis(200);

/// The catalog as a shard has applied it.
#[derive(Debug, Default)]
pub(super) struct CatalogFollower {
    /// A complete snapshot has been applied: nothing is matched before.
    complete: bool,
    /// When the bucket of the newest applied snapshot was created, unix nanoseconds.
    bucket: i64,
    /// The bucket was created again, and orphans are left from before.
    created_again: bool,
    /// Reads a catalog that ends before the position that the shard has acted on from the server.
    confirming: JoinSet<Arc<Snapshot>>,
    /// The end of such a catalog, as the server has confirmed it.
    confirmed: Option<internal::CatalogPosition>,
}

impl CatalogFollower {
    /// Whether a complete snapshot has been applied.
    pub fn is_complete(&self) -> bool {
        self.complete
    }

    /// Waits until the server has confirmed a catalog; for ever while none is to be confirmed. Cancel safe.
    pub async fn confirmed(&mut self) -> Result<Arc<Snapshot>, JoinError> {
        match self.confirming.join_next().await {
            Some(confirmed) => confirmed,
            None => std::future::pending().await,
        }
    }
}

impl Driver {
    /// Applies a snapshot to lanes, matching and destinations, if it is complete and reaches the position that the shard has
    /// acted on.
    pub(super) fn on_catalog_changed(&mut self, snapshot: &Arc<Snapshot>) -> Result<(), DriverError> {
        if !snapshot.complete {
            return Ok(());
        }
        let acted_on = self.lanes.catalog();
        let is_confirmed = self.catalog.confirmed.is_some_and(|confirmed| is_as_far(snapshot.position, confirmed));
        if is_as_far(snapshot.position, acted_on) || is_confirmed {
            return self.apply_catalog(snapshot);
        }
        if self.catalog.confirming.is_empty() {
            let name = self.catalog_condition();
            let text = format!(
                "read up to {}, and the shard has acted on {}: waiting for the rest",
                snapshot.position.sequence, acted_on.sequence
            );
            self.context.conditions.set(&name, Some(text));
            self.catalog.confirming.spawn(confirm(self.context.pauses.clone(), acted_on));
        }
        Ok(())
    }

    /// The server has confirmed the end of the catalog.
    pub(super) fn on_catalog_confirmed(
        &mut self,
        confirmed: Result<Arc<Snapshot>, JoinError>,
    ) -> Result<(), DriverError> {
        let snapshot = confirmed.map_err(aborted("read"))?;
        if !is_as_far(snapshot.position, self.lanes.catalog()) {
            tracing::error!(
                shard = %self.shard, sequence = snapshot.position.sequence, acted_on = self.lanes.catalog().sequence,
                "the catalog was restored from an earlier copy; subscriptions that it lacks keep their backlog"
            );
        }
        self.catalog.confirmed = Some(snapshot.position);
        self.apply_catalog(&snapshot)
    }

    fn apply_catalog(&mut self, snapshot: &Arc<Snapshot>) -> Result<(), DriverError> {
        let acted_on = self.lanes.catalog();
        let same_bucket = self.catalog.bucket == snapshot.position.created_ns;
        self.catalog.bucket = snapshot.position.created_ns;
        let was_created_again = acted_on.created_ns != 0 && snapshot.position.created_ns > acted_on.created_ns;
        let mut present = HashSet::new();
        for (name, subscription) in &snapshot.subscriptions {
            let Some(uid) = SubscriptionUid::from_slice(&subscription.value.uid) else { continue };
            present.insert(uid);
            let known = self.subscriptions.get(&uid).map(|compiled| compiled.subscription.revision);
            // Most subscriptions are unchanged and keep their matcher.
            if same_bucket && known == Some(subscription.revision) {
                continue;
            }
            let Some(compiled) = self.compiled(uid, subscription) else { continue };
            if let Err(problem) = self.context.destinations.put(&subscription.value) {
                tracing::error!(subscription = subscription.value.name, %problem, "subscription cannot be delivered to");
            }
            let policy = SubscriptionPolicy {
                author: snapshot.authors.get(name).cloned().unwrap_or_default(),
                catalog: snapshot.position,
                ..policy(subscription, uid, self.shard, self.context.layout.shards())
            };
            self.subscriptions.insert(compiled);
            self.handle(Input::Subscribed(policy))?;
            self.match_by_filter_in_force(uid);
            if self.lanes.detached_through(uid).is_some() {
                self.backfills.begin(uid);
            }
        }
        let missing: Vec<SubscriptionUid> = self.lanes.subscriptions().filter(|uid| !present.contains(uid)).collect();
        for uid in missing {
            self.subscriptions.remove(&uid);
            self.context.destinations.remove(uid);
            match self.removal(uid, snapshot) {
                Some(Removal { operator, reason, .. }) => {
                    let catalog = snapshot.position;
                    self.handle(Input::Unsubscribed { uid, operator, reason, catalog })?;
                }
                None => self.mark_orphaned(uid)?,
            }
        }
        self.report_catalog(snapshot, was_created_again);
        self.catalog.complete = true;
        Ok(())
    }

    /// A subscription of the catalog with its matcher.
    pub(super) fn compiled(
        &self,
        uid: SubscriptionUid,
        subscription: &Revised<Arc<v1::Subscription>>,
    ) -> Option<CompiledSubscription> {
        let mut matcher = Matcher::new(&subscription.value, self.shard)?;
        if let Some(known) = self.lanes.subscription(uid) {
            // The catalog's start may lie in a part of EVENTS that was lost.
            matcher.start = matcher.start.min(StreamSeq(known.from));
        }
        crate::metrics::subscription_known(self.shard, &subscription.value.name);
        Some(CompiledSubscription { matcher, subscription: subscription.clone() })
    }

    /// The removal of a subscription that the shard knows, if it names an operator.
    fn removal(&self, uid: SubscriptionUid, snapshot: &Snapshot) -> Option<Removal> {
        let removal = snapshot.removals.get(uid.as_bytes().as_slice())?;
        let known = self.lanes.subscription(uid)?;
        let same_bucket = known.catalog.is_none_or(|catalog| catalog.created_ns == snapshot.position.created_ns);
        let counts = same_bucket && removal.revision > known.revision && !removal.operator.is_empty();
        counts.then(|| removal.clone())
    }

    fn mark_orphaned(&mut self, uid: SubscriptionUid) -> Result<(), DriverError> {
        if self.lanes.is_orphaned(uid) {
            return Ok(());
        }
        let name = self.lanes.subscription(uid).map(|known| known.name.clone()).unwrap_or_default();
        tracing::error!(
            shard = %self.shard, subscription = name, %uid,
            "subscription is missing from the catalog without a removal; it keeps its backlog until it is adopted or discarded"
        );
        self.handle(Input::Orphaned { uid })?;
        self.backfills.begin(uid);
        Ok(())
    }

    /// Shows the orphaned subscriptions as conditions.
    pub(super) fn report_orphans(&self) {
        let conditions = &self.context.conditions;
        let prefix = format!("shard {}: orphaned subscription", self.shard);
        conditions.clear_all(&prefix);
        let mut count = 0;
        for (uid, name) in self.lanes.orphans() {
            count += 1;
            let text = format!(
                "missing from the catalog without a removal; its backlog waits: weft subscription adopt {name}, or \
                 weft subscription discard {uid} --reason …"
            );
            conditions.set(&format!("{prefix} {name} ({uid})"), Some(text));
        }
        let shard = self.shard.to_string();
        metrics::gauge!(crate::metrics::ORPHANED_SUBSCRIPTIONS, "shard" => shard).set(f64::from(count));
    }

    fn report_catalog(&mut self, snapshot: &Snapshot, was_created_again: bool) {
        self.catalog.created_again |= was_created_again;
        self.catalog.created_again &= self.lanes.orphans().next().is_some();
        let acted_on = self.lanes.catalog();
        let text = if !is_as_far(snapshot.position, acted_on) {
            Some(format!(
                "restored from an earlier copy: it ends at {}, and the shard has acted on {}",
                snapshot.position.sequence, acted_on.sequence
            ))
        } else {
            self.catalog
                .created_again
                .then(|| "the bucket was created again, and lacks subscriptions of the shard".to_owned())
        };
        self.context.conditions.set(&self.catalog_condition(), text);
        self.report_orphans();
    }

    fn catalog_condition(&self) -> String {
        format!("shard {}: catalog", self.shard)
    }

    /// Clears the conditions: another worker may own the shard.
    pub(super) fn clear_conditions(&self) {
        self.context.conditions.set(&self.catalog_condition(), None);
        self.context.conditions.clear_all(&format!("shard {}: orphaned subscription", self.shard));
        let shard = self.shard.to_string();
        metrics::gauge!(crate::metrics::ORPHANED_SUBSCRIPTIONS, "shard" => shard).set(0.0);
    }
}

/// Whether a catalog was read up to a position. Every position of a bucket that was created later is further.
fn is_as_far(read: internal::CatalogPosition, position: internal::CatalogPosition) -> bool {
    (read.created_ns, read.sequence) >= (position.created_ns, position.sequence)
}

/// Reads the catalog from the server until it reaches `wanted`, or [`CONFIRM_TIMEOUT`] has passed: then there is no more of it.
async fn confirm(catalog: Catalog, wanted: internal::CatalogPosition) -> Arc<Snapshot> {
    let deadline = Instant::now() + CONFIRM_TIMEOUT;
    loop {
        match catalog.read().await {
            Ok(read) if read.complete && (is_as_far(read.position, wanted) || Instant::now() >= deadline) => {
                return read;
            }
            Ok(_) => {}
            Err(error) => tracing::debug!(%error, "reading the catalog failed; retrying"),
        }
        sleep(CONFIRM_PAUSE).await;
    }
}

/// The policy of a subscription in one shard. Its concurrency and its rate are divided among the shards, each of which has at
/// least a concurrency of one, so that workers need not coordinate.
fn policy(
    subscription: &Revised<Arc<v1::Subscription>>,
    uid: SubscriptionUid,
    shard: ShardId,
    shards: u32,
) -> SubscriptionPolicy {
    let value = &subscription.value;
    let start = value.starts.get(shard.0 as usize).copied().unwrap_or(1).max(1);
    SubscriptionPolicy {
        uid,
        name: value.name.clone(),
        revision: subscription.revision,
        start: StreamSeq(start),
        types: value.types.clone(),
        sources: value.sources.clone(),
        expression: value.filter.clone(),
        author: Author::default(),
        catalog: internal::CatalogPosition::default(),
        concurrency: (value.concurrency / shards).max(1) as usize,
        min_interval: value.rate.as_ref().filter(|rate| rate.count > 0).map(|rate| min_interval(rate, shards)),
        max_events: value.batch.map_or(1, |batch| batch.max_events.max(1) as usize),
        retry: retry(value.retry.as_ref()),
        on_exhausted: match value.on_exhausted() {
            v1::OnExhausted::Block => OnExhausted::Block,
            v1::OnExhausted::DeadLetter | v1::OnExhausted::Unspecified => OnExhausted::DeadLetter,
        },
        ordered: is_ordered(value),
        paused: value.paused,
    }
}

/// Average time between two attempts in one shard.
fn min_interval(rate: &v1::Rate, shards: u32) -> Duration {
    Duration::from_millis(rate.period_ms).saturating_mul(shards) / rate.count.max(1)
}

/// The retry policy; without one in the catalog, the default.
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
        None => self::retry(Some(&default_retry())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn subscription(concurrency: u32, rate: Option<v1::Rate>) -> Revised<Arc<v1::Subscription>> {
        let value = v1::Subscription { concurrency, rate, starts: vec![0, 5], ..Default::default() };
        Revised { value: Arc::new(value), revision: 3 }
    }

    /// The receiver bears its concurrency and rate in all shards together.
    #[test]
    fn shards_divide_the_concurrency_and_the_rate_of_a_subscription() {
        let uid = SubscriptionUid::from_bytes([1; 16]);
        let rate = Some(v1::Rate { count: 10, period_ms: 1000 });
        let whole = policy(&subscription(64, rate), uid, ShardId(1), 4);
        assert_eq!((whole.concurrency, whole.min_interval), (16, Some(Duration::from_millis(400))));
        let small = policy(&subscription(3, None), uid, ShardId(0), 4);
        assert_eq!((small.concurrency, small.min_interval), (1, None), "at least one in each shard");
        assert_eq!((whole.start, small.start), (StreamSeq(5), StreamSeq(1)), "sequences begin at 1");
    }

    /// A catalog whose bucket was created later is newer than any position of an earlier one.
    #[test]
    fn positions_are_compared_by_bucket_first() {
        let position = |created_ns, sequence| internal::CatalogPosition { created_ns, sequence };
        assert!(is_as_far(position(1, 7), position(1, 7)) && !is_as_far(position(1, 6), position(1, 7)));
        assert!(is_as_far(position(2, 1), position(1, 7)) && !is_as_far(position(1, 7), position(2, 1)));
    }
}
