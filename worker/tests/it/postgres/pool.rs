//! Connections of a process and databases of a destination, of which some are slow or away.

use std::time::Instant;

use futures_util::future::join_all;
use tokio::net::TcpListener;

use super::*;

/// Statements of one subscription that run at a time.
const SHARE: usize = 12;

/// Guards: slow statements of one subscription leave connections to the others that use the database, and the wait for a
/// connection is not a part of the attempt's time: an attempt that has waited has all of it.
#[tokio::test(flavor = "multi_thread")]
async fn slow_statements_leave_connections_to_others_and_time_to_those_that_wait() {
    const TIMEOUT: Duration = Duration::from_secs(6);
    let server = TestPostgres::start().await;
    let process = process(&[LOCAL]);
    let slow = make(&process, &sql(&server, "SELECT pg_sleep(4)")).unwrap();
    let other = make(&process, &table(&server)).unwrap();
    // The tables and a connection are there.
    assert_eq!(other.deliver(&numbered(1)).await, DeliveryResult::all(1));
    let created = make(&process, &sql(&server, "SELECT 1")).unwrap();
    assert_eq!(created.deliver(&numbered(1)).await, DeliveryResult::all(1));
    // Twice as many as may run: the last begin when the attempts of the first end.
    let attempts = tokio::spawn(async move {
        let attempt = |_| async {
            let delivery = Delivery { timeout: TIMEOUT, ..numbered(1).remove(0) };
            slow.deliver(&[delivery]).await
        };
        join_all((0..2 * SHARE).map(attempt)).await
    });
    let sleeping = "SELECT count(*) FROM pg_stat_activity WHERE wait_event = 'PgSleep'";
    assert!(eventually(PATIENCE, async || server.query(sleeping).await == [[SHARE.to_string()]]).await);
    let (began, others) = (Instant::now(), numbered(20));
    for event in &others {
        assert_eq!(other.deliver(std::slice::from_ref(event)).await, DeliveryResult::all(1));
    }
    assert!(began.elapsed() < Duration::from_secs(3), "they wait for the slow ones: {:?}", began.elapsed());
    let slowly = server.query(sleeping).await[0][0].parse::<usize>().unwrap();
    assert!(slowly <= SHARE, "{slowly} statements of one subscription at a time");
    for result in attempts.await.unwrap() {
        assert_eq!(result, DeliveryResult::all(1));
    }
}

/// Guards: a database of several that is away is no event's fault, regardless of its error, and the others continue. What may be the
/// event's fault counts as before.
#[tokio::test]
async fn a_database_of_several_that_is_away_uses_up_no_retry() {
    let (here, mut away) = (TestPostgres::start().await, TestPostgres::start().await);
    away.query("CREATE ROLE app LOGIN; GRANT ALL ON SCHEMA public TO app").await;
    away.query("CREATE DATABASE full_up CONNECTION LIMIT 0").await;
    let of =
        |dsn: &str| destination(&v1::PostgresDestination { dsns: vec![here.dsn(), dsn.to_owned()], ..table(&here) });
    let event_of = |workflow: &str| {
        let mut delivery = numbered(1).remove(0);
        let mut stored = (*delivery.event).clone();
        stored.event.workflow = WorkflowId::new(workflow).unwrap();
        delivery.event = Arc::new(stored);
        delivery
    };
    // By the vector of docs/destinations.md.
    let (first, second) = ("order-42", "order.42");
    let app = |database: &str| away.dsn_of(database).replace("weft@", "app@");
    for (dsn, code) in [(app("full_up"), "53300"), (app("weft?options=-cdefault_transaction_read_only%3Don"), "25006")]
    {
        let both = of(&dsn);
        failure(both.deliver(&[event_of(second)]).await, 0, FailureKind::Unreachable, code);
        assert_eq!(both.deliver(&[event_of(first)]).await, DeliveryResult::all(1));
        let alone = destination(&v1::PostgresDestination { dsns: vec![dsn], ..table(&here) });
        failure(alone.deliver(&[event_of(second)]).await, 0, FailureKind::Unavailable, code);
    }
    let both = of(&away.dsn());
    assert_eq!(both.deliver(&[event_of(second)]).await, DeliveryResult::all(1));
    // The connection ends within the transaction.
    let ending = v1::PostgresDestination {
        dsns: vec![here.dsn(), away.dsn()],
        ..sql(&here, "SELECT pg_terminate_backend(pg_backend_pid())")
    };
    failure(destination(&ending).deliver(&[event_of(second)]).await, 0, FailureKind::Unreachable, "57P01");
    // A lock that may be held because of this event.
    let locked = "BEGIN; LOCK TABLE weft_events IN ACCESS EXCLUSIVE MODE; SELECT pg_sleep(20)";
    let sleeping = "SELECT pid FROM pg_stat_activity WHERE wait_event = 'PgSleep'";
    let (_, ()) = tokio::join!(away.try_query(locked), async {
        assert!(eventually(PATIENCE, async || away.query(sleeping).await.len() == 1).await);
        let hasty = Delivery { timeout: Duration::from_secs(1), ..event_of(second) };
        failure(both.deliver(&[hasty]).await, 0, FailureKind::Unavailable, "55P03");
        away.query(&format!("SELECT pg_terminate_backend(pid) FROM ({sleeping}) AS s")).await;
    });
    away.kill();
    failure(both.deliver(&[event_of(second)]).await, 0, FailureKind::Unreachable, "no connection");
    assert_eq!(both.deliver(&[event_of(first)]).await, DeliveryResult::all(1));
    away.restart().await;
    assert_eq!(both.deliver(&[event_of(second)]).await, DeliveryResult::all(1));
}

/// Guards: a host that accepts connections and says nothing leaves time for the next, also where the connection string asks for
/// more patience than an attempt has.
#[tokio::test]
async fn a_host_that_says_nothing_is_left_for_the_next() {
    let server = TestPostgres::start().await;
    let silent = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let (first, second) = (silent.local_addr().unwrap().port(), server.address().port());
    let dsn = format!("host=127.0.0.1,127.0.0.1 port={first},{second} user=weft dbname=weft connect_timeout=3600");
    let destination = destination(&v1::PostgresDestination { dsns: vec![dsn], ..table(&server) });
    let began = Instant::now();
    assert_eq!(destination.deliver(&numbered(1)).await, DeliveryResult::all(1));
    assert!(began.elapsed() >= Duration::from_secs(9), "the first host was not tried: {:?}", began.elapsed());
}
