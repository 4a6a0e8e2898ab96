//! The circuit breaker of one subscription's receiver.
//!
//! | state | attempts | until |
//! |---|---|---|
//! | closed | all | an outage: open |
//! | open, away | the scheduled probe; first attempts of fresh lanes at a low rate | the first answer to one of them |
//! | open, held | the scheduled probe | the first attempt that could be sent |
//!
//! An *outage* is a series of failures that lasts for at least half a second without a success between them:
//!
//! * two attempts without a connection, of any workflows: no event was sent, so none is the cause;
//! * two workflows that were answered "unavailable", or one of each kind;
//! * attempts of five workflows that failed in any way.
//!
//! A failure that was answered can be caused by the event, so a workflow that is known to be *sick* does not contribute: one
//! that failed although the receiver has accepted an attempt that started later. A sick workflow therefore never opens the
//! circuit, and its failures use up its retries.
//!
//! While the circuit is open, a lane that was never attempted does not wait for the scheduled probe, so a healthy workflow is
//! not delayed where sick ones have opened the circuit; its success closes it.
//!
//! A failure while the circuit is open, and the failure that opens it, uses up no retry, since it is the receiver's. Nor does
//! an attempt without a connection, or one that was answered "unavailable" while the receiver has accepted nothing since the
//! event first failed: so an outage that is too short, or affects too few workflows, to open the circuit causes no dead
//! letter, however few retries there are. But a receiver that answers with failures for longer than [`BELIEVED`] is not down:
//! from then on failures count, so that sick workflows that are alone in a subscription do not fail for ever.

use std::time::Duration;

use jiff::{SignedDuration, Timestamp};
use rand::{Rng, RngExt as _};
use weft_proto::ids::WorkflowId;

use self::failing::{Failing, WorkflowHash};
use super::{AttemptId, input::AttemptResult};

mod failing;

/// Shortest outage: where a part of many attempts fails at random, some succeed within this time.
const OUTAGE_MIN: SignedDuration = SignedDuration::from_millis(500);
/// Failures of the receiver itself that make an outage: a single one may be one of its addresses.
const OWN_FAILURES: usize = 2;
/// Workflows whose failures of any kind make an outage.
const FAILING_WORKFLOWS: usize = 5;
/// First wait for a probe.
pub(super) const WAIT_MIN: Duration = Duration::from_secs(1);
/// Longest wait for a probe: the time within which a recovered receiver is found.
pub(super) const WAIT_MAX: Duration = Duration::from_secs(10);
/// Longest wait while Weft's own configuration is the cause. A change of the subscription ends the wait at once.
const HELD_WAIT_MAX: Duration = Duration::from_secs(30);
/// Jitter of the waits, so that the shards do not call at the same time.
const JITTER: f64 = 0.2;
/// Interval of first attempts of fresh lanes while the receiver answers with failures: a healthy workflow waits no longer, and
/// the receiver is called four times a second.
const FRESH_GAP: Duration = Duration::from_millis(250);
/// First attempts of fresh lanes that may start at once: a few sick ones must not delay a healthy one.
const FRESH_BURST: u32 = 4;
/// The same interval without a connection: no workflow is healthy then.
const UNREACHABLE_GAP: Duration = Duration::from_secs(1);
/// How long a receiver that only answers with failures is considered to be down.
pub(super) const BELIEVED: SignedDuration = SignedDuration::from_hours(1);
/// Maximum size of the reason.
const REASON_BYTES_MAX: usize = 256;

/// The health of the receiver, as an attempt's end shows it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Health {
    /// It has accepted or rejected the event.
    Up,
    /// There was no connection.
    Unreachable,
    /// It answered that it is unavailable.
    Unavailable,
    /// The attempt failed; whether others would is unknown.
    Failed,
    /// Weft's own configuration prevented the call.
    Held,
    /// Nothing was sent because of the event: nothing is known of the receiver.
    Unknown,
}

impl Health {
    pub fn of(result: AttemptResult) -> Self {
        match result {
            AttemptResult::Delivered | AttemptResult::Rejected | AttemptResult::EndpointRetired => Self::Up,
            AttemptResult::Unreachable => Self::Unreachable,
            AttemptResult::Unavailable => Self::Unavailable,
            AttemptResult::Failed => Self::Failed,
            AttemptResult::Held => Self::Held,
            AttemptResult::FilterFailed | AttemptResult::TransformFailed => Self::Unknown,
        }
    }

    /// Whether an event was sent and failed.
    fn is_answered_failure(self) -> bool {
        matches!(self, Self::Unavailable | Self::Failed)
    }
}

/// When an attempt may start.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Gate {
    /// Now.
    Free,
    /// At this time.
    Until(Timestamp),
    /// Once another attempt has ended.
    Shut,
}

/// The effect of an attempt's end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Transition {
    /// Whether a failure is the event's, so that it uses up a retry.
    pub counts: bool,
    /// Whether [`Circuit::condition`] has changed.
    pub changed: bool,
}

/// Why a circuit is open.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Cause {
    /// The receiver is down.
    Away,
    /// Weft's own configuration prevents calls.
    Held,
}

/// The condition of a receiver whose circuit is open.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Condition {
    /// The cause.
    pub cause: Cause,
    /// When the circuit opened.
    pub since: Timestamp,
    /// The newest error.
    pub reason: String,
    /// When the next probe is due.
    pub next_probe: Timestamp,
}

/// The circuit of one receiver.
#[derive(Debug, Default)]
pub(super) struct Circuit {
    state: State,
    failing: Failing,
    /// The newest attempt that was started.
    newest: Option<AttemptId>,
    /// When it last accepted or rejected an event.
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

/// Failures without a success between them.
#[derive(Debug, Default)]
struct Streak {
    since: Option<Timestamp>,
    unreachable: usize,
    /// Workflows that were answered "unavailable", up to [`OWN_FAILURES`].
    unavailable: Vec<WorkflowHash>,
    /// Workflows that failed, up to [`FAILING_WORKFLOWS`].
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
            Health::Unavailable | Health::Failed | Health::Up | Health::Held | Health::Unknown => {}
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
    /// The newest attempt that had started before the outage: the results up to it are out of date.
    before: Option<AttemptId>,
    /// The newest failure was one without a connection.
    unreachable: bool,
    /// Since when events are sent and all of them fail.
    answered_since: Option<Timestamp>,
    /// When the next probe is due, and the wait that led to it.
    until: Timestamp,
    wait: Duration,
    probe: Option<AttemptId>,
    /// When the next first attempt of a fresh lane is due at an even rate.
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
        // A clock that was set back must not delay it.
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

/// The end of an attempt, for the circuit.
#[derive(Debug, Clone, Copy)]
pub(super) struct AttemptReport<'a> {
    pub attempt: AttemptId,
    pub health: Health,
    pub workflow: &'a WorkflowId,
    /// When the event first failed, if it has.
    pub first_failed_at: Option<Timestamp>,
    /// The error message.
    pub error: &'a str,
}

impl Circuit {
    /// Whether all attempts may start.
    pub fn is_closed(&self) -> bool {
        matches!(self.state, State::Closed(_))
    }

    /// The condition of the receiver; `None` while the circuit is closed.
    pub fn condition(&self) -> Option<Condition> {
        let State::Open(outage) = &self.state else { return None };
        Some(Condition {
            cause: outage.cause,
            since: outage.since,
            reason: outage.reason.clone(),
            next_probe: outage.until,
        })
    }

    /// Forgets what is known of the receiver: its subscription has changed.
    pub fn reset(&mut self) {
        *self = Self { newest: self.newest, ..Self::default() };
    }

    /// Whether the newest attempt of a workflow failed.
    pub fn is_failing(&self, workflow: &WorkflowId) -> bool {
        self.failing.contains(Failing::hash(workflow))
    }

    /// When an attempt may start; `fresh`: it is the first of its event, of a workflow that does not fail.
    pub fn gate(&mut self, fresh: bool, now: Timestamp) -> Gate {
        match &mut self.state {
            State::Closed(_) => Gate::Free,
            State::Open(outage) if fresh => outage.gate_fresh(now),
            State::Open(outage) => outage.gate_probe(now),
        }
    }

    /// An attempt starts, as the gate has allowed.
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
        if end.health == Health::Unknown {
            // Another attempt is the probe.
            if let State::Open(outage) = &mut self.state {
                outage.probe.take_if(|probe| *probe == end.attempt);
            }
            return Transition { counts: true, changed: false };
        }
        let workflow = Failing::hash(end.workflow);
        let sick = self.failing.is_sick(workflow);
        let counts = self.counts(&end, now);
        match end.health {
            Health::Up => {
                self.answered_at = Some(now);
                self.failing.succeeded(workflow, end.attempt);
            }
            health if health.is_answered_failure() => self.failing.failed(workflow, self.newest),
            Health::Unreachable | Health::Held | Health::Unavailable | Health::Failed | Health::Unknown => {}
        }
        match &mut self.state {
            State::Closed(streak) => match end.health {
                Health::Up => {
                    *streak = Streak::default();
                    Transition { counts: true, changed: false }
                }
                Health::Held => self.open(Cause::Held, end, now, rng),
                Health::Unreachable | Health::Unavailable | Health::Failed | Health::Unknown => {
                    // A missing connection is not caused by a workflow.
                    if !sick || end.health == Health::Unreachable {
                        streak.add(end.health, workflow, now);
                        if streak.is_outage(now) {
                            return self.open(Cause::Away, end, now, rng);
                        }
                    }
                    Transition { counts, changed: false }
                }
            },
            // The result of an attempt that started before the outage is out of date.
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

    /// Whether a failure counts as the event's while the circuit is closed.
    fn counts(&self, end: &AttemptReport<'_>, now: Timestamp) -> bool {
        let answers_others = |failed| self.answered_at > Some(failed) || now.duration_since(failed) >= BELIEVED;
        match end.health {
            Health::Failed => true,
            Health::Unavailable => end.first_failed_at.is_some_and(answers_others),
            Health::Up | Health::Unreachable | Health::Held | Health::Unknown => false,
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
