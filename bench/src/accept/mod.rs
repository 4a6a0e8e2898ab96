//! `weft bench accept`: signed HTTP to 202, against a gateway and a nats-server in separate processes.
//!
//! - without a subcommand: an open loop at a fixed rate, from many connections of which half are slow or idle;
//! - `bound`: a closed loop, against the appender alone, the same server without a log, and that server only appending;
//! - `workflows`: one hot workflow, a thousand, a million;
//! - `memory`: what the gateway holds after millions of workflows and ids.

use std::{
    path::{Path, PathBuf},
    time::Duration,
};

use anyhow::{Context as _, anyhow};
use serde::Serialize;
use tokio_util::sync::CancellationToken;
use weft_nats::options::LogOptions;

use super::{
    cpu,
    load::{self, Outcome, Traffic},
};
use weft_services::{
    failure::Failure,
    mesh::{Nats, RoleProcess, SOURCE, Wiring, weft_program},
    process::READY_PATIENCE,
    sender::Sender,
};

mod bound;
mod memory;
mod open;
mod workflows;

/// `weft bench accept`.
#[derive(Debug, clap::Args)]
#[command(args_conflicts_with_subcommands = true)]
pub struct AcceptArgs {
    #[command(subcommand)]
    what: Option<What>,
    #[command(flatten)]
    open: open::OpenArgs,
}

/// The measurements.
#[derive(Debug, clap::Subcommand)]
enum What {
    /// A closed loop against its bounds: the appender alone, and the same server without a log, and only appending
    Bound(bound::BoundArgs),
    /// One hot workflow, a thousand, a million
    Workflows(workflows::WorkflowsArgs),
    /// Memory of the gateway after millions of workflows and ids
    Memory(memory::MemoryArgs),
}

/// Measures and prints.
///
/// # Errors
///
/// [`Failure`]: something does not start, or an event was not accepted.
pub async fn run(args: AcceptArgs) -> Result<(), Failure> {
    match args.what {
        None => open::run(args.open).await,
        Some(What::Bound(args)) => bound::run(args).await,
        Some(What::Workflows(args)) => workflows::run(args).await,
        Some(What::Memory(args)) => memory::run(args).await,
    }
}

/// The log that the gateway appends to.
#[derive(Debug, clap::Args)]
struct LogArgs {
    /// Shards of the log
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=256))]
    shards: u32,
}

impl LogArgs {
    fn options(&self) -> LogOptions {
        LogOptions { shards: self.shards, ..LogOptions::default() }
    }
}

/// A nats-server and a gateway as separate processes; the generator is this one.
struct Bench {
    nats: Nats,
    gateway: RoleProcess,
    wiring: Wiring,
    url: String,
    folder: PathBuf,
    stop: CancellationToken,
    program: PathBuf,
}

/// CPU seconds so far.
#[derive(Debug, Clone, Copy)]
struct Cpu {
    nats: f64,
    server: f64,
    generator: f64,
}

/// CPU microseconds of one event.
#[derive(Debug, Clone, Copy, Serialize)]
#[serde(rename_all = "camelCase")]
struct CpuPerEvent {
    nats_us: f64,
    server_us: f64,
    generator_us: f64,
}

impl Bench {
    async fn start(log: LogOptions, folder: &Path) -> anyhow::Result<Self> {
        Self::start_within(READY_PATIENCE, log, folder).await
    }

    /// On a log that takes the gateway so long to read.
    async fn start_within(patience: Duration, log: LogOptions, folder: &Path) -> anyhow::Result<Self> {
        let program = weft_program()?;
        let stop = CancellationToken::new();
        let nats = Nats::start_for(log, &program, folder, stop.clone()).await?;
        let wiring = Wiring::new();
        nats.configure(&wiring.config(None)).await?;
        let mut gateway =
            RoleProcess::start(&program, "gateway", &folder.join("gateway"), nats.environment("gateway")?)?;
        let url = gateway.ready_within(patience).await?.get("gateway")?.to_owned();
        let folder = folder.to_owned();
        let bench = Self { nats, gateway, wiring, url, folder, stop, program };
        // One event goes the whole way first: streams, files and caches are there.
        let warm_up = Sender::new(&bench.url).map_err(anyhow::Error::msg)?;
        let body = br#"{"type":"bench.accept"}"#.as_slice().into();
        let answer = warm_up.send(SOURCE, Some("warm-up"), &bench.wiring.signing(), "warm-up", None, body).await;
        let answer = answer.map_err(anyhow::Error::msg)?;
        answer.receipt().with_context(|| format!("the gateway answers {}", answer.status))?;
        Ok(bench)
    }

    /// Traffic to the gateway. `prefix` is new for each phase.
    fn traffic(&self, prefix: &str, workflows: u64, payload: usize) -> anyhow::Result<Traffic> {
        Traffic::new(&self.url, &self.wiring.sender_secret, prefix, workflows, payload)
    }

    fn gateway_pid(&self) -> anyhow::Result<u32> {
        self.gateway.pid().ok_or_else(|| anyhow!("the gateway has ended"))
    }

    /// CPU so far, with the gateway as the server.
    fn cpu(&self) -> anyhow::Result<Cpu> {
        cpu_of(&self.nats, self.gateway_pid()?)
    }

    /// A closed loop against the gateway; what it cost.
    async fn closed(
        &self,
        traffic: Traffic,
        connections: usize,
        time: Duration,
    ) -> anyhow::Result<(Outcome, CpuPerEvent)> {
        let before = self.cpu()?;
        let outcome = load::closed(traffic, connections, time, 202).await?;
        let cpu = self.cpu()?.since(before, outcome.latencies.count());
        Ok((outcome, cpu))
    }

    async fn end(mut self) -> anyhow::Result<()> {
        self.gateway.stop().await?;
        self.stop.cancel();
        self.nats.stopped().await;
        Ok(())
    }
}

fn cpu_of(nats: &Nats, server: u32) -> anyhow::Result<Cpu> {
    Ok(Cpu {
        nats: cpu::seconds(nats.pid()?)?,
        server: cpu::seconds(server)?,
        generator: cpu::seconds(std::process::id())?,
    })
}

impl Cpu {
    fn since(self, before: Self, events: u64) -> CpuPerEvent {
        let us = |seconds: f64| seconds * 1e6 / (events.max(1) as f64);
        CpuPerEvent {
            nats_us: us(self.nats - before.nats),
            server_us: us(self.server - before.server),
            generator_us: us(self.generator - before.generator),
        }
    }
}
