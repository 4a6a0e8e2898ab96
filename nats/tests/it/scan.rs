//! Pages of events: everything once, in order, and never a silent gap.

use std::collections::BTreeMap;

use bytes::Bytes;
use jiff::Timestamp;
use weft_nats::{
    append::Appender,
    connect::Connection,
    cursor::Cursor,
    event::StoredEvent,
    scan::{self, Filter, PAGE_BYTES_MAX, Page, ScanError},
    subject::Layout,
};
use weft_proto::ids::{ShardId, StreamSeq, WorkflowId};
use weft_testkit::{TestLog, TestServer, event, spec};

struct Log {
    _server: TestServer,
    connection: Connection,
    layout: Layout,
    ends: BTreeMap<ShardId, StreamSeq>,
    appender: Appender,
}

impl Log {
    async fn start(shards: u32) -> Self {
        let TestLog { server, connection, layout, .. } = TestLog::of(spec(shards)).await;
        let appender = Appender::new(connection.clone());
        Self { _server: server, connection, layout, ends: BTreeMap::new(), appender }
    }

    /// Appends event `number` of a workflow.
    async fn append(&mut self, workflow: &str, number: u64, payload: Bytes) {
        let event = event(workflow).number(number).payload(payload).build();
        let end = self.ends.entry(self.layout.shard_of(&event.workflow)).or_default();
        *end = self.appender.append(*end, &[event.encode(self.layout)]).await.unwrap();
    }

    async fn page(&self, since: Option<&Cursor>, filter: &Filter, limit: usize) -> Page {
        scan::scan(&self.connection, self.layout, since, filter, limit).await.unwrap()
    }

    async fn purge_below(&self, shard: ShardId, seq: u64) {
        let stream = self.connection.jetstream().get_stream(self.layout.events_stream(shard)).await.unwrap();
        stream.purge().sequence(seq).await.unwrap();
    }
}

fn names(events: &[StoredEvent]) -> Vec<String> {
    events.iter().map(|stored| format!("{}-{}", stored.event.workflow, stored.event.sequence_number)).collect()
}

fn small() -> Bytes {
    Bytes::from_static(b"{}")
}

/// Pages of every size hold everything once; over shards each workflow comes in order.
#[tokio::test]
async fn pages_hold_everything_once() {
    let mut log = Log::start(3).await;
    let workflows = ["a", "b", "c", "d"];
    for number in 1..=5 {
        for workflow in workflows {
            log.append(workflow, number, small()).await;
        }
    }
    for limit in [1, 7, 1000] {
        let mut numbers: BTreeMap<String, Vec<u64>> = BTreeMap::new();
        let mut cursor = None;
        loop {
            let page = log.page(cursor.as_ref(), &Filter::default(), limit).await;
            assert!(page.events.len() <= limit);
            for stored in &page.events {
                let of_workflow = numbers.entry(stored.event.workflow.to_string()).or_default();
                of_workflow.push(stored.event.sequence_number.0);
            }
            cursor = Some(page.next);
            if !page.has_more {
                break;
            }
        }
        assert_eq!(numbers, workflows.map(|workflow| (workflow.to_owned(), vec![1, 2, 3, 4, 5])).into());
        let end = log.page(cursor.as_ref(), &Filter::default(), limit).await;
        assert!(end.events.is_empty() && !end.has_more);
        assert_eq!(Some(end.next), cursor);
    }
}

/// With a workflow only its own subject is read: what is said of more is exact, and the cursor moves to the end with it.
#[tokio::test]
async fn one_workflow_is_read_alone() {
    let mut log = Log::start(1).await;
    for number in 1..=3 {
        log.append("a", number, small()).await;
        log.append("b", number, small()).await;
    }
    let only_a = Filter { workflow: Some(WorkflowId::new("a").unwrap()), ..Filter::default() };
    let first = log.page(None, &only_a, 2).await;
    assert_eq!((names(&first.events), first.has_more), (vec!["a-1".into(), "a-2".into()], true));
    let last = log.page(Some(&first.next), &only_a, 1).await;
    assert_eq!((names(&last.events), last.has_more), (vec!["a-3".into()], false));
    let none = log.page(Some(&last.next), &only_a, 1).await;
    assert_eq!((none.events.len(), none.next.position(ShardId(0))), (0, StreamSeq(6)));
    for (event_type, source, taken) in [("order.*", "shop", 6), ("*.refused", "shop", 0), ("*", "other", 0)] {
        let filter = Filter { event_type: Some(event_type.into()), source: Some(source.into()), ..Filter::default() };
        assert_eq!(log.page(None, &filter, 100).await.events.len(), taken, "{event_type} {source}");
    }
}

/// A cursor whose successor has been dropped is refused with the cursor to continue from, filtered or not.
#[tokio::test]
async fn an_expired_cursor_is_never_answered_with_what_comes_next() {
    let mut log = Log::start(1).await;
    let empty = log.page(None, &Filter::default(), 1).await.next;
    for number in 1..=5 {
        log.append("a", number, small()).await;
    }
    log.purge_below(ShardId(0), 4).await;
    let only_a = Filter { workflow: Some(WorkflowId::new("a").unwrap()), ..Filter::default() };
    let beyond = Cursor::new(log.layout, [StreamSeq(6)]);
    for gone in [&empty, &Cursor::new(log.layout, [StreamSeq(2)]), &beyond] {
        for filter in [&Filter::default(), &only_a] {
            let refused = scan::scan(&log.connection, log.layout, Some(gone), filter, 10).await;
            let Err(ScanError::Expired { oldest }) = refused else { panic!("{gone:?}: {refused:?}") };
            assert_eq!(names(&log.page(Some(&oldest), filter, 10).await.events), ["a-4", "a-5"]);
        }
    }
    let kept = Cursor::new(log.layout, [StreamSeq(3)]);
    assert_eq!(names(&log.page(Some(&kept), &only_a, 10).await.events), ["a-4", "a-5"]);
    assert_eq!(names(&log.page(None, &Filter::default(), 10).await.events), ["a-4", "a-5"]);
}

/// A page of large events ends before it fills the memory, and what is not ours is passed over.
#[tokio::test]
async fn a_page_is_bounded_by_bytes() {
    let mut log = Log::start(1).await;
    let foreign = log.connection.jetstream().publish("events.foreign", "not ours".into()).await.unwrap();
    log.ends.insert(ShardId(0), StreamSeq(foreign.await.unwrap().sequence));
    let large = Bytes::from(vec![b' '; 1 << 20]);
    for number in 1..=10 {
        log.append("a", number, large.clone()).await;
    }
    let first = log.page(None, &Filter::default(), 1000).await;
    let bytes: usize = first.events.iter().map(|stored| stored.event.payload.len()).sum();
    assert!(first.has_more && bytes <= PAGE_BYTES_MAX + (1 << 20), "{bytes}");
    let rest = log.page(Some(&first.next), &Filter::default(), 1000).await;
    assert_eq!((first.events.len() + rest.events.len(), rest.has_more), (10, false));
}

/// A time stands for the position in front of the first message stored at or after it.
#[tokio::test]
async fn a_time_is_found_by_searching() {
    let mut log = Log::start(1).await;
    for number in 1..=9 {
        log.append("a", number, small()).await;
    }
    log.purge_below(ShardId(0), 3).await;
    let page = log.page(None, &Filter::default(), 100).await;
    let before = async |time| scan::before_time(&log.connection, "EVENTS", time).await.unwrap();
    for stored in &page.events {
        let found = before(stored.stored_at).await;
        assert!(found < stored.seq, "{found} for {}", stored.seq);
        assert!(page.events.iter().all(|other| other.stored_at >= stored.stored_at || other.seq <= found));
    }
    assert_eq!(before(Timestamp::MIN).await, StreamSeq(2));
    assert_eq!(before(Timestamp::MAX).await, StreamSeq(9));
}

/// Behind an event: exact in its own shard, early enough in the others.
#[tokio::test]
async fn an_events_cursor_leaves_nothing_out() {
    let mut log = Log::start(3).await;
    let workflows = ["a", "b", "c", "d", "e"];
    for number in 1..=2 {
        for workflow in workflows {
            log.append(workflow, number, small()).await;
        }
    }
    let shard = log.layout.shard_of(&WorkflowId::new("c").unwrap());
    let stored = log.page(None, &Filter::default(), 100).await.events;
    let first_c = stored.iter().find(|stored| names(std::slice::from_ref(stored)) == ["c-1"]).unwrap();
    let cursor = scan::behind(&log.connection, log.layout, shard, first_c.seq).await.unwrap();
    let found = names(&log.page(Some(&cursor), &Filter::default(), 100).await.events);
    assert!(!found.contains(&"c-1".to_owned()), "{found:?}");
    assert!(workflows.iter().all(|workflow| found.contains(&format!("{workflow}-2"))), "{found:?}");
}
