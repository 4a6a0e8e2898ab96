//! `weft` as a child process: for the demo, the benchmarks and the tests, which all want the real thing.

use std::{
    collections::{BTreeMap, VecDeque},
    ffi::OsString,
    fs::{self, File},
    path::{Path, PathBuf},
    process::{ExitStatus, Stdio},
    time::Duration,
};

use anyhow::{Context as _, anyhow, bail};
use rustix::process::{Pid, Signal, kill_process};
use tokio::{
    io::{AsyncBufReadExt as _, BufReader, Lines},
    process::{Child, ChildStdout, Command},
    time::timeout,
};

/// How long a process may take to become ready: nats-server and all roles, on a busy machine.
pub const READY_PATIENCE: Duration = Duration::from_secs(60);
/// How long it may take to drain: a role's own limit, for each, is longer, but then something is wrong.
pub const STOP_PATIENCE: Duration = Duration::from_secs(60);
/// Our variables that a child gets, too.
const INHERITED: [&str; 3] = ["WEFT_NATS_SERVER", "WEFT_CACHE", "WEFT_LOG"];
/// Log lines that a failure quotes.
const QUOTED_LINES: usize = 5;

/// A process to start.
#[derive(Debug, Clone)]
pub struct Spec {
    /// The `weft` binary.
    pub program: PathBuf,
    /// Arguments of the binary.
    pub args: Vec<OsString>,
    /// Variables on top of ours.
    pub env: Vec<(String, String)>,
    /// Where its log goes; appended to, so that a restart keeps what was before.
    pub log: PathBuf,
}

/// A running process. Killed when dropped.
#[derive(Debug)]
pub struct Process {
    child: Child,
    stdout: Option<Lines<BufReader<ChildStdout>>>,
    log: PathBuf,
}

/// Announced endpoints of a process, by name: `gateway`, `admin`, `ops`, `nats`, `client`, `tail`.
#[derive(Debug, Clone, Default)]
pub struct Endpoints(BTreeMap<String, String>);

impl Endpoints {
    /// Where it is.
    ///
    /// # Errors
    ///
    /// When the process has announced no such thing.
    pub fn get(&self, name: &str) -> anyhow::Result<&str> {
        self.0.get(name).map(String::as_str).with_context(|| format!("no {name} was announced"))
    }
}

impl Process {
    /// Starts a process.
    ///
    /// # Errors
    ///
    /// When the program or the log file cannot be opened.
    pub fn start(spec: &Spec) -> anyhow::Result<Self> {
        Self::start_with(&spec.program, spec)
    }

    /// As [`start`](Self::start), for any program; `launcher` is the `weft` binary.
    ///
    /// # Errors
    ///
    /// As [`start`](Self::start).
    pub fn start_with(launcher: &Path, spec: &Spec) -> anyhow::Result<Self> {
        let log = File::options().create(true).append(true).open(&spec.log);
        let log = log.with_context(|| format!("{}", spec.log.display()))?;
        let mut command = Command::new(launcher);
        // The environment that configures the caller's mesh does not configure this one.
        for (name, _) in std::env::vars_os() {
            let text = name.to_string_lossy();
            if text.starts_with("WEFT_") && !INHERITED.contains(&text.as_ref()) {
                command.env_remove(name);
            }
        }
        // The launcher makes it die with us, also when we are killed.
        let mut child = command
            .arg("launch")
            .arg(&spec.program)
            .args(&spec.args)
            .envs(spec.env.iter().cloned())
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(log)
            .kill_on_drop(true)
            .spawn()
            .with_context(|| format!("{}", spec.program.display()))?;
        let stdout = child.stdout.take().map(|stdout| BufReader::new(stdout).lines());
        Ok(Self { child, stdout, log: spec.log.clone() })
    }

    /// Waits until it is ready; what it announced.
    ///
    /// # Errors
    ///
    /// When it ends, or is not ready within [`READY_PATIENCE`]; quotes its log.
    pub async fn ready(&mut self) -> anyhow::Result<Endpoints> {
        self.ready_within(READY_PATIENCE).await
    }

    /// As [`ready`](Self::ready), with another time-out: a process on a long log has much to read.
    ///
    /// # Errors
    ///
    /// As [`ready`](Self::ready).
    pub async fn ready_within(&mut self, patience: Duration) -> anyhow::Result<Endpoints> {
        let mut stdout = self.stdout.take().context("it has been waited for before")?;
        let announced = async {
            let mut endpoints = Endpoints::default();
            while let Some(line) = stdout.next_line().await? {
                match line.split_once(' ') {
                    Some((name, place)) => endpoints.0.insert(name.to_owned(), place.to_owned()),
                    None if line == "ready" => return Ok(endpoints),
                    None => None,
                };
            }
            bail!("it ended before it was ready")
        };
        let announced = timeout(patience, announced).await;
        announced
            .unwrap_or_else(|_| Err(anyhow!("it was not ready within {} s", patience.as_secs())))
            .with_context(|| self.last_words())
    }

    /// Its process id; `None` once it has ended.
    pub fn pid(&self) -> Option<u32> {
        self.child.id()
    }

    /// Ends it with SIGKILL, and waits until it is gone.
    ///
    /// # Errors
    ///
    /// The error of the system.
    pub async fn kill(&mut self) -> anyhow::Result<()> {
        Ok(self.child.kill().await?)
    }

    /// Sends it a signal. Nothing when it has ended.
    pub fn signal(&self, signal: Signal) {
        if let Some(pid) = self.pid().and_then(|pid| Pid::from_raw(i32::try_from(pid).ok()?)) {
            // It may have ended a moment ago.
            let _ = kill_process(pid, signal);
        }
    }

    /// Asks it to drain, and waits for its end.
    ///
    /// # Errors
    ///
    /// When it has not ended within [`STOP_PATIENCE`]; quotes its log.
    pub async fn stop(&mut self) -> anyhow::Result<ExitStatus> {
        self.signal(Signal::TERM);
        self.ended().await
    }

    /// Waits for its end.
    ///
    /// # Errors
    ///
    /// As [`stop`](Self::stop).
    pub async fn ended(&mut self) -> anyhow::Result<ExitStatus> {
        match timeout(STOP_PATIENCE, self.child.wait()).await {
            Ok(status) => Ok(status?),
            Err(_) => {
                Err(anyhow!("it did not end within {} s", STOP_PATIENCE.as_secs())).with_context(|| self.last_words())
            }
        }
    }

    /// The last lines of its log.
    fn last_words(&self) -> String {
        let quoted = last_lines(&self.log, QUOTED_LINES);
        format!("{} says: {}", self.log.display(), quoted.join(" | "))
    }
}

fn last_lines(path: &Path, count: usize) -> Vec<String> {
    let text = fs::read(path).unwrap_or_default();
    let mut last = VecDeque::with_capacity(count);
    for line in String::from_utf8_lossy(&text).lines() {
        if last.len() == count {
            last.pop_front();
        }
        last.push_back(line.to_owned());
    }
    last.into()
}
