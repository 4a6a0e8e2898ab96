//! The records by the keys that the rules look them up by.

use std::collections::{BTreeMap, HashMap};

use crate::record::{Arrival, Change, Millis, Outcome, OutcomeKind, Records, Stored, Submission, Subscription};

/// Longest time from the end of a fault until its effects have ended: leases, elections, reconnects.
const AFTERMATH: Millis = 20_000;

/// Whether a subscription takes an event.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Match {
    /// It does.
    Must,
    /// It does not.
    Never,
    /// It was created or deleted at that moment.
    May,
}

/// Borrowed records by key.
pub struct Index<'a> {
    /// The records.
    pub records: &'a Records,
    /// Submissions of a delivery, in the order of the records.
    pub submissions: BTreeMap<&'a str, Vec<&'a Submission>>,
    /// Events by id.
    pub by_id: HashMap<&'a str, Vec<&'a Stored>>,
    /// Events of a workflow, in log order.
    pub workflows: BTreeMap<&'a str, Vec<&'a Stored>>,
    /// Outcomes of run 0 by uid, shard and sequence.
    outcomes: HashMap<(&'a str, u32, u64), Vec<&'a Outcome>>,
    /// Outcomes for a range of lost events.
    pub ranges: Vec<&'a Outcome>,
    /// Attempts by subscription key and workflow, in the order of arrival.
    pub lanes: BTreeMap<(&'a str, &'a str), Vec<&'a Arrival>>,
    changes: HashMap<(&'a str, u32), Vec<&'a Change>>,
}

impl<'a> Index<'a> {
    /// Sorts the records.
    pub fn new(records: &'a Records) -> Self {
        let mut index = Self {
            records,
            submissions: BTreeMap::new(),
            by_id: HashMap::new(),
            workflows: BTreeMap::new(),
            outcomes: HashMap::new(),
            ranges: records.outcomes.iter().filter(|outcome| outcome.from > 0).collect(),
            lanes: BTreeMap::new(),
            changes: HashMap::new(),
        };
        for submission in &records.submissions {
            index.submissions.entry(&submission.delivery).or_default().push(submission);
        }
        for event in &records.log {
            index.by_id.entry(&event.event_id).or_default().push(event);
            index.workflows.entry(&event.workflow).or_default().push(event);
        }
        for outcome in records.outcomes.iter().filter(|outcome| outcome.run == 0 && outcome.from == 0) {
            index.outcomes.entry((&outcome.uid, outcome.shard, outcome.seq)).or_default().push(outcome);
        }
        for arrival in &records.arrivals {
            index.lanes.entry((&arrival.subscription, &arrival.workflow)).or_default().push(arrival);
        }
        for change in &records.changes {
            index.changes.entry((&change.uid, change.shard)).or_default().push(&change.change);
        }
        index
    }

    /// Outcomes of an event's live delivery to a subscription.
    pub fn outcomes<'s>(&'s self, uid: &'s str, event: &Stored) -> &'s [&'a Outcome] {
        self.outcomes.get(&(uid, event.shard, event.seq)).map_or(&[], Vec::as_slice)
    }

    /// The kind of an event's first outcome for a subscription.
    pub fn kind(&self, subscription: &Subscription, event: &Stored) -> Option<OutcomeKind> {
        self.outcomes(&subscription.uid, event).first().map(|outcome| outcome.kind)
    }

    /// The operator and last sequence of a deleted subscription's record.
    pub fn closed(&self, subscription: &Subscription, shard: u32) -> Option<(&'a str, u64)> {
        self.changes(subscription, shard).iter().copied().find_map(|change| match change {
            Change::Closed { operator, up_to } => Some((operator.as_str(), *up_to)),
            Change::Opened { .. } | Change::Revised { .. } => None,
        })
    }

    fn changes<'s>(&'s self, subscription: &'s Subscription, shard: u32) -> &'s [&'a Change] {
        self.changes.get(&(subscription.uid.as_str(), shard)).map_or(&[], Vec::as_slice)
    }

    /// Whether a subscription takes an event, by the owner's records of its start and its filter and by the time of the
    /// driver's own calls.
    pub fn matches(&self, subscription: &Subscription, event: &Stored) -> Match {
        /// Allows for the server's time being truncated, and for the way of the answer.
        const SLACK: Millis = 50;
        let (called, answered) = subscription.created;
        if event.at + SLACK < called {
            return Match::Never;
        }
        if event.at < answered + SLACK || subscription.deleted.is_some_and(|(called, _)| event.at + SLACK > called) {
            return Match::May;
        }
        // As a filter, a removal counts from where the owner's record of it stands: what came before and was read later was
        // not taken any more.
        if self.closed(subscription, event.shard).is_some_and(|(_, up_to)| event.seq > up_to) {
            return Match::May;
        }
        let Some(types) = self.types_at(subscription, event) else { return Match::May };
        if types.iter().any(|pattern| type_matches(pattern, &event.event_type)) { Match::Must } else { Match::Never }
    }

    /// The patterns in force at an event's sequence; the newest record at or below it counts.
    fn types_at<'s>(&self, subscription: &'s Subscription, event: &Stored) -> Option<&'s [String]> {
        let mut revision = None;
        for change in self.changes(subscription, event.shard) {
            match change {
                Change::Opened { revision: of, .. } if revision.is_none() => revision = Some(*of),
                Change::Revised { from, revision: of } if *from <= event.seq => revision = Some(*of),
                _ => {}
            }
        }
        match revision {
            Some(revision) => subscription.types.get(&revision).map(Vec::as_slice),
            // No owner has ever opened it: the patterns of its creation count, so that its events are missed.
            None => subscription.types.values().next().map(Vec::as_slice),
        }
    }

    /// Whether a fault was under way, or had ended shortly before.
    pub fn disturbed(&self, from: Millis, until: Millis) -> bool {
        self.records.faults.iter().any(|fault| fault.from <= until && from <= fault.until + AFTERMATH)
    }
}

/// Whether a pattern with `*` for any run of characters matches a type.
pub fn type_matches(pattern: &str, event_type: &str) -> bool {
    match pattern.split_once('*') {
        None => pattern == event_type,
        Some((head, rest)) => event_type.strip_prefix(head).is_some_and(|tail| {
            (0..=tail.len()).filter(|at| tail.is_char_boundary(*at)).any(|at| type_matches(rest, &tail[at..]))
        }),
    }
}
