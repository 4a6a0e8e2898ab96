//! Mutants of the lanes: each breaks one rule from outside, and the model must notice it.
//!
//! A property that also holds without the rule that it guards proves nothing. A mutant changes what the lanes are given
//! (limits, the restored record, inputs) or their state before or after an input.

use proptest::test_runner::{Config, RngAlgorithm, TestCaseResult, TestRng, TestRunner};
use weft_catalog::Filters;

use super::*;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mutant {
    /// A lane starts an attempt while another one is in flight.
    SecondAttempt,
    /// A lane attempts its newest event instead of its head.
    NotTheHead,
    /// A lane does not wait for the commit that it needs.
    AheadOfCommit,
    /// An arrival is buffered although the buffer does not reach up to it.
    Gap,
    /// Caught-up events are buffered although they are settled or buffered already.
    Repeat,
    /// The memory has no bound.
    UnboundedMemory,
    /// The number of lanes has no bound.
    UnboundedLanes,
    /// The number of uncommitted outcomes has no bound.
    UnboundedCommits,
    /// The number of attempts in flight has no bound.
    UnboundedAttempts,
    /// The number of a subscription's attempts in flight has no bound.
    UnboundedSubscription,
    /// A retry does not wait.
    EarlyRetry,
    /// A restored wait ends by this owner's clock alone.
    ForeignClock,
    /// The lanes of a paused subscription are attempted.
    PausedSubscription,
    /// A paused lane is attempted.
    PausedLane,
    /// An open circuit lets a second probe through.
    SecondProbe,
    /// Uncounted failures use up retries.
    OutageExhausts,
    /// A command starts a run of an event that has one.
    SecondRun,
    /// Earlier events are matched by the newest filter.
    NewestFilter,
    /// A subscription delivers by a filter that is not committed.
    UncommittedFilter,
    /// A wider filter counts from the cursor of a new owner.
    WiderAtTakeOver,
    /// An orphaned subscription is closed.
    OrphanIsClosed,
    /// A subscription that is opened again starts at its first start.
    ClosedComesBack,
    /// The number of events of a batch has no bound.
    UnboundedBatch,
    /// A batch leaves out events.
    BatchWithGap,
    /// All events of a batch are accepted if the first is.
    AcceptsAll,
    /// The failure of a batch is its first event's.
    FirstIsAtFault,
}

impl Mutant {
    pub const ALL: [Self; 26] = [
        Self::SecondAttempt,
        Self::NotTheHead,
        Self::AheadOfCommit,
        Self::Gap,
        Self::Repeat,
        Self::UnboundedMemory,
        Self::UnboundedLanes,
        Self::UnboundedCommits,
        Self::UnboundedAttempts,
        Self::UnboundedSubscription,
        Self::EarlyRetry,
        Self::ForeignClock,
        Self::PausedSubscription,
        Self::PausedLane,
        Self::SecondProbe,
        Self::OutageExhausts,
        Self::SecondRun,
        Self::NewestFilter,
        Self::UncommittedFilter,
        Self::WiderAtTakeOver,
        Self::OrphanIsClosed,
        Self::ClosedComesBack,
        Self::UnboundedBatch,
        Self::BatchWithGap,
        Self::AcceptsAll,
        Self::FirstIsAtFault,
    ];

    pub fn limits(self, limits: Limits) -> Limits {
        match self {
            Self::UnboundedMemory => Limits { buffered_bytes_max: usize::MAX, ..limits },
            Self::UnboundedLanes => Limits { lanes_max: usize::MAX, still_lanes_max: usize::MAX, ..limits },
            Self::UnboundedCommits => Limits { uncommitted_max: usize::MAX, ..limits },
            Self::UnboundedAttempts => Limits { attempts_max: usize::MAX, ..limits },
            _ => limits,
        }
    }

    pub fn restored(self, mut restored: Restored) -> Restored {
        match self {
            Self::ForeignClock => {
                restored.lanes.iter_mut().for_each(|lane| lane.wait_ms = i64::MAX as u64);
                restored.runs.iter_mut().for_each(|run| run.wait_ms = i64::MAX as u64);
            }
            Self::WiderAtTakeOver => restored.earlier_end = Some(StreamSeq(0)),
            _ => {}
        }
        restored
    }

    fn input(self, input: Input) -> Input {
        match (self, input) {
            (Self::UnboundedSubscription, Input::Subscribed(policy)) => {
                Input::Subscribed(SubscriptionPolicy { concurrency: usize::MAX, ..policy })
            }
            (Self::PausedSubscription, Input::Subscribed(policy)) => {
                Input::Subscribed(SubscriptionPolicy { paused: false, ..policy })
            }
            (Self::UnboundedBatch, Input::Subscribed(policy)) => {
                Input::Subscribed(SubscriptionPolicy { max_events: usize::MAX, ..policy })
            }
            (Self::AcceptsAll, Input::AttemptFinished { attempt, mut ends }) => {
                if ends[0].result == AttemptResult::Delivered {
                    ends.resize(limits().lanes_max, ends[0].clone());
                    ends.iter_mut()
                        .for_each(|end| *end = AttemptEnd { result: AttemptResult::Delivered, ..end.clone() });
                }
                Input::AttemptFinished { attempt, ends }
            }
            (Self::FirstIsAtFault, Input::AttemptFinished { attempt, mut ends }) => {
                ends.iter_mut().for_each(|end| end.is_attributed = true);
                Input::AttemptFinished { attempt, ends }
            }
            (Self::OrphanIsClosed, Input::Orphaned { uid }) => Input::Unsubscribed {
                uid,
                operator: String::new(),
                reason: String::new(),
                catalog: internal::CatalogPosition::default(),
            },
            (_, input) => input,
        }
    }

    pub fn handle(self, lanes: &mut Lanes, input: Input, now: Timestamp, actions: &mut Vec<Action>) {
        let input = self.input(input);
        let all = lanes.state.lanes.values_mut();
        match (self, &input) {
            (Self::SecondAttempt, _) => all.for_each(|lane| lane.in_flight = None),
            (Self::NotTheHead, _) => all.filter(|lane| lane.in_flight.is_none()).for_each(|lane| {
                if let Some(last) = lane.buffer.len().checked_sub(1) {
                    lane.buffer.swap(0, last);
                }
            }),
            (Self::BatchWithGap, _) => all.filter(|lane| lane.in_flight.is_none()).for_each(|lane| {
                if lane.buffer.len() > 2 {
                    lane.buffer.swap(1, 2);
                }
            }),
            (Self::AheadOfCommit, _) => all.for_each(|lane| lane.hold = None),
            (Self::Gap, Input::Arrived { event, matching }) => {
                for uid in matching {
                    let key = LaneKey::of_workflow(*uid, event.event.workflow.clone());
                    if let Some(lane) = lanes.state.lanes.get_mut(&key).filter(|lane| !lane.is_settled()) {
                        lane.complete_to = lane.last;
                    }
                }
            }
            (Self::Repeat, Input::CaughtUp { lane, .. }) => {
                if let Some(lane) = lanes.state.lanes.get_mut(lane) {
                    lane.complete_to = StreamSeq(0);
                }
            }
            (Self::EarlyRetry, _) => all.for_each(|lane| {
                lane.head.not_before = None;
                lane.runs.values_mut().for_each(|run| run.attempts.not_before = None);
            }),
            (Self::PausedLane, Input::CommitStored { .. }) => all.for_each(|lane| lane.paused = false),
            (Self::SecondProbe, _) => lanes.schedule.forget_probes(),
            (Self::ClosedComesBack, Input::Subscribed(_)) => lanes.state.closed.clear(),
            (Self::SecondRun, Input::CommandReceived(command))
                if matches!(command.action, CommandAction::Redrive(_) | CommandAction::Replay { .. }) =>
            {
                let runs: Vec<_> = lanes
                    .state
                    .lanes
                    .iter_mut()
                    .map(|(key, lane)| (key.clone(), std::mem::take(&mut lane.runs)))
                    .collect();
                lanes.handle(input, now, actions);
                runs.into_iter().for_each(|(key, runs)| lanes.state.lane_mut(&key).runs.extend(runs));
                return;
            }
            _ => {}
        }
        let finished = matches!(input, Input::AttemptFinished { .. });
        lanes.handle(input, now, actions);
        match self {
            Self::OutageExhausts if finished => {
                lanes.state.lanes.values_mut().for_each(|lane| lane.head.uncounted = 0);
            }
            Self::UncommittedFilter => {
                let awaiting =
                    lanes.state.subscriptions.iter_mut().filter_map(|(uid, known)| known.awaits.take().map(|_| *uid));
                for uid in awaiting.collect::<Vec<_>>() {
                    lanes.switch(uid, now, actions);
                }
            }
            _ => {}
        }
    }

    pub fn filters(self, filters: Option<Arc<Filters>>) -> Option<Arc<Filters>> {
        match self {
            Self::NewestFilter => filters.map(|filters| Arc::new(filters.present())),
            _ => filters,
        }
    }
}

/// Whether a property fails for some of the strategy's values.
pub fn is_noticed<S: Strategy>(strategy: &S, property: impl Fn(S::Value) -> TestCaseResult) -> bool
where
    S::Value: std::fmt::Debug,
{
    let config = Config { cases: 512, failure_persistence: None, max_shrink_iters: 0, ..Config::default() };
    let mut runner = TestRunner::new_with_rng(config, TestRng::deterministic_rng(RngAlgorithm::ChaCha));
    runner.run(strategy, property).is_err()
}
