//! Long random histories, by seeds; and histories in which a rule is not in force, which the model notices.
//!
//! `WEFT_SOAK_STEPS` says how many steps, `WEFT_SOAK_SEED` by which dice; the seed of a history that fails is printed.

use std::panic::{catch_unwind, resume_unwind};

use proptest::{
    strategy::ValueTree as _,
    test_runner::{Config, RngAlgorithm, TestRng, TestRunner},
};

use super::*;
use crate::lane::flaw::{self, Flaw};

/// Steps of one history: enough for every state, few enough to be followed.
const HISTORY: u64 = 250;
/// Steps of the ordinary run, beside those of the property test.
const STEPS: u64 = 20_000;
/// Histories within which a flaw must be noticed.
const FLAWED: u64 = 2_000;

fn history(seed: u64) {
    let mut bytes = [0; 32];
    bytes[..8].copy_from_slice(&seed.to_le_bytes());
    let dice = TestRng::from_seed(RngAlgorithm::ChaCha, &bytes);
    let (mut runner, step) = (TestRunner::new_with_rng(Config::default(), dice), step());
    let mut world = World::new(seed);
    for _ in 0..HISTORY {
        world.run(step.new_tree(&mut runner).unwrap().current());
    }
    world.heal();
}

#[test]
fn random_steps_keep_every_promise() {
    let number = |name: &str| std::env::var(name).ok().map(|text| text.parse::<u64>().expect("a number"));
    let steps = number("WEFT_SOAK_STEPS").unwrap_or(STEPS);
    let seed = number("WEFT_SOAK_SEED").unwrap_or_else(|| u64::from(rand::random::<u32>()));
    let started = std::time::Instant::now();
    eprintln!("{steps} steps, WEFT_SOAK_SEED={seed}");
    let threads = std::thread::available_parallelism().map_or(1, usize::from);
    std::thread::scope(|scope| {
        for thread in 0..threads {
            scope.spawn(move || {
                for number in (0..steps.div_ceil(HISTORY)).skip(thread).step_by(threads) {
                    let seed = seed.wrapping_add(number);
                    catch_unwind(|| history(seed)).unwrap_or_else(|panic| {
                        eprintln!("this one again: WEFT_SOAK_SEED={seed} WEFT_SOAK_STEPS=1");
                        resume_unwind(panic)
                    });
                }
            });
        }
    });
    eprintln!("in {:.1?}", started.elapsed());
}

#[test]
fn the_model_notices_every_flaw() {
    for flaw in [
        Flaw::SecondAttempt,
        Flaw::NotTheHead,
        Flaw::AheadOfCommit,
        Flaw::Gap,
        Flaw::Repeat,
        Flaw::BoundlessMemory,
        Flaw::BoundlessLanes,
        Flaw::BoundlessCommits,
        Flaw::BoundlessAttempts,
        Flaw::BoundlessSubscription,
        Flaw::EarlyRetry,
        Flaw::ForeignClock,
        Flaw::PausedSubscription,
        Flaw::PausedLane,
        Flaw::SecondProbe,
        Flaw::OutageExhausts,
        Flaw::SecondRun,
        Flaw::PresentFilter,
        Flaw::MissingIsRemoved,
        Flaw::EndedComesBack,
    ] {
        let noticed = (0..FLAWED).position(|seed| flaw::with(flaw, || catch_unwind(|| history(seed))).is_err());
        eprintln!("{flaw:?}: {noticed:?}");
        assert!(noticed.is_some(), "{flaw:?}");
    }
}
