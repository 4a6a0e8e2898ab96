//! The circuit alone: single rules, and random histories against what it promises.

use proptest::{prelude::*, test_runner::TestCaseResult};
use rand::{SeedableRng as _, rngs::StdRng};

use super::*;
use crate::lane::flaw::is_noticed;

fn workflow(number: u8) -> WorkflowId {
    WorkflowId::new(format!("w{number}")).unwrap()
}

fn at(ms: i64) -> Timestamp {
    Timestamp::from_millisecond(1_000_000 + ms).unwrap()
}

/// Ends attempts one after the other: when, what, of which workflow. What each of them was judged to be.
fn play(circuit: &mut Circuit, ends: &[(i64, Sign, u8)]) -> Vec<bool> {
    let mut rng = StdRng::seed_from_u64(1);
    let judged = ends
        .iter()
        .map(|(ms, sign, number)| circuit.ended(AttemptId(0), *sign, &workflow(*number), at(*ms), &mut rng).counts);
    judged.collect()
}

use Sign::{Alive, Away, Failed};

#[test]
fn a_receiver_that_is_away_opens_it_with_the_second_failure_which_does_not_count() {
    let mut circuit = Circuit::default();
    assert_eq!(play(&mut circuit, &[(0, Away, 0), (1000, Away, 0)]), [true, false]);
    assert!(!circuit.is_closed());
    assert!(matches!(circuit.gate(at(1000)), Gate::Until(until) if (at(1800)..=at(2200)).contains(&until)));
    assert_eq!(circuit.gate(at(2200)), Gate::Free);
}

#[test]
fn failures_by_chance_are_no_outage() {
    let mut circuit = Circuit::default();
    play(&mut circuit, &[(0, Away, 0), (499, Away, 1)]);
    assert!(circuit.is_closed(), "not long enough");
    play(&mut circuit, &[(500, Alive, 2), (600, Away, 3), (1099, Away, 4)]);
    assert!(circuit.is_closed(), "a sign of life between them");
}

/// P4: one sick workflow does not hold up its neighbours.
#[test]
fn a_workflow_that_is_sick_alone_never_opens_it() {
    let mut circuit = Circuit::default();
    let ends: Vec<_> = (0..1000).map(|number| (number * 1000, Failed, (number % 4) as u8)).collect();
    assert!(play(&mut circuit, &ends).iter().all(|counts| *counts));
    assert!(circuit.is_closed());
    assert_eq!(play(&mut circuit, &[(1_000_000, Failed, 4)]), [false], "the fifth workflow makes it an outage");
}

#[test]
fn only_the_probe_decides_and_each_failure_of_one_doubles_the_wait() {
    let mut circuit = Circuit::default();
    let mut rng = StdRng::seed_from_u64(1);
    play(&mut circuit, &[(0, Away, 0), (1000, Away, 0)]);
    let mut now = at(1000);
    for (probe, wait_ms) in [(1, 1000), (2, 2000), (3, 4000), (4, 8000), (5, 10_000), (6, 10_000)] {
        let Gate::Until(until) = circuit.gate(now) else { panic!("it is open") };
        let waited = until.duration_since(now).as_millis();
        assert!((wait_ms * 8 / 10..=wait_ms * 12 / 10).contains(&waited), "{waited} ms");
        now = until;
        circuit.started(AttemptId(probe));
        assert_eq!(circuit.gate(now), Gate::Shut, "one probe");
        let other = circuit.ended(AttemptId(99), Alive, &workflow(0), now, &mut rng);
        assert_eq!((other.turned, circuit.gate(now)), (false, Gate::Shut), "what began before decides nothing");
        let judged = circuit.ended(AttemptId(probe), Failed, &workflow(0), now, &mut rng);
        assert_eq!(judged, Judged { counts: false, turned: false });
    }
    let Gate::Until(until) = circuit.gate(now) else { panic!("it is open") };
    circuit.started(AttemptId(7));
    let judged = circuit.ended(AttemptId(7), Alive, &workflow(0), until, &mut rng);
    assert_eq!((judged.turned, circuit.gate(until)), (true, Gate::Free));
}

#[test]
fn a_clock_that_is_set_back_does_not_hold_it_open() {
    let mut circuit = Circuit::default();
    play(&mut circuit, &[(3_600_000, Away, 0), (3_601_000, Away, 0)]);
    assert!(matches!(circuit.gate(at(0)), Gate::Until(until) if until <= at(1200)));
}

#[derive(Debug, Clone, Copy)]
enum Step {
    Wait { ms: u16 },
    Start,
    End { which: u8, sign: u8, workflow: u8 },
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        2 => (0u16..3000).prop_map(|ms| Step::Wait { ms }),
        4 => Just(Step::Start),
        4 => (any::<u8>(), 0u8..6, 0u8..8).prop_map(|(which, sign, workflow)| Step::End { which, sign, workflow }),
    ]
}

/// An open circuit starts nothing before its time, a half-open one has one probe, a failure counts exactly while it is
/// closed, and it is never stuck.
fn keeps_its_promises(steps: Vec<Step>, seed: u64) -> TestCaseResult {
    let mut circuit = Circuit::default();
    let mut rng = StdRng::seed_from_u64(seed);
    let (mut now, mut next, mut in_flight) = (at(0), 0, Vec::new());
    // Starts since it opened, and when it did.
    let mut opened: Option<Timestamp> = None;
    let mut probe: Option<AttemptId> = None;
    for step in steps {
        match step {
            Step::Wait { ms } => now = after(now, Duration::from_millis(ms.into())),
            Step::Start => {
                let gate = circuit.gate(now);
                prop_assert!(probe.is_none() || gate == Gate::Shut, "one probe");
                prop_assert_eq!(gate == Gate::Shut, probe.is_some(), "shut by a probe only");
                if let (Some(opened), Gate::Free) = (opened, gate) {
                    prop_assert!(now.duration_since(opened).as_millis() >= 800, "the shortest wait");
                }
                if gate != Gate::Free {
                    continue;
                }
                let id = AttemptId(next);
                next += 1;
                if opened.is_some() {
                    probe = Some(id);
                }
                circuit.started(id);
                in_flight.push(id);
            }
            Step::End { which, sign, workflow: number } => {
                if in_flight.is_empty() {
                    continue;
                }
                let id = in_flight.swap_remove(usize::from(which) % in_flight.len());
                let sign = [Alive, Away, Away, Failed, Failed, Failed][usize::from(sign)];
                let was_closed = circuit.is_closed();
                let judged = circuit.ended(id, sign, &workflow(number), now, &mut rng);
                let is_closed = circuit.is_closed();
                prop_assert_eq!(judged.turned, was_closed != is_closed);
                prop_assert_eq!(judged.counts, is_closed, "what ends while it is closed counts, and nothing else");
                prop_assert!(sign != Alive || !was_closed || is_closed, "a sign of life never opens it");
                prop_assert!(was_closed || !is_closed || probe == Some(id) && sign == Alive, "only a probe closes it");
                if probe == Some(id) {
                    probe = None;
                    opened = (!is_closed).then_some(now);
                } else if was_closed && !is_closed {
                    opened = Some(now);
                }
            }
        }
    }
    if probe.is_none() {
        let later = after(now, WAIT_MAX.mul_f64(1.0 + JITTER));
        prop_assert_eq!(circuit.gate(later), Gate::Free, "it is never stuck");
    }
    Ok(())
}

fn histories() -> impl Strategy<Value = (Vec<Step>, u64)> {
    (proptest::collection::vec(step(), 1..200), any::<u64>())
}

proptest! {
    #[test]
    fn it_keeps_its_promises((steps, seed) in histories()) {
        keeps_its_promises(steps, seed)?;
    }
}

#[test]
fn its_flaws_are_noticed() {
    for flaw in [Flaw::OpenCircuit, Flaw::SecondProbe, Flaw::OutageCounts] {
        let noticed = is_noticed(flaw, &histories(), |(steps, seed)| keeps_its_promises(steps, seed));
        assert!(noticed, "{flaw:?}");
    }
}
