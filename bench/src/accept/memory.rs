//! Memory of a gateway that knows millions of workflows and ids: the log is filled first, without a gateway; then one
//! starts on it, builds its receipts, and accepts events.

use std::time::{Duration, Instant};

use serde::Serialize;
use tokio_util::sync::CancellationToken;
use weft_nats::options::LogOptions;

use super::Bench;
use crate::{args::EventArgs, disk::Disk, latency::Percentiles, memory::Memory, preload::Preload};
use weft_services::{
    command::output,
    failure::Failure,
    mesh::{Nats, weft_program},
    process::READY_PATIENCE,
};

/// Connections of the load.
const CALLERS: usize = 64;
/// Bytes of each preloaded event's body.
const PRELOAD_PAYLOAD: usize = 64;

/// Minimum rate at which a gateway reads its log when it starts, in events a second.
const READ_PER_SECOND_MIN: u64 = 5_000;

/// `weft bench accept memory`.
#[derive(Debug, clap::Args)]
pub struct MemoryArgs {
    /// Workflows in the log before the gateway starts
    #[arg(long, default_value_t = 1_000_000)]
    workflows: u64,
    /// Events with distinct ids in the log before the gateway starts
    #[arg(long, default_value_t = 10_000_000)]
    events: u64,
    /// Seconds of load
    #[arg(long, default_value_t = 60)]
    seconds: u64,
    #[command(flatten)]
    event: EventArgs,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Report {
    disk: Disk,
    workflows: u64,
    ids: u64,
    preload_seconds: f64,
    /// From the gateway's start to ready.
    receipts_seconds: f64,
    when_ready: Memory,
    events_per_second: f64,
    #[serde(flatten)]
    latency: Percentiles,
    after_load: Memory,
}

/// Measures and prints.
///
/// # Errors
///
/// [`Failure`]: something does not start, or an event was not accepted.
pub async fn run(args: MemoryArgs) -> Result<(), Failure> {
    let folder = args.event.output.folder()?;
    let disk = Disk::measure(folder.path())?;
    let started = Instant::now();
    preload(folder.path(), args.workflows.max(1), args.events).await?;
    let preload_seconds = started.elapsed().as_secs_f64();

    let started = Instant::now();
    let patience = READY_PATIENCE + Duration::from_secs(args.events / READ_PER_SECOND_MIN);
    let bench = Bench::start_within(patience, LogOptions::default(), folder.path()).await?;
    let receipts_seconds = started.elapsed().as_secs_f64();
    let when_ready = Memory::of(bench.gateway_pid()?)?;
    let traffic = bench.traffic("load", args.workflows.max(1), args.event.payload)?;
    let (outcome, _) = bench.closed(traffic, CALLERS, Duration::from_secs(args.seconds.max(1))).await?;
    let after_load = Memory::of(bench.gateway_pid()?)?;
    bench.end().await?;
    let report = Report {
        disk,
        workflows: args.workflows,
        ids: args.events,
        preload_seconds,
        receipts_seconds,
        when_ready,
        events_per_second: outcome.rate(),
        latency: outcome.latencies.percentiles(),
        after_load,
    };
    args.event.output.print(&report, || human(&report))
}

/// Fills a new log below `folder`, before a gateway is there.
async fn preload(folder: &std::path::Path, workflows: u64, events: u64) -> anyhow::Result<()> {
    let stop = CancellationToken::new();
    let nats = Nats::start(&weft_program()?, folder, stop.clone()).await?;
    Preload { workflows, payload: PRELOAD_PAYLOAD }.fill(&nats, events).await?;
    stop.cancel();
    nats.stopped().await;
    Ok(())
}

fn human(report: &Report) -> String {
    let rows = [
        ("workflows", report.workflows.to_string()),
        ("ids", report.ids.to_string()),
        ("seconds to fill the log", format!("{:.0}", report.preload_seconds)),
        ("seconds from the gateway's start to ready", format!("{:.0}", report.receipts_seconds)),
        ("resident MiB when ready", format!("{:.1}", report.when_ready.resident_mib)),
        ("events/s of the load", format!("{:.0}", report.events_per_second)),
        ("p99 ms of the load", format!("{:.2}", report.latency.p99_ms)),
        ("resident MiB after the load", format!("{:.1}", report.after_load.resident_mib)),
        ("VmHWM MiB", format!("{:.1}", report.after_load.peak_mib)),
    ];
    let rows = rows.into_iter().map(|(name, value)| vec![name.to_owned(), value]);
    format!("fdatasync {:.3} ms\n{}", report.disk.fdatasync_ms, output::table(&["", "VALUE"], rows))
}
