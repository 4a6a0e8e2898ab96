//! Subscriptions as the catalog has them: they come, change, are removed, or are missing.
//!
//! What a subscription has taken ends with an outcome. A changed filter counts from the next event; a subscription that is
//! removed is closed in the name of who removed it; one that is merely missing keeps everything, as if it were paused.
//!
//! A lane delivers in order across owners only if every owner matches an event by the same filter: where the next owner
//! takes an event that the one before had ignored, later events of that workflow may have been delivered already. Two
//! rules ensure it. Nothing is attempted by a filter that is not committed, so the record holds every filter that was
//! used. And a filter that takes more than the recorded one counts only behind the end that EVENTS has after a take-over:
//! what lies before may have been read, and delivered without a commit, by the recorded filter.

use std::sync::Arc;

use jiff::Timestamp;
use weft_nats::{
    catalog::{Filters, Match, is_covered},
    event::StoredEvent,
};
use weft_proto::{
    ids::{Run, StreamSeq, SubscriptionUid},
    v1::{self, subscription_change::Change},
};

use super::{
    action::Action,
    detached::Detached,
    flaw::{Flaw, has},
    input::{LaneKey, SubscriptionPolicy, Work},
    lane::event_bytes,
    lanes::Lanes,
    schedule::Bounds,
    state::{Subscription, outcome_of, receiver_record},
};

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
        subscription.policy = Some(policy);
        if renewed {
            if let Some(detached) = &mut subscription.detached {
                // Another filter may not take what it waits for.
                detached.waits = false;
            }
            if self.schedule.is_circuit_open(uid) {
                self.schedule.forget_outage(uid);
                self.receiver_changed(uid, actions);
            }
        }
        self.switch(uid, now, actions);
    }

    /// Takes events for a subscription from its start on. One that was closed before has nothing to do with what ended
    /// then.
    fn open(&mut self, policy: &SubscriptionPolicy) {
        let uid = policy.uid;
        let ended = self.state.closed_through(uid).filter(|_| !has(Flaw::EndedComesBack));
        if ended.is_some() && self.pending.is_due() {
            // A commit's changes of subscriptions are applied after its lanes: the end of the old lanes comes first.
            self.seal();
        }
        let from = match ended {
            None => policy.start,
            Some(None) => policy.start.max(self.cursor.next()),
            Some(Some(ended)) => policy.start.max(ended.next()),
        };
        let opened = v1::Opened {
            name: policy.name.clone(),
            from: from.0,
            revision: policy.revision,
            types: policy.types.clone(),
            sources: policy.sources.clone(),
            ordered: Some(policy.ordered),
        };
        self.change(uid, Change::Opened(opened), Some(policy.catalog));
        self.await_commit(uid, ended.is_some());
        // What lies at or below the cursor has passed the shared reader: a reader of its own fetches it.
        if from <= self.cursor
            && let Some(subscription) = self.state.subscriptions.get_mut(&uid)
        {
            subscription.detached = Some(Detached::behind(from));
            self.pending.detached(uid);
        }
    }

    /// A subscription attempts nothing before the open draft is committed, which holds its filter.
    fn await_commit(&mut self, uid: SubscriptionUid, reopening: bool) {
        if let Some(subscription) = self.state.subscriptions.get_mut(&uid) {
            subscription.awaits = Some(self.pending.open());
            subscription.reopening |= reopening;
            self.awaiting.push((self.pending.open(), uid));
        }
    }

    /// A draft is committed: the subscriptions deliver whose filter it holds.
    pub(super) fn filters_committed(&mut self, pending: u64, now: Timestamp, actions: &mut Vec<Action>) {
        let committed: Vec<_> = self.awaiting.extract_if(.., |(of, _)| *of <= pending).collect();
        for (_, uid) in committed {
            if let Some(subscription) = self.state.subscriptions.get_mut(&uid)
                && subscription.awaits.take_if(|awaited| *awaited <= pending).is_some()
            {
                subscription.reopening = false;
                self.switch(uid, now, actions);
            }
        }
    }

    /// Filters count that had to wait until everything was read that an earlier owner may have read.
    pub(super) fn apply_deferred_filters(&mut self, now: Timestamp, actions: &mut Vec<Action>) {
        if self.deferred.is_empty() || self.is_among_earlier() {
            return;
        }
        for uid in std::mem::take(&mut self.deferred) {
            let policy = self.state.subscriptions.get(&uid).and_then(|subscription| subscription.policy.clone());
            if let Some(policy) = policy {
                self.revise(&policy);
                self.switch(uid, now, actions);
            }
        }
    }

    /// Whether an earlier owner may have read what comes next.
    fn is_among_earlier(&self) -> bool {
        self.earlier_end.is_none_or(|end| self.cursor < end)
    }

    /// Whether the filter of the newest rules of a subscription does not count yet.
    pub fn is_filter_deferred(&self, uid: SubscriptionUid) -> bool {
        self.deferred.contains(&uid)
    }

    /// Commits another revision, with the sequence that its filter counts from.
    fn revise(&mut self, policy: &SubscriptionPolicy) {
        let uid = policy.uid;
        self.deferred.remove(&uid);
        let Some(subscription) = self.state.subscriptions.get(&uid) else { return };
        let state = subscription.state();
        let is_unknown = state.filters.is_empty();
        // Another bucket counts its revisions anew.
        let same_bucket = state.catalog.is_none_or(|catalog| catalog.created_ns == policy.catalog.created_ns);
        if state.revision == policy.revision && same_bucket && !is_unknown {
            return;
        }
        let in_force = state.filters.last();
        let is_other = in_force.is_none_or(|last| (&last.types, &last.sources) != (&policy.types, &policy.sources));
        let is_wider = in_force.is_some_and(|last| !is_covered(&policy.types, &policy.sources, last));
        if is_wider && self.is_among_earlier() && !has(Flaw::WiderAtTakeOver) {
            self.deferred.insert(uid);
            return;
        }
        // An earlier version has not committed the filter; one that was never changed is known all the same.
        let was_never_changed = is_unknown && policy.author.is_creator && state.revision == policy.revision;
        let from = if was_never_changed { state.from } else { self.cursor.next().0.max(state.from) };
        let revised = v1::Revised {
            revision: policy.revision,
            from,
            types: policy.types.clone(),
            sources: policy.sources.clone(),
            settled_below: self.settled_below(uid).0,
            ordered: Some(policy.ordered),
        };
        self.change(uid, Change::Revised(revised), Some(policy.catalog));
        if is_other {
            self.await_commit(uid, false);
        }
    }

    /// Everything of a subscription below this is settled, and no lane of the record reads it again.
    fn settled_below(&self, uid: SubscriptionUid) -> StreamSeq {
        let lanes = self.state.lanes_of(uid).filter(|(_, lane)| !lane.is_settled()).map(|(_, lane)| lane.recorded_next);
        let unread = self.state.detached(uid).map(|detached| detached.through.next());
        lanes.chain(unread).min().unwrap_or(self.cursor.next())
    }

    /// Drafts a change, and takes note of it.
    fn change(&mut self, uid: SubscriptionUid, change: Change, catalog: Option<v1::CatalogPosition>) {
        let change = v1::SubscriptionChange { subscription: uid.to_vec(), change: Some(change), catalog };
        self.state.change(uid, &change);
        self.pending.subscription(change);
    }

    /// A subscription's receiver stands otherwise than before: the open draft and the driver are informed.
    pub(super) fn receiver_changed(&mut self, uid: SubscriptionUid, actions: &mut Vec<Action>) {
        let condition = self.schedule.condition(uid);
        self.pending.receiver(uid, receiver_record(uid, condition.as_ref()));
        actions.push(Action::Receiver { uid, condition });
    }

    /// A subscription may deliver by other rules now, or not at all.
    pub(super) fn switch(&mut self, uid: SubscriptionUid, now: Timestamp, actions: &mut Vec<Action>) {
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

    /// Closes a subscription in the operator's name. Whether there was one.
    pub(super) fn unsubscribed(
        &mut self,
        uid: SubscriptionUid,
        operator: String,
        reason: String,
        catalog: Option<v1::CatalogPosition>,
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
        self.waiting_for_slot.remove(&uid);
        self.deferred.remove(&uid);
        let keys: Vec<LaneKey> = self.state.lanes_of(uid).map(|(key, _)| key.clone()).collect();
        for key in keys {
            if let Some(lane) = self.state.remove_lane(&key) {
                self.memory.give_back(uid, lane.buffer.iter().map(|event| event_bytes(event)).sum());
                if let Some(at) = lane.timer {
                    self.schedule.disarm(at, &key);
                }
            }
        }
        let closed = v1::Closed { operator, reason, up_to: self.cursor.0 };
        self.change(uid, Change::Closed(closed), catalog);
        true
    }

    /// A subscription is missing from the catalog: its lanes stand still, and it reads on from here when it is back.
    pub(super) fn orphaned(&mut self, uid: SubscriptionUid, now: Timestamp, actions: &mut Vec<Action>) {
        if has(Flaw::MissingIsRemoved) {
            self.unsubscribed(uid, String::new(), String::new(), None, actions);
            return;
        }
        let next = self.cursor.next();
        let Some(subscription) = self.state.subscriptions.get_mut(&uid).filter(|known| !known.orphaned) else { return };
        // Its rules stay: by them an attempt in flight ends.
        subscription.orphaned = true;
        if subscription.detached.is_none() {
            subscription.detached = Some(Detached { waits: true, ..Detached::behind(next) });
            self.pending.detached(uid);
            actions.push(Action::Detach { uid });
        }
        self.switch(uid, now, actions);
    }

    /// An operator gives an orphaned subscription up. Whether it is one.
    pub(super) fn discard_subscription(
        &mut self,
        uid: SubscriptionUid,
        operator: &str,
        reason: &str,
        actions: &mut Vec<Action>,
    ) -> bool {
        self.is_orphaned(uid) && self.unsubscribed(uid, operator.to_owned(), reason.to_owned(), None, actions)
    }

    /// Whether a subscription is missing from the catalog.
    pub fn is_orphaned(&self, uid: SubscriptionUid) -> bool {
        self.state.subscriptions.get(&uid).is_some_and(|subscription| subscription.orphaned)
    }

    /// The subscriptions that are missing from the catalog, with their names.
    pub fn orphans(&self) -> impl Iterator<Item = (SubscriptionUid, &str)> {
        let orphans = self.state.subscriptions.iter().filter(|(_, subscription)| subscription.orphaned);
        orphans.map(|(uid, subscription)| (*uid, subscription.state().name.as_str()))
    }

    /// Whether an orphaned subscription would take an event: then it takes it once it is back.
    pub fn waits_for_owner(&self, event: &StoredEvent) -> bool {
        let orphans = self.state.subscriptions.values().filter(|subscription| subscription.orphaned);
        orphans.into_iter().any(|subscription| subscription.filters().judge(event) == Match::Taken)
    }

    /// Whether commands to a subscription's lanes can be carried out: it is open, and it is known whether its events wait for
    /// each other. While it is being opened again, the ledger still shows what ended with it.
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

    /// What the committed record says of a subscription, with what is drafted.
    pub fn subscription(&self, uid: SubscriptionUid) -> Option<&v1::SubscriptionState> {
        self.state.subscriptions.get(&uid).map(|subscription| subscription.state())
    }

    /// The filters of a subscription: what its lanes and its own reader take of the log.
    pub fn filters(&self, uid: SubscriptionUid) -> Option<Arc<Filters>> {
        if has(Flaw::PresentFilter) {
            return self.state.subscriptions.get(&uid).map(|subscription| Arc::new(subscription.filters().present()));
        }
        self.state.subscriptions.get(&uid).map(|subscription| Arc::clone(subscription.filters()))
    }

    /// The newest position of the catalog that a change of a subscription was decided at.
    pub fn catalog(&self) -> v1::CatalogPosition {
        self.state.catalog()
    }

    /// Who has given up the head of a lane by a narrower filter, of which only an earlier version of Weft knew the
    /// predecessor.
    pub(super) fn discarding_operator(&self, key: &LaneKey, event: &StoredEvent) -> Option<String> {
        let subscription = self.state.subscriptions.get(&key.subscription)?;
        let policy = subscription.policy.as_ref()?;
        let operator = match policy.author.operator.as_str() {
            "" => format!("catalog revision {}", policy.revision),
            operator => operator.to_owned(),
        };
        (subscription.filters().judge(event) == Match::Unknown).then_some(operator)
    }

    /// The head of a lane is discarded without an attempt.
    pub(super) fn discard_head(&mut self, key: &LaneKey, event: &Arc<StoredEvent>, operator: String, now: Timestamp) {
        let Some(lane) = self.state.lanes.get_mut(key) else { return };
        let attempts = lane.head.ended;
        self.memory.give_back(key.subscription, lane.settle_head(event.seq));
        let outcome = v1::Outcome {
            kind: v1::OutcomeKind::Discarded.into(),
            event_id: event.event.id.to_vec(),
            attempts,
            at_ms: now.as_millisecond(),
            operator,
            ..outcome_of(&Work { lane: key.clone(), seq: event.seq, run: Run::LIVE })
        };
        self.record_outcome(key, outcome);
    }
}
