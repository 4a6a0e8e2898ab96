//! Names of subscriptions for the subjects of copies.
//!
//! A copy may be made long after its dead letter was committed, and by another owner. So that every owner gives it the same
//! subject, it uses the name by which the log knows the subscription, also when that has left the catalog since.

use std::collections::HashMap;

use weft_catalog::Snapshot;
use weft_proto::{
    ids::SubscriptionUid,
    internal::{self, subscription_change::Change},
};

/// Names by uid, from the commits up to now.
#[derive(Debug, Default)]
pub(super) struct Names {
    opened: HashMap<SubscriptionUid, String>,
}

impl Names {
    /// The names of the ledger's subscriptions, closed ones included.
    pub fn new(states: Vec<internal::SubscriptionState>) -> Self {
        let mut names = Self::default();
        for state in states {
            names.note(&state.subscription, state.name);
        }
        names
    }

    /// Adds the names in a commit.
    pub fn add(&mut self, commit: &internal::Commit) {
        for change in &commit.subscriptions {
            if let Some(Change::Opened(opened)) = &change.change {
                self.note(&change.subscription, opened.name.clone());
            }
        }
    }

    fn note(&mut self, uid: &[u8], name: String) {
        if let Some(uid) = SubscriptionUid::from_slice(uid).filter(|_| !name.is_empty()) {
            self.opened.insert(uid, name);
        }
    }

    /// The name of a subscription in the log, else in the catalog, else its uid.
    pub fn of(&self, uid: SubscriptionUid, catalog: &Snapshot) -> String {
        if let Some(name) = self.opened.get(&uid) {
            return name.clone();
        }
        let found = catalog.subscription_of(uid.as_bytes());
        found.map_or_else(|| uid.to_string(), |subscription| subscription.value.name.clone())
    }
}
