//! Logs and metrics of the process: logs to stderr, metrics in a recorder that `/metrics` renders.

use std::{
    io::{self, IsTerminal as _, Write},
    time::Duration,
};

use metrics_exporter_prometheus::{Matcher, PrometheusBuilder, PrometheusHandle};
use tracing::{Level, Metadata};
use tracing_subscriber::{EnvFilter, filter::filter_fn, fmt, layer::SubscriberExt as _, util::SubscriberInitExt as _};

use crate::command::terminal;

/// Interval at which the recorder empties its buffers into its histograms, also without scrapes.
pub const UPKEEP_INTERVAL: Duration = Duration::from_secs(5);
/// The crates whose traces are shown.
const OURS: [&str; 8] =
    ["weft", "weft_proto", "weft_nats", "weft_catalog", "weft_index", "weft_gateway", "weft_worker", "weft_admin"];
/// From a tenth of a millisecond to a minute: fsyncs at one end, slow receivers at the other.
const SECONDS_BUCKETS: [f64; 16] =
    [0.0001, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 15.0, 60.0];

/// Sends log lines to stderr, filtered by `WEFT_LOG`, else `RUST_LOG`, else `default`.
pub fn log_to_stderr(default: &str) {
    let wanted = ["WEFT_LOG", "RUST_LOG"].into_iter().find_map(|name| std::env::var(name).ok());
    let filter = EnvFilter::builder().parse_lossy(wanted.as_deref().unwrap_or(default));
    let lines = fmt::layer().with_writer(|| Lines(std::io::stderr())).with_ansi(std::io::stderr().is_terminal());
    let subscriber = tracing_subscriber::registry().with(filter).with(filter_fn(may_be_told)).with(lines);
    // Only a second call fails; the first subscriber stays.
    let _ = subscriber.try_init();
}

/// Writes log lines. They quote senders and receivers: characters that would reverse or hide a part of a line are escaped.
/// Control characters are escaped where values are formatted, so that the layer's own colors stay.
struct Lines<W>(W);

impl<W: Write> Write for Lines<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        match std::str::from_utf8(bytes) {
            Ok(text) => self.0.write_all(terminal::colored(text).as_bytes())?,
            // Nothing but text is logged.
            Err(_) => self.0.write_all(bytes)?,
        }
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        self.0.flush()
    }
}

/// Whether a message may be logged: all of our crates, others up to debug. At trace level other crates log their data: the NATS
/// client, for example, the entries of the catalog with their secrets.
fn may_be_told(metadata: &Metadata<'_>) -> bool {
    *metadata.level() <= Level::DEBUG || OURS.iter().any(|ours| is_of(metadata.target(), ours))
}

/// Whether a target is a crate or a module in it.
fn is_of(target: &str, name: &str) -> bool {
    target.strip_prefix(name).is_some_and(|rest| rest.is_empty() || rest.starts_with("::"))
}

/// Records what the roles count, from now on.
///
/// # Errors
///
/// When the process has a recorder already.
pub fn record_metrics() -> anyhow::Result<PrometheusHandle> {
    let builder = PrometheusBuilder::new();
    let builder = builder.set_buckets_for_metric(Matcher::Suffix("_seconds".into()), &SECONDS_BUCKETS)?;
    Ok(builder.install_recorder()?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_is_written_whole_without_what_reverses_it() {
        let mut written = Vec::new();
        let line = "\u{1b}[33mWARN\u{1b}[0m type=\u{202e}evil\u{9b}\n";
        assert_eq!(Lines(&mut written).write(line.as_bytes()).unwrap(), line.len());
        assert_eq!(String::from_utf8(written).unwrap(), "\u{1b}[33mWARN\u{1b}[0m type=\\u202eevil\\u009b\n");
    }

    #[test]
    fn a_target_is_of_its_crate() {
        assert!(is_of("weft_nats", "weft_nats") && is_of("weft_nats::connect", "weft_nats"));
        assert!(!is_of("weft_nats_other", "weft_nats") && !is_of("async_nats", "weft_nats"));
    }
}
