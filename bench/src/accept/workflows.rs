//! Effect of the number of workflows: one that is hot, a thousand, a million, each with the same closed loop.

use std::time::Duration;

use serde::Serialize;

use super::{Bench, CpuPerEvent, LogArgs};
use crate::{args::EventArgs, disk::Disk, latency::Percentiles};
use weft_services::{
    command::output::{self, Row},
    failure::Failure,
};

/// Connections.
const CALLERS: usize = 256;
/// The baseline of the other runs.
const BASE: u64 = 1000;
/// The runs, with the base before and after.
const RUNS: [u64; 5] = [BASE, 1, BASE, 1_000_000, BASE];

/// `weft bench accept workflows`.
#[derive(Debug, clap::Args)]
pub struct WorkflowsArgs {
    /// Seconds of each phase
    #[arg(long, default_value_t = 10)]
    seconds: u64,
    #[command(flatten)]
    log: LogArgs,
    #[command(flatten)]
    event: EventArgs,
}

/// One phase.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Phase {
    workflows: u64,
    events_per_second: f64,
    #[serde(flatten)]
    latency: Percentiles,
    #[serde(flatten)]
    cpu: CpuPerEvent,
    /// Against the mean of the phases with a thousand workflows.
    ratio: f64,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Report {
    disk: Disk,
    payload_bytes: usize,
    shards: u32,
    callers: usize,
    phases: Vec<Phase>,
}

impl Row for Phase {
    const HEADINGS: &'static [&'static str] =
        &["WORKFLOWS", "EVENTS/S", "P50 MS", "P99 MS", "MAX MS", "NATS US", "GATEWAY US", "GENERATOR US", "÷ 1,000"];

    fn cells(&self) -> Vec<String> {
        vec![
            self.workflows.to_string(),
            format!("{:.0}", self.events_per_second),
            format!("{:.2}", self.latency.p50_ms),
            format!("{:.2}", self.latency.p99_ms),
            format!("{:.2}", self.latency.max_ms),
            format!("{:.1}", self.cpu.nats_us),
            format!("{:.1}", self.cpu.server_us),
            format!("{:.1}", self.cpu.generator_us),
            format!("{:.2}", self.ratio),
        ]
    }
}

/// Measures and prints.
///
/// # Errors
///
/// [`Failure`]: something does not start, or an event was not accepted.
pub async fn run(args: WorkflowsArgs) -> Result<(), Failure> {
    let folder = args.event.output.folder()?;
    let disk = Disk::measure(folder.path())?;
    let bench = Bench::start(args.log.options(), folder.path()).await?;
    let time = Duration::from_secs(args.seconds.max(1));
    let payload = args.event.payload;
    let mut phases = Vec::new();
    for (index, workflows) in RUNS.into_iter().enumerate() {
        let traffic = bench.traffic(&format!("p{index}"), workflows, payload)?;
        let (outcome, cpu) = bench.closed(traffic, CALLERS, time).await?;
        let (events_per_second, latency) = (outcome.rate(), outcome.latencies.percentiles());
        phases.push(Phase { workflows, events_per_second, latency, cpu, ratio: 0.0 });
    }
    bench.end().await?;
    let base: Vec<f64> =
        phases.iter().filter(|phase| phase.workflows == BASE).map(|phase| phase.events_per_second).collect();
    let mean = base.iter().sum::<f64>() / base.len() as f64;
    phases.iter_mut().for_each(|phase| phase.ratio = phase.events_per_second / mean);
    let report = Report { disk, payload_bytes: payload, shards: args.log.shards, callers: CALLERS, phases };
    args.event.output.print(&report, || {
        let table = output::table(Phase::HEADINGS, report.phases.iter().map(Row::cells));
        format!("{CALLERS} connections; shards: {}; {}\n{table}", report.shards, report.disk.line(folder.path()))
    })
}
