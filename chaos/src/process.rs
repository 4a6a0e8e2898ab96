//! A process of the mesh: it can be killed, stopped, asked to end, and started again where it was.

use std::{
    fs::File,
    os::unix::process::ExitStatusExt as _,
    path::PathBuf,
    process::{ExitStatus, Stdio},
    time::Duration,
};

use anyhow::{Context as _, bail};
use rustix::process::{Pid, Signal, kill_process};
use tokio::{
    process::{Child, Command},
    time::timeout,
};

/// Longest time for an orderly end: a role may drain for 30 seconds.
const STOP_PATIENCE: Duration = Duration::from_secs(40);

/// The program, its arguments and its surroundings.
#[derive(Debug, Clone)]
pub struct Spec {
    /// Name in reports.
    pub name: String,
    /// Program and arguments.
    pub command: Vec<String>,
    /// Environment variables in addition to the driver's own.
    pub env: Vec<(String, String)>,
    /// File to which both outputs are appended.
    pub log: PathBuf,
}

/// A process. It dies with the driver, since it is started by `weft launch`.
#[derive(Debug)]
pub struct Process {
    spec: Spec,
    child: Option<Child>,
}

impl Process {
    /// A process that is not started yet.
    pub fn new(spec: Spec) -> Self {
        Self { spec, child: None }
    }

    /// Starts it.
    pub fn start(&mut self) -> anyhow::Result<()> {
        let log = File::options().create(true).append(true).open(&self.spec.log);
        let log = log.with_context(|| self.spec.log.display().to_string())?;
        let (program, args) = self.spec.command.split_first().context("an empty command")?;
        let mut command = Command::new(program);
        // The configuration of the driver's user is not that of the mesh.
        for (name, _) in std::env::vars_os() {
            if name.to_string_lossy().starts_with("WEFT_") {
                command.env_remove(name);
            }
        }
        let child = command
            .args(args)
            .envs(self.spec.env.iter().cloned())
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log)
            .kill_on_drop(true)
            .spawn()
            .with_context(|| format!("{}: {program}", self.spec.name))?;
        self.child = Some(child);
        Ok(())
    }

    /// Ends it with SIGKILL and waits for the end.
    pub async fn kill(&mut self) -> anyhow::Result<()> {
        if let Some(mut child) = self.child.take() {
            child.kill().await?;
        }
        Ok(())
    }

    /// Sends a signal.
    pub fn signal(&self, signal: Signal) -> anyhow::Result<()> {
        let pid = self.child.as_ref().and_then(Child::id).and_then(|pid| Pid::from_raw(pid.cast_signed()));
        let pid = pid.with_context(|| format!("{} does not run", self.spec.name))?;
        Ok(kill_process(pid, signal)?)
    }

    /// Asks it to end with SIGTERM.
    ///
    /// # Errors
    ///
    /// When it does not end in time, or not with code 0.
    pub async fn terminate(&mut self) -> anyhow::Result<()> {
        self.signal(Signal::TERM)?;
        let Some(mut child) = self.child.take() else { return Ok(()) };
        match timeout(STOP_PATIENCE, child.wait()).await {
            Ok(status) if status.as_ref().is_ok_and(ExitStatus::success) => Ok(()),
            Ok(status) => bail!("SIGTERM ended it with {}", status?),
            Err(_) => {
                child.kill().await?;
                bail!("SIGTERM did not end it within {} s", STOP_PATIENCE.as_secs())
            }
        }
    }

    /// How it ended, where it has ended without being asked to.
    pub fn ended_by_itself(&mut self) -> Option<String> {
        let status = self.child.as_mut()?.try_wait().ok()??;
        self.child = None;
        let signal = status.signal().map(|signal| format!(" (signal {signal})")).unwrap_or_default();
        Some(format!("it ended unexpectedly: {status}{signal}"))
    }
}
