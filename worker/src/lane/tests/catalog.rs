//! The catalog of the model: subscriptions are added, changed, lost, removed and restored.

use super::*;

impl Model {
    pub fn subscribe(&mut self) {
        for subscription in 0..SUBSCRIPTIONS {
            self.revisions.entry(subscription).or_insert(self.revision);
            if self.removed.contains(&subscription) {
                self.close(subscription);
            } else if self.missing.contains(&subscription) {
                self.handle(Input::Orphaned { uid: uid(subscription) });
            } else {
                self.put(subscription);
            }
        }
    }

    /// Another revision of a subscription: what is known of its receiver is forgotten where that has been away.
    pub fn subscribed(&mut self, policy: SubscriptionPolicy) {
        if self.held.contains_key(&policy.uid) {
            self.failing.retain(|(uid, _)| *uid != policy.uid);
        }
        self.handle(Input::Subscribed(policy));
    }

    /// The catalog has a subscription as the model knows it.
    fn put(&mut self, subscription: u8) {
        let (paused, narrow) = (self.paused.contains(&subscription), self.narrow.contains(&subscription));
        let max_events = if subscription == UNORDERED { 1 } else { self.batch };
        let policy = policy_of(subscription, paused, self.revisions[&subscription], narrow);
        let policy = SubscriptionPolicy { max_events, ..policy };
        if self.lanes.subscription(uid(subscription)).is_none() {
            // What it takes of what came before, it reads on its own.
            let closed = self.closed.get(&subscription).copied().unwrap_or_default();
            for seq in closed + 1..=self.read as u64 {
                self.taken.insert((subscription, seq), filter_takes(subscription, narrow, seq));
            }
        }
        // Only of a subscription that an earlier owner has delivered for.
        let is_known = self.lanes.subscription(uid(subscription)).is_some();
        let is_wider = is_known && !narrow && self.narrow_in_force.contains(&subscription);
        if is_wider && self.is_among_earlier() {
            self.deferred.insert(subscription);
        } else {
            self.deferred.remove(&subscription);
            self.force(subscription, narrow);
        }
        self.subscribed(policy);
        if let Some(through) = self.lanes.detached_through(uid(subscription)) {
            self.detached.entry(uid(subscription)).or_insert(through.0 as usize);
        }
    }

    /// Whether an earlier owner may have read the next event, for all that this one knows.
    pub fn is_among_earlier(&self) -> bool {
        self.earlier_end.is_none_or(|end| self.read < end)
    }

    /// From now on events are matched by this filter.
    pub fn force(&mut self, subscription: u8, narrow: bool) {
        if narrow {
            self.narrow_in_force.insert(subscription);
        } else {
            self.narrow_in_force.remove(&subscription);
        }
    }

    fn close(&mut self, subscription: u8) {
        let catalog = internal::CatalogPosition { created_ns: 1, sequence: self.revision };
        let uid = uid(subscription);
        if self.lanes.subscription(uid).is_some() {
            self.handle(Input::Unsubscribed { uid, operator: "ann".into(), reason: String::new(), catalog });
            self.detached.remove(&uid);
            self.held.remove(&uid);
            self.failing.retain(|(of, _)| *of != uid);
            self.closed.insert(subscription, self.read as u64);
            self.deferred.remove(&subscription);
        }
    }

    /// Whether a subscription takes an event: by the filter in force when it was read.
    pub fn takes(&self, subscription: u8, seq: StreamSeq) -> bool {
        self.taken.get(&(subscription, seq.0)).copied().unwrap_or(false)
    }

    /// Changes the filter of a subscription.
    pub fn refilter(&mut self, subscription: u8, narrow: bool) {
        if narrow {
            self.narrow.insert(subscription);
        } else {
            self.narrow.remove(&subscription);
        }
        self.renew(subscription);
    }

    /// The catalog has another revision of a subscription, if it has the subscription.
    pub fn renew(&mut self, subscription: u8) {
        self.revision += 1;
        self.revisions.insert(subscription, self.revision);
        if !self.missing.contains(&subscription) && !self.removed.contains(&subscription) {
            self.put(subscription);
        }
    }

    /// The catalog loses a subscription.
    pub fn lose(&mut self, subscription: u8) {
        if !self.removed.contains(&subscription) && self.missing.insert(subscription) {
            self.handle(Input::Orphaned { uid: uid(subscription) });
        }
    }

    /// A lost subscription is in the catalog again.
    pub fn adopt(&mut self, subscription: u8) {
        if self.missing.remove(&subscription) {
            self.renew(subscription);
        }
    }

    /// An operator removes a subscription.
    pub fn remove(&mut self, subscription: u8) {
        if !self.missing.contains(&subscription) && self.removed.insert(subscription) {
            self.close(subscription);
        }
    }

    /// An operator discards a subscription that was lost.
    pub fn discard(&mut self, subscription: u8) {
        let uid = uid(subscription);
        if self.missing.contains(&subscription) && self.lanes.is_orphaned(uid) {
            self.command(CommandAction::DiscardSubscription { uid });
            self.missing.remove(&subscription);
            self.removed.insert(subscription);
            self.detached.remove(&uid);
            self.held.remove(&uid);
            self.failing.retain(|(of, _)| *of != uid);
            self.closed.insert(subscription, self.read as u64);
            self.deferred.remove(&subscription);
        }
    }

    /// A removed subscription is in the catalog again, with its uid, as after the restoration of a copy.
    pub fn bring_back(&mut self, subscription: u8) {
        let is_busy = self.attempts.iter().any(|attempt| attempt.work.lane.subscription == uid(subscription));
        if is_busy || !self.removed.remove(&subscription) {
            return;
        }
        self.renew(subscription);
    }
}
