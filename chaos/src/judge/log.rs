//! P2 and P3 in the log: one event a delivery, numbers contiguous, predecessors chained.

use super::{Index, Rule, Violation};
use crate::record::Stored;

/// Judges the log.
pub fn judge(index: &Index<'_>, found: &mut Vec<Violation>) {
    for (id, events) in &index.by_id {
        if events.len() > 1 {
            let places: Vec<_> = events.iter().map(|event| place(event)).collect();
            found.push(Violation::new(Rule::StoredTwice, id, format!("stored at {}", places.join(" and "))));
        }
        let sent = index.submissions.get(events[0].delivery.as_str());
        let same = sent
            .is_some_and(|sent| sent[0].workflow == events[0].workflow && sent[0].event_type == events[0].event_type);
        if !same {
            let text = format!("{}: delivery {:?} was never sent so", place(events[0]), events[0].delivery);
            found.push(Violation::new(Rule::Stranger, id, text));
        }
    }
    for events in index.workflows.values() {
        workflow(events, found);
    }
}

fn workflow(events: &[&Stored], found: &mut Vec<Violation>) {
    let mut last: Option<&Stored> = None;
    for event in events {
        let expected = last.map_or(1, |last| last.number + 1);
        if event.number < expected {
            let twin = events.iter().find(|other| other.number == event.number && other.seq != event.seq);
            let text = match twin {
                Some(twin) => format!("{} has the number of {}", place(event), place(twin)),
                None => format!("{} comes after number {}", place(event), expected - 1),
            };
            found.push(Violation::new(Rule::NumberTwice, &event.event_id, text));
        } else if event.number > expected {
            let text = format!("{} comes after number {}", place(event), expected - 1);
            found.push(Violation::new(Rule::Gap, &event.event_id, text));
        }
        let previous = last.map(|last| last.event_id.as_str());
        if event.previous.as_deref() != previous {
            let text = format!("{} names {:?}; the event before it is {previous:?}", place(event), event.previous);
            found.push(Violation::new(Rule::WrongPredecessor, &event.event_id, text));
        }
        last = Some(event);
    }
}

fn place(event: &Stored) -> String {
    format!("{} number {} (shard {} sequence {})", event.workflow, event.number, event.shard, event.seq)
}
