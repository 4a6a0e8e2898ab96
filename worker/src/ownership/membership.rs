//! Membership of a worker: it renews its presence, reads those of the others, and assigns actions to its shards.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use parking_lot::{Mutex, MutexGuard};
use tokio::{
    sync::watch,
    time::{Instant, MissedTickBehavior},
};
use tokio_util::sync::CancellationToken;
use weft_nats::leases::Write;
use weft_proto::ids::ShardId;

use super::{
    Bucket, ClusterView, Holder, Presence,
    assignment::{AssignmentPolicy, ShardAction},
    boottime,
    bucket::worker_key,
    sole_process::{Identity, PresenceAction},
};

/// Reads per time to live of a key: two may fail, and a shard that becomes free does not wait long.
const LOOKS: u32 = 4;
/// Tries to write the presence key per read, where a replica that lags has returned an earlier revision of it.
const WRITES: u32 = 3;
/// How long a shard with a permanent fault is declined. An operator repairs it and restarts the worker; until then each try
/// would interrupt the shard on the worker that can own it.
const DECLINED: Duration = Duration::from_secs(600);

/// The action on a shard, or why it is unknown.
pub type Assignment = Result<ShardAction, String>;

/// Shards that this worker cannot own for now. Clones share them.
#[derive(Debug, Clone, Default)]
pub struct DeclinedShards(Arc<Mutex<BTreeMap<ShardId, Instant>>>);

impl DeclinedShards {
    /// Declines a shard for ten minutes.
    pub fn add(&self, shard: ShardId) {
        self.lock().insert(shard, Instant::now() + DECLINED);
    }

    fn presence(&self, incarnation: String) -> Presence {
        let mut declined = self.lock();
        declined.retain(|_, until| Instant::now() < *until);
        Presence { incarnation, declines: declined.keys().map(|shard| shard.0).collect() }
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<ShardId, Instant>> {
        self.0.lock()
    }
}

/// The membership of one process of a worker.
#[derive(Debug)]
pub struct Membership {
    bucket: Bucket,
    me: Holder,
    identity: Identity,
    /// Another process with this worker's id runs.
    is_twin: bool,
    policy: AssignmentPolicy,
    declined: DeclinedShards,
    shards: BTreeMap<ShardId, watch::Sender<Assignment>>,
}

impl Membership {
    /// The membership of the process `me`, in a log with shards 0 to `shards`.
    pub fn new(bucket: Bucket, me: Holder, shards: u32, declined: DeclinedShards) -> Self {
        // For as long as a worker that has stopped is still seen.
        let policy = AssignmentPolicy::new(me.worker.clone(), shards, bucket.ttl());
        let identity = Identity::new(me.clone(), bucket.ttl());
        let starting = || watch::Sender::new(Err("starting".to_owned()));
        let shards = (0..shards).map(|shard| (ShardId(shard), starting())).collect();
        Self { bucket, me, identity, is_twin: false, policy, declined, shards }
    }

    /// The assignment of each shard, as it changes.
    pub fn assignments(&self) -> BTreeMap<ShardId, watch::Receiver<Assignment>> {
        self.shards.iter().map(|(shard, sender)| (*shard, sender.subscribe())).collect()
    }

    /// Renews the presence until `drain`; then deletes it, so that the others take its shards at once.
    pub async fn run(mut self, drain: CancellationToken) {
        let mut looks = tokio::time::interval(self.bucket.ttl() / LOOKS);
        looks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                () = drain.cancelled() => return self.leave().await,
                _ = looks.tick() => {}
            }
            // Not cancelled by the drain: a presence that is being written would follow its deletion.
            if let Err(problem) = self.look().await {
                tracing::debug!(problem, "reading the leases failed");
                for shard in self.shards.values() {
                    shard.send_modify(|assignment| *assignment = Err(format!("lease: {problem}")));
                }
            }
        }
    }

    async fn look(&mut self) -> Result<(), String> {
        for _ in 0..WRITES {
            let seen_at = boottime();
            let looked = tokio::time::timeout(self.bucket.ttl(), self.bucket.look()).await;
            let mut view = looked.map_err(|_| "no answer".to_owned())??;
            let expected = match self.identity.next_action(&view, seen_at) {
                PresenceAction::Write { expected } => expected,
                PresenceAction::Wait { other, alive } => return Err(self.wait_for(&other, alive)),
            };
            if let Some(presence) = self.write_presence(expected, seen_at).await? {
                self.set_twin(false);
                view.workers.insert(self.me.worker.clone(), presence);
                self.decide(&view, seen_at);
                return Ok(());
            }
        }
        Err("another process writes the presence of this worker".into())
    }

    /// Renews the presence key, if `expected` is its newest revision.
    async fn write_presence(&mut self, expected: u64, now: Duration) -> Result<Option<Presence>, String> {
        let presence = self.declined.presence(self.me.incarnation.clone());
        let payload = serde_json::to_vec(&presence).map_err(|error| error.to_string())?;
        let key = worker_key(&self.me.worker);
        let written = self.bucket.write(&key, Write::Put(payload.into()), expected, self.bucket.ttl()).await?;
        Ok(written.map(|revision| {
            self.identity.wrote(revision, now);
            presence
        }))
    }

    fn decide(&mut self, view: &ClusterView, seen_at: Duration) {
        for (shard, action) in self.policy.decide(view, seen_at) {
            if let Some(shard) = self.shards.get(&shard) {
                shard.send_modify(|assignment| *assignment = Ok(action));
            }
        }
    }

    /// Why this process owns nothing while another one with its id may run.
    fn wait_for(&mut self, other: &str, alive: bool) -> String {
        let Holder { worker, incarnation } = &self.me;
        if !alive {
            return format!("worker id {worker} was used by process {other}, which may still run; waiting for its end");
        }
        let problem = format!(
            "another process ({other}) uses the worker id {worker} of this one ({incarnation}): one of them runs on a \
             copy of the other's data folder; stop one, and remove worker.id from its folder before it starts again"
        );
        if !self.is_twin {
            tracing::error!(%worker, incarnation, other, "{problem}");
        }
        self.set_twin(true);
        problem
    }

    fn set_twin(&mut self, is_twin: bool) {
        self.is_twin = is_twin;
        metrics::gauge!(crate::metrics::ID_CONFLICT).set(f64::from(u8::from(is_twin)));
    }

    async fn leave(self) {
        let written = self.identity.written();
        if written == 0 {
            return;
        }
        let key = worker_key(&self.me.worker);
        // If another process with this id has written since, the key is that one's.
        let left = self.bucket.write(&key, Write::Delete, written, self.bucket.ttl());
        if let Err(problem) = left.await {
            tracing::debug!(problem, "deleting the presence failed; it will expire");
        }
    }
}
