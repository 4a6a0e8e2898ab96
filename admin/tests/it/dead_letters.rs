//! `DeadLetterService`: listed, shown, redriven; and a rebuilt history gives the same answers.

use prost::Message as _;
use tonic::{Code, Streaming};
use weft_nats::{direct, streams};
use weft_proto::{
    ids::{EventId, ShardId, StreamSeq, WorkflowId},
    internal::{self, CommandStatus, OutcomeKind},
    v1,
    words::Word as _,
};

use weft_testkit::eventually;

use crate::{
    catalog::subscription,
    mesh::{BILLING, Mesh, PATIENCE, outcome, reason},
};

const SHARD: ShardId = ShardId(0);

async fn list(mesh: &Mesh, request: v1::ListDeadLettersRequest) -> v1::ListDeadLettersResponse {
    mesh.admin.dead_letters().list_dead_letters(request).await.unwrap().into_inner()
}

async fn statuses(mesh: &Mesh, ids: &[String]) -> Vec<&'static str> {
    let mut statuses = Vec::new();
    for id in ids {
        let request = v1::GetDeadLetterRequest { id: id.clone() };
        let answer = mesh.admin.dead_letters().get_dead_letter(request).await.unwrap().into_inner();
        statuses.push(answer.dead_letter.unwrap().status().word());
    }
    statuses
}

async fn redrive(mesh: &Mesh, request: v1::RedriveDeadLettersRequest) -> Streaming<v1::RedriveDeadLettersResponse> {
    mesh.admin.dead_letters().redrive_dead_letters(request).await.unwrap().into_inner()
}

async fn next(stream: &mut Streaming<v1::RedriveDeadLettersResponse>) -> Option<v1::RedriveDeadLettersResponse> {
    tokio::time::timeout(PATIENCE, stream.message()).await.expect("in time").unwrap()
}

/// Three dead letters of `order-1`, `order-2` and `order-3`, with their ids, events and places.
async fn three(mesh: &mut Mesh) -> (Vec<String>, Vec<(String, EventId, u64)>) {
    let mut places = Vec::new();
    for workflow in ["order-1", "order-2", "order-3"] {
        let (id, seq) = mesh.event(workflow, r#"{"total":1}"#).await;
        mesh.dead_letter(workflow, id, seq, 0).await;
        places.push((workflow.to_owned(), id, seq));
    }
    (places.iter().map(|(_, id, _)| format!("billing:{id}")).collect(), places)
}

async fn commands(mesh: &Mesh, shard: ShardId) -> Vec<(u64, internal::Command)> {
    let stream = mesh.layout.commands_stream(shard);
    let messages = direct::range(&mesh.connection, &stream, StreamSeq(1), ">", 100, 1 << 20).await.unwrap();
    messages.into_iter().map(|message| (message.seq.0, internal::Command::decode(message.payload).unwrap())).collect()
}

#[tokio::test]
async fn dead_letters_are_listed_and_shown() {
    let mut mesh = Mesh::start(1).await;
    let (ids, places) = three(&mut mesh).await;
    let mut listed = Vec::new();
    let mut token = String::new();
    loop {
        let request = v1::ListDeadLettersRequest { page_size: 2, page_token: token, filter: None };
        let page = list(&mesh, request).await;
        listed.extend(page.dead_letters.into_iter().map(|dead| dead.id));
        token = page.next_page_token;
        if token.is_empty() {
            break;
        }
    }
    listed.reverse();
    assert_eq!(listed, ids, "each once, the newest first");

    let filter = v1::DeadLetterFilter { workflow_id: "order-2".into(), r#type: "order.*".into(), ..Default::default() };
    let of_one = list(&mesh, v1::ListDeadLettersRequest { filter: Some(filter), ..Default::default() }).await;
    let [dead] = &of_one.dead_letters[..] else { panic!("one: {of_one:?}") };
    assert_eq!((dead.id.as_str(), dead.subscription.as_str(), dead.sequence_number), (ids[1].as_str(), "billing", 1));
    assert_eq!((dead.reason().word(), dead.attempts, dead.last_status), ("exhausted", 1, 500));
    assert_eq!((dead.last_error.as_str(), dead.status().word()), ("answered 500", "open"));
    assert_eq!((dead.r#type.as_str(), dead.source.as_str()), ("order.paid", "shop"));
    assert!(dead.first_failed_at.unwrap().seconds <= dead.dead_lettered_at.unwrap().seconds);

    // The copy outlives the event.
    mesh.drop_events_below(SHARD, places[2].2 + 1).await;
    let request = v1::GetDeadLetterRequest { id: ids[0].clone() };
    let shown = mesh.admin.dead_letters().get_dead_letter(request).await.unwrap().into_inner();
    assert_eq!(&shown.event.unwrap().data[..], br#"{"total":1}"#);
    let request = v1::GetEventRequest { event_id: places[0].1.to_string(), ..Default::default() };
    let event = mesh.admin.events().get_event(request).await.unwrap().into_inner();
    assert_eq!((event.status().word(), event.event.unwrap().event_id), ("dead_lettered", places[0].1.to_string()));

    let unknown = v1::GetDeadLetterRequest { id: format!("audit:{}", places[0].1) };
    let refused = mesh.admin.dead_letters().get_dead_letter(unknown).await;
    assert_eq!(reason(refused), (Code::NotFound, "NOT_FOUND".into()));
    let nonsense = v1::ListDeadLettersRequest { page_token: "x".into(), ..Default::default() };
    let refused = mesh.admin.dead_letters().list_dead_letters(nonsense).await;
    assert_eq!(reason(refused), (Code::InvalidArgument, "BAD_QUERY".into()));
}

/// A redrive is one command, however often it is called for, and its progress is what became of each item.
#[tokio::test]
async fn a_redrive_acts_once_and_tells_how_it_goes() {
    let mut mesh = Mesh::start(1).await;
    let (ids, places) = three(&mut mesh).await;
    let request = v1::RedriveDeadLettersRequest {
        all: true,
        reason: "fixed".into(),
        request_id: "again".into(),
        ..Default::default()
    };
    let mut dry = redrive(&mesh, v1::RedriveDeadLettersRequest { dry_run: true, ..request.clone() }).await;
    assert_eq!(next(&mut dry).await.unwrap().selected, 3);
    let mut named = Vec::new();
    while let Some(item) = next(&mut dry).await {
        named.push(item.id);
    }
    assert_eq!((named, commands(&mesh, SHARD).await.len()), (ids.clone(), 0));

    let mut progress = redrive(&mesh, request.clone()).await;
    let first = next(&mut progress).await.unwrap();
    assert_eq!((first.selected, first.request_id.as_str(), first.id.as_str()), (3, "again", ""));
    // A client that has seen the command stored sees its effect at once.
    assert_eq!(statuses(&mesh, &ids).await, ["redriving"; 3]);
    let [(run, command)] = &commands(&mesh, SHARD).await[..] else { panic!("one command") };
    assert_eq!((command.request_id.as_str(), command.reason.as_str()), ("again", "fixed"));
    let Some(internal::command::Action::Redrive(items)) = &command.action else { panic!("a redrive") };
    let sequences: Vec<_> = items.items.iter().map(|item| item.sequence).collect();
    assert_eq!(sequences, places.iter().map(|(_, _, seq)| *seq).collect::<Vec<_>>(), "in the order of the events");

    // Its owner: refuses the first, delivers the second, fails with the third.
    let refused = internal::ItemResult {
        subscription: BILLING.to_vec(),
        sequence: places[0].2,
        status: CommandStatus::NotApplicable.into(),
    };
    let result = internal::CommandResult { command: *run, request_id: "again".into(), items: vec![refused] };
    let (workflow, id, seq) = &places[1];
    let delivered = outcome(workflow, *id, *seq, *run, OutcomeKind::Delivered);
    let commit = internal::Commit { results: vec![result], outcomes: vec![delivered], ..Default::default() };
    mesh.commit(SHARD, commit).await;
    let (workflow, id, seq) = &places[2];
    mesh.dead_letter(workflow, *id, *seq, *run).await;
    let mut settled = Vec::new();
    let mut last = first;
    while let Some(item) = next(&mut progress).await {
        settled.push((item.id.clone(), item.status().word()));
        last = item;
    }
    settled.sort();
    let mut expected: Vec<_> = ids.iter().cloned().zip(["not_applicable", "redriven", "open"]).collect();
    expected.sort();
    assert_eq!(settled, expected);
    assert_eq!((last.delivered, last.failed, last.not_applicable), (1, 1, 1));
    assert_eq!(statuses(&mesh, &ids).await, ["open", "redriven", "open"]);

    // Again under the same id: the same progress, and no further command.
    let mut again = redrive(&mesh, request).await;
    assert_eq!(next(&mut again).await.unwrap().selected, 3);
    let mut repeated = 0;
    while next(&mut again).await.is_some() {
        repeated += 1;
    }
    assert_eq!((repeated, commands(&mesh, SHARD).await.len()), (3, 1));

    let unknown =
        v1::RedriveDeadLettersRequest { ids: vec![format!("billing:{}", EventId::unique())], ..Default::default() };
    let answer = mesh.admin.dead_letters().redrive_dead_letters(unknown).await.map(drop);
    assert_eq!(reason(answer), (Code::NotFound, "NOT_FOUND".into()));
    let nothing = v1::RedriveDeadLettersRequest::default();
    let answer = mesh.admin.dead_letters().redrive_dead_letters(nothing).await.map(drop);
    assert_eq!(reason(answer), (Code::InvalidArgument, "BAD_QUERY".into()));
}

/// A cancelled redrive ends with what its owner says: what was delivered stays so, the rest is open and said to be.
#[tokio::test]
async fn a_cancelled_redrive_says_what_was_done() {
    let mut mesh = Mesh::start(1).await;
    let (ids, places) = three(&mut mesh).await;
    let request = v1::RedriveDeadLettersRequest { all: true, request_id: "again".into(), ..Default::default() };
    let mut progress = redrive(&mesh, request).await;
    assert_eq!(next(&mut progress).await.unwrap().selected, 3);
    let client = mesh.admin.dead_letters();
    let cancel = |id: &str, request_id: &str| {
        let (id, request_id) = (id.to_owned(), request_id.to_owned());
        let request = v1::CancelDeadLetterOperationRequest { id, reason: "too many".into(), request_id };
        let mut client = client.clone();
        tokio::spawn(async move { client.cancel_dead_letter_operation(request).await })
    };
    assert_eq!(reason(cancel("other", "").await.unwrap()), (Code::NotFound, "NOT_FOUND".into()));
    let cancelling = cancel("again", "stop");
    assert!(eventually(PATIENCE, async || commands(&mesh, SHARD).await.len() == 2).await);
    let (run, command) = commands(&mesh, SHARD).await.remove(1);
    let order = internal::CancelDeadLetters { operation: "again".into(), run: 1 };
    assert_eq!(command.action, Some(internal::command::Action::Cancel(order)));
    let kinds = [OutcomeKind::Delivered, OutcomeKind::Cancelled, OutcomeKind::Cancelled];
    let outcomes = places.iter().zip(kinds).map(|((workflow, id, seq), kind)| outcome(workflow, *id, *seq, 1, kind));
    let commit = internal::Commit { commands_cursor: run, outcomes: outcomes.collect(), ..Default::default() };
    mesh.commit(SHARD, commit).await;
    let cancelled = cancelling.await.unwrap().unwrap().into_inner();
    assert_eq!(cancelled.kind(), v1::DeadLetterOperationKind::Redrive);
    assert_eq!(cancelled.state(), v1::DeadLetterOperationState::Cancelled);
    assert_eq!((cancelled.selected, cancelled.done, cancelled.cancelled, cancelled.pending), (3, 1, 2, 0));
    let mut last = None;
    while let Some(item) = next(&mut progress).await {
        last = Some(item);
    }
    assert_eq!(last.map(|last| (last.delivered, last.cancelled)), Some((1, 2)));
    assert_eq!(statuses(&mesh, &ids).await, ["redriven", "open", "open"]);
    // The same call says the same, another one that there is nothing to cancel.
    assert_eq!(cancel("again", "stop").await.unwrap().unwrap().into_inner(), cancelled);
    assert_eq!(reason(cancel("again", "").await.unwrap()), (Code::Aborted, "CONFLICT".into()));

    let audit = v1::ListAuditRequest { target: "again".into(), ..Default::default() };
    let entries = crate::audit::audit(&mesh).list_audit(audit).await.unwrap().into_inner().entries;
    let said: Vec<_> = entries.iter().map(|entry| (entry.action.as_str(), entry.counts.unwrap().cancelled)).collect();
    assert_eq!(said, [("CancelDeadLetterOperation", 0), ("RedriveDeadLetters", 2)]);
    assert_eq!(entries[0].reason, "too many");
}

/// Dead letters of one event id at two places have different ids; the short id is refused with the full ones.
#[tokio::test]
async fn dead_letters_of_one_event_id_are_identified_by_their_place() {
    let mut mesh = Mesh::start(1).await;
    let (id, first) = mesh.event("order-1", r#""FIRST""#).await;
    let second = mesh.repeated_event("order-1", id, r#""SECOND""#).await;
    mesh.dead_letter("order-1", id, first, 0).await;
    mesh.dead_letter("order-1", id, second, 0).await;
    let listed = list(&mesh, v1::ListDeadLettersRequest::default()).await.dead_letters;
    let ids = [second, first].map(|seq| format!("billing:{id}@{seq}"));
    assert_eq!(listed.iter().map(|dead| dead.id.clone()).collect::<Vec<_>>(), ids);

    let ambiguous = v1::GetDeadLetterRequest { id: format!("billing:{id}") };
    let refused = mesh.admin.dead_letters().get_dead_letter(ambiguous).await.unwrap_err();
    assert!(ids.iter().all(|id| refused.message().contains(id)), "{refused}");
    assert_eq!(reason::<()>(Err(refused)), (Code::InvalidArgument, "BAD_QUERY".into()));
    let short = v1::ResolveDeadLettersRequest { ids: vec![format!("billing:{id}")], ..Default::default() };
    assert!(mesh.admin.dead_letters().resolve_dead_letters(short).await.is_err());

    for is_expired in [false, true] {
        if is_expired {
            mesh.drop_events_below(SHARD, second + 1).await;
        }
        for (id, data) in ids.iter().zip([r#""SECOND""#, r#""FIRST""#]) {
            let request = v1::GetDeadLetterRequest { id: id.clone() };
            let shown = mesh.admin.dead_letters().get_dead_letter(request).await.unwrap().into_inner();
            assert_eq!(shown.event.unwrap().data, data.as_bytes(), "{id}, expired: {is_expired}");
        }
    }

    let request = v1::RedriveDeadLettersRequest { ids: vec![ids[0].clone()], ..Default::default() };
    let mut progress = redrive(&mesh, request).await;
    assert_eq!(next(&mut progress).await.unwrap().selected, 1);
    let (run, command) = commands(&mesh, SHARD).await.remove(0);
    let Some(internal::command::Action::Redrive(items)) = command.action else { panic!("a redrive") };
    assert_eq!(items.items.iter().map(|item| item.sequence).collect::<Vec<_>>(), [second]);
    let delivered = outcome("order-1", id, second, run, OutcomeKind::Delivered);
    mesh.commit(SHARD, internal::Commit { cursor: second, outcomes: vec![delivered], ..Default::default() }).await;
    let settled = next(&mut progress).await.unwrap();
    assert_eq!((settled.id.as_str(), settled.status().word()), (ids[0].as_str(), "redriven"));
    assert_eq!(statuses(&mesh, &ids).await, ["redriven", "open"]);
    for (seq, status) in [(first, "dead_lettered"), (second, "delivered")] {
        let request = v1::GetEventRequest { event_id: format!("{id}@{seq}"), ..Default::default() };
        let event = mesh.admin.events().get_event(request).await.unwrap().into_inner();
        assert_eq!(event.status().word(), status, "at {seq}");
    }
}

/// Each shard's dead letters go to its own owner.
#[tokio::test]
async fn a_redrive_is_cut_by_shard() {
    let mut mesh = Mesh::start(8).await;
    let (ids, places) = three(&mut mesh).await;
    let request = v1::RedriveDeadLettersRequest { ids: ids.clone(), request_id: "some".into(), ..Default::default() };
    let mut progress = redrive(&mesh, request).await;
    assert_eq!(next(&mut progress).await.unwrap().selected, 3);
    for (workflow, id, seq) in &places {
        let shard = mesh.layout.shard_of(&WorkflowId::new(workflow.as_str()).unwrap());
        let (run, command) = commands(&mesh, shard).await.remove(0);
        let Some(internal::command::Action::Redrive(items)) = command.action else { panic!("a redrive") };
        assert!(items.items.iter().any(|item| item.event_id == id.to_vec() && item.sequence == *seq));
        let delivered = outcome(workflow, *id, *seq, run, OutcomeKind::Delivered);
        mesh.commit(shard, internal::Commit { outcomes: vec![delivered], ..Default::default() }).await;
    }
    let mut delivered = 0;
    while let Some(item) = next(&mut progress).await {
        assert_eq!(item.status().word(), "redriven");
        delivered = item.delivered;
    }
    assert_eq!(delivered, 3);
}

/// No projection is a source of truth: without its file, or with a damaged one, or with one of another log, the history
/// says the same as before.
#[tokio::test]
async fn a_history_that_is_built_anew_says_the_same() {
    let mut mesh = Mesh::start(1).await;
    let (ids, places) = three(&mut mesh).await;
    let request = v1::RedriveDeadLettersRequest { ids: vec![ids[0].clone()], ..Default::default() };
    let mut progress = redrive(&mesh, request).await;
    next(&mut progress).await.unwrap();
    let (run, _) = commands(&mesh, SHARD).await.remove(0);
    let delivered = outcome(&places[0].0, places[0].1, places[0].2, run, OutcomeKind::Delivered);
    mesh.commit(SHARD, internal::Commit { cursor: 3, outcomes: vec![delivered], ..Default::default() }).await;
    while next(&mut progress).await.is_some() {}

    async fn answers(
        mesh: &Mesh,
        places: &[(String, EventId, u64)],
    ) -> (Vec<v1::DeadLetter>, Vec<v1::GetEventResponse>) {
        let statuses = vec![v1::DeadLetterStatus::Open.into(), v1::DeadLetterStatus::Redriven.into()];
        let filter = Some(v1::DeadLetterFilter { statuses, ..Default::default() });
        let listed = list(mesh, v1::ListDeadLettersRequest { filter, ..Default::default() }).await.dead_letters;
        let mut events = Vec::new();
        for (_, id, _) in places {
            let request = v1::GetEventRequest { event_id: id.to_string(), ..Default::default() };
            events.push(mesh.admin.events().get_event(request).await.unwrap().into_inner());
        }
        (listed, events)
    }
    let before = answers(&mesh, &places).await;
    assert_eq!(before.0.len(), 3);
    assert_eq!(before.1[0].status().word(), "delivered");
    assert_eq!(before.1[0].deliveries.len(), 2);

    let file = "history.redb";
    mesh.restart_admin(|_| ()).await;
    assert_eq!(answers(&mesh, &places).await, before, "kept");
    mesh.restart_admin(|folder| std::fs::remove_file(folder.join(file)).unwrap()).await;
    assert_eq!(answers(&mesh, &places).await, before, "deleted");
    mesh.restart_admin(|folder| std::fs::write(folder.join(file), vec![0x55; 20_000]).unwrap()).await;
    assert_eq!(answers(&mesh, &places).await, before, "damaged");

    // Another log with the same names: nothing of the old one is shown.
    for stream in ["EVENTS", "OUTCOMES", "COMMANDS", "DLQ"] {
        mesh.connection.jetstream().delete_stream(stream).await.unwrap();
    }
    streams::ensure(&mesh.connection, &crate::mesh::spec(1)).await.unwrap();
    mesh.restart_admin(|_| ()).await;
    let all = v1::ListDeadLettersRequest::default();
    assert_eq!(list(&mesh, all).await.dead_letters, [], "of another log");
}

/// Dead letters are counted by the fields that an operator asks for, and the id of an event names those of all
/// subscriptions.
#[tokio::test]
async fn dead_letters_are_counted_by_any_field_and_named_by_their_event() {
    let mut mesh = Mesh::start(1).await;
    let billing = v1::Subscription { uid: BILLING.to_vec(), ..subscription("billing", "https://a.example/") };
    mesh.kv().put_subscription(&billing, 0).await.unwrap();
    let (_, places) = three(&mut mesh).await;
    let count = async |group_by: &[v1::DeadLetterField]| {
        let group_by = group_by.iter().map(|field| (*field).into()).collect();
        let request = v1::DeadLetterStatsRequest { filter: None, group_by };
        mesh.admin.dead_letters().dead_letter_stats(request).await.map(|answer| answer.into_inner().counts)
    };
    let by_error = count(&[v1::DeadLetterField::LastStatus, v1::DeadLetterField::LastError]).await.unwrap();
    let expected = v1::DeadLetterCount {
        last_status: 500,
        last_error: "answered 500".into(),
        count: 3,
        ..v1::DeadLetterCount::default()
    };
    assert_eq!(by_error, [expected]);
    let by_workflow = count(&[v1::DeadLetterField::Workflow]).await.unwrap();
    assert_eq!(by_workflow.iter().map(|one| one.count).collect::<Vec<_>>(), [1, 1, 1]);
    let usual = count(&[]).await.unwrap();
    assert_eq!((usual[0].subscription.as_str(), usual[0].status().word(), usual[0].count), ("billing", "open", 3));
    assert_eq!(reason(count(&[v1::DeadLetterField::Unspecified]).await), (Code::InvalidArgument, "BAD_QUERY".into()));

    let event = places[1].1.to_string();
    let request = v1::RedriveDeadLettersRequest { ids: vec![event], dry_run: true, ..Default::default() };
    let named = async || {
        let Ok(answer) = mesh.admin.dead_letters().redrive_dead_letters(request.clone()).await else { return false };
        let first = answer.into_inner().message().await;
        first.is_ok_and(|first| first.is_some_and(|first| first.selected == 1))
    };
    assert!(eventually(PATIENCE, named).await, "once the admin has read the catalog");
    let other =
        v1::RedriveDeadLettersRequest { ids: vec![EventId::unique().to_string()], dry_run: true, ..Default::default() };
    let refused = mesh.admin.dead_letters().redrive_dead_letters(other).await.map(drop);
    assert_eq!(reason(refused), (Code::NotFound, "NOT_FOUND".into()));
}
