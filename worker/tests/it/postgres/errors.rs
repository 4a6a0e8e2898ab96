//! Errors by SQLSTATE, as far as a server can be made to answer with them.

use super::*;

/// A destination whose SQL raises an error for each event.
fn raising(server: &TestPostgres, statement: &str) -> Arc<dyn Destination> {
    destination(&sql(server, statement))
}

/// The table of docs/destinations.md: the event's fault, the database's, or the configuration's.
#[tokio::test]
async fn errors_are_the_events_the_databases_or_the_configurations() {
    let server = TestPostgres::start().await;
    server
        .query(
            "CREATE FUNCTION fail(code text) RETURNS int LANGUAGE plpgsql AS \
             $$ BEGIN RAISE EXCEPTION 'made to fail' USING ERRCODE = code; END $$",
        )
        .await;
    for (code, kind) in [
        ("P0001", FailureKind::Rejected),
        ("23503", FailureKind::Rejected),
        ("53100", FailureKind::Unavailable),
        ("58030", FailureKind::Unavailable),
        ("25006", FailureKind::Unavailable),
        ("40001", FailureKind::Failed),
        ("40P01", FailureKind::Failed),
        ("XX000", FailureKind::Failed),
        ("42501", FailureKind::Held),
    ] {
        let result = raising(&server, &format!("SELECT fail('{code}')")).deliver(&numbered(1)).await;
        let failure = failure(result, 0, kind, code);
        assert!(failure.error.contains("made to fail"), "{}", failure.error);
        assert!(String::from_utf8_lossy(&failure.response).contains("CONTEXT"), "{:?}", failure.response);
    }
    for (statement, code) in [
        ("INSERT INTO missing VALUES (:data)", "42P01"),
        ("SELECT missing FROM pg_class", "42703"),
        ("SELEC 1", "42601"),
        ("SELECT 1; SELECT 2", "42601"),
        ("SELECT 'x'::int", "22P02"),
    ] {
        failure(raising(&server, statement).deliver(&numbered(1)).await, 0, FailureKind::Held, code);
    }
    let terminated = raising(&server, "SELECT pg_terminate_backend(pg_backend_pid())").deliver(&numbered(1)).await;
    failure(terminated, 0, FailureKind::Unavailable, "57P01");
}

/// A deadlock or a serialization failure is repeated within the attempt.
#[tokio::test]
async fn a_transaction_that_would_succeed_alone_is_repeated_at_once() {
    let server = TestPostgres::start().await;
    server
        .query(
            "CREATE SEQUENCE calls; CREATE TABLE log (event uuid); CREATE FUNCTION once(id uuid) RETURNS int LANGUAGE plpgsql \
             AS $$ BEGIN INSERT INTO log VALUES (id); \
             IF nextval('calls') <= 2 THEN RAISE EXCEPTION 'again' USING ERRCODE = '40001'; END IF; RETURN 1; END $$",
        )
        .await;
    let result = raising(&server, "SELECT once(:event_id)").deliver(&numbered(1)).await;
    assert_eq!(result, DeliveryResult::all(1));
    assert_eq!(server.query("SELECT count(*) FROM log").await, [["1"]]);
}

/// A lock that others hold is waited for, for a part of the timeout, and is no event's fault.
#[tokio::test]
async fn a_lock_of_others_is_the_databases() {
    let server = TestPostgres::start().await;
    let destination = destination(&table(&server));
    let events = numbered(2);
    assert_eq!(destination.deliver(&events[..1]).await, DeliveryResult::all(1));
    let locked = "BEGIN; LOCK TABLE weft_events IN ACCESS EXCLUSIVE MODE; SELECT pg_sleep(20)";
    let sleeping = "SELECT pid FROM pg_stat_activity WHERE wait_event = 'PgSleep'";
    let (_, ()) = tokio::join!(server.try_query(locked), async {
        assert!(eventually(PATIENCE, async || server.query(sleeping).await.len() == 1).await);
        let hasty = Delivery { timeout: Duration::from_secs(1), ..events[1].clone() };
        failure(destination.deliver(&[hasty]).await, 0, FailureKind::Unavailable, "55P03");
        server.query(&format!("SELECT pg_terminate_backend(pid) FROM ({sleeping}) AS s")).await;
        let patient = &events[1..];
        assert_eq!(destination.deliver(patient).await, DeliveryResult::all(1));
    });
}

/// A statement ends with its attempt, on the server too.
#[tokio::test]
async fn a_statement_ends_with_its_attempt() {
    let server = TestPostgres::start().await;
    let destination = destination(&sql(&server, "SELECT pg_sleep(60)"));
    let hasty = Delivery { timeout: Duration::from_secs(1), ..numbered(1).remove(0) };
    let failure = failure(destination.deliver(&[hasty]).await, 0, FailureKind::Failed, "");
    assert_eq!(failure.class, AttemptClass::Timeout, "{}", failure.error);
    let sleeping = "SELECT count(*) FROM pg_stat_activity WHERE wait_event = 'PgSleep'";
    assert!(eventually(Duration::from_secs(5), async || server.query(sleeping).await == [["0"]]).await);
}

/// A database that is full of connections, read-only, or gone is unavailable; one that does not exist, or does not know the
/// user, is a matter of the configuration.
#[tokio::test]
async fn a_database_that_cannot_be_used_is_unavailable_or_held() {
    let mut server = TestPostgres::start().await;
    server.query("CREATE ROLE app LOGIN; GRANT ALL ON SCHEMA public TO app").await;
    server.query("CREATE DATABASE full_up CONNECTION LIMIT 0").await;
    let of = |dsn: String| destination(&v1::PostgresDestination { dsns: vec![dsn], ..table(&server) });
    let dsn = |user: &str, database: &str| server.dsn_of(database).replace("weft@", &format!("{user}@"));
    for (dsn, kind, code) in [
        (dsn("app", "full_up"), FailureKind::Unavailable, "53300"),
        (dsn("unknown", "weft"), FailureKind::Held, "28000"),
        (dsn("app", "missing"), FailureKind::Held, "3D000"),
        (dsn("app", "weft?options=-cdefault_transaction_read_only%3Don"), FailureKind::Unavailable, "25006"),
        (format!("{}?sslmode=require", server.dsn()), FailureKind::Held, "does not support TLS"),
    ] {
        failure(of(dsn).deliver(&numbered(1)).await, 0, kind, code);
    }
    // A standby before the primary is passed over.
    let both =
        of(format!("{}?target_session_attrs=read-write", server.dsn().replace("127.0.0.1", "127.0.0.9,127.0.0.1")));
    assert_eq!(both.deliver(&numbered(1)).await, DeliveryResult::all(1));

    // Connections that a restart has closed cost no attempt; without a server there is no connection.
    let destination = of(server.dsn());
    let events = numbered(3);
    assert_eq!(destination.deliver(&events[..1]).await, DeliveryResult::all(1));
    server.restart().await;
    assert_eq!(destination.deliver(&events[1..2]).await, DeliveryResult::all(1));
    server.kill();
    failure(destination.deliver(&events[2..]).await, 0, FailureKind::Unreachable, "no connection");
    server.restart().await;
    assert_eq!(destination.deliver(&events[2..]).await, DeliveryResult::all(1));
}

/// The guard of addresses is that of webhooks, and what is wrong with the configuration is found when it is saved.
#[tokio::test]
async fn a_refused_address_is_not_connected_to() {
    let of =
        |dsn: &str| try_destination(&v1::PostgresDestination { dsns: vec![dsn.into()], ..Default::default() }, &[]);
    for dsn in ["postgres://u@127.0.0.1/d", "host=localhost user=u", "postgres://u@[::1]/d", "postgres://u@127.1/d"] {
        let destination = of(dsn).unwrap();
        assert_eq!(destination.check().await.unwrap_err().rule, "loopback", "{dsn}");
        let failure = failure(destination.deliver(&numbered(1)).await, 0, FailureKind::Held, "allow_networks");
        assert_eq!(failure.class, AttemptClass::RefusedAddress);
    }
    let clients = Arc::new(HttpClients::new(vec![LOCAL.parse::<IpNet>().unwrap()]));
    clients.refuse_ports(["127.0.0.1:4222".parse().unwrap()]);
    let own = v1::PostgresDestination { dsns: vec!["postgres://u@127.0.0.1:4222/d".into()], ..Default::default() };
    assert!(
        PostgresDestination::new(&own, &clients, &Pools::default()).unwrap().check().await.is_err(),
        "a port of this process"
    );
    for (dsn, named) in [("postgres://u@%2Ftmp/d", "Unix sockets"), ("postgres://u@h/d?sslkey=x", "sslkey")] {
        let problem = of(dsn).unwrap_err().to_string();
        assert!(problem.contains(named) && problem.contains("shards[0]"), "{problem}");
    }
}
