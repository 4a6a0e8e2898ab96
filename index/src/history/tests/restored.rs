//! A log that was restored from a copy and has lost events.

use super::*;

/// An event at a sequence that another event had before EVENTS lost a part, stored after the commits about that one.
fn event_in_place_of(lost: u64, number: u64) -> (StreamKind, Stored) {
    let stored_at = Timestamp::from_second(2_000_000).unwrap();
    (StreamKind::Events(SHARD), Stored { seq: StreamSeq(lost), stored_at, ..event_message(number) })
}

/// P5: an event shows only its own outcomes, also while the shard is stopped; and the same delivery, accepted
/// again at the same sequence, is another event.
#[test]
fn outcomes_of_a_lost_event_are_not_those_of_the_event_in_its_place() {
    let dead = outcome(BILLING, 3, 0, OutcomeKind::DeadLettered, 6_000);
    let settled = internal::Commit {
        cursor: 4,
        attempts: vec![attempt(BILLING, 4, 0, 1, 5_000)],
        outcomes: vec![
            outcome(BILLING, 1, 0, OutcomeKind::Delivered, 1),
            outcome(BILLING, 2, 0, OutcomeKind::Delivered, 1),
            dead,
        ],
        subscriptions: vec![opened(BILLING, "billing")],
        ..Default::default()
    };
    let index = Index::new();
    index.apply(&event_messages(1..=1));
    index.apply(&outcomes([commit(1, settled)]));
    index.apply([&event_in_place_of(2, 2), &event_in_place_of(3, 30), &event_in_place_of(4, 40)]);
    let catalog = catalog("*", false);
    let deliveries = |seq| index.event(&catalog, seq).unwrap().deliveries;
    assert_eq!(deliveries(1).iter().map(|delivery| delivery.status).collect::<Vec<_>>(), [DeliveryStatus::Delivered]);
    for seq in 2..=4 {
        assert!(deliveries(seq).is_empty(), "{seq}: {:?}", deliveries(seq));
        assert!(index.event(&catalog, seq).unwrap().dead_letter.is_none());
    }
    let places = |number| events::places(&index.view(), event_id(number)).unwrap();
    assert!(places(3).is_empty(), "the lost event is not the one in its place");
    assert_eq!(places(30), [(SHARD, StreamSeq(3))]);
}

/// P5: after an adoption the outcomes of the lost events are removed, for any order of reading; those of other events
/// stay, and so do those of the new events at the lost sequences.
#[test]
fn an_adoption_removes_what_became_of_lost_events() {
    let dead = |number| outcome(BILLING, number, 0, OutcomeKind::DeadLettered, 6_000);
    let settled = internal::Commit {
        cursor: 4,
        subscriptions: vec![opened(BILLING, "billing")],
        attempts: vec![attempt(BILLING, 2, 0, 1, 0), attempt(BILLING, 4, 0, 1, 5_000)],
        outcomes: vec![dead(1), dead(2), outcome(BILLING, 3, 0, OutcomeKind::Delivered, 7_000)],
        lanes: vec![lane(BILLING, 4, 4, internal::LaneState::Open)],
        at_ms: 8_000,
        ..Default::default()
    };
    let adopts = internal::Commit {
        cursor: 1,
        at_ms: 9_000,
        adopted: Some(internal::Adoption::default()),
        ..Default::default()
    };
    let delivered = internal::Commit {
        cursor: 2,
        outcomes: vec![internal::Outcome {
            event_id: event_id(20).to_vec(),
            ..outcome(BILLING, 2, 0, OutcomeKind::Delivered, 9_500)
        }],
        at_ms: 9_500,
        ..Default::default()
    };
    let mut later = commit(3, delivered);
    later.stored_at = Timestamp::from_second(3_000_000).unwrap();
    let outcomes = outcomes([commit(1, settled), commit(2, adopts), later]);
    let mut events = event_messages(1..=1);
    events.push(event_in_place_of(2, 20));
    let copies: Vec<_> = [dead(1), dead(2)]
        .iter()
        .zip(1..)
        .map(|(dead, seq)| (StreamKind::DeadLetters, copy(seq, "billing", dead)))
        .collect();
    let catalog = catalog("*", false);
    for order in [[&events, &outcomes, &copies], [&copies, &outcomes, &events], [&outcomes, &copies, &events]] {
        let index = Index::new();
        order.into_iter().for_each(|messages| index.apply(messages));
        assert_eq!(index.dead_letter(1).unwrap().status, DeadLetterStatus::Open);
        assert!(index.dead_letter(2).is_none(), "its event is lost");
        let found = index.event(&catalog, 2).unwrap();
        let statuses: Vec<_> =
            found.deliveries.iter().map(|delivery| (delivery.status, delivery.attempts.len())).collect();
        assert_eq!(statuses, [(DeliveryStatus::Delivered, 0)]);
        assert_eq!(index.view().lanes.range::<(&str, &[u8; 16], u64)>(..).unwrap().count(), 0);
        assert!(index.event(&catalog, 3).is_none() && index.event(&catalog, 4).is_none());
    }
}
