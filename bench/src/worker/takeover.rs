//! Time from a new owner's start to its first outcome, by what OUTCOMES holds: the worker that owned the shard
//! and has its file, and another that has none. The previous owner has given the shard up, so no worker waits for a lease; the
//! time of a worker on an empty log is that of starting and claiming.
//!
//! Then the same of a state of many workflows, with what its checkpoint occupies in NATS, and the memory of a worker that has
//! no file, next to that of a worker on an empty log.

use std::time::Instant;

use serde::Serialize;

use super::{
    Aim, Bench, checkpoint, discard, lines,
    outcomes::{Outcomes, Tally},
    pid_of,
};
use crate::{args::EventArgs, disk::Disk, memory::Memory, preload::Preload};
use weft_services::{
    command::output::{self, Row},
    failure::Failure,
};

/// Maximum number of attempts in flight.
const CONCURRENCY: usize = 256;
/// Maximum additional time of a take-over without a file over a start on an empty log, in seconds, for any number of outcomes:
/// it reads the newest checkpoint and the commits after it.
const SECONDS_MAX: f64 = 5.0;
/// Maximum additional memory of a take-over of any number of workflows over a worker on an empty log, in MiB.
const STATE_MIB_MAX: f64 = 64.0;
/// Maximum size of the checkpoint of a million workflows in NATS, in MB.
const CHECKPOINT_MB_MAX: f64 = 500.0;

/// `weft bench worker takeover`.
#[derive(Debug, clap::Args)]
pub struct TakeoverArgs {
    /// Outcomes that are kept; also measured with a tenth of them
    #[arg(long, default_value_t = 1_000_000, value_parser = clap::value_parser!(u64).range(10..))]
    outcomes: u64,
    /// Workflows that they are of
    #[arg(long, default_value_t = 1000, value_parser = clap::value_parser!(u64).range(1..))]
    workflows: u64,
    /// Idle workflows of the state that is taken over without a file
    #[arg(long, default_value_t = 1_000_000, value_parser = clap::value_parser!(u64).range(1..))]
    state: u64,
    #[command(flatten)]
    event: EventArgs,
}

/// A take-over without a file from a checkpoint.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct State {
    workflows: u64,
    checkpoint_mb: f64,
    seconds: f64,
    #[serde(flatten)]
    worker: Memory,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Phase {
    outcomes: Tally,
    with_file_seconds: f64,
    without_file_seconds: f64,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Report {
    disk: Disk,
    workflows: u64,
    phases: Vec<Phase>,
    states: Vec<State>,
    aims: Vec<Aim>,
}

impl Row for Phase {
    const HEADINGS: &'static [&'static str] = &["OUTCOMES", "MESSAGES", "MIB", "WITH FILE S", "WITHOUT FILE S"];

    fn cells(&self) -> Vec<String> {
        vec![
            self.outcomes.once.to_string(),
            self.outcomes.messages.to_string(),
            format!("{:.1}", self.outcomes.bytes as f64 / (1024.0 * 1024.0)),
            format!("{:.2}", self.with_file_seconds),
            format!("{:.2}", self.without_file_seconds),
        ]
    }
}

impl Row for State {
    const HEADINGS: &'static [&'static str] = &["WORKFLOWS", "CHECKPOINT MB", "SECONDS", "RESIDENT MIB", "VMHWM MIB"];

    fn cells(&self) -> Vec<String> {
        vec![
            self.workflows.to_string(),
            format!("{:.1}", self.checkpoint_mb),
            format!("{:.2}", self.seconds),
            format!("{:.1}", self.worker.resident_mib),
            format!("{:.1}", self.worker.peak_mib),
        ]
    }
}

/// Measures and prints.
///
/// # Errors
///
/// [`Failure`]: something does not start, or an event has no outcome.
pub async fn run(args: TakeoverArgs) -> Result<(), Failure> {
    let folder = args.event.output.folder()?;
    let disk = Disk::measure(folder.path())?;
    let EventArgs { payload, output } = args.event;
    let preload = Preload { workflows: args.workflows, payload };
    let mut phases = Vec::new();
    for outcomes in [1, args.outcomes / 10, args.outcomes] {
        let folder = folder.path().join(format!("{outcomes}"));
        std::fs::create_dir_all(&folder).map_err(|error| Failure::of(&error))?;
        let bench = Bench::start(&folder).await?;
        let phase = measure(&bench, preload, outcomes).await;
        bench.end().await;
        phases.push(phase?);
        std::fs::remove_dir_all(&folder).map_err(|error| Failure::of(&error))?;
    }
    let mut states = Vec::new();
    for workflows in [0, args.state] {
        let folder = folder.path().join(format!("state-{workflows}"));
        std::fs::create_dir_all(&folder).map_err(|error| Failure::of(&error))?;
        let bench = Bench::start(&folder).await?;
        let state = measure_state(&bench, workflows, payload).await;
        bench.end().await;
        states.push(state?);
        std::fs::remove_dir_all(&folder).map_err(|error| Failure::of(&error))?;
    }
    let more = phases[2].without_file_seconds - phases[0].without_file_seconds;
    let held = states[1].worker.peak_mib - states[0].worker.peak_mib;
    let aims = vec![
        Aim::at_most("seconds that reading without a file takes", SECONDS_MAX, more),
        Aim::at_most("MiB that a take-over of the state holds above an idle worker", STATE_MIB_MAX, held),
        Aim::at_most("MB that the checkpoint occupies", CHECKPOINT_MB_MAX, states[1].checkpoint_mb),
    ];
    let report = Report { disk, workflows: args.workflows, phases, states, aims };
    output.print(&report, || {
        let table = output::table(Phase::HEADINGS, report.phases.iter().map(Row::cells));
        let states = output::table(State::HEADINGS, report.states.iter().map(Row::cells));
        format!("{}\n{table}\n\n{states}\n{}", report.disk.line(folder.path()), lines(&report.aims))
    })
}

/// A worker without a file takes over a state of idle workflows and delivers an event; 0: an empty log.
async fn measure_state(bench: &Bench, workflows: u64, payload: usize) -> anyhow::Result<State> {
    let checkpoint_bytes = if workflows > 0 { checkpoint::fill(&bench.nats, workflows).await? } else { 0 };
    bench.subscribe(discard::DESTINATION, CONCURRENCY).await?;
    let mut outcomes = Outcomes::follow(&bench.nats, 1).await?;
    Preload { workflows: 1, payload }.fill(&bench.nats, 1).await?;
    let started = Instant::now();
    let mut worker = bench.worker(&["bench", "discard"], "another")?;
    outcomes.until(1).await?;
    let seconds = started.elapsed().as_secs_f64();
    let memory = Memory::of(pid_of(&worker)?)?;
    worker.stop().await?;
    Ok(State { workflows, checkpoint_mb: checkpoint_bytes as f64 / 1e6, seconds, worker: memory })
}

async fn measure(bench: &Bench, preload: Preload, settled: u64) -> anyhow::Result<Phase> {
    preload.fill(&bench.nats, settled).await?;
    bench.subscribe(discard::DESTINATION, CONCURRENCY).await?;
    let mut outcomes = Outcomes::follow(&bench.nats, settled + 2).await?;
    let mut owner = bench.worker(&["bench", "discard"], "owner")?;
    outcomes.until(settled).await?;
    owner.stop().await?;
    let mut seconds = [0.0; 2];
    let mut tally = outcomes.tally();
    for (index, folder) in ["owner", "another"].into_iter().enumerate() {
        let number = settled + index as u64;
        preload.fill_from(&bench.nats, number, number + 1).await?;
        let started = Instant::now();
        let mut worker = bench.worker(&["bench", "discard"], folder)?;
        outcomes.until(number + 1).await?;
        seconds[index] = started.elapsed().as_secs_f64();
        worker.stop().await?;
        tally = outcomes.tally();
    }
    let [with_file_seconds, without_file_seconds] = seconds;
    Ok(Phase { outcomes: tally, with_file_seconds, without_file_seconds })
}
