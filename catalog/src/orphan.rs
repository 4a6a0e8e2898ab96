//! Subscriptions that the log knows and the catalog lacks, though they were never removed. Pure.

use std::collections::BTreeMap;

use weft_nats::subject::Layout;
use weft_proto::{
    ids::{ShardId, SubscriptionUid},
    internal,
};

use super::snapshot::Snapshot;

/// An orphaned subscription.
#[derive(Debug, Clone, PartialEq)]
pub struct Orphan {
    /// Identity of the subscription in lanes.
    pub uid: SubscriptionUid,
    /// Name of the subscription.
    pub name: String,
    /// The first sequence that it takes, for every shard; 0 where the shard does not know it.
    pub starts: Vec<u64>,
    /// Its events wait for each other, if that is known.
    pub ordered: Option<bool>,
    /// The type patterns and sources that it had last; no types where they are not known.
    pub types: Vec<String>,
    /// As `types`.
    pub sources: Vec<String>,
}

/// The subscriptions that are open in the log, by shard, and that the catalog neither has nor knows to be removed.
pub fn orphans(open: &[(ShardId, internal::SubscriptionState)], snapshot: &Snapshot, layout: Layout) -> Vec<Orphan> {
    let mut found: BTreeMap<SubscriptionUid, Orphan> = BTreeMap::new();
    for (shard, state) in open.iter().filter(|(_, state)| !snapshot.knows(&state.subscription)) {
        let Some(uid) = SubscriptionUid::from_slice(&state.subscription) else { continue };
        let orphan = found.entry(uid).or_insert_with(|| Orphan {
            uid,
            name: state.name.clone(),
            starts: vec![0; layout.shards() as usize],
            ordered: None,
            types: Vec::new(),
            sources: Vec::new(),
        });
        if let Some(start) = orphan.starts.get_mut(shard.0 as usize) {
            *start = state.from;
        }
        orphan.ordered = orphan.ordered.or(state.ordered);
        if let Some(filter) = state.filters.last() {
            orphan.types.clone_from(&filter.types);
            orphan.sources.clone_from(&filter.sources);
        }
    }
    found.into_values().collect()
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use weft_proto::{internal, v1};

    use super::*;
    use crate::{
        change::adopt,
        snapshot::{Removal, Revised},
    };

    fn state(uid: u8, name: &str, from: u64) -> internal::SubscriptionState {
        let filter = internal::FilterRevision { types: vec!["order.*".into()], ..Default::default() };
        internal::SubscriptionState {
            subscription: vec![uid; 16],
            name: name.into(),
            from,
            ordered: Some(false),
            filters: vec![filter],
            ..Default::default()
        }
    }

    #[test]
    fn an_orphan_is_open_in_the_log_and_nowhere_in_the_catalog() {
        let open = [
            (ShardId(0), state(1, "kept", 1)),
            (ShardId(0), state(2, "removed", 1)),
            (ShardId(1), state(3, "lost", 7)),
        ];
        let kept = v1::Subscription { uid: vec![1; 16], name: "kept".into(), ..Default::default() };
        let kept = Revised { revision: 1, value: Arc::new(kept) };
        let snapshot = Snapshot {
            names: [(vec![1; 16], "kept".to_owned())].into(),
            subscriptions: [("kept".to_owned(), kept)].into(),
            removals: [(vec![2; 16], Removal::default())].into(),
            ..Snapshot::default()
        };
        let orphans = orphans(&open, &snapshot, Layout::new(2));
        let [lost] = &orphans[..] else { panic!("one: {orphans:?}") };
        assert_eq!((lost.name.as_str(), &lost.starts[..]), ("lost", &[0, 7][..]));

        let wanted = v1::Subscription { name: "lost".into(), ordered: Some(false), ..Default::default() };
        let adopted = adopt(lost, wanted.clone()).unwrap();
        assert_eq!((adopted.uid, adopted.types), (vec![3; 16], vec!["order.*".to_owned()]));
        assert!(adopt(lost, v1::Subscription { ordered: Some(true), ..wanted }).is_err());
    }
}
