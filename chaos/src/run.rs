//! One run, from the start of the processes to the report.

use std::{path::PathBuf, sync::Arc, time::Duration};

use anyhow::{Context as _, ensure};
use clap::ValueEnum as _;

use crate::{
    admin::Admin,
    catalog::{Catalog, SENDER_SECRET},
    clock::Clock,
    collect::Collector,
    disk::Disks,
    faults::Injector,
    judge::{self, Rule, Violation},
    mesh::{self, Layout, Mesh},
    plan::{self, Node, Planned, Settings},
    receiver::Receiver,
    record::{FaultKind, Records},
    report,
    restore::Phase,
    senders::Senders,
    settings::Args,
    wall_clock::WallClocks,
};

/// Longest time until all roles are ready, at the start and after the last fault.
const READY_PATIENCE: Duration = Duration::from_secs(90);
/// Longest time until each delivery has its 2xx, once everything is healed.
const SEND_PATIENCE: Duration = Duration::from_secs(60);
/// Longest time until each event has its outcome, after that.
const DRAIN_PATIENCE: Duration = Duration::from_secs(120);
/// Several probes of a receiver that was taken for away, which come every ten seconds.
const CURE_PATIENCE: Duration = Duration::from_secs(45);
/// Longest time until the dead letters of a subscription are redriven.
const REDRIVE_PATIENCE: Duration = Duration::from_secs(60);
/// Longest time until the admin shows it.
const HISTORY_PATIENCE: Duration = Duration::from_secs(30);

/// Runs; whether there was no violation.
pub async fn run(args: Args) -> anyhow::Result<bool> {
    let mut args = args;
    let seed = args.seed.unwrap_or_else(|| u64::from(rand::random::<u32>()));
    args.faults.sort_unstable();
    args.faults.dedup();
    let root = Root::new(&args)?;
    let folder = root.path.clone();
    let mut disks = Disks::default();
    prepare_disks(&mut args, &folder, &mut disks);
    let clocks = prepare_clocks(&mut args, &folder);
    let plan = plan::draw(&Settings {
        seed,
        servers: args.nodes,
        gateways: 2,
        workers: 2,
        length: args.seconds * 1000,
        kinds: args.faults.clone(),
    });
    println!("{}", command_line(&args, seed));
    if args.plan {
        plan.iter().for_each(|planned| println!("{planned}"));
        return Ok(true);
    }
    let layout = Layout {
        servers: args.nodes,
        shards: args.shards,
        folder,
        weft: args.bin.canonicalize().with_context(|| format!("{}; build it first", args.bin.display()))?,
        nats_server: args.nats_server().await?,
        network: args.network,
    };
    let clock = Clock::start();
    let (records, after) = drive(&args, seed, layout, clocks, plan, clock).await?;
    let mut found = judge::judge(&records);
    found.extend(after);
    print!("faults:\n{}", report::faults(&records.faults));
    print!("seen:\n{}", report::summary(&records));
    print!("{}", report::violations(&records, &found));
    let events = records.log.len();
    println!("chaos seed {seed}: {events} events, {} faults, {} violations", records.faults.len(), found.len());
    if args.keep || !found.is_empty() {
        println!("logs of the processes: {}", root.keep().display());
    }
    Ok(found.is_empty())
}

/// The command that repeats the run.
fn command_line(args: &Args, seed: u64) -> String {
    let faults: Vec<_> = args.faults.iter().map(ToString::to_string).collect();
    format!(
        "weft-chaos --nodes {} --network {} --seconds {} --seed {seed} --rate {} --shards {} --faults {}",
        args.nodes,
        args.network.to_possible_value().map(|value| value.get_name().to_owned()).unwrap_or_default(),
        args.seconds,
        args.rate,
        args.shards,
        faults.join(",")
    )
}

/// Drops the fault `disk` where stores cannot have separate disks.
fn prepare_disks(args: &mut Args, folder: &std::path::Path, disks: &mut Disks) {
    if args.plan || !args.faults.contains(&FaultKind::Disk) {
        return;
    }
    for server in 0..args.nodes {
        if let Err(problem) = disks.mount(&mesh::store(folder, server)) {
            println!("no full disk: {problem:#}");
            args.faults.retain(|kind| *kind != FaultKind::Disk);
            return;
        }
    }
}

/// Where the library cannot be compiled, clocks are not stepped.
fn prepare_clocks(args: &mut Args, folder: &std::path::Path) -> Option<WallClocks> {
    if args.plan || !args.faults.contains(&FaultKind::Clock) {
        return None;
    }
    let compiled = WallClocks::compile(folder);
    if let Err(problem) = &compiled {
        println!("no steps of the clock: {problem:#}");
        args.faults.retain(|kind| *kind != FaultKind::Clock);
    }
    compiled.ok()
}

/// The folder of a run; removed in the end unless it is kept.
struct Root {
    path: PathBuf,
    temporary: Option<tempfile::TempDir>,
}

impl Root {
    fn new(args: &Args) -> anyhow::Result<Self> {
        if let Some(path) = &args.folder {
            std::fs::create_dir_all(path)?;
            return Ok(Self { path: path.canonicalize()?, temporary: None });
        }
        let temporary = tempfile::Builder::new().prefix("weft-chaos-").tempdir()?;
        Ok(Self { path: temporary.path().to_owned(), temporary: Some(temporary) })
    }

    fn keep(self) -> PathBuf {
        if let Some(temporary) = self.temporary {
            return temporary.keep();
        }
        self.path
    }
}

async fn drive(
    args: &Args,
    seed: u64,
    layout: Layout,
    clocks: Option<WallClocks>,
    plan: Vec<Planned>,
    clock: Clock,
) -> anyhow::Result<(Records, Vec<Violation>)> {
    let shards = layout.shards;
    let mesh = Mesh::prepare(layout, clocks.as_ref()).await?;
    mesh.start().await?;
    mesh.ready(READY_PATIENCE).await.context("the mesh does not start")?;
    let admin = Admin::new(mesh.network.listeners(Node::Admin).api)?;
    let receiver = Receiver::start(mesh.network.driver(), seed, clock).await?;
    let catalog = Catalog::create(admin.clone(), receiver.address, clock).await?;
    let gateways = (0..2).map(|number| mesh.network.listeners(Node::Gateway(number)).api).collect();
    let senders = Senders::new(gateways, SENDER_SECRET, seed, clock)?;
    let servers = mesh.servers();
    let injector = Injector::new(mesh, catalog, clocks, clock);

    if !injector.mesh.network.can_delay() && args.faults.contains(&FaultKind::Delay) {
        println!("no delays: the kernel has no netem; --network proxies can delay");
    }
    // The schedule counts from the first delivery.
    let offset = clock.now();
    let possible = |planned: &Planned| injector.mesh.network.can_delay() || planned.action.kind() != FaultKind::Delay;
    let plan = plan.into_iter().filter(possible).map(|planned| Planned { at: planned.at + offset, ..planned });
    let plan: Vec<_> = plan.collect();
    println!("started after {offset} ms");
    tokio::join!(senders.send(args.rate, offset + args.seconds * 1000), injector.run(plan));
    receiver.heal();
    injector.look_for_ends().await;
    println!("healed at {} ms; {} submissions so far", clock.now(), senders.count());
    if let Err(problem) = injector.mesh.ready(READY_PATIENCE).await {
        injector.fail("mesh", format!("not ready after the last fault: {problem:#}"));
    }
    senders.finish(SEND_PATIENCE).await;
    println!("all senders have ended at {} ms", clock.now());

    let mut records = Records { submissions: senders.take(), ..Records::default() };
    records.subscriptions = injector.catalog.subscriptions().await;
    let collector = Collector::connect(servers.clone(), shards, clock).await?;
    drain(&injector, &receiver, collector, &mut records, clock).await?;
    show(&injector, &admin, &mut records).await?;
    redrive(&injector, &admin, &receiver, &mut records).await?;
    injector.look_for_ends().await;
    if let Err(problem) = injector.mesh.ready(READY_PATIENCE).await {
        injector.fail("mesh", format!("not ready at the end: {problem:#}"));
    }
    records.faults = injector.faults();
    let mut after = Vec::new();
    if args.faults.contains(&FaultKind::Restore) {
        let phase = Phase { injector: &injector, senders: &senders, receiver: &receiver, servers, rate: args.rate };
        match phase.run(&records).await {
            Ok(found) => after = found,
            Err(problem) => injector.fail("restore", format!("{problem:#}")),
        }
    }
    for role in mesh::roles() {
        if let Err(problem) = injector.mesh.process(role).lock().await.terminate().await {
            injector.fail(&role.to_string(), format!("{problem:#}"));
        }
    }
    records.failures = injector.failures();
    injector.mesh.end().await;
    Ok((records, after))
}

/// Waits until each event has its outcomes.
async fn drain(
    injector: &Arc<Injector>,
    receiver: &Receiver,
    mut collector: Collector,
    records: &mut Records,
    clock: Clock,
) -> anyhow::Result<()> {
    let mut deadline = tokio::time::Instant::now() + DRAIN_PATIENCE;
    let mut is_cured = false;
    loop {
        // A leader that has just been elected on a busy machine may take longer to answer.
        if let Err(problem) = collector.read().await {
            ensure!(tokio::time::Instant::now() < deadline, "the streams cannot be read: {problem:#}");
            tokio::time::sleep(Duration::from_secs(1)).await;
            continue;
        }
        records.log.clone_from(&collector.log);
        records.outcomes.clone_from(&collector.outcomes);
        records.changes.clone_from(&collector.changes);
        records.copies.clone_from(&collector.copies);
        records.arrivals = receiver.arrivals();
        records.faults = injector.faults();
        let open = judge::unsettled(records);
        if open == 0 {
            println!("drained at {} ms", clock.now());
            return Ok(());
        }
        if tokio::time::Instant::now() > deadline {
            println!("not drained at {} ms: {open} deliveries have no outcome", clock.now());
            if is_cured {
                return Ok(());
            }
            // A worker that takes over when only events are left that always fail has seen no success, and takes their receiver
            // for away, for an hour. Whether it is away is then decided by a success.
            receiver.cure();
            is_cured = true;
            deadline = tokio::time::Instant::now() + CURE_PATIENCE;
        }
        tokio::time::sleep(Duration::from_secs(1)).await;
    }
}

/// Asks the admin for every workflow and every dead letter, until it agrees or its time is over.
async fn show(injector: &Arc<Injector>, admin: &Admin, records: &mut Records) -> anyhow::Result<()> {
    let workflows: std::collections::BTreeSet<String> =
        records.log.iter().map(|event| event.workflow.clone()).collect();
    let deadline = tokio::time::Instant::now() + HISTORY_PATIENCE;
    loop {
        records.shown.clear();
        for workflow in &workflows {
            match admin.workflow(workflow).await {
                Ok(shown) => records.shown.extend(shown),
                Err(problem) => injector.fail("admin", format!("{workflow}: {problem:#}")),
            }
        }
        records.dead_letters = admin.dead_letters().await?;
        records.stats = admin.stats(judge::SOURCE).await?;
        let late = |violation: &Violation| {
            matches!(violation.rule, Rule::HistoryDiffers | Rule::StatsDiffer | Rule::DeadLetterDiffers)
        };
        if !judge::judge(records).iter().any(late) || tokio::time::Instant::now() > deadline {
            return Ok(());
        }
        tokio::time::sleep(Duration::from_secs(2)).await;
    }
}

/// Redrives the dead letters of the subscriptions that were never deleted, with receivers that take everything.
async fn redrive(
    injector: &Arc<Injector>,
    admin: &Admin,
    receiver: &Receiver,
    records: &mut Records,
) -> anyhow::Result<()> {
    receiver.cure();
    for name in ["main", "orders", "loose"] {
        match admin.redrive(name, REDRIVE_PATIENCE).await {
            Ok(last) => println!("redriven of {name}: {} of {} delivered", last.delivered, last.selected),
            Err(problem) => injector.fail("admin", format!("redrive of {name}: {problem:#}")),
        }
        records.redriven.push(name.to_owned());
    }
    let deadline = tokio::time::Instant::now() + HISTORY_PATIENCE;
    loop {
        records.arrivals = receiver.arrivals();
        records.dead_letters = admin.dead_letters().await?;
        let late = judge::judge(records).iter().any(|violation| violation.rule == Rule::NotRedriven);
        if !late || tokio::time::Instant::now() > deadline {
            return Ok(());
        }
        tokio::time::sleep(Duration::from_secs(1)).await;
    }
}
