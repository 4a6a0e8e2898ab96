//! The promises, counted. Pure: what was acknowledged, what arrived, what is dead; and per promise a figure and its
//! limit.

use std::{
    collections::{HashMap, HashSet},
    time::Duration,
};

use serde::Serialize;

use weft_services::command::output::Row;

/// An acknowledgement is in time within this.
const ACKNOWLEDGED_WITHIN: Duration = Duration::from_secs(2);

/// A post that was acknowledged.
#[derive(Debug, Clone)]
pub struct Acknowledged {
    /// The event's id.
    pub event_id: String,
    /// Whether the answer says that it had been accepted before.
    pub duplicate: bool,
    /// From the first post to the answer.
    pub after: Duration,
}

/// An attempt to deliver, as the receiver saw it.
#[derive(Debug, Clone)]
pub struct Delivered {
    /// The event's id.
    pub event_id: String,
    /// The workflow.
    pub workflow_id: String,
    /// Number in the workflow.
    pub sequence: u64,
    /// Whether the receiver took it.
    pub succeeded: bool,
    /// Whether the signature held.
    pub signed: bool,
}

/// One promise and what came of it.
#[derive(Debug, Clone, Serialize, PartialEq)]
pub struct Finding {
    /// The promise.
    pub promise: &'static str,
    /// The limit.
    pub limit: &'static str,
    /// The result.
    pub found: String,
    /// Whether that is enough.
    pub held: bool,
}

impl Row for Finding {
    const HEADINGS: &'static [&'static str] = &["PROMISE", "LIMIT", "FOUND", ""];

    fn cells(&self) -> Vec<String> {
        let mark = if self.held { "ok" } else { "FAILED" };
        vec![self.promise.into(), self.limit.into(), self.found.clone(), mark.into()]
    }
}

/// Judges a run of this number of events.
pub fn judge(
    events: usize,
    acknowledged: &[Acknowledged],
    delivered: &[Delivered],
    dead: &HashSet<String>,
) -> Vec<Finding> {
    let ids: HashSet<&str> = acknowledged.iter().map(|one| one.event_id.as_str()).collect();
    let mut outcomes: HashMap<&str, Outcome> = HashMap::new();
    for attempt in delivered {
        let outcome = outcomes.entry(&attempt.event_id).or_default();
        outcome.successes += usize::from(attempt.succeeded);
        outcome.failures += usize::from(!attempt.succeeded);
    }
    vec![
        in_time(events, acknowledged),
        once(&ids, acknowledged),
        settled(&ids, &outcomes, dead),
        delivered_once(&outcomes),
        recovered(&outcomes),
        ordered(delivered),
        signed(delivered),
    ]
}

#[derive(Debug, Default, Clone, Copy)]
struct Outcome {
    successes: usize,
    failures: usize,
}

/// A share as a percentage; 0 of nothing, so that an empty run proves nothing.
fn percent(part: usize, whole: usize) -> f64 {
    if whole == 0 { 0.0 } else { 100.0 * part as f64 / whole as f64 }
}

fn in_time(events: usize, acknowledged: &[Acknowledged]) -> Finding {
    let quick: HashSet<&str> =
        acknowledged.iter().filter(|one| one.after <= ACKNOWLEDGED_WITHIN).map(|one| one.event_id.as_str()).collect();
    let share = percent(quick.len(), events);
    Finding {
        promise: "acknowledged within 2 s",
        limit: ">= 99 %",
        found: format!("{share:.2} % ({} of {events})", quick.len()),
        held: share >= 99.0,
    }
}

fn once(ids: &HashSet<&str>, acknowledged: &[Acknowledged]) -> Finding {
    let accepted = acknowledged.iter().filter(|one| !one.duplicate).count();
    let repeated = acknowledged.len() - accepted;
    Finding {
        promise: "accepted at most once",
        limit: "<= 1 per id",
        found: format!("{accepted} accepted of {} ids, {repeated} answered with the first receipt", ids.len()),
        // An answer that was lost makes the next one a duplicate, so there may be fewer, never more.
        held: accepted <= ids.len() && !ids.is_empty(),
    }
}

fn settled(ids: &HashSet<&str>, outcomes: &HashMap<&str, Outcome>, dead: &HashSet<String>) -> Finding {
    let taken = |id: &&&str| outcomes.get(**id).is_some_and(|outcome| outcome.successes > 0);
    let count = ids.iter().filter(|id| taken(id) || dead.contains(**id)).count();
    Finding {
        promise: "acknowledged ids delivered or dead-lettered",
        limit: "100 %",
        found: format!("{:.2} % ({count} of {}), {} dead letters", percent(count, ids.len()), ids.len(), dead.len()),
        held: count == ids.len() && count > 0,
    }
}

fn delivered_once(outcomes: &HashMap<&str, Outcome>) -> Finding {
    let most = outcomes.values().map(|outcome| outcome.successes).max().unwrap_or_default();
    let repeated = outcomes.values().filter(|outcome| outcome.successes > 1).count();
    Finding {
        promise: "successes of one id",
        limit: "at most 1",
        found: format!("at most {most} ({repeated} ids with more than 1)"),
        held: most == 1,
    }
}

fn recovered(outcomes: &HashMap<&str, Outcome>) -> Finding {
    let failed = outcomes.values().filter(|outcome| outcome.failures > 0);
    let (failed, recovered) = failed
        .fold((0, 0), |(failed, recovered), outcome| (failed + 1, recovered + usize::from(outcome.successes > 0)));
    let share = percent(recovered, failed);
    Finding {
        promise: "transient failures recovered by retry",
        limit: ">= 95 %",
        found: format!("{share:.2} % ({recovered} of {failed})"),
        held: share >= 95.0,
    }
}

fn ordered(delivered: &[Delivered]) -> Finding {
    let mut last: HashMap<&str, u64> = HashMap::new();
    let mut misplaced = 0;
    for attempt in delivered {
        let last = last.entry(&attempt.workflow_id).or_default();
        if attempt.sequence != *last + 1 {
            misplaced += 1;
        }
        if attempt.succeeded {
            *last = attempt.sequence;
        }
    }
    Finding {
        promise: "out of order within a workflow",
        limit: "0",
        found: format!("{misplaced} of {} attempts in {} workflows", delivered.len(), last.len()),
        held: misplaced == 0 && !delivered.is_empty(),
    }
}

fn signed(delivered: &[Delivered]) -> Finding {
    let unsigned = delivered.iter().filter(|attempt| !attempt.signed).count();
    Finding {
        promise: "deliveries without a valid signature",
        limit: "0",
        found: unsigned.to_string(),
        held: unsigned == 0 && !delivered.is_empty(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn acknowledged(id: usize) -> Acknowledged {
        Acknowledged { event_id: format!("e{id}"), duplicate: false, after: Duration::from_millis(5) }
    }

    fn attempt(sequence: usize, succeeded: bool) -> Delivered {
        Delivered {
            event_id: format!("e{sequence}"),
            workflow_id: "w".into(),
            sequence: sequence as u64,
            succeeded,
            signed: true,
        }
    }

    /// Ten events, of which 3 fails once; 4 is sent twice.
    fn sound() -> (Vec<Acknowledged>, Vec<Delivered>) {
        let mut acks: Vec<_> = (1..=10).map(acknowledged).collect();
        acks.push(Acknowledged { duplicate: true, ..acknowledged(4) });
        let mut attempts: Vec<_> = (1..=10).map(|sequence| attempt(sequence, true)).collect();
        attempts.insert(2, attempt(3, false));
        (acks, attempts)
    }

    fn broken(acks: &[Acknowledged], attempts: &[Delivered], dead: &[&str]) -> Vec<&'static str> {
        let dead = dead.iter().map(|id| (*id).to_owned()).collect();
        let findings = judge(10, acks, attempts, &dead);
        findings.into_iter().filter(|finding| !finding.held).map(|finding| finding.promise).collect()
    }

    #[test]
    fn a_sound_run_holds() {
        let (acks, attempts) = sound();
        assert_eq!(broken(&acks, &attempts, &[]), Vec::<&str>::new());
    }

    #[test]
    fn a_run_of_nothing_does_not() {
        assert_eq!(broken(&[], &[], &[]).len(), 7);
    }

    #[test]
    fn each_promise_can_fail() {
        let (acks, attempts) = sound();
        let mut slow = acks.clone();
        slow[0].after = Duration::from_secs(3);
        assert_eq!(broken(&slow, &attempts, &[]), ["acknowledged within 2 s"]);
        let mut twice = acks.clone();
        twice[10].duplicate = false;
        assert_eq!(broken(&twice, &attempts, &[]), ["accepted at most once"]);
        assert_eq!(broken(&acks, &attempts[..10], &[]), ["acknowledged ids delivered or dead-lettered"]);
        assert_eq!(broken(&acks, &attempts[..10], &["e10"]), Vec::<&str>::new());
        let mut unsigned = attempts.clone();
        unsigned[0].signed = false;
        assert_eq!(broken(&acks, &unsigned, &[]), ["deliveries without a valid signature"]);
    }

    #[test]
    fn repeats_and_swaps_are_found() {
        let (acks, attempts) = sound();
        let mut repeated = attempts.clone();
        repeated.push(attempt(10, true));
        assert_eq!(broken(&acks, &repeated, &[]), ["successes of one id", "out of order within a workflow"]);
        let mut swapped = attempts.clone();
        swapped.swap(6, 7);
        assert_eq!(broken(&acks, &swapped, &[]), ["out of order within a workflow"]);
        let mut lost = attempts;
        lost.remove(3);
        let promises = [
            "acknowledged ids delivered or dead-lettered",
            "transient failures recovered by retry",
            "out of order within a workflow",
        ];
        assert_eq!(broken(&acks, &lost, &[]), promises);
    }
}
