//! Memory of a worker: for workflows whose events have all been delivered, and for lanes whose events wait.

use std::time::Duration;

use serde::Serialize;
use tokio::time::{Instant, sleep};
use weft_worker::lane::EVENT_OVERHEAD_BYTES;

use super::{Aim, Bench, PATIENCE, discard, lines, outcomes::Outcomes, pid_of};
use crate::{args::EventArgs, cpu, disk::Disk, memory::Memory, preload::Preload};
use weft_services::{
    command::output::{self, Row},
    failure::Failure,
};

/// Maximum memory of the additional idle workflows, in MiB: 10 MB.
const IDLE_MIB_MAX: f64 = 10e6 / (1024.0 * 1024.0);
/// The few idle workflows.
const FEW: u64 = 1000;
/// Maximum number of attempts in flight.
const CONCURRENCY: usize = 256;
/// A process that has used next to nothing for so long rests: the allocator has given back what is not used again.
const IDLE: Duration = Duration::from_secs(15);
/// Next to nothing, in CPU seconds: heartbeats, lease, looks.
const IDLE_CPU_SECONDS: f64 = 0.2;

/// `weft bench worker memory`.
#[derive(Debug, clap::Args)]
pub struct MemoryArgs {
    /// Idle workflows, with an event each that has been delivered
    #[arg(long, default_value_t = 1_000_000, value_parser = clap::value_parser!(u64).range(1..))]
    idle: u64,
    /// Lanes with an event each that waits
    #[arg(long, default_value_t = 10_000, value_parser = clap::value_parser!(u64).range(1..))]
    waiting: u64,
    #[command(flatten)]
    event: EventArgs,
}

#[derive(Debug, Clone, Serialize)]
#[serde(rename_all = "camelCase")]
struct Phase {
    name: &'static str,
    workflows: u64,
    events: u64,
    #[serde(flatten)]
    worker: Memory,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Report {
    disk: Disk,
    payload_bytes: usize,
    phases: Vec<Phase>,
    /// Memory of a lane with a waiting event, in bytes.
    waiting_lane_bytes: f64,
    /// Bytes that the worker counts for its event.
    counted_bytes: usize,
    aims: Vec<Aim>,
}

impl Row for Phase {
    const HEADINGS: &'static [&'static str] = &["WORKER", "WORKFLOWS", "EVENTS", "RESIDENT MIB", "VMHWM MIB"];

    fn cells(&self) -> Vec<String> {
        vec![
            self.name.to_owned(),
            self.workflows.to_string(),
            self.events.to_string(),
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
pub async fn run(args: MemoryArgs) -> Result<(), Failure> {
    let folder = args.event.output.folder()?;
    let disk = Disk::measure(folder.path())?;
    let EventArgs { payload, output } = args.event;
    let mut phases = Vec::new();
    for (name, workflows, events) in [
        ("idle", FEW, FEW),
        ("idle", FEW, args.idle),
        ("idle", args.idle, args.idle),
        ("waiting", 1, 1),
        ("waiting", args.waiting, args.waiting),
    ] {
        let folder = folder.path().join(format!("{name}-{workflows}-{events}"));
        std::fs::create_dir_all(&folder).map_err(|error| Failure::of(&error))?;
        let bench = Bench::start(&folder).await?;
        let worker = measure(&bench, Preload { workflows, payload }, events, name == "waiting").await;
        bench.end().await;
        phases.push(Phase { name, workflows, events, worker: worker? });
        std::fs::remove_dir_all(&folder).map_err(|error| Failure::of(&error))?;
    }
    let mib = |index: usize| phases[index].worker.resident_mib;
    let aims = vec![
        Aim::at_most("MiB between many idle workflows and few, an event each", IDLE_MIB_MAX, mib(2) - mib(0)),
        Aim::at_most("MiB between many idle workflows and few, as many events", IDLE_MIB_MAX, mib(2) - mib(1)),
    ];
    let waiting_lane_bytes = (mib(4) - mib(3)) * 1024.0 * 1024.0 / args.waiting as f64;
    let counted_bytes = payload + EVENT_OVERHEAD_BYTES;
    let report = Report { disk, payload_bytes: payload, phases, waiting_lane_bytes, counted_bytes, aims };
    output.print(&report, || {
        let table = output::table(Phase::HEADINGS, report.phases.iter().map(Row::cells));
        format!(
            "{}\n{table}\na lane with a waiting event holds {waiting_lane_bytes:.0} bytes; {counted_bytes} are counted for \
             its event\n{}",
            report.disk.line(folder.path()),
            lines(&report.aims)
        )
    })
}

/// Memory of a worker at rest that has read events as they came and delivered or kept them.
async fn measure(bench: &Bench, preload: Preload, events: u64, hold: bool) -> anyhow::Result<Memory> {
    bench.subscribe(discard::DESTINATION, CONCURRENCY).await?;
    let mut command = vec!["bench", "discard"];
    command.extend(hold.then_some("--hold"));
    let mut worker = bench.worker(&command, "worker")?;
    preload.fill(&bench.nats, events).await?;
    if !hold {
        Outcomes::follow(&bench.nats, events).await?.until(events).await?;
    }
    rest(pid_of(&worker)?).await?;
    let memory = Memory::of(pid_of(&worker)?)?;
    // What it holds it would never give up.
    worker.kill().await?;
    Ok(memory)
}

/// Waits until a process rests.
async fn rest(pid: u32) -> anyhow::Result<()> {
    let deadline = Instant::now() + PATIENCE;
    let mut before = f64::MIN;
    loop {
        let now = cpu::seconds(pid)?;
        if now - before <= IDLE_CPU_SECONDS {
            return Ok(());
        }
        anyhow::ensure!(Instant::now() < deadline, "the worker does not come to rest");
        before = now;
        sleep(IDLE).await;
    }
}
