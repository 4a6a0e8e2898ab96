//! The schedule: lanes that are ready to start an attempt, and timers of lanes that wait.
//!
//! Subscriptions take turns by deficit round robin, weighted in bytes: each turn adds a quantum to the deficit, an attempt
//! subtracts the size of its events, and the rest is kept for the next turn. Within a subscription lanes are served in the
//! order in which they became ready. So neither many ready lanes nor large events of one subscription delay the others.
//!
//! A subscription starts nothing beyond its concurrency and its rate, or while its circuit is open. Nor does it take the last
//! slots of the shard: its attempts in flight stay below [`SHARE`] times the number of free slots. So however many receivers
//! are slow, the next attempt of another one finds a slot.
//!
//! A quarter of a subscription's slots is kept for *fresh* lanes: those whose event was not attempted and whose workflow does
//! not fail. So retries that time out do not delay a healthy workflow. While the circuit is open, fresh lanes go first.

use std::{
    collections::{BTreeSet, HashMap, VecDeque},
    time::Duration,
};

use jiff::Timestamp;
use rand::Rng;
use weft_proto::ids::{SubscriptionUid, WorkflowId};

use super::{
    AttemptId,
    circuit::{AttemptReport, Circuit, Condition, Gate, Health, Transition},
    input::LaneKey,
    token_bucket::TokenBucket,
};

/// Deficit-round-robin quantum, in bytes: a few events of usual size. The largest event waits for about a thousand turns, each
/// of which is cheap.
const QUANTUM: usize = 4096;
/// A subscription may start an attempt only while it has fewer than this multiple of the free slots in flight. One alone
/// reaches 8/9 of all slots; eight equally busy ones about 1/8 each.
pub(super) const SHARE: usize = 8;

/// The bounds of a subscription.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Bounds {
    /// Maximum number of attempts in flight; 0 while it is inactive.
    pub concurrency: usize,
    /// Average time between two attempts at the highest rate.
    pub min_interval: Option<Duration>,
}

/// A ready lane.
#[derive(Debug)]
struct Ready {
    key: LaneKey,
    bytes: usize,
    /// Its number in the order in which the subscription's lanes became ready.
    number: u64,
}

/// The lane that has the turn.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Turn {
    pub key: LaneKey,
    /// Its event was not attempted and its workflow does not fail.
    pub fresh: bool,
}

#[derive(Debug, Default)]
struct Queue {
    fresh: VecDeque<Ready>,
    retries: VecDeque<Ready>,
    numbers: u64,
    in_flight: usize,
    /// Number of attempts in flight that are not of fresh lanes.
    retrying: usize,
    concurrency: usize,
    bucket: Option<TokenBucket>,
    circuit: Circuit,
    deficit: usize,
    /// Bytes of started attempts that the deficit has not paid for.
    owed: usize,
    /// It is in the rotation.
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

    /// Slots that retries may take: three quarters, but at least one.
    fn retry_slots(&self) -> usize {
        match self.concurrency {
            one @ 0..=1 => one,
            concurrency => concurrency - concurrency.div_ceil(4),
        }
    }

    /// Whether a fresh lane or a retry may start within the subscription's bounds, or when one may.
    fn choose(&mut self, now: Timestamp) -> Result<bool, Gate> {
        if self.in_flight >= self.concurrency {
            return Err(Gate::Shut);
        }
        let number = |queue: &VecDeque<Ready>| queue.front().map(|ready| ready.number);
        let fresh_first = match (number(&self.fresh), number(&self.retries)) {
            (Some(fresh), Some(retry)) => fresh < retry || !self.circuit.is_closed(),
            (fresh, _) => fresh.is_some(),
        };
        let mut closed = Gate::Shut;
        for fresh in [fresh_first, !fresh_first] {
            if self.ready_mut(fresh).is_empty() {
                continue;
            }
            let full = self.retrying >= self.retry_slots();
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
    /// Sets the bounds of a subscription.
    pub fn set_bounds(&mut self, uid: SubscriptionUid, bounds: Bounds) {
        let queue = self.queues.entry(uid).or_default();
        queue.concurrency = bounds.concurrency;
        if queue.bucket.as_ref().map(TokenBucket::min_interval) != bounds.min_interval {
            queue.bucket = bounds.min_interval.map(TokenBucket::new);
        }
        self.list(uid);
    }

    /// A subscription has changed: forgets what is known of its receiver.
    pub fn forget_outage(&mut self, uid: SubscriptionUid) {
        self.queues.entry(uid).or_default().circuit.reset();
        self.list(uid);
    }

    /// Whether the circuit of a subscription's receiver is open.
    pub fn is_circuit_open(&self, uid: SubscriptionUid) -> bool {
        self.queues.get(&uid).is_some_and(|queue| !queue.circuit.is_closed())
    }

    /// The condition of a subscription's receiver; `None` while its circuit is closed.
    pub fn condition(&self, uid: SubscriptionUid) -> Option<Condition> {
        self.queues.get(&uid)?.circuit.condition()
    }

    /// A subscription is closed. Its attempts in flight count until they end.
    pub fn remove(&mut self, uid: SubscriptionUid) {
        if let Some(queue) = self.queues.get_mut(&uid) {
            queue.fresh.clear();
            queue.retries.clear();
            queue.concurrency = 0;
        }
    }

    /// Whether a lane is fresh; `first`: its event was not attempted.
    pub fn is_fresh(&self, key: &LaneKey, first: bool) -> bool {
        first && !self.queues.get(&key.subscription).is_some_and(|queue| queue.circuit.is_failing(&key.workflow))
    }

    /// Queues a lane for an attempt of an event of this size; `first`: the event was not attempted. At most once until it is
    /// popped, which the lane's `ready` ensures.
    pub fn push_ready(&mut self, key: LaneKey, bytes: usize, first: bool) {
        let uid = key.subscription;
        let fresh = self.is_fresh(&key, first);
        let queue = self.queues.entry(uid).or_default();
        queue.numbers += 1;
        let number = queue.numbers;
        queue.ready_mut(fresh).push_back(Ready { key, bytes, number });
        self.list(uid);
    }

    /// The next lane that has the turn, where `attempts_max` is the number of slots.
    pub fn pop_ready(&mut self, now: Timestamp, attempts_max: usize) -> Option<Turn> {
        self.open_gates(now);
        let free = attempts_max.saturating_sub(self.in_flight);
        // Consecutive subscriptions at their share.
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
                    queue.owed = 0;
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
            let bytes = queue.front_bytes(fresh) + queue.owed;
            if queue.deficit < bytes {
                queue.deficit += QUANTUM;
                self.rotation.rotate_left(1);
                continue;
            }
            queue.deficit = queue.deficit.saturating_sub(bytes);
            queue.owed = 0;
            let ready = queue.ready_mut(fresh);
            return ready.pop_front().map(|ready| Turn { key: ready.key, fresh });
        }
        None
    }

    /// Whether a lane may be ready.
    pub fn has_ready(&self) -> bool {
        !self.rotation.is_empty()
    }

    /// An attempt of a lane that was [popped](Self::pop_ready) with this `fresh` starts.
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

    /// An attempt holds this number of bytes beyond those of its lane's turn: the subscription's next turn pays for them.
    pub fn charge(&mut self, uid: SubscriptionUid, bytes: usize) {
        self.queues.entry(uid).or_default().owed += bytes;
    }

    /// Of an attempt of several events the first were accepted, and the next failed, which
    /// [`attempt_ended`](Self::attempt_ended) reports. Returns the effect on the circuit.
    pub fn events_accepted(
        &mut self,
        uid: SubscriptionUid,
        attempt: AttemptId,
        workflow: &WorkflowId,
        now: Timestamp,
        rng: &mut impl Rng,
    ) -> Transition {
        let accepted = AttemptReport { attempt, health: Health::Up, workflow, first_failed_at: None, error: "" };
        self.queues.entry(uid).or_default().circuit.ended(accepted, now, rng)
    }

    /// An attempt that started with this `fresh` has ended. Returns the effect on the circuit.
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

    /// Number of attempts in flight, of all subscriptions.
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

    /// The times of all timers, in order.
    #[cfg(test)]
    pub fn timers(&self) -> impl Iterator<Item = Timestamp> {
        self.timers.iter().map(|(at, _)| *at)
    }

    /// Removes a timer that is due, and returns its lane.
    pub fn pop_due(&mut self, now: Timestamp) -> Option<LaneKey> {
        if self.timers.first()?.0 > now {
            return None;
        }
        self.timers.pop_first().map(|(_, key)| key)
    }

    /// Puts subscriptions back into the rotation whose time has come.
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
