//! The streams of a log: made once, regardless of which process comes first, and never another's.

use std::time::Duration;

use futures_util::TryStreamExt as _;
use weft_nats::{
    async_nats::jetstream::stream::Config,
    connect::Connection,
    options::{LogOptions, MESSAGE_OVERHEAD_BYTES, MaxBytes, Span},
    streams::{self, EnsureError, LogSpec},
};
use weft_proto::ids::StreamSeq;
use weft_testkit::TestServer;

fn spec(shards: u32) -> LogSpec {
    LogSpec { log: LogOptions { shards, ..LogOptions::default() }, body_bytes_max: 1 << 20, ..LogSpec::default() }
}

async fn config(connection: &Connection, stream: &str) -> Config {
    connection.jetstream().get_stream(stream).await.unwrap().cached_info().config.clone()
}

#[track_caller]
fn mismatch<T: std::fmt::Debug>(result: Result<T, EnsureError>, names: &[&str]) {
    let error = result.unwrap_err();
    assert!(matches!(error, EnsureError::Mismatch(_)), "{error:?}");
    for name in names {
        assert!(error.to_string().contains(name), "{error}");
    }
}

#[tokio::test]
async fn every_role_at_once_makes_one_log() {
    let server = TestServer::start().await;
    let roles = ["gateway", "worker", "admin", "again"].map(|name| server.connection(name));
    let roles = futures_util::future::join_all(roles).await;
    let specs = spec(3);
    let made = futures_util::future::join_all(roles.iter().map(|role| streams::ensure(role, &specs))).await;
    for layout in made {
        assert_eq!(layout.unwrap().shards(), 3);
    }
    let events = config(&roles[0], "EVENTS_2").await;
    assert_eq!(events.subjects, ["events.2.*", "heads.2"]);
    assert_eq!((events.max_age, events.duplicate_window), (Span::days(8).0, Duration::from_secs(120)));
    assert!(events.allow_direct && events.allow_atomic_publish && !events.deny_delete && !events.allow_rollup);
    assert_eq!(events.max_message_size as u64, (1 << 20) + MESSAGE_OVERHEAD_BYTES);
    assert_eq!(
        config(&roles[0], "OUTCOMES_0").await.subjects,
        ["outcomes.0", "outcomes.0.chunk", "outcomes.0.checkpoint"]
    );
    let checkpoints = config(&roles[0], "CHECKPOINTS_2").await;
    assert_eq!((checkpoints.subjects, checkpoints.max_age), (vec!["checkpoints.2".to_owned()], Duration::ZERO));
    assert!(config(&roles[0], "KV_weft_leases").await.allow_message_ttl);
    assert_eq!(config(&roles[0], "KV_weft_catalog").await.subjects, ["$KV.weft_catalog.>"]);
    for stream in ["COMMANDS_1", "DLQ", "REJECTED"] {
        config(&roles[0], stream).await;
    }
}

/// A log never changes its number of shards: workflows would be numbered from the start elsewhere.
#[tokio::test]
async fn another_number_of_shards_is_refused() {
    for (made, configured) in [(1, 2), (2, 1), (2, 4)] {
        let server = TestServer::start().await;
        let connection = server.connection("test").await;
        streams::ensure(&connection, &spec(made)).await.unwrap();
        let texts = [&format!("with {made} "), &format!("with {configured};"), &format!("shards = {made}")];
        mismatch(streams::ensure(&connection, &spec(configured)).await, &texts.map(String::as_str));
        streams::ensure(&connection, &spec(made)).await.unwrap();
    }
}

/// Two roles that are configured differently and come first at the same moment: one makes its log, the other gets an
/// error, and leaves nothing behind.
#[tokio::test]
async fn of_two_logs_made_at_the_same_moment_one_is_refused() {
    for round in 0..10 {
        let server = TestServer::start().await;
        let (first, second) = tokio::join!(server.connection("one"), server.connection("two"));
        let (one, two) = if round % 2 == 0 { (spec(1), spec(2)) } else { (spec(2), spec(1)) };
        let (made, refused) = tokio::join!(streams::ensure(&first, &one), streams::ensure(&second, &two));
        let (made, refused) = if made.is_ok() { (made, refused) } else { (refused, made) };
        mismatch(refused, &["shards"]);
        let shards = made.unwrap().shards();
        let names: Vec<String> = first.jetstream().stream_names().try_collect().await.unwrap();
        let strays = names.iter().filter(|name| name.ends_with("_0")).count();
        assert_eq!((names.len(), strays), if shards == 1 { (8, 0) } else { (12, 4) }, "{names:?}");
    }
}

/// P5: a limit that is lowered below what is held refuses what is new and drops nothing.
#[tokio::test]
async fn limits_follow_the_configuration_and_drop_nothing() {
    let server = TestServer::start().await;
    let connection = server.connection("test").await;
    let mut spec = spec(1);
    spec.auto_bytes_max = Some(1 << 30);
    streams::ensure(&connection, &spec).await.unwrap();
    assert_eq!(config(&connection, "EVENTS").await.max_bytes, 1 << 30);
    let publish = async || {
        let ack = connection.jetstream().publish("events.w", vec![0u8; 10_000].into()).await.unwrap();
        ack.await
    };
    for _ in 0..10 {
        publish().await.unwrap();
    }
    spec.log.retention = Span::days(30);
    spec.log.max_bytes = MaxBytes::Bytes(20_000);
    streams::ensure(&connection, &spec).await.unwrap();
    let changed = config(&connection, "EVENTS").await;
    assert_eq!((changed.max_bytes, changed.max_age), (20_000, Span::days(30).0));
    let error = publish().await.unwrap_err();
    assert!(error.to_string().contains("maximum bytes exceeded"), "{error}");
    let state = streams::state(&connection, "EVENTS").await.unwrap();
    assert_eq!((state.first, state.last), (StreamSeq(1), StreamSeq(10)));
}

#[tokio::test]
async fn a_server_or_stream_that_cannot_hold_the_log_is_refused() {
    let server = TestServer::builder().max_payload(1 << 20).start().await;
    let connection = server.connection("test").await;
    mismatch(streams::ensure(&connection, &spec(1)).await, &["max_payload", "1048576", "max_body"]);

    let small = LogSpec { body_bytes_max: 1000, ..spec(1) };
    let mut huge = small.clone();
    huge.log.max_bytes = MaxBytes::Bytes(1 << 60);
    mismatch(streams::ensure(&connection, &huge).await, &["EVENTS", "max_bytes"]);
    let mut copies = small.clone();
    copies.log.replicas = 3;
    mismatch(streams::ensure(&connection, &copies).await, &["stream", "replicas"]);
    for broken in [
        LogOptions { shards: 0, ..LogOptions::default() },
        LogOptions { replicas: 2, ..LogOptions::default() },
        LogOptions { fsync: "sometimes".into(), ..LogOptions::default() },
        LogOptions { dedup_horizon: Span::days(8), ..LogOptions::default() },
    ] {
        mismatch(streams::ensure(&connection, &LogSpec { log: broken, ..small.clone() }).await, &["[log]"]);
    }

    let foreign = Config { name: "EVENTS".into(), subjects: vec!["mine.>".into()], ..Config::default() };
    connection.jetstream().create_stream(foreign).await.unwrap();
    mismatch(streams::ensure(&connection, &small).await, &["EVENTS", "not made by weft"]);
}

#[tokio::test]
async fn a_server_that_is_away_is_unavailable_and_an_empty_stream_has_a_state() {
    let server = TestServer::start().await;
    let connection = server.connection("test").await;
    streams::ensure(&connection, &spec(1)).await.unwrap();
    let fresh = streams::state(&connection, "EVENTS").await.unwrap();
    assert_eq!((fresh.first, fresh.last), (StreamSeq(1), StreamSeq(0)));
    connection.jetstream().publish("events.w", "x".into()).await.unwrap().await.unwrap();
    connection.jetstream().get_stream("EVENTS").await.unwrap().purge().await.unwrap();
    let purged = streams::state(&connection, "EVENTS").await.unwrap();
    assert_eq!((purged.first, purged.last, purged.created), (StreamSeq(2), StreamSeq(1), fresh.created));
    mismatch(streams::state(&connection, "NONE").await, &["NONE"]);

    server.kill();
    let away = weft_testkit::eventually(Duration::from_secs(60), async || !connection.is_connected()).await;
    assert!(away);
    for result in
        [streams::ensure(&connection, &spec(1)).await.map(drop), streams::state(&connection, "DLQ").await.map(drop)]
    {
        assert!(matches!(result, Err(EnsureError::Unavailable(_))), "{result:?}");
    }
}
