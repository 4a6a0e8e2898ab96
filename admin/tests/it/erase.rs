//! `EraseEvents`: what is removed, what stays, and what an interrupted call leaves.

use jiff::Timestamp;
use tonic::Code;
use weft_index::receipts::body_digest;
use weft_nats::{
    append::publish,
    commands, direct,
    erasure::{Author, Erasure},
    event::{Event, StoredEvent},
    message::Outgoing,
    subject::{DLQ_STREAM, REJECTED_STREAM, dead_letter_subject, rejected},
};
use weft_proto::{
    ids::{EventId, Run, ShardId, StreamSeq},
    internal::{self, command::Action},
    v1,
    words::Word as _,
};
use weft_testkit::eventually;

use crate::{
    catalog::subscription,
    mesh::{BILLING, Mesh, PATIENCE, attempt, event, opening, reason},
};

const SHARD: ShardId = ShardId(0);
const BODY: &str = r#"{"mail":"jane@example.org"}"#;

async fn erase(mesh: &Mesh, request: v1::EraseEventsRequest) -> Result<v1::EraseEventsResponse, tonic::Status> {
    mesh.admin.events().erase_events(request).await.map(tonic::Response::into_inner)
}

fn of_workflow(workflow: &str, request_id: &str) -> v1::EraseEventsRequest {
    v1::EraseEventsRequest {
        workflow_id: workflow.into(),
        reason: "asked for".into(),
        request_id: request_id.into(),
        ..Default::default()
    }
}

async fn get(mesh: &Mesh, id: EventId) -> v1::GetEventResponse {
    let request = v1::GetEventRequest { event_id: id.to_string(), ..Default::default() };
    mesh.admin.events().get_event(request).await.unwrap().into_inner()
}

/// Whether any message of a stream holds the text.
async fn holds(mesh: &Mesh, stream: &str, text: &str) -> bool {
    let messages = direct::range(&mesh.connection, stream, StreamSeq(1), ">", 100, 1 << 20).await.unwrap();
    messages.iter().any(|message| format!("{:?}{:?}", message.headers, message.payload).contains(text))
}

/// Payloads are gone from EVENTS and DLQ, what describes the events stays, the call is on COMMANDS, and a repeat does nothing
/// more; also for an admin that rebuilds its history.
#[tokio::test]
async fn a_workflow_is_erased_and_its_events_stay_known() {
    let mut mesh = Mesh::start(1).await;
    let (first, first_seq) = mesh.event("customer-7", BODY).await;
    let (second, _) = mesh.event("customer-7", BODY).await;
    mesh.event("customer-8", r#"{"mail":"john@example.org"}"#).await;
    mesh.dead_letter("customer-7", first, first_seq, 0).await;
    assert!(holds(&mesh, "EVENTS", "jane").await && holds(&mesh, DLQ_STREAM, "jane").await);
    let planned =
        erase(&mesh, v1::EraseEventsRequest { dry_run: true, ..of_workflow("customer-7", "") }).await.unwrap();
    assert_eq!((planned.selected, planned.erased), (2, 0));
    let erased = erase(&mesh, of_workflow("customer-7", "gdpr-1")).await.unwrap();
    assert_eq!((erased.selected, erased.erased, erased.copies, erased.has_more), (2, 2, 1, false), "{erased:?}");
    assert!(!holds(&mesh, "EVENTS", "jane").await && !holds(&mesh, DLQ_STREAM, "jane").await);
    assert!(holds(&mesh, "EVENTS", "john").await, "others keep theirs");

    let again = erase(&mesh, of_workflow("customer-7", "gdpr-1")).await.unwrap();
    assert_eq!((again.selected, again.erased), (2, 0), "a repeat");
    let other = erase(&mesh, of_workflow("customer-8", "gdpr-1")).await.unwrap();
    assert_eq!(other.selected, 2, "the id names the first call");
    assert!(holds(&mesh, "EVENTS", "john").await);
    let stored = direct::range(&mesh.connection, "COMMANDS", StreamSeq(1), ">", 10, 1 << 20).await.unwrap();
    let recorded: Vec<internal::Command> = stored.iter().filter_map(weft_nats::records::decode).collect();
    assert!(recorded.iter().all(|command| command.operator == "bootstrap" && command.reason == "asked for"));
    assert_eq!(recorded.len(), 2, "what is to be erased, and that it is");

    for rebuilt in [false, true] {
        if rebuilt {
            mesh.restart_admin(|folder| std::fs::remove_file(folder.join("history.redb")).unwrap()).await;
        }
        for (id, number) in [(first, 1), (second, 2)] {
            let told = eventually(PATIENCE, async || get(&mesh, id).await.status().word() == "erased").await;
            assert!(told, "{:?}", get(&mesh, id).await);
            let event = get(&mesh, id).await.event.unwrap();
            assert!(event.erased && event.data == b"null"[..], "{event:?}");
            assert_eq!((event.sequence_number, event.workflow_id.as_str()), (number, "customer-7"));
        }
        assert_eq!(get(&mesh, second).await.event.unwrap().previous_event_id, Some(first.to_string()));
        let request = v1::EventsSinceRequest { limit: 10, ..Default::default() };
        let page = mesh.admin.events().events_since(request).await.unwrap().into_inner();
        assert_eq!(page.events.iter().filter(|event| event.erased).count(), 2, "{page:?}");
    }
}

/// Answers of receivers may quote the event: they are not shown any more.
#[tokio::test]
async fn answers_of_receivers_are_not_shown_of_an_erased_event() {
    let mut mesh = Mesh::start(1).await;
    let (id, seq) = mesh.event("w", BODY).await;
    mesh.commit(SHARD, internal::Commit { cursor: seq, attempts: vec![attempt(seq, 0, 1, 0)], ..opening() }).await;
    assert_eq!(get(&mesh, id).await.deliveries[0].attempts[0].response, b"oops");
    let request = v1::EraseEventsRequest { event_ids: vec![id.to_string()], reason: "r".into(), ..Default::default() };
    assert_eq!(erase(&mesh, request).await.unwrap().erased, 1);
    assert!(eventually(PATIENCE, async || get(&mesh, id).await.status().word() == "erased").await);
    let deliveries = get(&mesh, id).await.deliveries;
    let [attempt] = &deliveries[0].attempts[..] else { panic!("one attempt: {deliveries:?}") };
    assert!(attempt.response.is_empty() && attempt.error.is_empty() && attempt.status == 500, "{attempt:?}");
}

/// An admin that ends in the middle, before or behind the record of an event, leaves a call that the next one finishes.
#[tokio::test]
async fn an_interrupted_call_is_finished_by_the_next_admin() {
    let mut mesh = Mesh::start(1).await;
    let (untouched, first) = mesh.event("w", BODY).await;
    let (recorded, second) = mesh.event("w", BODY).await;
    let item =
        |id: EventId, sequence| internal::ErasedItem { sequence, event_id: id.to_vec(), workflow_id: "w".into() };
    let items = vec![item(untouched, first), item(recorded, second)];
    let command = internal::Command {
        request_id: "gdpr-2".into(),
        operator: "ab12cd34".into(),
        reason: "asked for".into(),
        at_ms: Timestamp::now().as_millisecond(),
        action: Some(Action::Erase(internal::EraseEvents { items, ..Default::default() })),
        ..Default::default()
    };
    commands::append(&mesh.connection, mesh.layout, SHARD, &command).await.unwrap();
    let message = direct::get(&mesh.connection, "EVENTS", StreamSeq(second)).await.unwrap().unwrap();
    let event = Event::decode(mesh.layout, &message).unwrap();
    let digest = body_digest(&event.workflow, &event.event_type, &event.payload);
    let stored = StoredEvent { seq: message.seq, stored_at: message.stored_at, event };
    let (operator, reason) = ("ab12cd34".to_owned(), "asked for".to_owned());
    let by = Author { operator, reason, request_id: "gdpr-2".into(), at: Timestamp::now() };
    publish(&mesh.connection, &Erasure::new(stored, digest, None, by).encode(mesh.layout)).await.unwrap();
    mesh.restart_admin(|_| ()).await;
    let gone = eventually(PATIENCE, async || !holds(&mesh, "EVENTS", "jane").await).await;
    assert!(gone, "the rest is erased");
    for id in [untouched, recorded] {
        assert!(eventually(PATIENCE, async || get(&mesh, id).await.status().word() == "erased").await);
    }
    let done = async || {
        let stored = direct::range(&mesh.connection, "COMMANDS", StreamSeq(1), ">", 10, 1 << 20).await.unwrap();
        stored.len() == 2
    };
    assert!(eventually(PATIENCE, done).await, "it is recorded as finished, once");
}

/// Payloads of a source go at their age, those of others stay; metadata stays of all.
#[tokio::test]
async fn payloads_of_a_source_go_after_their_retention() {
    let mut mesh = Mesh::start(1).await;
    let (id, seq) = mesh.event("w", BODY).await;
    let source = get(&mesh, id).await.event.unwrap().source;
    let scheme = v1::verification::Scheme::None(v1::NoneScheme {});
    let retaining = |name: &str, payload_retention_ms| v1::Source {
        name: name.into(),
        verification: Some(v1::Verification { scheme: Some(scheme.clone()) }),
        delivery_id: Some(v1::DeliveryIdRule { from: Some(v1::delivery_id_rule::From::Digest(true)) }),
        payload_retention_ms,
        ..v1::Source::default()
    };
    mesh.kv().put_source(&retaining("other", 1), 0).await.unwrap();
    mesh.kv().put_source(&retaining(&source, 1), 0).await.unwrap();
    assert!(eventually(PATIENCE, async || get(&mesh, id).await.status().word() == "erased").await);
    // The record comes first.
    assert!(eventually(PATIENCE, async || !holds(&mesh, "EVENTS", "jane").await).await);
    let record = direct::get(&mesh.connection, "EVENTS", StreamSeq(seq + 1)).await.unwrap().unwrap();
    let erasure = Erasure::decode(mesh.layout, &record).unwrap();
    assert_eq!((erasure.seq.0, erasure.by.operator.as_str()), (seq, ""), "by no operator");
}

#[tokio::test]
async fn a_request_that_names_nothing_is_refused() {
    let mesh = Mesh::start(1).await;
    let nothing = erase(&mesh, v1::EraseEventsRequest::default()).await;
    assert_eq!(reason(nothing), (Code::InvalidArgument, "BAD_QUERY".into()));
    let unknown = v1::EraseEventsRequest { event_ids: vec![EventId::unique().to_string()], ..Default::default() };
    assert_eq!(reason(erase(&mesh, unknown).await), (Code::NotFound, "UNKNOWN_EVENT".into()));
}

/// An entry of REJECTED under a name.
async fn refuse(mesh: &Mesh, name: &str, entry: v1::Rejected) {
    let entry = v1::Rejected { source: name.into(), ..entry };
    let message = Outgoing {
        subject: rejected(name),
        headers: Default::default(),
        payload: prost::Message::encode_to_vec(&entry).into(),
    };
    publish(&mesh.connection, &message).await.unwrap();
}

/// A refused request is found by what is kept of it: its beginning, it without a secret, or an event in it.
#[tokio::test]
async fn what_is_left_of_refused_requests_goes_too() {
    let mut mesh = Mesh::start(1).await;
    let large = format!(r#"{{"mail":"jane@example.org","pad":"{}"}}"#, "p".repeat(70_000));
    let (id, _) = mesh.event("w", &large).await;
    let (body, body_size) = (large.as_bytes()[..64 << 10].to_vec(), large.len() as u64);
    refuse(&mesh, "shop", v1::Rejected { body, body_size, truncated: true, ..Default::default() }).await;
    let body = format!(r#"{{"type":"order.paid","source":"shop","data":{large}}}"#).into_bytes();
    let body_size = body.len() as u64;
    refuse(&mesh, "_events", v1::Rejected { body, body_size, ..Default::default() }).await;
    let body = large.replace("jane", "john").as_bytes()[..64 << 10].to_vec();
    refuse(&mesh, "shop", v1::Rejected { body, body_size: large.len() as u64, truncated: true, ..Default::default() })
        .await;
    let request = v1::EraseEventsRequest { event_ids: vec![id.to_string()], reason: "r".into(), ..Default::default() };
    let erased = erase(&mesh, request).await.unwrap();
    assert_eq!((erased.erased, erased.rejected), (1, 2), "{erased:?}");
    assert!(!holds(&mesh, REJECTED_STREAM, "jane").await && holds(&mesh, REJECTED_STREAM, "john").await);
}

/// A workflow with more copies of dead letters than one call erases: each call, and its repeat, says that more is left, until
/// nothing is.
#[tokio::test]
async fn a_call_says_when_copies_are_left() {
    let mesh = Mesh::start(1).await;
    let copies = 1..=1_010_u64;
    let made = copies.map(|number| {
        let mut message = event("w", number, BODY).encode(mesh.layout);
        for (header, value) in [("Nats-Msg-Id", format!("copy-{number}")), ("weft-seq", number.to_string())] {
            message.headers.set(header, value);
        }
        let event = event("w", number, BODY);
        message.subject = dead_letter_subject("billing", &event.workflow, event.id, StreamSeq(number), Run::LIVE);
        let connection = mesh.connection.clone();
        async move { publish(&connection, &message).await.unwrap() }
    });
    futures_util::future::join_all(made).await;
    let mut told = Vec::new();
    for id in ["first", "first", "second"] {
        let erased = erase(&mesh, of_workflow("w", id)).await.unwrap();
        told.push((erased.selected, erased.copies, erased.has_more));
    }
    assert_eq!(told, [(1000, 1000, true), (1000, 0, true), (10, 10, false)]);
    assert!(!holds(&mesh, DLQ_STREAM, "jane").await);
}

/// A call of which only a part could be recorded says that more is left.
#[tokio::test]
async fn a_call_that_was_recorded_in_part_says_so() {
    let mut mesh = Mesh::start(1).await;
    let (id, sequence) = mesh.event("w", BODY).await;
    mesh.event("w", BODY).await;
    let items = vec![internal::ErasedItem { sequence, event_id: id.to_vec(), workflow_id: "w".into() }];
    let command = internal::Command {
        request_id: "gdpr-3".into(),
        operator: "bootstrap".into(),
        at_ms: Timestamp::now().as_millisecond(),
        action: Some(Action::Erase(internal::EraseEvents { items, has_more: true, ..Default::default() })),
        ..Default::default()
    };
    commands::append(&mesh.connection, mesh.layout, SHARD, &command).await.unwrap();
    let erased = erase(&mesh, of_workflow("w", "gdpr-3")).await.unwrap();
    assert_eq!((erased.selected, erased.has_more), (1, true), "{erased:?}");
    assert_eq!(erase(&mesh, of_workflow("w", "gdpr-4")).await.unwrap().erased, 1);
}

/// The payloads of a source go with its retention from every stream: copies of dead letters, also of events that EVENTS has
/// dropped, and refused requests.
#[tokio::test]
async fn dead_letters_and_refused_requests_go_after_the_retention() {
    let mut mesh = Mesh::start(1).await;
    let mut ids = Vec::new();
    for _ in 0..2 {
        let (id, seq) = mesh.event("w", BODY).await;
        mesh.dead_letter("w", id, seq, 0).await;
        ids.push((id, seq));
    }
    mesh.drop_events_below(SHARD, ids[1].1).await;
    refuse(&mesh, "shop", v1::Rejected { body: BODY.into(), ..Default::default() }).await;
    refuse(&mesh, "bank", v1::Rejected { body: b"john".into(), ..Default::default() }).await;
    let (id, _) = ids[1];
    let retaining = v1::Source {
        name: get(&mesh, id).await.event.unwrap().source,
        verification: Some(v1::Verification { scheme: Some(v1::verification::Scheme::None(v1::NoneScheme {})) }),
        delivery_id: Some(v1::DeliveryIdRule { from: Some(v1::delivery_id_rule::From::Digest(true)) }),
        payload_retention_ms: 1,
        ..v1::Source::default()
    };
    mesh.kv().put_source(&retaining, 0).await.unwrap();
    for stream in ["EVENTS", DLQ_STREAM, REJECTED_STREAM] {
        assert!(eventually(PATIENCE, async || !holds(&mesh, stream, "jane").await).await, "{stream}");
    }
    assert!(holds(&mesh, REJECTED_STREAM, "john").await, "of another source");
    let request = v1::GetDeadLetterRequest { id: format!("billing:{id}") };
    let dead = mesh.admin.dead_letters().get_dead_letter(request).await.unwrap().into_inner();
    assert!(dead.event.unwrap().erased);
}

/// An erased event is shown in its workflow, in either order and across pages, and does not hide the workflow.
#[tokio::test]
async fn a_workflow_is_shown_with_its_erased_events() {
    let mut mesh = Mesh::start(1).await;
    let billing = v1::Subscription { uid: BILLING.to_vec(), ..subscription("billing", "https://a.example/") };
    mesh.kv().put_subscription(&billing, 0).await.unwrap();
    let mut ids = Vec::new();
    for _ in 0..3 {
        ids.push(mesh.event("w", BODY).await.0);
    }
    let shown = async |newest_first: bool, page_size: u32, erase_between: Option<EventId>| {
        let (mut seen, mut page_token, mut between) = (Vec::new(), String::new(), erase_between);
        loop {
            let workflow_id = "w".to_owned();
            let request = v1::GetWorkflowRequest { workflow_id, newest_first, page_size, page_token };
            let page = mesh.admin.workflows().get_workflow(request).await.unwrap().into_inner();
            seen.extend(page.events.into_iter().map(|event| (event.event.unwrap().sequence_number, event.status)));
            page_token = page.next_page_token;
            if page_token.is_empty() {
                return seen;
            }
            if let Some(id) = between.take() {
                let event_ids = vec![id.to_string()];
                erase(&mesh, v1::EraseEventsRequest { event_ids, ..Default::default() }).await.unwrap();
            }
        }
    };
    let of = |events: [(u64, &str); 3]| {
        events.map(|(number, status)| (number, v1::EventStatus::from_word(status).unwrap().into())).to_vec()
    };
    let whole = of([(3, "pending"), (2, "pending"), (1, "pending")]);
    assert_eq!(shown(true, 0, None).await, whole);
    assert_eq!(shown(true, 1, Some(ids[2])).await, whole, "its token's event is erased in between");
    for page_size in [0, 1] {
        let mut expected = of([(3, "erased"), (2, "pending"), (1, "pending")]);
        assert_eq!(shown(true, page_size, None).await, expected);
        expected.reverse();
        assert_eq!(shown(false, page_size, None).await, expected);
    }
    // Its newest message is the record of an erasure: the workflow is known all the same.
    let pause = v1::PauseLaneRequest { subscription: "billing".into(), workflow_id: "w".into(), ..Default::default() };
    let mut client = mesh.admin.workflows();
    let pausing = tokio::spawn(async move { client.pause_lane(pause).await });
    let is_ordered = async || {
        let stored = direct::range(&mesh.connection, "COMMANDS", StreamSeq(1), ">", 10, 1 << 20).await.unwrap();
        let commands = stored.iter().filter_map(weft_nats::records::decode::<internal::Command>);
        commands.into_iter().any(|command| matches!(command.action, Some(Action::Lane(_))))
    };
    assert!(eventually(PATIENCE, is_ordered).await, "{:?}", pausing.await);
    pausing.abort();
}
