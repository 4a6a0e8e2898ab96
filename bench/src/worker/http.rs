//! Signed deliveries against the bare client: the same body, a signature for each, as many connections, the same HTTP
//! library. The bare client is measured before and after, so that a neighbour that changes its mood shows.

use std::time::{Duration, Instant};

use anyhow::Context as _;
use serde::Serialize;

use super::{Aim, Bench, PATIENCE, lines, pid_of};
use crate::{
    args::EventArgs,
    bare_receiver::{BareReceiver, Request},
    baseline_client, cpu,
    disk::Disk,
    preload::Preload,
};
use weft_services::{
    command::output::{self, Row},
    failure::Failure,
    mesh,
    process::{Process, Spec},
};

/// Maximum cost of a delivery for the worker, in requests of the bare client.
const RATIO_MAX: f64 = 4.0;
/// Minimum number of deliveries a second, and of events a second in batches of [`BATCH_AIM`].
const RATE_MIN: f64 = 10_000.0;
const BATCH_RATE_MIN: f64 = 20_000.0;
/// Events of a batch from which on the rate is that of batches.
const BATCH_AIM: u64 = 50;

/// `weft bench worker http`.
#[derive(Debug, clap::Args)]
pub struct HttpArgs {
    /// Deliveries of each phase
    #[arg(long, default_value_t = 60_000)]
    events: u64,
    /// Workflows that they are spread over
    #[arg(long, default_value_t = 1000, value_parser = clap::value_parser!(u64).range(1..))]
    workflows: u64,
    /// Connections
    #[arg(long, default_value_t = 64)]
    connections: usize,
    /// Events of a request; the bare client posts one event with each
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u64).range(1..=1000))]
    batch: u64,
    #[command(flatten)]
    event: EventArgs,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Phase {
    name: &'static str,
    per_second: f64,
    cpu_us: f64,
    receiver_cpu_us: f64,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Report {
    disk: Disk,
    connections: usize,
    batch: u64,
    payload_bytes: usize,
    phases: Vec<Phase>,
    aims: Vec<Aim>,
}

impl Row for Phase {
    const HEADINGS: &'static [&'static str] = &["PHASE", "EVENTS/S", "CPU US", "RECEIVER CPU US"];

    fn cells(&self) -> Vec<String> {
        vec![
            self.name.to_owned(),
            format!("{:.0}", self.per_second),
            format!("{:.1}", self.cpu_us),
            format!("{:.1}", self.receiver_cpu_us),
        ]
    }
}

/// Measures and prints.
///
/// # Errors
///
/// [`Failure`]: something does not start, or an event did not arrive.
pub async fn run(args: HttpArgs) -> Result<(), Failure> {
    let folder = args.event.output.folder()?;
    let disk = Disk::measure(folder.path())?;
    let bench = Bench::start(folder.path()).await?;
    let phases = phases(&bench, &args).await;
    bench.end().await;
    let phases = phases?;
    let bare = (phases[0].cpu_us + phases[2].cpu_us) / 2.0;
    let rate_min = if args.batch < BATCH_AIM { RATE_MIN } else { BATCH_RATE_MIN };
    let aims = vec![
        Aim::at_most(
            "the worker's CPU for a delivery ÷ the bare client's for a request",
            RATIO_MAX,
            phases[1].cpu_us / bare,
        ),
        Aim::at_least("events a second", rate_min, phases[1].per_second),
    ];
    let EventArgs { payload: payload_bytes, output } = args.event;
    let report = Report { disk, connections: args.connections, batch: args.batch, payload_bytes, phases, aims };
    output.print(&report, || {
        let table = output::table(Phase::HEADINGS, report.phases.iter().map(Row::cells));
        format!(
            "{} connections, {} events a request, {}\n{table}\n{}",
            report.connections,
            report.batch,
            report.disk.line(folder.path()),
            lines(&report.aims)
        )
    })
}

async fn phases(bench: &Bench, args: &HttpArgs) -> anyhow::Result<Vec<Phase>> {
    let secret = mesh::secret();
    let before = bare(bench, args, &secret).await?;
    let delivered = delivered(bench, args, &secret).await?;
    let after = bare(bench, args, &secret).await?;
    Ok(vec![before, delivered, after])
}

/// Requests that do not count: connections are made, caches filled.
const fn warm_up(events: u64) -> u64 {
    events / 10
}

async fn delivered(bench: &Bench, args: &HttpArgs, secret: &str) -> anyhow::Result<Phase> {
    let receiver = BareReceiver::start(taken).await?;
    let preload = Preload { workflows: args.workflows, payload: args.event.payload };
    let destination = format!("{{ type = \"http\", url = \"{}\", secret = \"{secret}\" }}", receiver.url());
    preload.fill(&bench.nats, warm_up(args.events) + args.events).await?;
    bench.subscribe_in_batches(&destination, args.connections, args.batch).await?;
    let mut worker = bench.worker(&["worker"], "worker")?;
    let phase = measure("delivered by the worker", &receiver, pid_of(&worker)?, args.events).await?;
    worker.stop().await?;
    Ok(phase)
}

async fn bare(bench: &Bench, args: &HttpArgs, secret: &str) -> anyhow::Result<Phase> {
    let receiver = BareReceiver::start(taken).await?;
    let mut client = Process::start(&Spec {
        program: bench.program.clone(),
        args: vec![
            "bench".into(),
            "post".into(),
            "--url".into(),
            receiver.url().into(),
            "--connections".into(),
            args.connections.to_string().into(),
            "--payload".into(),
            args.event.payload.to_string().into(),
        ],
        env: vec![(baseline_client::SECRET_VARIABLE.into(), secret.to_owned())],
        log: bench.folder.join("post.log"),
    })?;
    let pid = client.pid().context("the client has ended")?;
    let phase = measure("the bare client", &receiver, pid, args.events).await?;
    client.kill().await?;
    Ok(phase)
}

fn taken(_: Request<'_>) -> u16 {
    200
}

/// Cost of this number of requests to the receiver for the sending process.
async fn measure(name: &'static str, receiver: &BareReceiver, pid: u32, events: u64) -> anyhow::Result<Phase> {
    let cpus = || anyhow::Ok((cpu::seconds(pid)?, cpu::seconds(std::process::id())?));
    receiver.until(warm_up(events), PATIENCE).await?;
    let (before, started, first) = (cpus()?, Instant::now(), receiver.answered());
    // What is in flight at the end of the log is no closed loop any more.
    receiver.until(events, PATIENCE).await?;
    let (after, elapsed, count) = (cpus()?, started.elapsed(), receiver.answered() - first);
    let us = |seconds: f64| seconds * 1e6 / count as f64;
    Ok(Phase {
        name,
        per_second: count as f64 / elapsed.max(Duration::from_nanos(1)).as_secs_f64(),
        cpu_us: us(after.0 - before.0),
        receiver_cpu_us: us(after.1 - before.1),
    })
}
