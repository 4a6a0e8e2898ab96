//! The command line.

use std::path::PathBuf;

use anyhow::{Context as _, ensure};

use crate::{network::Mode, record::FaultKind};

/// Runs a mesh of real processes through seeded faults, and judges what the outside has seen.
#[derive(Debug, Clone, clap::Parser)]
#[command(name = "weft-chaos")]
pub struct Args {
    /// Number of nats-servers; three make a cluster with three replicas
    #[arg(long, default_value_t = 1, value_parser = nodes)]
    pub nodes: usize,
    /// Seconds of traffic with faults
    #[arg(long, default_value_t = 240)]
    pub seconds: u64,
    /// Seed of the schedule of faults [default: a random one]
    #[arg(long)]
    pub seed: Option<u64>,
    /// Kinds of fault
    #[arg(long, value_delimiter = ',', default_value = "kill,stop,restart,cut,delay,clock,catalog")]
    pub faults: Vec<FaultKind>,
    /// Deliveries a second
    #[arg(long, default_value_t = 120)]
    pub rate: u64,
    /// Shards of the log
    #[arg(long, default_value_t = 1)]
    pub shards: u32,
    /// How the processes are joined
    #[arg(long, value_enum, default_value_t = Mode::Auto)]
    pub network: Mode,
    /// The weft binary
    #[arg(long, default_value = "target/debug/weft")]
    pub bin: PathBuf,
    /// The nats-server binary [default: what WEFT_NATS_SERVER or nats/server.sh names]
    #[arg(long, env = "WEFT_NATS_SERVER")]
    pub nats_server: Option<PathBuf>,
    /// Folder for the data and the logs of all processes [default: a temporary one, removed unless something was wrong]
    #[arg(long)]
    pub folder: Option<PathBuf>,
    /// Keep the folder in any case
    #[arg(long)]
    pub keep: bool,
    /// Only print the schedule
    #[arg(long)]
    pub plan: bool,
}

impl Args {
    /// The nats-server binary.
    pub async fn nats_server(&self) -> anyhow::Result<PathBuf> {
        if let Some(path) = &self.nats_server {
            return Ok(path.clone());
        }
        let output = tokio::process::Command::new("nats/server.sh").output().await;
        let output = output.context("nats/server.sh; run it from the repository, or name --nats-server")?;
        ensure!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        Ok(String::from_utf8(output.stdout)?.trim().into())
    }
}

fn nodes(text: &str) -> Result<usize, String> {
    match text {
        "1" => Ok(1),
        "3" => Ok(3),
        _ => Err("1 or 3".to_owned()),
    }
}
