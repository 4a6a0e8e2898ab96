//! How long a new owner takes from its start to its first outcome, by what OUTCOMES holds: the worker that owned the shard
//! and has its file, and another that has none. The owner before has given the shard up, so nobody waits for a lease; the
//! time of a worker on an empty log is what starting and claiming take.

use std::time::Instant;

use serde::Serialize;

use super::{
    Aim, Bench, discard, lines,
    outcomes::{Outcomes, Tally},
};
use crate::{
    bench::{common::Common, disk::Disk, preload::Preload},
    command::output::{self, Row},
    exit::Failure,
};

/// Attempts in flight at the most.
const CONCURRENCY: usize = 256;
/// What a take-over without a file may take longer than a start on an empty log, in seconds, however many outcomes are kept:
/// it reads the newest checkpoint and what lies behind that.
const SECONDS_MAX: f64 = 5.0;

/// `weft bench worker takeover`.
#[derive(Debug, clap::Args)]
pub struct TakeoverArgs {
    /// Outcomes that are kept; also measured with a tenth of them
    #[arg(long, default_value_t = 1_000_000, value_parser = clap::value_parser!(u64).range(10..))]
    outcomes: u64,
    /// Workflows that they are of
    #[arg(long, default_value_t = 1000, value_parser = clap::value_parser!(u64).range(1..))]
    workflows: u64,
    #[command(flatten)]
    common: Common,
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

/// Measures and prints.
///
/// # Errors
///
/// [`Failure`]: something does not start, or an event has no outcome.
pub async fn run(args: TakeoverArgs) -> Result<(), Failure> {
    let folder = args.common.place.folder()?;
    let disk = Disk::measure(folder.path())?;
    let Common { payload, place } = args.common;
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
    let more = phases[2].without_file_seconds - phases[0].without_file_seconds;
    let aims = vec![Aim::at_most("seconds that reading without a file takes", SECONDS_MAX, more)];
    let report = Report { disk, workflows: args.workflows, phases, aims };
    place.print(&report, || {
        let table = output::table(Phase::HEADINGS, report.phases.iter().map(Row::cells));
        format!("{}\n{table}\n{}", report.disk.line(folder.path()), lines(&report.aims))
    })
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
