//! Whose turn it is: lanes that could start an attempt, and lanes that wait for a moment.
//!
//! Subscriptions take turns by deficit round robin, weighed in bytes: each turn is worth a quantum, what an attempt costs
//! is taken from it, and what is left counts for the next turn. Within a subscription lanes go in the order in which they
//! became ready. So neither many ready lanes nor large events of one subscription keep the others waiting.
//!
//! A subscription starts nothing while its own bounds say no: its concurrency, its rate, its circuit. Nor does it take
//! the last places of all: its attempts in flight stay below [`SHARE`] times the places that are free. So however many
//! receivers are slow, there is a place for the next attempt of one that is not.
//!
//! Within a subscription a quarter of its places is kept for *fresh* lanes: those whose event has not been attempted and
//! whose workflow does not fail. So retries that run into time-outs do not make a healthy workflow wait. While the circuit
//! is open fresh lanes go first, else lanes go in the order in which they became ready.

use std::{
    collections::{BTreeSet, HashMap, VecDeque},
    time::Duration,
};

use jiff::Timestamp;
use rand::Rng;
use weft_proto::ids::SubscriptionUid;

use super::{
    AttemptId,
    circuit::{AttemptReport, Circuit, Condition, Gate, Transition},
    input::LaneKey,
    token_bucket::TokenBucket,
};

/// What a turn is worth, in bytes: some events of the usual size. The largest event waits for some thousand turns, each of
/// which costs nothing but the looking.
const QUANTUM: usize = 4096;
/// A subscription alone may have eight of nine places in flight, each of eight one of nine: nearly all is used, and one
/// is always left.
pub(super) const SHARE: usize = 8;

/// What a subscription may do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Bounds {
    /// Attempts in flight; 0 while it is paused.
    pub concurrency: usize,
    /// The time between two attempts.
    pub min_interval: Option<Duration>,
}

/// A lane that is ready, and what its attempt costs.
#[derive(Debug)]
struct Ready {
    key: LaneKey,
    bytes: usize,
    /// Grows with each lane of the subscription that becomes ready.
    place: u64,
}

/// A lane whose turn it is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Turn {
    pub key: LaneKey,
    /// Its event has not been attempted and its workflow does not fail.
    pub fresh: bool,
}

#[derive(Debug, Default)]
struct Queue {
    fresh: VecDeque<Ready>,
    retries: VecDeque<Ready>,
    places: u64,
    in_flight: usize,
    /// Of those in flight, the ones that are not fresh.
    retrying: usize,
    concurrency: usize,
    bucket: Option<TokenBucket>,
    circuit: Circuit,
    deficit: usize,
    /// It stands in the rotation.
    listed: bool,
}

impl Queue {
    fn is_empty(&self) -> bool {
        self.fresh.is_empty() && self.retries.is_empty()
    }

    fn ready_mut(&mut self, fresh: bool) -> &mut VecDeque<Ready> {
        if fresh { &mut self.fresh } else { &mut self.retries }
    }

    fn front_bytes(&self, fresh: bool) -> usize {
        let ready = if fresh { &self.fresh } else { &self.retries };
        ready.front().map_or(0, |ready| ready.bytes)
    }

    /// Places that retries may take: all but a quarter, and of one place that one.
    fn retry_places(&self) -> usize {
        match self.concurrency {
            one @ 0..=1 => one,
            concurrency => concurrency - concurrency.div_ceil(4),
        }
    }

    /// Which kind of lane may start an attempt, as far as the subscription is concerned, or why none.
    fn choose(&mut self, now: Timestamp) -> Result<bool, Gate> {
        if self.in_flight >= self.concurrency {
            return Err(Gate::Shut);
        }
        let place = |queue: &VecDeque<Ready>| queue.front().map(|ready| ready.place);
        let fresh_first = match (place(&self.fresh), place(&self.retries)) {
            (Some(fresh), Some(retry)) => fresh < retry || !self.circuit.is_closed(),
            (fresh, _) => fresh.is_some(),
        };
        let mut closed = Gate::Shut;
        for fresh in [fresh_first, !fresh_first] {
            if self.ready_mut(fresh).is_empty() {
                continue;
            }
            let full = self.retrying >= self.retry_places();
            if !fresh && full {
                continue;
            }
            match (self.circuit.gate(fresh, now), closed) {
                (Gate::Free, _) => {
                    return match self.bucket.as_mut().and_then(|bucket| bucket.wait(now)) {
                        Some(from) => Err(Gate::Until(from)),
                        None => Ok(fresh),
                    };
                }
                (Gate::Until(at), Gate::Until(other)) => closed = Gate::Until(at.min(other)),
                (Gate::Until(at), _) => closed = Gate::Until(at),
                (Gate::Shut, _) => {}
            }
        }
        Err(closed)
    }
}

/// Ready lanes and timers.
#[derive(Debug, Default)]
pub(super) struct Schedule {
    queues: HashMap<SubscriptionUid, Queue>,
    /// Subscriptions that have a ready lane and may start an attempt.
    rotation: VecDeque<SubscriptionUid>,
    in_flight: usize,
    timers: BTreeSet<(Timestamp, LaneKey)>,
    /// Subscriptions that have a ready lane and wait for their rate or circuit.
    gates: BTreeSet<(Timestamp, SubscriptionUid)>,
}

impl Schedule {
    /// What a subscription may do from now on.
    pub fn set_bounds(&mut self, uid: SubscriptionUid, bounds: Bounds) {
        let queue = self.queues.entry(uid).or_default();
        queue.concurrency = bounds.concurrency;
        if queue.bucket.as_ref().map(TokenBucket::min_interval) != bounds.min_interval {
            queue.bucket = bounds.min_interval.map(TokenBucket::new);
        }
        self.list(uid);
    }

    /// A subscription is another than it was: what is known of its receiver need not be true any more.
    pub fn forget_outage(&mut self, uid: SubscriptionUid) {
        self.queues.entry(uid).or_default().circuit.reset();
        self.list(uid);
    }

    /// Whether a subscription's circuit holds its lanes.
    pub fn is_circuit_open(&self, uid: SubscriptionUid) -> bool {
        self.queues.get(&uid).is_some_and(|queue| !queue.circuit.is_closed())
    }

    /// How a subscription's receiver stands; `None` while it is called freely.
    pub fn condition(&self, uid: SubscriptionUid) -> Option<Condition> {
        self.queues.get(&uid)?.circuit.condition()
    }

    /// A subscription is gone. Its attempts in flight still count until they end.
    pub fn remove(&mut self, uid: SubscriptionUid) {
        if let Some(queue) = self.queues.get_mut(&uid) {
            queue.fresh.clear();
            queue.retries.clear();
            queue.concurrency = 0;
        }
    }

    /// Whether a lane is fresh; `first`: its event has not been attempted.
    pub fn is_fresh(&self, key: &LaneKey, first: bool) -> bool {
        first && !self.queues.get(&key.subscription).is_some_and(|queue| queue.circuit.is_failing(&key.workflow))
    }

    /// A lane is ready for an attempt that costs this many bytes; `first`: its event has not been attempted. Not twice
    /// before it is popped: the lane remembers.
    pub fn push_ready(&mut self, key: LaneKey, bytes: usize, first: bool) {
        let uid = key.subscription;
        let fresh = self.is_fresh(&key, first);
        let queue = self.queues.entry(uid).or_default();
        queue.places += 1;
        let place = queue.places;
        queue.ready_mut(fresh).push_back(Ready { key, bytes, place });
        self.list(uid);
    }

    /// The next lane whose turn it is, where `attempts_max` may be in flight in all.
    pub fn pop_ready(&mut self, now: Timestamp, attempts_max: usize) -> Option<Turn> {
        self.open_gates(now);
        let free = attempts_max.saturating_sub(self.in_flight);
        // Subscriptions in a row that have their share.
        let mut at_share = 0;
        while let Some(uid) = self.rotation.front().copied() {
            if at_share >= self.rotation.len() || free == 0 {
                return None;
            }
            let Some(queue) = self.queues.get_mut(&uid) else {
                self.rotation.pop_front();
                continue;
            };
            let chosen = if queue.is_empty() { Err(Gate::Shut) } else { queue.choose(now) };
            let fresh = match chosen {
                Ok(fresh) => fresh,
                Err(gate) => {
                    queue.listed = false;
                    queue.deficit = 0;
                    self.rotation.pop_front();
                    if let Gate::Until(at) = gate {
                        self.gates.insert((at, uid));
                    }
                    continue;
                }
            };
            if queue.in_flight >= SHARE.saturating_mul(free) {
                at_share += 1;
                self.rotation.rotate_left(1);
                continue;
            }
            at_share = 0;
            let bytes = queue.front_bytes(fresh);
            if queue.deficit < bytes {
                queue.deficit += QUANTUM;
                self.rotation.rotate_left(1);
                continue;
            }
            queue.deficit = queue.deficit.saturating_sub(bytes);
            let ready = queue.ready_mut(fresh);
            return ready.pop_front().map(|ready| Turn { key: ready.key, fresh });
        }
        None
    }

    /// Whether an attempt could start.
    pub fn has_ready(&self) -> bool {
        !self.rotation.is_empty()
    }

    /// An attempt of a lane starts that [`pop_ready`](Self::pop_ready) gave with this `fresh`.
    pub fn attempt_started(&mut self, uid: SubscriptionUid, fresh: bool, attempt: AttemptId, now: Timestamp) {
        self.in_flight += 1;
        let queue = self.queues.entry(uid).or_default();
        queue.in_flight += 1;
        queue.retrying += usize::from(!fresh);
        queue.circuit.started(attempt, now);
        if let Some(bucket) = &mut queue.bucket {
            bucket.take(now);
        }
    }

    /// An attempt has ended, with `fresh` as it started. What its circuit makes of it.
    pub fn attempt_ended(
        &mut self,
        uid: SubscriptionUid,
        fresh: bool,
        end: AttemptReport<'_>,
        now: Timestamp,
        rng: &mut impl Rng,
    ) -> Transition {
        self.in_flight -= 1;
        let queue = self.queues.entry(uid).or_default();
        queue.in_flight -= 1;
        queue.retrying -= usize::from(!fresh);
        let transition = queue.circuit.ended(end, now, rng);
        self.list(uid);
        transition
    }

    /// Attempts in flight, of all subscriptions.
    pub fn in_flight(&self) -> usize {
        self.in_flight
    }

    pub fn arm(&mut self, at: Timestamp, key: LaneKey) {
        self.timers.insert((at, key));
    }

    pub fn disarm(&mut self, at: Timestamp, key: &LaneKey) {
        self.timers.remove(&(at, key.clone()));
    }

    pub fn next_deadline(&self) -> Option<Timestamp> {
        let timer = self.timers.first().map(|(at, _)| *at);
        let gate = self.gates.first().map(|(at, _)| *at);
        timer.into_iter().chain(gate).min()
    }

    /// The moments that lanes wait for, in order.
    #[cfg(test)]
    pub fn timers(&self) -> impl Iterator<Item = Timestamp> {
        self.timers.iter().map(|(at, _)| *at)
    }

    /// A lane whose moment has come.
    pub fn pop_due(&mut self, now: Timestamp) -> Option<LaneKey> {
        if self.timers.first()?.0 > now {
            return None;
        }
        self.timers.pop_first().map(|(_, key)| key)
    }

    /// Lists the subscriptions again whose moment has come.
    fn open_gates(&mut self, now: Timestamp) {
        while self.gates.first().is_some_and(|(at, _)| *at <= now)
            && let Some((_, uid)) = self.gates.pop_first()
        {
            self.list(uid);
        }
    }

    fn list(&mut self, uid: SubscriptionUid) {
        if let Some(queue) = self.queues.get_mut(&uid)
            && !queue.listed
            && !queue.is_empty()
            && queue.in_flight < queue.concurrency
        {
            queue.listed = true;
            self.rotation.push_back(uid);
        }
    }
}

#[cfg(test)]
mod tests;
