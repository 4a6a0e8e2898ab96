//! Time until an event arrives at the receiver: a whole mesh, an open loop.

use std::time::Duration;

use serde::Serialize;
use weft_nats::options::Span;

use super::{
    Aim, lines,
    open::{Load, Open},
};
use crate::{args::EventArgs, disk::Disk, latency::Percentiles};
use weft_services::{command::output, failure::Failure, mesh::Wiring};

/// Aim for the 95th percentile, in milliseconds.
const P95_MS_MAX: f64 = 25.0;
/// How long everything runs before it counts.
const WARM_UP: Duration = Duration::from_secs(3);

/// `weft bench worker first-byte`.
#[derive(Debug, clap::Args)]
pub struct FirstByteArgs {
    /// Events a second
    #[arg(long, default_value_t = 1000)]
    rate: u64,
    /// How long
    #[arg(long, default_value = "30s")]
    duration: Span,
    /// The senders' connections
    #[arg(long, default_value_t = 64)]
    connections: usize,
    /// Workflows that the events are spread over
    #[arg(long, default_value_t = 1000)]
    workflows: u64,
    #[command(flatten)]
    event: EventArgs,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Report {
    disk: Disk,
    payload_bytes: usize,
    wanted_per_second: u64,
    events: u64,
    /// From the gateway's reading to the first byte at the receiver.
    first_byte: Percentiles,
    /// From when a request was due to the gateway's answer.
    accepted: Percentiles,
    /// CPU microseconds of one event, by process.
    #[serde(serialize_with = "output::as_map")]
    cpu_us: Vec<(&'static str, f64)>,
    aims: Vec<Aim>,
}

/// Measures and prints.
///
/// # Errors
///
/// [`Failure`]: something does not start, or an event did not arrive.
pub async fn run(args: FirstByteArgs) -> Result<(), Failure> {
    let folder = args.event.output.folder()?;
    let disk = Disk::measure(folder.path())?;
    let open = Open::start(folder.path(), Wiring::new()).await?;
    let EventArgs { payload, output } = args.event;
    let FirstByteArgs { rate, connections, workflows, .. } = args;
    let load = Load { rate, time: WARM_UP, workflows, connections, payload };
    open.run("warm-up", load, false).await?;
    let run = open.run("run", Load { time: args.duration.0, ..load }, false).await?;
    open.mesh.end().await?;
    let first_byte = run.latencies.percentiles();
    let us = |seconds: f64| seconds * 1e6 / run.events as f64;
    let report = Report {
        disk,
        payload_bytes: payload,
        wanted_per_second: rate,
        events: run.events,
        first_byte,
        accepted: run.accepted.percentiles(),
        cpu_us: run.cpu.iter().map(|(name, seconds)| (*name, us(*seconds))).collect(),
        aims: vec![Aim::at_most("p95 ms from the gateway's reading to the first byte", P95_MS_MAX, first_byte.p95_ms)],
    };
    output.print(&report, || {
        let latency = [("first byte at the receiver", report.first_byte), ("202 at the sender", report.accepted)];
        let latency = latency.into_iter().map(|(name, of)| {
            let times = [of.p50_ms, of.p95_ms, of.p99_ms, of.max_ms];
            std::iter::once(name.to_owned()).chain(times.iter().map(|ms| format!("{ms:.1}"))).collect()
        });
        let latency = output::table(&["", "P50 MS", "P95 MS", "P99 MS", "MAX MS"], latency);
        let cpu = report.cpu_us.iter().map(|(name, us)| vec![(*name).to_owned(), format!("{us:.0}")]);
        let cpu = output::table(&["CPU US AN EVENT", ""], cpu);
        let disk = report.disk.line(folder.path());
        format!("{} events, {disk}\n{latency}\n\n{cpu}\n{}", report.events, lines(&report.aims))
    })
}
