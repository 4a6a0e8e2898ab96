//! The supervised server: what each user may do, and that neither it nor we outlive the other to any harm.

use std::{
    io::{BufRead, BufReader},
    net::{Ipv4Addr, TcpListener},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::Duration,
};

use rustix::process::{Pid, Signal, getpgid, kill_process, test_kill_process};
use tokio_util::sync::CancellationToken;
use weft_nats::{
    options::LogOptions,
    server::{Server, ServerError, ServerOptions, free_port},
    streams::{self, LogSpec},
};
use weft_testkit::{
    PATIENCE, SmallDisk, eventually,
    users::{connect, ensure, last, options, publish},
};

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
async fn a_server_ends_with_its_token() {
    let folder = tempfile::tempdir().unwrap();
    let cancel = CancellationToken::new();
    let server = Server::start(options(folder.path()), cancel.clone()).await.unwrap();
    cancel.cancel();
    tokio::time::timeout(PATIENCE, server.stopped()).await.expect("it ends with its token");
    assert!(ends(pid(folder.path())).await);
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
    let (mut supervisor, url) = Supervisor::start(folder.path(), free_port().unwrap(), false);
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
async fn obstacles_at_start_are_worked_around_or_reported() {
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
async fn max_payload_is_never_lowered() {
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
        assert!(eventually(PATIENCE, healed).await, "it is written again");
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
