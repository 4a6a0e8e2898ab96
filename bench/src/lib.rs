//! `weft bench`: figures of a mesh of real processes on this machine.
//!
//! `hundred` judges (its exit code is 0 only if the promises held); the others only measure. All benchmarks run
//! against a real nats-server that syncs every write, in a fresh folder on a real disk.

pub mod accept;
pub mod append;
pub mod args;
pub mod bare_receiver;
pub mod baseline_client;
pub mod baseline_server;
pub mod cpu;
pub mod deliver;
pub mod disk;
pub mod gateways;
pub mod group;
pub mod history;
pub mod http1;
pub mod latency;
pub mod load;
pub mod memory;
pub mod preload;
pub mod process_mesh;
pub mod promises;
pub mod tmpdir;
pub mod worker;
mod written;

use weft_services::failure::Failure;

/// The measurements.
#[derive(Debug, clap::Subcommand)]
pub enum BenchCommand {
    /// 100 senders x 100 events, 20 % sent twice, 20 % failing at first: the promises, counted
    #[command(name = "hundred")]
    Promises(promises::PromisesArgs),
    /// Compare-and-append against plain fsynced publishes
    Append(append::AppendArgs),
    /// Signed HTTP to 202: an open loop at a rate, or against its bounds
    Accept(accept::AcceptArgs),
    /// Verify and answer, without a log or with nothing but appending: what a gateway is measured against
    #[command(name = "answer", hide = true)]
    BaselineServer(baseline_server::BaselineServerArgs),
    /// Delivering: what an event costs the worker, how soon it arrives, what the idle hold
    Worker(worker::WorkerArgs),
    /// A worker whose destination does nothing
    #[command(hide = true)]
    Discard(worker::discard::DiscardArgs),
    /// Signed posts by the bare client: what deliveries are measured against
    #[command(name = "post", hide = true)]
    BaselineClient(baseline_client::BaselineClientArgs),
    /// Several gateways on one shard against one alone
    Gateways(gateways::GatewaysArgs),
    /// The admin's history: how fast it reads, each look-up, a restart
    History(history::HistoryArgs),
    /// Signed HTTP to 202 and to delivered, with CPU seconds of each process
    Deliver(deliver::DeliverArgs),
}

/// Carries out one of them.
///
/// # Errors
///
/// [`Failure`]; of `hundred` also when a promise did not hold.
pub async fn run(command: BenchCommand) -> Result<(), Failure> {
    match command {
        BenchCommand::Promises(args) => promises::run(args).await,
        BenchCommand::Append(args) => append::run(args).await,
        BenchCommand::Accept(args) => accept::run(args).await,
        BenchCommand::BaselineServer(args) => baseline_server::run(args).await,
        BenchCommand::Worker(args) => worker::run(args).await,
        BenchCommand::Discard(args) => worker::discard::run(args).await,
        BenchCommand::BaselineClient(args) => baseline_client::run(args).await,
        BenchCommand::Gateways(args) => gateways::run(args).await,
        BenchCommand::History(args) => history::run(args).await,
        BenchCommand::Deliver(args) => deliver::run(args).await,
    }
}
