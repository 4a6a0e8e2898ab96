//! The admin's view, the dead letters and their copies, against the outcomes.

use std::collections::{BTreeMap, HashMap, HashSet};

use super::{Index, Rule, Violation, index::Match};
use crate::record::{Counts, OutcomeKind, Records, Shown, Stored, Subscription};

/// Judges the admin.
pub fn judge(index: &Index<'_>, found: &mut Vec<Violation>) {
    let shown: HashMap<&str, &Shown> =
        index.records.shown.iter().map(|shown| (shown.event_id.as_str(), shown)).collect();
    for event in &index.records.log {
        match shown.get(event.event_id.as_str()) {
            Some(shown) => event_shown(index, event, shown, found),
            None => found.push(Violation::new(Rule::HistoryDiffers, &event.event_id, "the admin does not show it")),
        }
    }
    stats(index, found);
    dead_letters(index, found);
}

/// Every event and every outcome is counted once, also where processes were killed in between. The counts of a process, `/metrics`, begin
/// again with each start of it, so they are compared where nothing is killed.
fn stats(index: &Index<'_>, found: &mut Vec<Violation>) {
    let expected = counted(index.records);
    if index.records.stats != expected {
        let text = format!("the stats count {:?}, the streams {expected:?}", index.records.stats);
        found.push(Violation::new(Rule::StatsDiffer, "", text));
    }
}

/// The numbers of the streams.
pub fn counted(records: &Records) -> Counts {
    let mut counts = Counts { accepted: records.log.len() as u64, ..Counts::default() };
    for outcome in &records.outcomes {
        *match outcome.kind {
            OutcomeKind::Delivered => &mut counts.delivered,
            OutcomeKind::DeadLettered => &mut counts.dead_lettered,
            OutcomeKind::Discarded => &mut counts.discarded,
            OutcomeKind::Unrouted => &mut counts.unrouted,
            OutcomeKind::Resolved => &mut counts.resolved,
        } += 1;
    }
    counts
}

fn event_shown(index: &Index<'_>, event: &Stored, shown: &Shown, found: &mut Vec<Violation>) {
    let same = shown.number == event.number && shown.previous == event.previous && shown.workflow == event.workflow;
    if !same {
        let text = format!("the admin shows number {} after {:?}", shown.number, shown.previous);
        found.push(Violation::new(Rule::HistoryDiffers, &event.event_id, text));
    }
    let expected = expected_statuses(index, event);
    // Without an outcome any waiting status is allowed; the missing outcome is another violation.
    let waits = matches!(shown.status.as_str(), "pending" | "delivering" | "retrying" | "paused" | "blocked");
    let allowed = expected.contains(&shown.status.as_str()) || (waits && expected.contains(&"pending"));
    if !allowed {
        let text = format!("the admin shows {}; the outcomes say {}", shown.status, expected.join(" or "));
        found.push(Violation::new(Rule::HistoryDiffers, &event.event_id, text));
    }
}

/// The worst status of all deliveries, in the order of the contract; two where a deletion of a subscription met the event.
fn expected_statuses(index: &Index<'_>, event: &Stored) -> Vec<&'static str> {
    const ORDER: [&str; 5] = ["dead_lettered", "pending", "discarded", "resolved", "delivered"];
    let rank = |status: &&str| ORDER.iter().position(|one| one == status);
    let deliveries = index.records.subscriptions.iter().filter_map(|one| delivery_status(index, one, event));
    let (mut certain, mut possible) = (Vec::new(), Vec::new());
    for (status, is_certain) in deliveries {
        if is_certain { certain.push(status) } else { possible.push(status) }
    }
    let worst = certain.iter().copied().min_by_key(rank).unwrap_or("unrouted");
    possible.retain(|status| worst == "unrouted" || rank(status) < rank(&worst));
    possible.push(worst);
    possible
}

/// The status of a delivery, and whether there must be one.
fn delivery_status(index: &Index<'_>, subscription: &Subscription, event: &Stored) -> Option<(&'static str, bool)> {
    let closed = index.closed(subscription, event.shard).is_some_and(|(_, up_to)| event.seq <= up_to);
    let matches = index.matches(subscription, event);
    match index.kind(subscription, event) {
        Some(OutcomeKind::Delivered) => Some(("delivered", true)),
        Some(OutcomeKind::DeadLettered) => Some(("dead_lettered", true)),
        Some(OutcomeKind::Discarded) => Some(("discarded", true)),
        Some(OutcomeKind::Resolved) => Some(("resolved", true)),
        Some(OutcomeKind::Unrouted) | None if matches == Match::Never => None,
        Some(OutcomeKind::Unrouted) | None if closed => Some(("discarded", false)),
        Some(OutcomeKind::Unrouted) | None => (matches == Match::Must).then_some(("pending", true)),
    }
}

fn dead_letters(index: &Index<'_>, found: &mut Vec<Violation>) {
    let names: BTreeMap<&str, &str> =
        index.records.subscriptions.iter().map(|one| (one.uid.as_str(), one.name.as_str())).collect();
    let ids: HashMap<(u32, u64), &str> =
        index.records.log.iter().map(|event| ((event.shard, event.seq), event.event_id.as_str())).collect();
    let mut dead = HashSet::new();
    for outcome in index.records.outcomes.iter().filter(|one| one.kind == OutcomeKind::DeadLettered && one.from == 0) {
        let (Some(name), Some(event)) = (names.get(outcome.uid.as_str()), ids.get(&(outcome.shard, outcome.seq)))
        else {
            continue;
        };
        dead.insert((*name, *event));
    }
    let listed: HashSet<(&str, &str)> = index
        .records
        .dead_letters
        .iter()
        .map(|letter| (letter.subscription.as_str(), letter.event_id.as_str()))
        .collect();
    for letter in &index.records.dead_letters {
        let stored = index.by_id.get(letter.event_id.as_str());
        if !stored.is_some_and(|stored| stored.iter().any(|event| event.number == letter.number)) {
            let text = format!("{}: listed with number {}", letter.subscription, letter.number);
            found.push(Violation::new(Rule::DeadLetterDiffers, &letter.event_id, text));
        }
    }
    for (name, event) in &dead {
        let key = ((*name).to_owned(), (*event).to_owned());
        if !listed.contains(&(*name, *event)) {
            found.push(Violation::new(Rule::DeadLetterDiffers, event, format!("{name}: the admin does not list it")));
        }
        if !index.records.copies.contains_key(&key) {
            found.push(Violation::new(Rule::DeadLetterDiffers, event, format!("{name}: DLQ has no copy of it")));
        }
    }
    for (name, event) in listed.difference(&dead) {
        found.push(Violation::new(Rule::DeadLetterDiffers, event, format!("{name}: listed, and it is no dead letter")));
    }
    for (name, event) in index.records.copies.keys() {
        if !dead.contains(&(name.as_str(), event.as_str())) {
            let text = format!("{name}: DLQ has a copy, and it is no dead letter");
            found.push(Violation::new(Rule::DeadLetterDiffers, event, text));
        }
    }
}
