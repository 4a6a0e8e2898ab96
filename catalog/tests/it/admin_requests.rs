//! Requests that an admin carries out for workers under accounts: who may make them, and for what.

use tokio_util::sync::CancellationToken;
use weft_catalog::{
    Catalog, MasterKey, Stamp,
    requests::{self, pause_subscription},
};
use weft_nats::{
    admin_requests::{Requests, room::with_room, trim::drop_through},
    append::{AppendErrorKind, publish},
    connect::Connection,
    headers::Headers,
    message::Outgoing,
    options::{LogOptions, MaxBytes},
    reader::{OrderedReader, ReadError, ReaderOptions},
    records,
    server::Server,
    streams::{self, LogSpec},
    subject::Layout,
};
use weft_proto::{
    ids::{ShardId, StreamSeq, SubscriptionUid},
    internal::{self, outcome_record::Record},
};
use weft_testkit::{
    PATIENCE, TestServer, add_consumers, eventually, master_key, try_add_consumer,
    users::{connect, options},
};

use crate::catalog::subscription;

/// A server with accounts, an admin that answers, and a worker's connection.
struct Mesh {
    server: Server,
    admin: Connection,
    catalog: Catalog,
    worker: Connection,
    stop: CancellationToken,
    /// Ends what answers workers.
    answering: CancellationToken,
    _folder: tempfile::TempDir,
}

impl Drop for Mesh {
    fn drop(&mut self) {
        self.stop.cancel();
    }
}

impl Mesh {
    async fn start(max_bytes: MaxBytes) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let stop = CancellationToken::new();
        let server = Server::start(options(folder.path()), stop.clone()).await.unwrap();
        let admin = connect(&server.users().admin).await;
        let log = LogOptions { max_bytes, ..LogOptions::default() };
        streams::ensure(&admin, &LogSpec { log, body_bytes_max: 1 << 20, ..LogSpec::default() }).await.unwrap();
        let catalog = Catalog::new(admin.clone(), master_key());
        let answering = stop.child_token();
        tokio::spawn(requests::serve(catalog.clone(), Layout::new(1), answering.clone()));
        let worker = connect(&server.users().worker).await;
        let mesh = Self { server, admin, catalog, worker, stop, answering, _folder: folder };
        // The admin may not have subscribed yet.
        let room = async || with_room(&mesh.requests(), Layout::new(1), ShardId(0), async {}).await.is_ok();
        assert!(eventually(PATIENCE, room).await);
        mesh
    }

    /// No admin answers any more.
    async fn stop_answering(&self) {
        self.answering.cancel();
        let client = self.worker.client();
        let gone = async || client.request("room.0", "".into()).await.is_err();
        assert!(eventually(PATIENCE, gone).await);
    }

    /// As a worker asks.
    fn requests(&self) -> Requests {
        Catalog::new(self.worker.clone(), master_key()).requests()
    }

    async fn events(&self, count: usize) {
        let gateway = connect(&self.server.users().gateway).await;
        for _ in 0..count {
            publish(&gateway, &message("events.a", 1)).await.unwrap();
        }
    }

    async fn record(&self, subject: &str, record: Record) {
        let record = internal::OutcomeRecord { record: Some(record) };
        publish(&self.worker, &records::encode(subject.into(), &record)).await.unwrap();
    }

    /// Commits that EVENTS has been read up to `cursor`.
    async fn commit(&self, cursor: u64) {
        self.record("outcomes.0", Record::Commit(internal::Commit { cursor, ..internal::Commit::default() })).await;
    }

    async fn first(&self, stream: &str) -> u64 {
        streams::state(&self.admin, stream).await.unwrap().first.0
    }

    async fn bytes_max(&self) -> u64 {
        streams::usage(&self.admin, "EVENTS").await.unwrap().bytes_max.unwrap()
    }
}

fn message(subject: &str, bytes: usize) -> Outgoing {
    Outgoing { subject: subject.into(), headers: Headers::default(), payload: vec![b'x'; bytes].into() }
}

/// A reader of EVENTS from its beginning that continues without a consumer.
fn pages(batch_messages_max: usize) -> ReaderOptions {
    ReaderOptions {
        stream: "EVENTS".into(),
        name: "worker-events-0".into(),
        from: StreamSeq(1),
        filter: None,
        batch_messages_max,
        known: None,
        pages: true,
    }
}

/// A worker has that dropped which no shard's owner needs any more, and nothing else: neither events that no commit has
/// passed, nor the newest complete checkpoint, nor anything of another stream.
#[tokio::test]
async fn a_worker_has_what_is_settled_dropped_and_nothing_else() {
    let mesh = Mesh::start(MaxBytes::Auto).await;
    let requests = mesh.requests();
    mesh.events(5).await;
    let drop = async |stream: &str, through| drop_through(&requests, stream, StreamSeq(through)).await;
    assert!(drop("EVENTS", 1).await.is_err(), "without a commit nothing is settled");
    mesh.commit(3).await;
    assert!(drop("EVENTS", 4).await.is_err());
    assert_eq!(mesh.first("EVENTS").await, 1);
    drop("EVENTS", 3).await.unwrap();
    drop("EVENTS", 2).await.unwrap();
    assert_eq!(mesh.first("EVENTS").await, 4);

    let end = |first_chunk| Record::End(internal::CheckpointEnd { first_chunk, chunks: 1, ..Default::default() });
    for first_chunk in [1, 3] {
        mesh.record("checkpoints.0", Record::Chunk(internal::CheckpointChunk::default())).await;
        mesh.record("checkpoints.0", end(first_chunk)).await;
    }
    assert!(drop("CHECKPOINTS", 3).await.is_err());
    drop("CHECKPOINTS", 2).await.unwrap();
    assert_eq!(mesh.first("CHECKPOINTS").await, 3);

    for stream in ["OUTCOMES", "COMMANDS", "DLQ", "KV_weft_catalog", "EVENTS_0", ""] {
        assert!(drop(stream, 1).await.is_err(), "{stream}");
    }
    assert_eq!(mesh.first("OUTCOMES").await, 1);
}

/// The commit has to be one of the stream that is there.
#[tokio::test]
async fn a_commit_of_another_log_settles_nothing() {
    let mesh = Mesh::start(MaxBytes::Auto).await;
    mesh.events(5).await;
    let events = Some(internal::LogPosition { created_ns: 1, sequence: 3, ..Default::default() });
    mesh.record("outcomes.0", Record::Commit(internal::Commit { cursor: 3, events, ..Default::default() })).await;
    assert!(drop_through(&mesh.requests(), "EVENTS", StreamSeq(3)).await.is_err());
    assert_eq!(mesh.first("EVENTS").await, 1);
}

/// A worker's password alone moves an admin to nothing: a request counts with a tag under the mesh's master key.
#[tokio::test]
async fn without_the_master_key_a_workers_user_is_refused() {
    let mesh = Mesh::start(MaxBytes::Bytes(10 << 20)).await;
    let billing = subscription("billing");
    mesh.catalog.put_subscription(&billing, 0).await.unwrap();
    mesh.events(3).await;
    mesh.commit(3).await;
    let stolen = Catalog::new(mesh.worker.clone(), MasterKey::parse(&MasterKey::generate()).unwrap());
    let requests = stolen.requests();
    assert!(drop_through(&requests, "EVENTS", StreamSeq(3)).await.is_err());
    let lent = with_room(&requests, Layout::new(1), ShardId(0), async { mesh.bytes_max().await }).await;
    assert!(lent.is_err());
    let uid = SubscriptionUid::from_bytes([1; 16]);
    let revision = mesh.catalog.read().await.unwrap().subscription_of(uid.as_bytes()).unwrap().revision;
    let stamp = Stamp { request_id: "r".into(), operator: "worker 1".into(), reason: "gone".into() };
    assert!(pause_subscription(&stolen, uid, revision, &stamp).await.is_err());
    // The same requests in the clear.
    let client = mesh.worker.client();
    for (subject, payload) in [("trim.EVENTS", r#"{"through":3}"#), ("room.0", "lend")] {
        let answer = client.request(subject, payload.into()).await.unwrap();
        assert!(String::from_utf8_lossy(&answer.payload).contains("not tagged"), "{subject}");
    }
    assert_eq!((mesh.first("EVENTS").await, mesh.bytes_max().await), (1, 10 << 20));
    assert!(!mesh.catalog.read().await.unwrap().subscription_of(uid.as_bytes()).unwrap().value.paused);
}

/// A full EVENTS takes what makes room in it, by the admin's leave, and has its limit back: when it is returned, and also
/// when it never is.
#[tokio::test]
async fn room_in_a_full_log_is_lent_and_taken_back() {
    const LIMIT: u64 = 1 << 20;
    let mesh = Mesh::start(MaxBytes::Bytes(LIMIT)).await;
    let gateway = connect(&mesh.server.users().gateway).await;
    let full = loop {
        if let Err(error) = publish(&gateway, &message("events.a", 64 << 10)).await {
            break error;
        }
    };
    assert!(matches!(full, AppendErrorKind::Full(_)), "{full}");
    let heads = message("heads.0", 64 << 10);
    assert!(matches!(publish(&mesh.worker, &heads).await, Err(AppendErrorKind::Full(_))));
    let (layout, shard) = (Layout::new(1), ShardId(0));
    let work = async {
        assert!(mesh.bytes_max().await > LIMIT);
        publish(&mesh.worker, &heads).await
    };
    with_room(&mesh.requests(), layout, shard, work).await.unwrap().unwrap();
    assert_eq!(mesh.bytes_max().await, LIMIT);
    assert!(publish(&gateway, &message("events.a", 64 << 10)).await.is_err(), "it is as full as before");

    // A worker that ends in the midst of it.
    let requests = mesh.requests();
    let (begins, begun) = tokio::sync::oneshot::channel();
    let work = async {
        begins.send(mesh.bytes_max().await).unwrap();
        std::future::pending::<()>().await;
    };
    tokio::select! {
        done = with_room(&requests, layout, shard, work) => panic!("it is at work: {done:?}"),
        lent = begun => assert!(lent.unwrap() > LIMIT),
    }
    assert!(eventually(PATIENCE, async || mesh.bytes_max().await == LIMIT).await);
}

/// A receiver's wish to be left alone reaches the catalog, in the worker's name, although the worker may not write there; a
/// subscription that was changed since is left as it is.
#[tokio::test]
async fn a_subscription_is_paused_on_a_workers_behalf() {
    let mesh = Mesh::start(MaxBytes::Auto).await;
    mesh.catalog.put_subscription(&subscription("billing"), 0).await.unwrap();
    let uid = SubscriptionUid::from_bytes([1; 16]);
    let entry = async || {
        let snapshot = mesh.catalog.read().await.unwrap();
        let entry = snapshot.subscription_of(uid.as_bytes()).unwrap();
        (entry.revision, entry.value.paused, entry.value.pause_reason.clone())
    };
    let (revision, ..) = entry().await;
    let theirs = Catalog::new(mesh.worker.clone(), master_key());
    assert!(theirs.put_subscription(&subscription("billing"), revision).await.is_err(), "it may not write itself");
    let stamp = Stamp { request_id: "gone-1".into(), operator: "worker 1".into(), reason: "410 Gone".into() };
    pause_subscription(&theirs, uid, revision + 1, &stamp).await.unwrap();
    assert!(!entry().await.1, "it was called by another revision");
    pause_subscription(&theirs, uid, revision, &stamp).await.unwrap();
    let (_, paused, reason) = entry().await;
    assert!(paused && reason.contains("410 Gone"), "{reason}");
    // Asked again, as after an answer that was lost.
    pause_subscription(&theirs, uid, revision, &stamp).await.unwrap();
}

/// The server does not limit consumers by user, so one role's user can take all of a stream. The readers by which the
/// others do their work continue without one.
#[tokio::test]
async fn no_users_consumers_keep_others_from_reading() {
    let mesh = Mesh::start(MaxBytes::Auto).await;
    mesh.events(3).await;
    let gateway = connect(&mesh.server.users().gateway).await;
    for stream in ["EVENTS", "KV_weft_catalog"] {
        let consumers = streams::consumers(&mesh.admin, stream).await.unwrap();
        add_consumers(&gateway, stream, consumers.limit - consumers.count).await;
    }
    let mut reader = OrderedReader::new(mesh.worker.clone(), pages(2));
    let mut next = 1;
    for more in [3, 4] {
        if more == 4 {
            mesh.events(4).await;
        }
        while next <= [3, 7][more - 3] {
            let batch = tokio::time::timeout(PATIENCE, reader.next()).await.expect("it reads").unwrap();
            for message in batch.messages {
                assert_eq!(message.seq, StreamSeq(next));
                next += 1;
            }
        }
    }
    let mut seen = Catalog::new(mesh.worker.clone(), master_key()).watch(mesh.stop.clone());
    mesh.catalog.put_subscription(&subscription("billing"), 0).await.unwrap();
    let known = seen.wait_for(|snapshot| snapshot.subscriptions.len() == 1);
    tokio::time::timeout(PATIENCE, known).await.expect("changes of the catalog are seen").unwrap();
    assert!(mesh.worker.paging_readers().unwrap().contains("reader worker-events-0 of EVENTS refused"));
    assert_eq!(mesh.worker.refused_readers(), None);
}

/// Without an admin nothing is dropped, and the reason names what is missing.
#[tokio::test]
async fn without_an_admin_a_worker_is_told_why_nothing_is_dropped() {
    let mesh = Mesh::start(MaxBytes::Auto).await;
    mesh.events(3).await;
    mesh.commit(3).await;
    mesh.stop_answering().await;
    let refused = drop_through(&mesh.requests(), "EVENTS", StreamSeq(3)).await.unwrap_err().to_string();
    assert!(refused.contains("no admin runs that could drop from EVENTS"), "{refused}");
    assert_eq!(mesh.first("EVENTS").await, 1);
}

/// A reader of pages continues through a restart of the server without a gap or a repeat, and notices another stream as
/// any reader.
#[tokio::test]
async fn a_reader_of_pages_keeps_order_and_notices_another_stream() {
    let server = TestServer::start().await;
    let connection = server.connection("test").await;
    let spec = LogSpec { body_bytes_max: 1 << 20, ..LogSpec::default() };
    streams::ensure(&connection, &spec).await.unwrap();
    let fill = async || {
        let consumers = streams::consumers(&connection, "EVENTS").await.unwrap();
        // The reader may be faster and have the last place.
        add_consumers(&connection, "EVENTS", consumers.limit - consumers.count - 1).await;
        let _ = try_add_consumer(&connection, "EVENTS").await;
    };
    fill().await;
    let mut reader = OrderedReader::new(connection.clone(), pages(1));
    let mut next = 1;
    for round in 0..3 {
        for _ in 0..50 {
            publish(&connection, &message("events.a", 10)).await.unwrap();
        }
        while next <= (round + 1) * 50 {
            let batch = tokio::time::timeout(PATIENCE, reader.next()).await.expect("it reads").unwrap();
            for message in batch.messages {
                assert_eq!(message.seq, StreamSeq(next));
                next += 1;
            }
        }
        server.kill();
        server.restart().await;
        tokio::time::timeout(PATIENCE, connection.connected()).await.unwrap();
        fill().await;
    }
    connection.jetstream().delete_stream("EVENTS").await.unwrap();
    streams::ensure(&connection, &LogSpec { new_log: true, ..spec }).await.unwrap();
    fill().await;
    let error = tokio::time::timeout(PATIENCE, reader.next()).await.expect("it notices").unwrap_err();
    assert!(matches!(error, ReadError::Another { .. } | ReadError::Behind { .. }), "{error}");
}
