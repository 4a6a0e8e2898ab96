//! `weft bench deliver`: signed HTTP to 202, and signed HTTP to delivered, with the CPU time of each process.
//!
//! nats-server, gateway, worker and admin run as separate processes; sender and receiver are this one. The senders
//! are a closed loop: each waits for its answer before it sends again. First no subscription wants the events, then one
//! takes them all. What each process writes to disk is counted for both phases together, until its files are written.

use std::{
    collections::HashMap,
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

use anyhow::{anyhow, bail};
use bytes::Bytes;
use jiff::Timestamp;
use serde::Serialize;
use tokio::task::JoinSet;

use super::{
    args::EventArgs,
    cpu,
    disk::Disk,
    latency::{Latencies, Percentiles},
    process_mesh::ProcessMesh,
    written,
};
use weft_services::{
    command::output,
    failure::Failure,
    mesh::{SOURCE, Wiring},
    receiver::{Answer, Receiver},
    sender::{Sender, Signing},
};

/// Workflows that the events are spread over.
const WORKFLOWS: usize = 1000;
/// How long the last delivery may take after the last event was sent.
const PATIENCE: Duration = Duration::from_secs(120);
/// CPU time is reported for this number of events.
const CPU_EVENTS: f64 = 10_000.0;
/// How long files may lag behind the log, and some more.
const FILES_LAG: Duration = Duration::from_secs(12);

/// `weft bench deliver`.
#[derive(Debug, Clone, clap::Args)]
pub struct DeliverArgs {
    /// Events of each phase
    #[arg(long, default_value_t = 20_000)]
    events: usize,
    /// Senders, each with a separate connection
    #[arg(long, default_value_t = 64)]
    connections: usize,
    #[command(flatten)]
    event: EventArgs,
}

/// One phase.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Phase {
    name: &'static str,
    events: usize,
    events_per_second: f64,
    #[serde(flatten)]
    latency: Percentiles,
    /// CPU seconds for 10,000 events, by process.
    #[serde(serialize_with = "output::as_map")]
    cpu_seconds: Vec<(&'static str, f64)>,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Report {
    disk: Disk,
    connections: usize,
    payload_bytes: usize,
    phases: Vec<Phase>,
    /// Bytes written to disk for an event, by process.
    #[serde(serialize_with = "output::as_map")]
    written_bytes: Vec<(&'static str, f64)>,
}

/// Measures and prints.
///
/// # Errors
///
/// [`Failure`]: something does not start, or an event was refused or did not arrive.
pub async fn run(args: DeliverArgs) -> Result<(), Failure> {
    let folder = args.event.output.folder()?;
    let disk = Disk::measure(folder.path())?;
    let (phases, written_bytes) = measure(&args, folder.path()).await?;
    let payload_bytes = args.event.payload;
    let report = Report { disk, connections: args.connections, payload_bytes, phases, written_bytes };
    args.event.output.print(&report, || human(&report, folder.path()))
}

async fn measure(args: &DeliverArgs, folder: &Path) -> anyhow::Result<(Vec<Phase>, Vec<(&'static str, f64)>)> {
    let wiring = Wiring::new();
    let mesh = ProcessMesh::start(folder, &wiring.config(None)).await?;
    let receiver = Receiver::start(([127, 0, 0, 1], 0).into(), &wiring.receiver_secret, |_| Answer::OK).await;
    let receiver = receiver.map_err(|problem| anyhow!(problem))?;
    let mut processes = mesh.pids()?;
    processes.push(("sender and receiver", std::process::id()));
    let run = Run { args: args.clone(), url: mesh.url.clone(), signing: wiring.signing(), receiver, processes };

    run.until_known().await?;
    let before = run.written()?;
    let accepted = run.phase("signed HTTP to 202", "accept", false).await?;
    mesh.nats.configure(&wiring.config(Some(&run.receiver.url()))).await?;
    let delivered = run.phase("signed HTTP to delivered", "deliver", true).await?;
    tokio::time::sleep(FILES_LAG).await;
    let events = (accepted.events + delivered.events) as f64;
    let written = before.into_iter().zip(run.written()?);
    let written = written.map(|((name, before), (_, after))| (name, after.saturating_sub(before) as f64 / events));
    let written = written.collect();
    mesh.end().await?;
    Ok((vec![accepted, delivered], written))
}

struct Run {
    args: DeliverArgs,
    url: String,
    signing: Signing,
    receiver: Receiver,
    processes: Vec<(&'static str, u32)>,
}

/// Result of one sender.
struct Sent {
    latencies: Latencies,
    /// When each event was sent, by delivery id.
    at: Vec<(String, Timestamp)>,
}

impl Run {
    /// Waits until the gateway knows the source: its catalog follows within a second.
    async fn until_known(&self) -> anyhow::Result<()> {
        let sender = Sender::new(&self.url).map_err(|problem| anyhow!(problem))?;
        let started = Instant::now();
        while started.elapsed() < PATIENCE {
            let answer = sender.send(SOURCE, Some("warm-up"), &self.signing, "warm-up", None, body("warm-up", 0)).await;
            if answer.is_ok_and(|answer| answer.receipt().is_some()) {
                return Ok(());
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        bail!("the gateway does not take an event")
    }

    async fn phase(&self, name: &'static str, prefix: &str, delivered: bool) -> anyhow::Result<Phase> {
        let events = self.args.events;
        let cpu_before = self.cpu()?;
        let started = Instant::now();
        let sent = self.send_all(prefix).await?;
        let mut latencies = sent.latencies;
        if delivered {
            let prefix = format!("{prefix}-");
            latencies = self.wait_for(&prefix, sent.at.into_iter().collect()).await?;
        }
        let elapsed = started.elapsed().as_secs_f64();
        let cpu_after = self.cpu()?;
        let cpu_seconds = cpu_before
            .into_iter()
            .zip(cpu_after)
            .map(|((name, before), (_, after))| (name, (after - before) * CPU_EVENTS / events as f64));
        Ok(Phase {
            name,
            events,
            events_per_second: events as f64 / elapsed,
            latency: latencies.percentiles(),
            cpu_seconds: cpu_seconds.collect(),
        })
    }

    /// Bytes written to disk so far, by process.
    fn written(&self) -> anyhow::Result<Vec<(&'static str, u64)>> {
        self.processes.iter().map(|(name, pid)| Ok((*name, written::bytes(*pid)?))).collect()
    }

    fn cpu(&self) -> anyhow::Result<Vec<(&'static str, f64)>> {
        self.processes.iter().map(|(name, pid)| Ok((*name, cpu::seconds(*pid)?))).collect()
    }

    async fn send_all(&self, prefix: &str) -> anyhow::Result<Sent> {
        let mut senders = JoinSet::new();
        let signing = Arc::new(self.signing.clone());
        let next = Arc::new(AtomicUsize::new(0));
        for _ in 0..self.args.connections.max(1) {
            let sender = Sender::new(&self.url).map_err(|problem| anyhow!(problem))?;
            let (signing, next, prefix) = (signing.clone(), next.clone(), prefix.to_owned());
            let (events, payload) = (self.args.events, self.args.event.payload);
            senders.spawn(async move {
                let mut sent = Sent { latencies: Latencies::new(), at: Vec::new() };
                loop {
                    let index = next.fetch_add(1, Ordering::Relaxed);
                    if index >= events {
                        return anyhow::Ok(sent);
                    }
                    let id = format!("{prefix}-{index}");
                    let workflow = format!("{prefix}-{}", index % WORKFLOWS);
                    let body = body(&id, payload);
                    let (at, started) = (Timestamp::now(), Instant::now());
                    let answer = sender.send(SOURCE, Some(&workflow), &signing, &id, None, body).await;
                    let answer = answer.map_err(|problem| anyhow!(problem))?;
                    if answer.status != 202 {
                        bail!("{id} was answered {} {}", answer.status, answer.code().unwrap_or_default());
                    }
                    sent.latencies.record(started.elapsed());
                    sent.at.push((id, at));
                }
            });
        }
        let mut all = Sent { latencies: Latencies::new(), at: Vec::new() };
        while let Some(sent) = senders.join_next().await {
            let sent = sent??;
            all.latencies.add(&sent.latencies);
            all.at.extend(sent.at);
        }
        Ok(all)
    }

    /// Waits until everything has arrived; from sent to arrived.
    async fn wait_for(&self, prefix: &str, mut sent: HashMap<String, Timestamp>) -> anyhow::Result<Latencies> {
        let mut latencies = Latencies::new();
        let mut seen = 0;
        let all = self
            .receiver
            .until(PATIENCE, |arrivals| {
                for arrival in arrivals.get(seen..).unwrap_or_default() {
                    let id = arrival.delivery_id.as_deref().filter(|id| id.starts_with(prefix)).unwrap_or_default();
                    if let Some(at) = sent.remove(id) {
                        // Both times are of one clock; one that was set back meanwhile counts as no time.
                        latencies.record(arrival.at.duration_since(at).try_into().unwrap_or_default());
                    }
                }
                seen = arrivals.len();
                sent.is_empty()
            })
            .await;
        if all { Ok(latencies) } else { bail!("{} events did not arrive", sent.len()) }
    }
}

fn body(id: &str, bytes: usize) -> Bytes {
    let head = format!(r#"{{"type":"bench.deliver","data":{{"id":"{id}","pad":""#);
    let pad = "x".repeat(bytes.saturating_sub(head.len() + 3));
    format!(r#"{head}{pad}"}}}}"#).into()
}

fn human(report: &Report, folder: &Path) -> String {
    let speed = report.phases.iter().map(|phase| {
        vec![
            phase.name.to_owned(),
            phase.events.to_string(),
            format!("{:.0}", phase.events_per_second),
            format!("{:.1}", phase.latency.p50_ms),
            format!("{:.1}", phase.latency.p99_ms),
            format!("{:.1}", phase.latency.max_ms),
        ]
    });
    let speed = output::table(&["PHASE", "EVENTS", "EVENTS/S", "P50 MS", "P99 MS", "MAX MS"], speed);
    let names = report.phases.first().map(|phase| phase.cpu_seconds.as_slice()).unwrap_or_default();
    let cpu = names.iter().enumerate().map(|(index, (name, _))| {
        let seconds = report.phases.iter().filter_map(|phase| phase.cpu_seconds.get(index));
        std::iter::once((*name).to_owned()).chain(seconds.map(|(_, seconds)| format!("{seconds:.2}"))).collect()
    });
    let cpu = output::table(&["CPU S PER 10,000 EVENTS", "TO 202", "TO DELIVERED"], cpu);
    let written = report.written_bytes.iter().map(|(name, bytes)| vec![(*name).to_owned(), format!("{bytes:.0}")]);
    let written = output::table(&["BYTES WRITTEN TO DISK", "PER EVENT"], written);
    format!("{} connections, {}\n{speed}\n\n{cpu}\n\n{written}", report.connections, report.disk.line(folder))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bodies_have_the_wanted_size_and_are_json() {
        assert_eq!(body("a-1", 512).len(), 512);
        assert!(serde_json::from_slice::<serde_json::Value>(&body("a-1", 0)).is_ok());
    }
}
