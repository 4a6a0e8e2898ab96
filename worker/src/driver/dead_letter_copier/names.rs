//! The names of subscriptions for the subjects of copies.
//!
//! A copy may be made long after its dead letter was committed, and by another owner. So that every owner gives it the same
//! subject, its subscription has the name by which the log knows it, also when it has left the catalog meanwhile.

use std::collections::HashMap;

use weft_nats::catalog::Snapshot;
use weft_proto::{
    ids::SubscriptionUid,
    v1::{self, subscription_change::Change},
};

/// Names by uid, as far as the commits up to now tell them.
#[derive(Debug, Default)]
pub(super) struct Names {
    opened: HashMap<SubscriptionUid, String>,
}

impl Names {
    /// Of the subscriptions that a ledger knows, also of closed ones.
    pub fn new(states: Vec<v1::SubscriptionState>) -> Self {
        let mut names = Self::default();
        for state in states {
            names.note(&state.subscription, state.name);
        }
        names
    }

    /// Takes what a commit tells.
    pub fn add(&mut self, commit: &v1::Commit) {
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

    /// The name of a subscription: of the log, else of the catalog, else its uid.
    pub fn of(&self, uid: SubscriptionUid, catalog: &Snapshot) -> String {
        if let Some(name) = self.opened.get(&uid) {
            return name.clone();
        }
        let found = catalog.subscription_of(uid.as_bytes());
        found.map_or_else(|| uid.to_string(), |subscription| subscription.value.name.clone())
    }
}
