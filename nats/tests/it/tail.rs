//! Tails: history and live events without a gap, from one consumer per shard however many clients there are.

use std::collections::BTreeMap;

use futures_util::future::join_all;
use tokio::time::timeout;
use weft_nats::{
    append::Appender,
    cursor::Cursor,
    scan::{self, Filter, ScanError},
    streams,
    subject::Layout,
    tail::{Tail, Tails},
};
use weft_proto::ids::{ShardId, StreamSeq, WorkflowId};
use weft_testkit::{PATIENCE, TestLog, add_consumers, consumer_names, event, eventually, spec};

/// Appends events to a log, and knows where each of its streams ends.
struct Writer {
    layout: Layout,
    appender: Appender,
    ends: BTreeMap<ShardId, StreamSeq>,
}

async fn start(shards: u32) -> (TestLog, Writer) {
    let log = TestLog::of(spec(shards)).await;
    let writer = Writer { layout: log.layout, appender: Appender::new(log.connection.clone()), ends: BTreeMap::new() };
    (log, writer)
}

impl Writer {
    /// Appends the events `numbers` of each workflow, one workflow after the other.
    async fn append(&mut self, workflows: &[String], numbers: std::ops::RangeInclusive<u64>) {
        for number in numbers {
            for workflow in workflows {
                let event = event(workflow).number(number).build();
                let end = self.ends.entry(self.layout.shard_of(&event.workflow)).or_default();
                *end = self.appender.append(*end, &[event.encode(self.layout)]).await.unwrap();
            }
        }
    }
}

async fn next(tail: &mut Tail) -> (String, u64) {
    let stored = timeout(PATIENCE, tail.next()).await.expect("an event in time").unwrap();
    (stored.event.workflow.as_str().to_owned(), stored.event.sequence_number.0)
}

/// Clients with all kinds of filters open tails while events come, from the oldest event, from where they are and from
/// cursors in between, close and come again: each gets each of its events once and in order, from one consumer per shard.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn many_clients_share_one_reader_and_each_gets_everything_once() {
    const EVENTS: u64 = 60;
    const CLIENTS: usize = 60;
    let (log, mut writer) = start(2).await;
    let workflows: Vec<String> = (0..8).map(|n| format!("w{n}")).collect();
    let tails = Tails::new(log.connection.clone(), log.layout);
    let first_stream = log.layout.events_stream(ShardId(0));
    writer.append(&workflows, 1..=EVENTS / 3).await;
    let writing = async {
        writer.append(&workflows, EVENTS / 3 + 1..=EVENTS).await;
        // While all clients are there.
        consumer_names(&log.connection, &first_stream).await
    };
    let client = async |n: usize| {
        let filter = match n % 3 {
            0 => Filter::default(),
            1 => Filter { workflow: Some(WorkflowId::new(workflows[n % 8].as_str()).unwrap()), ..Filter::default() },
            _ => Filter { workflow_prefixes: vec![workflows[n % 8].clone()], ..Filter::default() },
        };
        let wanted = if n.is_multiple_of(3) { workflows.clone() } else { vec![workflows[n % 8].clone()] };
        let mut cursor = scan::oldest(&log.connection, log.layout).await.unwrap();
        let mut seen: BTreeMap<String, u64> = BTreeMap::new();
        let mut left = wanted.len() as u64 * EVENTS;
        while left > 0 {
            // Some stay, some come again after each few events.
            let stay = if n.is_multiple_of(2) { left } else { left.min(7 + n as u64) };
            let mut tail = tails.open(filter.clone(), cursor).await.unwrap();
            for _ in 0..stay {
                let (workflow, number) = next(&mut tail).await;
                let last = seen.entry(workflow.clone()).or_default();
                assert_eq!(number, *last + 1, "client {n} of {workflow}");
                *last = number;
            }
            left -= stay;
            cursor = tail.cursor().clone();
        }
        assert!(wanted.iter().all(|workflow| seen[workflow] == EVENTS), "client {n}: {seen:?}");
    };
    let (consumers, _) = tokio::join!(writing, join_all((0..CLIENTS).map(client)));
    assert!(consumers.len() <= 1, "{consumers:?}");
    let none_left =
        eventually(PATIENCE, async || consumer_names(&log.connection, &first_stream).await.is_empty()).await;
    assert!(none_left, "without a tail there is no consumer");
}

/// A client that takes nothing while thousands of events pass delays no other client and reads the rest from the log.
#[tokio::test]
async fn a_slow_client_continues_from_the_log() {
    const EVENTS: u64 = 2500;
    let (log, mut writer) = start(1).await;
    let workflows = ["w".to_owned()];
    let tails = Tails::new(log.connection.clone(), log.layout);
    let open = async || tails.open(Filter::default(), Cursor::new(log.layout, [])).await.unwrap();
    let (mut slow, mut quick) = (open().await, open().await);
    writer.append(&workflows, 1..=1).await;
    assert_eq!(next(&mut slow).await.1, 1);
    writer.append(&workflows, 2..=EVENTS).await;
    for number in 1..=EVENTS {
        assert_eq!(next(&mut quick).await.1, number);
    }
    for number in 2..=EVENTS {
        assert_eq!(next(&mut slow).await.1, number);
    }
    writer.append(&workflows, EVENTS + 1..=EVENTS + 1).await;
    assert_eq!((next(&mut slow).await.1, next(&mut quick).await.1), (EVENTS + 1, EVENTS + 1));
}

/// A restart of the server ends no tail.
#[tokio::test]
async fn a_tail_survives_a_restart_of_the_server() {
    let (log, mut writer) = start(1).await;
    let workflows = ["w".to_owned()];
    let tails = Tails::new(log.connection.clone(), log.layout);
    let mut tail = tails.open(Filter::default(), Cursor::new(log.layout, [])).await.unwrap();
    writer.append(&workflows, 1..=3).await;
    assert_eq!(next(&mut tail).await.1, 1);
    log.server.restart().await;
    log.connection.connected().await;
    writer.append(&workflows, 4..=6).await;
    for number in 2..=6 {
        assert_eq!(next(&mut tail).await.1, number);
    }
}

/// Retention that overtakes a slow client is said, and never passed over.
#[tokio::test]
async fn a_client_that_retention_overtakes_is_told() {
    let (log, mut writer) = start(1).await;
    let tails = Tails::new(log.connection.clone(), log.layout);
    let mut tail = tails.open(Filter::default(), Cursor::new(log.layout, [])).await.unwrap();
    writer.append(&["w".to_owned()], 1..=2000).await;
    let stream = log.connection.jetstream().get_stream("EVENTS").await.unwrap();
    stream.purge().sequence(500).await.unwrap();
    let refused = timeout(PATIENCE, async {
        loop {
            match tail.next().await {
                Ok(stored) => assert!(stored.seq.0 < 500, "{}", stored.seq),
                Err(error) => return error,
            }
        }
    });
    let ScanError::Expired { oldest } = refused.await.unwrap() else { panic!("expired") };
    assert_eq!(oldest.position(ShardId(0)), StreamSeq(499));
}

/// Half of a stream's consumers are reserved for the readers that deliver and project: a tail is refused, and they are
/// not. One that needs no consumer, because another tail reads the shard already, is opened.
#[tokio::test]
async fn tails_leave_consumers_to_the_other_readers() {
    let (log, _) = start(1).await;
    let tails = Tails::new(log.connection.clone(), log.layout);
    let open = async |tails: &Tails| tails.open(Filter::default(), Cursor::new(log.layout, [])).await;
    let first = open(&tails).await.unwrap();
    let limit = streams::consumers(&log.connection, "EVENTS").await.unwrap().limit;
    add_consumers(&log.connection, "EVENTS", limit / 2 + 1).await;
    open(&tails).await.expect("shares the reader");
    let other = Tails::new(log.connection.clone(), log.layout);
    let ScanError::Reserved { consumers, .. } = open(&other).await.unwrap_err() else { panic!("reserved") };
    assert!(consumers > limit / 2);
    drop(first);
}
