//! Redrives: every dead letter is delivered again, marked as a replay.

use std::collections::HashSet;

use super::{Index, Rule, Violation};

/// Judges the redrive at the end of the run, after which the receivers take everything.
pub fn judge(index: &Index<'_>, found: &mut Vec<Violation>) {
    let replayed: HashSet<(&str, &str)> = index
        .records
        .arrivals
        .iter()
        .filter(|arrival| arrival.replay && arrival.reply.taken())
        .map(|arrival| (arrival.subscription.as_str(), arrival.event_id.as_str()))
        .collect();
    let letters = index.records.dead_letters.iter();
    for letter in letters.filter(|letter| index.records.redriven.contains(&letter.subscription)) {
        let taken = replayed.contains(&(letter.subscription.as_str(), letter.event_id.as_str()));
        if !taken || letter.status != "redriven" {
            let taken = if taken { "taken" } else { "not taken" };
            let text = format!("{}: {taken} by the receiver, {} at the admin", letter.subscription, letter.status);
            found.push(Violation::new(Rule::NotRedriven, &letter.event_id, text));
        }
    }
}
