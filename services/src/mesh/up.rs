//! One `weft up` in a separate folder, on free ports.

use std::{
    fs,
    path::{Path, PathBuf},
    process::ExitStatus,
};

use anyhow::Context as _;

use crate::{
    command::admin::{AdminArgs, AdminClient},
    process::{Endpoints, Process, Spec},
    sender::Sender,
};

/// A running mesh.
#[derive(Debug)]
pub struct Up {
    /// The process.
    pub process: Process,
    /// Where everything is.
    pub endpoints: Endpoints,
    data: PathBuf,
}

impl Up {
    /// How a mesh below `folder` is started: by a configuration without addresses, on free ports.
    ///
    /// # Errors
    ///
    /// When the configuration cannot be written.
    pub fn spec(program: &Path, folder: &Path, config: &str) -> anyhow::Result<Spec> {
        let file = folder.join("weft.toml");
        let listen = "listen = \"127.0.0.1:0\"";
        let data = folder.join("data");
        let text = format!(
            "data = {:?}\n[gateway]\n{listen}\n[admin]\n{listen}\n[ops]\n{listen}\n{config}",
            data.display().to_string()
        );
        fs::write(&file, text).with_context(|| file.display().to_string())?;
        Ok(Spec {
            program: program.to_owned(),
            args: vec!["up".into(), "--config".into(), file.into()],
            env: Vec::new(),
            log: folder.join("weft.log"),
        })
    }

    /// Starts a mesh below `folder` and waits until it is ready.
    ///
    /// # Errors
    ///
    /// When it does not become ready.
    pub async fn start(program: &Path, folder: &Path, config: &str) -> anyhow::Result<Self> {
        let mut process = Process::start(&Self::spec(program, folder, config)?)?;
        let endpoints = process.ready().await?;
        Ok(Self { process, endpoints, data: folder.join("data") })
    }

    /// A sender to its gateway.
    ///
    /// # Errors
    ///
    /// When there can be none.
    pub fn sender(&self) -> anyhow::Result<Sender> {
        Sender::new(self.endpoints.get("gateway")?).map_err(anyhow::Error::msg)
    }

    /// A client of its admin, with the token that it made.
    ///
    /// # Errors
    ///
    /// When the admin does not answer.
    pub async fn admin(&self) -> anyhow::Result<AdminClient> {
        let args = AdminArgs { data: self.data.clone(), ..AdminArgs::default() };
        args.connect().await.map_err(|failure| anyhow::anyhow!("{failure}"))
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
