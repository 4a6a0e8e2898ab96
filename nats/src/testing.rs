//! A real nats-server for tests: on a free port, with a store of its own, gone when it is dropped and when the test is
//! killed. It can be killed, restarted on the same store and port, and paused.

use std::{
    fmt::Write as _,
    fs, io,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    sync::{Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use async_nats::jetstream::{consumer::pull, stream::ConsumerError};
use futures_util::{StreamExt as _, TryStreamExt as _, stream};
use rustix::process::{Pid, Signal, WaitOptions};
use tempfile::TempDir;

use crate::{catalog::MasterKey, connect::Connection, options::NatsOptions, server::find_program};

/// How long a server may take to serve. Generous: a machine that runs many tests at once is slow.
const START_PATIENCE: Duration = Duration::from_secs(30);
/// How often a condition is looked at.
const POLL: Duration = Duration::from_millis(5);

/// The master key of test meshes as a text: always the same, so that everyone who meets on a server has it.
pub const MASTER_KEY: &str = "dGVzdCB0ZXN0IHRlc3QgdGVzdCB0ZXN0IHRlc3QgdGU=";

/// [`MASTER_KEY`] as a key.
///
/// # Panics
///
/// Never: the text is one.
pub fn master_key() -> MasterKey {
    MasterKey::parse(MASTER_KEY).expect("base64 of 32 bytes")
}

/// A server for one test, without users.
#[derive(Debug)]
pub struct TestServer {
    program: PathBuf,
    folder: TempDir,
    /// `None` after [`kill`](Self::kill).
    process: Mutex<Option<Process>>,
    port: u16,
    url: String,
}

/// What a test server may be told.
#[derive(Debug, Clone)]
pub struct TestServerBuilder {
    max_payload: u64,
    config: String,
}

impl TestServerBuilder {
    /// The server's `max_payload` in bytes. Default: 1 MiB + 128 KiB.
    #[must_use]
    pub fn max_payload(mut self, bytes: u64) -> Self {
        self.max_payload = bytes;
        self
    }

    /// Lines added to the server's configuration file.
    #[must_use]
    pub fn config(mut self, lines: &str) -> Self {
        self.config.push_str(lines);
        self.config.push('\n');
        self
    }

    /// Starts the server and waits until it serves.
    ///
    /// # Panics
    ///
    /// When there is no nats-server new enough, or it does not start.
    pub async fn start(self) -> TestServer {
        let program = find_program().unwrap_or_else(|error| panic!("{error}"));
        let folder = tempfile::tempdir().expect("a temporary folder");
        write_config(folder.path(), &self);
        let mut process = Process::spawn(&program, folder.path(), None);
        let port = process.served_port(&program, folder.path()).await;
        TestServer {
            program,
            folder,
            process: Mutex::new(Some(process)),
            port,
            url: format!("nats://127.0.0.1:{port}"),
        }
    }
}

impl TestServer {
    /// A server with the defaults: `sync_interval: always`, `max_payload` for bodies of 1 MiB.
    ///
    /// # Panics
    ///
    /// As [`TestServerBuilder::start`].
    pub async fn start() -> Self {
        Self::builder().start().await
    }

    /// A server that is told more.
    pub fn builder() -> TestServerBuilder {
        TestServerBuilder { max_payload: (1 << 20) + crate::options::MESSAGE_OVERHEAD_BYTES, config: String::new() }
    }

    /// `nats://127.0.0.1:<port>`; the same after a restart.
    pub fn url(&self) -> &str {
        &self.url
    }

    /// The folder that holds all of its files.
    pub fn folder(&self) -> &Path {
        self.folder.path()
    }

    /// What a client needs to connect.
    pub fn options(&self) -> NatsOptions {
        NatsOptions { url: Some(self.url.clone()), ..NatsOptions::default() }
    }

    /// A connection that is there.
    ///
    /// # Panics
    ///
    /// When the server does not answer in time.
    pub async fn connection(&self, name: &str) -> Connection {
        let connection = Connection::connect(&self.options(), name).await.expect("sound options");
        tokio::time::timeout(START_PATIENCE, connection.connected()).await.expect("the server answers");
        connection
    }

    /// Ends the server at once (SIGKILL) and waits until it is gone.
    pub fn kill(&self) {
        self.lock().take();
    }

    /// Starts the server again, on the same port and store, and waits until it serves; one that runs is killed first.
    ///
    /// # Panics
    ///
    /// When it does not start.
    pub async fn restart(&self) {
        self.kill();
        let mut process = Process::spawn(&self.program, self.folder.path(), Some(self.port));
        let port = process.served_port(&self.program, self.folder.path()).await;
        assert_eq!(port, self.port, "a restarted server keeps its port");
        *self.lock() = Some(process);
    }

    /// Stops the server in its tracks (SIGSTOP): connections stay open and nothing answers. Returns when all its threads
    /// stand still.
    ///
    /// # Panics
    ///
    /// When it does not run.
    pub fn pause(&self) {
        let pid = self.signal(Signal::STOP);
        let stopped = rustix::process::waitpid(Some(pid), WaitOptions::UNTRACED).expect("our own child stops");
        assert!(stopped.is_some_and(|(_, status)| status.stopped()), "nats-server ended before it could be paused");
    }

    /// Lets a paused server go on (SIGCONT).
    ///
    /// # Panics
    ///
    /// When it does not run.
    pub fn resume(&self) {
        self.signal(Signal::CONT);
    }

    fn signal(&self, signal: Signal) -> Pid {
        let guard = self.lock();
        let pid = guard.as_ref().expect("the server runs").pid();
        rustix::process::kill_process(pid, signal).expect("our own child takes signals");
        pid
    }

    fn lock(&self) -> MutexGuard<'_, Option<Process>> {
        self.process.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Gives a stream `count` more consumers, which nothing reads from.
///
/// # Panics
///
/// When the server refuses one.
pub async fn add_consumers(connection: &Connection, stream: &str, count: u64) {
    let made = stream::iter(0..count).map(|_| try_add_consumer(connection, stream));
    let failed = made.buffer_unordered(32).filter_map(async |made| made.err()).collect::<Vec<_>>().await;
    assert!(failed.is_empty(), "{failed:?}");
}

/// Gives a stream one more consumer, which nothing reads from.
///
/// # Errors
///
/// What the server says.
pub async fn try_add_consumer(connection: &Connection, stream: &str) -> Result<(), ConsumerError> {
    let name = Some(format!("other-{}", uuid::Uuid::new_v4().simple()));
    let config = pull::Config { name, memory_storage: true, ..pull::Config::default() };
    connection.jetstream().create_consumer_on_stream(config, stream).await.map(drop)
}

/// The names of a stream's consumers.
///
/// # Panics
///
/// When the server does not answer.
pub async fn consumer_names(connection: &Connection, stream: &str) -> Vec<String> {
    let stream = connection.jetstream().get_stream(stream).await.expect("the stream");
    stream.consumer_names().try_collect().await.expect("names")
}

/// Waits until `condition` holds; `false` when it still does not after `patience`.
#[must_use = "a condition that never came must fail the test"]
pub async fn eventually<C: AsyncFnMut() -> bool>(patience: Duration, mut condition: C) -> bool {
    let start = Instant::now();
    loop {
        if condition().await {
            return true;
        }
        if start.elapsed() > patience {
            return false;
        }
        tokio::time::sleep(POLL).await;
    }
}

fn write_config(folder: &Path, builder: &TestServerBuilder) {
    let mut config = String::new();
    let store = folder.join("store");
    writeln!(config, "host: 127.0.0.1\nmax_payload: {}", builder.max_payload).expect("a text takes all");
    writeln!(config, "jetstream {{ store_dir: {store:?}, sync_interval: always }}").expect("a text takes all");
    config.push_str(&builder.config);
    fs::write(folder.join("nats.conf"), config).expect("the folder is ours");
}

/// A running server, with a guard that kills it when we are killed: the guard waits for the end of a pipe whose other
/// end we hold.
#[derive(Debug)]
struct Process {
    server: Child,
    guard: Child,
}

impl Process {
    fn spawn(program: &Path, folder: &Path, port: Option<u16>) -> Self {
        let log = fs::OpenOptions::new().create(true).append(true).open(log_path(folder)).expect("the folder is ours");
        let server = Command::new(program)
            .arg("--config")
            .arg(folder.join("nats.conf"))
            .arg("--ports_file_dir")
            .arg(folder)
            .arg("--port")
            .arg(port.map_or_else(|| "-1".to_owned(), |port| port.to_string()))
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(log)
            .spawn()
            .expect("nats-server starts");
        let guard = Command::new("sh")
            .args(["-c", "read -r _; kill -9 \"$1\"", "guard"])
            .arg(server.id().to_string())
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .expect("sh starts");
        Self { server, guard }
    }

    fn pid(&self) -> Pid {
        Pid::from_child(&self.server)
    }

    /// Waits until the server has written down which port it serves.
    async fn served_port(&mut self, program: &Path, folder: &Path) -> u16 {
        let name = program.file_name().unwrap_or_default().to_string_lossy();
        let ports = folder.join(format!("{name}_{}.ports", self.server.id()));
        let start = Instant::now();
        loop {
            if let Some(port) = fs::read(&ports).ok().and_then(|text| port_of(&text)) {
                return port;
            }
            let ended = self.server.try_wait().expect("our own child");
            assert!(
                ended.is_none() && start.elapsed() < START_PATIENCE,
                "nats-server does not start: {}",
                fs::read_to_string(log_path(folder)).unwrap_or_default()
            );
            tokio::time::sleep(POLL).await;
        }
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        // The guard first: once the server's process id is free, it may become somebody else's.
        let _: [io::Result<()>; 2] = [self.guard.kill(), self.server.kill()];
        let _ = self.guard.wait();
        let _ = self.server.wait();
    }
}

fn log_path(folder: &Path) -> PathBuf {
    folder.join("nats.log")
}

/// The client port in a ports file: `{"nats":["nats://127.0.0.1:4222"]}`.
fn port_of(text: &[u8]) -> Option<u16> {
    let ports: serde_json::Value = serde_json::from_slice(text).ok()?;
    ports["nats"][0].as_str()?.rsplit(':').next()?.parse().ok()
}
