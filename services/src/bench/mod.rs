//! `weft bench`: what a mesh of real processes on this machine does, in figures.
//!
//! `hundred` judges (its exit code says whether the promises held); `append` and `deliver` only measure. Whatever is
//! measured runs against a real nats-server that syncs every write, in a fresh folder on a real disk.

pub mod append;
pub mod cpu;
pub mod disk;
pub mod latency;
pub mod mesh;

use crate::exit::Failure;

/// What is measured.
#[derive(Debug, clap::Subcommand)]
pub enum BenchCommand {
    /// Compare-and-append against plain fsynced publishes
    Append(append::AppendArgs),
}

/// Carries out one of them.
///
/// # Errors
///
/// [`Failure`]; of `hundred` also when a promise did not hold.
pub async fn run(command: BenchCommand) -> Result<(), Failure> {
    match command {
        BenchCommand::Append(args) => append::run(args).await,
    }
}
