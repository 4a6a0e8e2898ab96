//! `ListEvents`: events by filters, by text in payloads, by delivery id and by the beginning of an id.

use tonic::Code;
use weft_nats::event::Event;
use weft_proto::{
    ids::{EventId, ShardId},
    internal::{self, OutcomeKind},
    v1::{self, Scope, event_service_client::EventServiceClient},
    words::Word as _,
};
use weft_testkit::eventually;

use crate::mesh::{Mesh, PATIENCE, attempt, bearer, event, opening, outcome, reason};

const SHARD: ShardId = ShardId(0);

async fn list(mesh: &Mesh, request: v1::ListEventsRequest) -> Result<v1::ListEventsResponse, tonic::Status> {
    mesh.admin.events().list_events(request).await.map(tonic::Response::into_inner)
}

fn by(filter: v1::ListEventsFilter) -> v1::ListEventsRequest {
    v1::ListEventsRequest { filter: Some(filter), ..Default::default() }
}

fn numbers(page: &v1::ListEventsResponse) -> Vec<u64> {
    page.events.iter().map(|listed| listed.event.as_ref().unwrap().sequence_number).collect()
}

/// P5: events are found by what they are and by what became of them, each with its deliveries and the receiver's words.
#[tokio::test]
async fn events_are_found_by_what_became_of_them() {
    let mut mesh = Mesh::start(1).await;
    let mut ids = Vec::new();
    for _ in 0..6 {
        ids.push(mesh.event("order-1", r#"{ "b" : 1.0 }"#).await);
    }
    let [(delivered, first), (failing, second), ..] = ids[..] else { panic!("six events") };
    let lane = internal::Lane {
        subscription: crate::mesh::BILLING.to_vec(),
        workflow_id: "order-1".into(),
        next: second,
        last: ids[5].1,
        attempts: 1,
        state: internal::LaneState::Open.into(),
        ..Default::default()
    };
    let commit = internal::Commit {
        cursor: ids[5].1,
        outcomes: vec![outcome("order-1", delivered, first, 0, OutcomeKind::Delivered)],
        attempts: vec![internal::Attempt {
            event_id: failing.to_vec(),
            started_at_ms: 1_700_000_000_000,
            connected_ms: Some(7),
            answered_ms: Some(40),
            ..attempt(second, 0, 1, 1_700_000_060_000)
        }],
        lanes: vec![lane],
        ..opening()
    };
    mesh.commit(SHARD, commit).await;

    let all = list(&mesh, v1::ListEventsRequest::default()).await.unwrap();
    assert_eq!(numbers(&all), [6, 5, 4, 3, 2, 1], "the newest first");
    assert!(
        all.events.iter().all(|listed| listed.event.as_ref().unwrap().data.is_empty() && listed.stored_at.is_some())
    );
    let of_status =
        |status: v1::EventStatus| by(v1::ListEventsFilter { statuses: vec![status.into()], ..Default::default() });
    let retrying = list(&mesh, of_status(v1::EventStatus::Retrying)).await.unwrap();
    let [listed] = &retrying.events[..] else { panic!("{retrying:?}") };
    assert_eq!((listed.status().word(), &listed.deliveries[0].attempts[0].response[..]), ("retrying", &b"oops"[..]));
    let made = &listed.deliveries[0].attempts[0];
    let after = |time: &Option<prost_types::Timestamp>| time.unwrap().nanos / 1_000_000;
    assert_eq!((after(&made.connected_at), after(&made.answered_at)), (7, 40), "the stages of an attempt");
    assert_eq!(numbers(&list(&mesh, of_status(v1::EventStatus::Delivered)).await.unwrap()), [1]);
    assert_eq!(numbers(&list(&mesh, of_status(v1::EventStatus::Pending)).await.unwrap()), [6, 5, 4, 3]);
    let refused = list(&mesh, of_status(v1::EventStatus::Unspecified)).await;
    assert_eq!(reason(refused), (Code::InvalidArgument, "BAD_QUERY".into()));

    // Pages continue after the last entry shown; events that arrive meanwhile are not on them.
    let first_page =
        list(&mesh, v1::ListEventsRequest { page_size: 2, with_data: true, ..Default::default() }).await.unwrap();
    assert_eq!(&first_page.events[0].event.as_ref().unwrap().data[..], br#"{ "b" : 1.0 }"#, "untouched");
    mesh.event("order-1", "{}").await;
    let page_token = first_page.next_page_token;
    let next = v1::ListEventsRequest { page_token: page_token.clone(), ..Default::default() };
    assert_eq!(numbers(&list(&mesh, next).await.unwrap()), [4, 3, 2, 1]);
    let other_order = v1::ListEventsRequest { page_token, oldest_first: true, ..Default::default() };
    assert_eq!(reason(list(&mesh, other_order).await), (Code::InvalidArgument, "BAD_QUERY".into()));

    // The lane says how many wait behind its head, and what was answered.
    let request = v1::ListLanesRequest::default();
    let lanes = mesh.admin.workflows().list_lanes(request).await.unwrap().into_inner().lanes;
    assert_eq!((lanes[0].waiting_events, lanes[0].head_sequence_number), (4, 2));
    assert_eq!(&lanes[0].last_response[..], b"oops");
}

/// Text in payloads is looked for in the log, a bounded part at a time, with how far that is.
#[tokio::test]
async fn text_in_payloads_is_found_page_by_page() {
    let mut mesh = Mesh::start(3).await;
    for number in 0..30 {
        for workflow in ["a", "b", "c"] {
            let payload = if number % 10 == 3 { r#"{"card":"needle-9"}"# } else { "{}" };
            mesh.event(workflow, payload).await;
        }
    }
    let filter = v1::ListEventsFilter { contains: "needle-".into(), ..Default::default() };
    let (mut found, mut scanned, mut page_token) = (Vec::new(), 0, String::new());
    loop {
        let request = v1::ListEventsRequest { page_size: 2, page_token, ..by(filter.clone()) };
        let page = list(&mesh, request).await.unwrap();
        let search = page.search.unwrap();
        scanned += search.scanned;
        assert!(search.reached.is_some() || search.scanned == 0);
        found.extend(page.events.into_iter().map(|listed| {
            let event = listed.event.unwrap();
            (event.workflow_id, event.sequence_number)
        }));
        page_token = page.next_page_token;
        if page_token.is_empty() {
            break;
        }
    }
    found.sort();
    let expected: Vec<_> =
        ["a", "b", "c"].into_iter().flat_map(|of| [4, 14, 24].map(|number| (of.to_owned(), number))).collect();
    assert_eq!(found, expected);
    assert!((90..120).contains(&scanned), "each event is read about once: {scanned}");
    let too_long = v1::ListEventsFilter { contains: "x".repeat(300), ..Default::default() };
    assert_eq!(reason(list(&mesh, by(too_long)).await), (Code::InvalidArgument, "BAD_QUERY".into()));
}

/// An event is found by its id, by the beginning of its id, and by the sender's delivery id.
#[tokio::test]
async fn an_event_has_several_names() {
    let mut mesh = Mesh::start(2).await;
    let (id, _) = mesh.event("order-1", "{}").await;
    mesh.event("order-2", "{}").await;
    let named = async |text: &str, source: &str| {
        let request = v1::GetEventRequest { event_id: text.to_owned(), source: source.to_owned() };
        let answer = mesh.admin.events().get_event(request).await;
        answer.map(|answer| answer.into_inner().event.unwrap().event_id)
    };
    let text = id.to_string();
    for name in [&text, &text[..8], &text[..20], "order-1-1"] {
        assert_eq!(named(name, "").await.unwrap(), text, "{name}");
    }
    assert_eq!(named("order-1-1", weft_testkit::event::SOURCE).await.unwrap(), text);
    for unknown in ["order-1-9", "00000000", &text[..7]] {
        assert_eq!(reason(named(unknown, "").await), (Code::NotFound, "UNKNOWN_EVENT".into()), "{unknown}");
    }
    assert_eq!(reason(named("order-1-1", "bank").await), (Code::NotFound, "UNKNOWN_EVENT".into()));
    for filter in [
        v1::ListEventsFilter { event_id: text[..9].to_owned(), ..Default::default() },
        v1::ListEventsFilter { delivery_id: "order-1-1".into(), ..Default::default() },
        v1::ListEventsFilter { delivery_id: "order-1-1".into(), source: "shop".into(), ..Default::default() },
    ] {
        let page = list(&mesh, by(filter)).await.unwrap();
        assert_eq!(page.events.len(), 1);
        assert_eq!(page.events[0].event.as_ref().unwrap().event_id, text);
    }
}

/// The beginning of an id names all events of a minute where ids hold the time: every one is listed, page by page; and a limited key
/// finds its own event among those of others.
#[tokio::test]
async fn the_beginning_of_an_id_names_every_event_that_begins_so() {
    const BEGINNING: &str = "01234567";
    let mut mesh = Mesh::start(1).await;
    for number in 1..=12 {
        let workflow = if number == 7 { "own-1" } else { "other-1" };
        let mut id = [number as u8; 16];
        id[..4].copy_from_slice(&[0x01, 0x23, 0x45, 0x67]);
        mesh.put(&Event { id: EventId::from_bytes(id), ..event(workflow, number, "{}") }).await;
    }
    mesh.event("order-1", "{}").await;
    let filter = Some(v1::ListEventsFilter { event_id: BEGINNING.into(), ..Default::default() });
    let (mut seen, mut page_token) = (Vec::new(), String::new());
    loop {
        let request = v1::ListEventsRequest { filter: filter.clone(), page_size: 5, page_token, ..Default::default() };
        let page = list(&mesh, request).await.unwrap();
        seen.extend(numbers(&page));
        page_token = page.next_page_token;
        if page_token.is_empty() {
            break;
        }
    }
    assert_eq!(seen, (1..=12).rev().collect::<Vec<u64>>());
    let get = || v1::GetEventRequest { event_id: BEGINNING.into(), ..Default::default() };
    let ambiguous = mesh.admin.events().get_event(get()).await;
    assert_eq!(reason(ambiguous), (Code::InvalidArgument, "BAD_QUERY".into()));

    let wanted = v1::CreateApiKeyRequest {
        name: "own".into(),
        scopes: vec![Scope::Read.into()],
        workflow_prefixes: vec!["own-".into()],
        ..Default::default()
    };
    let key = mesh.admin.catalog().create_api_key(wanted).await.unwrap().into_inner().key;
    let mut client = EventServiceClient::with_interceptor(mesh.admin.channel(), bearer(&key));
    let found = async || {
        let mut client = client.clone();
        client.get_event(get()).await.is_ok_and(|found| found.into_inner().event.unwrap().workflow_id == "own-1")
    };
    assert!(eventually(PATIENCE, found).await, "{:?}", client.get_event(get()).await);
}
