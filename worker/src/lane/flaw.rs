//! What tests switch off in the machine, one at a time, to see that its properties notice.
//!
//! A property that also holds without the rule that it is there for proves nothing. So the rules ask here whether they are
//! in force. Outside tests they always are, and the question costs nothing.

/// A rule that is not in force.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Flaw {
    /// A lane starts an attempt beside the one that is in flight.
    SecondAttempt,
    /// Something else than the head of a lane is attempted.
    NotTheHead,
    /// A lane goes on before what must be committed first is.
    AheadOfCommit,
    /// An arrival is pushed behind a buffer that does not reach to it.
    Gap,
    /// What was caught up with is pushed though it is in the buffer.
    Repeat,
    /// Events are kept whatever they cost.
    BoundlessMemory,
    /// A subscription that does not deliver has a lane for every workflow.
    BoundlessLanes,
    /// Attempts start however many outcomes wait for their commit.
    BoundlessCommits,
    /// Attempts start however many are in flight.
    BoundlessAttempts,
    /// A subscription's attempts start however many of it are in flight.
    BoundlessSubscription,
    /// A subscription takes the last place of all.
    LastPlace,
    /// A retry does not wait.
    EarlyRetry,
    /// A wait that an owner before has decided ends by the clock of this one.
    ForeignClock,
    /// The lanes of a paused subscription go on.
    PausedSubscription,
    /// A lane goes on that an operator has paused.
    PausedLane,
    /// An open circuit lets attempts through before its time.
    OpenCircuit,
    /// A half-open circuit lets more than the probe through.
    SecondProbe,
    /// What a receiver answers as unavailable counts, whether it answers anything else or not.
    ShortOutageCounts,
    /// What fails while the circuit is not closed counts.
    OutageCounts,
    /// A workflow that is known to be sick contributes to an outage.
    SickOpens,
    /// The first attempt of a fresh lane waits for the probe of an open circuit.
    FreshWaits,
    /// Retries take every place of their subscription.
    RetriesEverywhere,
    /// An event's retries are used up by failures that do not count.
    OutageExhausts,
    /// Who stands first starts as long as there is something to start.
    NoTurns,
    /// Who became ready last starts first.
    LastComeFirst,
    /// There is no rate.
    NoRate,
    /// A command begins a run of an event beside another one.
    SecondRun,
    /// Earlier events are matched by the present filter.
    PresentFilter,
    /// A subscription delivers by a filter that is not committed.
    FilterNotCommitted,
    /// A wider filter counts from where an owner begins that takes over.
    WiderAtTakeOver,
    /// What is missing from the catalog is closed.
    MissingIsRemoved,
    /// A subscription that was closed begins again at its start.
    EndedComesBack,
}

#[cfg(not(test))]
pub(super) const fn has(_: Flaw) -> bool {
    false
}

#[cfg(test)]
pub(super) use of_tests::{has, is_noticed, with};

#[cfg(test)]
mod of_tests {
    use std::{cell::Cell, fmt::Debug};

    use proptest::{
        strategy::Strategy,
        test_runner::{Config, RngAlgorithm, TestCaseResult, TestRng, TestRunner},
    };

    use super::Flaw;

    thread_local! {
        static PRESENT: Cell<Option<Flaw>> = const { Cell::new(None) };
    }

    /// Whether this thread runs with the flaw.
    pub fn has(flaw: Flaw) -> bool {
        PRESENT.get() == Some(flaw)
    }

    /// Runs something with a flaw, whether it panics or not.
    pub fn with<T>(flaw: Flaw, run: impl FnOnce() -> T) -> T {
        struct Mended;
        impl Drop for Mended {
            fn drop(&mut self) {
                PRESENT.set(None);
            }
        }
        let _mended = Mended;
        PRESENT.set(Some(flaw));
        run()
    }

    /// Whether a property that holds does not hold any more with the flaw.
    pub fn is_noticed<S: Strategy>(flaw: Flaw, strategy: &S, property: impl Fn(S::Value) -> TestCaseResult) -> bool
    where
        S::Value: Debug,
    {
        let config = Config { cases: 512, failure_persistence: None, max_shrink_iters: 0, ..Config::default() };
        let mut runner = TestRunner::new_with_rng(config, TestRng::deterministic_rng(RngAlgorithm::ChaCha));
        with(flaw, || runner.run(strategy, property)).is_err()
    }
}
