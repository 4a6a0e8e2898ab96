//! Signals: the first asks for an orderly end, the second ends at once.

use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio_util::sync::CancellationToken;

/// What a shell shows for a process that an interrupt ended.
const INTERRUPTED: i32 = 130;

/// Cancels the token that it returns at the first SIGTERM or SIGINT. A second one ends the process with code 130; what
/// was accepted is on disk.
///
/// # Errors
///
/// What the system says when it takes no handlers.
pub fn drain_token() -> std::io::Result<CancellationToken> {
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    let drain = CancellationToken::new();
    let token = drain.clone();
    // Lives as long as the process: it waits for a second signal while the roles drain.
    tokio::spawn(async move {
        next(&mut terminate, &mut interrupt).await;
        tracing::info!("draining; a second signal ends at once");
        token.cancel();
        next(&mut terminate, &mut interrupt).await;
        std::process::exit(INTERRUPTED);
    });
    Ok(drain)
}

async fn next(terminate: &mut Signal, interrupt: &mut Signal) {
    tokio::select! {
        _ = terminate.recv() => {}
        _ = interrupt.recv() => {}
    }
}
