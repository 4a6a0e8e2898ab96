//! The judge: records in, violations out. Pure.
//!
//! It knows the promises of the design and nothing of the code that keeps them.

use std::{collections::BTreeMap, fmt};

use crate::record::Records;

mod delivery;
mod history;
mod index;
mod log;
mod outcomes;
mod redrive;
mod sending;
#[cfg(test)]
mod tests;

use index::Index;
pub use sending::{SOURCE, event_id};

/// Promises that a run can break.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Rule {
    /// A 2xx was answered for an event that is not in the log.
    Lost,
    /// Receipts of one delivery differ from each other or from the log.
    ReceiptDiffers,
    /// Two submissions of one delivery were answered 202.
    AcceptedTwice,
    /// The first submission of a delivery was answered 200 although nothing had failed.
    KnownAtFirst,
    /// A valid submission was refused for good.
    RefusedWrongly,
    /// A sender got no 2xx although everything was healed.
    NeverAccepted,
    /// One delivery is stored as two events.
    StoredTwice,
    /// The log holds an event that no sender sent.
    Stranger,
    /// Two events of one workflow have the same number.
    NumberTwice,
    /// A number is missing in a workflow.
    Gap,
    /// An event names another predecessor than the event before it.
    WrongPredecessor,
    /// An event has no outcome for a subscription that takes it.
    NoOutcome,
    /// An event has two outcomes for one subscription and run.
    OutcomeTwice,
    /// An event was settled without its fate being known: the owner had lost it.
    LostByOwner,
    /// An event was given up as about to leave the log, which keeps events for longer than the run.
    Expired,
    /// An event was discarded without an operator's command.
    DiscardedByNobody,
    /// A subscription was given an event that it does not take.
    NotMatching,
    /// An outcome says delivered, and the receiver has not taken it.
    DeliveredUnseen,
    /// The receiver got an event before an earlier one was settled, or out of order.
    Reordered,
    /// The receiver got an event again that it had taken, from the same owner.
    Doubled,
    /// An attempt came from an earlier owner although nothing was disturbed.
    EpochBack,
    /// The delivered event differs from the stored one.
    DeliveryDiffers,
    /// `weft-lane-previous-event-id` is not the last event that was delivered before.
    LaneChain,
    /// The admin's view differs from the log and the outcomes.
    HistoryDiffers,
    /// The admin's stats count other numbers than the log and the outcomes.
    StatsDiffer,
    /// A dead letter is not listed, not copied, or listed without being one.
    DeadLetterDiffers,
    /// A dead letter was not delivered by the redrive at the end, or not shown as redriven.
    NotRedriven,
    /// A process ended without a signal of the driver, exited with an error, did not stop in time, or is not ready at the end.
    Process,
}

impl fmt::Display for Rule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(self, f)
    }
}

/// A broken promise.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Violation {
    /// The promise.
    pub rule: Rule,
    /// The event id; empty if it concerns no single event.
    pub event: String,
    /// The observation, in one line.
    pub text: String,
}

impl Violation {
    fn new(rule: Rule, event: &str, text: impl Into<String>) -> Self {
        Self { rule, event: event.to_owned(), text: text.into() }
    }
}

impl Violation {
    /// Something wrong with the processes as a whole.
    pub fn of_process(text: &str) -> Self {
        Self::new(Rule::Process, "", text)
    }

    /// A violation that the driver itself has seen.
    pub fn after_restore(rule: Rule, event: &str, text: &str) -> Self {
        Self::new(rule, event, text)
    }
}

/// Judges the answers to the senders and the log only.
pub fn judge_log(records: &Records) -> Vec<Violation> {
    let index = Index::new(records);
    let mut found = Vec::new();
    sending::judge(&index, &mut found);
    log::judge(&index, &mut found);
    found
}

/// Judges a run.
pub fn judge(records: &Records) -> Vec<Violation> {
    let index = Index::new(records);
    let mut found = Vec::new();
    sending::judge(&index, &mut found);
    log::judge(&index, &mut found);
    outcomes::judge(&index, &mut found);
    delivery::judge(&index, &mut found);
    history::judge(&index, &mut found);
    redrive::judge(&index, &mut found);
    for failure in &records.failures {
        let text = format!("{} at {:.1} s: {}", failure.process, failure.at as f64 / 1000.0, failure.what);
        found.push(Violation::new(Rule::Process, "", text));
    }
    found
}

/// Number of violations of each rule.
pub fn count(violations: &[Violation]) -> BTreeMap<Rule, usize> {
    let mut counts = BTreeMap::new();
    for violation in violations {
        *counts.entry(violation.rule).or_default() += 1;
    }
    counts
}

/// Number of deliveries without an outcome.
pub fn unsettled(records: &Records) -> usize {
    let mut found = Vec::new();
    outcomes::judge(&Index::new(records), &mut found);
    found.iter().filter(|violation| violation.rule == Rule::NoOutcome).count()
}
