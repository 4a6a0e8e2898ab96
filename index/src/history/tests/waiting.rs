//! Deliveries that wait: for the event before them, a retry, a receiver, or an operator.

use super::*;

#[test]
fn what_is_not_settled_waits_in_its_lane() {
    let index = Index::new();
    index.apply(&event_messages(1..=4));
    let of = |catalog: &Snapshot, number| index.event(catalog, number).unwrap().status.message().word();
    let taking = catalog("order.*", false);
    assert_eq!(of(&taking, 1), "pending", "not matched yet");
    let failing = internal::Commit {
        cursor: 3,
        lanes: vec![lane(BILLING, 1, 2, internal::LaneState::Open)],
        attempts: vec![attempt(BILLING, 1, 0, 1, 60_000)],
        ..Default::default()
    };
    index.apply(&outcomes([commit(1, failing)]));
    assert_eq!(of(&taking, 1), "retrying");
    assert_eq!(index.event(&taking, 1).unwrap().deliveries[0].next_attempt_at_ms, Some(60_000));
    assert_eq!([of(&taking, 2), of(&taking, 4)], ["pending", "pending"]);
    assert_eq!(index.event(&taking, 3).unwrap().deliveries, [], "matched, and not in the lane");
    assert_eq!([of(&catalog("order.*", true), 1), of(&catalog("order.*", true), 2)], ["paused", "paused"]);
    assert_eq!(index.event(&catalog("stock.*", false), 2).unwrap().deliveries, []);

    let blocked = internal::Commit {
        lanes: vec![lane(BILLING, 1, 2, internal::LaneState::Blocked)],
        cursor: 4,
        ..Default::default()
    };
    index.apply(&outcomes([commit(2, blocked)]));
    assert_eq!([of(&taking, 1), of(&taking, 2)], ["blocked", "pending"]);

    let closed = internal::subscription_change::Change::Closed(internal::Closed { up_to: 4, ..Default::default() });
    let closed = internal::SubscriptionChange { subscription: BILLING.to_vec(), change: Some(closed), catalog: None };
    index.apply(&outcomes([commit(
        3,
        internal::Commit { subscriptions: vec![closed], cursor: 4, ..Default::default() },
    )]));
    let gone = Snapshot::default();
    assert_eq!([of(&gone, 1), of(&gone, 2)], ["discarded", "discarded"]);
}

/// In an unordered subscription each event is independent, and a pause of the workflow pauses all of them.
#[test]
fn what_is_not_ordered_waits_each_in_a_lane_of_its_own() {
    let index = Index::new();
    index.apply(&event_messages(1..=4));
    let of = |number| index.event(&catalog("order.*", false), number).unwrap().status.message().word();
    let own = |number, state| internal::Lane { unordered: true, ..lane(BILLING, number, number, state) };
    let lanes = vec![
        own(1, internal::LaneState::Blocked),
        own(3, internal::LaneState::Open),
        lane(BILLING, 4, 4, internal::LaneState::Open),
    ];
    let delivered = internal::Outcome { unordered: true, ..outcome(BILLING, 2, 0, OutcomeKind::Delivered, 5_000) };
    let attempts = vec![attempt(BILLING, 1, 0, 1, 0), attempt(BILLING, 3, 0, 1, 60_000)];
    let first = internal::Commit { cursor: 4, lanes, attempts, outcomes: vec![delivered], ..Default::default() };
    index.apply(&outcomes([commit(1, first)]));
    assert_eq!([1, 2, 3, 4].map(of), ["blocked", "delivered", "retrying", "pending"]);

    let page = |paused, after, limit| {
        let subscriptions = Subscriptions::of(&catalog("order.*", paused));
        lanes::page(&index.view(), &subscriptions, LAYOUT, &LaneFilter::default(), after, limit).unwrap()
    };
    assert!(
        page(true, None, 10).lanes.iter().all(|lane| lane.state() == v1::LaneState::Paused),
        "with their subscription"
    );
    let (mut seen, mut after) = (Vec::new(), None);
    loop {
        let found = page(false, after, 1);
        seen.extend(found.lanes.iter().map(|lane| (lane.lane.last, lane.state().word())));
        after = found.next;
        if after.is_none() {
            break;
        }
    }
    assert_eq!(seen, [(4, "open"), (1, "blocked"), (3, "open")], "each once");

    let settled = internal::Outcome { unordered: true, ..outcome(BILLING, 1, 0, OutcomeKind::DeadLettered, 6_000) };
    let paused = internal::Lane { paused: true, ..lane(BILLING, 4, 4, internal::LaneState::Open) };
    let second = internal::Commit { cursor: 4, lanes: vec![paused], outcomes: vec![settled], ..Default::default() };
    index.apply(&outcomes([commit(2, second)]));
    assert_eq!([1, 2, 3, 4].map(of), ["dead_lettered", "delivered", "paused", "paused"]);
}

fn receiver(uid: SubscriptionUid, condition: v1::ReceiverCondition) -> internal::ReceiverState {
    internal::ReceiverState {
        subscription: uid.to_vec(),
        condition: condition.into(),
        since_ms: 7_000,
        reason: "no connection".into(),
        next_attempt_at_ms: 9_000,
    }
}

/// A receiver's state applies until its owner records another one, or another owner takes over.
#[test]
fn receivers_that_are_away_or_held_are_listed_and_their_lanes_say_so() {
    use v1::ReceiverCondition::{Available, Away, Held};
    let index = Index::new();
    let subscriptions = Subscriptions::of(&catalog("*", false));
    index.apply(&event_messages(1..=1));
    let say = |seq, epoch, receivers: Vec<internal::ReceiverState>| {
        let lanes = vec![lane(BILLING, 1, 1, internal::LaneState::Open)];
        index.apply(&outcomes([commit(
            seq,
            internal::Commit { epoch, receivers, lanes, cursor: 1, ..Default::default() },
        )]));
        let view = index.view();
        let listed: Vec<_> =
            receivers::all(&view).unwrap().iter().map(|receiver| receiver.state.condition().word()).collect();
        let page = lanes::page(&view, &subscriptions, LAYOUT, &LaneFilter::default(), None, 10).unwrap();
        (listed, page.lanes[0].state().word())
    };
    assert_eq!(say(1, 1, vec![]), (vec![], "open"));
    assert_eq!(say(2, 1, vec![receiver(BILLING, Away), receiver(AUDIT, Held)]).1, "away");
    assert_eq!(say(3, 1, vec![]).0.len(), 2, "a commit that does not name them changes nothing");
    assert_eq!(say(4, 1, vec![receiver(BILLING, Held), receiver(AUDIT, Available)]), (vec!["held"], "held"));
    assert_eq!(say(5, 2, vec![]), (vec![], "open"), "a new owner finds out for itself");
}

/// A paused lane states the command that paused it: not a later one that changed nothing, nor one for another lane. For a
/// paused subscription the catalog's reason counts.
#[test]
fn a_paused_lane_says_who_paused_it_and_why() {
    let order = |seq: u64, workflow: &str, reason: &str| {
        let order = internal::LaneOrder {
            subscription: BILLING.to_vec(),
            workflow_id: workflow.into(),
            action: internal::LaneAction::Pause.into(),
            ..Default::default()
        };
        let command = internal::Command {
            request_id: format!("pause-{seq}"),
            operator: format!("operator-{seq}"),
            reason: reason.into(),
            at_ms: seq as i64 * 1_000,
            action: Some(internal::command::Action::Lane(order)),
            ..Default::default()
        };
        (StreamKind::Commands(SHARD), stored(seq, "commands.0".into(), records::headers(), command.encode_to_vec()))
    };
    let index = Index::new();
    index.apply(&event_messages(1..=1));
    index.apply(&[order(1, "order-1", "old"), order(2, "order-1", "dispute"), order(3, "order-1", "again")]);
    index.apply(&[order(4, "order-2", "other lane"), order(5, "order-1", "not carried out yet")]);
    let paused = internal::Lane { paused: true, ..lane(BILLING, 1, 1, internal::LaneState::Open) };
    let refused = results(3, 0, CommandStatus::NotApplicable);
    let first = internal::Commit {
        cursor: 1,
        commands_cursor: 4,
        lanes: vec![paused],
        results: vec![refused],
        subscriptions: vec![opened(BILLING, "billing")],
        ..Default::default()
    };
    index.apply(&outcomes([commit(1, first)]));
    let pause = |catalog: &Snapshot| {
        let filter = LaneFilter { workflow: Some("order-1".into()), ..LaneFilter::default() };
        let page = lanes::page(&index.view(), &Subscriptions::of(catalog), LAYOUT, &filter, None, 10).unwrap();
        page.lanes.into_iter().next().unwrap().pause
    };
    let by = |seq: u64, reason: &str, of_subscription| {
        let operator = if seq == 0 { String::new() } else { format!("operator-{seq}") };
        Some(Pause { operator, reason: reason.into(), at_ms: seq as i64 * 1_000, of_subscription })
    };
    let running = catalog("*", false);
    assert_eq!(pause(&running), by(2, "dispute", false));

    let open = internal::Commit {
        cursor: 1,
        commands_cursor: 4,
        lanes: vec![lane(BILLING, 1, 1, internal::LaneState::Open)],
        ..Default::default()
    };
    index.apply(&outcomes([commit(2, open)]));
    assert_eq!(pause(&running), None);
    let edit = |seq: u64, reason: &str| {
        let change = internal::CatalogChange { action: "paused".into(), ..Default::default() };
        let edit = internal::CatalogEdit { name: "billing".into(), changes: vec![change], ..Default::default() };
        let command = internal::Command {
            request_id: format!("pause-{seq}"),
            operator: format!("operator-{seq}"),
            reason: reason.into(),
            at_ms: seq as i64 * 1_000,
            action: Some(internal::command::Action::Catalog(edit)),
            ..Default::default()
        };
        (StreamKind::Commands(SHARD), stored(seq, "commands.0".into(), records::headers(), command.encode_to_vec()))
    };
    index.apply(&[edit(6, "migration")]);
    let stopped = |reason: &str| {
        let mut snapshot = catalog("*", true);
        for subscription in snapshot.subscriptions.values_mut() {
            subscription.value =
                Arc::new(v1::Subscription { pause_reason: reason.into(), ..subscription.value.as_ref().clone() });
        }
        snapshot
    };
    assert_eq!(pause(&stopped("migration")), by(6, "migration", true));
    assert_eq!(pause(&stopped("answered 410")), by(0, "answered 410", true), "another pause");

    let gone = Expired { firsts: vec![(SHARD, StreamSeq(1), StreamSeq(100))], dead_before_ms: 0 };
    index.write(|tables| tables.sweep(LAYOUT, &gone, &mut LaneCursor::default()).unwrap());
    assert_eq!(index.view().pauses.range::<(&str, &[u8; 16], u64)>(..).unwrap().count(), 0);
}
