//! `AuditService`: each call of an operator once, with its reason, its targets and what became of them.

use tonic::Code;
use weft_nats::{direct, streams};
use weft_proto::{
    ids::{ShardId, StreamSeq, WorkflowId},
    internal::{self, CommandStatus, OutcomeKind},
    v1::{self, AuditResult, AuditTargetKind, audit_service_client::AuditServiceClient},
};

use weft_testkit::eventually;

use crate::{
    catalog::{SECRET, create_source},
    mesh::{BILLING, Client, Mesh, PATIENCE, TOKEN, bearer, opening, outcome, reason},
};

pub fn audit(mesh: &Mesh) -> AuditServiceClient<Client> {
    AuditServiceClient::with_interceptor(mesh.admin.channel(), bearer(TOKEN))
}

async fn list(mesh: &Mesh, request: v1::ListAuditRequest) -> v1::ListAuditResponse {
    audit(mesh).list_audit(request).await.unwrap().into_inner()
}

/// Its time, to compare.
fn seconds(entry: &v1::AuditEntry) -> (i64, i32) {
    let time = entry.time.unwrap();
    (time.seconds, time.nanos)
}

fn actions(answer: &v1::ListAuditResponse) -> Vec<&str> {
    answer.entries.iter().map(|entry| entry.action.as_str()).collect()
}

/// A dead letter of each workflow, and the shard and place of its event.
async fn dead_letters(mesh: &mut Mesh, workflows: &[&str]) -> Vec<(String, ShardId, u64, String)> {
    let mut found = Vec::new();
    for workflow in workflows {
        let (id, seq) = mesh.event(workflow, "{}").await;
        mesh.dead_letter(workflow, id, seq, 0).await;
        let shard = mesh.layout.shard_of(&WorkflowId::new(*workflow).unwrap());
        found.push((format!("billing:{id}"), shard, seq, (*workflow).to_owned()));
    }
    found
}

/// A call for several shards is one entry, which follows what becomes of its items; a change of the catalog has its
/// differences and no secret.
#[tokio::test]
async fn each_call_is_listed_once_with_what_became_of_it() {
    let mut mesh = Mesh::start(2).await;
    let dead = dead_letters(&mut mesh, &["order-1", "order-2", "order-3", "order-4"]).await;
    assert!(dead.iter().any(|one| one.1 != dead[0].1), "of both shards");
    mesh.admin.catalog().create_source(create_source("shop", "r1")).await.unwrap();
    let redrive = v1::RedriveDeadLettersRequest {
        all: true,
        reason: "database is back".into(),
        request_id: "r2".into(),
        ..Default::default()
    };
    let mut progress = mesh.admin.dead_letters().redrive_dead_letters(redrive).await.unwrap().into_inner();
    progress.message().await.unwrap();

    let answer = list(&mesh, v1::ListAuditRequest::default()).await;
    assert_eq!(actions(&answer), ["RedriveDeadLetters", "CreateSource"]);
    let [redriven, created] = &answer.entries[..] else { panic!("two") };
    assert_eq!((redriven.operator.as_str(), redriven.reason.as_str()), ("bootstrap", "database is back"));
    assert_eq!((redriven.request_id.as_str(), redriven.target_count), ("r2", 4));
    assert_eq!((redriven.result(), redriven.counts.unwrap().pending), (AuditResult::Pending, 4));
    assert!(redriven.targets.iter().all(|target| target.kind() == AuditTargetKind::DeadLetter));
    assert!(dead.iter().all(|one| redriven.targets.iter().any(|target| target.name == one.0)));
    assert_eq!((created.reason.as_str(), created.result()), ("a new shop", AuditResult::Done));
    assert_eq!((created.targets[0].kind(), created.targets[0].name.as_str()), (AuditTargetKind::Source, "shop"));
    assert!(!created.changes.is_empty() && !created.changes.iter().any(|line| line.contains(SECRET)), "{created:?}");

    // The owners: nothing of the first is applicable, the others are delivered.
    for (at, (id, shard, seq, workflow)) in dead.iter().enumerate() {
        let stream = mesh.layout.commands_stream(*shard);
        let end = streams::state(&mesh.connection, &stream).await.unwrap().last;
        let stored = direct::range(&mesh.connection, &stream, StreamSeq(1), ">", 100, 1 << 20).await.unwrap();
        // The source's record is on shard 0, before the redrive.
        assert!(stored.last().is_some_and(|last| last.seq == end));
        let event = id.split_once(':').unwrap().1.parse().unwrap();
        let mut commit = internal::Commit { cursor: *seq, commands_cursor: end.0, ..opening() };
        if at == 0 {
            let status = CommandStatus::NotApplicable.into();
            let item = internal::ItemResult { subscription: BILLING.to_vec(), sequence: *seq, status };
            commit.results =
                vec![internal::CommandResult { command: end.0, request_id: "r2".into(), items: vec![item] }];
        } else {
            commit.outcomes = vec![outcome(workflow, event, *seq, end.0, OutcomeKind::Delivered)];
        }
        mesh.commit(*shard, commit).await;
    }
    let answer = list(&mesh, v1::ListAuditRequest { request_id: "r2".into(), ..Default::default() }).await;
    let counts = answer.entries[0].counts.unwrap();
    assert_eq!((counts.selected, counts.done, counts.not_applicable, counts.pending), (4, 3, 1, 0));
    assert_eq!(answer.entries[0].result(), AuditResult::Done);
}

/// Each filter narrows by its own field; a filter that nothing fits gives nothing, and an invalid token is refused.
#[tokio::test]
async fn entries_are_found_by_who_what_target_and_time() {
    let mut mesh = Mesh::start(2).await;
    let dead = dead_letters(&mut mesh, &["order-1", "order-2"]).await;
    mesh.admin.catalog().create_source(create_source("shop", "r1")).await.unwrap();
    let made = v1::CreateApiKeyRequest {
        name: "night".into(),
        scopes: vec![v1::Scope::Operate.into()],
        request_id: "r2".into(),
        ..Default::default()
    };
    let made = mesh.admin.catalog().create_api_key(made).await.unwrap().into_inner();
    let key_id = made.view.unwrap().key.unwrap().id;
    let discard =
        v1::DiscardDeadLettersRequest { ids: vec![dead[1].0.clone()], reason: "twice".into(), ..Default::default() };
    let mut with_key = v1::dead_letter_service_client::DeadLetterServiceClient::with_interceptor(
        mesh.admin.channel(),
        bearer(&made.key),
    );
    // An admin knows a key once it has read the change of the catalog.
    let known = eventually(PATIENCE, async || {
        let mut audit = AuditServiceClient::with_interceptor(mesh.admin.channel(), bearer(&made.key));
        reason(audit.list_audit(v1::ListAuditRequest::default()).await).0 != Code::Unauthenticated
    });
    assert!(known.await, "the key is known");
    with_key.discard_dead_letters(discard).await.unwrap();

    let event = dead[1].0.split_once(':').unwrap().1.to_owned();
    let text = |text: &str| text.to_owned();
    let all = v1::ListAuditRequest::default;
    for (request, expected) in [
        (all(), &["DiscardDeadLetters", "CreateApiKey", "CreateSource"][..]),
        (v1::ListAuditRequest { operator: key_id.clone(), ..all() }, &["DiscardDeadLetters"]),
        (v1::ListAuditRequest { action: text("Create*"), ..all() }, &["CreateApiKey", "CreateSource"]),
        (v1::ListAuditRequest { target: text("order-2"), ..all() }, &["DiscardDeadLetters"]),
        (v1::ListAuditRequest { target: event, ..all() }, &["DiscardDeadLetters"]),
        (v1::ListAuditRequest { target: dead[0].0.clone(), ..all() }, &[]),
        (v1::ListAuditRequest { target: key_id, ..all() }, &["CreateApiKey"]),
        (v1::ListAuditRequest { target: text("shop"), ..all() }, &["CreateSource"]),
        (v1::ListAuditRequest { request_id: text("r2"), ..all() }, &["CreateApiKey"]),
    ] {
        let answer = list(&mesh, request.clone()).await;
        assert_eq!(actions(&answer), expected, "{request:?}");
    }
    let entries = list(&mesh, all()).await.entries;
    let since = v1::ListAuditRequest { since: entries[0].time, ..all() };
    assert_eq!(
        list(&mesh, since).await.entries.len(),
        entries.iter().filter(|entry| seconds(entry) >= seconds(&entries[0])).count()
    );
    let until = v1::ListAuditRequest { until: entries[2].time, ..all() };
    assert_eq!(actions(&list(&mesh, until).await), Vec::<&str>::new());

    let refused = audit(&mesh).list_audit(v1::ListAuditRequest { page_token: text("AAAA"), ..all() }).await;
    assert_eq!(reason(refused), (Code::InvalidArgument, text("BAD_QUERY")));
    let mut with_key = AuditServiceClient::with_interceptor(mesh.admin.channel(), bearer(&made.key));
    assert_eq!(reason(with_key.list_audit(all()).await), (Code::PermissionDenied, text("SCOPE_MISSING")));
}

/// A page continues where the one before ended, also when entries were added in between.
#[tokio::test]
async fn pages_survive_new_entries() {
    let mut mesh = Mesh::start(2).await;
    let dead = dead_letters(&mut mesh, &["order-1", "order-2", "order-3", "order-4"]).await;
    let redrive = async |id: &str, request_id: &str| {
        let request = v1::RedriveDeadLettersRequest {
            ids: vec![id.to_owned()],
            request_id: request_id.to_owned(),
            ..Default::default()
        };
        let answer = mesh.admin.dead_letters().redrive_dead_letters(request).await.unwrap();
        // Its first message comes once the command is stored.
        answer.into_inner().message().await.unwrap();
    };
    for (at, (id, ..)) in dead.iter().take(3).enumerate() {
        redrive(id, &format!("r{at}")).await;
    }
    let mut read = Vec::new();
    let mut page_token = String::new();
    for page in 0.. {
        let answer = list(&mesh, v1::ListAuditRequest { page_size: 1, page_token, ..Default::default() }).await;
        read.extend(answer.entries.into_iter().map(|entry| entry.request_id));
        page_token = answer.next_page_token;
        if page == 0 {
            redrive(&dead[3].0, "late").await;
        }
        if page_token.is_empty() {
            break;
        }
    }
    assert_eq!(read, ["r2", "r1", "r0"]);
}
