//! An open loop: a fixed number of events a second, independent of earlier answers, while as many other connections are slow
//! or silent.

use std::{
    sync::{Arc, atomic::AtomicU64},
    time::Duration,
};

use serde::Serialize;
use tokio::task::JoinSet;
use weft_nats::options::Span;

use super::{Bench, CpuPerEvent, LogArgs};
use crate::{
    args::EventArgs,
    disk::Disk,
    latency::Percentiles,
    load::{self, Connection, Traffic},
    memory::Memory,
};
use weft_services::{command::output, failure::Failure};

/// Workflows that the events are spread over.
const WORKFLOWS: u64 = 1000;
/// Pieces that a slow sender cuts a request into.
const SLOW_PIECES: usize = 20;
/// Between two of them: a request takes two seconds.
const SLOW_PAUSE: Duration = Duration::from_millis(100);
/// Before anything is counted: as long as the gateway is patient with the silent, so that by then they come one by one.
const WARM_UP: Duration = Duration::from_secs(10);

/// `weft bench accept`, the open loop.
#[derive(Debug, clap::Args)]
pub struct OpenArgs {
    /// Events a second
    #[arg(long, default_value_t = 1000)]
    rate: u64,
    /// How long
    #[arg(long, default_value = "60s")]
    duration: Span,
    /// Connections; half of them send at the rate, a quarter is slow, a quarter says nothing
    #[arg(long, default_value_t = 2000)]
    connections: usize,
    #[command(flatten)]
    log: LogArgs,
    #[command(flatten)]
    event: EventArgs,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Report {
    disk: Disk,
    payload_bytes: usize,
    shards: u32,
    connections: usize,
    wanted_per_second: u64,
    events: u64,
    events_per_second: f64,
    #[serde(flatten)]
    latency: Percentiles,
    #[serde(flatten)]
    cpu: CpuPerEvent,
    /// Events of slow senders, accepted besides.
    slow_events: u64,
    /// Connections of silent senders that the gateway has closed.
    idle_closed: u64,
    gateway: Memory,
}

/// Measures and prints.
///
/// # Errors
///
/// [`Failure`]: something does not start, or an event was not accepted.
pub async fn run(args: OpenArgs) -> Result<(), Failure> {
    let folder = args.event.output.folder()?;
    let disk = Disk::measure(folder.path())?;
    let bench = Bench::start(args.log.options(), folder.path()).await?;
    let report = measure(&args, disk, &bench).await;
    bench.end().await?;
    let report = report?;
    args.event.output.print(&report, || human(&report))
}

async fn measure(args: &OpenArgs, disk: Disk, bench: &Bench) -> anyhow::Result<Report> {
    let payload = args.event.payload;
    let traffic = |prefix: &str| bench.traffic(prefix, WORKFLOWS, payload);
    let time = args.duration.0;
    let busy = (args.connections / 2).max(1);
    let slow = args.connections / 4;
    let idle = args.connections - busy - slow;
    let slow = slow_senders(traffic("slow")?, slow, WARM_UP + time)?;
    let idle = idle_senders(traffic("idle")?, idle, WARM_UP + time)?;
    let before = bench.cpu()?;
    let outcome = load::open(traffic("open")?, busy, args.rate, (WARM_UP, time), 202).await?;
    let cpu = bench.cpu()?.since(before, outcome.latencies.count() + args.rate * WARM_UP.as_secs());
    let gateway = Memory::of(bench.gateway_pid()?)?;
    Ok(Report {
        disk,
        payload_bytes: payload,
        shards: args.log.shards,
        connections: args.connections,
        wanted_per_second: args.rate,
        events: outcome.latencies.count(),
        events_per_second: outcome.rate(),
        latency: outcome.latencies.percentiles(),
        cpu,
        slow_events: sum(slow).await?,
        idle_closed: sum(idle).await?,
        gateway,
    })
}

/// Senders whose requests take two seconds each; how many were accepted.
fn slow_senders(traffic: Traffic, count: usize, time: Duration) -> anyhow::Result<JoinSet<anyhow::Result<u64>>> {
    let (traffic, next) = (Arc::new(traffic), Arc::new(AtomicU64::new(0)));
    let mut senders = JoinSet::new();
    let end = std::time::Instant::now() + time;
    // Spread over the time of a request: in step they would be no slow senders, but a burst every two seconds.
    let apart = SLOW_PAUSE * u32::try_from(SLOW_PIECES)? / u32::try_from(count.max(1))?;
    for index in 0..count {
        let (traffic, next) = (traffic.clone(), next.clone());
        let wait = apart * u32::try_from(index)?;
        senders.spawn(async move {
            tokio::time::sleep(wait).await;
            let mut connection = Connection::open(traffic, next).await?;
            let mut accepted = 0;
            while std::time::Instant::now() < end {
                let status = connection.exchange_slowly(SLOW_PIECES, SLOW_PAUSE).await?;
                anyhow::ensure!(status == 202, "a slow sender was answered {status}");
                accepted += 1;
            }
            Ok(accepted)
        });
    }
    Ok(senders)
}

/// Senders that connect and say nothing, and come again when they have been closed; how often they were.
fn idle_senders(traffic: Traffic, count: usize, time: Duration) -> anyhow::Result<JoinSet<anyhow::Result<u64>>> {
    let mut senders = JoinSet::new();
    let end = tokio::time::Instant::now() + time;
    let apart = WARM_UP / u32::try_from(count.max(1))?;
    for index in 0..count {
        let to = traffic.to;
        let wait = apart * u32::try_from(index)?;
        senders.spawn(async move {
            tokio::time::sleep(wait).await;
            let mut closed = 0;
            loop {
                let mut socket = tokio::net::TcpStream::connect(to).await?;
                let mut buffer = [0; 64];
                let read = tokio::io::AsyncReadExt::read(&mut socket, &mut buffer);
                match tokio::time::timeout_at(end, read).await {
                    // Its patience is over, as it should be.
                    Ok(Ok(_) | Err(_)) => closed += 1,
                    Err(_) => return Ok(closed),
                }
            }
        });
    }
    Ok(senders)
}

async fn sum(mut counts: JoinSet<anyhow::Result<u64>>) -> anyhow::Result<u64> {
    let mut sum = 0;
    while let Some(count) = counts.join_next().await {
        sum += count??;
    }
    Ok(sum)
}

fn human(report: &Report) -> String {
    let Report { latency, cpu, gateway, .. } = report;
    let rows = [
        ("events/s, wanted", report.wanted_per_second.to_string()),
        ("events/s", format!("{:.0}", report.events_per_second)),
        ("accepted at the rate", report.events.to_string()),
        ("accepted of slow senders", report.slow_events.to_string()),
        ("silent connections closed", report.idle_closed.to_string()),
        ("p50 ms", format!("{:.2}", latency.p50_ms)),
        ("p99 ms", format!("{:.2}", latency.p99_ms)),
        ("max ms", format!("{:.2}", latency.max_ms)),
        ("CPU us an event: nats-server", format!("{:.1}", cpu.nats_us)),
        ("CPU us an event: gateway", format!("{:.1}", cpu.server_us)),
        ("CPU us an event: generator", format!("{:.1}", cpu.generator_us)),
        ("gateway resident MiB", format!("{:.1}", gateway.resident_mib)),
        ("gateway VmHWM MiB", format!("{:.1}", gateway.peak_mib)),
    ];
    let rows = rows.into_iter().map(|(name, value)| vec![name.to_owned(), value]);
    format!(
        "open loop, {} connections, half of them slow or silent; shards: {}; fdatasync {:.3} ms (median), {:.2} ms (p99)\n{}",
        report.connections,
        report.shards,
        report.disk.fdatasync_ms,
        report.disk.fdatasync_p99_ms,
        output::table(&["", "VALUE"], rows)
    )
}
