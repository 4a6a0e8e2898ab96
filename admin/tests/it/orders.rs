//! Commands to lanes, replays and dead letters: each is appended once, and answered with the result of the shard's
//! owner. The test is the owner.

use prost::Message as _;
use tokio::task::JoinHandle;
use tonic::Code;
use weft_nats::direct;
use weft_proto::{
    ids::{EventId, ShardId, StreamSeq},
    internal::{self, CommandStatus, LaneAction, OutcomeKind, command::Action},
    v1,
    words::Word as _,
};
use weft_testkit::eventually;

use crate::{
    catalog::subscription,
    mesh::{BILLING, Mesh, PATIENCE, opening, outcome, reason},
};

const SHARD: ShardId = ShardId(0);

/// A mesh whose catalog has the subscription that its commits are about.
async fn mesh() -> Mesh {
    let mesh = Mesh::start(1).await;
    let billing = v1::Subscription { uid: BILLING.to_vec(), ..subscription("billing", "https://a.example/") };
    mesh.kv().put_subscription(&billing, 0).await.unwrap();
    // The admin follows the catalog: a record of a subscription that it does not know yet is one of an orphan.
    let is_known = async || {
        let request = v1::GetSubscriptionRequest { name: "billing".into() };
        mesh.admin.catalog().get_subscription(request).await.is_ok()
    };
    assert!(eventually(PATIENCE, is_known).await);
    mesh
}

async fn commands(mesh: &Mesh) -> Vec<(u64, internal::Command)> {
    let messages = direct::range(&mesh.connection, "COMMANDS", StreamSeq(1), ">", 100, 1 << 20).await.unwrap();
    messages.into_iter().map(|message| (message.seq.0, internal::Command::decode(message.payload).unwrap())).collect()
}

/// Waits until there are `count` commands, and returns the last one.
async fn until_commanded(mesh: &Mesh, count: usize) -> (u64, internal::Command) {
    assert!(eventually(PATIENCE, async || commands(mesh).await.len() >= count).await);
    commands(mesh).await.remove(count - 1)
}

/// The commit by which an owner carries out a command, with these results.
fn carried_out(run: u64, command: &internal::Command, items: &[(u64, CommandStatus)]) -> internal::Commit {
    let item = |(sequence, status): &(u64, CommandStatus)| internal::ItemResult {
        subscription: BILLING.to_vec(),
        sequence: *sequence,
        status: (*status).into(),
    };
    let items = items.iter().map(item).collect();
    let result = internal::CommandResult { command: run, request_id: command.request_id.clone(), items };
    internal::Commit { commands_cursor: run, cursor: 9, results: vec![result], ..opening() }
}

fn blocked(seq: u64, last: u64) -> internal::Lane {
    internal::Lane {
        subscription: BILLING.to_vec(),
        workflow_id: "order-1".into(),
        next: seq,
        last,
        attempts: 1,
        state: internal::LaneState::Blocked.into(),
        ..Default::default()
    }
}

fn skip(request_id: &str) -> v1::SkipLaneRequest {
    v1::SkipLaneRequest {
        subscription: "billing".into(),
        workflow_id: "order-1".into(),
        reason: "broken".into(),
        request_id: request_id.into(),
        ..Default::default()
    }
}

fn spawn_skip(mesh: &Mesh, request_id: &str) -> JoinHandle<Result<tonic::Response<v1::LaneResponse>, tonic::Status>> {
    let (mut client, request) = (mesh.admin.workflows(), skip(request_id));
    tokio::spawn(async move { client.skip_lane(request).await })
}

/// A skip names the head, is one command however often it is called for, and says what came of it.
#[tokio::test]
async fn a_lane_is_listed_and_its_head_skipped_once() {
    let mut mesh = mesh().await;
    let (first, seq) = mesh.event("order-1", "{}").await;
    let (second, last) = mesh.event("order-1", "{}").await;
    mesh.commit(SHARD, internal::Commit { cursor: last, lanes: vec![blocked(seq, last)], ..opening() }).await;
    let request = v1::ListLanesRequest { states: vec![v1::LaneState::Blocked.into()], ..Default::default() };
    let lanes = mesh.admin.workflows().list_lanes(request).await.unwrap().into_inner().lanes;
    let [lane] = &lanes[..] else { panic!("one lane: {lanes:?}") };
    assert_eq!((lane.subscription.as_str(), lane.state().word()), ("billing", "blocked"));
    assert_eq!((lane.head_event_id.clone(), lane.attempts), (first.to_string(), 1));

    let skipping = spawn_skip(&mesh, "skip-1");
    let (run, command) = until_commanded(&mesh, 1).await;
    let Some(Action::Lane(order)) = &command.action else { panic!("an order: {command:?}") };
    assert_eq!((order.action(), order.sequence, order.next), (LaneAction::Skip, seq, seq));
    assert_eq!((order.event_id.clone(), command.reason.as_str()), (first.to_vec(), "broken"));
    let mut commit = carried_out(run, &command, &[(seq, CommandStatus::Taken)]);
    commit.outcomes = vec![outcome("order-1", first, seq, 0, OutcomeKind::DeadLettered)];
    mesh.commit(SHARD, commit).await;
    let skipped = skipping.await.unwrap().unwrap().into_inner();
    assert_eq!(skipped.event_id, first.to_string());
    let lane = skipped.lane.unwrap();
    assert_eq!((lane.state().word(), lane.head_event_id), ("open", second.to_string()));

    let again = mesh.admin.workflows().skip_lane(skip("skip-1")).await.unwrap().into_inner();
    assert_eq!((again.event_id, commands(&mesh).await.len()), (first.to_string(), 1));
    let pause = v1::PauseLaneRequest {
        subscription: "billing".into(),
        workflow_id: "order-1".into(),
        request_id: "skip-1".into(),
        ..Default::default()
    };
    assert_eq!(reason(mesh.admin.workflows().pause_lane(pause).await), (Code::AlreadyExists, "ID_REUSED".into()));

    let refused = spawn_skip(&mesh, "skip-2");
    let (run, command) = until_commanded(&mesh, 2).await;
    mesh.commit(SHARD, carried_out(run, &command, &[(last, CommandStatus::NotApplicable)])).await;
    assert_eq!(reason(refused.await.unwrap()), (Code::Aborted, "CONFLICT".into()));

    let request = v1::GetWorkflowRequest { workflow_id: "order-1".into(), ..Default::default() };
    let workflow = mesh.admin.workflows().get_workflow(request).await.unwrap().into_inner();
    let statuses: Vec<_> = workflow.events.iter().map(|event| event.status().word()).collect();
    assert_eq!((statuses, workflow.lanes.len()), (vec!["dead_lettered", "pending"], 1));
}

/// Resolved and discarded are what the dead letters are then; what was not open any more is said.
#[tokio::test]
async fn dead_letters_are_closed_and_counted() {
    let mut mesh = mesh().await;
    let mut places: Vec<(EventId, u64)> = Vec::new();
    for _ in 0..2 {
        let (id, seq) = mesh.event("order-1", "{}").await;
        mesh.dead_letter("order-1", id, seq, 0).await;
        places.push((id, seq));
    }
    let mut client = mesh.admin.dead_letters();
    let request = v1::ResolveDeadLettersRequest { all: true, request_id: "r".into(), ..Default::default() };
    let dry = v1::ResolveDeadLettersRequest { dry_run: true, ..request.clone() };
    assert_eq!(client.resolve_dead_letters(dry).await.unwrap().into_inner().selected, 2);
    let resolving = tokio::spawn(async move { client.resolve_dead_letters(request).await });
    let (run, command) = until_commanded(&mesh, 1).await;
    let Some(Action::Close(close)) = &command.action else { panic!("to close: {command:?}") };
    assert_eq!((close.kind(), close.items.len()), (OutcomeKind::Resolved, 2));
    let statuses = [(places[0].1, CommandStatus::Taken), (places[1].1, CommandStatus::NotApplicable)];
    let mut commit = carried_out(run, &command, &statuses);
    commit.outcomes = vec![outcome("order-1", places[0].0, places[0].1, run, OutcomeKind::Resolved)];
    mesh.commit(SHARD, commit).await;
    let closed = resolving.await.unwrap().unwrap().into_inner();
    assert_eq!((closed.selected, closed.closed, closed.not_applicable, closed.pending), (2, 1, 1, 0));

    let request = v1::GetDeadLetterRequest { id: format!("billing:{}", places[0].0) };
    let found = mesh.admin.dead_letters().get_dead_letter(request).await.unwrap().into_inner();
    assert_eq!(found.dead_letter.unwrap().status().word(), "resolved");
    let request = v1::GetEventRequest { event_id: places[0].0.to_string(), ..Default::default() };
    assert_eq!(mesh.admin.events().get_event(request).await.unwrap().into_inner().status().word(), "resolved");
    let stats = mesh.admin.dead_letters().dead_letter_stats(v1::DeadLetterStatsRequest::default()).await;
    let counts = stats.unwrap().into_inner().counts;
    let counts: Vec<_> = counts.iter().map(|count| (count.status().word(), count.count)).collect();
    assert_eq!(counts, [("open", 1), ("resolved", 1)]);
}

/// A replay is planned, started once, followed, paused and cancelled.
#[tokio::test]
async fn a_replay_is_followed_to_its_end() {
    let mut mesh = mesh().await;
    let mut events = Vec::new();
    for workflow in ["order-1", "order-2", "order-1"] {
        events.push(mesh.event(workflow, "{}").await);
    }
    let filter = v1::ReplayFilter { workflow_id: "order-1".into(), ..Default::default() };
    let selection = Some(v1::ReplaySelection { filter: Some(filter), ..Default::default() });
    let mut client = mesh.admin.replays();
    let plan = client.plan_replay(v1::PlanReplayRequest { selection: selection.clone() }).await.unwrap().into_inner();
    assert_eq!((plan.count, plan.sample[0].event_id.clone()), (2, events[0].0.to_string()));

    let rate = Some(v1::Rate { count: 50, period_ms: 1_000 });
    let request = v1::StartReplayRequest { selection, reason: "lost".into(), request_id: "again".into(), rate };
    let never = v1::StartReplayRequest { rate: Some(v1::Rate::default()), ..request.clone() };
    assert_eq!(reason(client.start_replay(never).await), (Code::InvalidArgument, "BAD_QUERY".into()));
    for _ in 0..2 {
        let replay = client.start_replay(request.clone()).await.unwrap().into_inner();
        assert_eq!((replay.id.as_str(), replay.state().word(), replay.pending), ("again", "running", 2));
        assert_eq!(replay.rate, rate);
    }
    let (run, command) = until_commanded(&mesh, 1).await;
    assert_eq!(commands(&mesh).await.len(), 1);
    let Some(Action::Replay(replay)) = &command.action else { panic!("a replay: {command:?}") };
    assert_eq!(replay.items.iter().map(|item| item.sequence).collect::<Vec<_>>(), [events[0].1, events[2].1]);
    assert_eq!(replay.interval_us, 20_000);

    let order = v1::PauseReplayRequest { id: "again".into(), ..Default::default() };
    assert_eq!(client.pause_replay(order).await.unwrap().into_inner().state().word(), "paused");
    let (_, command) = until_commanded(&mesh, 2).await;
    let Some(Action::ReplayOrder(order)) = &command.action else { panic!("an order: {command:?}") };
    assert_eq!((order.run, order.action()), (run, internal::ReplayAction::Pause));
    let order = v1::ResumeReplayRequest { id: "again".into(), ..Default::default() };
    assert_eq!(client.resume_replay(order).await.unwrap().into_inner().state().word(), "running");
    let delivered = outcome("order-1", events[0].0, events[0].1, run, OutcomeKind::Delivered);
    mesh.commit(SHARD, internal::Commit { outcomes: vec![delivered], ..opening() }).await;
    let order = v1::CancelReplayRequest { id: "again".into(), ..Default::default() };
    let replay = client.cancel_replay(order.clone()).await.unwrap().into_inner();
    assert_eq!((replay.state().word(), replay.delivered, replay.pending), ("cancelled", 1, 1));
    let late = v1::PauseReplayRequest { id: "again".into(), ..Default::default() };
    assert_eq!(reason(client.pause_replay(late).await), (Code::Aborted, "CONFLICT".into()));
    assert_eq!(reason(client.cancel_replay(order).await), (Code::Aborted, "CONFLICT".into()));
    let listed = client.list_replays(v1::ListReplaysRequest::default()).await.unwrap().into_inner().replays;
    assert_eq!(listed.iter().map(|replay| replay.id.as_str()).collect::<Vec<_>>(), ["again"]);
    let unknown = client.get_replay(v1::GetReplayRequest { id: "other".into() }).await;
    assert_eq!(reason(unknown), (Code::NotFound, "NOT_FOUND".into()));
}

/// A workflow is read from its newest event back, page by page, each event once; also where one id stands at several places,
/// where the predecessor that an event names is missing, and where EVENTS no longer holds the oldest.
#[tokio::test]
async fn a_workflow_is_read_from_its_newest_event() {
    let mut mesh = mesh().await;
    let mut seqs = Vec::new();
    let (first, seq) = mesh.event("order-1", "{}").await;
    seqs.push(seq);
    for number in 0..6 {
        mesh.event("order-2", "{}").await;
        seqs.push(match number {
            // The fourth event names a predecessor that is missing.
            1 | 5 => mesh.repeated_event("order-1", first, "{}").await,
            _ => mesh.event("order-1", "{}").await.1,
        });
    }
    let read = async |workflow: &str, page_size: u32| {
        let (mut numbers, mut page_token) = (Vec::new(), String::new());
        loop {
            let workflow_id = workflow.to_owned();
            let request = v1::GetWorkflowRequest { workflow_id, page_size, page_token, newest_first: true };
            let page = mesh.admin.workflows().get_workflow(request).await?.into_inner();
            assert!(page.events.len() <= page_size as usize);
            numbers.extend(page.events.into_iter().filter_map(|event| Some(event.event?.sequence_number)));
            page_token = page.next_page_token;
            if page_token.is_empty() {
                return Ok::<_, tonic::Status>(numbers);
            }
        }
    };
    for page_size in [1, 2, 3, 7, 100] {
        assert_eq!(read("order-1", page_size).await.unwrap(), [7, 6, 5, 4, 3, 2, 1], "{page_size}");
    }
    assert_eq!(reason(read("order-9", 5).await), (Code::NotFound, "NOT_FOUND".into()));
    mesh.drop_events_below(SHARD, seqs[2]).await;
    assert_eq!(read("order-1", 2).await.unwrap(), [7, 6, 5, 4, 3], "what is kept");
}

/// A workflow whose receiver answers 503 to it alone is not away: only its lane waits, and shows the last attempt's end,
/// that it used up no retry, and the time of the next one.
#[tokio::test]
async fn a_lane_that_waits_says_why() {
    let mut mesh = mesh().await;
    let (event, seq) = mesh.event("order-1", "{}").await;
    let attempt = |number, status| internal::Attempt {
        subscription: BILLING.to_vec(),
        sequence: seq,
        number,
        class: v1::AttemptClass::HttpStatus.into(),
        status,
        uncounted: true,
        ..Default::default()
    };
    let lane = internal::Lane {
        attempts: 2,
        uncounted: 2,
        state: internal::LaneState::Unspecified.into(),
        next_attempt_at_ms: 9_000,
        ..blocked(seq, seq)
    };
    let attempts = vec![attempt(1, 500), attempt(2, 503)];
    mesh.commit(SHARD, internal::Commit { cursor: seq, lanes: vec![lane], attempts, ..opening() }).await;
    let request = v1::ListLanesRequest { states: vec![v1::LaneState::Waiting.into()], ..Default::default() };
    let lanes = mesh.admin.workflows().list_lanes(request).await.unwrap().into_inner().lanes;
    let [lane] = &lanes[..] else { panic!("one lane: {lanes:?}") };
    assert_eq!((lane.head_event_id.clone(), lane.attempts, lane.uncounted), (event.to_string(), 2, 2));
    assert_eq!(lane.last_error, "answered 503");
    assert!(lane.next_attempt_at.is_some() && lane.receiver.is_none());
}
