//! Several workers on a model of the bucket, through crashes, pauses and cuts: O1 of each shard at most one worker may
//! start attempts, at any moment; O2 soon after the last fault, shards are spread evenly over those who live; O3 from
//! then on nothing moves. One worker has a twin: a process that runs on a copy of its data folder, and so has its id.

use proptest::prelude::*;
use rand::{SeedableRng as _, rngs::StdRng};

use super::*;
use crate::ownership::{
    Holder, LeaseState, Presence, attempts_until,
    sole_process::{Identity, PresenceAction},
};

const WORKERS: usize = 4;
/// Processes; the last one has the id of the first.
const PROCESSES: usize = WORKERS + 1;
const SHARDS: u32 = 8;
const STEP: Duration = Duration::from_millis(50);
const TTL: Duration = Duration::from_secs(3);
/// How much later than it says the server removes a key.
const EXPIRY_LATE_MAX_MS: u64 = 1_500;
/// How long a message may be on its way to the server.
const SENDING_MAX_MS: u64 = 300;
/// How long what is in flight may take when a shard is handed over.
const DRAIN_MAX_MS: u64 = 2_000;
/// How long it may take from the last fault until the shards are spread: keys run out, those who came are waited for, what
/// is in flight ends, the key of an earlier process is quiet for long enough, and a look for each.
const BOUND: Duration = Duration::from_secs(4 * 3 + 4);

/// A key of the bucket.
#[derive(Debug, Clone)]
struct Key<T> {
    value: Option<T>,
    revision: u64,
    ends_at: Duration,
}

#[derive(Debug, Default)]
struct Server {
    revision: u64,
    leases: BTreeMap<ShardId, Key<Holder>>,
    workers: BTreeMap<WorkerId, Key<String>>,
}

impl Server {
    /// A key that has expired leaves nothing, as in a bucket without markers of that.
    fn expire(&mut self, now: Duration) {
        self.workers.retain(|_, worker| worker.ends_at > now);
        self.leases.retain(|_, lease| lease.ends_at > now);
    }

    fn view(&self) -> ClusterView {
        let held = |lease: &Key<Holder>| LeaseState { holder: lease.value.clone(), revision: lease.revision };
        let presence =
            |key: &Key<String>| key.value.clone().map(|incarnation| Presence { incarnation, ..Presence::default() });
        ClusterView {
            workers: self.workers.iter().filter_map(|(id, key)| Some((id.clone(), presence(key)?))).collect(),
            revisions: self.workers.iter().map(|(id, key)| (id.clone(), key.revision)).collect(),
            leases: self.leases.iter().map(|(shard, lease)| (*shard, held(lease))).collect(),
        }
    }

    /// Writes a lease behind a revision.
    fn put(&mut self, shard: ShardId, value: Option<Holder>, expected: u64, ends_at: Duration) -> Option<u64> {
        if self.leases.get(&shard).map_or(0, |lease| lease.revision) != expected {
            return None;
        }
        self.revision += 1;
        self.leases.insert(shard, Key { value, revision: self.revision, ends_at });
        Some(self.revision)
    }

    /// Writes a presence behind a revision.
    fn put_presence(&mut self, of: &Holder, expected: u64, ends_at: Duration) -> Option<u64> {
        if self.workers.get(&of.worker).map_or(0, |key| key.revision) != expected {
            return None;
        }
        self.revision += 1;
        let key = Key { value: Some(of.incarnation.clone()), revision: self.revision, ends_at };
        self.workers.insert(of.worker.clone(), key);
        Some(self.revision)
    }
}

/// A lease that a worker holds.
#[derive(Debug, Clone)]
struct Holding {
    revision: u64,
    renewed_at: Duration,
    /// It is being handed over: no attempt starts, and it is given back then.
    drained_at: Option<Duration>,
}

#[derive(Debug)]
struct Worker {
    me: Holder,
    identity: Identity,
    policy: AssignmentPolicy,
    holds: BTreeMap<ShardId, Holding>,
    alive: bool,
    paused: bool,
    cut_off: bool,
    next_look: Duration,
}

impl Worker {
    fn new(number: usize) -> Self {
        let me = Holder::new(WorkerId(format!("worker-{}", number % WORKERS)));
        Self {
            policy: AssignmentPolicy::new(me.worker.clone(), SHARDS, TTL),
            identity: Identity::new(me.clone(), TTL),
            me,
            holds: BTreeMap::new(),
            alive: false,
            paused: false,
            cut_off: false,
            next_look: Duration::ZERO,
        }
    }

    fn may_attempt(&self, shard: ShardId, now: Duration) -> bool {
        self.alive
            && self
                .holds
                .get(&shard)
                .is_some_and(|holding| holding.drained_at.is_none() && now < attempts_until(holding.renewed_at, TTL))
    }
}

#[derive(Debug, Clone, Copy)]
enum Fault {
    Crash,
    Start,
    Pause,
    Resume,
    CutOff,
    Heal,
}

struct Mesh {
    now: Duration,
    rng: StdRng,
    server: Server,
    workers: Vec<Worker>,
    /// Leases that were claimed so far.
    claims: u64,
}

impl Mesh {
    fn new(seed: u64) -> Self {
        let workers = (0..PROCESSES).map(Worker::new).collect();
        let (now, rng) = (Duration::from_secs(1), StdRng::seed_from_u64(seed));
        Self { now, rng, server: Server::default(), workers, claims: 0 }
    }

    fn up_to(&mut self, milliseconds: u64) -> Duration {
        Duration::from_millis(self.rng.random_range(0..=milliseconds))
    }

    fn fault(&mut self, number: usize, fault: Fault) {
        let worker = &mut self.workers[number];
        match fault {
            Fault::Crash => worker.alive = false,
            Fault::Start if !worker.alive => {
                *worker = Worker { alive: true, next_look: self.now, ..Worker::new(number) };
            }
            Fault::Start => {}
            Fault::Pause => worker.paused = true,
            Fault::Resume => worker.paused = false,
            Fault::CutOff => worker.cut_off = true,
            Fault::Heal => worker.cut_off = false,
        }
    }

    fn run(&mut self, time: Duration) {
        let end = self.now + time;
        while self.now < end {
            self.now += STEP;
            self.server.expire(self.now);
            // In the order of arrival.
            let first = self.rng.random_range(0..PROCESSES);
            for turn in 0..PROCESSES {
                self.step((first + turn) % PROCESSES);
            }
            for shard in (0..SHARDS).map(ShardId) {
                let owners: Vec<_> = self.workers.iter().filter(|worker| worker.may_attempt(shard, self.now)).collect();
                assert!(owners.len() <= 1, "O1: {owners:?} may all attempt shard {shard} at {:?}", self.now);
            }
        }
    }

    fn step(&mut self, at: usize) {
        let Worker { alive, paused, .. } = self.workers[at];
        if !alive || paused {
            return;
        }
        // A lease that could not be renewed is given up.
        let now = self.now;
        self.workers[at].holds.retain(|_, holding| now < attempts_until(holding.renewed_at, TTL));
        if self.workers[at].cut_off {
            return;
        }
        for shard in (0..SHARDS).map(ShardId) {
            self.keep(at, shard);
        }
        if self.workers[at].next_look <= now {
            self.look(at);
        }
    }

    /// Renews what is held, or gives it back.
    fn keep(&mut self, at: usize, shard: ShardId) {
        let (sent_at, ends_at) = self.sending();
        let worker = &mut self.workers[at];
        let Some(holding) = worker.holds.get_mut(&shard) else { return };
        if holding.drained_at.is_some_and(|drained_at| drained_at <= self.now) {
            self.server.put(shard, None, holding.revision, Duration::MAX);
            worker.holds.remove(&shard);
        } else if holding.renewed_at + TTL / 3 <= self.now {
            match self.server.put(shard, Some(worker.me.clone()), holding.revision, ends_at) {
                Some(revision) => (holding.revision, holding.renewed_at) = (revision, sent_at.max(holding.renewed_at)),
                None => drop(worker.holds.remove(&shard)),
            }
        }
    }

    fn look(&mut self, at: usize) {
        let (_, ends_at) = self.sending();
        let worker = &mut self.workers[at];
        worker.next_look = self.now + TTL / 4;
        let PresenceAction::Write { expected } = worker.identity.next_action(&self.server.view(), self.now) else {
            return;
        };
        let Some(revision) = self.server.put_presence(&worker.me, expected, ends_at) else { return };
        worker.identity.wrote(revision, self.now);
        let decided = worker.policy.decide(&self.server.view(), self.now);
        for (shard, action) in decided {
            let (sent_at, ends_at) = self.sending();
            let drained_at = self.now + self.up_to(DRAIN_MAX_MS);
            let worker = &mut self.workers[at];
            match (action, worker.holds.get_mut(&shard)) {
                (ShardAction::Own { expected }, None) => {
                    if let Some(revision) = self.server.put(shard, Some(worker.me.clone()), expected, ends_at) {
                        worker.holds.insert(shard, Holding { revision, renewed_at: sent_at, drained_at: None });
                        self.claims += 1;
                    }
                }
                (ShardAction::HandOver, Some(holding)) => drop(holding.drained_at.get_or_insert(drained_at)),
                _ => {}
            }
        }
    }

    /// When a message that is stored now was sent, and when the key that it writes ends.
    fn sending(&mut self) -> (Duration, Duration) {
        let sent_at = self.now.saturating_sub(self.up_to(SENDING_MAX_MS));
        (sent_at, self.now + TTL + self.up_to(EXPIRY_LATE_MAX_MS))
    }

    fn holders(&self) -> Vec<Option<WorkerId>> {
        let holder = |shard| Some(self.server.leases.get(&ShardId(shard))?.value.as_ref()?.worker.clone());
        (0..SHARDS).map(holder).collect()
    }
}

fn faults() -> impl Strategy<Value = Vec<(u64, usize, Fault)>> {
    let fault = prop_oneof![
        2 => Just(Fault::Crash),
        4 => Just(Fault::Start),
        1 => Just(Fault::Pause),
        2 => Just(Fault::Resume),
        1 => Just(Fault::CutOff),
        2 => Just(Fault::Heal),
    ];
    prop::collection::vec((0u64..6_000, 0..PROCESSES, fault), 0..30)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]

    #[test]
    fn shards_have_one_owner_are_spread_evenly_and_stay(seed: u64, faults in faults(), live in 1u8..1 << PROCESSES) {
        let mut mesh = Mesh::new(seed);
        for (wait, worker, fault) in faults {
            mesh.run(Duration::from_millis(wait));
            mesh.fault(worker, fault);
        }
        let lives = |worker: usize| live & (1 << worker) != 0;
        for worker in 0..PROCESSES {
            mesh.fault(worker, Fault::Resume);
            mesh.fault(worker, Fault::Heal);
            mesh.fault(worker, if lives(worker) { Fault::Start } else { Fault::Crash });
        }
        mesh.run(BOUND);
        let holders = mesh.holders();
        let loads: Vec<usize> = (0..WORKERS)
            .filter(|worker| lives(*worker) || (*worker == 0 && lives(WORKERS)))
            .map(|worker| Some(mesh.workers[worker].me.worker.clone()))
            .map(|worker| holders.iter().filter(|holder| **holder == worker).count())
            .collect();
        prop_assert_eq!(loads.iter().sum::<usize>(), SHARDS as usize, "O2: {:?}", holders);
        prop_assert!(loads.iter().max().unwrap() - loads.iter().min().unwrap() <= 1, "O2: {:?}", holders);
        let claims = mesh.claims;
        mesh.run(Duration::from_secs(60));
        prop_assert_eq!(claims, mesh.claims, "O3");
    }
}

fn view(workers: &[&str], holders: &[Option<&str>]) -> ClusterView {
    let id = |name: &&str| WorkerId((*name).into());
    let held = |(shard, holder): (usize, &Option<&str>)| {
        let holder = holder.as_ref().map(|name| Holder { worker: id(name), incarnation: "earlier".into() });
        (ShardId(shard as u32), LeaseState { holder, revision: shard as u64 + 1 })
    };
    ClusterView {
        workers: workers.iter().map(|name| (id(name), Presence::default())).collect(),
        revisions: BTreeMap::new(),
        leases: holders.iter().enumerate().map(held).collect(),
    }
}

/// After a crash a worker continues with its leases at once; shards that are assigned to others it hands over
/// later.
#[test]
fn a_worker_retakes_its_own_leases_at_once() {
    let me = WorkerId("me".into());
    let mut policy = AssignmentPolicy::new(me, 2, TTL);
    let both = view(&["me", "other"], &[Some("me"), Some("me")]);
    let decided = policy.decide(&both, Duration::ZERO);
    assert_eq!(
        decided.into_values().collect::<Vec<_>>(),
        [ShardAction::Own { expected: 1 }, ShardAction::Own { expected: 2 }]
    );
    let early = policy.decide(&both, TTL - STEP);
    assert!(early.values().all(|action| *action != ShardAction::HandOver), "{early:?}");
    let later = policy.decide(&both, TTL);
    assert_eq!(later.values().filter(|action| **action == ShardAction::HandOver).count(), 1, "{later:?}");
}

/// A worker that restarts moves nothing: its wait starts from the beginning.
#[test]
fn a_worker_that_flickers_moves_nothing() {
    let mut policy = AssignmentPolicy::new(WorkerId("me".into()), 2, TTL);
    for look in 0..40 {
        let workers: &[&str] = if look % 4 == 3 { &["me"] } else { &["me", "other"] };
        let decided = policy.decide(&view(workers, &[Some("me"), Some("me")]), TTL / 4 * look);
        assert!(decided.values().all(|action| *action != ShardAction::HandOver), "look {look}: {decided:?}");
    }
}
