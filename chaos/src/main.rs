//! `weft-chaos`: a mesh of real processes, seeded faults, and a judge that sees only what is visible from the outside.
//!
//! Starts one nats-server or three, two gateways, two workers and an admin; sends deliveries as real senders do, receives
//! them as real receivers do, and injects faults by a schedule that the seed decides. Then it heals everything, waits until
//! every event has an outcome, and judges every promise: answers of the gateways, the streams, the receivers'
//! records and the admin must agree.

mod admin;
mod catalog;
mod clock;
mod collect;
mod disk;
mod events_copy;
mod faults;
mod judge;
mod mesh;
mod network;
mod plan;
mod process;
mod receiver;
mod record;
mod report;
mod restore;
mod run;
mod senders;
mod settings;
mod snapshot;
mod wall_clock;

use std::process::ExitCode;

use clap::Parser as _;

#[tokio::main]
async fn main() -> ExitCode {
    // Fails only where there is one already.
    let _ = rustls::crypto::ring::default_provider().install_default();
    match run::run(settings::Args::parse()).await {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("weft-chaos: {error:#}");
            ExitCode::FAILURE
        }
    }
}
