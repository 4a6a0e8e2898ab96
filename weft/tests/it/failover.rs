//! Two workers on eight shards under load, of which one after the other is killed or put to sleep.
//!
//! `WEFT_SOAK_KILLS` says how often, `WEFT_SOAK_SEED` by which dice; the seed is printed.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Mutex,
    time::Duration,
};

use prost::Message as _;
use rand::{RngExt as _, SeedableRng as _, rngs::StdRng};
use rustix::process::Signal;
use weft_nats::{connect::Connection, direct, subject::Layout};
use weft_proto::{
    ids::{EventId, StreamSeq},
    internal::{self, OutcomeKind, outcome_record::Record},
};
use weft_services::{
    mesh::{RoleProcess, Wiring},
    receiver::{Answer, Arrival},
};
use weft_testkit::eventually;
use weft_worker::ownership::{Bucket, LeaseState, WorkerId};

use crate::{
    load::Load,
    mesh::{Mesh, PATIENCE},
    order,
};

const SHARDS: u32 = 8;
const WORKERS: usize = 2;
const WORKFLOWS: usize = 200;
/// Between two events of a workflow: some hundred a second in all.
const PAUSE: Duration = Duration::from_millis(500);
/// Kills in the ordinary run.
const KILLS: usize = 3;
/// Events that are accepted between two kills.
const BETWEEN: usize = 300;

/// A fault of a worker.
#[derive(Debug, Clone, Copy)]
enum Fault {
    /// Killed and started again at once: it retakes its leases.
    Restart,
    /// Killed, and started again when the other has taken everything over.
    TakeOver,
    /// Killed together with nats-server; both are started again.
    WithServer,
    /// Stopped past its lease, and continued.
    Sleep,
}

/// Each is injected in turn; the sleep is no kill.
const FAULTS: [Fault; 4] = [Fault::TakeOver, Fault::Sleep, Fault::Restart, Fault::WithServer];

/// Answers of which a fifth is a failure, and some are slow, so that there is always something in flight.
fn flaky_receiver(seed: u64) -> impl Fn(&Arrival) -> Answer + Send + Sync {
    let rng = Mutex::new(StdRng::seed_from_u64(seed));
    move |_| {
        let mut rng = rng.lock().unwrap();
        let status = if rng.random_bool(0.2) { 500 } else { 200 };
        let delay = if rng.random_bool(0.1) { Duration::from_millis(rng.random_range(0..100)) } else { Duration::ZERO };
        Answer { status, delay }
    }
}

/// The mesh, its second worker, and a look at the leases.
struct Scene {
    mesh: Mesh,
    second: RoleProcess,
    connection: Connection,
    ids: [WorkerId; WORKERS],
}

impl Scene {
    async fn start(seed: u64) -> Self {
        // Enough retries that nothing becomes a dead letter: with a fifth failing, not in the life of the universe.
        let retry = r#"{ max_retries = 50, base = "20ms", factor = 2.0, max = "500ms" }"#;
        let wiring = Wiring { retry: retry.into(), ..Wiring::new() };
        let mesh = Mesh::sharded(SHARDS, wiring, flaky_receiver(seed)).await;
        let second = mesh.another("worker", "second").await;
        let connection = mesh.server.connection("judge").await;
        let ids = ["worker", "second"].map(|instance| mesh.worker_id(instance));
        Self { mesh, second, connection, ids }
    }

    fn worker(&mut self, number: usize) -> &mut RoleProcess {
        if number == 0 { &mut self.mesh.worker } else { &mut self.second }
    }

    /// How many leases each worker holds.
    async fn held(&self) -> Result<[usize; WORKERS], String> {
        let view = Bucket::new(self.connection.clone(), Duration::from_secs(3)).look().await?;
        let holds =
            |id: &WorkerId, lease: &LeaseState| lease.holder.as_ref().is_some_and(|holder| holder.worker == *id);
        let held_by = |id: &WorkerId| view.leases.values().filter(|lease| holds(id, lease)).count();
        Ok(self.ids.each_ref().map(held_by))
    }

    /// Waits until the leases are held as wanted.
    async fn until_held(&self, wanted: [usize; WORKERS]) {
        if !eventually(PATIENCE, async || self.held().await == Ok(wanted)).await {
            panic!("leases are not held {wanted:?}: {:?}", self.held().await);
        }
    }

    /// Waits until a worker has something to lose.
    async fn until_owner(&self, worker: usize) {
        let owns = async || self.held().await.is_ok_and(|held| held[worker] > 0);
        assert!(eventually(PATIENCE, owns).await, "worker {worker} is given nothing");
    }

    async fn inject(&mut self, fault: Fault, target: usize) {
        let mut others = [SHARDS as usize; WORKERS];
        others[target] = 0;
        match fault {
            Fault::Restart => self.worker(target).restart().await.unwrap(),
            Fault::TakeOver => {
                self.worker(target).kill().await.unwrap();
                self.until_held(others).await;
                self.worker(target).restart().await.unwrap();
            }
            Fault::WithServer => {
                self.mesh.server.kill();
                self.worker(target).kill().await.unwrap();
                self.mesh.server.restart().await;
                self.worker(target).restart().await.unwrap();
            }
            Fault::Sleep => {
                self.worker(target).process().signal(Signal::STOP);
                self.until_held(others).await;
                self.worker(target).process().signal(Signal::CONT);
            }
        }
    }

    /// Waits until every workflow's last event has been taken.
    async fn until_taken(&self, events: &BTreeMap<String, u64>) {
        let (mut seen, mut missing) = (0, events.len());
        let mut last = BTreeMap::<String, u64>::new();
        let taken = self.mesh.receiver.until(2 * PATIENCE, |arrivals| {
            for arrival in &arrivals[seen..] {
                let last = last.entry(arrival.workflow_id.clone()).or_default();
                if arrival.status == 200 && arrival.sequence_number > *last {
                    *last = arrival.sequence_number;
                    missing -= usize::from(events.get(&arrival.workflow_id) == Some(last));
                }
            }
            seen = arrivals.len();
            missing == 0
        });
        assert!(taken.await, "not every workflow comes to its end");
    }

    /// Waits until every event has its outcome: what a killed owner had delivered and not committed comes again first.
    async fn until_settled(&self, events: &BTreeMap<String, u64>) {
        let all = events.values().sum::<u64>();
        let have_all = async || settled(&self.connection).await.len() as u64 == all;
        assert!(eventually(2 * PATIENCE, have_all).await, "not every event gets an outcome");
    }
}

/// The arrivals that a receiver accepts if it ignores requests of earlier owners of a workflow's shard.
fn of_newest_owner(arrivals: &[Arrival]) -> Vec<Arrival> {
    let mut newest = BTreeMap::<&str, u64>::new();
    let accepted = arrivals.iter().filter(|arrival| {
        let newest = newest.entry(&arrival.workflow_id).or_default();
        *newest = arrival.epoch.max(*newest);
        arrival.epoch == *newest
    });
    accepted.cloned().collect()
}

/// P3 for a receiver that knows nothing of owners: what it sees for the first time is always the next.
fn assert_first_arrivals_in_order(arrivals: &[Arrival], events: &BTreeMap<String, u64>) {
    let mut seen = BTreeMap::<&str, u64>::new();
    for arrival in arrivals {
        let last = seen.entry(&arrival.workflow_id).or_default();
        let (workflow, number) = (&arrival.workflow_id, arrival.sequence_number);
        assert!(number <= *last + 1, "{workflow} #{number} came first after #{last}");
        *last = number.max(*last);
    }
    assert!(seen.into_iter().eq(events.iter().map(|(workflow, count)| (workflow.as_str(), *count))));
}

/// P5: each event has one final outcome, and is delivered. The epoch of the commit that says so, by event id.
async fn settled(connection: &Connection) -> BTreeMap<String, u64> {
    let layout = Layout::new(SHARDS);
    let mut settled = BTreeMap::new();
    for shard in layout.all() {
        let (stream, subject) = (layout.outcomes_stream(shard), layout.outcomes_subject(shard));
        let mut from = StreamSeq(1);
        loop {
            let page = direct::range(connection, &stream, from, &subject, 500, 8 << 20).await.unwrap();
            let Some(last) = page.last() else { break };
            from = last.seq.next();
            for message in &page {
                let record = internal::OutcomeRecord::decode(message.payload.clone()).unwrap().record;
                let Some(Record::Commit(commit)) = record else { continue };
                for outcome in &commit.outcomes {
                    assert_eq!(outcome.kind(), OutcomeKind::Delivered, "{outcome:?}");
                    let event = EventId::from_slice(&outcome.event_id).unwrap().to_string();
                    let before = settled.insert(event, commit.epoch);
                    assert_eq!(before, None, "P5: a second outcome: {outcome:?}");
                }
            }
        }
    }
    settled
}

/// P1, P3, P5: workers are killed with -9, alone and together with nats-server, and put to sleep past their leases; every
/// workflow arrives whole and in order, and only what no owner had committed comes again.
#[tokio::test(flavor = "multi_thread")]
async fn killed_and_paused_workers_lose_and_reorder_nothing() {
    let number = |name: &str| std::env::var(name).ok().map(|text| text.parse::<u64>().expect("a number"));
    let kills = number("WEFT_SOAK_KILLS").map_or(KILLS, |kills| kills as usize);
    let seed = number("WEFT_SOAK_SEED").unwrap_or_else(|| u64::from(rand::random::<u32>()));
    eprintln!("{kills} kills, WEFT_SOAK_SEED={seed}");
    let mut rng = StdRng::seed_from_u64(seed);
    let mut scene = Scene::start(seed).await;
    let mut load = Load::steady(&scene.mesh, WORKFLOWS, PAUSE);
    // The second came later: half of what the first had was handed over.
    scene.until_held([SHARDS as usize / WORKERS; WORKERS]).await;
    let mut injected = 0;
    for fault in FAULTS.into_iter().cycle() {
        load.until_accepted(load.accepted() + BETWEEN).await;
        let target = rng.random_range(0..WORKERS);
        scene.until_owner(target).await;
        eprintln!("{fault:?} of worker {target} after {} events", load.accepted());
        scene.inject(fault, target).await;
        injected += usize::from(!matches!(fault, Fault::Sleep));
        if injected >= kills {
            break;
        }
    }
    load.stop();
    let events = load.finish().await;
    scene.until_taken(&events).await;
    scene.until_settled(&events).await;
    scene.until_held([SHARDS as usize / WORKERS; WORKERS]).await;
    for worker in 0..WORKERS {
        assert_eq!(scene.worker(worker).stop().await.unwrap().code(), Some(0));
    }

    let arrivals = scene.mesh.receiver.arrivals();
    eprintln!("{} events in {} arrivals", events.values().sum::<u64>(), arrivals.len());
    assert_first_arrivals_in_order(&arrivals, &events);
    order::check(&of_newest_owner(&arrivals), &events).unwrap();
    let settled = settled(&scene.connection).await;
    assert_eq!(settled.len() as u64, events.values().sum::<u64>());
    let arrived: BTreeSet<&str> = arrivals.iter().map(|arrival| arrival.event_id.as_str()).collect();
    assert!(settled.keys().map(String::as_str).eq(arrived));
    for arrival in &arrivals {
        let committed = settled[&arrival.event_id];
        assert!(arrival.epoch <= committed, "what epoch {committed} had committed came again: {arrival:?}");
    }
}
