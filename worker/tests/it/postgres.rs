//! Deliveries to a real PostgreSQL: each event has its effect once, in order, and an error is the event's, the database's or the configuration's.

use std::{sync::Arc, time::Duration};

use bytes::Bytes;
use ipnet::IpNet;
use tokio_util::sync::CancellationToken;
use weft_nats::{event::StoredEvent, subject::Layout};
use weft_proto::{
    ids::{EventId, SequenceNumber, ShardId, WorkflowId},
    v1::{self, AttemptClass},
};
use weft_testkit::eventually;
use weft_worker::{
    destination::{
        Delivery, DeliveryResult, Destination, Destinations, Failure, FailureKind, InvalidDestination,
        clients::HttpClients,
        postgres::{Pools, PostgresDestination},
    },
    ownership::LeaseGuard,
    testing::TestPostgres,
};

use crate::http::delivery;

mod errors;
mod pool;
mod tls;
mod transactions;

const PATIENCE: Duration = Duration::from_secs(30);
const LOCAL: &str = "127.0.0.0/8";

/// A destination with its own connections, as in another worker.
fn destination(postgres: &v1::PostgresDestination) -> Arc<dyn Destination> {
    try_destination(postgres, &[LOCAL]).unwrap()
}

fn try_destination(
    postgres: &v1::PostgresDestination,
    allow: &[&str],
) -> Result<Arc<dyn Destination>, InvalidDestination> {
    make(&process(allow), postgres)
}

/// The destinations of a process.
fn process(allow: &[&str]) -> Destinations {
    Destinations::new(allow.iter().map(|network| network.parse().unwrap()).collect::<Vec<IpNet>>())
}

fn make(
    destinations: &Destinations,
    postgres: &v1::PostgresDestination,
) -> Result<Arc<dyn Destination>, InvalidDestination> {
    destinations.make(&v1::Subscription {
        destination: Some(v1::Destination { kind: Some(v1::destination::Kind::Postgres(postgres.clone())) }),
        ..Default::default()
    })
}

/// The default table, to be created.
fn table(server: &TestPostgres) -> v1::PostgresDestination {
    v1::PostgresDestination { dsns: vec![server.dsn()], create: true, ..Default::default() }
}

fn sql(server: &TestPostgres, sql: &str) -> v1::PostgresDestination {
    v1::PostgresDestination { sql: sql.into(), ..table(server) }
}

/// Events of one lane, with these data.
fn events(data: &[&str]) -> Vec<Delivery> {
    let template = Delivery { timeout: PATIENCE, ..delivery() };
    let mut previous = None;
    let events = data.iter().enumerate().map(|(index, data)| {
        let mut event = template.event.event.clone();
        event.id = EventId::unique();
        event.sequence_number = SequenceNumber(index as u64 + 1);
        event.previous = previous.replace(event.id);
        event.payload = Bytes::copy_from_slice(data.as_bytes());
        Delivery { event: Arc::new(StoredEvent { event, ..*template.event }), ..template.clone() }
    });
    events.collect()
}

fn numbered(count: usize) -> Vec<Delivery> {
    let data: Vec<String> = (1..=count).map(|number| format!("{{\"n\": {number}}}")).collect();
    events(&data.iter().map(String::as_str).collect::<Vec<_>>())
}

#[track_caller]
fn failure(result: DeliveryResult, count: usize, kind: FailureKind, contains: &str) -> Failure {
    let failure = result.failure.expect("a failure");
    assert_eq!((result.count, failure.kind), (count, kind), "{}", failure.error);
    assert!(failure.error.contains(contains), "{}", failure.error);
    failure
}

/// CONTRACT: the default table, its columns, and one row for each event in the order of the lane.
#[tokio::test]
async fn events_are_rows_in_order_each_once() {
    let server = TestPostgres::start().await;
    let destination = destination(&table(&server));
    let mut events = numbered(250);
    for (first, last) in [(0, 100), (50, 150), (0, 1), (150, 250), (0, 250)] {
        let batch = &events[first..last];
        assert_eq!(destination.deliver(batch).await, DeliveryResult::all(batch.len()), "{first}..{last}");
    }
    let rows = server.query("SELECT event_id, (data->>'n')::int FROM weft_events ORDER BY position").await;
    let expected = events
        .iter()
        .enumerate()
        .map(|(index, delivery)| vec![delivery.event.event.id.to_string(), (index + 1).to_string()]);
    assert_eq!(rows, expected.collect::<Vec<_>>());

    let row = server.query(
        "SELECT workflow_id, sequence_number, previous_event_id, type, source, time = received_at, data FROM weft_events \
         WHERE sequence_number <= 2 ORDER BY position",
    );
    let first = events.swap_remove(0).event.event.clone();
    let common = |number: &str, previous: &str| {
        let data = format!("{{\"n\": {number}}}");
        ["größe 1", number, previous, "order.paid", "shop"]
            .map(str::to_owned)
            .into_iter()
            .chain([data])
            .collect::<Vec<_>>()
    };
    let rows: Vec<Vec<String>> = row
        .await
        .into_iter()
        .map(|mut row| {
            row.remove(5);
            row
        })
        .collect();
    assert_eq!(rows, [common("1", "-"), common("2", &first.id.to_string())]);
    // A body that is not JSON, and none.
    let mut odd = events_with(&[("text/plain", b"\xff\x00"), ("application/json", b"")]);
    odd.iter_mut().for_each(|delivery| delivery.uid = events[0].uid);
    assert_eq!(destination.deliver(&odd).await, DeliveryResult::all(2));
    let data = server.query("SELECT data FROM weft_events ORDER BY position DESC LIMIT 2").await;
    assert_eq!(data, [vec!["-"], vec![r#"{"dataBase64": "/wA=", "dataContentType": "text/plain"}"#]]);
}

fn events_with(bodies: &[(&str, &'static [u8])]) -> Vec<Delivery> {
    let mut deliveries = numbered(bodies.len());
    for (delivery, (content_type, body)) in deliveries.iter_mut().zip(bodies) {
        let mut stored = (*delivery.event).clone();
        stored.event.content_type = (*content_type).into();
        stored.event.payload = Bytes::from_static(body);
        delivery.event = Arc::new(stored);
    }
    deliveries
}

/// An event that the database can never take is rejected alone: those before it are delivered, and its lane continues.
#[tokio::test]
async fn an_event_that_the_table_cannot_take_is_rejected_alone() {
    let server = TestPostgres::start().await;
    let destination = destination(&table(&server));
    assert_eq!(destination.deliver(&numbered(1)).await, DeliveryResult::all(1));
    server.query("ALTER TABLE weft_events ADD CHECK (data->>'bad' IS NULL); DELETE FROM weft_events").await;
    for (data, state) in
        [(r#"{"a": "\u0000"}"#, "22P05"), (r#"{"a": "\ud800"}"#, "22P02"), (r#"{"bad": true}"#, "23514")]
    {
        let batch = events(&["1", r#"{"a": "b\"\\,{}"}"#, data, "3"]);
        let failure = failure(destination.deliver(&batch).await, 2, FailureKind::Rejected, state);
        assert_eq!(failure.class, AttemptClass::Sql);
        assert_eq!(destination.deliver(&batch[3..]).await, DeliveryResult::all(1));
        let first = destination.deliver(&batch[2..]).await;
        assert_eq!((first.count, first.failure.unwrap().kind), (0, FailureKind::Rejected));
    }
    assert_eq!(server.query("SELECT count(*) FROM weft_events").await, [["9"]]);
    // Found at the end of the transaction: by the lane, event by event.
    server
        .query(
            "DELETE FROM weft_events; ALTER TABLE weft_events ADD CONSTRAINT late UNIQUE (sequence_number, workflow_id, data) DEFERRABLE INITIALLY \
             DEFERRED",
        )
        .await;
    let batch = events(&["10", "11"]);
    assert_eq!(destination.deliver(&batch).await, DeliveryResult::all(2));
    let same = events(&["10"]);
    failure(destination.deliver(&same).await, 0, FailureKind::Rejected, "23505");
}

/// The user's SQL has its effect once for each event, regardless of repetitions.
#[tokio::test]
async fn the_users_sql_has_its_effect_once() {
    let server = TestPostgres::start().await;
    server.query("CREATE TABLE totals (workflow text PRIMARY KEY, total int CHECK (total < 1000), last uuid)").await;
    let destination = destination(&sql(
        &server,
        "INSERT INTO totals VALUES (:workflow_id, (:data->>'n')::int, :event_id) -- :nothing\n\
         ON CONFLICT (workflow) DO UPDATE SET total = totals.total + excluded.total, last = excluded.last",
    ));
    let events = numbered(40);
    for batch in [&events[..10], &events[5..30], &events[..40], &events[39..]] {
        assert_eq!(destination.deliver(batch).await, DeliveryResult::all(batch.len()));
    }
    let last = events[39].event.event.id.to_string();
    assert_eq!(server.query("SELECT total::text, last::text FROM totals").await, [["820".to_owned(), last]]);
    assert_eq!(server.query("SELECT count(*) FROM weft_delivered").await, [["40"]]);
    // 820 + 41 + 42 + 43 = 946, and 44 more are refused by the constraint.
    let mut more = numbered(60).split_off(40);
    more.iter_mut().for_each(|delivery| delivery.uid = events[0].uid);
    failure(destination.deliver(&more).await, 4, FailureKind::Rejected, "23514");
    assert_eq!(server.query("SELECT total::text FROM totals").await, [["990"]]);
    assert_eq!(destination.deliver(&more[..4]).await, DeliveryResult::all(4));
    assert_eq!(server.query("SELECT total::text FROM totals").await, [["990"]]);
}

/// A workflow is in one database: by the hash of its subject token, modulo their number.
#[tokio::test]
async fn workflows_are_spread_over_the_databases_by_hash() {
    let server = TestPostgres::start().await;
    server.query("CREATE DATABASE other").await;
    let postgres = v1::PostgresDestination { dsns: vec![server.dsn(), server.dsn_of("other")], ..table(&server) };
    let destination = destination(&postgres);
    let workflows = ["wf-1", "a", "order-42", "order.42"].map(|id| WorkflowId::new(id).unwrap());
    let shards: Vec<u32> = workflows.iter().map(|workflow| Layout::new(2).shard_of(workflow).0).collect();
    assert_eq!(shards, [0, 0, 0, 1], "the vector of docs/destinations.md");
    for workflow in workflows {
        let mut event = numbered(1).remove(0);
        let mut stored = (*event.event).clone();
        stored.event.workflow = workflow;
        event.event = Arc::new(stored);
        assert_eq!(destination.deliver(&[event]).await, DeliveryResult::all(1));
    }
    let rows = server.query("SELECT workflow_id FROM weft_events ORDER BY position").await;
    assert_eq!(rows, [["wf-1"], ["a"], ["order-42"]]);
}

/// A new owner fences off earlier ones: none of their transactions commits after its first.
#[tokio::test]
async fn an_earlier_owner_writes_nothing_after_a_later_one() {
    let server = TestPostgres::start().await;
    let (old, new) = (destination(&table(&server)), destination(&table(&server)));
    let owned = |events: &[Delivery], epoch| -> Vec<Delivery> {
        events.iter().map(|delivery| Delivery { epoch, uid: events[0].uid, ..delivery.clone() }).collect()
    };
    let events = numbered(3);
    assert_eq!(old.deliver(&owned(&events[..1], 1)).await, DeliveryResult::all(1));
    assert_eq!(new.deliver(&owned(&events[..2], 2)).await, DeliveryResult::all(2));
    let fenced = failure(old.deliver(&owned(&events, 1)).await, 0, FailureKind::Held, "higher epoch than 1");
    assert!(fenced.error.contains("DELETE FROM \"weft_fence\""), "{}", fenced.error);
    assert_eq!(server.query("SELECT count(*) FROM weft_events").await, [["2"]]);
    // Another shard of the log has separate owners, and so has another subscription.
    let mut other = owned(&events[2..], 1);
    other[0].shard = ShardId(1);
    assert_eq!(old.deliver(&other).await, DeliveryResult::all(1));
    // A database that was restored from a backup is fenced again.
    server.query("DELETE FROM weft_fence; DELETE FROM weft_events").await;
    assert_eq!(new.deliver(&owned(&events, 2)).await, DeliveryResult::all(3));
    // An owner whose lease has run out writes nothing.
    let lease = LeaseGuard::new(tokio::sync::watch::channel(Duration::ZERO).1, CancellationToken::new());
    let late = Delivery { lease, ..numbered(1).remove(0) };
    failure(new.deliver(&[late]).await, 0, FailureKind::NotSent, "lease");
}

/// A transaction of the earlier owner that is under way is waited for: what it commits, it commits before the new owner writes.
#[tokio::test]
async fn a_transaction_under_way_ends_before_a_new_owner_writes() {
    let server = TestPostgres::start().await;
    server.query("CREATE TABLE log (n bigserial, event uuid, by text)").await;
    let slow = "WITH waited AS (SELECT pg_sleep(1)) INSERT INTO log (event, by) SELECT :event_id, 'old' FROM waited";
    let (old, new) = (
        destination(&sql(&server, slow)),
        destination(&sql(&server, "INSERT INTO log (event, by) VALUES (:event_id, 'new')")),
    );
    let events = numbered(2);
    let uid = events[0].uid;
    let first = Delivery { epoch: 1, ..events[0].clone() };
    let by_old = tokio::spawn(async move { old.deliver(&[first]).await });
    let sleeping = "SELECT count(*) FROM pg_stat_activity WHERE wait_event = 'PgSleep'";
    assert!(eventually(PATIENCE, async || server.query(sleeping).await == [["1"]]).await);
    let both: Vec<_> = events.iter().map(|event| Delivery { epoch: 2, uid, ..event.clone() }).collect();
    assert_eq!(new.deliver(&both).await, DeliveryResult::all(2));
    assert_eq!(by_old.await.unwrap(), DeliveryResult::all(1));
    assert_eq!(server.query("SELECT by FROM log ORDER BY n").await, [["old"], ["new"]], "each event once, in order");
}

/// Tables are created by the command, with the same statements as by `create = true`.
#[tokio::test]
async fn tables_are_created_on_request() {
    let server = TestPostgres::start().await;
    server.query("CREATE SCHEMA app").await;
    let postgres = v1::PostgresDestination {
        dsns: vec![server.dsn()],
        table: "app.events".into(),
        create: false,
        columns: vec![v1::PostgresColumn { field: "event_id".into(), column: "id".into() }],
        ..Default::default()
    };
    let destination = destination(&postgres);
    let events = numbered(2);
    failure(destination.deliver(&events).await, 0, FailureKind::Held, "weft subscription migrate");
    let clients = Arc::new(HttpClients::new(vec![LOCAL.parse::<IpNet>().unwrap()]));
    let migrated = PostgresDestination::new(&postgres, &clients, &Pools::default()).unwrap();
    assert_eq!(migrated.migration().len(), 2);
    for _ in 0..2 {
        assert_eq!(migrated.migrate().await.unwrap(), [format!("127.0.0.1:{}/weft", server.address().port())]);
    }
    assert_eq!(destination.deliver(&events).await, DeliveryResult::all(2));
    assert_eq!(server.query("SELECT id FROM app.events").await.len(), 2);
}
