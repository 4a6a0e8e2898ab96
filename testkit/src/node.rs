//! One nats-server process with a separate folder.

use std::{
    fs, io,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    sync::atomic::{AtomicBool, AtomicU16, Ordering},
    time::Instant,
};

use parking_lot::{Mutex, MutexGuard};
use rustix::process::{Pid, Signal, WaitOptions};
use tempfile::TempDir;

use weft_nats::server::{find_program, free_port};

use crate::{PATIENCE, POLL};

/// A server that can be killed, started again on its store and port, and paused.
#[derive(Debug)]
pub(crate) struct Node {
    program: PathBuf,
    folder: TempDir,
    /// `None` while it does not run.
    process: Mutex<Option<Process>>,
    port: AtomicU16,
    /// Whether it has served: from then on it keeps its port.
    has_served: AtomicBool,
}

impl Node {
    /// A node that does not run yet. `configure` writes `nats.conf` into its folder.
    pub fn new(configure: impl FnOnce(&Path)) -> Self {
        let program = find_program().unwrap_or_else(|error| panic!("{error}"));
        let folder = tempfile::tempdir().expect("a temporary folder");
        configure(folder.path());
        let port = AtomicU16::new(free_port().expect("the loopback has free ports"));
        Self { program, folder, process: Mutex::new(None), port, has_served: AtomicBool::new(false) }
    }

    pub fn folder(&self) -> &Path {
        self.folder.path()
    }

    /// Starts it, on the port that it had before; one that runs is killed first. Returns the port when clients are served.
    pub async fn start(&self) -> u16 {
        self.launch();
        self.serves().await
    }

    /// Starts it, without waiting.
    pub fn launch(&self) {
        self.kill();
        let port = self.port.load(Ordering::Relaxed);
        *self.lock() = Some(Process::spawn(&self.program, self.folder.path(), port));
    }

    /// Waits until clients are served; the port.
    pub async fn serves(&self) -> u16 {
        let start = Instant::now();
        loop {
            if let Some(port) = self.lock().as_mut().and_then(|process| process.port(&self.program, self.folder.path()))
            {
                assert_eq!(port, self.port.load(Ordering::Relaxed), "a server serves at the port that it was given");
                self.has_served.store(true, Ordering::Relaxed);
                return port;
            }
            let ended = self.lock().as_mut().is_none_or(Process::has_ended);
            let log = || fs::read_to_string(log_path(self.folder.path())).unwrap_or_default();
            assert!(start.elapsed() < PATIENCE, "nats-server does not start: {}", log());
            if ended {
                let log = log();
                // Another process was faster; a server that has served keeps its port.
                let is_taken = log.contains("address already in use") && !self.has_served.load(Ordering::Relaxed);
                assert!(is_taken, "nats-server does not start: {log}");
                self.port.store(free_port().expect("the loopback has free ports"), Ordering::Relaxed);
                self.launch();
            }
            tokio::time::sleep(POLL).await;
        }
    }

    /// Ends it at once (SIGKILL) and waits until it is gone.
    pub fn kill(&self) {
        self.lock().take();
    }

    /// Stops it in its tracks (SIGSTOP). Returns when all its threads stand still.
    pub fn pause(&self) {
        let pid = self.signal(Signal::STOP);
        let stopped = rustix::process::waitpid(Some(pid), WaitOptions::UNTRACED).expect("our own child stops");
        assert!(stopped.is_some_and(|(_, status)| status.stopped()), "nats-server ended before it could be paused");
    }

    /// Lets it continue (SIGCONT).
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
        self.process.lock()
    }
}

/// A running server, with a guard that kills it when we are killed: the guard waits for the end of a pipe whose other
/// end we hold.
#[derive(Debug)]
struct Process {
    server: Child,
    guard: Child,
}

impl Process {
    fn spawn(program: &Path, folder: &Path, port: u16) -> Self {
        let log = fs::OpenOptions::new().create(true).append(true).open(log_path(folder)).expect("the folder is ours");
        let server = Command::new(program)
            .arg("--config")
            .arg(folder.join("nats.conf"))
            .arg("--ports_file_dir")
            .arg(folder)
            .arg("--port")
            .arg(port.to_string())
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

    fn has_ended(&mut self) -> bool {
        self.server.try_wait().expect("our own child").is_some()
    }

    /// Which port it serves, once it has written that down.
    fn port(&self, program: &Path, folder: &Path) -> Option<u16> {
        let name = program.file_name().unwrap_or_default().to_string_lossy();
        let ports = folder.join(format!("{name}_{}.ports", self.server.id()));
        fs::read(&ports).ok().and_then(|text| port_of(&text))
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        // The guard first: once the server's process id is free, another process may get it.
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

pub(crate) fn copy_folder(from: &Path, to: &Path) {
    fs::create_dir_all(to).expect("a folder is made");
    for entry in fs::read_dir(from).expect("a folder") {
        let entry = entry.expect("an entry");
        let target = to.join(entry.file_name());
        if entry.file_type().expect("a type").is_dir() {
            copy_folder(&entry.path(), &target);
        } else {
            fs::copy(entry.path(), &target).expect("a file is copied");
        }
    }
}
