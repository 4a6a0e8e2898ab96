//! Deliveries over gRPC against deliveries over HTTP: what each costs the worker, from a filled log until each event has its
//! outcome.

use std::time::Instant;

use serde::Serialize;
use tokio::net::TcpListener;
use tokio_util::task::AbortOnDropHandle;
use tonic::{Request, Response, Status, transport::server::TcpIncoming};
use weft_proto::v1::{
    HandleRequest, HandleResponse,
    event_handler_server::{EventHandler, EventHandlerServer},
};

use super::{Aim, Bench, lines, outcomes::Outcomes, pid_of};
use crate::{args::EventArgs, bare_receiver::BareReceiver, cpu, disk::Disk, preload::Preload};
use weft_services::{
    command::output::{self, Row},
    failure::Failure,
    mesh,
};

/// Maximum cost of a delivery for the worker, in deliveries over HTTP.
const RATIO_MAX: f64 = 1.5;

/// `weft bench worker grpc`.
#[derive(Debug, clap::Args)]
pub struct GrpcArgs {
    /// Deliveries of each phase
    #[arg(long, default_value_t = 60_000)]
    events: u64,
    /// Workflows that they are spread over
    #[arg(long, default_value_t = 1000, value_parser = clap::value_parser!(u64).range(1..))]
    workflows: u64,
    /// Deliveries in flight
    #[arg(long, default_value_t = 64)]
    connections: usize,
    #[command(flatten)]
    event: EventArgs,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Phase {
    name: &'static str,
    per_second: f64,
    cpu_us: f64,
}

impl Row for Phase {
    const HEADINGS: &'static [&'static str] = &["PHASE", "EVENTS/S", "WORKER CPU US"];

    fn cells(&self) -> Vec<String> {
        vec![self.name.to_owned(), format!("{:.0}", self.per_second), format!("{:.1}", self.cpu_us)]
    }
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Report {
    disk: Disk,
    payload_bytes: usize,
    phases: Vec<Phase>,
    aims: Vec<Aim>,
}

/// Measures and prints.
///
/// # Errors
///
/// [`Failure`]: something does not start, or an event did not arrive.
pub async fn run(args: GrpcArgs) -> Result<(), Failure> {
    let folder = args.event.output.folder()?;
    let disk = Disk::measure(folder.path())?;
    let phases = phases(folder.path(), &args).await?;
    let [http, grpc] = [&phases[0], &phases[1]];
    let what = "the worker's CPU for a delivery over gRPC ÷ over HTTP";
    let aims = vec![Aim::at_most(what, RATIO_MAX, grpc.cpu_us / http.cpu_us)];
    let EventArgs { payload: payload_bytes, output } = args.event;
    let report = Report { disk, payload_bytes, phases, aims };
    output.print(&report, || {
        let table = output::table(Phase::HEADINGS, report.phases.iter().map(Row::cells));
        format!("{}\n{table}\n{}", report.disk.line(folder.path()), lines(&report.aims))
    })
}

async fn phases(folder: &std::path::Path, args: &GrpcArgs) -> anyhow::Result<Vec<Phase>> {
    let receiver = BareReceiver::start(|_| 200).await?;
    let http = format!("{{ type = \"http\", url = \"{}\", secret = \"{}\" }}", receiver.url(), mesh::secret());
    let listener = TcpListener::bind(("127.0.0.1", 0)).await?;
    let grpc = format!("{{ type = \"grpc\", url = \"http://{}\" }}", listener.local_addr()?);
    let service = tonic::transport::Server::builder()
        .add_service(EventHandlerServer::new(TakesAll))
        .serve_with_incoming(TcpIncoming::from(listener).with_nodelay(Some(true)));
    let _service = AbortOnDropHandle::new(tokio::spawn(service));
    let mut phases = Vec::new();
    for (name, destination) in [("http", http), ("grpc", grpc)] {
        let folder = folder.join(name);
        std::fs::create_dir(&folder)?;
        let bench = Bench::start(&folder).await?;
        let phase = delivered(&bench, args, name, &destination).await;
        bench.end().await;
        phases.push(phase?);
    }
    Ok(phases)
}

async fn delivered(bench: &Bench, args: &GrpcArgs, name: &'static str, destination: &str) -> anyhow::Result<Phase> {
    Preload { workflows: args.workflows, payload: args.event.payload }.fill(&bench.nats, args.events).await?;
    bench.subscribe(destination, args.connections).await?;
    let mut outcomes = Outcomes::follow(&bench.nats, args.events).await?;
    let mut worker = bench.worker(&["worker"], "worker")?;
    // The worker has started, and connections are made.
    outcomes.until(args.events / 10).await?;
    let (begun, cpu_before, started) = (outcomes.tally().once, cpu::seconds(pid_of(&worker)?)?, Instant::now());
    outcomes.until(args.events).await?;
    let (elapsed, used) = (started.elapsed(), cpu::seconds(pid_of(&worker)?)? - cpu_before);
    worker.stop().await?;
    let events = (args.events - begun) as f64;
    Ok(Phase { name, per_second: events / elapsed.as_secs_f64(), cpu_us: used * 1e6 / events })
}

/// A service that takes every event.
#[derive(Debug)]
struct TakesAll;

#[tonic::async_trait]
impl EventHandler for TakesAll {
    async fn handle(&self, _: Request<HandleRequest>) -> Result<Response<HandleResponse>, Status> {
        Ok(Response::new(HandleResponse { taken: None }))
    }
}
