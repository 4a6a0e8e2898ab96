//! The circuit alone: single rules, and random histories against what it promises.

use std::collections::BTreeMap;

use proptest::{prelude::*, test_runner::TestCaseResult};
use rand::{SeedableRng as _, rngs::StdRng};

use super::*;
use crate::lane::tests::mutants::is_noticed;

use Health::{Failed, Held, Unavailable, Unreachable, Up};

fn workflow(number: u8) -> WorkflowId {
    WorkflowId::new(format!("w{number}")).unwrap()
}

fn at(ms: i64) -> Timestamp {
    Timestamp::from_millisecond(1_000_000 + ms).unwrap()
}

/// Mutants of the circuit: each breaks one rule from outside, and the properties must notice it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Mutant {
    /// An open circuit lets attempts through before the next probe is due.
    EarlyProbe,
    /// A second probe starts while one is in flight.
    SecondProbe,
    /// Every "unavailable" counts.
    ShortOutageCounts,
    /// Failures of attempts that started before the outage count.
    OutageCounts,
    /// A sick workflow contributes to an outage.
    SickOpens,
    /// A fresh lane waits for the probe.
    FreshWaits,
}

impl Circuit {
    /// For mutants: lets another probe start.
    pub(in crate::lane) fn forget_probe(&mut self) {
        if let State::Open(outage) = &mut self.state {
            outage.probe = None;
        }
    }
}

/// A circuit and the attempts that it is informed of.
struct Player {
    circuit: Circuit,
    next: u64,
    /// When the event of a workflow failed first.
    failed_at: BTreeMap<u8, Timestamp>,
    rng: StdRng,
    mutant: Option<Mutant>,
}

impl Player {
    fn new() -> Self {
        let rng = StdRng::seed_from_u64(1);
        Self { circuit: Circuit::default(), next: 0, failed_at: BTreeMap::new(), rng, mutant: None }
    }

    fn gate(&mut self, fresh: bool, now: Timestamp) -> Gate {
        match (self.mutant, &mut self.circuit.state) {
            (Some(Mutant::EarlyProbe), State::Open(outage)) => outage.until = now,
            (Some(Mutant::SecondProbe), _) => self.circuit.forget_probe(),
            (Some(Mutant::FreshWaits), _) => return self.circuit.gate(false, now),
            _ => {}
        }
        self.circuit.gate(fresh, now)
    }

    fn start(&mut self, now: Timestamp) -> AttemptId {
        let id = AttemptId(self.next);
        self.next += 1;
        self.circuit.started(id, now);
        id
    }

    fn end(&mut self, attempt: AttemptId, health: Health, number: u8, now: Timestamp) -> Transition {
        let first_failed_at = self.failed_at.get(&number).copied();
        if health == Up {
            self.failed_at.remove(&number);
        } else {
            self.failed_at.entry(number).or_insert(now);
        }
        let end = AttemptReport { attempt, health, workflow: &workflow(number), first_failed_at, error: "no" };
        let predates = matches!(&self.circuit.state, State::Open(outage) if outage.before >= Some(attempt));
        let failing = self.circuit.failing.clone();
        if self.mutant == Some(Mutant::SickOpens) {
            self.circuit.failing = Failing::default();
        }
        let mut transition = self.circuit.ended(end, now, &mut self.rng);
        match self.mutant {
            Some(Mutant::OutageCounts) => transition.counts |= predates,
            Some(Mutant::ShortOutageCounts) => transition.counts |= health == Unavailable && self.circuit.is_closed(),
            Some(Mutant::SickOpens) => {
                self.circuit.failing = failing;
                match health {
                    Up => self.circuit.failing.succeeded(Failing::hash(&workflow(number)), attempt),
                    Unavailable | Failed => {
                        self.circuit.failing.failed(Failing::hash(&workflow(number)), self.circuit.newest);
                    }
                    Unreachable | Held | Health::Unknown => {}
                }
            }
            _ => {}
        }
        transition
    }

    /// Attempts one after the other: when, what, of which workflow. Whether each counted.
    fn play(&mut self, ends: &[(i64, Health, u8)]) -> Vec<bool> {
        let transition = ends.iter().map(|(ms, health, number)| {
            let attempt = self.start(at(*ms));
            self.end(attempt, *health, *number, at(*ms)).counts
        });
        transition.collect()
    }
}

#[test]
fn a_receiver_without_a_connection_opens_it_with_the_second_failure_and_none_counts() {
    let mut player = Player::new();
    assert_eq!(player.play(&[(0, Unreachable, 0), (1000, Unreachable, 0)]), [false, false]);
    let condition = player.circuit.condition().unwrap();
    assert_eq!((condition.cause, condition.since, condition.reason.as_str()), (Cause::Away, at(1000), "no"));
    assert!((at(1800)..=at(2200)).contains(&condition.next_probe));
    assert_eq!(player.gate(false, at(1000)), Gate::Until(condition.next_probe));
    assert_eq!(player.gate(false, at(2200)), Gate::Free);
}

#[test]
fn a_receiver_that_says_it_is_unavailable_opens_it_with_the_second_workflow_and_nothing_counts() {
    let mut player = Player::new();
    assert_eq!(player.play(&[(0, Unavailable, 0), (1000, Unavailable, 0), (9000, Unavailable, 0)]), [false; 3]);
    assert!(player.circuit.is_closed(), "it may be the fault of this workflow");
    assert_eq!(player.play(&[(9500, Unavailable, 1)]), [false]);
    assert!(!player.circuit.is_closed());
}

/// Whether the event or the receiver fails is known from its responses to others; if there are none, the receiver is assumed for
/// an hour.
#[test]
fn unavailable_counts_once_the_receiver_has_answered_anything_else_since() {
    let mut player = Player::new();
    assert_eq!(player.play(&[(0, Up, 1), (1000, Unavailable, 0), (2000, Unavailable, 0)]), [true, false, false]);
    assert_eq!(player.play(&[(3000, Up, 1), (4000, Unavailable, 0)]), [true, true]);
    let mut player = Player::new();
    let hour = 3_600_000;
    assert_eq!(
        player.play(&[(0, Unavailable, 0), (hour - 1, Unavailable, 0), (hour, Unavailable, 0)]),
        [false, false, true]
    );
}

#[test]
fn failures_by_chance_are_no_outage() {
    let mut player = Player::new();
    player.play(&[(0, Unreachable, 0), (499, Unreachable, 1)]);
    assert!(player.circuit.is_closed(), "not long enough");
    player.play(&[(500, Up, 2), (600, Unreachable, 3), (1099, Unreachable, 4)]);
    assert!(player.circuit.is_closed(), "an answer between them");
}

/// P4: some sick workflows do not hold up their neighbours, and their failures use up their own retries.
#[test]
fn a_few_sick_workflows_never_open_it() {
    let mut player = Player::new();
    let ends: Vec<_> = (0..1000).map(|number| (number * 1000, Failed, (number % 4) as u8)).collect();
    assert!(player.play(&ends).iter().all(|counts| *counts));
    assert!(player.circuit.is_closed());
    assert_eq!(player.play(&[(1_000_000, Failed, 4)]), [false], "the fifth workflow makes it an outage");
}

/// P4: however many workflows are sick, once the receiver has answered another they are known to be.
#[test]
fn workflows_that_are_known_to_be_sick_never_open_it() {
    for health in [Failed, Unavailable] {
        let mut player = Player::new();
        player.play(&(0..20).map(|number| (0, health, number)).collect::<Vec<_>>());
        player.play(&[(1000, Up, 100)]);
        let ends: Vec<_> = (0..1000).map(|number| (2000 + number * 100, health, (number % 20) as u8)).collect();
        assert!(player.play(&ends).iter().all(|counts| *counts), "their retries are used up");
        assert!(player.circuit.is_closed());
        player.play(&[(200_000, Up, 0), (200_000, Up, 1), (201_000, Unavailable, 0), (202_000, Unavailable, 1)]);
        assert!(!player.circuit.is_closed(), "those that have recovered contribute again");
    }
}

/// An answer to an attempt that started before the failure does not show that the receiver is there.
#[test]
fn at_the_begin_of_an_outage_late_answers_make_no_workflow_sick() {
    let mut player = Player::new();
    let (early, late) = (player.start(at(0)), player.start(at(0)));
    player.end(late, Unavailable, 1, at(10));
    player.end(early, Up, 2, at(20));
    player.play(&[(1000, Unavailable, 1), (2000, Unavailable, 3)]);
    assert!(!player.circuit.is_closed());
}

#[test]
fn only_a_probe_moves_the_next_one_and_each_failure_of_one_doubles_the_wait() {
    let mut player = Player::new();
    let before = player.start(at(0));
    player.play(&[(0, Unreachable, 0), (1000, Unreachable, 0)]);
    let mut now = at(1000);
    for wait_ms in [1000, 2000, 4000, 8000, 10_000, 10_000] {
        let Gate::Until(until) = player.gate(false, now) else { panic!("it is open") };
        let waited = until.duration_since(now).as_millis();
        assert!((wait_ms * 8 / 10..=wait_ms * 12 / 10).contains(&waited), "{waited} ms");
        now = until;
        let probe = player.start(now);
        assert_eq!(player.gate(false, now), Gate::Shut, "one probe");
        assert_eq!(player.end(probe, Unreachable, 0, now), Transition { counts: false, changed: true });
    }
    let other = player.end(before, Up, 0, now);
    assert!(!other.changed && !player.circuit.is_closed(), "what started before decides nothing");
    let Gate::Until(until) = player.gate(false, now) else { panic!("it is open") };
    let probe = player.start(until);
    assert_eq!(player.end(probe, Up, 0, until), Transition { counts: true, changed: true });
    assert_eq!(player.gate(false, until), Gate::Free);
}

/// P4: a healthy workflow finds out at once that the receiver is there.
#[test]
fn a_fresh_lane_does_not_wait_for_the_probe_and_its_success_closes_it() {
    let mut player = Player::new();
    player.play(&(0..5).map(|number| (i64::from(number) * 200, Failed, number)).collect::<Vec<_>>());
    assert!(player.circuit.is_failing(&workflow(0)) && !player.circuit.is_failing(&workflow(9)));
    for _ in 0..FRESH_BURST {
        assert_eq!(player.gate(true, at(800)), Gate::Free);
        player.start(at(800));
    }
    assert_eq!(player.gate(true, at(800)), Gate::Until(at(1050)), "four a second");
    assert!(matches!(player.gate(false, at(800)), Gate::Until(until) if until >= at(1600)));
    let fresh = player.start(at(1050));
    assert_eq!(player.end(fresh, Up, 9, at(1060)), Transition { counts: true, changed: true });
    assert_eq!(player.gate(false, at(1060)), Gate::Free);
}

/// Workflows that have a subscription to themselves and only fail are not taken for an outage for ever.
#[test]
fn failures_count_again_when_a_receiver_has_answered_with_them_for_an_hour() {
    let mut player = Player::new();
    player.play(&(0..5).map(|number| (i64::from(number) * 200, Failed, number)).collect::<Vec<_>>());
    let mut counted = vec![];
    for minute in 1..70 {
        let (now, number) = (at(minute * 60_000), (minute % 5) as u8);
        let probe = player.start(now);
        if player.end(probe, Failed, number, now).counts {
            counted.push(minute);
        }
    }
    assert_eq!(counted, (61..70).collect::<Vec<_>>());
    let probe = player.start(at(4_200_000));
    assert!(!player.end(probe, Unreachable, 0, at(4_200_000)).counts, "no connection never counts");
}

#[test]
fn our_own_configuration_holds_it_at_once_and_counts_nothing() {
    let mut player = Player::new();
    assert_eq!(player.play(&[(0, Held, 0)]), [false]);
    let condition = player.circuit.condition().unwrap();
    assert_eq!((condition.cause, condition.since), (Cause::Held, at(0)));
    assert!(matches!(player.gate(true, at(0)), Gate::Until(until) if until >= at(800)), "nor a fresh lane");
    let probe = player.start(at(1200));
    assert!(player.end(probe, Held, 0, at(1200)).changed);
    let condition = player.circuit.condition().unwrap();
    assert_eq!(condition.since, at(0));
    let probe = player.start(condition.next_probe);
    assert!(!player.end(probe, Unreachable, 0, condition.next_probe).counts);
    assert_eq!(player.circuit.condition().map(|condition| condition.cause), Some(Cause::Away));
}

#[test]
fn a_clock_that_is_set_back_does_not_hold_it_open() {
    let mut player = Player::new();
    player.play(&[(3_600_000, Unreachable, 0), (3_601_000, Unreachable, 0)]);
    for _ in 0..2 {
        player.start(at(3_601_000));
    }
    assert!(matches!(player.gate(false, at(0)), Gate::Until(until) if until <= at(1200)));
    assert!(matches!(player.gate(true, at(0)), Gate::Until(until) if until <= at(1200)));
}

#[derive(Debug, Clone, Copy)]
enum Step {
    Wait { ms: u16 },
    Start { workflow: u8, first: bool },
    End { which: u8, health: u8 },
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        2 => (0u16..3000).prop_map(|ms| Step::Wait { ms }),
        4 => (0u8..8, any::<bool>()).prop_map(|(workflow, first)| Step::Start { workflow, first }),
        4 => (any::<u8>(), 0u8..10).prop_map(|(which, health)| Step::End { which, health }),
    ]
}

/// An open circuit of the model.
struct Opened {
    since: Timestamp,
    /// Attempts from this on started while it was open.
    first: u64,
    started: u64,
}

/// An open circuit starts no retry before its time and one at a time, lets fresh lanes through at a small rate and without
/// a wait longer than that, is opened by no sick workflow, closes with the first answer, counts no failure, and is never
/// stuck.
fn keeps_its_promises(steps: Vec<Step>, seed: u64, mutant: Option<Mutant>) -> TestCaseResult {
    let mut player = Player { rng: StdRng::seed_from_u64(seed), mutant, ..Player::new() };
    let mut now = at(0);
    let mut in_flight: Vec<(AttemptId, u8, bool)> = Vec::new();
    let mut opened: Option<Opened> = None;
    for step in steps {
        let held = player.circuit.condition().is_some_and(|condition| condition.cause == Cause::Held);
        match step {
            Step::Wait { ms } => now = after(now, Duration::from_millis(ms.into())),
            Step::Start { workflow: number, first } => {
                let fresh = first && !player.circuit.is_failing(&workflow(number));
                let gate = player.gate(fresh, now);
                if let Some(opened) = &mut opened {
                    let elapsed = now.duration_since(opened.since).as_millis();
                    if fresh && !held {
                        let soon = after(now, UNREACHABLE_GAP);
                        prop_assert!(!matches!(gate, Gate::Until(at) if at > soon), "a fresh lane waits for the rate");
                        prop_assert!(gate != Gate::Shut, "a fresh lane waits for no probe");
                    } else if gate == Gate::Free {
                        prop_assert!(elapsed >= 800, "the shortest wait");
                        let retries = in_flight.iter().filter(|(id, _, fresh)| id.0 >= opened.first && !fresh);
                        prop_assert_eq!(retries.count(), 0, "one probe");
                    }
                    opened.started += u64::from(gate == Gate::Free);
                    let most = u64::from(FRESH_BURST) + 2 + elapsed as u64 / 250 + elapsed as u64 / 800;
                    prop_assert!(opened.started <= most, "{} attempts in {elapsed} ms", opened.started);
                } else {
                    prop_assert_eq!(gate, Gate::Free);
                }
                if gate == Gate::Free {
                    let id = player.start(now);
                    in_flight.push((id, number, fresh));
                }
            }
            Step::End { which, health } => {
                if in_flight.is_empty() {
                    continue;
                }
                let (id, number, _) = in_flight.swap_remove(usize::from(which) % in_flight.len());
                let health = [Up, Up, Unreachable, Unreachable, Unavailable, Unavailable, Failed, Failed, Failed, Held]
                    [usize::from(health)];
                let sick = player.circuit.failing.is_sick(Failing::hash(&workflow(number)));
                let was_closed = player.circuit.is_closed();
                let answered = player.failed_at.get(&number).is_some_and(|at| player.circuit.answered_at > Some(*at));
                let transition = player.end(id, health, number, now);
                let is_closed = player.circuit.is_closed();
                prop_assert!(was_closed == is_closed || transition.changed);
                let counts = is_closed && (health == Failed || health == Unavailable && answered);
                prop_assert!(health == Up || transition.counts == counts, "a failure counts while it is closed only");
                prop_assert!(health != Up || !was_closed || is_closed, "an answer never opens it");
                let opens = was_closed && !is_closed;
                prop_assert!(!opens || !sick || matches!(health, Unreachable | Held), "a sick workflow never opens it");
                if let Some(opened) = &opened {
                    prop_assert_eq!(is_closed, id.0 >= opened.first && health == Up, "an answer closes it at once");
                }
                if is_closed {
                    opened = None;
                } else if was_closed {
                    opened = Some(Opened { since: now, first: player.next, started: 0 });
                } else if player.circuit.condition().is_some_and(|condition| (condition.cause == Cause::Held) != held)
                    && let Some(opened) = &mut opened
                {
                    // It is open for another cause now.
                    *opened = Opened { since: now, first: player.next, started: 0 };
                }
            }
        }
    }
    if in_flight.is_empty() {
        let later = after(now, HELD_WAIT_MAX.mul_f64(1.0 + JITTER));
        prop_assert_eq!(player.gate(false, later), Gate::Free, "it is never stuck");
    }
    Ok(())
}

fn histories() -> impl Strategy<Value = (Vec<Step>, u64)> {
    (proptest::collection::vec(step(), 1..200), any::<u64>())
}

proptest! {
    #[test]
    fn the_circuit_keeps_its_promises((steps, seed) in histories()) {
        keeps_its_promises(steps, seed, None)?;
    }
}

#[test]
fn mutants_are_detected() {
    for mutant in [
        Mutant::EarlyProbe,
        Mutant::SecondProbe,
        Mutant::ShortOutageCounts,
        Mutant::OutageCounts,
        Mutant::SickOpens,
        Mutant::FreshWaits,
    ] {
        let noticed = is_noticed(&histories(), |(steps, seed)| keeps_its_promises(steps, seed, Some(mutant)));
        assert!(noticed, "{mutant:?}");
    }
}

/// Of an event that is not sent, nothing follows for the receiver: the circuit stays open, and another attempt is the probe.
#[test]
fn a_probe_that_is_not_sent_says_nothing_of_the_receiver() {
    let (mut circuit, mut rng) = (Circuit::default(), StdRng::seed_from_u64(1));
    let workflow = workflow(1);
    let report = |attempt, health| AttemptReport {
        attempt: AttemptId(attempt),
        health,
        workflow: &workflow,
        first_failed_at: None,
        error: "",
    };
    assert_eq!(circuit.ended(report(1, Health::Unknown), at(0), &mut rng), Transition { counts: true, changed: false });
    assert!(circuit.is_closed());
    circuit.ended(report(2, Held), at(0), &mut rng);
    let due = circuit.condition().unwrap().next_probe;
    assert_eq!(circuit.gate(false, due), Gate::Free);
    circuit.started(AttemptId(3), due);
    assert_eq!(circuit.gate(false, due), Gate::Shut);
    assert_eq!(circuit.ended(report(3, Health::Unknown), due, &mut rng), Transition { counts: true, changed: false });
    assert!(!circuit.is_closed());
    assert_eq!(circuit.gate(false, due), Gate::Free);
}
