//! Operators' commands, from COMMANDS to the receiver and to DLQ.

use weft_catalog::Catalog;
use weft_nats::event::Event;
use weft_proto::{
    internal::{self, LaneAction, OutcomeKind, command::Action},
    v1,
};

use crate::support::{Log, Receiver, Running};

async fn command(log: &Log, request_id: &str, action: Action) {
    let command = internal::Command {
        request_id: request_id.into(),
        operator: "ann".into(),
        reason: "test".into(),
        at_ms: 1,
        action: Some(action),
        ..Default::default()
    };
    log.publish("commands.0", &command).await;
}

/// The result of a command.
async fn until_carried_out(log: &Log, request_id: &str) -> internal::CommandResult {
    let find = |commits: &[internal::Commit]| {
        commits.iter().flat_map(|commit| &commit.results).find(|result| result.request_id == request_id).cloned()
    };
    find(&log.commits(|commits| find(commits).is_some()).await).unwrap()
}

fn item(subscription: &v1::Subscription, event: &Event, sequence: u64, run: u64) -> internal::RedriveItem {
    internal::RedriveItem {
        subscription: subscription.uid.clone(),
        subscription_name: subscription.name.clone(),
        sequence,
        workflow_id: event.workflow.to_string(),
        event_id: event.id.to_vec(),
        run,
        ..Default::default()
    }
}

fn lane(subscription: &v1::Subscription, event: &Event, sequence: u64, action: LaneAction) -> Action {
    Action::Lane(internal::LaneOrder {
        subscription: subscription.uid.clone(),
        subscription_name: subscription.name.clone(),
        workflow_id: event.workflow.to_string(),
        action: action.into(),
        sequence,
        event_id: event.id.to_vec(),
        next: sequence,
    })
}

/// Two commands of one request that are read together act once: the second finds nothing committed of the first yet.
#[tokio::test(flavor = "multi_thread")]
async fn two_commands_of_one_request_in_one_read_act_once() {
    let mut log = Log::start().await;
    let receiver = Receiver::start(|request| if request.replay { 200 } else { 422 }).await;
    let subscription = log.subscribe("billing", &receiver, 1).await;
    let events = log.events(1, 1).await;
    let folder = tempfile::tempdir().unwrap();
    let worker = Running::start(&log, folder.path());
    log.outcomes(1).await;
    worker.stop().await;
    for _ in 0..2 {
        let items = vec![item(&subscription, &events[0], 1, 0)];
        command(&log, "twice", Action::Redrive(internal::Redrive { items })).await;
    }
    command(&log, "later", Action::Redrive(internal::Redrive::default())).await;
    let worker = Running::start(&log, folder.path());
    receiver.until_delivered(1).await;
    until_carried_out(&log, "later").await;
    worker.stop().await;
    let commits = log.commits(|_| true).await;
    let results = commits.iter().flat_map(|commit| &commit.results).filter(|result| result.request_id == "twice");
    assert_eq!(results.count(), 1);
}

/// A blocked lane continues after the event that an operator skips, once, and the event that was only in the log has its
/// copy on DLQ.
#[tokio::test(flavor = "multi_thread")]
async fn a_blocked_lane_is_retried_then_skipped() {
    let mut log = Log::start().await;
    let receiver = Receiver::start(|request| if request.sequence == 1 { 422 } else { 200 }).await;
    let block = |subscription: &mut v1::Subscription| subscription.on_exhausted = v1::OnExhausted::Block.into();
    let subscription = log.subscribe_with("billing", &receiver, 1, block).await;
    let events = log.events(2, 1).await;
    let folder = tempfile::tempdir().unwrap();
    let worker = Running::start(&log, folder.path());
    receiver.until(|requests| requests.len() == 1).await;
    // An order is not applicable while its head is being attempted.
    let is_blocked = |lane: &internal::Lane| lane.state() == internal::LaneState::Blocked;
    log.commits(|commits| commits.iter().any(|commit| commit.lanes.iter().any(is_blocked))).await;
    for _ in 0..2 {
        command(&log, "retry", lane(&subscription, &events[0], 1, LaneAction::Retry)).await;
    }
    receiver.until(|requests| requests.len() == 2).await;
    for _ in 0..2 {
        command(&log, "skip", lane(&subscription, &events[0], 1, LaneAction::Skip)).await;
    }
    let requests = receiver.until_delivered(1).await;
    let seen: Vec<_> = requests.iter().map(|request| (request.sequence, request.attempt)).collect();
    assert_eq!(seen, [(1, 1), (1, 2), (2, 1)], "each command acted once");
    let copies = log.read("DLQ", |messages| !messages.is_empty()).await;
    let header = |name: &str| copies[0].headers.get(name).map(|value| value.as_str().to_owned()).unwrap_or_default();
    assert_eq!((header("weft-reason"), header("ce-id")), ("skipped".into(), events[0].id.to_string()));
    assert_eq!(copies[0].payload, events[0].payload);
    worker.stop().await;
    let outcomes = log.outcomes(2).await;
    assert_eq!(outcomes.iter().filter(|outcome| outcome.sequence == 1).count(), 1);
}

/// A paused lane survives a worker; the others continue in the meantime.
#[tokio::test(flavor = "multi_thread")]
async fn a_paused_lane_stays_paused_across_workers_and_goes_on_in_order() {
    let mut log = Log::start().await;
    let receiver = Receiver::start(|_| 200).await;
    let subscription = log.subscribe("billing", &receiver, 1).await;
    let folder = tempfile::tempdir().unwrap();
    let worker = Running::start(&log, folder.path());
    let events = log.events(2, 2).await;
    receiver.until_delivered(2).await;
    command(&log, "pause", lane(&subscription, &events[0], 0, LaneAction::Pause)).await;
    until_carried_out(&log, "pause").await;
    worker.abort().await;
    std::fs::remove_file(folder.path().join("ledger-0.redb")).unwrap();
    let worker = Running::start(&log, folder.path());
    log.events(20, 2).await;
    let requests = receiver.until_delivered(12).await;
    assert_eq!(requests.iter().filter(|request| request.workflow == "w0").count(), 1, "paused");
    command(&log, "resume", lane(&subscription, &events[0], 0, LaneAction::Resume)).await;
    let requests = receiver.until_delivered(22).await;
    crate::support::assert_in_order(&requests, 2, 11);
    worker.stop().await;
}

/// A second death after a redrive is a new run and a new entry, copied once also when the worker is killed; what is
/// resolved is not redriven any more.
#[tokio::test(flavor = "multi_thread")]
async fn a_second_death_is_a_new_entry_and_can_be_resolved() {
    let mut log = Log::start().await;
    let receiver = Receiver::start(|_| 422).await;
    let subscription = log.subscribe("billing", &receiver, 1).await;
    let events = log.events(1, 1).await;
    let folder = tempfile::tempdir().unwrap();
    let worker = Running::start(&log, folder.path());
    log.read("DLQ", |messages| messages.len() == 1).await;
    let redrive = |run| Action::Redrive(internal::Redrive { items: vec![item(&subscription, &events[0], 1, run)] });
    command(&log, "first", redrive(0)).await;
    log.outcomes(2).await;
    worker.abort().await;
    let worker = Running::start(&log, folder.path());
    let copies = log.read("DLQ", |messages| messages.len() == 2).await;
    let subjects: Vec<_> = copies.iter().map(|copy| copy.subject.clone()).collect();
    let id = events[0].id;
    assert_eq!(subjects, [format!("dlq.billing.w0.{id}.1.0"), format!("dlq.billing.w0.{id}.1.1")]);
    let resolved = OutcomeKind::Resolved.into();
    let close = internal::CloseDeadLetters { items: vec![item(&subscription, &events[0], 1, 1)], kind: resolved };
    command(&log, "resolve", Action::Close(close)).await;
    command(&log, "too late", redrive(1)).await;
    let too_late = until_carried_out(&log, "too late").await;
    assert_eq!(too_late.items[0].status(), internal::CommandStatus::NotApplicable);
    worker.stop().await;
    let kinds: Vec<_> = log.outcomes(3).await.iter().map(|outcome| (outcome.run, outcome.kind())).collect();
    let dead = OutcomeKind::DeadLettered;
    assert_eq!(kinds, [(0, dead), (1, dead), (2, OutcomeKind::Resolved)]);
    assert_eq!(log.read("DLQ", |messages| messages.len() >= 2).await.len(), 2, "copies are made once");
}

/// A resolution that is cancelled while its shard has no owner is not carried out, and the dead letter can be redriven.
#[tokio::test(flavor = "multi_thread")]
async fn what_is_cancelled_before_an_owner_reads_it_is_not_carried_out() {
    let mut log = Log::start().await;
    let receiver = Receiver::start(|request| if request.replay { 200 } else { 422 }).await;
    let subscription = log.subscribe("billing", &receiver, 1).await;
    let events = log.events(1, 1).await;
    let folder = tempfile::tempdir().unwrap();
    let worker = Running::start(&log, folder.path());
    log.outcomes(1).await;
    worker.stop().await;
    let kind = OutcomeKind::Resolved.into();
    let close = internal::CloseDeadLetters { items: vec![item(&subscription, &events[0], 1, 0)], kind };
    command(&log, "resolve", Action::Close(close)).await;
    command(&log, "cancel", Action::Cancel(internal::CancelDeadLetters { operation: "resolve".into(), run: 1 })).await;
    let items = vec![item(&subscription, &events[0], 1, 0)];
    command(&log, "redrive", Action::Redrive(internal::Redrive { items })).await;
    let worker = Running::start(&log, folder.path());
    receiver.until_delivered(1).await;
    let resolved = until_carried_out(&log, "resolve").await;
    assert_eq!(resolved.items[0].status(), internal::CommandStatus::NotApplicable);
    worker.stop().await;
    let kinds: Vec<_> = log.outcomes(2).await.iter().map(|outcome| (outcome.run, outcome.kind())).collect();
    assert_eq!(kinds, [(0, OutcomeKind::DeadLettered), (3, OutcomeKind::Delivered)]);
}

/// Delivered events come again, in order, as a replay, once for each request.
#[tokio::test(flavor = "multi_thread")]
async fn a_replay_delivers_again_in_order() {
    let mut log = Log::start().await;
    let receiver = Receiver::start(|_| 200).await;
    let subscription = log.subscribe("billing", &receiver, 1).await;
    let events = log.events(5, 1).await;
    let folder = tempfile::tempdir().unwrap();
    let worker = Running::start(&log, folder.path());
    receiver.until_delivered(5).await;
    log.outcomes(5).await;
    let items: Vec<_> =
        events.iter().enumerate().map(|(index, event)| item(&subscription, event, index as u64 + 1, 0)).collect();
    for _ in 0..2 {
        command(&log, "again", Action::Replay(internal::ReplayEvents { items: items.clone(), ..Default::default() }))
            .await;
    }
    receiver.until_delivered(10).await;
    // Behind both commands.
    log.events(1, 1).await;
    let requests = receiver.until_delivered(11).await;
    worker.stop().await;
    let replayed: Vec<_> = requests.iter().filter(|request| request.replay).map(|request| request.sequence).collect();
    assert_eq!(replayed, [1, 2, 3, 4, 5]);
}

/// A redrive that is committed and has had no effect when the worker dies: its successor, which knows it from the log alone,
/// delivers it once, and the same request sent again does nothing.
#[tokio::test(flavor = "multi_thread")]
async fn a_command_takes_effect_once_after_a_kill_that_follows_its_commit() {
    let mut log = Log::start().await;
    let receiver = Receiver::start(|request| if request.sequence == 2 && !request.replay { 422 } else { 200 }).await;
    let subscription = log.subscribe("billing", &receiver, 1).await;
    let events = log.events(3, 1).await;
    let folder = tempfile::tempdir().unwrap();
    let worker = Running::start(&log, folder.path());
    log.outcomes(3).await;
    // Paused: what is committed now waits.
    let catalog = Catalog::new(log.connection.clone(), weft_testkit::master_key());
    let found = async || catalog.read().await.unwrap().subscriptions["billing"].clone();
    let set_paused = async |paused: bool| {
        let found = found().await;
        let changed = v1::Subscription { paused, ..found.value.as_ref().clone() };
        catalog.put_subscription(&changed, found.revision).await.unwrap()
    };
    let revision = set_paused(true).await;
    let is_known = |commit: &internal::Commit| {
        let revised = |change: &internal::SubscriptionChange| matches!(&change.change, Some(internal::subscription_change::Change::Revised(revised)) if revised.revision == revision);
        commit.subscriptions.iter().any(revised)
    };
    log.commits(|commits| commits.iter().any(is_known)).await;
    let redrive = Action::Redrive(internal::Redrive { items: vec![item(&subscription, &events[1], 2, 0)] });
    command(&log, "again", redrive.clone()).await;
    let result = until_carried_out(&log, "again").await;
    assert_eq!(result.items[0].status(), internal::CommandStatus::Taken);
    worker.abort().await;
    std::fs::remove_file(folder.path().join("ledger-0.redb")).unwrap();
    assert!(receiver.requests.lock().unwrap().iter().all(|request| !request.replay), "killed before the effect");

    let worker = Running::start(&log, folder.path());
    command(&log, "again", redrive).await;
    set_paused(false).await;
    receiver.until_delivered(3).await;
    // Behind the repeated request.
    log.events(1, 1).await;
    receiver.until_delivered(4).await;
    worker.stop().await;
    let replays: Vec<_> = receiver
        .requests
        .lock()
        .unwrap()
        .iter()
        .filter(|request| request.replay)
        .map(|r| (r.sequence, r.attempt))
        .collect();
    assert_eq!(replays, [(2, 1)]);
    let results = log.commits(|_| true).await.into_iter().flat_map(|commit| commit.results);
    assert_eq!(results.filter(|result| result.request_id == "again").count(), 1);
}
