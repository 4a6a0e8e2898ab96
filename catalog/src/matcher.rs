//! Matching of events against a subscription's filter. Pure.

use std::sync::Arc;

use weft_expression::Input;
use weft_nats::{
    event::{Event, StoredEvent},
    scan::Predicate,
    subject::Layout,
};
use weft_proto::{
    ids::{ShardId, StreamSeq, SubscriptionUid},
    internal, v1,
};

use super::{
    expression::{FilterExpression, Verdict, input_of},
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
    /// The matcher of a subscription of the catalog; `None` when its uid is invalid.
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
    pub fn with_filter(self, filter: &internal::FilterRevision) -> Self {
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

/// Why a subscription does not take an event.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Mismatch {
    /// No type pattern matches.
    #[error("type {event_type:?} matches none of its types")]
    Type {
        /// The event's.
        event_type: String,
    },
    /// It takes other sources.
    #[error("source {source_name:?} is none of its sources")]
    Source {
        /// The event's.
        source_name: String,
    },
    /// Its filter is false.
    #[error("its filter is false")]
    Filter,
}

/// Whether a subscription takes an event, regardless of its start, and why not. `Ok` with a text: it takes the event because
/// its filter fails, with this error.
///
/// # Errors
///
/// [`Mismatch`]: it does not.
pub fn explain(subscription: &v1::Subscription, event: &Event) -> Result<Option<String>, Mismatch> {
    let (event_type, source) = (&event.event_type, &event.source);
    if !takes(&subscription.types, std::slice::from_ref(source), event_type, source) {
        return Err(Mismatch::Type { event_type: event_type.clone() });
    }
    if !takes(&subscription.types, &subscription.sources, event_type, source) {
        return Err(Mismatch::Source { source_name: source.clone() });
    }
    match FilterExpression::of(&subscription.filter).verdict(&input_of(event)) {
        Verdict::Taken => Ok(None),
        Verdict::Ignored => Err(Mismatch::Filter),
        Verdict::Failed(error) => Ok(Some(error)),
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
    use bytes::Bytes;
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

    #[test]
    fn a_mismatch_names_what_does_not_match() {
        let subscription = v1::Subscription {
            types: vec!["order.*".into()],
            sources: vec!["shop".into()],
            filter: "event.workflowId != 'w' || data.total > 1".into(),
            ..Default::default()
        };
        let explained = |event_type: &str, source: &str, data: &'static str| {
            let mut event = event(1, event_type, source).event;
            event.payload = Bytes::from_static(data.as_bytes());
            explain(&subscription, &event).map_err(|mismatch| mismatch.to_string())
        };
        assert_eq!(explained("order.paid", "shop", r#"{"total":2}"#), Ok(None));
        assert_eq!(explained("order.paid", "shop", r#"{"total":1}"#), Err("its filter is false".into()));
        assert_eq!(explained("order.paid", "shop", "{}"), Ok(Some("1:32: no such member: total".into())));
        assert_eq!(explained("refund", "shop", "{}"), Err("type \"refund\" matches none of its types".into()));
        assert_eq!(explained("order.paid", "crm", "{}"), Err("source \"crm\" is none of its sources".into()));
    }
}
