//! The history without a server: messages in, answers out.

use std::sync::Arc;

use bytes::Bytes;
use jiff::Timestamp;
use proptest::prelude::*;
use prost::Message as _;
use redb::{Database, ReadableDatabase as _, backends::InMemoryBackend};
use weft_catalog::{Revised, Snapshot};
use weft_nats::{
    event::{Event, JSON},
    headers::Headers,
    message::Stored,
    records,
    subject::{Layout, dead_letter_subject},
};
use weft_proto::{
    ids::{EventId, Run, SequenceNumber, ShardId, StreamSeq, SubscriptionUid, WorkflowId},
    v1::{self, CommandStatus, OutcomeKind, outcome_record::Record},
};

use super::{
    apply::StreamKind,
    dead_letters::{self, DeadLetterFilter},
    events,
    lanes::{self, LaneFilter},
    names::Subscriptions,
    pauses::Pause,
    receivers::{self, ReceiverHistory},
    requests::{self, CommandItem, ItemProgress},
    status::{DeadLetterStatus, DeliveryStatus},
    sweep::{Expired, LaneCursor},
    tables::{Tables, View},
};

const LAYOUT: Layout = Layout::new(1);
const SHARD: ShardId = ShardId(0);
const BILLING: SubscriptionUid = SubscriptionUid::from_bytes([1; 16]);
const AUDIT: SubscriptionUid = SubscriptionUid::from_bytes([2; 16]);

fn event_id(number: u64) -> EventId {
    EventId::of_delivery("shop", &number.to_string())
}

fn event(number: u64) -> Event {
    Event {
        id: event_id(number),
        sequence_number: SequenceNumber(number),
        workflow: WorkflowId::new("order-1").unwrap(),
        previous: (number > 1).then(|| event_id(number - 1)),
        event_type: "order.paid".into(),
        source: "shop".into(),
        time: Timestamp::UNIX_EPOCH,
        received_at: Timestamp::UNIX_EPOCH,
        delivery_id: None,
        content_type: JSON.into(),
        data_pointer: String::new(),
        verified_by: "standard/0".into(),
        traceparent: None,
        quarantine: None,
        kept_headers: Vec::new(),
        payload: Bytes::from_static(b"{}"),
    }
}

fn stored(seq: u64, subject: String, headers: Headers, payload: Vec<u8>) -> Stored {
    let stored_at = Timestamp::from_millisecond(seq as i64 * 1000).unwrap();
    Stored { seq: StreamSeq(seq), stored_at, subject, headers: headers.to_map(), payload: payload.into() }
}

/// Event `number` at the sequence of that number.
fn event_message(number: u64) -> Stored {
    let outgoing = event(number).encode(LAYOUT);
    stored(number, outgoing.subject, outgoing.headers, outgoing.payload.to_vec())
}

fn record(seq: u64, record: Record) -> Stored {
    let record = v1::OutcomeRecord { record: Some(record) };
    stored(seq, "outcomes.0".into(), records::headers(), record.encode_to_vec())
}

/// A commit, stored after all events.
fn commit(seq: u64, commit: v1::Commit) -> Stored {
    let stored = record(seq, Record::Commit(commit));
    Stored { stored_at: Timestamp::from_second(1_000_000 + seq as i64).unwrap(), ..stored }
}

fn outcome(uid: SubscriptionUid, number: u64, run: u64, kind: OutcomeKind, at_ms: i64) -> v1::Outcome {
    let dead = kind == OutcomeKind::DeadLettered;
    v1::Outcome {
        subscription: uid.to_vec(),
        sequence: number,
        run,
        kind: kind.into(),
        workflow_id: "order-1".into(),
        event_id: event_id(number).to_vec(),
        attempts: 2,
        reason: if dead { v1::DeadLetterReason::Exhausted } else { v1::DeadLetterReason::Unspecified }.into(),
        at_ms,
        first_failed_at_ms: if dead { at_ms - 1000 } else { 0 },
        last_error: if dead { "answered 500".into() } else { String::new() },
        last_status: if dead { 500 } else { 0 },
        operator: String::new(),
        unordered: false,
        from: 0,
    }
}

fn attempt(uid: SubscriptionUid, number: u64, run: u64, attempt: u32, next_ms: i64) -> v1::Attempt {
    v1::Attempt {
        subscription: uid.to_vec(),
        sequence: number,
        run,
        number: attempt,
        class: v1::AttemptClass::HttpStatus.into(),
        status: 500,
        next_attempt_at_ms: next_ms,
        ..Default::default()
    }
}

fn lane(uid: SubscriptionUid, next: u64, last: u64, state: v1::LaneState) -> v1::Lane {
    v1::Lane {
        subscription: uid.to_vec(),
        workflow_id: "order-1".into(),
        next,
        last,
        state: state.into(),
        ..Default::default()
    }
}

fn opened(uid: SubscriptionUid, name: &str) -> v1::SubscriptionChange {
    let opened = v1::Opened { name: name.into(), from: 1, revision: 1, ..Default::default() };
    let change = Some(v1::subscription_change::Change::Opened(opened));
    v1::SubscriptionChange { subscription: uid.to_vec(), change, catalog: None }
}

/// The copy on DLQ that the owner makes after the commit with this outcome.
fn copy(seq: u64, name: &str, outcome: &v1::Outcome) -> Stored {
    let event = event(outcome.sequence);
    let mut headers = event.encode(LAYOUT).headers;
    let time = |ms| Timestamp::from_millisecond(ms).unwrap().to_string();
    for (header, value) in [
        ("weft-subscription-uid", SubscriptionUid::from_slice(&outcome.subscription).unwrap().to_string()),
        ("weft-reason", "exhausted".into()),
        ("weft-attempts", outcome.attempts.to_string()),
        ("weft-last-status", outcome.last_status.to_string()),
        ("weft-last-error", outcome.last_error.clone()),
        ("weft-first-failed-at", time(outcome.first_failed_at_ms)),
        ("weft-dead-lettered-at", time(outcome.at_ms)),
        ("weft-seq", outcome.sequence.to_string()),
        ("weft-run", outcome.run.to_string()),
    ] {
        headers.put(header, value);
    }
    let subject = dead_letter_subject(name, &event.workflow, event.id, StreamSeq(outcome.sequence), Run(outcome.run));
    stored(seq, subject, headers, b"{}".to_vec())
}

fn redrive(seq: u64, request_id: &str, numbers: &[u64]) -> Stored {
    let items = numbers.iter().map(|number| v1::RedriveItem {
        subscription: BILLING.to_vec(),
        subscription_name: "billing".into(),
        sequence: *number,
        workflow_id: "order-1".into(),
        event_id: event_id(*number).to_vec(),
        run: 0,
        dead_letter_id: String::new(),
    });
    let action = Some(v1::command::Action::Redrive(v1::Redrive { items: items.collect() }));
    let command = v1::Command { request_id: request_id.into(), action, ..Default::default() };
    stored(seq, "commands.0".into(), records::headers(), command.encode_to_vec())
}

fn results(command: u64, number: u64, status: CommandStatus) -> v1::CommandResult {
    let item = v1::ItemResult { subscription: BILLING.to_vec(), sequence: number, status: status.into() };
    v1::CommandResult { command, request_id: String::new(), items: vec![item] }
}

struct Index {
    database: Database,
}

impl Index {
    fn new() -> Self {
        let database = Database::builder().create_with_backend(InMemoryBackend::new()).unwrap();
        let index = Self { database };
        index.write(|_| ());
        index
    }

    fn write<T>(&self, change: impl FnOnce(&mut Tables<'_>) -> T) -> T {
        let transaction = self.database.begin_write().unwrap();
        let answer = change(&mut Tables::open(&transaction).unwrap());
        transaction.commit().unwrap();
        answer
    }

    fn apply<'m>(&self, messages: impl IntoIterator<Item = &'m (StreamKind, Stored)>) {
        self.write(|tables| {
            for (source, message) in messages {
                tables.apply(LAYOUT, *source, message).unwrap();
            }
        });
    }

    fn view(&self) -> View {
        View::open(&self.database.begin_read().unwrap()).unwrap()
    }

    fn event(&self, catalog: &Snapshot, number: u64) -> Option<events::EventHistory> {
        events::event(&self.view(), &Subscriptions::of(catalog), SHARD, StreamSeq(number)).unwrap()
    }

    fn dead_letter(&self, number: u64) -> Option<dead_letters::DeadLetter> {
        let subscriptions = Subscriptions::of(&Snapshot::default());
        let id = format!("billing:{}", event_id(number)).parse().unwrap();
        dead_letters::find(&self.view(), &subscriptions, &id).unwrap().pop()
    }

    fn statuses(&self, numbers: impl IntoIterator<Item = u64>) -> Vec<DeadLetterStatus> {
        numbers.into_iter().map(|number| self.dead_letter(number).unwrap().status).collect()
    }

    fn progress(&self, request_id: &str) -> Vec<ItemProgress> {
        let view = self.view();
        let commands = requests::request(&view, request_id).unwrap();
        let items: Vec<_> = commands.iter().flat_map(|command| command.items().map(|(item, _)| item)).collect();
        requests::progress(&view, &items).unwrap()
    }
}

fn outcomes(messages: impl IntoIterator<Item = Stored>) -> Vec<(StreamKind, Stored)> {
    messages.into_iter().map(|message| (StreamKind::Outcomes(SHARD), message)).collect()
}

fn event_messages(numbers: std::ops::RangeInclusive<u64>) -> Vec<(StreamKind, Stored)> {
    numbers.map(|number| (StreamKind::Events(SHARD), event_message(number))).collect()
}

fn catalog(types: &str, paused: bool) -> Snapshot {
    let subscription = v1::Subscription {
        uid: BILLING.to_vec(),
        name: "billing".into(),
        types: vec![types.into()],
        paused,
        ..Default::default()
    };
    let revised = Revised { revision: 1, value: Arc::new(subscription) };
    Snapshot { complete: true, subscriptions: [("billing".into(), revised)].into(), ..Snapshot::default() }
}

/// Four events: one delivered, one unrouted, one dead-lettered and redriven, one dead-lettered, redriven and dead again;
/// a fifth redrive is refused.
fn story() -> [Vec<(StreamKind, Stored)>; 4] {
    let dead = |number, run, at| outcome(BILLING, number, run, OutcomeKind::DeadLettered, at);
    let unrouted = v1::Outcome { subscription: Vec::new(), ..outcome(AUDIT, 2, 0, OutcomeKind::Unrouted, 2) };
    let commits = [
        commit(
            1,
            v1::Commit {
                cursor: 4,
                subscriptions: vec![opened(BILLING, "billing")],
                attempts: vec![attempt(BILLING, 3, 0, 1, 5_000)],
                lanes: vec![lane(BILLING, 3, 4, v1::LaneState::Open)],
                outcomes: vec![outcome(BILLING, 1, 0, OutcomeKind::Delivered, 1), unrouted],
                ..Default::default()
            },
        ),
        commit(
            2,
            v1::Commit {
                cursor: 4,
                attempts: vec![attempt(BILLING, 3, 0, 2, 0), attempt(BILLING, 4, 0, 1, 0)],
                outcomes: vec![dead(3, 0, 6_000), dead(4, 0, 7_000)],
                ..Default::default()
            },
        ),
        commit(
            3,
            v1::Commit {
                cursor: 4,
                results: vec![results(7, 3, CommandStatus::Taken), results(7, 4, CommandStatus::Taken)],
                runs: vec![v1::PendingRun {
                    subscription: BILLING.to_vec(),
                    sequence: 3,
                    run: 7,
                    ..Default::default()
                }],
                ..Default::default()
            },
        ),
        commit(
            4,
            v1::Commit {
                cursor: 4,
                attempts: vec![attempt(BILLING, 4, 7, 1, 0)],
                outcomes: vec![outcome(BILLING, 3, 7, OutcomeKind::Delivered, 8_000), dead(4, 7, 9_000)],
                results: vec![results(8, 3, CommandStatus::NotApplicable)],
                ..Default::default()
            },
        ),
    ];
    // The last one's copy has not been made yet.
    let copies = [copy(1, "billing", &dead(3, 0, 6_000)), copy(2, "billing", &dead(4, 0, 7_000))];
    let commands = [redrive(7, "again", &[3, 4]), redrive(8, "again-3", &[3]), redrive(9, "again-3", &[4])];
    [
        event_messages(1..=4),
        outcomes(commits),
        commands.map(|message| (StreamKind::Commands(SHARD), message)).to_vec(),
        copies.map(|message| (StreamKind::DeadLetters, message)).to_vec(),
    ]
}

/// The streams one after the other as `order` says, each in its own order.
fn interleave(streams: [Vec<(StreamKind, Stored)>; 4], order: &[usize]) -> Vec<(StreamKind, Stored)> {
    let mut streams = streams.map(std::collections::VecDeque::from);
    let mut messages: Vec<_> = order.iter().filter_map(|stream| streams[*stream].pop_front()).collect();
    messages.extend(streams.into_iter().flatten());
    messages
}

/// An outcome of everything of a lane from one sequence to another is the outcome of each event between them, of that
/// subscription only, and leaves with its events.
#[test]
fn a_range_outcome_shows_on_every_event_of_the_range() {
    let index = Index::new();
    let expired = v1::Outcome {
        from: 2,
        reason: v1::DeadLetterReason::Expired.into(),
        event_id: Vec::new(),
        ..outcome(BILLING, 4, 0, OutcomeKind::DeadLettered, 9_000)
    };
    let commit_of = |outcomes| commit(1, v1::Commit { cursor: 5, outcomes, ..Default::default() });
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

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    /// The answers do not depend on the order in which the streams are read.
    #[test]
    fn the_order_of_the_streams_does_not_matter(order in proptest::collection::vec(0usize..4, 0..14)) {
        let index = Index::new();
        index.apply(&interleave(story(), &order));
        let catalog = Snapshot::default();
        let statuses: Vec<_> =
            (1..=4).map(|number| index.event(&catalog, number).unwrap().status.as_str()).collect();
        prop_assert_eq!(statuses, ["delivered", "unrouted", "delivered", "dead_lettered"]);
        prop_assert_eq!(index.statuses(3..=4), [DeadLetterStatus::Redriven, DeadLetterStatus::Open]);
        let dead = index.dead_letter(4).unwrap();
        prop_assert_eq!((dead.place.run, dead.dead_lettered_at_ms, dead.sequence_number), (Run(7), 9_000, 4));
        prop_assert_eq!((dead.source.as_str(), dead.last_error.as_str()), ("shop", "answered 500"));
        prop_assert_eq!(
            index.progress("again"),
            [ItemProgress::Settled(OutcomeKind::Delivered), ItemProgress::Settled(OutcomeKind::DeadLettered)]
        );
        // The first command with the id; the other never acts.
        prop_assert_eq!(index.progress("again-3"), [ItemProgress::NotApplicable]);
        let third = index.event(&catalog, 3).unwrap();
        let deliveries: Vec<_> = third
            .deliveries
            .iter()
            .map(|delivery| (delivery.subscription.as_str(), delivery.run, delivery.status, delivery.attempts.len()))
            .collect();
        prop_assert_eq!(
            deliveries,
            [
                ("billing", Run::LIVE, DeliveryStatus::DeadLettered, 2),
                ("billing", Run(7), DeliveryStatus::Delivered, 0)
            ]
        );
        let all = DeadLetterFilter::default();
        let page = dead_letters::page(&index.view(), &Subscriptions::of(&catalog), &all, None, 10).unwrap();
        let numbers: Vec<_> = page.dead_letters.iter().map(|dead| dead.sequence_number).collect();
        prop_assert_eq!((numbers, page.next), (vec![4, 3], None));
    }
}

/// A command is seen by the dead letters that it names before its shard's owner has read it.
#[test]
fn a_redrive_shows_from_its_command_on() {
    let [events, mut commits, commands, _] = story();
    let last = commits.split_off(2);
    let index = Index::new();
    index.apply(events.iter().chain(&commits));
    assert_eq!(index.statuses(3..=4), [DeadLetterStatus::Open, DeadLetterStatus::Open]);
    index.apply(&commands[..1]);
    assert_eq!(index.statuses(3..=4), [DeadLetterStatus::Redriving, DeadLetterStatus::Redriving]);
    assert_eq!(index.progress("again"), [ItemProgress::Pending, ItemProgress::Pending]);
    index.apply(&last);
    assert_eq!(index.statuses(3..=4), [DeadLetterStatus::Redriven, DeadLetterStatus::Open]);
    assert_eq!(index.progress("agai"), []);
}

#[test]
fn what_is_not_settled_waits_in_its_lane() {
    let index = Index::new();
    index.apply(&event_messages(1..=4));
    let of = |catalog: &Snapshot, number| index.event(catalog, number).unwrap().status.as_str().to_owned();
    let taking = catalog("order.*", false);
    assert_eq!(of(&taking, 1), "pending", "not matched yet");
    let failing = v1::Commit {
        cursor: 3,
        lanes: vec![lane(BILLING, 1, 2, v1::LaneState::Open)],
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

    let blocked =
        v1::Commit { lanes: vec![lane(BILLING, 1, 2, v1::LaneState::Blocked)], cursor: 4, ..Default::default() };
    index.apply(&outcomes([commit(2, blocked)]));
    assert_eq!([of(&taking, 1), of(&taking, 2)], ["blocked", "pending"]);

    let closed = v1::subscription_change::Change::Closed(v1::Closed { up_to: 4, ..Default::default() });
    let closed = v1::SubscriptionChange { subscription: BILLING.to_vec(), change: Some(closed), catalog: None };
    index.apply(&outcomes([commit(3, v1::Commit { subscriptions: vec![closed], cursor: 4, ..Default::default() })]));
    let gone = Snapshot::default();
    assert_eq!([of(&gone, 1), of(&gone, 2)], ["discarded", "discarded"]);
}

/// In an unordered subscription each event is independent, and a pause of the workflow pauses all of them.
#[test]
fn what_is_not_ordered_waits_each_in_a_lane_of_its_own() {
    let index = Index::new();
    index.apply(&event_messages(1..=4));
    let of = |number| index.event(&catalog("order.*", false), number).unwrap().status.as_str().to_owned();
    let own = |number, state| v1::Lane { unordered: true, ..lane(BILLING, number, number, state) };
    let lanes =
        vec![own(1, v1::LaneState::Blocked), own(3, v1::LaneState::Open), lane(BILLING, 4, 4, v1::LaneState::Open)];
    let delivered = v1::Outcome { unordered: true, ..outcome(BILLING, 2, 0, OutcomeKind::Delivered, 5_000) };
    let attempts = vec![attempt(BILLING, 1, 0, 1, 0), attempt(BILLING, 3, 0, 1, 60_000)];
    let first = v1::Commit { cursor: 4, lanes, attempts, outcomes: vec![delivered], ..Default::default() };
    index.apply(&outcomes([commit(1, first)]));
    assert_eq!([1, 2, 3, 4].map(of), ["blocked", "delivered", "retrying", "pending"]);

    let page = |paused, after, limit| {
        let subscriptions = Subscriptions::of(&catalog("order.*", paused));
        lanes::page(&index.view(), &subscriptions, LAYOUT, &LaneFilter::default(), after, limit).unwrap()
    };
    assert!(page(true, None, 10).lanes.iter().all(|lane| lane.state() == "paused"), "with their subscription");
    let (mut seen, mut after) = (Vec::new(), None);
    loop {
        let found = page(false, after, 1);
        seen.extend(found.lanes.iter().map(|lane| (lane.lane.last, lane.state())));
        after = found.next;
        if after.is_none() {
            break;
        }
    }
    assert_eq!(seen, [(4, "open"), (1, "blocked"), (3, "open")], "each once");

    let settled = v1::Outcome { unordered: true, ..outcome(BILLING, 1, 0, OutcomeKind::DeadLettered, 6_000) };
    let paused = v1::Lane { paused: true, ..lane(BILLING, 4, 4, v1::LaneState::Open) };
    let second = v1::Commit { cursor: 4, lanes: vec![paused], outcomes: vec![settled], ..Default::default() };
    index.apply(&outcomes([commit(2, second)]));
    assert_eq!([1, 2, 3, 4].map(of), ["dead_lettered", "delivered", "paused", "paused"]);
}

/// Pages of any size contain every dead letter once, also those of the same millisecond.
#[test]
fn pages_of_dead_letters_hold_everything_once() {
    let index = Index::new();
    index.apply(&event_messages(1..=7));
    let dead = |number| outcome(BILLING, number, 0, OutcomeKind::DeadLettered, 5_000 + (number as i64 / 3));
    let outcomes_of_all = (1..=7).map(dead).collect();
    index.apply(&outcomes([commit(1, v1::Commit { cursor: 7, outcomes: outcomes_of_all, ..Default::default() })]));
    let (view, subscriptions) = (index.view(), Subscriptions::of(&catalog("*", false)));
    let numbers = |filter: &DeadLetterFilter, limit: usize| {
        let (mut numbers, mut after) = (Vec::new(), None);
        loop {
            let page = dead_letters::page(&view, &subscriptions, filter, after, limit).unwrap();
            assert!(page.dead_letters.len() <= limit);
            numbers.extend(page.dead_letters.iter().map(|dead| dead.sequence_number));
            after = page.next;
            if after.is_none() {
                return numbers;
            }
        }
    };
    for limit in [1, 2, 3, 7, 8] {
        assert_eq!(numbers(&DeadLetterFilter::default(), limit), [7, 6, 5, 4, 3, 2, 1], "{limit}");
    }
    let window = DeadLetterFilter { since_ms: Some(5_001), until_ms: Some(5_002), ..Default::default() };
    assert_eq!(numbers(&window, 2), [5, 4, 3]);
    let none = DeadLetterFilter { event_type: Some("stock.*".into()), ..Default::default() };
    assert_eq!(numbers(&none, 2), [0u64; 0]);
    let redriven = DeadLetterFilter { statuses: vec![DeadLetterStatus::Redriven], ..Default::default() };
    assert_eq!(numbers(&redriven, 2), [0u64; 0]);
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
    index.apply(&outcomes([commit(5, v1::Commit { cursor: 4, outcomes: vec![late], ..Default::default() })]));
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

/// A history that is rebuilt after OUTCOMES has dropped the records of old dead letters uses the checkpoint.
#[test]
fn a_checkpoint_tells_which_old_dead_letters_are_open() {
    let index = Index::new();
    let dead = |number: u64| outcome(BILLING, number, 0, OutcomeKind::DeadLettered, 1_000);
    let copies = [copy(1, "billing", &dead(1)), copy(2, "billing", &dead(2))];
    index.apply(&copies.map(|message| (StreamKind::DeadLetters, message)));
    assert_eq!(index.statuses(1..=2), [DeadLetterStatus::Open, DeadLetterStatus::Open]);
    let open = v1::OpenDeadLetter { subscription: BILLING.to_vec(), sequence: 2, run: 0, at_ms: 1_000 };
    let chunk =
        |position, dead_letters| Record::Chunk(v1::CheckpointChunk { position, dead_letters, ..Default::default() });
    let end = |position| Record::End(v1::CheckpointEnd { position, ..Default::default() });
    // The end of a checkpoint that was taken before the first record that is still kept: it may lack what lies between.
    index.apply(&outcomes([record(100, end(90))]));
    assert_eq!(index.statuses(1..=2), [DeadLetterStatus::Open, DeadLetterStatus::Open]);
    index.apply(&outcomes([record(101, chunk(100, vec![open.clone()])), record(102, end(100))]));
    assert_eq!(index.statuses(1..=2), [DeadLetterStatus::Redriven, DeadLetterStatus::Open]);
    // Later checkpoints add nothing, and a dead letter whose outcome was read does not need them.
    index.apply(&outcomes([record(103, chunk(102, vec![open])), record(104, end(102))]));
    index.apply(&outcomes([commit(105, v1::Commit { outcomes: vec![dead(3)], ..Default::default() })]));
    assert_eq!(index.statuses(1..=2), [DeadLetterStatus::Redriven, DeadLetterStatus::Open]);
}

/// The record of a change of the catalog names its request and has no items.
#[test]
fn a_record_of_the_catalog_is_found_by_its_request() {
    let index = Index::new();
    let edit = v1::CatalogEdit { method: "CreateSource".into(), name: "shop".into(), ..Default::default() };
    let action = Some(v1::command::Action::Catalog(edit));
    let command = v1::Command { request_id: "made".into(), action: action.clone(), ..Default::default() };
    let message = stored(1, "commands.0".into(), records::headers(), command.encode_to_vec());
    index.apply(&[(StreamKind::Commands(SHARD), message)]);
    let found = requests::request(&index.view(), "made").unwrap();
    assert_eq!(found.iter().map(|stored| stored.command.action.clone()).collect::<Vec<_>>(), [action]);
    assert!(index.progress("made").is_empty());
}

/// Foreign messages in the streams are ignored.
#[test]
fn foreign_messages_are_passed_over() {
    let index = Index::new();
    for source in
        [StreamKind::Events(SHARD), StreamKind::Outcomes(SHARD), StreamKind::Commands(SHARD), StreamKind::DeadLetters]
    {
        for subject in ["", "events.a", "dlq.a.b.c.d", "outcomes.0"] {
            for payload in [&b""[..], b"\xff\xff\xff", b"{}"] {
                let message = stored(1, subject.into(), Headers::default(), payload.to_vec());
                index.apply([&(source, message)]);
            }
        }
    }
    assert_eq!(index.view().events.range::<(u32, u64)>(..).unwrap().count(), 0);
}

/// A dead letter shows why DLQ has no copy of it, for any order in which the streams are read.
#[test]
fn a_dead_letter_says_why_it_has_no_copy() {
    let index = Index::new();
    let dead = outcome(BILLING, 3, 0, OutcomeKind::DeadLettered, 5_000);
    let missing = || index.dead_letter(3).unwrap().copy_missing;
    let says = |seq, kind: v1::CopyStateKind| {
        let state = v1::CopyState { outcome: Some(dead.clone()), kind: kind.into(), problem: "too large".into() };
        index.apply(&outcomes([commit(seq, v1::Commit { cursor: 3, copies: vec![state], ..Default::default() })]));
    };
    index.apply(&event_messages(1..=3));
    let subscriptions = vec![opened(BILLING, "billing")];
    let first = v1::Commit { cursor: 3, subscriptions, outcomes: vec![dead.clone()], ..Default::default() };
    index.apply(&outcomes([commit(1, first)]));
    assert_eq!(missing(), "it waits to be made");
    says(2, v1::CopyStateKind::Refused);
    assert_eq!(missing(), "DLQ refuses it: too large");
    // DLQ accepts a copy without payload.
    index.apply(&[(StreamKind::DeadLetters, copy(1, "billing", &dead))]);
    assert_eq!(missing(), "DLQ refuses it: too large");
    says(3, v1::CopyStateKind::Stored);
    assert_eq!(missing(), "");
}

fn receiver(uid: SubscriptionUid, condition: v1::ReceiverCondition) -> v1::ReceiverState {
    v1::ReceiverState {
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
    let say = |seq, epoch, receivers: Vec<v1::ReceiverState>| {
        let lanes = vec![lane(BILLING, 1, 1, v1::LaneState::Open)];
        index.apply(&outcomes([commit(seq, v1::Commit { epoch, receivers, lanes, cursor: 1, ..Default::default() })]));
        let view = index.view();
        let listed: Vec<_> = receivers::all(&view).unwrap().iter().map(ReceiverHistory::state).collect();
        let page = lanes::page(&view, &subscriptions, LAYOUT, &LaneFilter::default(), None, 10).unwrap();
        (listed, page.lanes[0].state())
    };
    assert_eq!(say(1, 1, vec![]), (vec![], "open"));
    assert_eq!(say(2, 1, vec![receiver(BILLING, Away), receiver(AUDIT, Held)]).1, "away");
    assert_eq!(say(3, 1, vec![]).0.len(), 2, "a commit that does not name them changes nothing");
    assert_eq!(say(4, 1, vec![receiver(BILLING, Held), receiver(AUDIT, Available)]), (vec!["held"], "held"));
    assert_eq!(say(5, 2, vec![]), (vec![], "open"), "a new owner finds out for itself");
}

/// A replay leaves out resolved and discarded events, until they are delivered again.
#[test]
fn the_newest_decision_of_an_operator_stands() {
    let index = Index::new();
    index.apply(&event_messages(1..=4));
    let command = |seq: u64, action: v1::command::Action| {
        let command = v1::Command { request_id: format!("r{seq}"), action: Some(action), ..Default::default() };
        (StreamKind::Commands(SHARD), stored(seq, "commands.0".into(), records::headers(), command.encode_to_vec()))
    };
    let close = || v1::command::Action::Close(v1::CloseDeadLetters::default());
    let replay = || v1::command::Action::Replay(v1::ReplayEvents::default());
    index.apply(&[command(5, close()), command(6, replay()), command(7, replay())]);
    let dead = |number| outcome(BILLING, number, 0, OutcomeKind::DeadLettered, 5_000);
    let settled = |number, run, kind| outcome(BILLING, number, run, kind, 6_000);
    let outcomes_of_all = vec![
        dead(1),
        settled(1, 5, OutcomeKind::Discarded),
        dead(2),
        settled(2, 5, OutcomeKind::Resolved),
        // Discarded, and then replayed by its id.
        dead(3),
        settled(3, 5, OutcomeKind::Discarded),
        settled(3, 6, OutcomeKind::Delivered),
        // Delivered, and then part of a replay that was cancelled.
        settled(4, 0, OutcomeKind::Delivered),
        settled(4, 7, OutcomeKind::Discarded),
    ];
    index.apply(&outcomes([commit(1, v1::Commit { cursor: 4, outcomes: outcomes_of_all, ..Default::default() })]));
    let items: Vec<_> =
        (1..=5).map(|seq| CommandItem { shard: SHARD, seq: StreamSeq(seq), uid: BILLING, run: Run::LIVE }).collect();
    let decisions = requests::decisions(&index.view(), &items).unwrap();
    assert_eq!(decisions, [Some(OutcomeKind::Discarded), Some(OutcomeKind::Resolved), None, None, None]);
}

/// Operator and reason of a skip are in the outcome, since the command has no run. Outcomes of earlier versions have no operator.
#[test]
fn a_skip_has_operator_and_reason() {
    let index = Index::new();
    for (stored, operator, reason) in [
        ("ann", "ann", "refund: in dispute"),
        ("ann", "ann", ""),
        ("ann: b", "ann: b", "x"),
        ("", "ann", "a: b"),
        ("", "ann", ""),
    ] {
        let outcome = v1::Outcome {
            reason: v1::DeadLetterReason::Skipped.into(),
            operator: stored.into(),
            last_error: weft_nats::commands::skip_error(operator, reason),
            ..outcome(BILLING, 1, 0, OutcomeKind::DeadLettered, 5_000)
        };
        let decision = requests::Decision::of(&index.view(), SHARD.0, &outcome).unwrap();
        assert_eq!((decision.operator.as_str(), decision.reason.as_str()), (operator, reason));
    }
}

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
    let settled = v1::Commit {
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
    let settled = v1::Commit {
        cursor: 4,
        subscriptions: vec![opened(BILLING, "billing")],
        attempts: vec![attempt(BILLING, 2, 0, 1, 0), attempt(BILLING, 4, 0, 1, 5_000)],
        outcomes: vec![dead(1), dead(2), outcome(BILLING, 3, 0, OutcomeKind::Delivered, 7_000)],
        lanes: vec![lane(BILLING, 4, 4, v1::LaneState::Open)],
        at_ms: 8_000,
        ..Default::default()
    };
    let adopts = v1::Commit { cursor: 1, at_ms: 9_000, adopted: Some(v1::Adoption::default()), ..Default::default() };
    let delivered = v1::Commit {
        cursor: 2,
        outcomes: vec![v1::Outcome {
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

/// A paused lane states the command that paused it: not a later one that changed nothing, nor one for another lane. For a
/// paused subscription the catalog's reason counts.
#[test]
fn a_paused_lane_says_who_paused_it_and_why() {
    let order = |seq: u64, workflow: &str, reason: &str| {
        let order = v1::LaneOrder {
            subscription: BILLING.to_vec(),
            workflow_id: workflow.into(),
            action: v1::LaneAction::Pause.into(),
            ..Default::default()
        };
        let command = v1::Command {
            request_id: format!("pause-{seq}"),
            operator: format!("operator-{seq}"),
            reason: reason.into(),
            at_ms: seq as i64 * 1_000,
            action: Some(v1::command::Action::Lane(order)),
        };
        (StreamKind::Commands(SHARD), stored(seq, "commands.0".into(), records::headers(), command.encode_to_vec()))
    };
    let index = Index::new();
    index.apply(&event_messages(1..=1));
    index.apply(&[order(1, "order-1", "old"), order(2, "order-1", "dispute"), order(3, "order-1", "again")]);
    index.apply(&[order(4, "order-2", "other lane"), order(5, "order-1", "not carried out yet")]);
    let paused = v1::Lane { paused: true, ..lane(BILLING, 1, 1, v1::LaneState::Open) };
    let refused = results(3, 0, CommandStatus::NotApplicable);
    let first = v1::Commit {
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

    let open = v1::Commit {
        cursor: 1,
        commands_cursor: 4,
        lanes: vec![lane(BILLING, 1, 1, v1::LaneState::Open)],
        ..Default::default()
    };
    index.apply(&outcomes([commit(2, open)]));
    assert_eq!(pause(&running), None);
    let edit = |seq: u64, reason: &str| {
        let change = v1::CatalogChange { action: "paused".into(), ..Default::default() };
        let edit = v1::CatalogEdit { name: "billing".into(), changes: vec![change], ..Default::default() };
        let command = v1::Command {
            request_id: format!("pause-{seq}"),
            operator: format!("operator-{seq}"),
            reason: reason.into(),
            at_ms: seq as i64 * 1_000,
            action: Some(v1::command::Action::Catalog(edit)),
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
