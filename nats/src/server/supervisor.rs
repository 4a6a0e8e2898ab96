//! The thread that starts the server, waits for its end, and starts it again.
//!
//! It sleeps on one channel: an order to stop, or the news that the server has closed its log, which it does by ending.
//! Only this thread waits for the child, so the child's process id is the child's for as long as the thread signals it.

use std::{
    ffi::OsString,
    io,
    os::unix::process::CommandExt,
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
};

/// The pause before the first restart; each further one is twice as long.
const PAUSE_MIN: Duration = Duration::from_millis(100);
/// The longest pause: an operator who has made room on the disk does not wait longer than this.
const PAUSE_MAX: Duration = Duration::from_secs(10);
/// A server that has run this long was sound: the next pause is short again.
const STEADY: Duration = Duration::from_secs(60);
/// How long the server may take to end in order.
const STOP_PATIENCE: Duration = Duration::from_secs(10);

/// Why a server ended before it served.
#[derive(Debug, Clone, Default)]
pub(super) struct Failure {
    /// What it said.
    pub(super) problem: String,
    /// Whether somebody else listens on its port.
    pub(super) port_taken: bool,
}

impl Failure {
    /// A failure that another port would not mend.
    pub(super) fn other(problem: impl Into<String>) -> Self {
        Self { problem: problem.into(), port_taken: false }
    }
}

/// What the thread wakes up for.
enum News {
    /// The server is to end, for good.
    Stop,
    /// From now on the server is to be started again whenever it dies.
    KeepAlive,
    /// The server has closed its log.
    LogClosed,
}

/// A supervised server. Dropped, it ends the server.
#[derive(Debug)]
pub(super) struct Supervisor {
    news: mpsc::Sender<News>,
    /// `Some` once the server has ended before it was to be kept alive; closed when the thread has ended.
    failure: watch::Receiver<Option<Failure>>,
}

impl Supervisor {
    /// Starts the server. Until [`keep_alive`](Self::keep_alive) an end of the server is a failure.
    pub(super) fn start(command: Vec<OsString>, folder: Arc<Folder>) -> Result<Self, ServerError> {
        let (news, inbox) = mpsc::channel();
        let (report, failure) = watch::channel(None);
        let mut duty = Duty { command, news: news.clone(), inbox, report, keep_alive: false };
        thread::Builder::new()
            .name("nats-server".into())
            .spawn(move || {
                duty.run();
                // The folder is free before anyone learns from the duty's end that the server has ended.
                drop(folder);
                drop(duty);
            })
            .map_err(|error| ServerError::Start(format!("no thread for it: {error}")))?;
        Ok(Self { news, failure })
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
            // Nobody listens once the thread has ended.
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

/// What the thread does.
struct Duty {
    command: Vec<OsString>,
    /// Given to whoever follows the server's log.
    news: mpsc::Sender<News>,
    inbox: mpsc::Receiver<News>,
    report: watch::Sender<Option<Failure>>,
    keep_alive: bool,
}

/// Why the thread no longer waits for a server.
enum End {
    /// It was told to.
    Stopped,
    /// The server ended by itself.
    Died(String),
}

impl Duty {
    /// Runs the server until it is to stop.
    fn run(&mut self) {
        let complaints = Arc::new(Complaints::default());
        let mut pause = PAUSE_MIN;
        loop {
            let started = Instant::now();
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
                pause = PAUSE_MIN;
            }
            tracing::error!(end = died, ?said, ?pause, "nats-server has ended and is started again");
            match self.inbox.recv_timeout(pause) {
                Err(RecvTimeoutError::Timeout) => pause = (pause * 2).min(PAUSE_MAX),
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
            .env(launch::PARENT, std::process::id().to_string())
            // A Ctrl-C at the terminal is for us: the server ends last, when everyone has drained.
            .process_group(0)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()?;
        let Some(lines) = child.stderr.take() else { return Ok(child) };
        let (complaints, news) = (complaints.clone(), self.news.clone());
        let follower = thread::Builder::new().name("nats-server-log".into()).spawn(move || {
            log::follow(lines, &complaints);
            let _ = news.send(News::LogClosed);
        });
        if let Err(error) = follower {
            let _ = child.kill();
            let _ = child.wait();
            return Err(error);
        }
        tracing::debug!(pid = child.id(), "nats-server is started");
        Ok(child)
    }

    /// Waits until the server ends, by itself or because it is to stop.
    fn wait(&mut self, mut child: Child) -> End {
        loop {
            match self.inbox.recv() {
                Ok(News::KeepAlive) => self.keep_alive = true,
                Ok(News::LogClosed) => return End::Died(describe(child.wait())),
                Ok(News::Stop) | Err(_) => break,
            }
        }
        // Not waited for yet, so the process id is the child's, whether it still runs or not.
        let _ = kill_process(Pid::from_child(&child), Signal::TERM);
        let deadline = Instant::now() + STOP_PATIENCE;
        loop {
            match self.inbox.recv_timeout(deadline.saturating_duration_since(Instant::now())) {
                Ok(News::Stop | News::KeepAlive) => {}
                Ok(News::LogClosed) => break,
                Err(_) => {
                    tracing::warn!("nats-server does not end in order and is killed");
                    let _ = child.kill();
                    break;
                }
            }
        }
        let end = describe(child.wait());
        tracing::debug!(end, "nats-server is stopped");
        End::Stopped
    }
}

fn describe(status: io::Result<ExitStatus>) -> String {
    status.map_or_else(|error| error.to_string(), |status| status.to_string())
}
