//! The circuit breaker of one subscription's destination.
//!
//! | state | attempts | what ends it |
//! |---|---|---|
//! | closed | all | an outage: open |
//! | open | none | its wait has passed: half-open with the next attempt |
//! | half-open | one, the probe | the probe's end: closed, or open for twice as long |
//!
//! An *outage* is failure after failure, for half a second at least, with nothing in between that says that the receiver
//! lives. Two failures that are the receiver's own are enough, such as a refused connection or a 503. Any other failure may
//! be its event's fault, so there it takes several workflows: one that is sick alone is no outage, however often it fails.
//!
//! What ends in failure while the circuit is not closed says something of the receiver and not of the event, and so does
//! the failure that opens it: none of them uses up a retry. So no receiver that comes back finds dead letters of the time
//! that it was away, and what was under way when it went is attempted again.

use std::{collections::BTreeSet, time::Duration};

use jiff::{SignedDuration, Timestamp};
use rand::{Rng, RngExt as _};
use weft_proto::{ids::WorkflowId, v1::AttemptClass};

use super::{
    AttemptId,
    flaw::{Flaw, has},
    input::{AttemptEnd, Verdict},
};

/// The shortest outage: where a part of many attempts fails by chance, some succeed within this.
const OUTAGE_MIN: SignedDuration = SignedDuration::from_millis(500);
/// Failures of the receiver's own that make an outage: one alone may be one of its addresses.
const OWN_FAILURES: u32 = 2;
/// Workflows whose failures make an outage, whatever they are.
const FAILING_WORKFLOWS: usize = 5;
/// For how long a circuit opens first.
const WAIT_MIN: Duration = Duration::from_secs(1);
/// For how long it opens at the most: a receiver that is back is found within this, and one that is away for days is
/// called so seldom.
pub(super) const WAIT_MAX: Duration = Duration::from_secs(10);
/// Waits differ by this part, so that the shards do not call all at once.
const JITTER: f64 = 0.2;

/// What an attempt's end says of the receiver.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Sign {
    /// It lives: it has answered for good or ill.
    Alive,
    /// It is away.
    Away,
    /// It has failed, and nobody can say whether at this event only.
    Failed,
}

impl Sign {
    pub fn of(end: &AttemptEnd) -> Self {
        match (end.verdict, end.class, end.status) {
            (Verdict::Delivered | Verdict::Permanent | Verdict::Gone, ..) => Self::Alive,
            (Verdict::Transient, AttemptClass::Connect | AttemptClass::Dns | AttemptClass::Tls, _) => Self::Away,
            // Bad gateway, service unavailable, gateway time-out: what stands before a receiver that is being deployed.
            (Verdict::Transient, _, 502..=504) => Self::Away,
            (Verdict::Transient, ..) => Self::Failed,
        }
    }
}

/// Whether an attempt may start.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Gate {
    /// It may.
    Free,
    /// Not before this.
    Until(Timestamp),
    /// Not before something else has ended.
    Shut,
}

/// What an end has done.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Judged {
    /// Whether a failure is the event's: it uses up a retry.
    pub counts: bool,
    /// Whether the circuit has turned from closed to open, or back.
    pub turned: bool,
}

/// The circuit of one destination.
#[derive(Debug, Default)]
pub(super) struct Circuit(State);

#[derive(Debug)]
enum State {
    Closed(Streak),
    Open { until: Timestamp, wait: Duration },
    HalfOpen { probe: AttemptId, wait: Duration },
}

impl Default for State {
    fn default() -> Self {
        Self::Closed(Streak::default())
    }
}

/// Failures with no sign of life between them.
#[derive(Debug, Default)]
struct Streak {
    since: Option<Timestamp>,
    away: u32,
    /// At most as many as decide.
    workflows: BTreeSet<WorkflowId>,
}

impl Streak {
    fn add(&mut self, sign: Sign, workflow: &WorkflowId, now: Timestamp) {
        self.since.get_or_insert(now);
        self.away += u32::from(sign == Sign::Away);
        if self.workflows.len() < FAILING_WORKFLOWS {
            self.workflows.insert(workflow.clone());
        }
    }

    fn is_outage(&self, now: Timestamp) -> bool {
        let lasts = self.since.is_some_and(|since| now.duration_since(since) >= OUTAGE_MIN);
        lasts && (self.away >= OWN_FAILURES || self.workflows.len() >= FAILING_WORKFLOWS)
    }
}

impl Circuit {
    /// Whether it lets every attempt through.
    pub fn is_closed(&self) -> bool {
        matches!(self.0, State::Closed(_))
    }

    /// Whether an attempt may start at `now`.
    pub fn gate(&mut self, now: Timestamp) -> Gate {
        match &mut self.0 {
            State::Closed(_) => Gate::Free,
            State::HalfOpen { .. } if has(Flaw::SecondProbe) => Gate::Free,
            State::HalfOpen { .. } => Gate::Shut,
            State::Open { until, wait } => {
                // A clock that was set back must not hold it open.
                *until = (*until).min(after(now, wait.mul_f64(1.0 + JITTER)));
                if *until <= now || has(Flaw::OpenCircuit) { Gate::Free } else { Gate::Until(*until) }
            }
        }
    }

    /// An attempt starts that the gate has let through.
    pub fn started(&mut self, attempt: AttemptId) {
        if let State::Open { wait, .. } = self.0 {
            self.0 = State::HalfOpen { probe: attempt, wait };
        }
    }

    /// An attempt has ended.
    pub fn ended(
        &mut self,
        attempt: AttemptId,
        sign: Sign,
        workflow: &WorkflowId,
        now: Timestamp,
        rng: &mut impl Rng,
    ) -> Judged {
        match (&mut self.0, sign) {
            (State::Closed(streak), Sign::Alive) => {
                *streak = Streak::default();
                Judged { counts: true, turned: false }
            }
            (State::Closed(streak), _) => {
                streak.add(sign, workflow, now);
                let outage = streak.is_outage(now);
                if outage {
                    self.open(WAIT_MIN, now, rng);
                }
                Judged { counts: !outage, turned: outage }
            }
            // What began before the outage says nothing of how it is now.
            (State::Open { .. }, _) => Judged { counts: has(Flaw::OutageCounts), turned: false },
            (State::HalfOpen { probe, .. }, _) if *probe != attempt => Judged { counts: false, turned: false },
            (State::HalfOpen { .. }, Sign::Alive) => {
                *self = Self::default();
                Judged { counts: true, turned: true }
            }
            (State::HalfOpen { wait, .. }, Sign::Away | Sign::Failed) => {
                let wait = (*wait * 2).min(WAIT_MAX);
                self.open(wait, now, rng);
                Judged { counts: false, turned: false }
            }
        }
    }

    fn open(&mut self, wait: Duration, now: Timestamp, rng: &mut impl Rng) {
        let until = after(now, wait.mul_f64(rng.random_range(1.0 - JITTER..=1.0 + JITTER)));
        self.0 = State::Open { until, wait };
    }
}

fn after(now: Timestamp, wait: Duration) -> Timestamp {
    now.checked_add(wait).unwrap_or(Timestamp::MAX)
}

#[cfg(test)]
mod tests;
