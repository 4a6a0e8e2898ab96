//! Counts and durations by minute.

use weft_nats::{
    erasure::{Author, Erasure},
    event::StoredEvent,
};

use super::*;
use crate::history::{
    stats::{self, Counts, KEPT_MINUTES, OTHER, StatsQuery, StatsReport},
    tables::SWEPT,
};

const ALL: StatsQuery = StatsQuery { from: 0, until: u64::MAX, step: u64::MAX };

fn report(index: &Index) -> StatsReport {
    stats::report(&index.view(), &Subscriptions::of(&Snapshot::default()), ALL).unwrap()
}

fn apply(index: &Index, messages: &[(StreamKind, Stored)]) {
    index.write(|tables| {
        for (source, message) in messages {
            tables.apply(LAYOUT, *source, message).unwrap();
        }
        tables.write_stats().unwrap();
    });
}

fn rejected(seq: u64, source: &str, code: &str) -> (StreamKind, Stored) {
    let entry = v1::Rejected { source: source.into(), code: code.into(), ..Default::default() };
    (StreamKind::Rejected, stored(seq, format!("rejected.{source}"), Headers::default(), entry.encode_to_vec()))
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(32))]

    /// Each fact is counted once, in any order of the streams.
    #[test]
    fn counts_do_not_depend_on_the_order_of_the_streams(order in proptest::collection::vec(0usize..4, 0..14)) {
        let index = Index::new();
        // One message a transaction: facts wait in the file.
        for message in interleave(story(), &order) {
            apply(&index, &[message]);
        }
        let report = report(&index);
        let expected = Counts {
            accepted: 4, delivered: 2, dead_lettered: 3, unrouted: 1, attempts: 4, retried: 1, failed: 4,
            ..Counts::default()
        };
        prop_assert_eq!(report.total.counts, expected);
        prop_assert_eq!(report.sources.into_iter().collect::<Vec<_>>(), [("shop".to_owned(), expected)]);
        let of_billing = Counts { accepted: 0, unrouted: 0, ..expected };
        let (name, billing) = &report.subscriptions[&Some(BILLING)];
        prop_assert_eq!((name.as_str(), billing.counts), ("billing", of_billing));
        prop_assert_eq!(report.total.latencies.accept.count(), 4);
        prop_assert_eq!(billing.latencies.total.count(), 1, "of live deliveries only");
    }
}

/// The record, at sequence 9, of the erasure of event 1.
fn erasure_of_the_first() -> (StreamKind, Stored) {
    let erasure = Erasure::new(
        StoredEvent { seq: StreamSeq(1), stored_at: Timestamp::from_second(1).unwrap(), event: event(1) },
        [0; 32],
        None,
        Author { operator: String::new(), reason: String::new(), request_id: "r-1".into(), at: Timestamp::UNIX_EPOCH },
    );
    let outgoing = erasure.encode(LAYOUT);
    let record = stored(9, outgoing.subject, outgoing.headers, outgoing.payload.to_vec());
    (StreamKind::Events(SHARD), record)
}

/// A history that begins after an erased event knows it for as long as the log has the record of the erasure.
#[test]
fn an_event_that_was_erased_before_the_first_is_known_until_its_record_goes() {
    let index = Index::new();
    index.write(|tables| tables.marks.insert((SWEPT, SHARD.0), 3).map(drop).unwrap());
    apply(&index, &[erasure_of_the_first()]);
    assert_eq!(report(&index).total.counts.accepted, 1);
    let is_known = || index.view().events.get((SHARD.0, 1)).unwrap().is_some();
    for (first, known) in [(4, true), (10, false)] {
        let expired = Expired { firsts: vec![(SHARD, StreamSeq(first), StreamSeq(1))], dead_before_ms: 0 };
        while index.write(|tables| tables.sweep(LAYOUT, &expired, &mut LaneCursor::default()).unwrap()) {}
        assert_eq!(is_known(), known, "EVENTS begins at {first}");
    }
}

/// A history that is built after an erasure has the counts of one that has read the event: in either order of the streams.
#[test]
fn an_erased_event_is_counted_once_whether_it_was_read_or_not() {
    let record = erasure_of_the_first();
    let read = (StreamKind::Events(SHARD), event_message(1));
    let outcomes = vec![outcome(BILLING, 1, 0, OutcomeKind::Delivered, 2_000)];
    let attempts = vec![attempt(BILLING, 1, 0, 1, 0)];
    let subscriptions = vec![opened(BILLING, "billing")];
    let of_it = commit(1, internal::Commit { cursor: 1, subscriptions, outcomes, attempts, ..Default::default() });
    let of_it = (StreamKind::Outcomes(SHARD), of_it);
    let followed = Index::new();
    apply(&followed, &[read, of_it.clone(), record.clone(), record.clone()]);
    let followed = report(&followed);
    assert_eq!((followed.total.counts.accepted, followed.total.counts.delivered), (1, 1));
    for messages in [[record.clone(), of_it.clone()], [of_it, record]] {
        let rebuilt = Index::new();
        messages.into_iter().for_each(|message| apply(&rebuilt, &[message]));
        let rebuilt = report(&rebuilt);
        assert_eq!(rebuilt.total.counts, followed.total.counts);
        assert_eq!(rebuilt.sources, followed.sources);
        assert_eq!(rebuilt.total.latencies.accept.count(), followed.total.latencies.accept.count());
    }
}

#[test]
fn refused_requests_are_counted_by_code_and_source() {
    let index = Index::new();
    apply(
        &index,
        &[
            rejected(1, "shop", "signature_invalid"),
            rejected(2, "shop", "missing_type"),
            rejected(3, "ci", "missing_type"),
        ],
    );
    let report = report(&index);
    assert_eq!(report.codes, [("missing_type".to_owned(), 2), ("signature_invalid".to_owned(), 1)].into());
    assert_eq!((report.total.counts.rejected, report.sources["shop"].rejected), (3, 2));
}

/// Senders choose types: the first have separate rows, the rest share one.
#[test]
fn the_number_of_labels_is_bounded() {
    let index = Index::new();
    let of_type = |number: u64| {
        let event = Event { event_type: format!("type-{number:03}"), ..event(number) };
        let outgoing = event.encode(LAYOUT);
        (StreamKind::Events(SHARD), stored(number, outgoing.subject, outgoing.headers, outgoing.payload.to_vec()))
    };
    for number in 1..=60 {
        apply(&index, &[of_type(number)]);
    }
    apply(&index, &[of_type(1)]);
    let types = report(&index).types;
    assert_eq!(types.len(), 51);
    assert_eq!((types["type-001"].accepted, types[OTHER].accepted), (2, 10));
}

#[test]
fn minutes_leave_after_eight_days() {
    let index = Index::new();
    let late = |seq, minute: i64| {
        let (kind, message) = rejected(seq, "shop", "missing_type");
        (kind, Stored { stored_at: Timestamp::from_second(minute * 60).unwrap(), ..message })
    };
    let kept = i64::try_from(KEPT_MINUTES).unwrap();
    apply(&index, &[late(1, 10), late(2, 11), late(3, 11 + kept)]);
    assert_eq!(report(&index).total.counts.rejected, 3);
    let expired = Expired { firsts: Vec::new(), dead_before_ms: 0 };
    index.write(|tables| tables.sweep(LAYOUT, &expired, &mut LaneCursor::default()).unwrap());
    assert_eq!(report(&index).total.counts.rejected, 2);
}

/// Numbers in a workflow are contiguous, so the ends of a lane say how many events wait in it.
#[test]
fn a_backlog_counts_the_events_of_lanes_and_knows_the_oldest() {
    let index = Index::new();
    apply(&index, &event_messages(1..=9));
    let blocked = internal::Lane { attempts: 1, ..lane(BILLING, 3, 9, internal::LaneState::Blocked) };
    let own = internal::SubscriptionChange {
        change: Some(internal::subscription_change::Change::Detached(internal::Detached { next: 5 })),
        ..opened(AUDIT, "audit")
    };
    let commit_of = internal::Commit {
        cursor: 9,
        subscriptions: vec![opened(BILLING, "billing"), opened(AUDIT, "audit"), own],
        lanes: vec![blocked],
        ..Default::default()
    };
    apply(&index, &outcomes([commit(1, commit_of)]));
    let mut catalog = catalog("*", false);
    let audit = v1::Subscription { uid: AUDIT.to_vec(), name: "audit".into(), ..Default::default() };
    catalog.subscriptions.insert("audit".into(), Revised { revision: 1, value: Arc::new(audit) });
    let backlogs = stats::backlogs(&index.view(), &Subscriptions::of(&catalog), LAYOUT).unwrap();
    let billing = &backlogs.subscriptions[&BILLING];
    assert_eq!((billing.events, billing.is_bound, billing.blocked), (7, false, 1));
    assert_eq!(billing.oldest_ms, Some(3_000));
    let audit = &backlogs.subscriptions[&AUDIT];
    assert_eq!((audit.events, audit.is_bound, audit.oldest_ms), (5, true, Some(5_000)), "at most what it has not read");
    assert_eq!(backlogs.matched[&SHARD], StreamSeq(9));
}
