//! One role as a process that can be killed and started again where it was.

use std::{ffi::OsString, fs, path::Path, process::ExitStatus, time::Duration};

use anyhow::Context as _;

use weft_nats::server::free_port;

use crate::process::{Endpoints, Process, Spec};

/// A role's process: its folder, its ports and its log stay the same through restarts.
#[derive(Debug)]
pub struct RoleProcess {
    spec: Spec,
    process: Process,
}

impl RoleProcess {
    /// Starts `weft <role>` with a data folder below `folder`, without waiting for it. `env` says where nats is, and
    /// what else differs from the default configuration. Ports are free ones, chosen now, unless `env` names them.
    ///
    /// # Errors
    ///
    /// When it cannot be started.
    pub fn start(program: &Path, role: &str, folder: &Path, env: Vec<(String, String)>) -> anyhow::Result<Self> {
        Self::start_as(program, &[role], role, folder, env)
    }

    /// As [`start`](Self::start), by another command that takes the same arguments as `weft <role>`.
    ///
    /// # Errors
    ///
    /// As there.
    pub fn start_as(
        program: &Path,
        command: &[&str],
        role: &str,
        folder: &Path,
        env: Vec<(String, String)>,
    ) -> anyhow::Result<Self> {
        fs::create_dir_all(folder).with_context(|| folder.display().to_string())?;
        // Nothing of the machine's: everything is said by variables.
        let config = folder.join("weft.toml");
        fs::write(&config, "").with_context(|| config.display().to_string())?;
        let mut variables = vec![
            (format!("WEFT_{}__LISTEN", role.to_ascii_uppercase()), free_address()?),
            ("WEFT_OPS__LISTEN".to_owned(), free_address()?),
        ];
        variables.retain(|(name, _)| name != "WEFT_WORKER__LISTEN");
        variables.extend(env);
        let data = folder.join("data");
        let mut args: Vec<OsString> = command.iter().map(Into::into).collect();
        args.extend(["--config".into(), config.into(), "--data".into(), data.into()]);
        let spec = Spec { program: program.to_owned(), args, env: variables, log: folder.join("weft.log") };
        let process = Process::start(&spec)?;
        Ok(Self { spec, process })
    }

    /// Waits until it is ready; where it is.
    ///
    /// # Errors
    ///
    /// When it does not become ready. Can be asked once after each start.
    pub async fn ready(&mut self) -> anyhow::Result<Endpoints> {
        self.process.ready().await
    }

    /// As [`ready`](Self::ready), with another time-out.
    ///
    /// # Errors
    ///
    /// As [`Process::ready_within`].
    pub async fn ready_within(&mut self, patience: Duration) -> anyhow::Result<Endpoints> {
        self.process.ready_within(patience).await
    }

    /// Its process id; `None` once it has ended.
    pub fn pid(&self) -> Option<u32> {
        self.process.pid()
    }

    /// The process.
    pub fn process(&mut self) -> &mut Process {
        &mut self.process
    }

    /// The value of a variable that it was started with, such as the address that it listens at.
    pub fn variable(&self, name: &str) -> Option<&str> {
        self.spec.env.iter().rev().find(|(variable, _)| variable == name).map(|(_, value)| value.as_str())
    }

    /// Ends it with SIGKILL.
    ///
    /// # Errors
    ///
    /// The error of the system.
    pub async fn kill(&mut self) -> anyhow::Result<()> {
        self.process.kill().await
    }

    /// Ends it with SIGKILL, unless it has ended, and starts it again where it was.
    ///
    /// # Errors
    ///
    /// When it cannot be started.
    pub async fn restart(&mut self) -> anyhow::Result<()> {
        if self.process.pid().is_some() {
            self.process.kill().await?;
        }
        self.process = Process::start(&self.spec)?;
        Ok(())
    }

    /// Asks it to drain, and waits for its end.
    ///
    /// # Errors
    ///
    /// When it does not end.
    pub async fn stop(&mut self) -> anyhow::Result<ExitStatus> {
        self.process.stop().await
    }
}

fn free_address() -> anyhow::Result<String> {
    Ok(format!("127.0.0.1:{}", free_port()?))
}
