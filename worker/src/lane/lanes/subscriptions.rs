//! Subscriptions of the catalog: they are opened, revised, closed and orphaned.
//!
//! A changed filter counts from the next event. A subscription that an operator removed is closed in that operator's name; one
//! that is missing without a removal is orphaned, and keeps everything as if it were paused.
//!
//! A lane delivers in order across owners only if every owner matches an event by the same filter: where the next owner
//! takes an event that the previous one ignored, later events of that workflow may have been delivered already. Two rules
//! ensure it. Nothing is attempted by a filter that is not committed, so the record holds every filter that was used. And a
//! filter that takes more than the recorded one counts only after the end that EVENTS has at a take-over: the previous owner
//! may have read up to there, and delivered without a commit, by the recorded filter.

use std::{collections::BTreeSet, sync::Arc};

use jiff::Timestamp;
use weft_catalog::{Filters, Match, is_covered};
use weft_nats::event::StoredEvent;
use weft_proto::{
    ids::{Run, StreamSeq, SubscriptionUid},
    internal::{self, subscription_change::Change},
};

use super::Lanes;
use crate::lane::{
    action::Action,
    input::{LaneKey, SubscriptionPolicy, Work},
    lane::event_bytes,
    records::{outcome_of, receiver_record},
    schedule::Bounds,
    state::{Detached, Subscription},
};

/// Filters that are not in force yet.
#[derive(Debug)]
pub(super) struct FilterChanges {
    /// Subscriptions that await the commit of their filter, and its number.
    awaiting: Vec<(u64, SubscriptionUid)>,
    /// Up to where earlier owners may have read, by the filters of the record; `None`: unknown, so everywhere.
    earlier_end: Option<StreamSeq>,
    /// Subscriptions whose wider filter counts after `earlier_end`.
    deferred: BTreeSet<SubscriptionUid>,
}

impl FilterChanges {
    pub fn new(earlier_end: Option<StreamSeq>) -> Self {
        Self { awaiting: Vec::new(), earlier_end, deferred: BTreeSet::new() }
    }

    /// No earlier owner has read beyond `through`.
    pub fn set_earlier_end(&mut self, through: StreamSeq) {
        self.earlier_end = Some(through);
    }

    /// Whether an earlier owner may have read what follows the cursor.
    fn is_among_earlier(&self, cursor: StreamSeq) -> bool {
        self.earlier_end.is_none_or(|end| cursor < end)
    }
}

impl Lanes {
    pub(super) fn subscribed(&mut self, policy: SubscriptionPolicy, now: Timestamp, actions: &mut Vec<Action>) {
        let uid = policy.uid;
        if self.state.subscriptions.contains_key(&uid) {
            self.revise(&policy);
        } else {
            self.open(&policy);
        }
        let Some(subscription) = self.state.subscriptions.get_mut(&uid) else { return };
        let is_other = |old: &SubscriptionPolicy| {
            (old.catalog.created_ns, old.revision) != (policy.catalog.created_ns, policy.revision)
        };
        let renewed = subscription.policy.as_ref().is_some_and(is_other);
        subscription.orphaned = false;
        self.orphaned.remove(&uid);
        subscription.policy = Some(policy);
        if renewed {
            if let Some(detached) = &mut subscription.detached {
                // The new filter may not take the event that it waits with.
                detached.waits = false;
            }
            if self.schedule.is_circuit_open(uid) {
                self.schedule.forget_outage(uid);
                self.receiver_changed(uid, actions);
            }
        }
        self.switch(uid, now, actions);
    }

    /// Opens a subscription at its start; one that was closed before, after the events that it had taken until then.
    fn open(&mut self, policy: &SubscriptionPolicy) {
        let uid = policy.uid;
        let closed = self.state.closed_through(uid);
        if closed.is_some() && self.pending.is_due() {
            // The changes of a commit are applied after its lanes: the closing of the earlier lanes is committed first.
            self.seal();
        }
        let from = match closed {
            None => policy.start,
            Some(None) => policy.start.max(self.cursor.next()),
            Some(Some(through)) => policy.start.max(through.next()),
        };
        let opened = internal::Opened {
            name: policy.name.clone(),
            from: from.0,
            revision: policy.revision,
            types: policy.types.clone(),
            sources: policy.sources.clone(),
            ordered: Some(policy.ordered),
            expression: policy.expression.clone(),
        };
        self.change(uid, Change::Opened(opened), Some(policy.catalog));
        self.await_commit(uid, closed.is_some());
        // The shared reader has passed the events up to the cursor, so the subscription reads them with its own reader.
        if from <= self.cursor
            && let Some(subscription) = self.state.subscriptions.get_mut(&uid)
        {
            subscription.detached = Some(Detached::from(from));
            self.pending.detached(uid);
        }
    }

    /// A subscription attempts nothing until the open commit is stored, which holds its filter.
    fn await_commit(&mut self, uid: SubscriptionUid, reopening: bool) {
        if let Some(subscription) = self.state.subscriptions.get_mut(&uid) {
            subscription.awaits = Some(self.pending.open());
            subscription.reopening |= reopening;
            self.filter_changes.awaiting.push((self.pending.open(), uid));
        }
    }

    /// A commit is stored: the subscriptions whose filter it holds deliver.
    pub(super) fn filters_committed(&mut self, number: u64, now: Timestamp, actions: &mut Vec<Action>) {
        let committed: Vec<_> = self.filter_changes.awaiting.extract_if(.., |(of, _)| *of <= number).collect();
        for (_, uid) in committed {
            if let Some(subscription) = self.state.subscriptions.get_mut(&uid)
                && subscription.awaits.take_if(|awaited| *awaited <= number).is_some()
            {
                subscription.reopening = false;
                self.switch(uid, now, actions);
            }
        }
    }

    /// Puts wider filters in force, once everything is read that an earlier owner may have read.
    pub(super) fn apply_deferred_filters(&mut self, now: Timestamp, actions: &mut Vec<Action>) {
        if self.filter_changes.deferred.is_empty() || self.filter_changes.is_among_earlier(self.cursor) {
            return;
        }
        for uid in std::mem::take(&mut self.filter_changes.deferred) {
            let policy = self.state.subscriptions.get(&uid).and_then(|subscription| subscription.policy.clone());
            if let Some(policy) = policy {
                self.revise(&policy);
                self.switch(uid, now, actions);
            }
        }
    }

    /// Whether the newest filter of a subscription is not in force yet.
    pub fn is_filter_deferred(&self, uid: SubscriptionUid) -> bool {
        self.filter_changes.deferred.contains(&uid)
    }

    /// Adds a revision to the open commit, with the sequence that its filter counts from.
    fn revise(&mut self, policy: &SubscriptionPolicy) {
        let uid = policy.uid;
        self.filter_changes.deferred.remove(&uid);
        let Some(subscription) = self.state.subscriptions.get(&uid) else { return };
        let state = subscription.state();
        let is_unknown = state.filters.is_empty();
        // A bucket that was created again starts its revisions at 1.
        let same_bucket = state.catalog.is_none_or(|catalog| catalog.created_ns == policy.catalog.created_ns);
        if state.revision == policy.revision && same_bucket && !is_unknown {
            return;
        }
        let in_force = state.filters.last();
        let SubscriptionPolicy { types, sources, expression, .. } = policy;
        let is_other =
            in_force.is_none_or(|last| (&last.types, &last.sources, &last.expression) != (types, sources, expression));
        let is_wider = in_force.is_some_and(|last| !is_covered(types, sources, expression, last));
        if is_wider && self.filter_changes.is_among_earlier(self.cursor) {
            self.filter_changes.deferred.insert(uid);
            return;
        }
        // Earlier versions of Weft did not commit filters; that of a subscription that was never changed is known.
        let was_never_changed = is_unknown && policy.author.is_creator && state.revision == policy.revision;
        let from = if was_never_changed { state.from } else { self.cursor.next().0.max(state.from) };
        let revised = internal::Revised {
            revision: policy.revision,
            from,
            types: policy.types.clone(),
            sources: policy.sources.clone(),
            settled_below: self.settled_below(uid).0,
            ordered: Some(policy.ordered),
            expression: policy.expression.clone(),
        };
        self.change(uid, Change::Revised(revised), Some(policy.catalog));
        if is_other {
            self.await_commit(uid, false);
        }
    }

    /// Everything of a subscription below this is settled, and no recorded lane reads it again.
    fn settled_below(&self, uid: SubscriptionUid) -> StreamSeq {
        let lanes = self.state.lanes_of(uid).filter(|(_, lane)| !lane.is_settled()).map(|(_, lane)| lane.recorded_next);
        let unread = self.state.detached(uid).map(|detached| detached.through.next());
        lanes.chain(unread).min().unwrap_or(self.cursor.next())
    }

    /// Adds a change to the open commit, and applies it.
    fn change(&mut self, uid: SubscriptionUid, change: Change, catalog: Option<internal::CatalogPosition>) {
        let change = internal::SubscriptionChange { subscription: uid.to_vec(), change: Some(change), catalog };
        self.state.change(uid, &change);
        self.pending.subscription(change);
    }

    /// The condition of a subscription's receiver has changed: records it and informs the driver.
    pub(super) fn receiver_changed(&mut self, uid: SubscriptionUid, actions: &mut Vec<Action>) {
        let condition = self.schedule.condition(uid);
        self.pending.receiver(uid, receiver_record(uid, condition.as_ref()));
        actions.push(Action::Receiver { uid, condition });
    }

    /// Applies whether, and by which bounds, a subscription may deliver now.
    pub(in crate::lane) fn switch(&mut self, uid: SubscriptionUid, now: Timestamp, actions: &mut Vec<Action>) {
        let Some(subscription) = self.state.subscriptions.get(&uid) else { return };
        let (enabled, active) = (subscription.is_enabled(), subscription.is_active());
        let policy = subscription.policy.as_ref();
        let concurrency = policy.filter(|_| active).map_or(0, |policy| policy.concurrency);
        self.schedule
            .set_bounds(uid, Bounds { concurrency, min_interval: policy.and_then(|policy| policy.min_interval) });
        let keys: Vec<LaneKey> = self.state.lanes_of(uid).map(|(key, _)| key.clone()).collect();
        for key in keys {
            if !enabled && let Some(lane) = self.state.lanes.get_mut(&key) {
                self.memory.give_back(uid, lane.park());
            }
            self.advance(&key, now, actions);
        }
    }

    /// Closes a subscription in the operator's name. Returns whether it was open.
    pub(super) fn unsubscribed(
        &mut self,
        uid: SubscriptionUid,
        operator: String,
        reason: String,
        catalog: Option<internal::CatalogPosition>,
        actions: &mut Vec<Action>,
    ) -> bool {
        if !self.state.subscriptions.contains_key(&uid) {
            return false;
        }
        if self.schedule.is_circuit_open(uid) {
            self.schedule.forget_outage(uid);
            self.receiver_changed(uid, actions);
        }
        self.schedule.remove(uid);
        self.event_lanes.remove(uid);
        self.filter_changes.deferred.remove(&uid);
        self.orphaned.remove(&uid);
        let keys: Vec<LaneKey> = self.state.lanes_of(uid).map(|(key, _)| key.clone()).collect();
        for key in keys {
            if let Some(lane) = self.remove_lane(&key) {
                self.memory.give_back(uid, lane.buffer.iter().map(|event| event_bytes(event)).sum());
            }
        }
        let closed = internal::Closed { operator, reason, up_to: self.cursor.0 };
        self.change(uid, Change::Closed(closed), catalog);
        true
    }

    /// A subscription is missing from the catalog: its lanes stop, and it reads on from here once it is back.
    pub(super) fn orphaned(&mut self, uid: SubscriptionUid, now: Timestamp, actions: &mut Vec<Action>) {
        let next = self.cursor.next();
        let Some(subscription) = self.state.subscriptions.get_mut(&uid).filter(|known| !known.orphaned) else { return };
        // Its policy stays: it decides on the attempts in flight.
        subscription.orphaned = true;
        self.orphaned.insert(uid);
        if subscription.detached.is_none() {
            subscription.detached = Some(Detached { waits: true, ..Detached::from(next) });
            self.pending.detached(uid);
            actions.push(Action::Detach { uid });
        }
        self.switch(uid, now, actions);
    }

    /// Closes an orphaned subscription. Returns whether it was one.
    pub(super) fn discard_subscription(
        &mut self,
        uid: SubscriptionUid,
        operator: &str,
        reason: &str,
        actions: &mut Vec<Action>,
    ) -> bool {
        self.is_orphaned(uid) && self.unsubscribed(uid, operator.to_owned(), reason.to_owned(), None, actions)
    }

    /// Whether a subscription is orphaned: missing from the catalog without a removal.
    pub fn is_orphaned(&self, uid: SubscriptionUid) -> bool {
        self.state.subscriptions.get(&uid).is_some_and(|subscription| subscription.orphaned)
    }

    /// The orphaned subscriptions and their names.
    pub fn orphans(&self) -> impl Iterator<Item = (SubscriptionUid, &str)> {
        let known = |uid: &SubscriptionUid| Some((*uid, self.state.subscriptions.get(uid)?.state().name.as_str()));
        self.orphaned.iter().filter_map(known)
    }

    /// Whether an orphaned subscription matches an event, which it takes once it is back.
    pub fn waits_for_owner(&self, event: &StoredEvent) -> bool {
        // Most shards have none; with thousands of subscriptions, a look at each would be the price of every event.
        let mut orphans = self.orphaned.iter().filter_map(|uid| self.state.subscriptions.get(uid));
        orphans.any(|subscription| subscription.filters().judge(event) == Match::Taken)
    }

    /// Whether commands to a subscription's lanes can be carried out: it is open, and known to be ordered or not. While it is
    /// being opened again, the ledger still has the records of the time before.
    pub(super) fn takes_commands(&self, uid: SubscriptionUid) -> bool {
        let is_open = |subscription: &Subscription| {
            !subscription.reopening && (subscription.policy.is_some() || subscription.state().ordered.is_some())
        };
        self.state.subscriptions.get(&uid).is_some_and(is_open)
    }

    /// The uids of all subscriptions that are not closed.
    pub fn subscriptions(&self) -> impl Iterator<Item = SubscriptionUid> {
        self.state.subscriptions.keys().copied()
    }

    /// The record of a subscription, with the pending changes.
    pub fn subscription(&self, uid: SubscriptionUid) -> Option<&internal::SubscriptionState> {
        self.state.subscriptions.get(&uid).map(|subscription| subscription.state())
    }

    /// The filters by which a subscription's lanes and its own reader take events.
    pub fn filters(&self, uid: SubscriptionUid) -> Option<Arc<Filters>> {
        self.state.subscriptions.get(&uid).map(|subscription| Arc::clone(subscription.filters()))
    }

    /// The newest position of the catalog that a change of a subscription was decided at.
    pub fn catalog(&self) -> internal::CatalogPosition {
        self.state.catalog()
    }

    /// The operator in whose name the head of a lane is discarded: a narrower filter does not take it, and only an earlier
    /// version of Weft knew the filter before that.
    pub(super) fn discarding_operator(&self, key: &LaneKey, event: &StoredEvent) -> Option<String> {
        let subscription = self.state.subscriptions.get(&key.subscription)?;
        let policy = subscription.policy.as_ref()?;
        let operator = || match policy.author.operator.as_str() {
            "" => format!("catalog revision {}", policy.revision),
            operator => operator.to_owned(),
        };
        (subscription.filters().judge(event) == Match::Unknown).then(operator)
    }

    /// Discards the head of a lane without an attempt.
    pub(super) fn discard_head(&mut self, key: &LaneKey, event: &Arc<StoredEvent>, operator: String, now: Timestamp) {
        let Some(lane) = self.state.lanes.get_mut(key) else { return };
        let attempts = lane.head.ended;
        self.memory.give_back(key.subscription, lane.settle_head(event.seq));
        let outcome = internal::Outcome {
            kind: internal::OutcomeKind::Discarded.into(),
            event_id: event.event.id.to_vec(),
            attempts,
            at_ms: now.as_millisecond(),
            operator,
            ..outcome_of(&Work { lane: key.clone(), seq: event.seq, run: Run::LIVE })
        };
        self.record_outcome(key, outcome);
    }
}
