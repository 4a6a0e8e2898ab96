//! Which events a subscription takes. Pure.

use std::sync::Arc;

use weft_expression::Input;
use weft_nats::{event::StoredEvent, scan::Predicate, subject::Layout};
use weft_proto::{
    ids::{ShardId, StreamSeq, SubscriptionUid},
    v1,
};

use super::{
    expression::{FilterExpression, input_of},
    filters::takes,
};

/// The part of a subscription that decides whether it takes an event of one shard.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Matcher {
    /// Uid of the subscription.
    pub uid: SubscriptionUid,
    /// It takes events from this sequence on.
    pub start: StreamSeq,
    types: Vec<String>,
    sources: Vec<String>,
    expression: FilterExpression,
}

impl Matcher {
    /// The matcher of a subscription of the catalog; `None` when its uid is none.
    pub fn new(subscription: &v1::Subscription, shard: ShardId) -> Option<Self> {
        let start = subscription.starts.get(shard.0 as usize).copied().unwrap_or(1).max(1);
        Some(Self {
            uid: SubscriptionUid::from_slice(&subscription.uid)?,
            start: StreamSeq(start),
            types: subscription.types.clone(),
            sources: subscription.sources.clone(),
            expression: FilterExpression::of(&subscription.filter),
        })
    }

    /// A subscription as a condition of [`Filter`](weft_nats::scan::Filter); `None` when its uid is none.
    pub fn predicate(subscription: &v1::Subscription, layout: Layout) -> Option<Arc<dyn Predicate>> {
        let matchers = layout.all().map(|shard| Self::new(subscription, shard)).collect::<Option<_>>()?;
        Some(Arc::new(Matchers(matchers)))
    }

    /// The same subscription by another filter.
    #[must_use]
    pub fn with_filter(self, filter: &v1::FilterRevision) -> Self {
        let expression = FilterExpression::of(&filter.expression);
        Self { types: filter.types.clone(), sources: filter.sources.clone(), expression, ..self }
    }

    /// Its type patterns.
    pub fn types(&self) -> &[String] {
        &self.types
    }

    /// The sources that it is limited to; empty: all.
    pub fn sources(&self) -> &[String] {
        &self.sources
    }

    /// Whether it takes this event; also where its expression fails on the event.
    pub fn takes(&self, event: &StoredEvent) -> bool {
        self.takes_with(event, &input_of(&event.event))
    }

    /// As [`takes`](Self::takes), with the event as expressions see it: several matchers parse its data once.
    pub fn takes_with(&self, event: &StoredEvent, input: &Input<'_>) -> bool {
        event.seq >= self.start
            && takes(&self.types, &self.sources, &event.event.event_type, &event.event.source)
            && self.expression.takes(input)
    }
}

/// A subscription's matchers, in shard order.
#[derive(Debug)]
struct Matchers(Vec<Matcher>);

impl Predicate for Matchers {
    fn takes(&self, shard: ShardId, event: &StoredEvent) -> bool {
        self.0.get(shard.0 as usize).is_some_and(|matcher| matcher.takes(event))
    }
}

#[cfg(test)]
mod tests {

    use jiff::Timestamp;
    use weft_nats::event::Event;

    use super::*;

    fn event(seq: u64, event_type: &str, source: &str) -> StoredEvent {
        StoredEvent {
            seq: StreamSeq(seq),
            stored_at: Timestamp::UNIX_EPOCH,
            event: Event { event_type: event_type.into(), source: source.into(), ..weft_testkit::event("w").build() },
        }
    }

    #[test]
    fn type_source_and_start_decide() {
        let subscription = v1::Subscription {
            uid: SubscriptionUid::unique().to_vec(),
            types: vec!["order.*".into(), "refund".into()],
            sources: vec!["shop".into()],
            starts: vec![1, 5],
            ..Default::default()
        };
        let matcher = Matcher::new(&subscription, ShardId(1)).unwrap();
        assert!(matcher.takes(&event(5, "order.paid", "shop")));
        assert!(matcher.takes(&event(9, "refund", "shop")));
        assert!(!matcher.takes(&event(9, "refund.late", "shop")));
        assert!(!matcher.takes(&event(9, "order.paid", "other")), "another source");
        assert!(!matcher.takes(&event(4, "order.paid", "shop")), "before its start");
        assert!(Matcher::new(&v1::Subscription::default(), ShardId(0)).is_none(), "no uid");
    }
}
