//! The supervised server: what each user may do, and that neither it nor we outlive the other to any harm.

use std::{
    io::{BufRead, BufReader},
    net::{Ipv4Addr, TcpListener},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::Duration,
};

use futures_util::StreamExt as _;
use rustix::process::{Pid, Signal, getpgid, kill_process, test_kill_process};
use tokio_util::sync::CancellationToken;
use weft_nats::{
    async_nats::{self, ConnectOptions, ServerAddr, jetstream::consumer},
    broker,
    catalog::{Catalog, CatalogError},
    connect::Connection,
    options::{LogOptions, MESSAGE_OVERHEAD_BYTES, NatsOptions},
    server::{Server, ServerError, ServerOptions, find_program},
    streams::{self, EnsureError, LogSpec},
    subject::{FORWARD_SUBJECTS, Layout, RETRY_QUEUE, RETRY_SUBJECT},
    testing::{SmallDisk, eventually},
};
use weft_proto::{
    ids::{ShardId, StreamSeq},
    v1::{GithubScheme, Source, Verification, verification},
};

pub const PATIENCE: Duration = Duration::from_secs(20);

pub fn options(folder: &Path) -> ServerOptions {
    ServerOptions {
        program: find_program().unwrap(),
        folder: folder.to_owned(),
        log: LogOptions::default(),
        max_payload: (1 << 20) + MESSAGE_OVERHEAD_BYTES,
        port: 0,
        launcher: Vec::new(),
    }
}

pub async fn connect(user: &NatsOptions) -> Connection {
    let connection = Connection::connect(user, "test").await.unwrap();
    tokio::time::timeout(PATIENCE, connection.connected()).await.expect("the user is let in");
    connection
}

pub async fn ensure(connection: &Connection) {
    streams::ensure(connection, &LogSpec { body_bytes_max: 1 << 20, ..LogSpec::default() }).await.unwrap();
}

/// The last sequence of a stream, as soon as the server answers: it may have been restarted a moment ago.
async fn last(connection: &Connection, stream: &str) -> StreamSeq {
    let mut last = Err(EnsureError::Unavailable(String::new()));
    let is_answered = async || {
        last = streams::state(connection, stream).await.map(|state| state.last);
        !matches!(last, Err(EnsureError::Unavailable(_)))
    };
    assert!(eventually(PATIENCE, is_answered).await, "the server answers");
    last.unwrap()
}

/// Publishes and waits until the server has seen it, stored or refused.
async fn publish(connection: &Connection, subject: &str) {
    connection.client().publish(subject.to_owned(), "x".into()).await.unwrap();
    let seen = connection.client().request(connection.api_subject("INFO"), "".into());
    tokio::time::timeout(PATIENCE, seen).await.expect("the server answers").unwrap();
}

fn pid(folder: &Path) -> Pid {
    let text = std::fs::read_to_string(folder.join("nats.pid")).unwrap();
    Pid::from_raw(text.trim().parse().unwrap()).unwrap()
}

/// Whether a process runs; one that only waits to be buried does not.
fn runs(pid: Pid) -> bool {
    match std::fs::read_to_string(format!("/proc/{pid}/stat")) {
        Ok(stat) => !stat.rsplit_once(") ").is_some_and(|(_, rest)| rest.starts_with('Z')),
        Err(_) => test_kill_process(pid).is_ok(),
    }
}

async fn ends(pid: Pid) -> bool {
    eventually(PATIENCE, async || !runs(pid)).await
}

/// A process that runs a server on a folder.
struct Supervisor(Child);

impl Supervisor {
    fn start(folder: &Path, port: u16, launched: bool) -> (Self, String) {
        let mut child = Command::new(env!("CARGO_BIN_EXE_weft-nats-supervise"))
            .arg("run")
            .arg(folder)
            .arg(port.to_string())
            .args(launched.then_some("launched"))
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut url = String::new();
        BufReader::new(child.stdout.take().unwrap()).read_line(&mut url).unwrap();
        (Self(child), url.trim().to_owned())
    }

    fn kill(&mut self) {
        self.0.kill().unwrap();
        self.0.wait().unwrap();
    }
}

impl Drop for Supervisor {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[tokio::test]
async fn each_role_writes_its_own_streams_and_no_others() {
    let folder = tempfile::tempdir().unwrap();
    let cancel = CancellationToken::new();
    let server = Server::start(options(folder.path()), cancel.clone()).await.unwrap();
    let users = server.users();
    let (gateway, worker, admin) = tokio::join!(connect(&users.gateway), connect(&users.worker), connect(&users.admin));
    ensure(&admin).await;
    for role in [&gateway, &worker, &admin] {
        assert_eq!(role.max_payload(), Some((1 << 20) + 128 * 1024));
    }
    for (subject, stream, writers) in [
        ("events.w", "EVENTS", &[0][..]),
        ("heads.0", "EVENTS", &[0, 1]),
        ("rejected.shop", "REJECTED", &[0]),
        ("outcomes.0", "OUTCOMES", &[1]),
        ("outcomes.0.checkpoint", "OUTCOMES", &[1]),
        ("checkpoints.0", "CHECKPOINTS", &[1]),
        ("dlq.s.w.e.0", "DLQ", &[1]),
        ("commands.0", "COMMANDS", &[2]),
        ("$KV.weft_leases.0", "KV_weft_leases", &[1]),
    ] {
        // The operator's role may write any bucket.
        let may = |index: usize| writers.contains(&index) || (index == 2 && subject.starts_with("$KV."));
        let roles = [&gateway, &worker, &admin];
        let before = last(&admin, stream).await;
        // Who may not comes first: a stream stores in order, so what had slipped through would stand before the rest.
        let (allowed, refused): (Vec<usize>, Vec<usize>) = (0..roles.len()).partition(|index| may(*index));
        for index in refused.iter().chain(&allowed) {
            publish(roles[*index], subject).await;
        }
        let wanted = StreamSeq(before.0 + allowed.len() as u64);
        assert!(eventually(PATIENCE, async || last(&admin, stream).await >= wanted).await, "{allowed:?} on {subject}");
        assert_eq!(last(&admin, stream).await, wanted, "{refused:?} on {subject}");
    }
    let scheme = verification::Scheme::Github(GithubScheme { secrets: vec!["secret of the sender".into()] });
    let verification = Some(Verification { scheme: Some(scheme) });
    let source = Source { name: "shop".into(), verification, ..Source::default() };
    let refused = Catalog::new(gateway.clone(), weft_nats::testing::master_key()).put_source(&source, 0).await;
    assert!(matches!(refused, Err(CatalogError::Unavailable(_))), "{refused:?}");
    Catalog::new(admin, weft_nats::testing::master_key()).put_source(&source, 0).await.unwrap();
    let used = async |role: &Connection, second: i64| {
        Catalog::new(role.clone(), weft_nats::testing::master_key()).put_key_use("ab12cd34", second * 1000).await
    };
    used(&gateway, 60).await.unwrap();
    assert!(matches!(used(&worker, 120).await, Err(CatalogError::Unavailable(_))));
    let snapshot = Catalog::new(gateway, weft_nats::testing::master_key()).read().await.unwrap();
    assert_eq!((snapshot.sources.len(), snapshot.keys_used["ab12cd34"].as_second()), (1, 60));

    cancel.cancel();
    tokio::time::timeout(PATIENCE, server.stopped()).await.expect("it ends with its token");
    assert!(ends(pid(folder.path())).await);
}

/// Retries are asked for by admins and answered by gateways; neither workers nor the tail user reach them.
#[tokio::test]
async fn only_admins_ask_for_retries() {
    let folder = tempfile::tempdir().unwrap();
    let server = Server::start(options(folder.path()), CancellationToken::new()).await.unwrap();
    let users = server.users();
    let gateway = connect(&users.gateway).await;
    let mut requests = gateway.client().queue_subscribe(RETRY_SUBJECT, RETRY_QUEUE.to_owned()).await.unwrap();
    gateway.client().flush().await.unwrap();
    let others = [connect(&users.worker).await, connect(&users.tail).await];
    let mut heard = Vec::new();
    for other in &others {
        heard.push(other.client().subscribe(RETRY_SUBJECT).await.unwrap());
        publish(other, RETRY_SUBJECT).await;
    }
    let admin = connect(&users.admin).await;
    let answering = async {
        let request = requests.next().await.unwrap();
        assert_eq!(request.payload, "by an admin", "the first that comes through");
        gateway.client().publish(request.reply.unwrap(), "answer".into()).await.unwrap();
    };
    let asking = admin.client().request(RETRY_SUBJECT, "by an admin".into());
    let (answer, ()) = tokio::join!(asking, answering);
    assert_eq!(answer.unwrap().payload, "answer");
    for (other, mut heard) in others.iter().zip(heard) {
        // Behind what it would have heard.
        publish(other, "nothing").await;
        assert!(futures_util::FutureExt::now_or_never(heard.next()).is_none());
    }
}

/// Gateways forward events to each other, answer more than once, and publish the appender; no other role can read or
/// write these messages.
#[tokio::test]
async fn gateways_talk_among_themselves() {
    let folder = tempfile::tempdir().unwrap();
    let server = Server::start(options(folder.path()), CancellationToken::new()).await.unwrap();
    let users = server.users();
    let gateways = [connect(&users.gateway).await, connect(&users.gateway).await];
    ensure(&connect(&users.admin).await).await;
    let layout = Layout::new(1);
    let (asked, told) = (layout.forward_subject(ShardId(0), "a"), layout.forward_answer_subject(ShardId(0), "b", 1));
    let mut requests = gateways[0].client().subscribe(asked.clone()).await.unwrap();
    let mut answers = gateways[1].client().subscribe(told.clone()).await.unwrap();
    for gateway in &gateways {
        gateway.client().flush().await.unwrap();
    }
    let others = [connect(&users.worker).await, connect(&users.admin).await, connect(&users.tail).await];
    let mut heard = Vec::new();
    for other in &others {
        heard.push(other.client().subscribe(FORWARD_SUBJECTS).await.unwrap());
        publish(other, &asked).await;
        publish(other, &told).await;
    }
    let ask = gateways[1].client().publish_with_reply(asked, told.clone(), "by a gateway".into());
    ask.await.unwrap();
    let request = tokio::time::timeout(PATIENCE, requests.next()).await.expect("it comes through").unwrap();
    assert_eq!((request.payload, request.reply.as_deref()), ("by a gateway".into(), Some(told.as_str())));
    for answer in ["working", "verdicts"] {
        gateways[0].client().publish(told.clone(), answer.into()).await.unwrap();
        let heard = tokio::time::timeout(PATIENCE, answers.next()).await.expect("it comes through").unwrap();
        assert_eq!(heard.payload, answer, "no other role's message comes first");
    }
    for (other, mut heard) in others.iter().zip(heard) {
        // Behind what it would have heard.
        publish(other, "nothing").await;
        assert!(futures_util::FutureExt::now_or_never(heard.next()).is_none());
    }
    publish(&gateways[0], &layout.appender_key(ShardId(0))).await;
    assert!(eventually(PATIENCE, async || last(&gateways[0], "KV_weft_leases").await == StreamSeq(1)).await);
}

/// The contract's tail: stored events through a consumer, nothing else.
#[tokio::test]
async fn the_tail_user_reads_events_and_changes_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let server = Server::start(options(folder.path()), CancellationToken::new()).await.unwrap();
    let (gateway, admin) = tokio::join!(connect(&server.users().gateway), connect(&server.users().admin));
    ensure(&admin).await;
    let catalog = Catalog::new(admin.clone(), weft_nats::testing::master_key());
    tokio::spawn(broker::serve(catalog, Layout::new(1), CancellationToken::new()));
    for subject in ["events.a", "events.b", "events.a"] {
        publish(&gateway, subject).await;
    }

    let url = std::fs::read_to_string(folder.path().join("tail.url")).unwrap();
    let address: ServerAddr = url.trim().parse().unwrap();
    let (user, password) = (address.username().unwrap(), address.password().unwrap());
    let tail = ConnectOptions::with_user_and_password(user.into(), password.into());
    let client = tail.connect(address).await.unwrap();
    let jetstream = async_nats::jetstream::new(client.clone());
    let stream = jetstream.get_stream("EVENTS").await.unwrap();
    let filter_subject = "events.a".to_owned();
    let pull = consumer::pull::OrderedConfig { filter_subject: filter_subject.clone(), ..Default::default() };
    // The admin's broker may not have subscribed yet.
    let answers = async || stream.create_consumer(pull.clone()).await.is_ok();
    assert!(weft_nats::testing::eventually(PATIENCE, answers).await);
    let pulled = stream.create_consumer(pull).await.unwrap().messages().await.unwrap();
    let deliver_subject = client.new_inbox();
    let push = consumer::push::OrderedConfig { filter_subject, deliver_subject, ..Default::default() };
    let pushed = stream.create_consumer(push).await.unwrap().messages().await.unwrap();
    let pulled = tokio::time::timeout(PATIENCE, pulled.take(2).collect::<Vec<_>>()).await.expect("both events");
    let pushed = tokio::time::timeout(PATIENCE, pushed.take(2).collect::<Vec<_>>()).await.expect("both events");
    let subjects: Vec<_> = pulled.iter().flatten().map(|message| message.subject.as_str()).collect();
    assert_eq!(subjects, ["events.a", "events.a"]);
    assert_eq!(pushed.iter().flatten().count(), 2);

    let tail = connect(&server.users().tail).await;
    for subject in ["events.x", "outcomes.0", "commands.0", "dlq.s", "$KV.weft_catalog.source.shop"] {
        publish(&tail, subject).await;
    }
    let state = last(&admin, "EVENTS").await;
    assert_eq!(state, StreamSeq(3));
    for stream in ["OUTCOMES", "COMMANDS", "DLQ", "KV_weft_catalog"] {
        assert_eq!(last(&admin, stream).await, StreamSeq(0), "{stream}");
    }
    // Neither what is only published nor what others are answered: the catalog's secrets go through their inboxes.
    for subject in ["events.>", "_INBOX_gateway.>", "_INBOX_admin.>", ">"] {
        let mut seen = tail.client().subscribe(subject).await.unwrap();
        publish(&gateway, "events.a").await;
        publish(&tail, "nothing").await;
        assert!(futures_util::FutureExt::now_or_never(seen.next()).is_none(), "{subject}");
    }
}

#[tokio::test]
async fn a_server_that_dies_comes_back_with_everything() {
    let folder = tempfile::tempdir().unwrap();
    let server = Server::start(options(folder.path()), CancellationToken::new()).await.unwrap();
    let admin = connect(&server.users().admin).await;
    ensure(&admin).await;
    let before = streams::state(&admin, "EVENTS").await.unwrap();
    for _ in 0..2 {
        let pid = pid(folder.path());
        kill_process(pid, Signal::KILL).unwrap();
        assert!(ends(pid).await);
        let back = eventually(PATIENCE, async || streams::state(&admin, "EVENTS").await.is_ok()).await;
        assert!(back, "the same users, the same port");
        assert_eq!(streams::state(&admin, "EVENTS").await.unwrap(), before);
    }
}

/// P1's other half: two servers never share a store, so the one that we started must die with us.
#[cfg(target_os = "linux")]
#[tokio::test]
async fn a_launched_server_dies_with_its_supervisor() {
    let folder = tempfile::tempdir().unwrap();
    let (mut supervisor, _) = Supervisor::start(folder.path(), 0, true);
    let server = pid(folder.path());
    assert!(runs(server));
    assert_eq!(getpgid(Some(server)).unwrap(), server, "a Ctrl-C at the terminal does not reach it");
    supervisor.kill();
    assert!(ends(server).await);
}

#[tokio::test]
async fn a_server_left_over_does_not_block_the_next_start() {
    let folder = tempfile::tempdir().unwrap();
    let (mut supervisor, url) = Supervisor::start(folder.path(), 0, false);
    let stale = pid(folder.path());
    let busy = Server::start(options(folder.path()), CancellationToken::new()).await;
    assert!(matches!(busy, Err(ServerError::InUse { .. })), "{busy:?}");
    assert!(runs(stale), "a server with a running supervisor is left alone");

    supervisor.kill();
    // It may hang, too.
    kill_process(stale, Signal::STOP).unwrap();
    let port = url.rsplit(':').next().unwrap().parse().unwrap();
    let server =
        Server::start(ServerOptions { port, ..options(folder.path()) }, CancellationToken::new()).await.unwrap();
    assert_eq!(server.url(), url, "with it gone its port is free");
    assert_ne!(pid(folder.path()), stale);
    assert!(ends(stale).await);
}

#[tokio::test]
async fn what_stands_in_the_way_is_worked_around_or_said() {
    let folder = tempfile::tempdir().unwrap();
    // A process id that by now belongs to another process.
    std::fs::write(folder.path().join("nats.pid"), std::process::id().to_string()).unwrap();
    let taken = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    let port = taken.local_addr().unwrap().port();
    let cancel = CancellationToken::new();
    // Units that the server's own language does not know.
    let log = LogOptions { fsync: "1day 500ms".into(), ..LogOptions::default() };
    let options_taken = ServerOptions { port, log, ..options(folder.path()) };
    let server = Server::start(options_taken, cancel.clone()).await.unwrap();
    assert_ne!(server.url(), format!("nats://127.0.0.1:{port}"));
    cancel.cancel();
    server.stopped().await;

    let start = async |options| Server::start(options, CancellationToken::new()).await;
    let file = tempfile::NamedTempFile::new().unwrap();
    let below = start(options(&file.path().join("nats"))).await;
    assert!(matches!(below, Err(ServerError::Folder { .. })), "{below:?}");
    let missing =
        start(ServerOptions { program: PathBuf::from("/nonexistent/nats-server"), ..options(folder.path()) }).await;
    assert!(matches!(&missing, Err(ServerError::Start(problem)) if problem.contains("nonexistent")), "{missing:?}");
    let ends = start(ServerOptions { program: PathBuf::from("/bin/false"), ..options(folder.path()) }).await;
    assert!(matches!(ends, Err(ServerError::Start(_))), "{ends:?}");
    // A failed start leaves nothing that would stop the next.
    start(options(folder.path())).await.unwrap();
}

/// An event that was stored under a larger limit is published again when it becomes a dead letter's copy.
#[tokio::test]
async fn max_payload_never_sinks() {
    let folder = tempfile::tempdir().unwrap();
    for (wanted, expected) in [(4 << 20, 4 << 20), (1 << 20, 4 << 20), (5 << 20, 5 << 20)] {
        let cancel = CancellationToken::new();
        let options = ServerOptions { max_payload: wanted, ..options(folder.path()) };
        let server = Server::start(options, cancel.clone()).await.unwrap();
        assert_eq!(connect(&server.users().worker).await.max_payload(), Some(expected));
        cancel.cancel();
        server.stopped().await;
    }
}

/// A full disk stops the streams that are written to, for good as nats-server sees it. The server is restarted once there is
/// room, and says meanwhile what is wrong.
#[tokio::test]
async fn a_full_disk_heals_once_there_is_room() {
    let folder = tempfile::tempdir().unwrap();
    let Some(disk) = SmallDisk::mount(folder.path(), 64 << 20) else { return };
    let server = Server::start(options(folder.path()), CancellationToken::new()).await.unwrap();
    let gateway = connect(&server.users().gateway).await;
    let admin = connect(&server.users().admin).await;
    ensure(&admin).await;
    let stored = async || gateway.client().request("events.w", vec![0; 1000].into()).await.is_ok();
    assert!(stored().await);
    let mut storage = server.storage();
    assert_eq!(*storage.borrow_and_update(), None);

    for _ in 0..2 {
        disk.fill().unwrap();
        // The last block may have room for some.
        let refuses = async || {
            let request = gateway.client().request("events.w", vec![0; 64 << 10].into());
            tokio::time::timeout(Duration::from_millis(500), request).await.is_err()
        };
        assert!(eventually(PATIENCE, refuses).await, "nothing is stored any more");
        let problem = storage.wait_for(Option::is_some).await.unwrap().clone().unwrap();
        assert!(problem.starts_with("disk full: "), "{problem}");
        let before = last(&admin, "EVENTS").await;
        disk.make_room().unwrap();
        let healed = async || {
            let request = gateway.client().request("events.w", "x".into());
            matches!(tokio::time::timeout(Duration::from_millis(500), request).await, Ok(Ok(_)))
        };
        assert!(eventually(Duration::from_secs(10), healed).await, "it is written again");
        assert!(last(&admin, "EVENTS").await > before, "what was stored is there");
        tokio::time::timeout(PATIENCE, storage.wait_for(Option::is_none)).await.unwrap().unwrap();
    }
}

/// The streams keep what they reserve when other files take the disk between two starts, and may still be changed.
#[tokio::test]
async fn a_start_with_less_room_than_before_keeps_the_log() {
    let folder = tempfile::tempdir().unwrap();
    let Some(disk) = SmallDisk::mount(folder.path(), 3 << 30) else { return };
    let spec = |limit: u64| LogSpec { body_bytes_max: 1 << 20, auto_bytes_max: Some(limit), ..LogSpec::default() };
    let start = async |limit: u64| {
        let cancel = CancellationToken::new();
        let server = Server::start(options(folder.path()), cancel.clone()).await.unwrap();
        let admin = connect(&server.users().admin).await;
        streams::ensure(&admin, &spec(limit)).await.unwrap();
        publish(&connect(&server.users().gateway).await, "events.w").await;
        let stored = last(&admin, "EVENTS").await;
        cancel.cancel();
        server.stopped().await;
        stored
    };
    let first = start(2 << 30).await;
    let meta = folder.path().join("store/jetstream/WEFT_EVENTS/streams/EVENTS/meta.inf");
    let text = std::fs::read_to_string(&meta).unwrap();
    assert!(text.contains(&format!("\"max_bytes\":{}", 2u64 << 30)), "the field that reservations are read from");
    // The reservation alone is above all that the disk has now.
    assert!(disk.resize(256 << 20));
    assert!(start(100 << 20).await > first);
    assert!(start(150 << 20).await > first);
}

/// A process that has nothing to do with the mesh, with any arguments.
struct Innocent(Child);

impl Innocent {
    fn start(program: &Path, arguments: &[&str]) -> Self {
        let mut command = Command::new(program);
        Self(command.args(arguments).stdin(Stdio::piped()).stdout(Stdio::null()).spawn().unwrap())
    }

    fn pid(&self) -> Pid {
        Pid::from_child(&self.0)
    }
}

impl Drop for Innocent {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// A process id in the folder may be given to another process, which may even look like the server: it is left alone.
#[cfg(target_os = "linux")]
#[tokio::test]
async fn processes_that_are_not_ours_are_left_alone() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().canonicalize().unwrap();
    let start = async || {
        let cancel = CancellationToken::new();
        let server = Server::start(options(&path), cancel.clone()).await.unwrap();
        cancel.cancel();
        server.stopped().await;
    };
    start().await;
    let config = path.join("nats.conf").display().to_string();
    // `cat` waits for its input; as a script's argument the configuration is not an option of `cat`.
    let arguments = ["-c", "cat; true", "--config", config.as_str()];
    let shell = Innocent::start(Path::new("/bin/sh"), &arguments);
    let disguised = path.join("nats-server");
    // By another process: a file that this one has open for writing cannot be run.
    assert!(Command::new("cp").args(["-L", "/bin/sh"]).arg(&disguised).status().unwrap().success());
    let disguised = Innocent::start(&disguised, &arguments);

    // An earlier version leaves no note: a program of another name is none.
    std::fs::remove_file(path.join("nats.process")).unwrap();
    std::fs::write(path.join("nats.pid"), shell.pid().to_string()).unwrap();
    start().await;
    assert!(runs(shell.pid()));
    // The note shows that the process was started at another time, regardless of its name and arguments.
    for innocent in [&shell, &disguised] {
        let pid = innocent.pid().as_raw_pid();
        std::fs::write(path.join("nats.pid"), pid.to_string()).unwrap();
        let boot = std::fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap();
        std::fs::write(path.join("nats.process"), format!("{pid} 1 {}", boot.trim())).unwrap();
        start().await;
        assert!(runs(innocent.pid()));
    }
}

/// Secrets in our environment are not handed to the server, whose environment other tools show.
#[cfg(target_os = "linux")]
#[tokio::test]
async fn the_server_is_not_given_our_environment() {
    for launched in [false, true] {
        let folder = tempfile::tempdir().unwrap();
        let supervisor = Supervisor::start(folder.path(), 0, launched);
        let environ = std::fs::read(format!("/proc/{}/environ", pid(folder.path()).as_raw_pid())).unwrap();
        let names: Vec<_> = environ
            .split(|byte| *byte == 0)
            .filter_map(|variable| variable.split(|byte| *byte == b'=').next())
            .map(|name| String::from_utf8_lossy(name).into_owned())
            .filter(|name| !name.is_empty() && name != "WEFT_LAUNCH_PARENT")
            .collect();
        let kept = ["PATH", "HOME", "TZ", "TMPDIR", "LD_LIBRARY_PATH", "GOMEMLIMIT", "GOMAXPROCS", "GOGC", "GODEBUG"];
        assert!(names.iter().all(|name| kept.contains(&name.as_str())), "{names:?}");
        drop(supervisor);
    }
}
