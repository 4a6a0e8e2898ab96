//! Logs and metrics of the process: logs to stderr, metrics in a recorder that `/metrics` renders.

use std::{io::IsTerminal as _, time::Duration};

use metrics_exporter_prometheus::{Matcher, PrometheusBuilder, PrometheusHandle};
use tracing::{Level, Metadata};
use tracing_subscriber::{EnvFilter, filter::filter_fn, fmt, layer::SubscriberExt as _, util::SubscriberInitExt as _};

/// How often the recorder empties its buffers into its histograms, whether or not anybody asks for them.
pub const UPKEEP_INTERVAL: Duration = Duration::from_secs(5);
/// The crates whose traces are shown.
const OURS: [&str; 7] = ["weft", "weft_proto", "weft_nats", "weft_index", "weft_gateway", "weft_worker", "weft_admin"];
/// From a tenth of a millisecond to a minute: fsyncs at one end, slow receivers at the other.
const SECONDS_BUCKETS: [f64; 16] =
    [0.0001, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 15.0, 60.0];

/// Sends log lines to stderr, filtered by `WEFT_LOG`, else `RUST_LOG`, else `default`.
pub fn log_to_stderr(default: &str) {
    let wanted = ["WEFT_LOG", "RUST_LOG"].into_iter().find_map(|name| std::env::var(name).ok());
    let filter = EnvFilter::builder().parse_lossy(wanted.as_deref().unwrap_or(default));
    let lines = fmt::layer().with_writer(std::io::stderr).with_ansi(std::io::stderr().is_terminal());
    let subscriber = tracing_subscriber::registry().with(filter).with(filter_fn(may_be_told)).with(lines);
    // Only a second call fails; the first subscriber stays.
    let _ = subscriber.try_init();
}

/// Our own words are chosen with care. At its finest level the code of others tells whatever passes through it: the NATS
/// client, for one, the entries of the catalog, with the secrets in them.
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
    fn a_target_is_of_its_crate() {
        assert!(is_of("weft_nats", "weft_nats") && is_of("weft_nats::connect", "weft_nats"));
        assert!(!is_of("weft_nats_other", "weft_nats") && !is_of("async_nats", "weft_nats"));
    }
}
