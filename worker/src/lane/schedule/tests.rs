//! Turns alone: who starts, how often, and who waits.

use std::ops::{Deref, DerefMut};

use proptest::{prelude::*, test_runner::TestCaseResult};
use rand::{SeedableRng as _, rngs::StdRng};

use weft_proto::ids::WorkflowId;

use super::*;
use crate::lane::{circuit::Health, tests::mutants::is_noticed};

/// Mutants of the schedule: each breaks one rule from outside, and the properties must notice it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Mutant {
    /// Subscriptions do not take turns.
    NoTurns,
    /// The number of attempts in flight has no bound.
    UnboundedAttempts,
    /// The number of a subscription's attempts in flight has no bound.
    UnboundedSubscription,
    /// The lane that became ready last starts first.
    LastInFirstOut,
    /// A subscription takes the last free slots.
    LastSlot,
    /// Retries take every slot of their subscription.
    RetriesEverywhere,
}

impl Schedule {
    /// For mutants: lets another probe of each open circuit start.
    pub(in crate::lane) fn forget_probes(&mut self) {
        self.queues.values_mut().for_each(|queue| queue.circuit.forget_probe());
    }
}

/// A schedule, or a mutant of it.
#[derive(Default)]
struct Subject {
    schedule: Schedule,
    mutant: Option<Mutant>,
}

impl Subject {
    fn of(mutant: Option<Mutant>) -> Self {
        Self { mutant, ..Self::default() }
    }

    fn pop_ready(&mut self, now: Timestamp, attempts_max: usize) -> Option<Turn> {
        for queue in self.schedule.queues.values_mut() {
            match self.mutant {
                Some(Mutant::NoTurns) => queue.deficit = usize::MAX,
                Some(Mutant::UnboundedSubscription) => queue.concurrency = usize::MAX,
                Some(Mutant::LastInFirstOut) => queue.fresh.rotate_right(usize::from(!queue.fresh.is_empty())),
                Some(Mutant::LastSlot) => queue.in_flight = 0,
                Some(Mutant::RetriesEverywhere) => queue.retrying = 0,
                Some(Mutant::UnboundedAttempts) | None => {}
            }
        }
        let is_unbounded = self.mutant == Some(Mutant::UnboundedAttempts);
        self.schedule.pop_ready(now, if is_unbounded { usize::MAX } else { attempts_max })
    }
}

impl Deref for Subject {
    type Target = Schedule;

    fn deref(&self) -> &Schedule {
        &self.schedule
    }
}

impl DerefMut for Subject {
    fn deref_mut(&mut self) -> &mut Schedule {
        &mut self.schedule
    }
}

fn uid(number: u8) -> SubscriptionUid {
    SubscriptionUid::from_bytes([number; 16])
}

fn key(subscription: u8, workflow: usize) -> LaneKey {
    LaneKey::of_workflow(uid(subscription), WorkflowId::new(format!("w{workflow}")).unwrap())
}

fn at(ms: i64) -> Timestamp {
    Timestamp::from_millisecond(ms).unwrap()
}

fn free(concurrency: usize) -> Bounds {
    Bounds { concurrency, min_interval: None }
}

/// Starts all attempts that may start, as the lanes do, and returns their lanes.
fn start_all(schedule: &mut Subject, now: Timestamp, attempts_max: usize) -> Vec<LaneKey> {
    let mut started = Vec::new();
    while let Some(Turn { key, .. }) = schedule.pop_ready(now, attempts_max) {
        schedule.attempt_started(key.subscription, true, AttemptId(now.as_millisecond() as u64), now);
        started.push(key);
    }
    started
}

/// Ends an attempt that started at `began`.
fn end_since(schedule: &mut Schedule, key: &LaneKey, health: Health, began: Timestamp, now: Timestamp) {
    let mut rng = StdRng::seed_from_u64(1);
    let attempt = AttemptId(began.as_millisecond() as u64);
    let end = AttemptReport { attempt, health, workflow: &key.workflow, first_failed_at: None, error: "" };
    schedule.attempt_ended(key.subscription, true, end, now, &mut rng);
}

fn end(schedule: &mut Schedule, key: &LaneKey, health: Health, now: Timestamp) {
    end_since(schedule, key, health, at(0), now);
}

/// P4: however many receivers are slow, the next attempt of one that is not finds a place.
fn slow_receivers_leave_a_slot(mutant: Option<Mutant>) -> TestCaseResult {
    let mut schedule = Subject::of(mutant);
    for subscription in 1..=20 {
        schedule.set_bounds(uid(subscription), free(1000));
        (0..1000).for_each(|workflow| schedule.push_ready(key(subscription, workflow), 600, true));
    }
    let started = start_all(&mut schedule, at(0), 512);
    prop_assert!(started.len() >= 500, "nearly all places are used: {}", started.len());
    for subscription in 1..=20 {
        let of = started.iter().filter(|key| key.subscription == uid(subscription)).count();
        prop_assert!((20..=32).contains(&of), "{of} of subscription {subscription}");
    }
    schedule.set_bounds(uid(99), free(64));
    schedule.push_ready(key(99, 0), 600, true);
    prop_assert_eq!(start_all(&mut schedule, at(0), 512), [key(99, 0)]);
    Ok(())
}

#[test]
fn slow_receivers_leave_a_slot_to_others() {
    slow_receivers_leave_a_slot(None).unwrap();
}

#[test]
fn a_subscription_alone_has_nearly_everything() {
    let mut schedule = Subject::default();
    schedule.set_bounds(uid(1), free(1000));
    (0..1000).for_each(|workflow| schedule.push_ready(key(1, workflow), 600, true));
    assert_eq!(start_all(&mut schedule, at(0), 9).len(), 8);
    assert_eq!(start_all(&mut schedule, at(0), 512).len(), 456 - 8);
}

#[test]
fn a_rate_spaces_attempts_and_asks_to_be_woken() {
    let mut schedule = Subject::default();
    schedule.set_bounds(uid(1), Bounds { concurrency: 100, min_interval: Some(Duration::from_millis(200)) });
    (0..3).for_each(|workflow| schedule.push_ready(key(1, workflow), 600, true));
    assert_eq!(start_all(&mut schedule, at(0), 512), [key(1, 0)]);
    assert_eq!(schedule.next_deadline(), Some(at(200)));
    assert_eq!(start_all(&mut schedule, at(199), 512), []);
    assert_eq!(start_all(&mut schedule, at(200), 512), [key(1, 1)]);
    schedule.set_bounds(uid(1), free(100));
    assert_eq!(start_all(&mut schedule, at(201), 512), [key(1, 2)], "a rate that was removed delays nothing");
}

/// While the circuit is open no retry starts, then one; its success lets the others go.
#[test]
fn an_open_circuit_holds_lanes_and_lets_one_probe_through() {
    let mut schedule = Subject::default();
    schedule.set_bounds(uid(1), free(100));
    (0..3).for_each(|workflow| schedule.push_ready(key(1, workflow), 600, true));
    let started = start_all(&mut schedule, at(0), 512);
    (3..5).for_each(|workflow| schedule.push_ready(key(1, workflow), 600, false));
    end(&mut schedule, &started[0], Health::Unreachable, at(0));
    end(&mut schedule, &started[1], Health::Unreachable, at(600));
    assert!(schedule.is_circuit_open(uid(1)));
    assert_eq!(start_all(&mut schedule, at(600), 512), []);
    let due = schedule.next_deadline().unwrap();
    assert_eq!(start_all(&mut schedule, due, 512), [key(1, 3)], "the probe, and nothing else");
    end_since(&mut schedule, &key(1, 3), Health::Up, due, due);
    assert!(!schedule.is_circuit_open(uid(1)));
    assert_eq!(start_all(&mut schedule, due, 512), [key(1, 4)]);
}

/// P4: a healthy workflow does not wait for the probes of those that fail.
#[test]
fn a_fresh_lane_goes_before_retries_while_the_circuit_is_open() {
    let mut schedule = Subject::default();
    schedule.set_bounds(uid(1), free(100));
    (0..5).for_each(|workflow| schedule.push_ready(key(1, workflow), 600, true));
    let started = start_all(&mut schedule, at(0), 512);
    for (lane, ms) in started.iter().zip([0, 100, 200, 300, 600]) {
        end(&mut schedule, lane, Health::Failed, at(ms));
        schedule.push_ready(lane.clone(), 600, false);
    }
    assert!(schedule.is_circuit_open(uid(1)));
    schedule.push_ready(key(1, 0).of_event(weft_proto::ids::StreamSeq(7)), 600, true);
    assert_eq!(start_all(&mut schedule, at(700), 512), [], "the next event of a workflow that fails waits as well");
    schedule.push_ready(key(1, 9), 600, true);
    assert_eq!(start_all(&mut schedule, at(700), 512), [key(1, 9)]);
    end_since(&mut schedule, &key(1, 9), Health::Up, at(700), at(710));
    assert_eq!(start_all(&mut schedule, at(710), 512).len(), 6);
}

/// P4: retries that run into time-outs leave a place for a healthy workflow.
fn retries_leave_a_slot(mutant: Option<Mutant>) -> TestCaseResult {
    let mut schedule = Subject::of(mutant);
    schedule.set_bounds(uid(1), free(8));
    (0..20).for_each(|workflow| schedule.push_ready(key(1, workflow), 600, false));
    let mut started = 0;
    while let Some(Turn { key, fresh }) = schedule.pop_ready(at(0), 512) {
        schedule.attempt_started(key.subscription, fresh, AttemptId(started), at(0));
        started += 1;
    }
    prop_assert_eq!(started, 6);
    schedule.push_ready(key(1, 99), 600, true);
    let turn = schedule.pop_ready(at(0), 512);
    prop_assert_eq!(turn, Some(Turn { key: key(1, 99), fresh: true }));
    Ok(())
}

#[test]
fn retries_leave_a_slot_to_fresh_lanes() {
    retries_leave_a_slot(None).unwrap();
}

/// Over any time in which all have ready lanes, their shares differ by at most a turn and an event,
/// however large their events are.
fn are_worth_the_same(costs: Vec<usize>, rounds: usize, mutant: Option<Mutant>) -> TestCaseResult {
    let mut schedule = Subject::of(mutant);
    let mut given = vec![0; costs.len()];
    for (number, cost) in costs.iter().enumerate() {
        schedule.set_bounds(uid(number as u8), free(1000));
        (0..2).for_each(|workflow| schedule.push_ready(key(number as u8, workflow), *cost, true));
    }
    for _ in 0..rounds {
        let key = schedule.pop_ready(at(0), 1000).unwrap().key;
        let number = usize::from(key.subscription.as_bytes()[0]);
        given[number] += costs[number];
        schedule.push_ready(key, costs[number], true);
    }
    let (least, most) = (given.iter().min().unwrap(), given.iter().max().unwrap());
    let bound = 2 * (QUANTUM + costs.iter().max().unwrap());
    prop_assert!(most - least <= bound, "{given:?} for {costs:?}");
    Ok(())
}

fn turns() -> impl Strategy<Value = (Vec<usize>, usize)> {
    (proptest::collection::vec(1usize..20_000, 2..6), 1usize..400)
}

/// No bound is ever exceeded, and every lane that may start does.
fn bounds_hold(concurrencies: &[usize], attempts_max: usize, ends: Vec<u8>, mutant: Option<Mutant>) -> TestCaseResult {
    let mut schedule = Subject::of(mutant);
    for (number, concurrency) in concurrencies.iter().enumerate() {
        schedule.set_bounds(uid(number as u8), free(*concurrency));
        (0..30).for_each(|workflow| schedule.push_ready(key(number as u8, workflow), 600 + 5000 * number, true));
    }
    let mut left = 30 * concurrencies.len();
    let mut in_flight = start_all(&mut schedule, at(0), attempts_max);
    for which in ends.into_iter().chain(std::iter::repeat_n(0, left)) {
        prop_assert!(in_flight.len() <= attempts_max);
        for (number, concurrency) in concurrencies.iter().enumerate() {
            let of = in_flight.iter().filter(|key| key.subscription == uid(number as u8)).count();
            prop_assert!(of <= *concurrency);
        }
        if in_flight.is_empty() {
            break;
        }
        let key = in_flight.swap_remove(usize::from(which) % in_flight.len());
        left -= 1;
        end(&mut schedule, &key, Health::Up, at(0));
        in_flight.extend(start_all(&mut schedule, at(0), attempts_max));
    }
    prop_assert_eq!((left, schedule.in_flight()), (0, 0));
    Ok(())
}

fn loads() -> impl Strategy<Value = (Vec<usize>, usize, Vec<u8>)> {
    (proptest::collection::vec(1usize..6, 1..5), 1usize..12, proptest::collection::vec(any::<u8>(), 0..100))
}

/// Within a subscription each ready lane starts once before any starts again.
fn lanes_take_turns(lanes: usize, rounds: usize, mutant: Option<Mutant>) -> TestCaseResult {
    let mut schedule = Subject::of(mutant);
    schedule.set_bounds(uid(1), free(1000));
    (0..lanes).for_each(|workflow| schedule.push_ready(key(1, workflow), 600, true));
    for round in 0..rounds {
        let started = schedule.pop_ready(at(0), 1000).map(|turn| turn.key);
        prop_assert_eq!(&started, &Some(key(1, round % lanes)));
        schedule.push_ready(key(1, round % lanes), 600, true);
    }
    Ok(())
}

proptest! {
    #[test]
    fn turns_are_worth_the_same((costs, rounds) in turns()) {
        are_worth_the_same(costs, rounds, None)?;
    }

    #[test]
    fn bounds_hold_and_every_lane_starts((concurrencies, attempts_max, ends) in loads()) {
        bounds_hold(&concurrencies, attempts_max, ends, None)?;
    }

    #[test]
    fn a_lane_that_fails_again_and_again_gets_no_more_than_its_turn(lanes in 2usize..50, rounds in 1usize..200) {
        lanes_take_turns(lanes, rounds, None)?;
    }
}

#[test]
fn mutants_are_detected() {
    let noticed = is_noticed(&turns(), |(costs, rounds)| are_worth_the_same(costs, rounds, Some(Mutant::NoTurns)));
    assert!(noticed, "{:?}", Mutant::NoTurns);
    for mutant in [Mutant::UnboundedAttempts, Mutant::UnboundedSubscription] {
        let noticed = is_noticed(&loads(), |(concurrencies, attempts_max, ends)| {
            bounds_hold(&concurrencies, attempts_max, ends, Some(mutant))
        });
        assert!(noticed, "{mutant:?}");
    }
    let lanes = (2usize..50, 1usize..200);
    let noticed = |(lanes, rounds)| lanes_take_turns(lanes, rounds, Some(Mutant::LastInFirstOut));
    assert!(is_noticed(&lanes, noticed), "{:?}", Mutant::LastInFirstOut);
    assert!(slow_receivers_leave_a_slot(Some(Mutant::LastSlot)).is_err());
    assert!(retries_leave_a_slot(Some(Mutant::RetriesEverywhere)).is_err());
}
