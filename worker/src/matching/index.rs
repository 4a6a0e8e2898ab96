//! An index of subscriptions by source and type. Pure.
//!
//! Most type patterns are a literal type or begin with one (`order.*`), so an event is looked up by its type and by each
//! prefix length that any pattern has. Only patterns that begin with a star are tried one by one. So the cost of an event
//! depends on its candidates, not on the number of subscriptions.

use std::collections::{BTreeMap, HashMap};

use weft_proto::ids::SubscriptionUid;

/// The patterns of all subscriptions, by the sources that they are limited to.
#[derive(Debug, Default)]
pub(super) struct MatchIndex {
    any_source: TypeIndex,
    by_source: HashMap<String, TypeIndex>,
}

/// Subscriptions by their type patterns. A subscription may have several entries.
#[derive(Debug, Default)]
struct TypeIndex {
    /// Patterns without a star.
    exact: HashMap<String, Vec<SubscriptionUid>>,
    /// Literal bytes before a pattern's first star, by their number.
    prefixes: BTreeMap<usize, HashMap<Vec<u8>, Vec<SubscriptionUid>>>,
    /// Patterns that begin with a star.
    rest: Vec<SubscriptionUid>,
}

impl MatchIndex {
    /// Adds a subscription; without `sources`: of all sources.
    pub fn insert(&mut self, uid: SubscriptionUid, types: &[String], sources: &[String]) {
        if sources.is_empty() {
            self.any_source.insert(uid, types);
        }
        for source in sources {
            self.by_source.entry(source.clone()).or_default().insert(uid, types);
        }
    }

    /// Removes a subscription that was added with the same types and sources.
    pub fn remove(&mut self, uid: SubscriptionUid, types: &[String], sources: &[String]) {
        if sources.is_empty() {
            self.any_source.remove(uid, types);
        }
        for source in sources {
            let Some(index) = self.by_source.get_mut(source) else { continue };
            index.remove(uid, types);
            if index.is_empty() {
                self.by_source.remove(source);
            }
        }
    }

    /// Candidates for an event: every subscription that matches this source and type is among them, once.
    pub fn candidates(&self, source: &str, event_type: &str) -> Vec<SubscriptionUid> {
        let mut candidates = Vec::new();
        self.any_source.collect(event_type, &mut candidates);
        if let Some(index) = self.by_source.get(source) {
            index.collect(event_type, &mut candidates);
        }
        candidates.sort_unstable();
        candidates.dedup();
        candidates
    }
}

impl TypeIndex {
    fn insert(&mut self, uid: SubscriptionUid, types: &[String]) {
        for pattern in types {
            match pattern.find('*') {
                None => self.exact.entry(pattern.clone()).or_default().push(uid),
                Some(0) => self.rest.push(uid),
                Some(length) => {
                    let prefix = pattern.as_bytes()[..length].to_vec();
                    self.prefixes.entry(length).or_default().entry(prefix).or_default().push(uid);
                }
            }
        }
    }

    fn remove(&mut self, uid: SubscriptionUid, types: &[String]) {
        for pattern in types {
            match pattern.find('*') {
                None => {
                    if let Some(uids) = self.exact.get_mut(pattern) {
                        uids.retain(|other| *other != uid);
                        if uids.is_empty() {
                            self.exact.remove(pattern);
                        }
                    }
                }
                Some(0) => self.rest.retain(|other| *other != uid),
                Some(length) => self.remove_prefix(uid, &pattern.as_bytes()[..length]),
            }
        }
    }

    fn remove_prefix(&mut self, uid: SubscriptionUid, prefix: &[u8]) {
        let Some(of_length) = self.prefixes.get_mut(&prefix.len()) else { return };
        if let Some(uids) = of_length.get_mut(prefix) {
            uids.retain(|other| *other != uid);
            if uids.is_empty() {
                of_length.remove(prefix);
            }
        }
        if of_length.is_empty() {
            self.prefixes.remove(&prefix.len());
        }
    }

    fn is_empty(&self) -> bool {
        self.exact.is_empty() && self.prefixes.is_empty() && self.rest.is_empty()
    }

    fn collect(&self, event_type: &str, candidates: &mut Vec<SubscriptionUid>) {
        candidates.extend(self.exact.get(event_type).into_iter().flatten());
        let bytes = event_type.as_bytes();
        for (length, of_length) in self.prefixes.range(..=bytes.len()) {
            candidates.extend(of_length.get(&bytes[..*length]).into_iter().flatten());
        }
        candidates.extend(&self.rest);
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use proptest::prelude::*;
    use weft_nats::pattern::pattern_matches;

    use super::*;

    /// Type patterns and sources of a subscription.
    type Wanted = (Vec<String>, Vec<String>);

    fn wanted() -> impl Strategy<Value = Wanted> {
        (proptest::collection::vec("[ab*]{0,4}", 1..3), proptest::collection::vec("[st]", 0..3))
    }

    proptest! {
        /// After any changes, the candidates contain every subscription that a search of all of them finds, and none of another
        /// source.
        #[test]
        fn candidates_hold_every_subscription_that_takes_the_event(
            changes in proptest::collection::vec((0u8..8, proptest::option::of(wanted())), 1..30),
            source in "[stu]", event_type in "[ab]{0,5}",
        ) {
            let mut index = MatchIndex::default();
            let mut model: BTreeMap<SubscriptionUid, Wanted> = BTreeMap::new();
            for (n, new) in changes {
                let uid = SubscriptionUid::from_bytes([n + 1; 16]);
                if let Some((types, sources)) = model.remove(&uid) {
                    index.remove(uid, &types, &sources);
                }
                if let Some((types, sources)) = new {
                    index.insert(uid, &types, &sources);
                    model.insert(uid, (types, sources));
                }
            }
            let candidates = index.candidates(&source, &event_type);
            prop_assert!(candidates.is_sorted() && candidates.windows(2).all(|pair| pair[0] != pair[1]));
            for (uid, (types, sources)) in &model {
                let of_source = sources.is_empty() || sources.contains(&source);
                let taken = of_source && types.iter().any(|pattern| pattern_matches(pattern, &event_type));
                prop_assert!(!taken || candidates.contains(uid));
                prop_assert!(of_source || !candidates.contains(uid));
            }
            prop_assert!(candidates.iter().all(|uid| model.contains_key(uid)));
            for (uid, (types, sources)) in &model {
                index.remove(*uid, types, sources);
            }
            prop_assert!(index.any_source.is_empty() && index.by_source.is_empty());
        }
    }

    #[test]
    fn a_literal_prefix_leaves_other_types_out() {
        let [orders, refunds, all] = [1, 2, 3].map(|n| SubscriptionUid::from_bytes([n; 16]));
        let mut index = MatchIndex::default();
        index.insert(orders, &["order.*".into()], &[]);
        index.insert(refunds, &["refund".into()], &["shop".into()]);
        index.insert(all, &["*.paid".into()], &[]);
        assert_eq!(index.candidates("shop", "order.paid"), [orders, all]);
        assert_eq!(index.candidates("shop", "refund"), [refunds, all]);
        assert_eq!(index.candidates("other", "refund"), [all]);
    }
}
