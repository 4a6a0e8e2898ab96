//! Streams that are not those of the commits: restored from a copy, without their newest part, or created again.

use weft_nats::{direct, position::Position, streams};
use weft_proto::{
    ids::StreamSeq,
    internal::{self, command::Action, outcome_record::Record},
};

use crate::support::{Log, Receiver, Request, Running, Saved};

/// A log of which `kept` of 30 events are left in EVENTS, after all of them have been delivered to a subscription.
struct Scene {
    log: Log,
    receiver: Receiver,
    folder: tempfile::TempDir,
    /// EVENTS with all 30.
    whole: Saved,
}

impl Scene {
    async fn with_kept(kept: usize) -> Self {
        let mut log = Log::start().await;
        let receiver = Receiver::start(|_| 200).await;
        log.subscribe("billing", &receiver, 1).await;
        let folder = tempfile::tempdir().unwrap();
        log.events(kept, 2).await;
        let copy = log.save("EVENTS").await;
        log.events(30 - kept, 2).await;
        let worker = Running::start(&log, folder.path());
        receiver.until_delivered(30).await;
        log.outcomes(30).await;
        worker.stop().await;
        let whole = log.save("EVENTS").await;
        log.restore(&copy).await;
        Self { log, receiver, folder, whole }
    }

    fn delivered(&self) -> Vec<Request> {
        self.receiver.requests.lock().unwrap().clone()
    }
}

/// The position of a message of a stream as it is now.
async fn position(log: &Log, stream: &str, seq: u64) -> internal::LogPosition {
    let state = streams::state(&log.connection, stream).await.unwrap();
    let mut position = Position::start(state.created);
    if seq > 0 {
        position.advance(&direct::get(&log.connection, stream, StreamSeq(seq)).await.unwrap().unwrap());
    }
    internal::LogPosition::from(&position)
}

/// Adopts the shard after these messages of EVENTS and COMMANDS.
async fn adopt(log: &Log, events: u64, commands: u64) {
    let newest = log.commits(|commits| !commits.is_empty()).await.pop().unwrap();
    let wanted = internal::AdoptShard {
        shard: 0,
        events_before: newest.events,
        commands_before: newest.commands,
        events_after: Some(position(log, "EVENTS", events).await),
        commands_after: Some(position(log, "COMMANDS", commands).await),
    };
    let command = internal::Command {
        request_id: format!("adopt {events}"),
        operator: "ann".into(),
        reason: "power cut".into(),
        action: Some(Action::Adopt(wanted)),
        ..Default::default()
    };
    log.publish("commands.0", &command).await;
}

async fn newest_epoch(log: &Log) -> u64 {
    log.commits(|commits| !commits.is_empty()).await.iter().map(|commit| commit.epoch).max().unwrap()
}

/// P1, P5: what is accepted after EVENTS lost its newest part is neither skipped nor shown as delivered: the shard stands
/// still until an operator decides, also once EVENTS has grown past the old cursor; then everything is delivered.
#[tokio::test(flavor = "multi_thread")]
async fn events_that_lost_a_part_and_grew_again_are_delivered_once_the_shard_is_adopted() {
    let mut scene = Scene::with_kept(10).await;
    let (epoch, before) = (newest_epoch(&scene.log).await, scene.delivered().len());
    let mut worker = Running::start(&scene.log, scene.folder.path());
    let said = worker.until_missing(|missing| missing.is_some_and(|text| text.contains("stopped"))).await.unwrap();
    assert!(said.contains("shard 0") && said.contains("EVENTS ends at 10 but its outcomes reach to 30"), "{said}");
    assert!(said.contains("weft shard adopt 0"), "{said}");

    let events = scene.log.events(30, 2).await;
    let said = worker.until_missing(|missing| missing.is_some_and(|text| text.contains("another message at 30"))).await;
    assert!(said.unwrap().matches(" stored at ").count() == 2, "both positions are named");
    assert_eq!(scene.delivered().len(), before, "nothing is attempted");
    assert_eq!(newest_epoch(&scene.log).await, epoch, "nothing is committed");

    adopt(&scene.log, 10, 0).await;
    worker.until_missing(|missing| missing.is_none()).await;
    let requests = scene.receiver.until_delivered(60).await;
    for event in &events {
        let id = event.id.to_string();
        assert_eq!(requests.iter().filter(|request| request.id == id).count(), 1, "{id} is delivered once");
    }
    let commits = scene.log.commits(|commits| commits.iter().any(|commit| commit.cursor == 40)).await;
    let adopted = commits.iter().find_map(|commit| commit.adopted.as_ref()).unwrap();
    assert_eq!((adopted.operator.as_str(), adopted.reason.as_str()), ("ann", "power cut"));
    assert_eq!(adopted.events_before.as_ref().map(|position| position.sequence), Some(30));
    worker.stop().await;
}

/// A stopped shard continues automatically once the right streams are back.
#[tokio::test(flavor = "multi_thread")]
async fn a_stopped_shard_goes_on_when_its_own_stream_is_back() {
    let mut scene = Scene::with_kept(10).await;
    let mut worker = Running::start(&scene.log, scene.folder.path());
    worker.until_missing(|missing| missing.is_some_and(|text| text.contains("EVENTS ends at 10"))).await;
    let Scene { log, whole, .. } = &mut scene;
    log.restore(whole).await;
    worker.until_missing(|missing| missing.is_none()).await;
    scene.log.events(2, 2).await;
    let requests = scene.receiver.until_delivered(32).await;
    assert_eq!(requests.len(), 32, "nothing comes twice");
    worker.stop().await;
}

/// A stream of the same name that was created at another time is another stream, from its first event on.
#[tokio::test(flavor = "multi_thread")]
async fn events_that_were_created_again_are_all_delivered_once_the_shard_is_adopted() {
    let mut scene = Scene::with_kept(10).await;
    scene.log.renew("EVENTS").await;
    let mut worker = Running::start(&scene.log, scene.folder.path());
    let said = worker.until_missing(|missing| missing.is_some_and(|text| text.contains("was created at"))).await;
    assert!(said.unwrap().contains("stopped"), "not the difference of a leader that lags");
    scene.log.events(40, 2).await;
    adopt(&scene.log, 0, 0).await;
    scene.receiver.until_delivered(70).await;
    worker.stop().await;
}

/// As EVENTS, COMMANDS: a command of a stream that was created again is not taken for one that was carried out.
#[tokio::test(flavor = "multi_thread")]
async fn commands_that_were_created_again_stop_the_shard_until_it_is_adopted() {
    let mut log = Log::start().await;
    let receiver = Receiver::start(|_| 200).await;
    log.subscribe("billing", &receiver, 1).await;
    let folder = tempfile::tempdir().unwrap();
    let worker = Running::start(&log, folder.path());
    log.events(4, 2).await;
    receiver.until_delivered(4).await;
    worker.stop().await;
    log.renew("COMMANDS").await;
    let mut worker = Running::start(&log, folder.path());
    worker.until_missing(|missing| missing.is_some_and(|text| text.contains("COMMANDS was created at"))).await;
    adopt(&log, 4, 0).await;
    worker.until_missing(|missing| missing.is_none()).await;
    log.events(2, 2).await;
    assert_eq!(receiver.until_delivered(6).await.len(), 6);
    worker.stop().await;
}

/// An order names the state that it is for; in any other it does nothing.
#[tokio::test(flavor = "multi_thread")]
async fn an_order_for_another_state_of_the_shard_does_nothing() {
    let mut scene = Scene::with_kept(10).await;
    let wanted = internal::AdoptShard {
        shard: 0,
        events_before: Some(internal::LogPosition { sequence: 29, ..Default::default() }),
        commands_before: Some(internal::LogPosition::default()),
        events_after: Some(position(&scene.log, "EVENTS", 10).await),
        commands_after: Some(position(&scene.log, "COMMANDS", 0).await),
    };
    let action = Some(Action::Adopt(wanted));
    let command =
        internal::Command { request_id: "stale".into(), operator: "ann".into(), action, ..Default::default() };
    scene.log.publish("commands.0", &command).await;
    let mut worker = Running::start(&scene.log, scene.folder.path());
    worker.until_missing(|missing| missing.is_some_and(|text| text.contains("stopped"))).await;
    adopt(&scene.log, 10, 0).await;
    worker.until_missing(|missing| missing.is_none()).await;
    scene.log.events(2, 2).await;
    scene.receiver.until_delivered(32).await;
    worker.stop().await;
    let commits = scene.log.commits(|_| true).await;
    assert_eq!(commits.iter().filter(|commit| commit.adopted.is_some()).count(), 1);
}

/// Commits of a version that named no positions count as those of the streams as they are, unless these end too early;
/// from then on commits name them.
#[tokio::test(flavor = "multi_thread")]
async fn commits_without_positions_are_accepted_and_followed_by_commits_with_them() {
    let mut log = Log::start().await;
    let receiver = Receiver::start(|_| 200).await;
    log.subscribe("billing", &receiver, 1).await;
    log.events(5, 1).await;
    let commit = internal::Commit { epoch: 1, cursor: 3, ..Default::default() };
    log.publish("outcomes.0", &internal::OutcomeRecord { record: Some(Record::Commit(commit)) }).await;
    let folder = tempfile::tempdir().unwrap();
    let worker = Running::start(&log, folder.path());
    receiver.until_delivered(2).await;
    worker.stop().await;
    let commits = log.commits(|commits| commits.iter().any(|commit| commit.cursor == 5)).await;
    for commit in commits.iter().filter(|commit| commit.epoch > 1) {
        assert_eq!(commit.events, Some(position(&log, "EVENTS", commit.cursor).await), "{commit:?}");
        assert_eq!(commit.commands, Some(position(&log, "COMMANDS", 0).await));
    }
}

/// A file of a state that OUTCOMES no longer has, since it was restored and has grown again, is built again.
#[tokio::test(flavor = "multi_thread")]
async fn a_ledger_of_lost_commits_is_rebuilt() {
    let mut log = Log::start().await;
    let receiver = Receiver::start(|_| 200).await;
    log.subscribe("billing", &receiver, 1).await;
    let folder = tempfile::tempdir().unwrap();
    let worker = Running::start(&log, folder.path());
    log.events(4, 2).await;
    receiver.until_delivered(4).await;
    worker.stop().await;
    let copy = log.save("OUTCOMES").await;
    let worker = Running::start(&log, folder.path());
    log.events(4, 2).await;
    receiver.until_delivered(8).await;
    worker.stop().await;
    let reached = streams::state(&log.connection, "OUTCOMES").await.unwrap().last;
    log.restore(&copy).await;
    // Another owner settles nothing of the newer events, as often as it takes to get as far.
    let newest = log.commits(|commits| !commits.is_empty()).await.pop().unwrap();
    let mut last = streams::state(&log.connection, "OUTCOMES").await.unwrap().last;
    while last <= reached {
        let commit = internal::Commit { epoch: newest.epoch + 1, at_ms: 1, ..newest.clone() };
        log.publish("outcomes.0", &internal::OutcomeRecord { record: Some(Record::Commit(commit)) }).await;
        last = last.next();
    }
    let worker = Running::start(&log, folder.path());
    // By the file of the first owner they would be settled.
    let requests = receiver.until(|requests| requests.len() >= 12).await;
    assert_eq!(requests.len(), 12, "those four come again");
    worker.stop().await;
}
