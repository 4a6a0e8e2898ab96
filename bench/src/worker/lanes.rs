//! Shard reader, lanes, commits and ledger with a destination that does nothing, from a full log: what they cost, and
//! that at the end OUTCOMES has exactly one outcome for each event.

use std::time::{Duration, Instant};

use serde::Serialize;
use tokio::time::sleep;

use super::{
    Aim, Bench, discard, lines,
    outcomes::{Outcomes, Tally},
    pid_of,
};
use crate::{args::EventArgs, cpu, disk::Disk, memory::Memory, preload::Preload};
use weft_services::{
    command::output::{self, Row},
    failure::Failure,
};

/// Minimum number of events for each CPU second of the worker.
const PER_CPU_SECOND_MIN: f64 = 50_000.0;
/// How long the ledger may take for what waits: its interval, and a sync.
const LEDGER_REST: Duration = Duration::from_millis(500);

/// `weft bench worker lanes`.
#[derive(Debug, clap::Args)]
pub struct LanesArgs {
    /// Events in the log
    #[arg(long, default_value_t = 300_000)]
    events: u64,
    /// Workflows that they are spread over
    #[arg(long, default_value_t = 1000, value_parser = clap::value_parser!(u64).range(1..))]
    workflows: u64,
    /// Maximum number of attempts in flight
    #[arg(long, default_value_t = 256)]
    concurrency: usize,
    /// Runs, each with a separate log
    #[arg(long, default_value_t = 3)]
    runs: u32,
    #[command(flatten)]
    event: EventArgs,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Phase {
    events_per_second: f64,
    events_per_cpu_second: f64,
    worker_cpu_seconds: f64,
    nats_cpu_seconds: f64,
    worker: Memory,
    outcomes: Tally,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Report {
    disk: Disk,
    events: u64,
    workflows: u64,
    payload_bytes: usize,
    phases: Vec<Phase>,
    aims: Vec<Aim>,
}

impl Row for Phase {
    const HEADINGS: &'static [&'static str] = &[
        "EVENTS/S",
        "EVENTS/CPU S",
        "WORKER CPU S",
        "NATS CPU S",
        "VMHWM MIB",
        "ONE OUTCOME",
        "NONE",
        "SEVERAL",
        "COMMITS",
    ];

    fn cells(&self) -> Vec<String> {
        vec![
            format!("{:.0}", self.events_per_second),
            format!("{:.0}", self.events_per_cpu_second),
            format!("{:.2}", self.worker_cpu_seconds),
            format!("{:.2}", self.nats_cpu_seconds),
            format!("{:.0}", self.worker.peak_mib),
            self.outcomes.once.to_string(),
            self.outcomes.never.to_string(),
            self.outcomes.repeated.to_string(),
            self.outcomes.messages.to_string(),
        ]
    }
}

/// Measures and prints.
///
/// # Errors
///
/// [`Failure`]: something does not start, or an event has no outcome.
pub async fn run(args: LanesArgs) -> Result<(), Failure> {
    let folder = args.event.output.folder()?;
    let disk = Disk::measure(folder.path())?;
    let mut phases = Vec::new();
    for run in 0..args.runs.max(1) {
        let folder = folder.path().join(format!("run-{run}"));
        std::fs::create_dir_all(&folder).map_err(|error| Failure::of(&error))?;
        let bench = Bench::start(&folder).await?;
        let phase = measure(&bench, &args).await;
        bench.end().await;
        phases.push(phase?);
        // A separate log for each, on the same disk.
        std::fs::remove_dir_all(&folder).map_err(|error| Failure::of(&error))?;
    }
    let mut rates: Vec<f64> = phases.iter().map(|phase| phase.events_per_cpu_second).collect();
    rates.sort_by(f64::total_cmp);
    let wrong: u64 = phases.iter().map(|phase| phase.outcomes.never + phase.outcomes.repeated).sum();
    let aims = vec![
        Aim::at_least("events for each CPU second of the worker (median)", PER_CPU_SECOND_MIN, rates[rates.len() / 2]),
        Aim::at_most("events without exactly one outcome", 0.0, wrong as f64),
    ];
    let EventArgs { payload: payload_bytes, output } = args.event;
    let report = Report { disk, events: args.events, workflows: args.workflows, payload_bytes, phases, aims };
    output.print(&report, || {
        let table = output::table(Phase::HEADINGS, report.phases.iter().map(Row::cells));
        format!("{}\n{table}\n{}", report.disk.line(folder.path()), lines(&report.aims))
    })
}

async fn measure(bench: &Bench, args: &LanesArgs) -> anyhow::Result<Phase> {
    let preload = Preload { workflows: args.workflows, payload: args.event.payload };
    preload.fill(&bench.nats, args.events).await?;
    bench.subscribe(discard::DESTINATION, args.concurrency).await?;
    let mut outcomes = Outcomes::follow(&bench.nats, args.events).await?;
    let nats_before = cpu::seconds(bench.nats.pid()?)?;
    let started = Instant::now();
    let mut worker = bench.worker(&["bench", "discard"], "worker")?;
    outcomes.until(args.events).await?;
    let elapsed = started.elapsed().as_secs_f64();
    let nats_cpu_seconds = cpu::seconds(bench.nats.pid()?)? - nats_before;
    sleep(LEDGER_REST).await;
    // All that it has used since its start.
    let worker_cpu_seconds = cpu::seconds(pid_of(&worker)?)?;
    let memory = Memory::of(pid_of(&worker)?)?;
    worker.stop().await?;
    Ok(Phase {
        events_per_second: args.events as f64 / elapsed,
        events_per_cpu_second: args.events as f64 / worker_cpu_seconds,
        worker_cpu_seconds,
        nats_cpu_seconds,
        worker: memory,
        outcomes: outcomes.tally(),
    })
}
