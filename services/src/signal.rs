//! Signals: the first asks for an orderly end, the second ends at once.

use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio_util::sync::CancellationToken;

/// Exit code of a process that SIGINT ended.
const INTERRUPTED: i32 = 130;
/// Exit code of a process that SIGTERM ended.
const TERMINATED: i32 = 143;

/// Cancels the token that it returns at the first SIGTERM or SIGINT. A second one ends the process with code 130; what
/// was accepted is on disk.
///
/// # Errors
///
/// The error of the system.
pub fn drain_token() -> std::io::Result<CancellationToken> {
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    let drain = CancellationToken::new();
    let token = drain.clone();
    // Lives as long as the process: it waits for a second signal while the roles drain.
    tokio::spawn(async move {
        let signal = next(&mut terminate, &mut interrupt).await;
        tracing::info!(signal, "draining; a second signal ends at once");
        token.cancel();
        next(&mut terminate, &mut interrupt).await;
        std::process::exit(INTERRUPTED);
    });
    Ok(drain)
}

/// The name of the next signal.
async fn next(terminate: &mut Signal, interrupt: &mut Signal) -> &'static str {
    tokio::select! {
        _ = terminate.recv() => "SIGTERM",
        _ = interrupt.recv() => "SIGINT",
    }
}

/// Ends the process at SIGTERM and SIGINT where the kernel does not: process 1 of a container ignores every signal that it
/// does not handle. Exit code as of a process that the signal ended.
///
/// # Errors
///
/// The error of the system.
pub fn end_as_first_process() -> std::io::Result<()> {
    if std::process::id() != 1 {
        return Ok(());
    }
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    // Lives as long as the process.
    tokio::spawn(async move {
        let code = if next(&mut terminate, &mut interrupt).await == "SIGTERM" { TERMINATED } else { INTERRUPTED };
        std::process::exit(code);
    });
    Ok(())
}
