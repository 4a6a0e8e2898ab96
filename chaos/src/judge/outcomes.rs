//! P5: each event that a subscription takes has one outcome, and the outcome is true.

use std::collections::HashSet;

use super::{Index, Rule, Violation, index::Match};
use crate::record::{OutcomeKind, Stored, Subscription};

/// Judges the outcomes.
pub fn judge(index: &Index<'_>, found: &mut Vec<Violation>) {
    let taken = taken(index);
    for event in &index.records.log {
        let mut must = false;
        for subscription in &index.records.subscriptions {
            let matches = index.matches(subscription, event);
            must |= matches == Match::Must;
            pair(index, subscription, event, matches, &taken, found);
        }
        let unrouted = index.outcomes("", event).iter().any(|outcome| outcome.kind == OutcomeKind::Unrouted);
        if must && unrouted {
            found.push(Violation::new(Rule::NoOutcome, &event.event_id, "unrouted, and a subscription takes it"));
        }
    }
    for range in &index.ranges {
        let text = format!(
            "{} of {}: sequences {} to {} were lost by their owner",
            range.uid, range.workflow, range.from, range.seq
        );
        found.push(Violation::new(Rule::LostByOwner, "", text));
    }
}

/// Subscription key and event id of every live delivery that a receiver has taken.
fn taken<'a>(index: &Index<'a>) -> HashSet<(&'a str, &'a str)> {
    let taken = index.records.arrivals.iter().filter(|arrival| arrival.reply.taken() && !arrival.replay);
    taken.map(|arrival| (arrival.subscription.as_str(), arrival.event_id.as_str())).collect()
}

fn pair(
    index: &Index<'_>,
    subscription: &Subscription,
    event: &Stored,
    matches: Match,
    taken: &HashSet<(&str, &str)>,
    found: &mut Vec<Violation>,
) {
    let key = subscription.key.as_str();
    let mut report = |rule, text: String| found.push(Violation::new(rule, &event.event_id, format!("{key}: {text}")));
    let outcomes = index.outcomes(&subscription.uid, event);
    if outcomes.len() > 1 {
        let commits: Vec<_> = outcomes.iter().map(|one| format!("{:?} (commit {})", one.kind, one.commit)).collect();
        report(Rule::OutcomeTwice, commits.join(" and "));
    }
    let Some(outcome) = outcomes.first() else {
        let closed = index.closed(subscription, event.shard).filter(|(_, up_to)| event.seq <= *up_to);
        match closed {
            Some((operator, _)) if operator.is_empty() || subscription.deleted.is_none() => {
                report(Rule::DiscardedByNobody, "its subscription was closed without an operator's command".into());
            }
            Some(_) => {}
            None if matches == Match::Must => report(Rule::NoOutcome, "no outcome".into()),
            None => {}
        }
        return;
    };
    if matches == Match::Never {
        report(Rule::NotMatching, format!("{:?}, and the subscription does not take it", outcome.kind));
    }
    if outcome.expired {
        report(Rule::Expired, format!("expired by commit {}", outcome.commit));
    }
    match outcome.kind {
        OutcomeKind::Delivered if !taken.contains(&(key, event.event_id.as_str())) => {
            report(Rule::DeliveredUnseen, format!("delivered by commit {}; the receiver took nothing", outcome.commit));
        }
        OutcomeKind::Discarded if outcome.operator.is_empty() => {
            report(Rule::DiscardedByNobody, format!("discarded by commit {} without an operator", outcome.commit));
        }
        _ => {}
    }
}
