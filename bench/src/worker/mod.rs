//! `weft bench worker`: what delivering costs, and how soon an event arrives.
//!
//! - `lanes`: reader, lanes, commits and ledger with a destination that does nothing;
//! - `http`: signed deliveries, against the bare client;
//! - `grpc`: deliveries over gRPC, against those over HTTP;
//! - `postgres`: deliveries into PostgreSQL, against the bare client;
//! - `first-byte`: from the gateway to the first byte at the receiver, in an open loop;
//! - `isolation`: cost of a workflow whose receiver always fails for the others;
//! - `slow-receiver`: throughput of a subscription while the receiver of another one is slow;
//! - `memory`: memory of idle workflows and waiting lanes;
//! - `takeover`: time and memory of a take-over by a shard's new owner;
//! - `subscriptions`: memory and start with thousands of subscriptions, and creating and listing them;
//! - `matching`: finding the subscriptions that take an event.

use std::{
    path::{Path, PathBuf},
    time::Duration,
};

use anyhow::Context as _;
use serde::Serialize;
use tokio_util::sync::CancellationToken;

use weft_services::{
    failure::Failure,
    mesh::{Nats, RoleProcess, weft_program},
};

mod checkpoint;
mod delivered;
pub mod discard;
mod first_byte;
mod grpc;
mod http;
mod isolation;
mod lanes;
mod matching;
mod memory;
mod open;
mod outcomes;
mod postgres;
mod slow_receiver;
mod subscriptions;
mod takeover;

/// How long nothing may come before a benchmark gives up.
const PATIENCE: Duration = Duration::from_secs(60);

/// `weft bench worker`.
#[derive(Debug, clap::Args)]
pub struct WorkerArgs {
    #[command(subcommand)]
    what: What,
}

/// The measurements.
#[derive(Debug, clap::Subcommand)]
enum What {
    /// Reader, lanes, commits and ledger with a destination that does nothing
    Lanes(lanes::LanesArgs),
    /// Signed deliveries against the bare client
    Http(http::HttpArgs),
    /// Deliveries over gRPC against deliveries over HTTP
    Grpc(grpc::GrpcArgs),
    /// Deliveries into PostgreSQL against a bare client
    Postgres(postgres::PostgresArgs),
    /// From the gateway to the first byte at the receiver, in an open loop
    FirstByte(first_byte::FirstByteArgs),
    /// Cost of a workflow whose receiver always fails for the others
    Isolation(isolation::IsolationArgs),
    /// Throughput of a subscription while the receiver of another one is slow
    SlowReceiver(slow_receiver::SlowReceiverArgs),
    /// Memory of idle workflows and waiting lanes
    Memory(memory::MemoryArgs),
    /// Time of a take-over by a shard's new owner
    Takeover(takeover::TakeoverArgs),
    /// Memory and start with thousands of subscriptions, creating and listing them
    Subscriptions(subscriptions::SubscriptionsArgs),
    /// Finding the subscriptions that take an event
    Matching(matching::MatchingArgs),
}

/// Measures and prints.
///
/// # Errors
///
/// [`Failure`]: something does not start, or an event did not arrive.
pub async fn run(args: WorkerArgs) -> Result<(), Failure> {
    match args.what {
        What::Lanes(args) => lanes::run(args).await,
        What::Http(args) => http::run(args).await,
        What::Grpc(args) => grpc::run(args).await,
        What::Postgres(args) => postgres::run(args).await,
        What::FirstByte(args) => first_byte::run(args).await,
        What::Isolation(args) => isolation::run(args).await,
        What::SlowReceiver(args) => slow_receiver::run(args).await,
        What::Memory(args) => memory::run(args).await,
        What::Takeover(args) => takeover::run(args).await,
        What::Subscriptions(args) => subscriptions::run(args).await,
        What::Matching(args) => matching::run(args),
    }
}

/// An aim and the result.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
struct Aim {
    what: &'static str,
    limit: f64,
    found: f64,
    met: bool,
}

impl Aim {
    fn at_least(what: &'static str, limit: f64, found: f64) -> Self {
        Self { what, limit, found, met: found >= limit }
    }

    fn at_most(what: &'static str, limit: f64, found: f64) -> Self {
        Self { what, limit, found, met: found <= limit }
    }

    fn line(&self) -> String {
        let Self { what, limit, found, met } = self;
        format!("{what}: {found:.2}, aim {limit}: {}", if *met { "met" } else { "NOT MET" })
    }
}

/// The lines of several aims.
fn lines(aims: &[Aim]) -> String {
    aims.iter().map(Aim::line).collect::<Vec<_>>().join("\n")
}

/// A log on a separate nats-server, and workers on it in separate processes.
struct Bench {
    nats: Nats,
    folder: PathBuf,
    program: PathBuf,
    stop: CancellationToken,
}

impl Bench {
    async fn start(folder: &Path) -> anyhow::Result<Self> {
        let program = weft_program()?;
        let stop = CancellationToken::new();
        let nats = Nats::start(&program, folder, stop.clone()).await?;
        Ok(Self { nats, folder: folder.to_owned(), program, stop })
    }

    /// Makes the one subscription, which takes everything from the beginning on.
    async fn subscribe(&self, destination: &str, concurrency: usize) -> anyhow::Result<()> {
        self.subscribe_in_batches(destination, concurrency, 1).await
    }

    async fn subscribe_in_batches(&self, destination: &str, concurrency: usize, batch: u64) -> anyhow::Result<()> {
        self.nats.configure(&subscription("bench", destination, concurrency, batch)).await
    }

    /// Starts a worker by a command, with a folder of that name.
    fn worker(&self, command: &[&str], folder: &str) -> anyhow::Result<RoleProcess> {
        let mut env = self.nats.environment("worker")?;
        env.push(("WEFT_WORKER__ALLOW_NETWORKS".into(), "127.0.0.0/8".into()));
        RoleProcess::start_as(&self.program, command, "worker", &self.folder.join(folder), env)
    }

    async fn end(self) {
        self.stop.cancel();
        self.nats.stopped().await;
    }
}

/// A subscription of a configuration that takes everything from the beginning on.
fn subscription(name: &str, destination: &str, concurrency: usize, batch: u64) -> String {
    format!(
        "[[subscription]]\nname = \"{name}\"\nstart = \"beginning\"\nconcurrency = {concurrency}\n\
         batch = {{ max_events = {batch} }}\ndestination = {destination}\n"
    )
}

fn pid_of(process: &RoleProcess) -> anyhow::Result<u32> {
    process.pid().context("the worker has ended")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_aim_says_whether_it_is_met() {
        assert!(Aim::at_least("x", 2.0, 2.0).met && !Aim::at_least("x", 2.0, 1.9).met);
        assert!(Aim::at_most("x", 2.0, 2.0).met && !Aim::at_most("x", 2.0, 2.1).met);
        assert_eq!(Aim::at_most("x", 2.0, 2.1).line(), "x: 2.10, aim 2: NOT MET");
    }
}
