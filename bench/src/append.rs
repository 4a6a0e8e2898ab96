//! `weft bench append`: compare-and-append alone, against what plain publishes do on the same server.
//!
//! Callers are a closed loop: each waits for its ack before it comes again. Their events wait for the append in flight
//! and ride in the next one, as in a gateway. The plain publishes carry the same messages without an expectation, 256
//! in flight on one connection. The order is plain, appends, plain, so that a disk that changes its mood shows.

use std::time::{Duration, Instant};

use bytes::Bytes;
use futures_util::{StreamExt as _, stream};
use jiff::Timestamp;
use serde::Serialize;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;
use weft_gateway::sequencer::NewEvent;
use weft_nats::{connect::Connection, event::JSON, message::Outgoing, streams, subject::Layout};
use weft_proto::ids::{EventId, SequenceNumber, WorkflowId};

use super::{
    args::EventArgs,
    disk::Disk,
    group::{Gather, Group},
    latency::{Latencies, Percentiles},
    load::Outcome,
};
use weft_services::{
    command::output::{self, Row},
    failure::Failure,
    mesh::{Nats, weft_program},
};

/// Plain publishes in flight.
const PLAIN_IN_FLIGHT: usize = 256;
/// Workflows that the events are spread over.
const WORKFLOWS: u64 = 1000;
/// How long everything runs before it counts: files are made, caches filled.
const WARM_UP: Duration = Duration::from_secs(1);

/// `weft bench append`.
#[derive(Debug, clap::Args)]
pub struct AppendArgs {
    /// Seconds of each phase
    #[arg(long, default_value_t = 5)]
    seconds: u64,
    #[command(flatten)]
    event: EventArgs,
}

/// One phase.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Phase {
    name: String,
    in_flight: usize,
    events: u64,
    events_per_second: f64,
    #[serde(flatten)]
    latency: Percentiles,
    /// Against the mean of the plain phases.
    ratio: Option<f64>,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Report {
    disk: Disk,
    payload_bytes: usize,
    phases: Vec<Phase>,
}

impl Row for Phase {
    const HEADINGS: &'static [&'static str] =
        &["PHASE", "IN FLIGHT", "EVENTS", "EVENTS/S", "P50 MS", "P99 MS", "MAX MS", "x PLAIN"];

    fn cells(&self) -> Vec<String> {
        vec![
            self.name.clone(),
            self.in_flight.to_string(),
            self.events.to_string(),
            format!("{:.0}", self.events_per_second),
            format!("{:.2}", self.latency.p50_ms),
            format!("{:.2}", self.latency.p99_ms),
            format!("{:.2}", self.latency.max_ms),
            self.ratio.map_or_else(String::new, |ratio| format!("{ratio:.1}")),
        ]
    }
}

/// Measures and prints.
///
/// # Errors
///
/// [`Failure`]: no server, no disk, or an append that did not go through.
pub async fn run(args: AppendArgs) -> Result<(), Failure> {
    let folder = args.event.output.folder()?;
    let disk = Disk::measure(folder.path())?;
    let stop = CancellationToken::new();
    let nats = Nats::start(&weft_program()?, folder.path(), stop.clone()).await?;
    let phases = phases(&nats, &args).await;
    stop.cancel();
    nats.stopped().await;
    let report = Report { disk, payload_bytes: args.event.payload, phases: phases? };
    args.event.output.print(&report, || {
        let table = output::table(Phase::HEADINGS, report.phases.iter().map(Row::cells));
        format!("{}\n{table}", report.disk.line(folder.path()))
    })
}

async fn phases(nats: &Nats, args: &AppendArgs) -> anyhow::Result<Vec<Phase>> {
    let admin = nats.connection("admin", "weft-bench-streams").await?;
    let layout = streams::ensure(&admin, nats.spec()).await?;
    let connection = nats.connection("gateway", "weft-bench").await?;
    let log = Log { connection, layout, payload: body(args.event.payload) };
    let time = Duration::from_secs(args.seconds.max(1));

    log.plain(WARM_UP).await?;
    log.append(PLAIN_IN_FLIGHT, WARM_UP).await?;
    let mut phases = vec![log.plain(time).await?];
    for callers in [64, 256] {
        phases.push(log.append(callers, time).await?);
    }
    phases.push(log.plain(time).await?);
    let plain = (phases[0].events_per_second + phases[3].events_per_second) / 2.0;
    for phase in &mut phases[1..3] {
        phase.ratio = Some(phase.events_per_second / plain);
    }
    Ok(phases)
}

/// Compare-and-append alone. It needs a separate log: its events have no valid numbers.
pub struct Alone(Log);

impl Alone {
    /// Appends events of `payload` bytes.
    pub fn new(connection: Connection, layout: Layout, payload: usize) -> Self {
        Self(Log { connection, layout, payload: body(payload) })
    }

    /// Runs this number of callers in a closed loop.
    ///
    /// # Errors
    ///
    /// When an append does not go through.
    pub async fn run(&self, callers: usize, time: Duration) -> anyhow::Result<Outcome> {
        self.0.append_all(callers, time).await
    }
}

/// JSON of this number of bytes, or slightly more if that is too short for JSON.
pub(super) fn body(bytes: usize) -> Bytes {
    const EMPTY: &str = r#"{"type":"bench","pad":""}"#;
    let pad = "x".repeat(bytes.saturating_sub(EMPTY.len()));
    format!(r#"{{"type":"bench","pad":"{pad}"}}"#).into()
}

struct Log {
    connection: Connection,
    layout: Layout,
    payload: Bytes,
}

impl Log {
    fn message(&self, number: u64) -> anyhow::Result<Outgoing> {
        message(self.layout, &self.payload, number)
    }

    /// Publishes without an expectation, many in flight on one connection.
    async fn plain(&self, time: Duration) -> anyhow::Result<Phase> {
        let started = Instant::now();
        let publishes = stream::iter(0u64..).take_while(|_| std::future::ready(started.elapsed() < time)).map(
            |number| async move {
                let message = self.message(number)?;
                let sent = Instant::now();
                let jetstream = self.connection.jetstream();
                jetstream
                    .publish_with_headers(message.subject, message.headers.to_map(), message.payload)
                    .await?
                    .await?;
                anyhow::Ok(sent.elapsed())
            },
        );
        let mut publishes = std::pin::pin!(publishes.buffer_unordered(PLAIN_IN_FLIGHT));
        let mut latencies = Latencies::new();
        while let Some(latency) = publishes.next().await {
            latencies.record(latency?);
        }
        Ok(phase("plain publish, fsynced", PLAIN_IN_FLIGHT, &latencies, started.elapsed()))
    }

    /// Compare-and-append with group commit, under a closed loop of callers.
    async fn append(&self, callers: usize, time: Duration) -> anyhow::Result<Phase> {
        let Outcome { latencies, elapsed } = self.append_all(callers, time).await?;
        Ok(phase("compare-and-append", callers, &latencies, elapsed))
    }

    async fn append_all(&self, callers: usize, time: Duration) -> anyhow::Result<Outcome> {
        let (group, appending) = Group::start(self.connection.clone(), self.layout, callers, Gather::Turns).await?;
        let started = Instant::now();
        let mut tasks = JoinSet::new();
        for _ in 0..callers {
            let (group, layout, payload) = (group.clone(), self.layout, self.payload.clone());
            tasks.spawn(async move {
                let mut latencies = Latencies::new();
                let mut number = 0;
                while started.elapsed() < time {
                    let message = message(layout, &payload, number)?;
                    number += 1;
                    let sent = Instant::now();
                    group.append(message).await?;
                    latencies.record(sent.elapsed());
                }
                anyhow::Ok(latencies)
            });
        }
        drop(group);
        let mut latencies = Latencies::new();
        let mut failure = None;
        while let Some(caller) = tasks.join_next().await {
            match caller? {
                Ok(of_caller) => latencies.add(&of_caller),
                Err(error) => failure = Some(error),
            }
        }
        let elapsed = started.elapsed();
        // Its own failure says more than that of those who waited for it.
        appending.await??;
        match failure {
            Some(error) => Err(error),
            None => Ok(Outcome { latencies, elapsed }),
        }
    }
}

/// An event as a gateway appends it.
fn message(layout: Layout, payload: &Bytes, number: u64) -> anyhow::Result<Outgoing> {
    let event = new_event(payload, number % WORKFLOWS)?;
    Ok(event.numbered(SequenceNumber(number + 1), None).encode(layout))
}

/// An event with a new id.
pub(super) fn new_event(payload: &Bytes, workflow: u64) -> anyhow::Result<NewEvent> {
    let now = Timestamp::now();
    Ok(NewEvent {
        id: EventId::unique(),
        workflow: WorkflowId::new(format!("bench-{workflow}"))?,
        event_type: "bench".into(),
        source: "bench".into(),
        time: now,
        received_at: now,
        delivery_id: None,
        content_type: JSON.into(),
        data_pointer: String::new(),
        verified_by: "none".into(),
        traceparent: None,
        quarantine: None,
        kept_headers: Vec::new(),
        payload: payload.clone(),
        receipt_on_id_reuse: false,
        replay_guard: false,
    })
}

fn phase(name: &str, in_flight: usize, latencies: &Latencies, elapsed: Duration) -> Phase {
    Phase {
        name: name.into(),
        in_flight,
        events: latencies.count(),
        events_per_second: latencies.count() as f64 / elapsed.as_secs_f64(),
        latency: latencies.percentiles(),
        ratio: None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bodies_have_the_wanted_size_and_are_json() {
        assert_eq!(body(512).len(), 512);
        assert!(serde_json::from_slice::<serde_json::Value>(&body(1)).is_ok());
    }
}
