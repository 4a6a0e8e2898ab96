//! Injects the faults of the schedule and ends them.

use std::{path::PathBuf, sync::Arc, time::Duration};

use parking_lot::Mutex;
use rustix::process::Signal;

use crate::{
    catalog::Catalog,
    clock::Clock,
    disk, events_copy,
    mesh::{Mesh, store},
    plan::{Action, CatalogChange, Node, Planned},
    record::{Fault, Millis, ProcessFailure},
    snapshot::Snapshot,
    wall_clock::WallClocks,
};

/// Everything that a fault can affect.
#[derive(Debug)]
pub struct Injector {
    /// Processes and network.
    pub mesh: Mesh,
    /// Catalog.
    pub catalog: Catalog,
    /// Wall clocks, where they can be stepped.
    pub clocks: Option<WallClocks>,
    /// The run's clock.
    pub clock: Clock,
    faults: Mutex<Vec<Fault>>,
    failures: Mutex<Vec<ProcessFailure>>,
    /// Of EVENTS in the middle of the run, for the last phase.
    pub snapshots: tokio::sync::Mutex<Vec<Snapshot>>,
}

impl Injector {
    /// Nothing is injected yet.
    pub fn new(mesh: Mesh, catalog: Catalog, clocks: Option<WallClocks>, clock: Clock) -> Arc<Self> {
        Arc::new(Self {
            mesh,
            catalog,
            clocks,
            clock,
            faults: Mutex::default(),
            failures: Mutex::default(),
            snapshots: tokio::sync::Mutex::default(),
        })
    }

    /// Carries out a schedule; returns when every fault has ended.
    pub async fn run(self: &Arc<Self>, plan: Vec<Planned>) {
        let mut tasks = tokio::task::JoinSet::new();
        for planned in plan {
            let injector = Arc::clone(self);
            tasks.spawn(async move { injector.inject(planned).await });
        }
        while let Some(ended) = tasks.join_next().await {
            if let Err(error) = ended {
                self.fail("driver", format!("a fault's task broke off: {error}"));
            }
        }
    }

    /// The faults so far.
    pub fn faults(&self) -> Vec<Fault> {
        self.faults.lock().clone()
    }

    /// The failures of processes so far.
    pub fn failures(&self) -> Vec<ProcessFailure> {
        self.failures.lock().clone()
    }

    /// Records a failure.
    pub fn fail(&self, process: &str, what: String) {
        let failure = ProcessFailure { process: process.to_owned(), at: self.clock.now(), what };
        self.failures.lock().push(failure);
    }

    /// Records processes that have ended without being asked to.
    pub async fn look_for_ends(&self) {
        for (node, process) in self.mesh.processes() {
            if let Some(end) = process.lock().await.ended_by_itself() {
                self.fail(&node.to_string(), end);
            }
        }
    }

    async fn inject(&self, planned: Planned) {
        self.clock.sleep_until(planned.at).await;
        let from = self.clock.now();
        let number = {
            let mut faults = self.faults.lock();
            let (kind, what) = (planned.action.kind(), planned.action.to_string());
            // In progress: it disturbs everything until it is over.
            faults.push(Fault { kind, what, from, until: Millis::MAX / 2 });
            faults.len() - 1
        };
        if let Err(problem) = self.act(&planned.action, Duration::from_millis(planned.lasts)).await {
            self.fail(&planned.action.to_string(), format!("{problem:#}"));
        }
        self.faults.lock()[number].until = self.clock.now();
    }

    async fn act(&self, action: &Action, lasts: Duration) -> anyhow::Result<()> {
        let pause = || tokio::time::sleep(lasts);
        match action {
            Action::Kill(node) => {
                let mut process = self.mesh.process(*node).lock().await;
                process.kill().await?;
                pause().await;
                process.start()
            }
            Action::Stop(node) => {
                let process = self.mesh.process(*node).lock().await;
                process.signal(Signal::STOP)?;
                pause().await;
                process.signal(Signal::CONT)
            }
            Action::Restart(node) => self.restart(*node).await,
            Action::Cut(cut) => {
                self.mesh.network.cut(*cut)?;
                pause().await;
                self.mesh.network.heal(*cut)
            }
            Action::Delay(server, millis) => {
                self.mesh.network.delay(*server, Duration::from_millis(*millis))?;
                pause().await;
                self.mesh.network.delay(*server, Duration::ZERO)
            }
            Action::Clock { node, seconds, stays } => {
                let Some(clocks) = &self.clocks else { return Ok(()) };
                clocks.step(*node, *seconds)?;
                pause().await;
                if *stays { Ok(()) } else { clocks.step(*node, 0) }
            }
            Action::Catalog(change) => self.change(change, lasts).await,
            Action::Disk(server) => self.fill(*server, lasts).await,
            Action::Copy { snapshot: true } => events_copy::take_snapshots(&self.mesh, &self.snapshots).await,
            Action::Copy { snapshot: false } => {
                let mut server = self.mesh.process(Node::Server(0)).lock().await;
                server.terminate().await.ok();
                events_copy::copy_events(&self.mesh.layout.folder)?;
                server.start()
            }
        }
    }

    async fn restart(&self, node: Node) -> anyhow::Result<()> {
        let mut process = self.mesh.process(node).lock().await;
        let ended = process.terminate().await;
        process.start()?;
        // The contract speaks of the roles; nats-server's own exit code is its own affair.
        if matches!(node, Node::Server(_)) { Ok(()) } else { ended }
    }

    async fn change(&self, change: &CatalogChange, lasts: Duration) -> anyhow::Result<()> {
        match change {
            CatalogChange::Filter(types) => self.catalog.filter(types).await,
            CatalogChange::Pause => {
                self.catalog.pause(true).await?;
                tokio::time::sleep(lasts).await;
                self.catalog.pause(false).await
            }
            CatalogChange::Recreate => {
                self.catalog.delete().await?;
                tokio::time::sleep(lasts).await;
                self.catalog.recreate().await
            }
        }
    }

    /// The server does not recover from a full disk without a restart; this makes room and restarts it.
    async fn fill(&self, server: usize, lasts: Duration) -> anyhow::Result<()> {
        let store: PathBuf = store(&self.mesh.layout.folder, server);
        disk::fill(&store)?;
        tokio::time::sleep(lasts).await;
        disk::make_room(&store)?;
        self.restart(Node::Server(server)).await
    }
}
