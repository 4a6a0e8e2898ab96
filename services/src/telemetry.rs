//! Logs and metrics of the process: logs to stderr, metrics in a recorder that `/metrics` renders.

use std::{
    io::{self, IsTerminal as _, Write},
    time::Duration,
};

use metrics_exporter_prometheus::{Matcher, PrometheusBuilder, PrometheusHandle};
use serde::Deserialize;
use tracing::{Level, Metadata};
use tracing_subscriber::{
    EnvFilter, Layer as _, filter::filter_fn, fmt, layer::SubscriberExt as _, util::SubscriberInitExt as _,
};
use weft_gateway::ACCESS_LOG;

use crate::{command::terminal, failure::Failure};

/// Interval at which the recorder empties its buffers into its histograms, also without scrapes.
pub const UPKEEP_INTERVAL: Duration = Duration::from_secs(5);
/// The crates whose traces are shown.
const OURS: [&str; 8] =
    ["weft", "weft_proto", "weft_nats", "weft_catalog", "weft_index", "weft_gateway", "weft_worker", "weft_admin"];
/// From a tenth of a millisecond to a minute: fsyncs at one end, slow receivers at the other.
const SECONDS_BUCKETS: [f64; 16] =
    [0.0001, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 15.0, 60.0];

/// The variables that choose what is logged; the first that is set counts.
const FILTER_VARIABLES: [&str; 2] = ["WEFT_LOG", "RUST_LOG"];

/// `[log_output]`: how the process logs.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct LogOutputOptions {
    /// The form of a line.
    pub format: LogFormat,
    /// Whether a gateway logs a line for each HTTP request that it has answered.
    pub access: bool,
}

/// The form of a log line.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum LogFormat {
    /// For people.
    #[default]
    Text,
    /// A JSON object: `timestamp`, `level`, `target`, `message`, and the fields of the event.
    Json,
}

/// Sends log lines to stderr, filtered by `WEFT_LOG`, else `RUST_LOG`, else `default`.
///
/// # Errors
///
/// One line: the filter makes no sense.
pub fn log_to_stderr(default: &str, options: LogOutputOptions) -> Result<(), Failure> {
    let set = FILTER_VARIABLES.into_iter().find_map(|name| Some((name, std::env::var_os(name)?)));
    let filter = match set {
        None => filter("the default", default, options)?,
        Some((name, text)) => {
            let text = text.into_string().map_err(|_| Failure::Failed(format!("{name} is not UTF-8")))?;
            filter(name, &text, options)?
        }
    };
    let lines = fmt::layer().with_writer(|| Lines(std::io::stderr()));
    let lines = match options.format {
        LogFormat::Text => lines.with_ansi(std::io::stderr().is_terminal()).boxed(),
        LogFormat::Json => lines.json().flatten_event(true).with_current_span(false).with_span_list(false).boxed(),
    };
    let subscriber = tracing_subscriber::registry().with(filter).with(filter_fn(may_be_told)).with(lines);
    // Only a second call fails; the first subscriber stays.
    let _ = subscriber.try_init();
    Ok(())
}

/// The filter of a text that stands in `name`, such as `info,weft_worker=debug`.
fn filter(name: &str, text: &str, options: LogOutputOptions) -> Result<EnvFilter, Failure> {
    let wrong = |problem: &dyn std::fmt::Display| {
        let problem = problem.to_string().lines().collect::<Vec<_>>().join(" ");
        let example = "such as info, or warn,weft_worker=debug";
        Failure::Failed(format!(
            "{name}: {text:?} is not a log filter: {problem}; write LEVEL or TARGET=LEVEL, {example}"
        ))
    };
    // Any other word would be taken for a target, of which everything is logged.
    let words = text.split(',').map(str::trim).filter(|word| !word.is_empty());
    let mut bare = words.filter(|word| !word.contains(['=', '[', ':', '_']));
    if let Some(word) = bare.find(|word| !is_level(word) && !OURS.contains(word)) {
        return Err(wrong(&format!("{word:?} is not a level (off, error, warn, info, debug, trace)")));
    }
    let level = if options.access { "info" } else { "off" };
    let access = format!("{ACCESS_LOG}={level}").parse().map_err(|error| wrong(&error))?;
    let filter = EnvFilter::builder().parse(text).map_err(|error| wrong(&error))?;
    Ok(filter.add_directive(access))
}

fn is_level(word: &str) -> bool {
    word.parse::<tracing::level_filters::LevelFilter>().is_ok()
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

    /// A mistyped filter is an error in one line that names the variable, and not a filter that shows nothing or everything.
    #[test]
    fn a_filter_is_read_or_refused() {
        let read = |text: &str| filter("WEFT_LOG", text, LogOutputOptions::default());
        for text in ["", "info", "WARN", "off", "info,async_nats=warn", "weft_worker", "weft_nats::connect=trace", "2"]
        {
            assert!(read(text).is_ok(), "{text}");
        }
        for text in ["inof", "info,weft_worker=loud", "verbose", "info, chatty"] {
            let error = read(text).unwrap_err().to_string();
            assert!(error.starts_with("WEFT_LOG: ") && error.lines().count() == 1, "{text}: {error}");
        }
    }

    /// The access log is of those who ask for it, regardless of the level of the rest.
    #[test]
    fn the_access_log_has_its_own_switch() {
        for (access, says) in [(true, format!("{ACCESS_LOG}=info")), (false, format!("{ACCESS_LOG}=off"))] {
            let options = LogOutputOptions { access, ..LogOutputOptions::default() };
            let filter = filter("WEFT_LOG", "debug", options).unwrap().to_string();
            assert!(filter.contains(&says), "{filter}");
        }
    }

    #[test]
    fn a_target_is_of_its_crate() {
        assert!(is_of("weft_nats", "weft_nats") && is_of("weft_nats::connect", "weft_nats"));
        assert!(!is_of("weft_nats_other", "weft_nats") && !is_of("async_nats", "weft_nats"));
    }
}
