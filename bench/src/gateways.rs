//! `weft bench gateways`: what several gateways on one shard accept together, against one alone.
//!
//! The sequencers of gateways, in this process, on one nats-server that syncs every write; callers are a closed loop, as
//! many in each phase, each at one gateway. Every phase begins with an empty log and empty receipts. In the order one,
//! three that contend, three with a preferred appender, one: so that a disk that changes its mood shows.

use std::{
    path::Path,
    sync::Arc,
    time::{Duration, Instant},
};

use anyhow::{Context as _, anyhow};
use serde::Serialize;
use tokio::{sync::watch, task::JoinSet, time::timeout};
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use weft_gateway::forwarding;
use weft_gateway::sequencer::{NewEvent, Receipt, Sequencer, SequencerOptions, SubmitError};
use weft_nats::streams;

use super::{
    append::{body, new_event},
    args::EventArgs,
    cpu,
    disk::Disk,
    latency::{Latencies, Percentiles},
};
use weft_services::{
    command::output::{self, Row},
    failure::Failure,
    mesh::{Nats, weft_program},
};

/// Workflows that the events are spread over.
const WORKFLOWS: u64 = 1000;
/// How long everything runs before it counts: files are made, caches filled, the preferred appender found.
const WARM_UP: Duration = Duration::from_secs(2);
/// How long a gateway may take to be ready, and to drain.
const PATIENCE: Duration = Duration::from_secs(30);

/// `weft bench gateways`.
#[derive(Debug, clap::Args)]
pub struct GatewaysArgs {
    /// Seconds of each phase
    #[arg(long, default_value_t = 5)]
    seconds: u64,
    /// Gateways that share the callers in the phases with several
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u64).range(2..=16))]
    gateways: u64,
    /// Callers of all gateways together
    #[arg(long, default_value_t = 256, value_parser = clap::value_parser!(u64).range(1..=10_000))]
    callers: u64,
    /// Events that each caller submits at a time: above 1 as a batch
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u64).range(1..=1000))]
    batch: u64,
    #[command(flatten)]
    event: EventArgs,
}

/// One phase.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Phase {
    name: String,
    gateways: u64,
    events: u64,
    events_per_second: f64,
    #[serde(flatten)]
    latency: Percentiles,
    /// CPU seconds of the gateways and their callers.
    gateways_cpu_seconds: f64,
    nats_cpu_seconds: f64,
    /// Against the mean of the phases with one gateway.
    ratio: Option<f64>,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Report {
    disk: Disk,
    payload_bytes: usize,
    callers: u64,
    batch: u64,
    phases: Vec<Phase>,
}

impl Row for Phase {
    const HEADINGS: &'static [&'static str] =
        &["PHASE", "GATEWAYS", "EVENTS", "EVENTS/S", "P50 MS", "P99 MS", "MAX MS", "CPU S", "NATS CPU S", "x ONE"];

    fn cells(&self) -> Vec<String> {
        vec![
            self.name.clone(),
            self.gateways.to_string(),
            self.events.to_string(),
            format!("{:.0}", self.events_per_second),
            format!("{:.2}", self.latency.p50_ms),
            format!("{:.2}", self.latency.p99_ms),
            format!("{:.2}", self.latency.max_ms),
            format!("{:.1}", self.gateways_cpu_seconds),
            format!("{:.1}", self.nats_cpu_seconds),
            self.ratio.map_or_else(String::new, |ratio| format!("{ratio:.2}")),
        ]
    }
}

/// Measures and prints.
///
/// # Errors
///
/// [`Failure`]: no server, no disk, or an event that was not accepted.
pub async fn run(args: GatewaysArgs) -> Result<(), Failure> {
    let folder = args.event.output.folder()?;
    let disk = Disk::measure(folder.path())?;
    let mut phases = Vec::new();
    for (index, (name, gateways, forwards)) in [
        ("one", 1, true),
        ("several, contending", args.gateways, false),
        ("several, one preferred", args.gateways, true),
        ("one", 1, true),
    ]
    .into_iter()
    .enumerate()
    {
        let folder = folder.path().join(format!("phase-{index}"));
        phases.push(phase(name, gateways, forwards, &folder, &args).await?);
    }
    let ones = phases.iter().filter(|phase| phase.gateways == 1).map(|phase| phase.events_per_second);
    let one = ones.sum::<f64>() / 2.0;
    for phase in phases.iter_mut().filter(|phase| phase.gateways > 1) {
        phase.ratio = Some(phase.events_per_second / one);
    }
    let report = Report { disk, payload_bytes: args.event.payload, callers: args.callers, batch: args.batch, phases };
    args.event.output.print(&report, || {
        let table = output::table(Phase::HEADINGS, report.phases.iter().map(Row::cells));
        format!("{}\n{table}", report.disk.line(folder.path()))
    })
}

/// A sequencer as a gateway runs it.
struct Gateway {
    sequencer: Sequencer,
    drain: CancellationToken,
    tasks: TaskTracker,
}

async fn phase(name: &str, gateways: u64, forwards: bool, folder: &Path, args: &GatewaysArgs) -> anyhow::Result<Phase> {
    std::fs::create_dir_all(folder).with_context(|| folder.display().to_string())?;
    let stop = CancellationToken::new();
    let nats = Nats::start(&weft_program()?, folder, stop.clone()).await?;
    let mut running = Vec::new();
    for number in 0..gateways {
        running.push(gateway(&nats, &folder.join(format!("gateway-{number}")), forwards).await?);
    }
    let sequencers: Arc<[Sequencer]> = running.iter().map(|gateway| gateway.sequencer.clone()).collect();
    load(&sequencers, args, WARM_UP).await?;
    let (ours, theirs) = (cpu::seconds(std::process::id())?, cpu::seconds(nats.pid()?)?);
    let started = Instant::now();
    let latencies = load(&sequencers, args, Duration::from_secs(args.seconds.max(1))).await?;
    let elapsed = started.elapsed();
    let measured = Phase {
        name: name.into(),
        gateways,
        events: latencies.count(),
        events_per_second: latencies.count() as f64 / elapsed.as_secs_f64(),
        latency: latencies.percentiles(),
        gateways_cpu_seconds: cpu::seconds(std::process::id())? - ours,
        nats_cpu_seconds: cpu::seconds(nats.pid()?)? - theirs,
        ratio: None,
    };
    for gateway in running {
        gateway.drain.cancel();
        gateway.tasks.close();
        timeout(PATIENCE, gateway.tasks.wait()).await.context("a gateway does not drain")?;
    }
    stop.cancel();
    nats.stopped().await;
    Ok(measured)
}

/// A sequencer with receipts in `folder`, ready.
async fn gateway(nats: &Nats, folder: &Path, forwards: bool) -> anyhow::Result<Gateway> {
    std::fs::create_dir_all(folder).with_context(|| folder.display().to_string())?;
    let connection = nats.connection("gateway", "weft-bench").await?;
    let admin = nats.connection("admin", "weft-bench-streams").await?;
    let layout = streams::ensure(&admin, nats.spec()).await?;
    let options = SequencerOptions::new(folder.to_owned(), nats.spec(), nats.master_key()?);
    let options = SequencerOptions { forwards, ..options };
    let (told, mut missing) = watch::channel(None);
    let (drain, tasks) = (CancellationToken::new(), TaskTracker::new());
    let sequencer = forwarding::start(connection, layout, options, told, drain.clone(), &tasks).await?;
    timeout(PATIENCE, missing.wait_for(Option::is_none)).await.context("a gateway does not become ready")??;
    Ok(Gateway { sequencer, drain, tasks })
}

/// Callers in a closed loop, spread over the gateways. Each event counts with the time that its batch took.
async fn load(sequencers: &Arc<[Sequencer]>, args: &GatewaysArgs, time: Duration) -> anyhow::Result<Latencies> {
    let (started, payload) = (Instant::now(), body(args.event.payload));
    let (callers, batch) = (args.callers, args.batch);
    let mut tasks = JoinSet::new();
    for caller in 0..callers {
        let (sequencers, payload) = (sequencers.clone(), payload.clone());
        tasks.spawn(async move {
            let sequencer = &sequencers[caller as usize % sequencers.len()];
            let mut latencies = Latencies::new();
            let mut workflows = (caller..).step_by(callers as usize).map(|number| number % WORKFLOWS);
            while started.elapsed() < time {
                let events: Vec<_> = workflows
                    .by_ref()
                    .take(batch as usize)
                    .map(|workflow| new_event(&payload, workflow))
                    .collect::<anyhow::Result<_>>()?;
                let sent = Instant::now();
                for receipt in submit(sequencer, events).await? {
                    let receipt = receipt?;
                    if receipt.duplicate {
                        return Err(anyhow!("{} was taken for a duplicate", receipt.event_id));
                    }
                    latencies.record(sent.elapsed());
                }
            }
            anyhow::Ok(latencies)
        });
    }
    let mut latencies = Latencies::new();
    while let Some(caller) = tasks.join_next().await {
        latencies.add(&caller??);
    }
    Ok(latencies)
}

/// One event alone, several as a batch.
async fn submit(sequencer: &Sequencer, mut events: Vec<NewEvent>) -> anyhow::Result<Vec<Result<Receipt, SubmitError>>> {
    if events.len() > 1 {
        return sequencer.submit_all(events).await.map_err(|refused| refused.error.into());
    }
    let event = events.pop().context("no event")?;
    Ok(vec![sequencer.submit(event).await])
}
