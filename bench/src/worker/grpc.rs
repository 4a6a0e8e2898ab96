//! Deliveries over gRPC against deliveries over HTTP: what each costs the worker, from a filled log until each event has its
//! outcome.

use serde::Serialize;
use tokio::net::TcpListener;
use tokio_util::task::AbortOnDropHandle;
use tonic::{Request, Response, Status, transport::server::TcpIncoming};
use weft_proto::v1::{
    HandleRequest, HandleResponse,
    event_handler_server::{EventHandler, EventHandlerServer},
};

use super::{
    Aim, Bench,
    delivered::{Phase, by_worker},
    lines,
};
use crate::{args::EventArgs, bare_receiver::BareReceiver, disk::Disk, preload::Preload};
use weft_services::{command::output, failure::Failure, mesh};

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
        let table = output::table(&["PHASE", "EVENTS/S", "WORKER CPU US"], report.phases.iter().map(Phase::cells));
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
    by_worker(bench, name, args.events).await
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
