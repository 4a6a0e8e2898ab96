//! The thread that starts the server, waits for its end, and starts it again.
//!
//! It sleeps on one channel: an order to stop, the news that the server has stopped writing, or that it has closed its log,
//! which it does by ending. In between it looks at the disk: a server that has stopped writing is restarted once there is room.
//! Only this thread waits for the child, so the child's process id is the child's for as long as the thread signals it.

use std::{
    ffi::OsString,
    io,
    os::unix::process::CommandExt,
    path::PathBuf,
    process::{Child, Command, ExitStatus, Stdio},
    sync::{
        Arc,
        mpsc::{self, RecvTimeoutError},
    },
    thread,
    time::{Duration, Instant},
};

use rustix::process::{Pid, Signal, kill_process};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use super::{
    ServerError,
    folder::Folder,
    launch,
    log::{self, Complaints},
    stale::IdentityFile,
    storage::Space,
};
use crate::{backoff::Backoff, watch_value::set_if_changed};

/// The pauses before a restart. An operator who has made room on the disk does not wait longer than the longest, and the
/// roles need a few seconds more.
const RESTART: Backoff = Backoff::new(Duration::from_millis(100), Duration::from_secs(4));
/// Interval at which the disk is checked.
const DISK_INTERVAL: Duration = Duration::from_millis(500);
/// A server that has run this long was sound: the next pause is short again.
const STEADY: Duration = Duration::from_secs(60);
/// How long the server may take to end in order.
const STOP_PATIENCE: Duration = Duration::from_secs(10);
/// Time that a server which has stopped writing may take to end in order. Its acknowledged writes are on disk.
const FAILED_STOP_PATIENCE: Duration = Duration::from_secs(2);

/// Why a server ended before it served.
#[derive(Debug, Clone, Default)]
pub(super) struct Failure {
    /// The server's output or the system's error.
    pub(super) problem: String,
    /// Whether another process listens on its port.
    pub(super) port_taken: bool,
}

impl Failure {
    /// A failure that another port would not fix.
    pub(super) fn other(problem: impl Into<String>) -> Self {
        Self { problem: problem.into(), port_taken: false }
    }
}

/// Event that wakes the thread.
enum News {
    /// The server is to end, for good.
    Stop,
    /// From now on the server is to be started again whenever it dies.
    KeepAlive,
    /// The server has stopped writing to a stream.
    WriteFailed,
    /// The server has closed its log.
    LogClosed,
}

/// A supervised server. Dropped, it ends the server.
#[derive(Debug)]
pub(super) struct Supervisor {
    news: mpsc::Sender<News>,
    /// `Some` once the server has ended before it was to be kept alive; closed when the thread has ended.
    failure: watch::Receiver<Option<Failure>>,
    storage: watch::Receiver<Option<String>>,
}

impl Supervisor {
    /// Starts the server. Until [`keep_alive`](Self::keep_alive) an end of the server is a failure.
    pub(super) fn start(command: Vec<OsString>, folder: Arc<Folder>) -> Result<Self, ServerError> {
        let (news, inbox) = mpsc::channel();
        let (report, failure) = watch::channel(None);
        let (storage_report, storage) = watch::channel(None);
        let mut duty = Duty {
            command,
            identity: IdentityFile::of(&folder),
            store: folder.store(),
            news: news.clone(),
            inbox,
            report,
            storage: storage_report,
            write_failed: false,
            keep_alive: false,
        };
        thread::Builder::new()
            .name("nats-server".into())
            .spawn(move || {
                duty.run();
                // The folder is free before anyone learns from the duty's end that the server has ended.
                drop(folder);
                drop(duty);
            })
            .map_err(|error| ServerError::Start(format!("no thread for it: {error}")))?;
        Ok(Self { news, failure, storage })
    }

    /// Why nothing is stored at the moment; `None` while the server writes and its disk has room.
    pub(super) fn storage(&self) -> watch::Receiver<Option<String>> {
        self.storage.clone()
    }

    /// From now on the server is restarted when it dies, until `cancel`.
    pub(super) fn keep_alive(&self, cancel: CancellationToken) {
        let _ = self.news.send(News::KeepAlive);
        let news = self.news.clone();
        let mut ended = self.failure.clone();
        tokio::spawn(async move {
            tokio::select! {
                () = cancel.cancelled() => {}
                _ = ended.wait_for(|_| false) => {}
            }
            // The receiver is dropped once the thread has ended.
            let _ = news.send(News::Stop);
        });
    }

    /// Waits until the server has failed to start.
    pub(super) async fn failed(&mut self) -> Failure {
        match self.failure.wait_for(Option::is_some).await {
            Ok(failure) => failure.clone().unwrap_or_default(),
            Err(_) => Failure::other("it was stopped"),
        }
    }

    /// Ends the server, and waits until it and the thread have ended.
    pub(super) async fn end(mut self) {
        let _ = self.news.send(News::Stop);
        self.ended().await;
    }

    /// Waits until the server and the thread have ended.
    pub(super) async fn ended(&mut self) {
        let _ = self.failure.wait_for(|_| false).await;
    }
}

impl Drop for Supervisor {
    fn drop(&mut self) {
        let _ = self.news.send(News::Stop);
    }
}

/// State of the supervisor's thread.
struct Duty {
    command: Vec<OsString>,
    /// Where the server's process is noted, for the next start.
    identity: IdentityFile,
    /// The store's folder, whose disk is watched.
    store: PathBuf,
    /// Given to the reader of the server's log.
    news: mpsc::Sender<News>,
    inbox: mpsc::Receiver<News>,
    report: watch::Sender<Option<Failure>>,
    storage: watch::Sender<Option<String>>,
    /// The running server has stopped writing.
    write_failed: bool,
    keep_alive: bool,
}

/// Why the thread no longer waits for a server.
enum End {
    /// It was requested to stop.
    Stopped,
    /// The server ended without a request.
    Died(String),
}

impl Duty {
    /// Runs the server until it is to stop.
    fn run(&mut self) {
        let complaints = Arc::new(Complaints::default());
        let mut ends = 0;
        loop {
            let started = Instant::now();
            self.write_failed = false;
            let died = match self.spawn(&complaints).map(|child| self.wait(child)) {
                Ok(End::Stopped) => return,
                Ok(End::Died(status)) => status,
                Err(error) => format!("{}: {error}", self.command[0].display()),
            };
            let said = complaints.take();
            if !self.keep_alive {
                self.fail(said.unwrap_or(died));
                match self.inbox.recv() {
                    // It served, and died while that was being said.
                    Ok(News::KeepAlive) => self.keep_alive = true,
                    _ => return,
                }
                continue;
            }
            if started.elapsed() >= STEADY {
                ends = 0;
            }
            ends += 1;
            let pause = RESTART.after(ends);
            tracing::error!(end = died, ?said, ?pause, "nats-server has ended and is started again");
            match self.inbox.recv_timeout(pause) {
                Err(RecvTimeoutError::Timeout) => {}
                _ => return,
            }
        }
    }

    /// Reports that the server does not start.
    fn fail(&self, problem: String) {
        let port_taken = problem.contains("address already in use");
        self.report.send_replace(Some(Failure { problem, port_taken }));
    }

    /// Starts the server, and a thread for its log.
    fn spawn(&self, complaints: &Arc<Complaints>) -> io::Result<Child> {
        let mut child = Command::new(&self.command[0])
            .args(&self.command[1..])
            .env_clear()
            .envs(launch::environment())
            .env(launch::PARENT, std::process::id().to_string())
            // A Ctrl-C at the terminal is for us: the server ends last, when all roles have drained.
            .process_group(0)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()?;
        let Some(lines) = child.stderr.take() else { return Ok(child) };
        let (complaints, news) = (complaints.clone(), self.news.clone());
        let follower = thread::Builder::new().name("nats-server-log".into()).spawn(move || {
            log::follow(lines, &complaints, || drop(news.send(News::WriteFailed)));
            let _ = news.send(News::LogClosed);
        });
        if let Err(error) = follower {
            let _ = child.kill();
            let _ = child.wait();
            return Err(error);
        }
        tracing::debug!(pid = child.id(), "nats-server is started");
        self.identity.note(child.id());
        Ok(child)
    }

    /// Waits until the server ends: without a request, because it is to stop, or because it has stopped writing and
    /// there is room.
    fn wait(&mut self, mut child: Child) -> End {
        loop {
            let low = self.look_at_disk();
            if self.write_failed && self.keep_alive && !low {
                tracing::warn!("nats-server has stopped writing after a write error and is restarted");
                let ordered = self.stop(child, FAILED_STOP_PATIENCE);
                return if ordered { End::Stopped } else { End::Died("stopped after a write error".into()) };
            }
            match self.inbox.recv_timeout(DISK_INTERVAL) {
                Ok(News::KeepAlive) => self.keep_alive = true,
                Ok(News::WriteFailed) => self.write_failed = true,
                Ok(News::LogClosed) => return End::Died(describe(child.wait())),
                Err(RecvTimeoutError::Timeout) => {}
                Ok(News::Stop) | Err(RecvTimeoutError::Disconnected) => break,
            }
        }
        self.stop(child, STOP_PATIENCE);
        End::Stopped
    }

    /// Ends the server in order, and by force after `patience`. Whether the order to stop for good came meanwhile.
    fn stop(&self, mut child: Child, patience: Duration) -> bool {
        // Not waited for yet, so the process id is the child's, whether it still runs or not.
        let _ = kill_process(Pid::from_child(&child), Signal::TERM);
        let deadline = Instant::now() + patience;
        let (mut ordered, mut killed) = (false, false);
        loop {
            let news = if killed {
                // Its log must have been read to the end: the news of it would be taken for that of the next server.
                self.inbox.recv().map_err(|_| RecvTimeoutError::Disconnected)
            } else {
                self.inbox.recv_timeout(deadline.saturating_duration_since(Instant::now()))
            };
            match news {
                Ok(News::Stop) => ordered = true,
                Ok(News::KeepAlive | News::WriteFailed) => {}
                Ok(News::LogClosed) | Err(RecvTimeoutError::Disconnected) => break,
                Err(RecvTimeoutError::Timeout) => {
                    tracing::warn!("nats-server does not end in order and is killed");
                    let _ = child.kill();
                    killed = true;
                }
            }
        }
        let end = describe(child.wait());
        tracing::debug!(end, "nats-server is stopped");
        ordered
    }

    /// Reports the disk; whether it has too little room. A disk that cannot be asked counts as one with room.
    fn look_at_disk(&self) -> bool {
        let space = Space::of(&self.store).ok().filter(|space| space.is_low());
        let problem = match space {
            Some(space) => Some(space.problem(&self.store)),
            None if self.write_failed => Some("nats-server has stopped writing and is being restarted".to_owned()),
            None => None,
        };
        let was_problem = self.storage.borrow().is_some();
        match &problem {
            Some(problem) if !was_problem => tracing::error!(problem, "the log cannot be written"),
            None if was_problem => tracing::info!("the log can be written again"),
            Some(_) | None => {}
        }
        set_if_changed(&self.storage, problem);
        space.is_some()
    }
}

fn describe(status: io::Result<ExitStatus>) -> String {
    status.map_or_else(|error| error.to_string(), |status| status.to_string())
}
