//! The history without a server: messages in, answers out.

use std::sync::Arc;

use jiff::Timestamp;
use proptest::prelude::*;
use prost::Message as _;
use redb::{Database, ReadableDatabase as _, backends::InMemoryBackend};
use weft_catalog::{Revised, Snapshot};
use weft_nats::{
    event::Event,
    headers::Headers,
    message::Stored,
    records,
    subject::{Layout, dead_letter_subject},
};
use weft_proto::{
    ids::{EventId, Run, ShardId, StreamSeq, SubscriptionUid},
    internal::{self, CommandStatus, OutcomeKind, outcome_record::Record},
    v1,
    words::Word as _,
};

use super::{
    apply::StreamKind,
    dead_letters::{self, DeadLetterFilter},
    events,
    lanes::{self, LaneFilter},
    names::Subscriptions,
    pauses::Pause,
    receivers,
    requests::{self, CommandItem, ItemProgress},
    status::{DeadLetterStatus, DeliveryStatus},
    sweep::{Expired, LaneCursor},
    tables::{Tables, View},
};

mod expired;
mod letters;
mod listed;
mod restored;
mod stats;
mod waiting;

const LAYOUT: Layout = Layout::new(1);
const SHARD: ShardId = ShardId(0);
const BILLING: SubscriptionUid = SubscriptionUid::from_bytes([1; 16]);
const AUDIT: SubscriptionUid = SubscriptionUid::from_bytes([2; 16]);

fn event_id(number: u64) -> EventId {
    weft_testkit::event::id("order-1", number)
}

fn event(number: u64) -> Event {
    weft_testkit::event("order-1").number(number).build()
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
    let record = internal::OutcomeRecord { record: Some(record) };
    stored(seq, "outcomes.0".into(), records::headers(), record.encode_to_vec())
}

/// A commit, stored after all events.
fn commit(seq: u64, commit: internal::Commit) -> Stored {
    let stored = record(seq, Record::Commit(commit));
    Stored { stored_at: Timestamp::from_second(1_000_000 + seq as i64).unwrap(), ..stored }
}

fn outcome(uid: SubscriptionUid, number: u64, run: u64, kind: OutcomeKind, at_ms: i64) -> internal::Outcome {
    let dead = kind == OutcomeKind::DeadLettered;
    internal::Outcome {
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

fn attempt(uid: SubscriptionUid, number: u64, run: u64, attempt: u32, next_ms: i64) -> internal::Attempt {
    internal::Attempt {
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

fn lane(uid: SubscriptionUid, next: u64, last: u64, state: internal::LaneState) -> internal::Lane {
    internal::Lane {
        subscription: uid.to_vec(),
        workflow_id: "order-1".into(),
        next,
        last,
        state: state.into(),
        ..Default::default()
    }
}

fn opened(uid: SubscriptionUid, name: &str) -> internal::SubscriptionChange {
    let opened = internal::Opened { name: name.into(), from: 1, revision: 1, ..Default::default() };
    let change = Some(internal::subscription_change::Change::Opened(opened));
    internal::SubscriptionChange { subscription: uid.to_vec(), change, catalog: None }
}

/// The copy on DLQ that the owner makes after the commit with this outcome.
fn copy(seq: u64, name: &str, outcome: &internal::Outcome) -> Stored {
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
    let items = numbers.iter().map(|number| internal::RedriveItem {
        subscription: BILLING.to_vec(),
        subscription_name: "billing".into(),
        sequence: *number,
        workflow_id: "order-1".into(),
        event_id: event_id(*number).to_vec(),
        run: 0,
        dead_letter_id: String::new(),
    });
    let action = Some(internal::command::Action::Redrive(internal::Redrive { items: items.collect() }));
    let command = internal::Command { request_id: request_id.into(), action, ..Default::default() };
    stored(seq, "commands.0".into(), records::headers(), command.encode_to_vec())
}

fn results(command: u64, number: u64, status: CommandStatus) -> internal::CommandResult {
    let item = internal::ItemResult { subscription: BILLING.to_vec(), sequence: number, status: status.into() };
    internal::CommandResult { command, request_id: String::new(), items: vec![item] }
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
        let mut tables = Tables::open(&transaction).unwrap();
        let answer = change(&mut tables);
        tables.flush().unwrap();
        drop(tables);
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
    let unrouted = internal::Outcome { subscription: Vec::new(), ..outcome(AUDIT, 2, 0, OutcomeKind::Unrouted, 2) };
    let commits = [
        commit(
            1,
            internal::Commit {
                cursor: 4,
                subscriptions: vec![opened(BILLING, "billing")],
                attempts: vec![attempt(BILLING, 3, 0, 1, 5_000)],
                lanes: vec![lane(BILLING, 3, 4, internal::LaneState::Open)],
                outcomes: vec![outcome(BILLING, 1, 0, OutcomeKind::Delivered, 1), unrouted],
                ..Default::default()
            },
        ),
        commit(
            2,
            internal::Commit {
                cursor: 4,
                attempts: vec![attempt(BILLING, 3, 0, 2, 0), attempt(BILLING, 4, 0, 1, 0)],
                outcomes: vec![dead(3, 0, 6_000), dead(4, 0, 7_000)],
                ..Default::default()
            },
        ),
        commit(
            3,
            internal::Commit {
                cursor: 4,
                results: vec![results(7, 3, CommandStatus::Taken), results(7, 4, CommandStatus::Taken)],
                runs: vec![internal::PendingRun {
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
            internal::Commit {
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

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    /// The answers do not depend on the order in which the streams are read.
    #[test]
    fn the_order_of_the_streams_does_not_matter(order in proptest::collection::vec(0usize..4, 0..14)) {
        let index = Index::new();
        index.apply(&interleave(story(), &order));
        let catalog = Snapshot::default();
        let statuses: Vec<_> =
            (1..=4).map(|number| index.event(&catalog, number).unwrap().status.message().word()).collect();
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

/// The record of a change of the catalog names its request and has no items.
#[test]
fn a_record_of_the_catalog_is_found_by_its_request() {
    let index = Index::new();
    let edit = internal::CatalogEdit { method: "CreateSource".into(), name: "shop".into(), ..Default::default() };
    let action = Some(internal::command::Action::Catalog(edit));
    let command = internal::Command { request_id: "made".into(), action: action.clone(), ..Default::default() };
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
