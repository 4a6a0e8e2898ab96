//! A closed loop of signed requests against its bounds: the appender alone with as many callers; the same server verifying
//! and answering without a log; and that server answering when the event is appended, without anything that makes an
//! accepted event more than a line in the log: no number, no memory of ids. The appender is measured before and after, so
//! that a disk or a neighbour that changes its mood shows.

use std::{ffi::OsString, time::Duration};

use anyhow::Context as _;
use serde::Serialize;
use tempfile::TempDir;
use tokio_util::sync::CancellationToken;
use weft_nats::{streams, subject::Layout};

use super::{Bench, CpuPerEvent, LogArgs, cpu_of};
use crate::{
    append,
    args::EventArgs,
    baseline_client::SECRET_VARIABLE,
    disk::Disk,
    latency::Percentiles,
    load::{self, Outcome, Traffic},
};
use weft_services::{
    command::output::{self, Row},
    failure::Failure,
    mesh::Nats,
    process::{Process, Spec},
};

/// Workflows that the events are spread over.
const WORKFLOWS: u64 = 1000;
/// Connections of the two comparisons.
const CALLERS: [usize; 2] = [64, 256];
/// A generator that could not do twice as much as what it measured has measured itself.
const CEILING_RATIO_MIN: f64 = 2.0;

/// `weft bench accept bound`.
#[derive(Debug, clap::Args)]
pub struct BoundArgs {
    /// Seconds of each phase
    #[arg(long, default_value_t = 5)]
    seconds: u64,
    #[command(flatten)]
    log: LogArgs,
    #[command(flatten)]
    event: EventArgs,
}

/// One phase.
#[derive(Debug, Clone, Serialize)]
#[serde(rename_all = "camelCase")]
struct Phase {
    name: &'static str,
    callers: usize,
    events_per_second: f64,
    #[serde(flatten)]
    latency: Percentiles,
    #[serde(flatten)]
    cpu: CpuPerEvent,
}

/// Summary of the phases with one number of callers.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Verdict {
    callers: usize,
    /// Signed HTTP to 202 ÷ the mean of the appender alone, before and after.
    of_appender: f64,
    /// The same server that only appends ÷ that mean: the bound for a gateway.
    append_only_of_appender: f64,
    /// The server's CPU of a 202 ÷ that of an answer without a log.
    server_cpu: f64,
    /// The generator's ceiling ÷ the result.
    ceiling: f64,
    /// Whether the generator could do at least twice what was measured.
    valid: bool,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Report {
    disk: Disk,
    payload_bytes: usize,
    /// Of the gateway's log; the appender alone has one.
    shards: u32,
    phases: Vec<Phase>,
    verdicts: Vec<Verdict>,
}

impl Row for Phase {
    const HEADINGS: &'static [&'static str] =
        &["PHASE", "CALLERS", "EVENTS/S", "P50 MS", "P99 MS", "MAX MS", "NATS US", "SERVER US", "GENERATOR US"];

    fn cells(&self) -> Vec<String> {
        let cpu = |of: fn(&CpuPerEvent) -> f64| format!("{:.1}", of(&self.cpu));
        vec![
            self.name.to_owned(),
            self.callers.to_string(),
            format!("{:.0}", self.events_per_second),
            format!("{:.2}", self.latency.p50_ms),
            format!("{:.2}", self.latency.p99_ms),
            format!("{:.2}", self.latency.max_ms),
            cpu(|cpu| cpu.nats_us),
            cpu(|cpu| cpu.server_us),
            cpu(|cpu| cpu.generator_us),
        ]
    }
}

impl Row for Verdict {
    const HEADINGS: &'static [&'static str] =
        &["CALLERS", "÷ APPENDER", "APPEND ONLY ÷ APPENDER", "SERVER CPU ÷ ANSWER", "CEILING ÷ RESULT", "VALID"];

    fn cells(&self) -> Vec<String> {
        vec![
            self.callers.to_string(),
            format!("{:.2}", self.of_appender),
            format!("{:.2}", self.append_only_of_appender),
            format!("{:.1}", self.server_cpu),
            format!("{:.1}", self.ceiling),
            if self.valid { "yes".into() } else { "no: the generator is the limit".into() },
        ]
    }
}

/// Measures and prints.
///
/// # Errors
///
/// [`Failure`]: something does not start, or an event was not accepted.
pub async fn run(args: BoundArgs) -> Result<(), Failure> {
    let folder = args.event.output.folder()?;
    let disk = Disk::measure(folder.path())?;
    let bench = Bench::start(args.log.options(), folder.path()).await?;
    let time = Duration::from_secs(args.seconds.max(1));
    let mut phases = Vec::new();
    let mut verdicts = Vec::new();
    for callers in CALLERS {
        let measured = compare(&bench, callers, time, args.event.payload).await?;
        verdicts.push(verdict(callers, &measured));
        phases.extend(measured);
    }
    bench.end().await?;
    let report = Report { disk, payload_bytes: args.event.payload, shards: args.log.shards, phases, verdicts };
    args.event.output.print(&report, || {
        let phases = output::table(Phase::HEADINGS, report.phases.iter().map(Row::cells));
        let verdicts = output::table(Verdict::HEADINGS, report.verdicts.iter().map(Row::cells));
        format!("{}; shards: {}\n{phases}\n\n{verdicts}", report.disk.line(folder.path()), report.shards)
    })
}

async fn compare(bench: &Bench, callers: usize, time: Duration, payload: usize) -> anyhow::Result<Vec<Phase>> {
    let append = async || -> anyhow::Result<Phase> {
        let (measured, cpu) = appender_alone(bench, callers, time, payload).await?;
        let (events_per_second, latency) = (measured.rate(), measured.latencies.percentiles());
        Ok(Phase { name: "appender alone", callers, events_per_second, latency, cpu })
    };
    let before = append().await?;
    let answered = answer(bench, callers, time, payload).await?;
    let appended = append_and_answer(bench, callers, time, payload).await?;
    let traffic = bench.traffic(&format!("c{callers}"), WORKFLOWS, payload)?;
    load::closed(bench.traffic(&format!("w{callers}"), WORKFLOWS, payload)?, callers, time / 4, 202).await?;
    let (outcome, cpu) = bench.closed(traffic, callers, time).await?;
    let accepted = Phase {
        name: "signed HTTP to 202",
        callers,
        events_per_second: outcome.rate(),
        latency: outcome.latencies.percentiles(),
        cpu,
    };
    let after = append().await?;
    Ok(vec![before, answered, appended, accepted, after])
}

/// An empty log on a separate server.
struct OwnLog {
    nats: Nats,
    layout: Layout,
    stop: CancellationToken,
    _folder: TempDir,
}

impl OwnLog {
    async fn start(bench: &Bench) -> anyhow::Result<Self> {
        let folder = tempfile::tempdir_in(&bench.folder)?;
        let stop = CancellationToken::new();
        let nats = Nats::start(&bench.program, folder.path(), stop.clone()).await?;
        let layout = streams::ensure(&nats.connection("admin", "weft-bench-streams").await?, nats.spec()).await?;
        Ok(Self { nats, layout, stop, _folder: folder })
    }

    async fn end(self) {
        self.stop.cancel();
        self.nats.stopped().await;
    }
}

/// The appender alone. It works in this process, as if that were the gateway.
async fn appender_alone(
    bench: &Bench,
    callers: usize,
    time: Duration,
    payload: usize,
) -> anyhow::Result<(Outcome, CpuPerEvent)> {
    let log = OwnLog::start(bench).await?;
    let connection = log.nats.connection("gateway", "weft-bench-append").await?;
    let appender = append::Alone::new(connection, log.layout, payload);
    appender.run(callers, time / 4).await?;
    let before = cpu_of(&log.nats, std::process::id())?;
    let outcome = appender.run(callers, time).await?;
    let cpu = CpuPerEvent {
        generator_us: 0.0,
        ..cpu_of(&log.nats, std::process::id())?.since(before, outcome.latencies.count())
    };
    // It would take the server's end for an outage.
    drop(appender);
    log.end().await;
    Ok((outcome, cpu))
}

/// The same server without a log.
async fn answer(bench: &Bench, callers: usize, time: Duration, payload: usize) -> anyhow::Result<Phase> {
    let server = Answering { name: "verify and answer", nats: &bench.nats, args: Vec::new(), env: Vec::new() };
    server.measure(bench, callers, time, payload).await
}

/// The same server, which does nothing but append.
async fn append_and_answer(bench: &Bench, callers: usize, time: Duration, payload: usize) -> anyhow::Result<Phase> {
    let log = OwnLog::start(bench).await?;
    let (args, env) = (vec!["--append".into(), callers.to_string().into()], log.nats.environment("gateway")?);
    let server = Answering { name: "verify, append, answer", nats: &log.nats, args, env };
    let phase = server.measure(bench, callers, time, payload).await;
    log.end().await;
    phase
}

/// A phase with another server than the gateway.
struct Answering<'a> {
    name: &'static str,
    nats: &'a Nats,
    /// Additional arguments of its process.
    args: Vec<OsString>,
    env: Vec<(String, String)>,
}

impl Answering<'_> {
    async fn measure(self, bench: &Bench, callers: usize, time: Duration, payload: usize) -> anyhow::Result<Phase> {
        let Self { name, nats, args: more, mut env } = self;
        let folder = tempfile::tempdir()?;
        let mut args = vec!["bench".into(), "answer".into()];
        args.extend(more);
        env.push((SECRET_VARIABLE.into(), bench.wiring.sender_secret.clone()));
        let log = folder.path().join("answer.log");
        let mut process = Process::start(&Spec { program: bench.program.clone(), args, env, log })?;
        let url = process.ready().await?.get("answer")?.to_owned();
        let to = url.strip_prefix("http://").context("not an http address")?.parse()?;
        let pid = process.pid().context("it has ended")?;
        let traffic = |prefix| anyhow::Ok(Traffic { to, ..bench.traffic(prefix, WORKFLOWS, payload)? });
        load::closed(traffic("before")?, callers, time / 4, 202).await?;
        let before = cpu_of(nats, pid)?;
        let outcome = load::closed(traffic("answer")?, callers, time, 202).await?;
        let cpu = cpu_of(nats, pid)?.since(before, outcome.latencies.count());
        process.stop().await?;
        Ok(Phase { name, callers, events_per_second: outcome.rate(), latency: outcome.latencies.percentiles(), cpu })
    }
}

fn verdict(callers: usize, phases: &[Phase]) -> Verdict {
    let of = |name: &str| phases.iter().filter(|phase| phase.name == name).collect::<Vec<_>>();
    let rate = |name: &str| {
        let found = of(name);
        found.iter().map(|phase| phase.events_per_second).sum::<f64>() / found.len().max(1) as f64
    };
    let cpu = |name: &str| of(name).iter().map(|phase| phase.cpu.server_us).sum::<f64>();
    let accepted = rate("signed HTTP to 202");
    let ceiling = rate("verify and answer") / accepted;
    Verdict {
        callers,
        of_appender: accepted / rate("appender alone"),
        append_only_of_appender: rate("verify, append, answer") / rate("appender alone"),
        server_cpu: cpu("signed HTTP to 202") / cpu("verify and answer"),
        ceiling,
        valid: ceiling >= CEILING_RATIO_MIN,
    }
}
