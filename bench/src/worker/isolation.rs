//! Cost of a workflow whose receiver always fails for the others: pairs of runs with the same traffic, in one of which the
//! receiver answers every event of one workflow 500.

use std::time::Duration;

use serde::Serialize;
use weft_nats::options::Span;

use super::{
    Aim, lines,
    open::{Load, Open},
};
use crate::{args::EventArgs, disk::Disk, latency::Percentiles};
use weft_services::{
    command::output::{self, Row},
    failure::Failure,
    mesh::Wiring,
};

/// Maximum ratio of the p99 with a sick workflow to that without: the median of the pairs.
const RATIO_MAX: f64 = 1.2;
/// How long everything runs before it counts.
const WARM_UP: Duration = Duration::from_secs(3);
/// Longer than a run: the sick workflow's head is tried again and again, and nothing of it becomes a dead letter.
const RETRY: &str = r#"{ max_retries = 1000, base = "100ms", factor = 2.0, max = "1s" }"#;

/// `weft bench worker isolation`.
#[derive(Debug, clap::Args)]
pub struct IsolationArgs {
    /// Pairs of runs
    #[arg(long, default_value_t = 5)]
    pairs: u32,
    /// How long each run sends
    #[arg(long, default_value = "10s")]
    duration: Span,
    /// Events a second
    #[arg(long, default_value_t = 1000)]
    rate: u64,
    /// Workflows that the events are spread over, one of them sick
    #[arg(long, default_value_t = 100, value_parser = clap::value_parser!(u64).range(2..))]
    workflows: u64,
    /// The senders' connections
    #[arg(long, default_value_t = 64)]
    connections: usize,
    #[command(flatten)]
    event: EventArgs,
}

/// A pair of runs.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Pair {
    without: Percentiles,
    with: Percentiles,
    /// p99 with ÷ p99 without.
    ratio: f64,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Report {
    disk: Disk,
    payload_bytes: usize,
    rate: u64,
    workflows: u64,
    pairs: Vec<Pair>,
    aims: Vec<Aim>,
}

impl Row for Pair {
    const HEADINGS: &'static [&'static str] = &["P50 WITHOUT", "P50 WITH", "P99 WITHOUT", "P99 WITH", "P99 ÷ P99"];

    fn cells(&self) -> Vec<String> {
        let times = [self.without.p50_ms, self.with.p50_ms, self.without.p99_ms, self.with.p99_ms];
        times.iter().map(|ms| format!("{ms:.1}")).chain([format!("{:.2}", self.ratio)]).collect()
    }
}

/// Measures and prints.
///
/// # Errors
///
/// [`Failure`]: something does not start, or an event did not arrive.
pub async fn run(args: IsolationArgs) -> Result<(), Failure> {
    let folder = args.event.output.folder()?;
    let disk = Disk::measure(folder.path())?;
    let open = Open::start(folder.path(), Wiring { retry: RETRY.into(), ..Wiring::new() }).await?;
    let EventArgs { payload, output } = args.event;
    let IsolationArgs { rate, workflows, connections, .. } = args;
    let load = Load { rate, time: WARM_UP, workflows, connections, payload };
    open.run("warm-up", load, false).await?;
    let load = Load { time: args.duration.0, ..load };
    let mut pairs = Vec::new();
    for number in 0..args.pairs.max(1) {
        // In turn, so that what drifts counts for and against.
        let mut latency = [Percentiles::default(); 2];
        let order = if number % 2 == 0 { [false, true] } else { [true, false] };
        for sick in order {
            let run = open.run(&format!("pair-{number}-{sick}"), load, sick).await?;
            latency[usize::from(sick)] = run.latencies.percentiles();
        }
        let [without, with] = latency;
        pairs.push(Pair { without, with, ratio: with.p99_ms / without.p99_ms });
    }
    open.mesh.end().await?;
    let mut ratios: Vec<f64> = pairs.iter().map(|pair| pair.ratio).collect();
    ratios.sort_by(f64::total_cmp);
    let aims =
        vec![Aim::at_most("p99 with ÷ p99 without, the median of the pairs", RATIO_MAX, ratios[ratios.len() / 2])];
    let report = Report { disk, payload_bytes: payload, rate, workflows, pairs, aims };
    output.print(&report, || {
        let table = output::table(Pair::HEADINGS, report.pairs.iter().map(Row::cells));
        let disk = report.disk.line(folder.path());
        format!("{rate} events/s, {workflows} workflows, {disk}\n{table}\n{}", lines(&report.aims))
    })
}
