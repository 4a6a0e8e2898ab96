//! Output of a starting process on stdout: a line for each endpoint, then `ready`.

use std::{io::Write as _, time::Duration};

use tokio::time::{Instant, interval_at};

use crate::health_http::Readiness;

/// How often a start that takes long is spoken of.
const REPORT_INTERVAL: Duration = Duration::from_secs(5);

/// One endpoint or file: what it is and where.
pub type Line = (&'static str, String);

/// Prints the lines once everything is ready; says what is missing for as long as it is not. Never returns.
pub async fn when_ready(readiness: &Readiness, lines: &[Line]) {
    let mut report = interval_at(Instant::now() + REPORT_INTERVAL, REPORT_INTERVAL);
    loop {
        tokio::select! {
            () = readiness.ready() => break,
            _ = report.tick() => tracing::info!(missing = readiness.missing().join(", "), "not ready yet"),
        }
    }
    ready(lines);
    std::future::pending::<()>().await;
}

/// Prints the endpoints and `ready`. A closed stdout is ignored.
fn ready(lines: &[Line]) {
    let mut stdout = std::io::stdout().lock();
    for (name, place) in lines {
        let _ = writeln!(stdout, "{name} {place}");
    }
    let _ = writeln!(stdout, "ready");
    let _ = stdout.flush();
}
