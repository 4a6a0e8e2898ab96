//! Attacks on the log by each role's user: what it may not write it cannot remove or change either, by no request, no
//! reply subject, no consumer and no header.

use std::{collections::BTreeMap, time::Duration};

use futures_util::StreamExt as _;
use serde_json::{Value, json};
use tokio_util::sync::CancellationToken;
use weft_catalog::{Catalog, requests};
use weft_nats::{
    async_nats::{ConnectOptions, HeaderMap, jetstream},
    connect::Connection,
    headers::Headers,
    message::Outgoing,
    server::{Role, Server, ServerOptions},
    streams::{self, LogSpec},
    subject::Layout,
    user_streams::{PublishError, UserStreams},
};
use weft_proto::{
    ids::StreamSeq,
    v1::{GithubScheme, Source, Verification, verification},
};
use weft_testkit::{
    PATIENCE, TestServer, add_consumers, consumer_names, eventually, master_key, try_add_consumer,
    users::{connect, ensure, options},
};

use self::attack::{attack, attack_by_consumers, attack_by_replies};

mod attack;

const STREAMS: [&str; 8] =
    ["EVENTS", "OUTCOMES", "CHECKPOINTS", "COMMANDS", "DLQ", "REJECTED", "KV_weft_catalog", "KV_weft_leases"];

/// One subject of each stream, and of each kind of key.
const SUBJECTS: [&str; 13] = [
    "events.a",
    "heads.0",
    "outcomes.0",
    "checkpoints.0",
    "commands.0",
    "dlq.s.a.e.1.0",
    "rejected.shop",
    "$KV.weft_catalog.source.shop",
    "$KV.weft_catalog.subscription.billing",
    "$KV.weft_catalog.key-used.ab12cd34",
    "$KV.weft_catalog.key.ab12cd34",
    "$KV.weft_leases.0",
    "$KV.weft_leases.appender.0",
];

/// The streams that a role may append to.
fn writes(role: Role) -> &'static [&'static str] {
    match role {
        Role::Gateway => &["EVENTS", "REJECTED", "KV_weft_catalog", "KV_weft_leases"],
        Role::Worker => &["EVENTS", "OUTCOMES", "CHECKPOINTS", "DLQ", "KV_weft_leases"],
        Role::Admin | Role::Tail => &[],
    }
}

/// Requests that remove or change something, and subjects that others write.
fn targets(api: &str) -> Vec<String> {
    let mut targets = vec![format!("{api}.STREAM.CREATE.EVIL")];
    for stream in STREAMS {
        for verb in [
            "STREAM.DELETE",
            "STREAM.PURGE",
            "STREAM.UPDATE",
            "STREAM.CREATE",
            "STREAM.MSG.DELETE",
            "STREAM.SNAPSHOT",
            "STREAM.RESTORE",
            "STREAM.LEADER.STEPDOWN",
        ] {
            targets.push(format!("{api}.{verb}.{stream}"));
        }
    }
    targets
}

/// A log with something in every stream, and an admin that carries requests out.
struct Log {
    admin: Connection,
    catalog: Catalog,
    server: Server,
    stop: CancellationToken,
    folder: tempfile::TempDir,
}

impl Drop for Log {
    fn drop(&mut self) {
        self.stop.cancel();
    }
}

impl Log {
    async fn start() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let stop = CancellationToken::new();
        // With streams of users, so that the attacks also try what workers may do there.
        let options = ServerOptions { publish: vec!["orders.>".into()], ..options(folder.path()) };
        let server = Server::start(options, stop.clone()).await.unwrap();
        let admin = connect(&server.users().admin).await;
        ensure(&admin).await;
        let catalog = Catalog::new(admin.clone(), master_key());
        fill(&[&connect(&server.users().gateway).await, &connect(&server.users().worker).await, &admin], &catalog)
            .await;
        tokio::spawn(requests::serve(catalog.clone(), Layout::new(1), stop.clone()));
        // Subscribers' requests have no responder before an admin has subscribed. It refuses this one.
        let tail = connect(&server.users().tail).await;
        let subject = tail.api_subject("CONSUMER.CREATE.EVENTS.none");
        let is_answered = async || tail.client().request(subject.clone(), "{}".into()).await.is_ok();
        assert!(eventually(PATIENCE, is_answered).await, "an admin answers subscribers");
        Self { admin, catalog, server, stop, folder }
    }

    async fn connect(&self, role: Role) -> Connection {
        let users = self.server.users();
        connect(match role {
            Role::Gateway => &users.gateway,
            Role::Worker => &users.worker,
            Role::Admin => &users.admin,
            Role::Tail => &users.tail,
        })
        .await
    }

    /// Fails unless the log is as it was, but for what `role` may append.
    async fn assert_unharmed(&self, role: Role, before: &BTreeMap<&'static str, Value>, attack: &str) {
        let after = settled(&self.admin).await;
        for stream in STREAMS {
            let (before, after) = (&before[stream], &after[stream]);
            for part in ["created", "config"] {
                assert_eq!(before[part], after[part], "{role:?} changes {stream} by {attack}");
            }
            let number = |info: &Value, key: &str| info["state"][key].as_u64().unwrap();
            if !writes(role).contains(&stream) {
                for part in ["first_seq", "last_seq", "messages"] {
                    assert_eq!(number(before, part), number(after, part), "{part} of {stream}: {role:?} by {attack}");
                }
            } else if !stream.starts_with("KV_") {
                assert_eq!(
                    number(before, "first_seq"),
                    number(after, "first_seq"),
                    "{role:?} purges {stream} by {attack}"
                );
                let held = number(after, "last_seq") + 1 - number(after, "first_seq");
                assert_eq!(held, number(after, "messages"), "{role:?} removes from {stream} by {attack}");
            }
        }
        let snapshot = self.catalog.read().await.unwrap();
        assert!(snapshot.complete && snapshot.sources.len() == 1, "{role:?} writes over the catalog by {attack}");
        let made = self.admin.client().request(self.admin.api_subject("STREAM.INFO.EVIL"), "".into()).await;
        assert!(made.is_err(), "{role:?} makes a stream by {attack}");
    }
}

/// Publishes to the subjects of all streams as each of these roles; the server drops what a role may not publish.
async fn fill(roles: &[&Connection], catalog: &Catalog) {
    let scheme = verification::Scheme::Github(GithubScheme { secrets: vec!["secret of the sender".into()] });
    let verification = Some(Verification { scheme: Some(scheme) });
    let source = Source { name: "shop".into(), verification, ..Source::default() };
    catalog.put_source(&source, 0).await.unwrap();
    for subject in SUBJECTS.into_iter().filter(|subject| !subject.contains("catalog")) {
        for role in roles {
            for _ in 0..3 {
                role.client().publish(subject, "{}".into()).await.unwrap();
            }
            role.client().flush().await.unwrap();
        }
    }
}

/// The streams as the admin sees them, once they do not change any more.
async fn settled(admin: &Connection) -> BTreeMap<&'static str, Value> {
    let mut last = BTreeMap::new();
    let is_settled = eventually(PATIENCE, async || {
        let mut now = BTreeMap::new();
        for stream in STREAMS {
            let subject = admin.api_subject(format_args!("STREAM.INFO.{stream}"));
            let answer = admin.client().request(subject, "".into()).await.unwrap();
            let mut info: Value = serde_json::from_slice(&answer.payload).unwrap();
            info["state"]["consumer_count"] = Value::Null;
            info["ts"] = Value::Null;
            now.insert(stream, info);
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
        std::mem::replace(&mut last, now.clone()) == now
    });
    assert!(is_settled.await);
    last
}

/// Waits until the server has carried out what has been sent on a connection.
async fn barrier(connection: &Connection) {
    for _ in 0..2 {
        let seen = connection.client().request(connection.api_subject("INFO"), "".into());
        tokio::time::timeout(PATIENCE, seen).await.expect("the server answers").unwrap();
    }
}

#[tokio::test]
async fn a_gateways_user_destroys_nothing() {
    attack(Role::Gateway).await;
}

#[tokio::test]
async fn a_workers_user_destroys_nothing() {
    attack(Role::Worker).await;
}

#[tokio::test]
async fn a_subscribers_user_destroys_nothing() {
    attack(Role::Tail).await;
}

/// The attacks are real: where users live in the account of the streams, reading is enough to remove every stream, a
/// publish with a header empties a bucket that takes rollups, and a consumer writes where its owner may not.
#[tokio::test]
async fn a_reader_in_the_streams_account_could_destroy_the_log() {
    let users = r#"authorization { users: [
        { user: all, password: p }
        { user: reader, password: p, permissions: {
            publish: { allow: ["$JS.API.INFO", "$JS.API.DIRECT.GET.>", "$JS.API.CONSUMER.CREATE.EVENTS.>"] }
            subscribe: { allow: ["_INBOX.>"] }
        } }
    ] }"#;
    let server = TestServer::builder().config(users).start().await;
    let user = |name: &str| weft_nats::options::NatsOptions {
        url: Some(server.url().replace("nats://", &format!("nats://{name}:p@"))),
        ..Default::default()
    };
    let (all, reader) = (connect(&user("all")).await, connect(&user("reader")).await);
    ensure(&all).await;
    let catalog = Catalog::new(all.clone(), master_key());
    fill(&[&all], &catalog).await;
    let before = streams::state(&all, "COMMANDS").await.unwrap();
    attack_by_consumers(&reader, &["commands.0".to_owned()]).await;
    let written = eventually(PATIENCE, async || streams::state(&all, "COMMANDS").await.unwrap().last > before.last);
    assert!(written.await, "a push consumer writes");
    attack_by_replies(&reader, "$JS.API", &targets("$JS.API"), "none").await;
    let gone = eventually(PATIENCE, async || streams::state(&all, "EVENTS").await.is_err()).await;
    assert!(gone, "answers to reads are requests");
}

/// A subscriber's consumers are few and short-lived, regardless of what it asks for, so that readers of shards find
/// room.
#[tokio::test]
async fn subscribers_leave_room_for_the_readers_of_the_log() {
    let log = Log::start().await;
    let tail = log.connect(Role::Tail).await;
    barrier(&tail).await;
    let create = async |name: &str, config: Value| {
        let body = json!({ "stream_name": "EVENTS", "config": config }).to_string();
        let subject = tail.api_subject(format_args!("CONSUMER.CREATE.EVENTS.{name}"));
        let answer = tail.client().request(subject, body.into()).await.unwrap();
        serde_json::from_slice::<Value>(&answer.payload).unwrap()
    };
    let mut made = 0;
    for number in 0.. {
        let name = format!("c{number}");
        let answer = create(&name, json!({ "name": name, "inactive_threshold": 86_400_000_000_000u64 })).await;
        if answer["error"].is_object() {
            assert_eq!(answer["error"]["err_code"], 10_026, "{answer}");
            break;
        }
        assert_eq!(answer["config"]["inactive_threshold"], 300_000_000_000u64);
        made += 1;
    }
    assert_eq!(made, 300);
    let gateway = log.connect(Role::Gateway).await;
    try_add_consumer(&gateway, "EVENTS").await.expect("room for the log's own readers");
    assert!(create("d", json!({ "durable_name": "d", "name": "d" })).await["error"].is_object());
    // Those of readers do not count as subscribers'.
    let names = consumer_names(&log.admin, "EVENTS").await;
    let tails = tail.jetstream().get_stream("EVENTS").await.unwrap();
    for name in names.iter().filter(|name| name.starts_with('c')).take(1) {
        tails.delete_consumer(name).await.unwrap();
    }
    add_consumers(&gateway, "EVENTS", 10).await;
    assert!(create("again", json!({ "name": "again" })).await["error"].is_null());
}

/// Every other role waits for an admin, which is named in what it waits for.
#[tokio::test]
async fn only_an_admin_creates_and_changes_streams() {
    let folder = tempfile::tempdir().unwrap();
    let server = Server::start(options(folder.path()), CancellationToken::new()).await.unwrap();
    let users = server.users();
    let roles = [connect(&users.gateway).await, connect(&users.worker).await];
    let spec = LogSpec { body_bytes_max: 1 << 20, ..LogSpec::default() };
    for role in &roles {
        let waits = streams::check_for(role, &spec, &[]).await.unwrap_err().to_string();
        assert!(waits.contains("waiting for the admin to create the streams"), "{waits}");
        assert!(streams::ensure(role, &spec).await.is_err());
    }
    ensure(&connect(&users.admin).await).await;
    let larger = LogSpec { body_bytes_max: 2 << 20, ..spec.clone() };
    for role in &roles {
        streams::check_for(role, &spec, &[]).await.unwrap();
        let waits = streams::check_for(role, &larger, &[]).await.unwrap_err().to_string();
        assert!(waits.contains("max_payload") || waits.contains("max_body"), "{waits}");
    }
}

/// A store that a server without accounts has written is read on.
#[tokio::test]
async fn streams_of_a_store_without_accounts_are_kept() {
    let old = TestServer::start().await;
    let connection = old.connection("old").await;
    ensure(&connection).await;
    fill(&[&connection], &Catalog::new(connection.clone(), master_key())).await;
    settled(&connection).await;
    let mut before = BTreeMap::new();
    for stream in STREAMS {
        before.insert(stream, streams::state(&connection, stream).await.unwrap());
    }
    old.kill();
    let folder = tempfile::tempdir().unwrap();
    let copied = std::process::Command::new("cp")
        .arg("-a")
        .arg(old.folder().join("store"))
        .arg(folder.path().join("store"))
        .status()
        .unwrap();
    assert!(copied.success());
    for _ in 0..2 {
        let stop = CancellationToken::new();
        let server = Server::start(options(folder.path()), stop.clone()).await.unwrap();
        let admin = connect(&server.users().admin).await;
        for (stream, before) in &before {
            assert_eq!(streams::state(&admin, stream).await.unwrap(), *before, "{stream}");
        }
        ensure(&admin).await;
        let sources = Catalog::new(admin, master_key()).read().await.unwrap().sources.len();
        assert_eq!(sources, 1);
        stop.cancel();
        server.stopped().await;
    }
}

/// The tail user's file is enough for a client, under the prefix that every client has.
#[tokio::test]
async fn a_subscriber_reads_by_the_context_file_alone() {
    let log = Log::start().await;
    let text = std::fs::read_to_string(log.folder.path().join("context/tail.json")).unwrap();
    let context: Value = serde_json::from_str(&text).unwrap();
    let field = |name: &str| context[name].as_str().unwrap().to_owned();
    let client = ConnectOptions::with_user_and_password(field("user"), field("password"));
    let client = client.connect(field("url")).await.unwrap();
    for jetstream in [jetstream::new(client.clone()), jetstream::with_prefix(client, "weft.API")] {
        let stream = jetstream.get_stream("EVENTS").await.unwrap();
        let pull = jetstream::consumer::pull::OrderedConfig { filter_subject: "events.a".into(), ..Default::default() };
        // The admin may not have subscribed yet.
        let answers = async || stream.create_consumer(pull.clone()).await.is_ok();
        assert!(weft_testkit::eventually(PATIENCE, answers).await);
        let events = stream.create_consumer(pull).await.unwrap().messages().await.unwrap();
        let events = tokio::time::timeout(PATIENCE, events.take(3).collect::<Vec<_>>()).await.expect("the events");
        assert!(events.iter().all(Result::is_ok));
    }
}

/// Guards: streams of a service on the server of the log. Workers publish to the allowed subjects and read single messages; the service's
/// user does what it likes in its account and reaches nothing of the mesh.
#[tokio::test]
async fn streams_of_users_are_published_to_and_reach_nothing_of_the_mesh() {
    let log = Log::start().await;
    let before = settled(&log.admin).await;
    let app = connect(log.server.users().app.as_ref().unwrap()).await;
    let orders = jetstream::stream::Config {
        name: "ORDERS".into(),
        subjects: vec!["orders.>".into(), "private.>".into()],
        ..Default::default()
    };
    app.jetstream().create_stream(orders).await.unwrap();
    let worker = log.connect(Role::Worker).await;
    let streams = UserStreams::on_own_server(&worker);
    let message =
        |subject: &str| Outgoing { subject: subject.into(), headers: Headers::default(), payload: "1".into() };
    let ack = streams.publish("ORDERS", &message("orders.a"), Some(StreamSeq(0))).await.unwrap();
    assert_eq!((ack.seq, ack.duplicate), (StreamSeq(1), false));
    let conflict = streams.publish("ORDERS", &message("orders.a"), Some(StreamSeq(0))).await;
    assert_eq!(conflict, Err(PublishError::Conflict));
    assert_eq!(streams.last("ORDERS", "orders.a").await.unwrap().unwrap().sequence, 1);
    assert_eq!(streams.last("ORDERS", "orders.b").await.unwrap().map(|message| message.sequence), None);
    assert_eq!(streams.get("ORDERS", StreamSeq(1)).await.unwrap().unwrap().subject.as_str(), "orders.a");

    // What is not allowed, by the worker, also by a reply subject.
    let client = worker.client();
    for subject in
        ["private.a", "$JS.API.STREAM.DELETE.ORDERS", "weft.APP.STREAM.DELETE.ORDERS", "weft.API.STREAM.DELETE.ORDERS"]
    {
        client.publish(subject.to_owned(), "{}".into()).await.unwrap();
        client.publish_with_reply("orders.a", subject.to_owned(), "{}".into()).await.unwrap();
    }
    client.flush().await.unwrap();
    // By the service's user, every request that removes something, and every subject of the mesh.
    for subject in targets("$JS.API").iter().chain(&targets("weft.API")).map(String::as_str).chain(SUBJECTS) {
        app.client().publish(subject.to_owned(), "{}".into()).await.unwrap();
    }
    app.client().flush().await.unwrap();
    let after = settled(&log.admin).await;
    for stream in STREAMS {
        assert_eq!(before[stream]["created"], after[stream]["created"], "{stream}");
        assert_eq!(before[stream]["state"]["messages"], after[stream]["state"]["messages"], "{stream}");
    }
    let info = app.jetstream().get_stream("ORDERS").await.unwrap().get_info().await.unwrap();
    assert_eq!(info.state.subjects_count, 1, "nothing on private.a");
    assert_eq!(info.config.name, "ORDERS");
}
