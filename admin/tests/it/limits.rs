//! Keys that are limited to some workflows or sources: the answers of every method show nothing of others.

use std::collections::{BTreeMap, BTreeSet};

use prost::Message;
use prost_types::FileDescriptorSet;
use tonic::{Code, Response, Status};
use weft_admin::auth::methods::{Access, Limits, access};
use weft_nats::{event::Event, message::Outgoing, subject::rejected};
use weft_proto::{
    ids::{EventId, ShardId},
    internal,
    v1::{
        self, DeadLetterField, Scope, dead_letter_service_client::DeadLetterServiceClient,
        event_service_client::EventServiceClient, rejected_service_client::RejectedServiceClient,
        replay_service_client::ReplayServiceClient, workflow_service_client::WorkflowServiceClient,
    },
};
use weft_testkit::eventually;

use crate::{
    catalog::{refused, subscription},
    mesh::{BILLING, Mesh, PATIENCE, TOKEN, attempt, bearer, event, opening},
};

const SHARD: ShardId = ShardId(0);

/// Something that a key must not see.
struct Hidden {
    workflow: &'static str,
    /// In everything that was sent and answered.
    word: &'static str,
    dead: EventId,
    head: EventId,
}

impl Hidden {
    fn is_in(&self, answer: &[u8]) -> bool {
        let marks = [self.word.to_owned(), self.dead.to_string(), self.head.to_string()];
        marks.iter().any(|mark| answer.windows(mark.len()).any(|part| part == mark.as_bytes()))
    }
}

/// A workflow whose last two events are of this source: a dead letter, and a blocked head whose receiver has quoted it.
async fn stuck(mesh: &mut Mesh, workflow: &'static str, source: &str, word: &'static str, first: u64) -> Hidden {
    let mut places = Vec::new();
    for number in [first, first + 1] {
        let payload = format!(r#"{{"n":"{word}"}}"#);
        let event = Event { source: source.into(), ..event(workflow, number, &payload) };
        places.push((event.id, mesh.put(&event).await));
    }
    let [(dead, dead_seq), (head, seq)] = places[..] else { panic!("two") };
    mesh.dead_letter(workflow, dead, dead_seq, 0).await;
    let quoted = internal::Attempt { response: word.into(), ..attempt(seq, 0, 1, 0) };
    let lane = internal::Lane {
        subscription: BILLING.to_vec(),
        workflow_id: workflow.into(),
        next: seq,
        last: seq,
        attempts: 1,
        state: internal::LaneState::Blocked.into(),
        ..Default::default()
    };
    let commit = internal::Commit { cursor: seq, lanes: vec![lane], attempts: vec![quoted], ..opening() };
    mesh.commit(SHARD, commit).await;
    Hidden { workflow, word, dead, head }
}

async fn key(mesh: &Mesh, wanted: v1::CreateApiKeyRequest) -> String {
    let scopes = vec![Scope::Read.into()];
    let wanted = v1::CreateApiKeyRequest { name: "limited".into(), scopes, ..wanted };
    let key = mesh.admin.catalog().create_api_key(wanted).await.unwrap().into_inner().key;
    let opens = async || {
        let mut client = EventServiceClient::with_interceptor(mesh.admin.channel(), bearer(&key));
        client.events_since(v1::EventsSinceRequest::default()).await.is_ok()
    };
    assert!(eventually(PATIENCE, opens).await);
    key
}

/// The answers of every method that a limited key with scope `read` may call, asked for what is hidden and for all.
async fn answers(mesh: &Mesh, key: &str, hidden: &Hidden) -> BTreeMap<&'static str, Vec<u8>> {
    fn bytes<M: Message>(answer: Result<Response<M>, Status>) -> Vec<u8> {
        answer.map(|answer| answer.into_inner().encode_to_vec()).unwrap_or_default()
    }
    let (channel, bearer) = (mesh.admin.channel(), bearer(key));
    let mut events = EventServiceClient::with_interceptor(channel.clone(), bearer.clone());
    let mut dead_letters = DeadLetterServiceClient::with_interceptor(channel.clone(), bearer.clone());
    let mut workflows = WorkflowServiceClient::with_interceptor(channel.clone(), bearer.clone());
    let mut replays = ReplayServiceClient::with_interceptor(channel.clone(), bearer.clone());
    let mut inbox = RejectedServiceClient::with_interceptor(channel, bearer);
    let workflow_id = hidden.workflow.to_owned();
    let mut seen: BTreeMap<&'static str, Vec<u8>> = BTreeMap::new();
    let mut note = |method, answer: Vec<u8>| seen.entry(method).or_default().extend(answer);

    for contains in [String::new(), hidden.word.to_owned()] {
        let filter = Some(v1::ListEventsFilter { contains, ..Default::default() });
        let request = v1::ListEventsRequest { filter, with_data: true, ..Default::default() };
        note("EventService/ListEvents", bytes(events.list_events(request).await));
    }
    let beginning = hidden.head.to_string()[..13].to_owned();
    for event_id in [hidden.head.to_string(), beginning, format!("{}-2", hidden.workflow)] {
        let request = v1::GetEventRequest { event_id, ..Default::default() };
        note("EventService/GetEvent", bytes(events.get_event(request).await));
    }
    note("EventService/EventsSince", bytes(events.events_since(v1::EventsSinceRequest::default()).await));
    let tail = v1::TailEventsRequest { from_beginning: true, ..Default::default() };
    let mut tail = events.tail_events(tail).await.unwrap().into_inner();
    loop {
        let next = tail.message().await.unwrap().unwrap();
        let is_last = next.event.as_ref().is_some_and(|event| event.workflow_id == "order-9");
        note("EventService/TailEvents", next.encode_to_vec());
        if is_last {
            break;
        }
    }

    let request = v1::ListDeadLettersRequest::default();
    note("DeadLetterService/ListDeadLetters", bytes(dead_letters.list_dead_letters(request).await));
    for id in [format!("billing:{}", hidden.dead), hidden.dead.to_string()] {
        let request = v1::GetDeadLetterRequest { id };
        note("DeadLetterService/GetDeadLetter", bytes(dead_letters.get_dead_letter(request).await));
    }
    let group_by = vec![DeadLetterField::Workflow.into(), DeadLetterField::Source.into()];
    let request = v1::DeadLetterStatsRequest { group_by, ..Default::default() };
    note("DeadLetterService/DeadLetterStats", bytes(dead_letters.dead_letter_stats(request).await));

    for newest_first in [false, true] {
        for page_size in [0, 1] {
            let whole = v1::GetWorkflowRequest { newest_first, page_size, ..Default::default() };
            let request = v1::GetWorkflowRequest { workflow_id: workflow_id.clone(), ..whole };
            let first = mesh.admin.workflows().get_workflow(request.clone()).await.unwrap().into_inner();
            let second = v1::GetWorkflowRequest { page_token: first.next_page_token, ..request.clone() };
            for request in [request, second] {
                note("WorkflowService/GetWorkflow", bytes(workflows.get_workflow(request).await));
            }
        }
    }
    for workflow_id in [String::new(), workflow_id.clone()] {
        let request = v1::ListLanesRequest { workflow_id, ..Default::default() };
        note("WorkflowService/ListLanes", bytes(workflows.list_lanes(request).await));
    }

    let of_ids = v1::ReplaySelection { event_ids: vec![hidden.head.to_string()], ..Default::default() };
    let all = v1::ReplaySelection { all: true, ..Default::default() };
    for selection in [of_ids, all] {
        let request = v1::PlanReplayRequest { selection: Some(selection) };
        note("ReplayService/PlanReplay", bytes(replays.plan_replay(request).await));
    }

    note("RejectedService/ListRejected", bytes(inbox.list_rejected(v1::ListRejectedRequest::default()).await));
    for id in ["1", "2"] {
        let request = v1::GetRejectedRequest { id: id.into() };
        note("RejectedService/GetRejected", bytes(inbox.get_rejected(request).await));
    }
    seen
}

/// The methods that enforce limits, of scope `read`.
fn limited_methods() -> BTreeSet<String> {
    let files = FileDescriptorSet::decode(weft_proto::FILE_DESCRIPTOR_SET).unwrap().file;
    let services = files.iter().filter(|file| file.package() == "weft.v1").flat_map(|file| &file.service);
    let names = services.flat_map(|service| {
        service.method.iter().map(|method| format!("{}/{}", service.name(), method.name())).collect::<Vec<_>>()
    });
    let reads = |name: &String| access(&format!("/weft.v1.{name}")) == Access::Key(Scope::Read, Limits::Enforced);
    names.filter(reads).collect()
}

/// No answer shows a limited key an event, payload, id or answer of a receiver outside of its limits; a key without limits is
/// shown them by the same calls.
#[tokio::test]
async fn no_answer_shows_a_limited_key_what_is_not_its_own() {
    let mut mesh = Mesh::start(1).await;
    let billing = v1::Subscription { uid: BILLING.to_vec(), ..subscription("billing", "https://a.example/") };
    mesh.kv().put_subscription(&billing, 0).await.unwrap();
    let hush = stuck(&mut mesh, "hush-1", "shop", "hush", 1).await;
    mesh.event("order-2", r#"{"n":"mine"}"#).await;
    let vault = stuck(&mut mesh, "order-2", "vault", "vault", 2).await;
    mesh.event("order-9", r#"{"n":"mine"}"#).await;
    for source in ["shop", "vault"] {
        let entry = v1::Rejected { source: source.into(), body: source.into(), ..Default::default() };
        let message =
            Outgoing { subject: rejected(source), headers: Default::default(), payload: entry.encode_to_vec().into() };
        assert!(weft_nats::append::publish_once(&mesh.connection, &message).await.unwrap());
    }
    let of_orders = v1::CreateApiKeyRequest { workflow_prefixes: vec!["order-".into()], ..Default::default() };
    let of_orders = key(&mesh, of_orders).await;
    let of_shop = key(&mesh, v1::CreateApiKeyRequest { sources: vec!["shop".into()], ..Default::default() }).await;

    for (limited, hidden) in [(&of_orders, &hush), (&of_shop, &vault)] {
        let (seen, all) = (answers(&mesh, limited, hidden).await, answers(&mesh, TOKEN, hidden).await);
        let asked: BTreeSet<String> = seen.keys().map(|name| (*name).to_owned()).collect();
        assert_eq!(asked, limited_methods(), "every method is asked");
        let shown: Vec<_> = seen.iter().filter(|(_, answer)| hidden.is_in(answer)).map(|(name, _)| *name).collect();
        assert_eq!(shown, Vec::<&str>::new(), "show {}", hidden.word);
        let without: Vec<_> = all.iter().filter(|(_, answer)| !hidden.is_in(answer)).map(|(name, _)| *name).collect();
        // The inbox knows no workflows.
        let inbox = |name: &&&str| !(name.starts_with("RejectedService") && hidden.word == "hush");
        assert_eq!(without.iter().filter(inbox).collect::<Vec<_>>(), Vec::<&&str>::new(), "say nothing to anyone");
    }

    // A workflow outside of the limits is as unknown as one that does not exist.
    let get =
        |workflow: &str| v1::GetWorkflowRequest { workflow_id: workflow.into(), page_size: 1, ..Default::default() };
    let mut client = WorkflowServiceClient::with_interceptor(mesh.admin.channel(), bearer(&of_orders));
    refused(client.get_workflow(get("hush-1")).await, Code::NotFound, "NOT_FOUND");
    let of_vault = v1::CreateApiKeyRequest { sources: vec!["vault".into()], ..Default::default() };
    let of_vault = key(&mesh, of_vault).await;
    let mut client = WorkflowServiceClient::with_interceptor(mesh.admin.channel(), bearer(&of_vault));
    refused(client.get_workflow(get("hush-1")).await, Code::NotFound, "NOT_FOUND");
    assert!(client.get_workflow(get("order-2")).await.is_ok(), "it has events of the source");
}

async fn client_of(mesh: &Mesh, scope: Scope) -> (v1::ApiKey, String) {
    let wanted = v1::CreateApiKeyRequest { name: "one".into(), scopes: vec![scope.into()], ..Default::default() };
    let made = mesh.admin.catalog().create_api_key(wanted).await.unwrap().into_inner();
    (made.view.unwrap().key.unwrap(), made.key)
}

/// A reading key takes its part of the streams only, and all reading keys leave some: operators watch and redrive all the same.
#[tokio::test]
async fn reading_keys_leave_streams_to_operators() {
    let mut mesh = Mesh::start(1).await;
    mesh.event("order-1", "{}").await;
    let mut open = Vec::new();
    for part in [32, 16] {
        let reader = key(&mesh, v1::CreateApiKeyRequest::default()).await;
        let mut client = EventServiceClient::with_interceptor(mesh.admin.channel(), bearer(&reader));
        for _ in 0..part {
            open.push(client.tail_events(v1::TailEventsRequest::default()).await.unwrap());
        }
        let next = client.tail_events(v1::TailEventsRequest::default()).await.map(drop);
        refused(next, Code::Unavailable, "OVERLOADED");
    }
    assert!(mesh.admin.stats().watch_stats(v1::WatchStatsRequest::default()).await.is_ok());
    let all = v1::RedriveDeadLettersRequest { all: true, dry_run: true, ..Default::default() };
    assert!(mesh.admin.dead_letters().redrive_dead_letters(all).await.is_ok());
}

/// The progress of a redrive ends with the key that asked for it, and goes to no other key that knows the request id.
#[tokio::test]
async fn a_redrive_is_followed_by_its_operator_while_the_key_holds() {
    let mut mesh = Mesh::start(1).await;
    let (id, seq) = mesh.event("order-1", "{}").await;
    mesh.dead_letter("order-1", id, seq, 0).await;
    let (made, mine) = client_of(&mesh, Scope::Operate).await;
    let (_, other) = client_of(&mesh, Scope::Operate).await;
    let redrive = async |key: &str, ids: Vec<String>| {
        let mut client = DeadLetterServiceClient::with_interceptor(mesh.admin.channel(), bearer(key));
        let all = ids.is_empty();
        let request = v1::RedriveDeadLettersRequest { ids, all, request_id: "mine".into(), ..Default::default() };
        client.redrive_dead_letters(request).await.map(Response::into_inner)
    };
    let is_known = async || {
        let request = v1::ListDeadLettersRequest::default();
        let mut client = DeadLetterServiceClient::with_interceptor(mesh.admin.channel(), bearer(&other));
        client.list_dead_letters(request).await.is_err_and(|status| status.code() == Code::PermissionDenied)
    };
    assert!(eventually(PATIENCE, is_known).await, "the newer key is known");
    let mut followed = redrive(&mine, vec![format!("billing:{id}")]).await.unwrap();
    assert_eq!(followed.message().await.unwrap().unwrap().selected, 1);
    refused(redrive(&other, vec![]).await.map(drop), Code::AlreadyExists, "ID_REUSED");
    mesh.admin.catalog().delete_api_key(v1::DeleteApiKeyRequest { id: made.id, ..Default::default() }).await.unwrap();
    let last = tokio::time::timeout(PATIENCE, followed.message()).await.expect("the stream ends");
    refused(last, Code::Unauthenticated, "KEY_INVALID");
}
