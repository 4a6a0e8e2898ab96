//! Throughput of a subscription while the receiver of another one is slow: pairs of runs over the same log, in one of which a
//! second subscription takes every event too, and its receiver answers each request after some seconds.

use std::{
    path::Path,
    time::{Duration, Instant},
};

use serde::Serialize;
use weft_nats::options::Span;

use super::{Aim, Bench, PATIENCE, lines, pid_of, subscription};
use crate::{args::EventArgs, bare_receiver::BareReceiver, cpu, disk::Disk, preload::Preload};
use weft_services::{
    command::output::{self, Row},
    failure::Failure,
    mesh,
};

/// Minimum ratio of the rate with a slow receiver to that without: the median of the pairs.
const RATIO_MIN: f64 = 0.9;

/// `weft bench worker slow-receiver`.
#[derive(Debug, clap::Args)]
pub struct SlowReceiverArgs {
    /// Pairs of runs
    #[arg(long, default_value_t = 5)]
    pairs: u32,
    /// Deliveries of the fast subscription in each run
    #[arg(long, default_value_t = 60_000)]
    events: u64,
    /// Workflows that they are spread over
    #[arg(long, default_value_t = 1000, value_parser = clap::value_parser!(u64).range(1..))]
    workflows: u64,
    /// Concurrency of each subscription
    #[arg(long, default_value_t = 64)]
    connections: usize,
    /// Events of a request
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u64).range(1..=1000))]
    batch: u64,
    /// Time of the slow receiver for each request
    #[arg(long, default_value = "2s")]
    delay: Span,
    #[command(flatten)]
    event: EventArgs,
}

/// A run.
#[derive(Debug, Clone, Copy, Default, Serialize)]
#[serde(rename_all = "camelCase")]
struct Run {
    /// Events of the fast subscription.
    per_second: f64,
    /// The worker's CPU time for one of them, in microseconds.
    cpu_us: f64,
    /// Events that the slow receiver has taken by the end.
    slow_events: u64,
}

/// A pair of runs.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Pair {
    without: Run,
    with: Run,
    /// Rate with ÷ rate without.
    ratio: f64,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Report {
    disk: Disk,
    payload_bytes: usize,
    connections: usize,
    batch: u64,
    delay_ms: u128,
    pairs: Vec<Pair>,
    aims: Vec<Aim>,
}

impl Row for Pair {
    const HEADINGS: &'static [&'static str] =
        &["EVENTS/S WITHOUT", "EVENTS/S WITH", "WITH ÷ WITHOUT", "CPU US WITHOUT", "CPU US WITH", "SLOW EVENTS"];

    fn cells(&self) -> Vec<String> {
        vec![
            format!("{:.0}", self.without.per_second),
            format!("{:.0}", self.with.per_second),
            format!("{:.2}", self.ratio),
            format!("{:.1}", self.without.cpu_us),
            format!("{:.1}", self.with.cpu_us),
            self.with.slow_events.to_string(),
        ]
    }
}

/// Measures and prints.
///
/// # Errors
///
/// [`Failure`]: something does not start, or an event did not arrive.
pub async fn run(args: SlowReceiverArgs) -> Result<(), Failure> {
    let folder = args.event.output.folder()?;
    let disk = Disk::measure(folder.path())?;
    let mut pairs = Vec::new();
    for number in 0..args.pairs.max(1) {
        // In turn, so that what drifts counts for and against.
        let order = if number % 2 == 0 { [false, true] } else { [true, false] };
        let mut runs = [Run::default(); 2];
        for has_slow in order {
            let folder = folder.path().join(format!("{number}-{has_slow}"));
            std::fs::create_dir_all(&folder).map_err(|error| Failure::of(&error))?;
            runs[usize::from(has_slow)] = measure(&folder, &args, has_slow).await?;
            std::fs::remove_dir_all(&folder).map_err(|error| Failure::of(&error))?;
        }
        let [without, with] = runs;
        pairs.push(Pair { without, with, ratio: with.per_second / without.per_second });
    }
    let mut ratios: Vec<f64> = pairs.iter().map(|pair| pair.ratio).collect();
    ratios.sort_by(f64::total_cmp);
    let aims = vec![Aim::at_least(
        "rate with a slow receiver ÷ rate without, the median of the pairs",
        RATIO_MIN,
        ratios[ratios.len() / 2],
    )];
    let SlowReceiverArgs { connections, batch, delay, event: EventArgs { payload: payload_bytes, output }, .. } = args;
    let report = Report { disk, payload_bytes, connections, batch, delay_ms: delay.0.as_millis(), pairs, aims };
    output.print(&report, || {
        let table = output::table(Pair::HEADINGS, report.pairs.iter().map(Row::cells));
        format!(
            "concurrency {connections} each, {batch} events a request, the slow receiver answers after {} ms, {}\n{table}\n{}",
            report.delay_ms,
            report.disk.line(folder.path()),
            lines(&report.aims)
        )
    })
}

/// Delivers a filled log to the fast receiver. The first tenth does not count.
async fn measure(folder: &Path, args: &SlowReceiverArgs, has_slow: bool) -> anyhow::Result<Run> {
    let bench = Bench::start(folder).await?;
    let run = deliver(&bench, args, has_slow).await;
    bench.end().await;
    run
}

async fn deliver(bench: &Bench, args: &SlowReceiverArgs, has_slow: bool) -> anyhow::Result<Run> {
    let SlowReceiverArgs { events, workflows, connections, batch, delay, ref event, .. } = *args;
    let (fast, slow) = (BareReceiver::start(|_| 200).await?, BareReceiver::answering_after(delay.0, |_| 200).await?);
    let warm_up = events / 10;
    Preload { workflows, payload: event.payload }.fill(&bench.nats, warm_up + events).await?;
    let destination = |url: String| format!("{{ type = \"http\", url = \"{url}\", secret = \"{}\" }}", mesh::secret());
    let mut config = subscription("fast", &destination(fast.url()), connections, batch);
    if has_slow {
        config += &subscription("slow", &destination(slow.url()), connections, batch);
    }
    bench.nats.configure(&config).await?;
    let mut worker = bench.worker(&["worker"], "worker")?;
    let pid = pid_of(&worker)?;
    fast.until(warm_up, PATIENCE).await?;
    let (cpu_before, started, first) = (cpu::seconds(pid)?, Instant::now(), fast.answered());
    // What is in flight at the end of the log is no closed loop any more.
    fast.until(events, PATIENCE).await?;
    let (used, elapsed) = (cpu::seconds(pid)? - cpu_before, started.elapsed().max(Duration::from_nanos(1)));
    let count = (fast.answered() - first) as f64;
    let slow_events = slow.answered();
    worker.kill().await?;
    Ok(Run { per_second: count / elapsed.as_secs_f64(), cpu_us: used * 1e6 / count, slow_events })
}
