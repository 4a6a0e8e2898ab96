//! The circuit breaker of one subscription's receiver.
//!
//! | state | attempts | ends with |
//! |---|---|---|
//! | closed | all | an outage: open |
//! | open, away | the scheduled probe; first attempts of fresh lanes at a small rate | the first answer to one of them |
//! | open, held | the scheduled probe | the first attempt that could be sent |
//!
//! An *outage* is a series of failures that lasts for half a second at least, with no answer between them:
//!
//! * two attempts that got no connection, whichever workflow they were of: no event was sent, so none is to blame;
//! * two workflows that were answered "unavailable", or one of each kind;
//! * attempts of five workflows that failed in any way.
//!
//! A failure that was answered can be the event's fault, so a workflow that is known to be *sick* does not contribute: one
//! that failed although the receiver has answered an attempt that started later. A sick workflow therefore never opens the
//! circuit, and its failures use up its own retries.
//!
//! While the circuit is open, a lane that has never been attempted need not wait for the scheduled probe, so a healthy
//! workflow is not held back where the circuit has been opened by sick ones; its success closes the circuit.
//!
//! A failure of an attempt while the circuit is open, and the failure that opens it, uses up no retry, since it is the
//! receiver's. Nor does an attempt without a connection, or one that was answered "unavailable" while the receiver has
//! answered nothing else since the event failed first: so an outage that is too short, or meets too few workflows, to open
//! the circuit causes no dead letter, however few retries there are. But a receiver that answers with failures for longer
//! than [`BELIEVED`] is not away: from then on failures count, so that sick workflows that have a subscription to
//! themselves do not fail for ever.

use std::time::Duration;

use jiff::{SignedDuration, Timestamp};
use rand::{Rng, RngExt as _};
use weft_proto::ids::WorkflowId;

use self::failing::{Failing, WorkflowHash};
use super::{AttemptId, input::AttemptResult};

mod failing;

/// The shortest outage: where a part of many attempts fails by chance, some succeed within this.
const OUTAGE_MIN: SignedDuration = SignedDuration::from_millis(500);
/// Failures that are surely or by its own word the receiver's and make an outage: one alone may be one of its addresses.
const OWN_FAILURES: usize = 2;
/// Workflows whose failures make an outage, whatever they are.
const FAILING_WORKFLOWS: usize = 5;
/// The first wait for a probe.
pub(super) const WAIT_MIN: Duration = Duration::from_secs(1);
/// The longest wait for a probe: a receiver that is back is found within this, and one that is away for days is called no
/// more often.
pub(super) const WAIT_MAX: Duration = Duration::from_secs(10);
/// The longest wait while our own configuration is the cause. A change of the subscription ends the wait at once.
const HELD_WAIT_MAX: Duration = Duration::from_secs(30);
/// Waits differ by this part, so that the shards do not call all at once.
const JITTER: f64 = 0.2;
/// The time between first attempts of fresh lanes while the receiver answers with failures: a healthy workflow waits no
/// longer than this, and the receiver is called four times a second.
const FRESH_GAP: Duration = Duration::from_millis(250);
/// First attempts of fresh lanes that may go at once: some sick ones must not make a healthy one wait.
const FRESH_BURST: u32 = 4;
/// The same gap where there is no connection: no workflow is healthy then.
const UNREACHABLE_GAP: Duration = Duration::from_secs(1);
/// For how long a receiver that answers with failures only is believed to be away.
pub(super) const BELIEVED: SignedDuration = SignedDuration::from_hours(1);
/// Bytes that are kept of the reason.
const REASON_BYTES_MAX: usize = 256;

/// What an attempt's end says of the receiver.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Health {
    /// It has answered, for good or ill.
    Up,
    /// There was no connection.
    Unreachable,
    /// It answered that it is unavailable.
    Unavailable,
    /// The attempt failed, and it is unknown whether others would.
    Failed,
    /// Nothing could be sent, because of our own configuration.
    Held,
}

impl Health {
    pub fn of(result: AttemptResult) -> Self {
        match result {
            AttemptResult::Delivered | AttemptResult::Rejected | AttemptResult::EndpointRetired => Self::Up,
            AttemptResult::Unreachable => Self::Unreachable,
            AttemptResult::Unavailable => Self::Unavailable,
            AttemptResult::Failed => Self::Failed,
            AttemptResult::Held => Self::Held,
        }
    }

    /// A failure of an event that was sent.
    fn is_answered_failure(self) -> bool {
        matches!(self, Self::Unavailable | Self::Failed)
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
pub(super) struct Transition {
    /// Whether a failure is the event's: it uses up a retry.
    pub counts: bool,
    /// Whether [`Circuit::condition`] is another than before.
    pub changed: bool,
}

/// Why a circuit is open.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Cause {
    /// The receiver is away.
    Away,
    /// Our own configuration does not let us call it.
    Held,
}

/// How a receiver that is not called freely stands.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Condition {
    /// Why.
    pub cause: Cause,
    /// Since when.
    pub since: Timestamp,
    /// The newest failure, for a person.
    pub reason: String,
    /// When it is called next.
    pub next_probe: Timestamp,
}

/// The circuit of one receiver.
#[derive(Debug, Default)]
pub(super) struct Circuit {
    state: State,
    failing: Failing,
    /// The newest attempt that has started.
    newest: Option<AttemptId>,
    /// When it answered last other than with a failure.
    answered_at: Option<Timestamp>,
}

#[derive(Debug)]
enum State {
    Closed(Streak),
    Open(Outage),
}

impl Default for State {
    fn default() -> Self {
        Self::Closed(Streak::default())
    }
}

/// Failures with no answer between them.
#[derive(Debug, Default)]
struct Streak {
    since: Option<Timestamp>,
    unreachable: usize,
    /// Workflows that were answered "unavailable", at most as many as decide.
    unavailable: Vec<WorkflowHash>,
    /// At most as many as decide.
    workflows: Vec<WorkflowHash>,
}

impl Streak {
    fn add(&mut self, health: Health, workflow: WorkflowHash, now: Timestamp) {
        self.since.get_or_insert(now);
        match health {
            Health::Unreachable => self.unreachable += 1,
            Health::Unavailable if !self.unavailable.contains(&workflow) && self.unavailable.len() < OWN_FAILURES => {
                self.unavailable.push(workflow);
            }
            Health::Unavailable | Health::Failed | Health::Up | Health::Held => {}
        }
        if self.workflows.len() < FAILING_WORKFLOWS && !self.workflows.contains(&workflow) {
            self.workflows.push(workflow);
        }
    }

    fn is_outage(&self, now: Timestamp) -> bool {
        let lasts = self.since.is_some_and(|since| now.duration_since(since) >= OUTAGE_MIN);
        let own = self.unreachable + self.unavailable.len() >= OWN_FAILURES;
        lasts && (own || self.workflows.len() >= FAILING_WORKFLOWS)
    }
}

#[derive(Debug)]
struct Outage {
    cause: Cause,
    since: Timestamp,
    /// The newest attempt that had started before: those up to it say nothing of how it is now.
    before: Option<AttemptId>,
    /// The newest failure had no connection.
    unreachable: bool,
    /// Since when every failure was one of an event that was sent.
    answered_since: Option<Timestamp>,
    /// When the next probe is due, and the wait that led to it.
    until: Timestamp,
    wait: Duration,
    probe: Option<AttemptId>,
    /// When the next first attempt of a fresh lane is due if they come evenly.
    fresh_due: Timestamp,
    reason: String,
}

impl Outage {
    fn wait_max(&self) -> Duration {
        match self.cause {
            Cause::Away => WAIT_MAX,
            Cause::Held => HELD_WAIT_MAX,
        }
    }

    fn fresh_gap(&self) -> (Duration, u32) {
        if self.unreachable { (UNREACHABLE_GAP, 1) } else { (FRESH_GAP, FRESH_BURST) }
    }

    /// Whether a probe may start.
    fn gate_probe(&mut self, now: Timestamp) -> Gate {
        if self.probe.is_some() {
            return Gate::Shut;
        }
        // A clock that was set back must not hold it open.
        self.until = self.until.min(after(now, self.wait.mul_f64(1.0 + JITTER)));
        if self.until <= now { Gate::Free } else { Gate::Until(self.until) }
    }

    /// Whether the first attempt of a fresh lane may start.
    fn gate_fresh(&mut self, now: Timestamp) -> Gate {
        let probe = self.gate_probe(now);
        if probe == Gate::Free || self.cause == Cause::Held {
            return probe;
        }
        let (min_interval, burst) = self.fresh_gap();
        self.fresh_due = self.fresh_due.min(after(now, min_interval.saturating_mul(burst)));
        let from = self.fresh_due.checked_sub(min_interval.saturating_mul(burst - 1)).unwrap_or(Timestamp::MIN);
        match probe {
            _ if from <= now => Gate::Free,
            Gate::Until(until) => Gate::Until(until.min(from)),
            Gate::Free | Gate::Shut => Gate::Until(from),
        }
    }

    fn plan_probe(&mut self, now: Timestamp, rng: &mut impl Rng) {
        self.probe = None;
        self.until = after(now, self.wait.mul_f64(rng.random_range(1.0 - JITTER..=1.0 + JITTER)));
    }
}

/// An attempt's end as the circuit sees it.
#[derive(Debug, Clone, Copy)]
pub(super) struct AttemptReport<'a> {
    pub attempt: AttemptId,
    pub health: Health,
    pub workflow: &'a WorkflowId,
    /// When an attempt of the same event failed first, if one has.
    pub first_failed_at: Option<Timestamp>,
    /// What went wrong, for a person.
    pub error: &'a str,
}

impl Circuit {
    /// Whether it lets every attempt through.
    pub fn is_closed(&self) -> bool {
        matches!(self.state, State::Closed(_))
    }

    /// How the receiver stands; `None` while it is called freely.
    pub fn condition(&self) -> Option<Condition> {
        let State::Open(outage) = &self.state else { return None };
        Some(Condition {
            cause: outage.cause,
            since: outage.since,
            reason: outage.reason.clone(),
            next_probe: outage.until,
        })
    }

    /// The receiver is another, or is to be called in another way: what was known of it need not be true.
    pub fn reset(&mut self) {
        *self = Self { newest: self.newest, ..Self::default() };
    }

    /// Whether a workflow's newest attempt failed.
    pub fn is_failing(&self, workflow: &WorkflowId) -> bool {
        self.failing.contains(Failing::hash(workflow))
    }

    /// Whether an attempt may start at `now`; `fresh`: it is the first of its event, of a workflow that does not fail.
    pub fn gate(&mut self, fresh: bool, now: Timestamp) -> Gate {
        match &mut self.state {
            State::Closed(_) => Gate::Free,
            State::Open(outage) if fresh => outage.gate_fresh(now),
            State::Open(outage) => outage.gate_probe(now),
        }
    }

    /// An attempt starts that the gate has let through.
    pub fn started(&mut self, attempt: AttemptId, now: Timestamp) {
        self.newest = self.newest.max(Some(attempt));
        if let State::Open(outage) = &mut self.state {
            if outage.gate_probe(now) == Gate::Free {
                outage.probe = Some(attempt);
            } else {
                outage.fresh_due = after(outage.fresh_due.max(now), outage.fresh_gap().0);
            }
        }
    }

    /// An attempt has ended.
    pub fn ended(&mut self, end: AttemptReport<'_>, now: Timestamp, rng: &mut impl Rng) -> Transition {
        let workflow = Failing::hash(end.workflow);
        let sick = self.failing.is_sick(workflow);
        let counts = self.counts(&end, now);
        match end.health {
            Health::Up => {
                self.answered_at = Some(now);
                self.failing.succeeded(workflow, end.attempt);
            }
            health if health.is_answered_failure() => self.failing.failed(workflow, self.newest),
            Health::Unreachable | Health::Held | Health::Unavailable | Health::Failed => {}
        }
        match &mut self.state {
            State::Closed(streak) => match end.health {
                Health::Up => {
                    *streak = Streak::default();
                    Transition { counts: true, changed: false }
                }
                Health::Held => self.open(Cause::Held, end, now, rng),
                Health::Unreachable | Health::Unavailable | Health::Failed => {
                    // Without a connection no workflow is at fault.
                    if !sick || end.health == Health::Unreachable {
                        streak.add(end.health, workflow, now);
                        if streak.is_outage(now) {
                            return self.open(Cause::Away, end, now, rng);
                        }
                    }
                    Transition { counts, changed: false }
                }
            },
            // What started before the outage says nothing of how it is now.
            State::Open(outage) if outage.before >= Some(end.attempt) => Transition { counts: false, changed: false },
            State::Open(_) if end.health == Health::Up => {
                self.state = State::default();
                Transition { counts: true, changed: true }
            }
            State::Open(outage) => {
                let cause = if end.health == Health::Held { Cause::Held } else { Cause::Away };
                if outage.cause != cause {
                    return self.open(cause, end, now, rng);
                }
                outage.unreachable = end.health == Health::Unreachable;
                let answered = end.health.is_answered_failure();
                outage.answered_since = outage.answered_since.or(Some(now)).filter(|_| answered);
                let doubted = outage.answered_since.is_some_and(|since| now.duration_since(since) >= BELIEVED);
                end.error.clone_into(&mut outage.reason);
                shorten(&mut outage.reason);
                if outage.probe == Some(end.attempt) {
                    outage.wait = (outage.wait * 2).min(outage.wait_max());
                    outage.plan_probe(now, rng);
                }
                Transition { counts: answered && doubted, changed: true }
            }
        }
    }

    /// Whether a failure is the event's while the circuit is closed.
    fn counts(&self, end: &AttemptReport<'_>, now: Timestamp) -> bool {
        let answers_others = |failed| self.answered_at > Some(failed) || now.duration_since(failed) >= BELIEVED;
        match end.health {
            Health::Failed => true,
            Health::Unavailable => end.first_failed_at.is_some_and(answers_others),
            Health::Up | Health::Unreachable | Health::Held => false,
        }
    }

    fn open(&mut self, cause: Cause, end: AttemptReport<'_>, now: Timestamp, rng: &mut impl Rng) -> Transition {
        let mut outage = Outage {
            cause,
            since: now,
            before: self.newest,
            unreachable: end.health == Health::Unreachable,
            answered_since: end.health.is_answered_failure().then_some(now),
            until: now,
            wait: WAIT_MIN,
            probe: None,
            fresh_due: now,
            reason: end.error.to_owned(),
        };
        shorten(&mut outage.reason);
        outage.plan_probe(now, rng);
        self.state = State::Open(outage);
        Transition { counts: false, changed: true }
    }
}

fn after(now: Timestamp, wait: Duration) -> Timestamp {
    now.checked_add(wait).unwrap_or(Timestamp::MAX)
}

fn shorten(text: &mut String) {
    let mut end = REASON_BYTES_MAX.min(text.len());
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    text.truncate(end);
}

#[cfg(test)]
mod tests;
