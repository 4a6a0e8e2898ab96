//! A history follows its log through faults of the server, of the streams and of their contents.

use std::{path::Path, sync::Arc, time::Duration};

use tokio::sync::watch;
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use weft_catalog::Snapshot;
use weft_index::history::{AsOf, History, HistoryOptions, LaneFilter};
use weft_nats::{
    append::Appender,
    connect::Connection,
    event::Event,
    records,
    streams::{self, LogSpec},
    subject::Layout,
};
use weft_proto::{
    ids::{EventId, ShardId, StreamSeq, SubscriptionUid},
    internal::{self, OutcomeKind, outcome_record::Record},
    v1,
};
use weft_testkit::{PATIENCE, TestServer, eventually};

const SHARD: ShardId = ShardId(0);

fn event_id(number: u64) -> EventId {
    weft_testkit::event::id(&format!("order-{number}"), 1)
}

/// Appends events that are delivered at once.
struct Writer {
    appender: Appender,
    layout: Layout,
    events: StreamSeq,
    outcomes: StreamSeq,
}

impl Writer {
    fn new(connection: &Connection, layout: Layout) -> Self {
        let appender = Appender::new(connection.clone());
        Self { appender, layout, events: StreamSeq(0), outcomes: StreamSeq(0) }
    }

    /// Events with the numbers of their sequences, of a workflow each.
    async fn delivered(&mut self, count: u64) {
        let numbers: Vec<u64> = (self.events.0 + 1..=self.events.0 + count).collect();
        let messages: Vec<_> = numbers.iter().map(|number| event(*number).encode(self.layout)).collect();
        self.events = self.appender.append(self.events, &messages).await.unwrap();
        let outcomes = numbers.iter().map(|number| outcome(*number)).collect();
        let commit = internal::Commit { cursor: self.events.0, outcomes, ..Default::default() };
        let record = internal::OutcomeRecord { record: Some(Record::Commit(commit)) };
        let message = records::encode(self.layout.outcomes_subject(SHARD), &record);
        self.outcomes = self.appender.append(self.outcomes, &[message]).await.unwrap();
    }
}

fn event(number: u64) -> Event {
    weft_testkit::event(&format!("order-{number}")).build()
}

fn outcome(number: u64) -> internal::Outcome {
    internal::Outcome {
        subscription: SubscriptionUid::from_bytes([7; 16]).to_vec(),
        sequence: number,
        kind: OutcomeKind::Delivered.into(),
        workflow_id: format!("order-{number}"),
        event_id: event_id(number).to_vec(),
        attempts: 1,
        at_ms: 1,
        ..Default::default()
    }
}

async fn start(connection: Connection, layout: Layout, folder: &Path, cancel: &CancellationToken) -> History {
    let options = HistoryOptions {
        folder: folder.to_owned(),
        dead_letter_retention: Duration::from_secs(60),
        sweep_interval: Duration::from_millis(20),
    };
    let catalog = watch::Sender::new(Arc::new(Snapshot::default())).subscribe();
    History::start(connection, layout, options, catalog, cancel.clone(), &TaskTracker::new()).await.unwrap()
}

async fn is_delivered(history: &History, number: u64) -> bool {
    let event = history.event_at(SHARD, StreamSeq(number)).await;
    event.is_ok_and(|event| event.is_some_and(|event| event.status.message() == v1::EventStatus::Delivered))
}

/// P5: a log is restored from a copy of ten of its thirty events. Until the history has noticed that, it is not
/// current, and does not show the lost events as delivered.
#[tokio::test]
async fn a_history_that_has_read_more_than_the_log_holds_is_not_current() {
    let server = TestServer::start().await;
    let connection = server.connection("test").await;
    let spec = LogSpec { body_bytes_max: 1 << 20, ..LogSpec::default() };
    let layout = streams::ensure(&connection, &spec).await.unwrap();
    let mut writer = Writer::new(&connection, layout);
    writer.delivered(10).await;
    let copy = server.backup().await;
    connection.connected().await;
    writer.delivered(20).await;
    let folder = tempfile::tempdir().unwrap();
    let cancel = CancellationToken::new();
    let history = start(connection.clone(), layout, folder.path(), &cancel).await;
    assert_eq!(history.catch_up(&[SHARD], PATIENCE).await.unwrap(), AsOf::Current);
    history.verify(SHARD, PATIENCE).await.unwrap();
    assert!(is_delivered(&history, 30).await);

    server.restore(&copy).await;
    let is_current = async || match history.catch_up(&[SHARD], Duration::ZERO).await {
        Ok(AsOf::Current) => {
            assert!(!is_delivered(&history, 30).await, "a lost event is shown as delivered");
            true
        }
        _ => false,
    };
    assert!(eventually(PATIENCE, is_current).await);
    history.verify(SHARD, PATIENCE).await.unwrap();
    assert!(is_delivered(&history, 10).await);
    cancel.cancel();
}

#[tokio::test]
async fn a_history_keeps_up_with_its_log() {
    let server = TestServer::start().await;
    let connection = server.connection("test").await;
    let spec = LogSpec { body_bytes_max: 1 << 20, ..LogSpec::default() };
    let layout = streams::ensure(&connection, &spec).await.unwrap();
    let mut writer = Writer::new(&connection, layout);
    writer.delivered(300).await;
    let folder = tempfile::tempdir().unwrap();
    let cancel = CancellationToken::new();
    let history = start(connection.clone(), layout, folder.path(), &cancel).await;
    let as_of = history.catch_up(&[SHARD], Duration::ZERO).await.unwrap();
    assert!(matches!(as_of, AsOf::Behind { messages, .. } if messages > 0), "just started: {as_of:?}");
    assert_eq!(history.catch_up(&[SHARD], PATIENCE).await.unwrap(), AsOf::Current);
    assert!(is_delivered(&history, 1).await && is_delivered(&history, 300).await);

    // The server is killed and restarted.
    server.kill();
    server.restart().await;
    connection.connected().await;
    writer.delivered(300).await;
    assert_eq!(history.catch_up(&[SHARD], PATIENCE).await.unwrap(), AsOf::Current);
    assert!(is_delivered(&history, 1).await && is_delivered(&history, 600).await);

    // Retention drops events: their rows expire with them.
    let stream = connection.jetstream().get_stream(layout.events_stream(SHARD)).await.unwrap();
    stream.purge().sequence(500).await.unwrap();
    let gone = async || history.position_of(event_id(499)).await.is_ok_and(|place| place.is_none());
    assert!(eventually(PATIENCE, gone).await);
    assert!(history.event_at(SHARD, StreamSeq(1)).await.unwrap().is_none());
    assert!(is_delivered(&history, 500).await, "nothing else goes");

    // The streams are created again while the history runs: it is rebuilt.
    for stream in [layout.events_stream(SHARD), layout.outcomes_stream(SHARD)] {
        connection.jetstream().delete_stream(stream).await.unwrap();
    }
    streams::ensure(&connection, &spec).await.unwrap();
    let mut writer = Writer::new(&connection, layout);
    writer.delivered(3).await;
    let rebuilt = async || is_delivered(&history, 3).await && !is_delivered(&history, 600).await;
    assert!(eventually(PATIENCE, rebuilt).await);
    assert_eq!(history.catch_up(&[SHARD], PATIENCE).await.unwrap(), AsOf::Current);
    assert!(history.progress().borrow().is_none());
    cancel.cancel();
}

/// A history that is rebuilt after OUTCOMES has dropped the records of a lane reads the lane, and its subscription, from the
/// checkpoint.
#[tokio::test]
async fn a_history_that_begins_in_the_middle_of_outcomes_starts_at_the_checkpoint() {
    let server = TestServer::start().await;
    let connection = server.connection("test").await;
    let spec = LogSpec { body_bytes_max: 1 << 20, ..LogSpec::default() };
    let layout = streams::ensure(&connection, &spec).await.unwrap();
    let mut writer = Writer::new(&connection, layout);
    for _ in 0..3 {
        writer.delivered(2).await;
    }
    let uid = SubscriptionUid::from_bytes([7; 16]).to_vec();
    let lane = |workflow: &str| internal::Lane {
        subscription: uid.clone(),
        workflow_id: workflow.into(),
        next: 6,
        last: 6,
        state: internal::LaneState::Blocked.into(),
        ..Default::default()
    };
    // `order-6` is settled by the last commit, which is still held.
    let lanes = vec![lane("order-6"), lane("order-blocked")];
    let subscriptions =
        vec![internal::SubscriptionState { subscription: uid.clone(), name: "billing".into(), ..Default::default() }];
    let chunk = internal::CheckpointChunk { position: 2, lanes, subscriptions, ..Default::default() };
    let end = internal::CheckpointEnd { position: 2, chunks: 1, first_chunk: 1, ..Default::default() };
    let mut appender = Appender::new(connection.clone());
    let mut last = StreamSeq(0);
    for record in [Record::Chunk(chunk), Record::End(end)] {
        let record = internal::OutcomeRecord { record: Some(record) };
        let message = records::encode(layout.checkpoints_subject(SHARD), &record);
        last = appender.append(last, &[message]).await.unwrap();
    }
    streams::drop_through(&connection, &layout.outcomes_stream(SHARD), StreamSeq(2)).await.unwrap();

    let folder = tempfile::tempdir().unwrap();
    let cancel = CancellationToken::new();
    let history = start(connection.clone(), layout, folder.path(), &cancel).await;
    assert_eq!(history.catch_up(&[SHARD], PATIENCE).await.unwrap(), AsOf::Current);
    let lanes = history.lanes(LaneFilter::default(), None, 10).await.unwrap().lanes;
    let found: Vec<_> = lanes.iter().map(|lane| (lane.workflow.as_str(), lane.subscription.as_str())).collect();
    assert_eq!(found, [("order-blocked", "billing")]);
    cancel.cancel();
}
