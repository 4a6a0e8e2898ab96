//! The report of a run: what was done, what was found, and the story of each violation.

use std::{
    collections::BTreeMap,
    fmt::{self, Write as _},
};

use crate::{
    judge::{self, Rule, Violation},
    record::{Fault, FaultKind, Millis, Records},
};

/// Violations of one rule that are printed in full.
const STORIES: usize = 3;
/// Shortest gap between two accepted deliveries that counts as unavailability.
const GAP_MIN: Millis = 300;
/// For so long after its end a fault still counts as the cause of a gap.
const AFTERMATH: Millis = 5_000;

/// Prints times in seconds.
struct Seconds(Millis);

impl fmt::Display for Seconds {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:.3} s", self.0 as f64 / 1000.0)
    }
}

/// The faults with their times.
pub fn faults(faults: &[Fault]) -> String {
    let mut text = String::new();
    for fault in faults {
        let _ = writeln!(text, "  {} to {}: {}", Seconds(fault.from), Seconds(fault.until), fault.what);
    }
    text
}

/// Counts and the longest unavailability.
pub fn summary(records: &Records) -> String {
    let accepted = records.submissions.iter().filter(|one| one.answer.receipt().is_some()).count();
    let mut text = format!(
        "  {} submissions, {accepted} answered 2xx; {} events in the log; {} attempts; {} outcomes; {} dead letters\n",
        records.submissions.len(),
        records.log.len(),
        records.arrivals.len(),
        records.outcomes.len(),
        records.dead_letters.len(),
    );
    let repeated = repeated(records);
    let _ = writeln!(text, "  deliveries that a receiver took more than once: {repeated}");
    for (kind, gap) in unavailability(records) {
        let kind = kind.map_or_else(|| "no fault".to_owned(), |kind| kind.to_string());
        let _ = writeln!(text, "  longest time without a 2xx, {kind}: {}", Seconds(gap));
    }
    text
}

fn repeated(records: &Records) -> usize {
    let mut taken = BTreeMap::<(&str, &str), usize>::new();
    for arrival in records.arrivals.iter().filter(|one| one.reply.taken() && !one.replay) {
        *taken.entry((&arrival.subscription, &arrival.event_id)).or_default() += 1;
    }
    taken.values().filter(|count| **count > 1).count()
}

/// The longest gap between two 2xx, by the kinds of fault that were under way in it.
pub fn unavailability(records: &Records) -> BTreeMap<Option<FaultKind>, Millis> {
    let mut times: Vec<Millis> =
        records.submissions.iter().filter(|one| one.answer.receipt().is_some()).map(|one| one.ended).collect();
    times.sort_unstable();
    let mut begun = BTreeMap::new();
    for one in &records.submissions {
        let sent = begun.entry(one.delivery.as_str()).or_insert(one.sent);
        *sent = one.sent.min(*sent);
    }
    // Afterwards there are repeats only.
    let end = begun.into_values().max().unwrap_or(0);
    let mut longest = BTreeMap::new();
    for pair in times.windows(2).filter(|pair| pair[1] - pair[0] >= GAP_MIN && pair[1] < end) {
        let gap = pair[1] - pair[0];
        let under_way =
            records.faults.iter().filter(|fault| fault.from <= pair[1] && pair[0] <= fault.until + AFTERMATH);
        let mut kinds: Vec<_> = under_way.map(|fault| Some(fault.kind)).collect();
        if kinds.is_empty() {
            kinds.push(None);
        }
        for kind in kinds {
            let entry = longest.entry(kind).or_insert(0);
            *entry = gap.max(*entry);
        }
    }
    longest
}

/// The violations, the first of each rule with its story.
pub fn violations(records: &Records, found: &[Violation]) -> String {
    let mut text = String::new();
    for (rule, count) in judge::count(found) {
        let _ = writeln!(text, "{rule}: {count}");
        for violation in found.iter().filter(|violation| violation.rule == rule).take(STORIES) {
            let _ = writeln!(text, "  {} {}", violation.event, violation.text);
            if !violation.event.is_empty() && rule != Rule::Process {
                text.push_str(&story(records, &violation.event));
            }
        }
    }
    text
}

/// Everything that the outside knows of an event.
fn story(records: &Records, event: &str) -> String {
    let mut text = String::new();
    let mut line = |at: Option<Millis>, what: String| {
        let at = at.map(|at| format!("{:>9.3} s ", at as f64 / 1000.0)).unwrap_or_else(|| " ".repeat(12));
        let _ = writeln!(text, "    {at}{what}");
    };
    for one in records.submissions.iter().filter(|one| judge::event_id(&one.delivery) == event) {
        let took = one.ended - one.sent;
        line(
            Some(one.sent),
            format!("{} sent to gateway{}: {} after {took} ms", one.delivery, one.gateway, one.answer),
        );
    }
    for stored in records.log.iter().filter(|stored| stored.event_id == event) {
        let place = format!("shard {} sequence {}", stored.shard, stored.seq);
        line(
            Some(stored.at),
            format!(
                "stored at {place}: {} number {} after {:?}, type {}",
                stored.workflow, stored.number, stored.previous, stored.event_type
            ),
        );
        for outcome in records.outcomes.iter().filter(|one| one.shard == stored.shard && one.seq == stored.seq) {
            let name = records.subscriptions.iter().find(|one| one.uid == outcome.uid).map_or("", |one| &one.key);
            line(
                None,
                format!(
                    "outcome for {name} run {}: {:?} by commit {} of epoch {}",
                    outcome.run, outcome.kind, outcome.commit, outcome.epoch
                ),
            );
        }
    }
    for arrival in records.arrivals.iter().filter(|arrival| arrival.event_id == event) {
        line(
            Some(arrival.at),
            format!(
                "attempt {} at {} by epoch {}: {:?} after {} ms",
                arrival.attempt,
                arrival.subscription,
                arrival.epoch,
                arrival.reply,
                arrival.ended - arrival.at
            ),
        );
    }
    for shown in records.shown.iter().filter(|shown| shown.event_id == event) {
        line(None, format!("the admin shows number {}, {}", shown.number, shown.status));
    }
    for letter in records.dead_letters.iter().filter(|letter| letter.event_id == event) {
        line(None, format!("dead letter of {}, {}", letter.subscription, letter.status));
    }
    text
}
