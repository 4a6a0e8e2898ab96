//! The `weft` binary: what you run.

use std::process::ExitCode;

use weft_services::{command::output, failure::Failure};

use self::cli::Command;

mod cli;
mod generate;
mod help;

/// A message of the log is some dozens of small allocations, for its headers: with the system's allocator they were a
/// quarter of a gateway's time. A background thread returns the memory of a burst, also while the process rests.
#[global_allocator]
static ALLOCATOR: tikv_jemallocator::Jemalloc = tikv_jemallocator::Jemalloc;

/// Umask of processes that keep data: their files hold events and secrets, and are for their owner alone.
const OWNER_ONLY: rustix::fs::Mode = rustix::fs::Mode::RWXG.union(rustix::fs::Mode::RWXO);

fn main() -> ExitCode {
    let command = cli::parse().command;
    match run(command) {
        Ok(()) | Err(Failure::Closed) => ExitCode::SUCCESS,
        Err(failure @ Failure::Check(_)) => failure.code(),
        Err(failure) => {
            // It may quote a sender or a receiver.
            output::notice(&failure.to_string());
            failure.code()
        }
    }
}

fn run(command: Command) -> Result<(), Failure> {
    // It becomes another program: nothing of ours, threads least of all, may be there yet. The allocator's end with it.
    if let Command::Launch(args) = command {
        return Err(Failure::of(&weft_nats::server::launch(args.command)));
    }
    // Before there are threads, which share it.
    if command.keeps_data() {
        rustix::process::umask(OWNER_ONLY);
    }
    // One implementation of TLS for every client of the process. A second call would only find the first one's.
    let _ = rustls::crypto::ring::default_provider().install_default();
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build();
    let runtime = runtime.map_err(|error| Failure::Failed(format!("no threads: {error}")))?;
    let result = runtime.block_on(cli::run(command));
    // What may still run (a blocked read of stdin, a connection to a dead server) has nothing to lose.
    runtime.shutdown_background();
    result
}
