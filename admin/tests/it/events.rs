//! `EventService`: what became of an event, pages, tails.

use std::collections::BTreeMap;

use tonic::Code;
use weft_nats::cursor::Cursor;
use weft_proto::{
    ids::{EventId, ShardId, StreamSeq},
    internal::{self, OutcomeKind},
    v1,
    words::Word as _,
};

use crate::mesh::{BILLING, Mesh, PATIENCE, attempt, opening, outcome, reason};

const SHARD: ShardId = ShardId(0);

async fn get(mesh: &Mesh, id: EventId) -> Result<v1::GetEventResponse, tonic::Status> {
    let request = v1::GetEventRequest { event_id: id.to_string(), source: String::new() };
    mesh.admin.events().get_event(request).await.map(tonic::Response::into_inner)
}

async fn since(mesh: &Mesh, since: &str, limit: u32) -> Result<v1::EventsSinceResponse, tonic::Status> {
    let request = v1::EventsSinceRequest { since: since.into(), limit, filter: None };
    mesh.admin.events().events_since(request).await.map(tonic::Response::into_inner)
}

/// P5: an event's history says what became of it, at every moment.
#[tokio::test]
async fn an_event_is_told_with_its_deliveries_and_attempts() {
    let mut mesh = Mesh::start(1).await;
    let (id, seq) = mesh.event("order-1", r#"{ "b" : 1.0 }"#).await;
    let fresh = get(&mesh, id).await.unwrap();
    assert_eq!((fresh.status().word(), fresh.deliveries.len()), ("pending", 0));
    let event = fresh.event.unwrap();
    assert_eq!(&event.data[..], br#"{ "b" : 1.0 }"#, "untouched");
    assert_eq!((event.sequence_number, event.workflow_id.as_str()), (1, "order-1"));
    assert_eq!((event.previous_event_id, event.delivery_id.as_deref()), (None, Some("order-1-1")));
    assert_eq!(event.time.unwrap().nanos, 123_000_000);

    let lane = internal::Lane {
        subscription: BILLING.to_vec(),
        workflow_id: "order-1".into(),
        next: seq,
        last: seq,
        attempts: 1,
        state: internal::LaneState::Open.into(),
        ..Default::default()
    };
    let failed = internal::Commit {
        cursor: seq,
        attempts: vec![attempt(seq, 0, 1, 1_700_000_060_000)],
        lanes: vec![lane],
        ..opening()
    };
    mesh.commit(SHARD, failed).await;
    let retrying = get(&mesh, id).await.unwrap();
    assert_eq!(retrying.status().word(), "retrying");
    assert_eq!(retrying.deliveries[0].next_attempt_at.unwrap().seconds, 1_700_000_060);

    let delivered = internal::Commit {
        cursor: seq,
        attempts: vec![internal::Attempt {
            class: v1::AttemptClass::Delivered.into(),
            status: 204,
            ..attempt(seq, 0, 2, 0)
        }],
        outcomes: vec![internal::Outcome { attempts: 2, ..outcome("order-1", id, seq, 0, OutcomeKind::Delivered) }],
        ..Default::default()
    };
    mesh.commit(SHARD, delivered).await;
    let done = get(&mesh, id).await.unwrap();
    assert_eq!(done.status().word(), "delivered");
    let [delivery] = &done.deliveries[..] else { panic!("one delivery: {done:?}") };
    assert_eq!((delivery.subscription.as_str(), delivery.run, delivery.attempt_count), ("billing", 0, 2));
    assert!(delivery.settled_at.is_some() && delivery.next_attempt_at.is_none());
    let attempts: Vec<_> =
        delivery.attempts.iter().map(|attempt| (attempt.number, attempt.outcome().word(), attempt.status)).collect();
    assert_eq!(attempts, [(1, "http_status", 500), (2, "delivered", 204)]);
    assert_eq!(delivery.attempts[0].response, b"oops");

    let unknown = get(&mesh, EventId::unique()).await;
    assert_eq!(reason(unknown), (Code::NotFound, "UNKNOWN_EVENT".into()));
    let nothing = mesh.admin.events().get_event(v1::GetEventRequest::default()).await;
    assert_eq!(reason(nothing), (Code::InvalidArgument, "BAD_QUERY".into()));
}

/// Pages over several shards contain each event once, continue after an event id, and refuse an invalid position.
#[tokio::test]
async fn pages_continue_after_cursors_and_event_ids() {
    let mut mesh = Mesh::start(3).await;
    let mut ids = Vec::new();
    for _ in 0..4 {
        for workflow in ["a", "b", "c"] {
            ids.push(mesh.event(workflow, "{}").await.0.to_string());
        }
    }
    let mut seen = Vec::new();
    let mut cursor = String::new();
    loop {
        let page = since(&mesh, &cursor, 5).await.unwrap();
        assert!(page.events.len() <= 5);
        seen.extend(page.events.into_iter().map(|event| event.event_id));
        cursor = page.next_cursor;
        if !page.has_more {
            break;
        }
    }
    assert_eq!(seen, ids, "in the order in which they were stored");
    let behind_last = since(&mesh, &cursor, 5).await.unwrap();
    assert!(behind_last.events.is_empty() && !behind_last.has_more);

    let request = v1::EventsSinceRequest {
        since: ids[0].clone(),
        filter: Some(v1::EventFilter { workflow_id: "a".into(), ..Default::default() }),
        limit: 0,
    };
    let of_a = mesh.admin.events().events_since(request).await.unwrap().into_inner();
    let numbers: Vec<_> = of_a.events.iter().map(|event| event.sequence_number).collect();
    assert_eq!(numbers, [2, 3, 4], "behind its first");

    let unknown = since(&mesh, &EventId::unique().to_string(), 5).await;
    assert_eq!(reason(unknown), (Code::OutOfRange, "CURSOR_EXPIRED".into()));
    let beyond = Cursor::new(mesh.layout, [StreamSeq(900); 3]).to_string();
    assert_eq!(reason(since(&mesh, &beyond, 5).await), (Code::OutOfRange, "CURSOR_EXPIRED".into()));
    assert_eq!(reason(since(&mesh, "7", 5).await), (Code::InvalidArgument, "BAD_CURSOR".into()));
    assert_eq!(reason(since(&mesh, "", 1001).await), (Code::InvalidArgument, "BAD_QUERY".into()));
}

/// A tail holds history and what comes, without gap or repeat, also when the server is killed meanwhile.
#[tokio::test]
async fn a_tail_goes_on_through_a_restart_of_the_server() {
    let mut mesh = Mesh::start(2).await;
    for _ in 0..20 {
        for workflow in ["a", "b"] {
            mesh.event(workflow, "{}").await;
        }
    }
    let request = v1::TailEventsRequest { from_beginning: true, ..Default::default() };
    let mut tail = mesh.admin.events().tail_events(request).await.unwrap().into_inner();
    let mut numbers: BTreeMap<String, Vec<u64>> = BTreeMap::new();
    let mut cursor = String::new();
    for read in 0..80 {
        if read == 40 {
            mesh.server.kill();
            mesh.server.restart().await;
            mesh.connection.connected().await;
            for _ in 0..20 {
                for workflow in ["a", "b"] {
                    mesh.event(workflow, "{}").await;
                }
            }
        }
        let response = tokio::time::timeout(PATIENCE, tail.message()).await.expect("in time").unwrap().unwrap();
        let event = response.event.unwrap();
        numbers.entry(event.workflow_id).or_default().push(event.sequence_number);
        cursor = response.cursor;
    }
    let expected: Vec<u64> = (1..=40).collect();
    assert_eq!(numbers, BTreeMap::from([("a".to_owned(), expected.clone()), ("b".to_owned(), expected)]));
    drop(tail);

    // Its cursor continues exactly, also with a filter.
    let filter = Some(v1::EventFilter { workflow_id: "b".into(), ..Default::default() });
    let request = v1::TailEventsRequest { since: cursor, filter, from_beginning: false };
    let mut tail = mesh.admin.events().tail_events(request).await.unwrap().into_inner();
    mesh.event("a", "{}").await;
    mesh.event("b", "{}").await;
    let next = tokio::time::timeout(PATIENCE, tail.message()).await.expect("in time").unwrap().unwrap();
    assert_eq!(next.event.unwrap().sequence_number, 41);

    // A draining admin ends its streams and says so.
    mesh.admin.drain.cancel();
    let last = tokio::time::timeout(PATIENCE, tail.message()).await.expect("in time");
    assert_eq!(reason(last), (Code::Unavailable, "DRAINING".into()));
    mesh.admin.stop().await.unwrap();
}

/// A position that retention has dropped is refused, never skipped.
#[tokio::test]
async fn an_expired_position_is_refused() {
    let mut mesh = Mesh::start(1).await;
    let (first, _) = mesh.event("a", "{}").await;
    let (second, seq) = mesh.event("a", "{}").await;
    mesh.event("a", "{}").await;
    let cursor = since(&mesh, "", 1).await.unwrap().next_cursor;
    mesh.drop_events_below(SHARD, seq + 1).await;
    for expired in [cursor.clone(), first.to_string()] {
        assert_eq!(reason(since(&mesh, &expired, 5).await), (Code::OutOfRange, "CURSOR_EXPIRED".into()));
        let request = v1::TailEventsRequest { since: expired, ..Default::default() };
        let tail = mesh.admin.events().tail_events(request).await;
        assert_eq!(reason(tail), (Code::OutOfRange, "CURSOR_EXPIRED".into()));
    }
    let rest = since(&mesh, &second.to_string(), 5).await.unwrap();
    assert_eq!(rest.events.len(), 1, "what follows the event is still there");
    assert_eq!(reason(get(&mesh, first).await), (Code::NotFound, "UNKNOWN_EVENT".into()));
}
