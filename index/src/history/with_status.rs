//! Candidates for events with a status. The index knows outcomes, and events with an attempt; of the others the subscriptions'
//! filters determine which are still to be delivered. The candidates contain every event with the status, and few others.

use std::collections::HashMap;

use redb::ReadableTable as _;
use weft_proto::{ids::ShardId, v1};

use super::{
    EventHistory,
    bits::Bits,
    names::Subscriptions,
    postings::{Segment, Taker},
    status::{DeliveryStatus, EventStatus},
    tables::{UID_MIN, Uid, View},
    terms::Class,
};

/// A status that events are looked up by.
pub type Status = EventStatus;

impl EventStatus {
    /// The statuses that an event can be looked up by.
    pub const ALL: [Self; 9] = [
        Self::Unrouted,
        Self::Worst(DeliveryStatus::Delivered),
        Self::Worst(DeliveryStatus::Resolved),
        Self::Worst(DeliveryStatus::Discarded),
        Self::Worst(DeliveryStatus::Pending),
        Self::Worst(DeliveryStatus::Paused),
        Self::Worst(DeliveryStatus::Retrying),
        Self::Worst(DeliveryStatus::DeadLettered),
        Self::Worst(DeliveryStatus::Blocked),
    ];

    /// Of a message's status; `None` if events are not looked up by it.
    pub fn of_message(status: v1::EventStatus) -> Option<Self> {
        Self::ALL.into_iter().find(|known| known.message() == status)
    }
}

/// The statuses and the subscription that a query asks for, in one shard.
#[derive(Debug)]
pub(super) struct Wanted {
    statuses: Vec<Status>,
    /// The name of the subscription, and all uids that it has had.
    subscription: Option<(String, Vec<Uid>)>,
    /// The subscriptions whose events may be pending, of the named one only if one is.
    takers: Vec<Taker>,
}

impl Wanted {
    pub fn of(
        view: &View,
        subscriptions: &Subscriptions,
        statuses: &[Status],
        subscription: Option<&str>,
        shard: ShardId,
    ) -> Result<Self, redb::Error> {
        let mut wanted = Self { statuses: statuses.to_vec(), subscription: None, takers: Vec::new() };
        if let Some(name) = subscription {
            let mut uids: Vec<Uid> = Vec::new();
            for row in view.names.iter()? {
                let (uid, known) = row?;
                if known.value() == name {
                    uids.push(*uid.value());
                }
            }
            let in_catalog =
                subscriptions.uids().filter(|uid| subscriptions.get(uid).is_some_and(|it| it.name == name));
            uids.extend(in_catalog);
            uids.sort_unstable();
            uids.dedup();
            wanted.subscription = Some((name.to_owned(), uids));
        }
        if !wanted.is_any() {
            wanted.takers = Taker::all(view, subscriptions, shard)?;
            if let Some((_, uids)) = &wanted.subscription {
                wanted.takers.retain(|taker| uids.contains(&taker.uid));
            }
        }
        Ok(wanted)
    }

    /// Whether every event is wanted.
    pub fn is_any(&self) -> bool {
        self.statuses.is_empty() && self.subscription.is_none()
    }

    /// Whether an event is wanted.
    pub fn takes(&self, event: &EventHistory) -> bool {
        let has = |status: EventStatus| self.statuses.is_empty() || self.statuses.contains(&status);
        match &self.subscription {
            None => has(event.status),
            Some((name, _)) => {
                // The last is that of the newest run.
                let newest = event.deliveries.iter().rfind(|delivery| delivery.subscription == *name);
                newest.is_some_and(|newest| has(EventStatus::Worst(newest.status)))
            }
        }
    }

    /// The events of a segment that may be wanted; `None`: all.
    pub fn candidates(&self, segment: &Segment<'_>) -> Result<Option<Bits>, redb::Error> {
        if self.is_any() {
            return Ok(None);
        }
        let classes = match &self.subscription {
            None => segment.classes(None)?,
            Some((_, uids)) => {
                let mut classes = HashMap::new();
                for uid in uids {
                    classes.extend(segment.classes(Some(uid))?);
                }
                classes
            }
        };
        let mut candidates = Candidates { segment, wanted: self, classes, owed: None };
        let mut set = Bits::none();
        if self.statuses.is_empty() {
            let classes: Vec<_> = candidates.classes.values().collect();
            classes.into_iter().for_each(|class| set.add(class));
            set.add(&candidates.owed(None)?);
        }
        for status in &self.statuses {
            set.add(&candidates.of(*status)?);
        }
        Ok(Some(set))
    }
}

struct Candidates<'s> {
    segment: &'s Segment<'s>,
    wanted: &'s Wanted,
    classes: HashMap<(Uid, Class), Bits>,
    owed: Option<Bits>,
}

impl Candidates<'_> {
    fn class(&self, wanted: Class) -> Bits {
        let mut set = Bits::none();
        let of_class = self.classes.iter().filter(|((_, class), _)| *class == wanted);
        of_class.for_each(|(_, bits)| set.add(bits));
        set
    }

    /// The events that subscriptions may take and that have no record for them; with `closed` only of deleted or not
    /// deleted ones.
    fn owed(&self, closed: Option<bool>) -> Result<Bits, redb::Error> {
        let mut owed = Bits::none();
        for taker in self.wanted.takers.iter().filter(|taker| closed.is_none_or(|closed| taker.closed == closed)) {
            let mut taken = taker.taken(self.segment)?;
            let records = self.classes.iter().filter(|((uid, _), _)| *uid == taker.uid);
            records.for_each(|(_, bits)| taken.remove(bits));
            owed.add(&taken);
        }
        Ok(owed)
    }

    /// The events that may be pending or paused: also those that no worker has read yet.
    fn unsettled(&mut self) -> Result<Bits, redb::Error> {
        if let Some(owed) = &self.owed {
            return Ok(owed.clone());
        }
        let mut owed = self.owed(Some(false))?;
        if self.wanted.subscription.is_none() {
            let mut unread = self.segment.all()?;
            unread.remove(&self.segment.recorded()?);
            owed.add(&unread);
        }
        self.owed = Some(owed.clone());
        Ok(owed)
    }

    fn of(&mut self, status: Status) -> Result<Bits, redb::Error> {
        let EventStatus::Worst(status) = status else {
            return Ok(self.classes.get(&(UID_MIN, Class::Unrouted)).cloned().unwrap_or_else(Bits::none));
        };
        let mut set = match status {
            DeliveryStatus::Unspecified => Bits::none(),
            DeliveryStatus::Delivered => self.class(Class::Delivered),
            DeliveryStatus::Resolved => self.class(Class::Resolved),
            DeliveryStatus::DeadLettered => self.class(Class::DeadLettered),
            DeliveryStatus::Retrying | DeliveryStatus::Blocked | DeliveryStatus::Delivering => self.class(Class::Open),
            DeliveryStatus::Discarded => {
                let mut set = self.class(Class::Discarded);
                set.add(&self.class(Class::Open));
                set.add(&self.owed(Some(true))?);
                set
            }
            DeliveryStatus::Pending | DeliveryStatus::Paused => {
                let mut set = self.class(Class::Open);
                set.add(&self.unsettled()?);
                set
            }
        };
        // The worst delivery decides: what a worse outcome excludes is not read.
        let worse: &[Class] = match status {
            _ if self.wanted.subscription.is_some() => &[],
            DeliveryStatus::Delivered => &[Class::DeadLettered, Class::Discarded, Class::Resolved],
            DeliveryStatus::Resolved => &[Class::DeadLettered, Class::Discarded],
            DeliveryStatus::Discarded | DeliveryStatus::Pending | DeliveryStatus::Paused | DeliveryStatus::Retrying => {
                &[Class::DeadLettered]
            }
            DeliveryStatus::Unspecified
            | DeliveryStatus::Delivering
            | DeliveryStatus::DeadLettered
            | DeliveryStatus::Blocked => &[],
        };
        for class in worse {
            set.remove(&self.class(*class));
        }
        Ok(set)
    }
}
