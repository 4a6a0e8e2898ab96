//! `EraseEvents`: what is removed, what stays, and what an interrupted call leaves.

use jiff::Timestamp;
use tonic::Code;
use weft_index::receipts::body_digest;
use weft_nats::{
    append::publish,
    commands, direct,
    erasure::{Author, Erasure},
    event::{Event, StoredEvent},
    subject::DLQ_STREAM,
};
use weft_proto::{
    ids::{EventId, ShardId, StreamSeq},
    internal::{self, command::Action},
    v1,
};
use weft_testkit::eventually;

use crate::mesh::{Mesh, PATIENCE, attempt, opening, reason};

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
            let told = eventually(PATIENCE, async || get(&mesh, id).await.status == "erased").await;
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
    assert!(eventually(PATIENCE, async || get(&mesh, id).await.status == "erased").await);
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
        action: Some(Action::Erase(internal::EraseEvents { items, done: false })),
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
        assert!(eventually(PATIENCE, async || get(&mesh, id).await.status == "erased").await);
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
    assert!(eventually(PATIENCE, async || get(&mesh, id).await.status == "erased").await);
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
