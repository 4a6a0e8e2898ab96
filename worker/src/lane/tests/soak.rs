//! Long random histories, by seeds; and histories of mutants, which the model notices.
//!
//! `WEFT_SOAK_STEPS` says how many steps, `WEFT_SOAK_SEED` by which dice; the seed of a history that fails is printed.

use std::panic::{catch_unwind, resume_unwind, set_hook, take_hook};

use proptest::{
    strategy::ValueTree as _,
    test_runner::{Config, RngAlgorithm, TestRng, TestRunner},
};

use super::*;

/// Steps of one history: enough for every state, few enough to be followed.
const HISTORY: u64 = 250;
/// Steps of the ordinary run, in addition to those of the property test.
const STEPS: u64 = 20_000;
/// Histories within which a mutant must be noticed.
const MUTANT_HISTORIES: u64 = 10_000;

fn history(seed: u64, mutant: Option<Mutant>) {
    run(seed, mutant, &steps(seed));
}

/// The steps of a seed.
fn steps(seed: u64) -> Vec<Step> {
    let mut bytes = [0; 32];
    bytes[..8].copy_from_slice(&seed.to_le_bytes());
    let dice = TestRng::from_seed(RngAlgorithm::ChaCha, &bytes);
    let (mut runner, step) = (TestRunner::new_with_rng(Config::default(), dice), step());
    (0..HISTORY).map(|_| step.new_tree(&mut runner).unwrap().current()).collect()
}

fn run(seed: u64, mutant: Option<Mutant>, steps: &[Step]) {
    let mut model = Model::with(seed, mutant);
    steps.iter().cloned().for_each(|step| model.run(step));
    model.heal();
}

/// The promise that a history breaks: what its panic says before the first colon.
fn broken_promise(seed: u64, steps: &[Step]) -> Option<String> {
    let panic = catch_unwind(|| run(seed, None, steps)).err()?;
    let text = panic.downcast_ref::<String>().cloned();
    let text = text.or_else(|| panic.downcast_ref::<&str>().map(|text| (*text).to_owned())).unwrap_or_default();
    let text = text.strip_prefix("assertion `left == right` failed: ").unwrap_or(&text);
    Some(text.split(':').next().unwrap_or_default().to_owned())
}

/// The history without every part that it breaks its promise without.
fn shortest(seed: u64) -> Vec<Step> {
    let mut steps = steps(seed);
    let promise = broken_promise(seed, &steps);
    let mut part = steps.len() / 2;
    while part > 0 {
        let before = steps.len();
        let mut at = 0;
        while at < steps.len() {
            let mut fewer = steps.clone();
            fewer.drain(at..(at + part).min(steps.len()));
            if promise.is_some() && broken_promise(seed, &fewer) == promise {
                steps = fewer;
            } else {
                at += part;
            }
        }
        if part > 1 || steps.len() == before {
            part /= 2;
        }
    }
    steps
}

/// Prints a history that fails, as short as it can be made.
fn report(seed: u64) {
    eprintln!("repeat with WEFT_SOAK_SEED={seed} WEFT_SOAK_STEPS=1");
    // Thousands of panics on the way to it are of no interest.
    let hook = take_hook();
    set_hook(Box::new(|_| {}));
    let steps = shortest(seed);
    set_hook(hook);
    steps.iter().for_each(|step| eprintln!("    {step:?}"));
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
                    catch_unwind(|| history(seed, None)).unwrap_or_else(|panic| {
                        report(seed);
                        resume_unwind(panic)
                    });
                }
            });
        }
    });
    eprintln!("in {:.1?}", started.elapsed());
}

#[test]
fn the_model_notices_every_mutant() {
    for mutant in Mutant::ALL {
        let noticed = (0..MUTANT_HISTORIES).position(|seed| catch_unwind(|| history(seed, Some(mutant))).is_err());
        eprintln!("{mutant:?}: {noticed:?}");
        assert!(noticed.is_some(), "{mutant:?}");
    }
}
