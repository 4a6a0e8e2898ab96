//! Rows that expire, and events that expire before they are settled.

use super::*;

/// An outcome of everything of a lane from one sequence to another is the outcome of each event between them, of that
/// subscription only, and leaves with its events.
#[test]
fn a_range_outcome_shows_on_every_event_of_the_range() {
    let index = Index::new();
    let expired = internal::Outcome {
        from: 2,
        reason: v1::DeadLetterReason::Expired.into(),
        event_id: Vec::new(),
        ..outcome(BILLING, 4, 0, OutcomeKind::DeadLettered, 9_000)
    };
    let commit_of = |outcomes| commit(1, internal::Commit { cursor: 5, outcomes, ..Default::default() });
    let delivered = outcome(AUDIT, 3, 0, OutcomeKind::Delivered, 1);
    let first = outcome(BILLING, 1, 0, OutcomeKind::Delivered, 1);
    index.apply(&event_messages(1..=5));
    index.apply(&outcomes([commit_of(vec![first, delivered, expired])]));
    let billing = |number| {
        let event = index.event(&Snapshot::default(), number).unwrap();
        let deliveries = event.deliveries.into_iter().filter(|delivery| delivery.uid == BILLING);
        deliveries.map(|delivery| (delivery.status, delivery.settled_at_ms)).collect::<Vec<_>>()
    };
    let lost = vec![(DeliveryStatus::DeadLettered, Some(9_000))];
    assert_eq!(
        [1, 2, 3, 4].map(billing),
        [vec![(DeliveryStatus::Delivered, Some(1))], lost.clone(), lost.clone(), lost]
    );
    assert_eq!(billing(5), []);
    assert_eq!(index.event(&Snapshot::default(), 3).unwrap().deliveries.len(), 2, "of each subscription its own");
    let other = catalog("refund", false);
    assert_eq!(index.event(&other, 2).unwrap().deliveries, [], "an event that the subscription does not take");

    let firsts = vec![(SHARD, StreamSeq(6), StreamSeq(1))];
    let expired = Expired { firsts, dead_before_ms: i64::MAX };
    index.write(|tables| tables.sweep(LAYOUT, &expired, &mut LaneCursor::default()).unwrap());
    assert_eq!(index.view().ranges.range::<(u32, &str, &[u8; 16], u64)>(..).unwrap().count(), 0);
}

/// Rows expire with their events, those of dead letters with these, and late records create none.
#[test]
fn expired_rows_leave() {
    let index = Index::new();
    let [events, commits, commands, copies] = story();
    index.apply(events.iter().chain(&commits).chain(&commands).chain(&copies));
    let sweep = |events, commands, dead_before_ms| {
        let firsts = vec![(SHARD, StreamSeq(events), StreamSeq(commands))];
        let expired = Expired { firsts, dead_before_ms };
        assert!(!index.write(|tables| tables.sweep(LAYOUT, &expired, &mut LaneCursor::default()).unwrap()));
    };
    let catalog = Snapshot::default();
    let is_known = |number| index.event(&catalog, number).is_some();
    sweep(5, 1, 0);
    assert_eq!([1, 2, 3, 4].map(is_known), [false, false, true, true]);
    assert_eq!(index.statuses(3..=4), [DeadLetterStatus::Redriven, DeadLetterStatus::Open]);
    // An outcome that comes after its event has gone.
    let late = outcome(BILLING, 1, 0, OutcomeKind::Delivered, 1);
    index.apply(&outcomes([commit(5, internal::Commit { cursor: 4, outcomes: vec![late], ..Default::default() })]));
    sweep(5, 10, 6_001);
    assert_eq!([3, 4].map(is_known), [false, true]);
    assert!(index.dead_letter(3).is_none());
    sweep(5, 10, 9_001);
    assert!(!is_known(4));
    let view = index.view();
    let empty = [
        view.events.range::<(u32, u64)>(..).unwrap().count(),
        view.event_ids.range::<(u32, u64, &[u8; 16], u64)>(..).unwrap().count(),
        view.deliveries.range::<(u32, u64, &[u8; 16], u64)>(..).unwrap().count(),
        view.attempts.range::<(u32, u64, &[u8; 16], u64, u32)>(..).unwrap().count(),
        view.dead.range::<(u32, u64, &[u8; 16])>(..).unwrap().count(),
        view.dead_by_time.range::<(i64, u32, u64, &[u8; 16])>(..).unwrap().count(),
        view.commands.range::<(u32, u64)>(..).unwrap().count(),
        view.requests.range::<(&str, u32)>(..).unwrap().count(),
        view.redrives.range::<(u32, u64, &[u8; 16], u64)>(..).unwrap().count(),
        view.refused.range::<(u32, u64, u64, &[u8; 16])>(..).unwrap().count(),
    ];
    assert_eq!(empty, [0; 10]);
}

/// Ids are stored by segments of the sequence: each place of an id is found, in order, and leaves with its event.
#[test]
fn an_id_is_found_in_every_segment() {
    let index = Index::new();
    let at =
        |number: u64, seq: u64| (StreamKind::Events(SHARD), Stored { seq: StreamSeq(seq), ..event_message(number) });
    index.apply(&[at(1, 1), at(2, 2), at(1, 8191), at(1, 8192), at(3, 20_000), at(1, 100_000)]);
    let places = |number: u64| -> Vec<u64> {
        let places = events::places(&index.view(), event_id(number)).unwrap();
        places.into_iter().map(|(_, seq)| seq.0).collect()
    };
    assert_eq!(places(1), [1, 8191, 8192, 100_000]);
    assert_eq!((places(3), places(4)), (vec![20_000], vec![]));
    let firsts = vec![(SHARD, StreamSeq(8192), StreamSeq(1))];
    let expired = Expired { firsts, dead_before_ms: i64::MIN };
    index.write(|tables| tables.sweep(LAYOUT, &expired, &mut LaneCursor::default()).unwrap());
    assert_eq!((places(1), places(2)), (vec![8192, 100_000], vec![]));
}
