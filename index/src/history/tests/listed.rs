//! Events by filters, against a reading of all events.

use std::collections::BTreeSet;

use weft_nats::cursor::Cursor;

use super::*;
use crate::history::{
    bits::SEGMENT_SEQUENCES,
    list::{self, EventQuery},
    status::EventStatus,
};

const WORKFLOWS: [&str; 3] = ["order-1", "order-2", "invoice-1"];
const TYPES: [&str; 3] = ["order.paid", "order.sent", "invoice.paid"];
const SOURCES: [&str; 2] = ["shop", "bank"];

/// Event at a sequence, its fields by its number.
fn listed(seq: u64) -> Event {
    let pick = |from: &[&str], of: u64| from[(seq * 7 / of % from.len() as u64) as usize].to_owned();
    let mut event = weft_testkit::event(&pick(&WORKFLOWS, 3)).number(seq).build();
    (event.event_type, event.source) = (pick(&TYPES, 5), pick(&SOURCES, 2));
    event.id = weft_testkit::event::id("any", seq);
    event
}

fn message(seq: u64) -> (StreamKind, Stored) {
    let outgoing = listed(seq).encode(LAYOUT);
    (StreamKind::Events(SHARD), stored(seq, outgoing.subject, outgoing.headers, Vec::new()))
}

fn of(uid: SubscriptionUid, seq: u64, run: u64, kind: OutcomeKind) -> internal::Outcome {
    let event = listed(seq);
    let subscription = if kind == OutcomeKind::Unrouted { Vec::new() } else { uid.to_vec() };
    internal::Outcome {
        subscription,
        workflow_id: event.workflow.as_str().to_owned(),
        event_id: event.id.to_vec(),
        ..outcome(uid, seq, run, kind, 1)
    }
}

fn failed(uid: SubscriptionUid, seq: u64, run: u64) -> internal::Attempt {
    internal::Attempt { event_id: listed(seq).id.to_vec(), ..attempt(uid, seq, run, 1, 5_000) }
}

/// All sequences of the pages of a query, `limit` a page.
fn pages(index: &Index, catalog: &Snapshot, query: &EventQuery, limit: usize) -> Vec<u64> {
    let (view, subscriptions) = (index.view(), Subscriptions::of(catalog));
    let (mut seqs, mut after) = (Vec::new(), None::<Cursor>);
    loop {
        let page = list::page(&view, &subscriptions, LAYOUT, query, after.as_ref(), limit).unwrap();
        assert!(page.events.len() <= limit);
        seqs.extend(page.events.iter().map(|event| event.seq.0));
        match page.next {
            Some(next) => after = Some(next.to_string().parse().unwrap()),
            None => return seqs,
        }
    }
}

/// The events of a query, by a reading of all.
fn all(index: &Index, catalog: &Snapshot, seqs: &[u64], query: &EventQuery) -> Vec<u64> {
    let is_wanted = |seq: &u64| {
        let (event, history) = (listed(*seq), index.event(catalog, *seq).unwrap());
        let status = match &query.subscription {
            None => Some(history.status),
            Some(name) => history
                .deliveries
                .iter()
                .rfind(|delivery| delivery.subscription == *name)
                .map(|delivery| EventStatus::Worst(delivery.status)),
        };
        query.workflow.as_ref().is_none_or(|workflow| workflow == event.workflow.as_str())
            && query.source.as_ref().is_none_or(|source| *source == event.source)
            && query
                .event_type
                .as_ref()
                .is_none_or(|pattern| weft_nats::pattern::pattern_matches(pattern, &event.event_type))
            && query.since_ms.is_none_or(|since| *seq as i64 * 1000 >= since)
            && query.until_ms.is_none_or(|until| (*seq as i64) * 1000 < until)
            && status.is_some_and(|status| query.statuses.is_empty() || query.statuses.contains(&status))
    };
    let mut wanted: Vec<u64> = seqs.iter().copied().filter(is_wanted).collect();
    if !query.oldest_first {
        wanted.reverse();
    }
    wanted
}

fn queries() -> Vec<EventQuery> {
    let any = EventQuery::default;
    let mut queries = vec![
        any(),
        EventQuery { workflow: Some("order-2".into()), ..any() },
        EventQuery { source: Some("bank".into()), ..any() },
        EventQuery { event_type: Some("order.*".into()), ..any() },
        EventQuery { event_type: Some("*.paid".into()), source: Some("shop".into()), ..any() },
        EventQuery { since_ms: Some(9_000), until_ms: Some(30_000), ..any() },
        EventQuery { subscription: Some("billing".into()), ..any() },
        EventQuery { subscription: Some("unknown".into()), ..any() },
    ];
    for status in EventStatus::ALL {
        queries.push(EventQuery { statuses: vec![status], ..any() });
        queries.push(EventQuery { statuses: vec![status], subscription: Some("billing".into()), ..any() });
    }
    queries
        .clone()
        .into_iter()
        .chain(queries.into_iter().map(|query| EventQuery { oldest_first: true, ..query }))
        .collect()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(12))]

    /// Every filter finds exactly the events that a reading of all finds, in either order, in pages of any size; also across the
    /// end of a segment, and in any order of reading EVENTS and OUTCOMES.
    #[test]
    fn filters_find_what_a_reading_of_all_finds(
        ends in proptest::collection::vec((0..7_u8, 0..3_u8), 40),
        first in prop_oneof![Just(1_u64), Just(SEGMENT_SEQUENCES - 20)],
        outcomes_first in any::<bool>(),
        paused in any::<bool>(),
        limit in 1..50_usize,
    ) {
        let seqs: Vec<u64> = (first..first + ends.len() as u64).collect();
        let events: Vec<_> = seqs.iter().map(|seq| message(*seq)).collect();
        let mut commits = vec![internal::Commit {
            cursor: seqs[30],
            subscriptions: vec![opened(BILLING, "billing"), opened(AUDIT, "audit")],
            ..Default::default()
        }];
        for (seq, (end, later)) in seqs.iter().zip(&ends) {
            let mut commit = internal::Commit { cursor: seqs[30], ..Default::default() };
            match end {
                0 => {}
                1 => commit.attempts.push(failed(BILLING, *seq, 0)),
                2 => commit.outcomes.push(of(AUDIT, *seq, 0, OutcomeKind::Unrouted)),
                end => {
                    commit.attempts.push(failed(BILLING, *seq, 0));
                    let kind = [OutcomeKind::Delivered, OutcomeKind::DeadLettered, OutcomeKind::Discarded][usize::from(*end) % 3];
                    commit.outcomes.push(of(BILLING, *seq, 0, kind));
                    if *end == 6 {
                        commit.outcomes.push(of(AUDIT, *seq, 0, OutcomeKind::Delivered));
                    }
                }
            }
            commits.push(commit);
            // A redrive that runs, or one that has ended.
            if *end > 2 && *later > 0 {
                let mut commit = internal::Commit { cursor: seqs[30], ..Default::default() };
                commit.attempts.push(failed(BILLING, *seq, 90));
                if *later == 2 {
                    commit.outcomes.push(of(BILLING, *seq, 90, [OutcomeKind::Delivered, OutcomeKind::Resolved][usize::from(*end) % 2]));
                }
                commits.push(commit);
            }
        }
        let commits = outcomes(commits.into_iter().enumerate().map(|(number, made)| commit(number as u64 + 1, made)));
        let index = Index::new();
        if outcomes_first {
            commits.chunks(5).for_each(|chunk| index.apply(chunk));
            events.chunks(7).for_each(|chunk| index.apply(chunk));
        } else {
            events.chunks(7).for_each(|chunk| index.apply(chunk));
            commits.chunks(5).for_each(|chunk| index.apply(chunk));
        }
        let catalog = catalog("order.*", paused);
        for query in queries() {
            prop_assert_eq!(pages(&index, &catalog, &query, limit), all(&index, &catalog, &seqs, &query), "{:?}", query);
        }
    }
}

/// Pages name places, so that events which arrive meanwhile neither repeat nor shift what follows.
#[test]
fn pages_survive_insertions() {
    let index = Index::new();
    index.apply(&(1..=20).map(message).collect::<Vec<_>>());
    let (catalog, query) = (Snapshot::default(), EventQuery::default());
    let page = |after: Option<&Cursor>| {
        list::page(&index.view(), &Subscriptions::of(&catalog), LAYOUT, &query, after, 8).unwrap()
    };
    let first = page(None);
    index.apply(&(21..=40).map(message).collect::<Vec<_>>());
    let second = page(first.next.as_ref());
    let seqs: Vec<u64> = first.events.iter().chain(&second.events).map(|event| event.seq.0).collect();
    assert_eq!(seqs, (5..=20).rev().collect::<Vec<_>>());
}

/// The index is emptied with the events that have expired, and an event at the place of a lost one replaces its terms.
#[test]
fn expired_and_replaced_events_leave_the_index() {
    let index = Index::new();
    let last = SEGMENT_SEQUENCES + 10;
    index.apply(&(SEGMENT_SEQUENCES - 10..=last).map(message).collect::<Vec<_>>());
    let expired = Expired { firsts: vec![(SHARD, StreamSeq(SEGMENT_SEQUENCES + 3), StreamSeq(0))], dead_before_ms: 0 };
    while index.write(|tables| tables.sweep(LAYOUT, &expired, &mut LaneCursor::default()).unwrap()) {}
    let catalog = Snapshot::default();
    let left = pages(&index, &catalog, &EventQuery { oldest_first: true, ..EventQuery::default() }, 100);
    assert_eq!(left, (SEGMENT_SEQUENCES + 3..=last).collect::<Vec<_>>());
    let segments: BTreeSet<u64> =
        index.view().postings.range((0, 0, &[][..])..).unwrap().map(|row| row.unwrap().0.value().1).collect();
    assert_eq!(segments, [1].into(), "nothing is left of the expired segment");

    let mut other = listed(last);
    (other.id, other.event_type) = (weft_testkit::event::id("other", 1), "refund.made".into());
    let outgoing = other.encode(LAYOUT);
    index.apply(&[(StreamKind::Events(SHARD), stored(last, outgoing.subject, outgoing.headers, Vec::new()))]);
    let by_type = |event_type: &str| EventQuery { event_type: Some(event_type.into()), ..EventQuery::default() };
    assert_eq!(pages(&index, &catalog, &by_type("refund.made"), 100), [last]);
    assert!(!pages(&index, &catalog, &by_type(&listed(last).event_type), 100).contains(&last));
}

/// The beginning of an id finds its event, in every segment.
#[test]
fn ids_are_found_by_their_beginning() {
    let index = Index::new();
    let seqs = [1, 2, SEGMENT_SEQUENCES + 1, 3 * SEGMENT_SEQUENCES];
    index.apply(&seqs.map(message));
    for seq in seqs {
        let id = listed(seq).id;
        let (mut first, mut last) = (*id.as_bytes(), *id.as_bytes());
        first[6..].fill(0);
        last[6..].fill(0xff);
        let found = events::ids_between(&index.view(), &first, &last, 9).unwrap();
        assert_eq!(found, [(SHARD, StreamSeq(seq), id)]);
        assert_eq!(events::places(&index.view(), id).unwrap(), [(SHARD, StreamSeq(seq))]);
    }
}
