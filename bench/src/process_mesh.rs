//! A whole mesh: nats-server, gateway, worker and admin, each a separate process.

use std::path::Path;

use anyhow::anyhow;
use tokio_util::sync::CancellationToken;

use super::cpu;
use weft_services::mesh::{Nats, RoleProcess, weft_program};

/// A running mesh.
#[derive(Debug)]
pub struct ProcessMesh {
    /// The server, and the catalog in it.
    pub nats: Nats,
    /// Where the gateway is.
    pub url: String,
    roles: Vec<(&'static str, RoleProcess)>,
    stop: CancellationToken,
}

impl ProcessMesh {
    /// Starts it below `folder` with the sources and subscriptions of a configuration, and waits until it is ready.
    ///
    /// # Errors
    ///
    /// When it does not become ready.
    pub async fn start(folder: &Path, config: &str) -> anyhow::Result<Self> {
        let program = weft_program()?;
        let stop = CancellationToken::new();
        let nats = Nats::start(&program, folder, stop.clone()).await?;
        nats.configure(config).await?;
        let mut roles = Vec::new();
        for role in ["gateway", "worker", "admin"] {
            let mut env = nats.environment(role)?;
            env.push(("WEFT_WORKER__ALLOW_NETWORKS".into(), "127.0.0.0/8".into()));
            roles.push((role, RoleProcess::start(&program, role, &folder.join(role), env)?));
        }
        let mut url = String::new();
        for (role, process) in &mut roles {
            let endpoints = process.ready().await?;
            if *role == "gateway" {
                url = endpoints.get(role)?.to_owned();
            }
        }
        Ok(Self { nats, url, roles, stop })
    }

    /// The processes' ids, by name.
    ///
    /// # Errors
    ///
    /// When one has ended.
    pub fn pids(&self) -> anyhow::Result<Vec<(&'static str, u32)>> {
        let mut pids = vec![("nats-server", self.nats.pid()?)];
        for (role, process) in &self.roles {
            pids.push((role, process.pid().ok_or_else(|| anyhow!("{role} has ended"))?));
        }
        Ok(pids)
    }

    /// CPU seconds of the processes so far, by name.
    ///
    /// # Errors
    ///
    /// When one has ended.
    pub fn cpu(&self) -> anyhow::Result<Vec<(&'static str, f64)>> {
        self.pids()?.into_iter().map(|(name, pid)| Ok((name, cpu::seconds(pid)?))).collect()
    }

    /// Drains it.
    ///
    /// # Errors
    ///
    /// When a process does not end.
    pub async fn end(mut self) -> anyhow::Result<()> {
        for (_, process) in &mut self.roles {
            process.stop().await?;
        }
        self.stop.cancel();
        self.nats.stopped().await;
        Ok(())
    }
}
