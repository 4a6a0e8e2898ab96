//! Cost of thousands of subscriptions: a worker's memory and start, and the admin's creating and listing of them.
//!
//! Each takes other types over HTTP, and none of them ever has an event; one more takes everything. The time of a worker
//! is that from its start to the outcome of one event, first without a file, where it opens all subscriptions, then with one.

use std::time::{Duration, Instant};

use anyhow::Context as _;
use serde::Serialize;
use weft_proto::v1;

use super::{Aim, Bench, discard, lines, outcomes::Outcomes, pid_of};
use crate::{args::OutputArgs, cpu, disk::Disk, memory::Memory, preload::Preload};
use weft_services::{
    command::{
        admin::AdminClient,
        output::{self, Row},
    },
    failure::Failure,
    mesh::RoleProcess,
};

/// Maximum additional memory of a worker, in MiB.
const MIB_MAX: f64 = 150.0;
/// Maximum time of a worker's start, in seconds.
const SECONDS_MAX: f64 = 5.0;
/// How long a role may take to be ready.
const READY_PATIENCE: Duration = Duration::from_secs(120);
/// Subscriptions that are created one by one.
const SINGLES: usize = 20;
/// Subscriptions of a page.
const PAGE: u32 = 500;
/// The admin's token.
const TOKEN: &str = "weft_bootstrap_of-a-bench-on-a-separate-log";
const SECRET: &str = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw";

/// `weft bench worker subscriptions`.
#[derive(Debug, clap::Args)]
pub struct SubscriptionsArgs {
    /// Subscriptions; also measured with none and with a quarter of them
    #[arg(long, default_value_t = 10_000, value_parser = clap::value_parser!(u32).range(4..))]
    subscriptions: u32,
    #[command(flatten)]
    output: OutputArgs,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Phase {
    subscriptions: u32,
    /// Time to write them from one file, in seconds.
    apply_seconds: f64,
    first_start_seconds: f64,
    start_seconds: f64,
    /// CPU time of the second start, in seconds.
    start_cpu_seconds: f64,
    #[serde(flatten)]
    worker: Memory,
    admin_ready_seconds: f64,
    admin_mib: f64,
    list_seconds: f64,
    /// Mean time to create a single one, in milliseconds.
    create_ms: f64,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Report {
    disk: Disk,
    phases: Vec<Phase>,
    aims: Vec<Aim>,
}

impl Row for Phase {
    const HEADINGS: &'static [&'static str] = &[
        "SUBSCRIPTIONS",
        "APPLY S",
        "FIRST START S",
        "START S",
        "CPU S",
        "WORKER MIB",
        "VMHWM MIB",
        "ADMIN READY S",
        "ADMIN MIB",
        "LIST S",
        "CREATE MS",
    ];

    fn cells(&self) -> Vec<String> {
        let seconds = |value: f64| format!("{value:.2}");
        let mib = |value: f64| format!("{value:.1}");
        vec![
            self.subscriptions.to_string(),
            seconds(self.apply_seconds),
            seconds(self.first_start_seconds),
            seconds(self.start_seconds),
            seconds(self.start_cpu_seconds),
            mib(self.worker.resident_mib),
            mib(self.worker.peak_mib),
            seconds(self.admin_ready_seconds),
            mib(self.admin_mib),
            seconds(self.list_seconds),
            mib(self.create_ms),
        ]
    }
}

/// Measures and prints.
///
/// # Errors
///
/// [`Failure`]: something does not start, or the event has no outcome.
pub async fn run(args: SubscriptionsArgs) -> Result<(), Failure> {
    let folder = args.output.folder()?;
    let disk = Disk::measure(folder.path())?;
    let mut phases = Vec::new();
    for subscriptions in [0, args.subscriptions / 4, args.subscriptions] {
        let folder = folder.path().join(subscriptions.to_string());
        std::fs::create_dir_all(&folder).map_err(|error| Failure::of(&error))?;
        let bench = Bench::start(&folder).await?;
        let phase = measure(&bench, subscriptions).await;
        bench.end().await;
        phases.push(phase?);
        std::fs::remove_dir_all(&folder).map_err(|error| Failure::of(&error))?;
    }
    let (none, all) = (&phases[0], &phases[2]);
    let aims = vec![
        Aim::at_most("MiB that they cost a worker", MIB_MAX, all.worker.resident_mib - none.worker.resident_mib),
        Aim::at_most("seconds from the first start to an outcome", SECONDS_MAX, all.first_start_seconds),
        Aim::at_most("seconds from a later start to an outcome", SECONDS_MAX, all.start_seconds),
    ];
    let report = Report { disk, phases, aims };
    args.output.print(&report, || {
        let table = output::table(Phase::HEADINGS, report.phases.iter().map(Row::cells));
        format!("{}\n{table}\n{}", report.disk.line(folder.path()), lines(&report.aims))
    })
}

async fn measure(bench: &Bench, subscriptions: u32) -> anyhow::Result<Phase> {
    let started = Instant::now();
    bench.nats.configure(&config(subscriptions)).await?;
    let apply_seconds = started.elapsed().as_secs_f64();
    let mut outcomes = Outcomes::follow(&bench.nats, 2).await?;
    let preload = Preload { workflows: 1, payload: 100 };
    let (mut starts, mut cpu_seconds, mut memory) = ([0.0; 2], 0.0, None);
    for (index, seconds) in starts.iter_mut().enumerate() {
        let number = index as u64;
        preload.fill_from(&bench.nats, number, number + 1).await?;
        let started = Instant::now();
        let mut worker = bench.worker(&["bench", "discard"], "worker")?;
        outcomes.until(number + 1).await?;
        *seconds = started.elapsed().as_secs_f64();
        let pid = pid_of(&worker)?;
        cpu_seconds = cpu::seconds(pid)?;
        memory = Some(Memory::of(pid)?);
        worker.stop().await?;
    }
    let admin = Admin::start(bench).await?;
    let (admin_mib, list_seconds, create_ms) =
        (Memory::of(admin.pid)?.resident_mib, admin.list().await?, admin.create().await?);
    let admin_ready_seconds = admin.ready_seconds;
    admin.stop().await?;
    Ok(Phase {
        subscriptions,
        apply_seconds,
        first_start_seconds: starts[0],
        start_seconds: starts[1],
        start_cpu_seconds: cpu_seconds,
        worker: memory.context("a worker was measured")?,
        admin_ready_seconds,
        admin_mib,
        list_seconds,
        create_ms,
    })
}

fn config(subscriptions: u32) -> String {
    let mut text =
        format!("[[subscription]]\nname = \"bench\"\nstart = \"beginning\"\ndestination = {}\n", discard::DESTINATION);
    for number in 0..subscriptions {
        text += &subscription(&format!("s{number}"));
    }
    text
}

fn subscription(name: &str) -> String {
    format!(
        "[[subscription]]\nname = \"{name}\"\ntypes = [\"never.{name}.*\"]\nstart = \"beginning\"\n\
         destination = {{ type = \"http\", url = \"http://127.0.0.1:9/{name}\", secret = \"{SECRET}\" }}\n"
    )
}

/// An admin and a client of it.
struct Admin {
    process: RoleProcess,
    client: AdminClient,
    pid: u32,
    ready_seconds: f64,
}

impl Admin {
    async fn start(bench: &Bench) -> anyhow::Result<Self> {
        let mut env = bench.nats.environment("admin")?;
        env.push(("WEFT_ADMIN__TOKEN".into(), TOKEN.into()));
        let started = Instant::now();
        let mut process = RoleProcess::start(&bench.program, "admin", &bench.folder.join("admin"), env)?;
        process.ready_within(READY_PATIENCE).await?;
        let ready_seconds = started.elapsed().as_secs_f64();
        let address = process.variable("WEFT_ADMIN__LISTEN").context("the admin listens somewhere")?;
        let client = AdminClient::connect(format!("http://{address}"), TOKEN, None).await;
        let client = client.map_err(|failure| anyhow::anyhow!("{failure}"))?;
        let pid = pid_of(&process)?;
        Ok(Self { process, client, pid, ready_seconds })
    }

    /// Seconds to list all.
    async fn list(&self) -> anyhow::Result<f64> {
        let started = Instant::now();
        let mut page_token = String::new();
        loop {
            let request = self.client.request(v1::ListSubscriptionsRequest { page_size: PAGE, page_token });
            page_token = self.client.catalog().list_subscriptions(request).await?.into_inner().next_page_token;
            if page_token.is_empty() {
                return Ok(started.elapsed().as_secs_f64());
            }
        }
    }

    /// Milliseconds to create one.
    async fn create(&self) -> anyhow::Result<f64> {
        let started = Instant::now();
        for number in 0..SINGLES {
            let custom = v1::destination::Kind::Custom(v1::CustomDestination { name: "discard".into() });
            let subscription = v1::Subscription {
                name: format!("single{number}"),
                types: vec!["never".into()],
                destination: Some(v1::Destination { kind: Some(custom) }),
                timeout_ms: 15_000,
                concurrency: 64,
                ordered: Some(true),
                ..Default::default()
            };
            let request = v1::CreateSubscriptionRequest { subscription: Some(subscription), ..Default::default() };
            self.client.catalog().create_subscription(self.client.request(request)).await?;
        }
        Ok(started.elapsed().as_secs_f64() * 1000.0 / SINGLES as f64)
    }

    async fn stop(mut self) -> anyhow::Result<()> {
        self.process.stop().await?;
        Ok(())
    }
}
