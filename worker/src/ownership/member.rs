//! A worker among the others: says that it lives, looks who else does, and tells its shards what to do.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use bytes::Bytes;
use tokio::{
    sync::watch,
    time::{Instant, MissedTickBehavior},
};
use tokio_util::sync::CancellationToken;
use weft_proto::ids::ShardId;

use super::{
    Bucket, Presence, WorkerId, boottime,
    bucket::{Write, worker_key},
    duty::{Duties, Duty},
};

/// Looks in a key's life: two may fail, and a shard that becomes free does not wait long.
const LOOKS: u32 = 4;
/// For how long a shard is declined whose fault does not pass by itself. An operator mends that and starts the worker
/// again; until then each try interrupts the shard where it is well.
const DECLINED: Duration = Duration::from_secs(600);

/// What a shard is told: its duty, or why there is none to be known.
pub type Told = Result<Duty, String>;

/// Shards that this worker cannot own for now. Cheap to clone.
#[derive(Debug, Clone, Default)]
pub struct Declined(Arc<Mutex<BTreeMap<ShardId, Instant>>>);

impl Declined {
    /// Leaves a shard to others, for a while.
    pub fn add(&self, shard: ShardId) {
        self.lock().insert(shard, Instant::now() + DECLINED);
    }

    fn presence(&self) -> Presence {
        let mut declined = self.lock();
        declined.retain(|_, until| Instant::now() < *until);
        Presence { declines: declined.keys().map(|shard| shard.0).collect() }
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, BTreeMap<ShardId, Instant>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// One worker of the mesh.
#[derive(Debug)]
pub struct Member {
    bucket: Bucket,
    me: WorkerId,
    duties: Duties,
    declined: Declined,
    shards: BTreeMap<ShardId, watch::Sender<Told>>,
}

impl Member {
    /// The worker `me` of a log with shards 0 to `shards`, and what each shard is told.
    pub fn new(bucket: Bucket, me: WorkerId, shards: u32, declined: Declined) -> Self {
        // As long as a worker that has gone is still seen.
        let duties = Duties::new(me.clone(), shards, bucket.ttl());
        let starting = || watch::Sender::new(Err("starting".to_owned()));
        let shards = (0..shards).map(|shard| (ShardId(shard), starting())).collect();
        Self { bucket, me, duties, declined, shards }
    }

    /// What a shard is told, look after look.
    pub fn told(&self) -> BTreeMap<ShardId, watch::Receiver<Told>> {
        self.shards.iter().map(|(shard, sender)| (*shard, sender.subscribe())).collect()
    }

    /// Lives until `drain`; then the others are told at once that they may have what it gives back.
    pub async fn run(mut self, drain: CancellationToken) {
        let mut looks = tokio::time::interval(self.bucket.ttl() / LOOKS);
        looks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                () = drain.cancelled() => return self.leave().await,
                _ = looks.tick() => {}
            }
            // Not raced with the drain: a presence that is on its way would come after its removal.
            if let Err(problem) = self.look().await {
                tracing::debug!(problem, "leases cannot be looked at");
                for shard in self.shards.values() {
                    shard.send_modify(|told| *told = Err(format!("lease: {problem}")));
                }
            }
        }
    }

    async fn look(&mut self) -> Result<(), String> {
        let presence = self.declined.presence();
        let payload = serde_json::to_vec(&presence).map_err(|error| error.to_string())?;
        self.bucket.write(&worker_key(&self.me), Write::Put, payload.into(), None, self.bucket.ttl()).await?;
        let seen_at = boottime();
        let looked = tokio::time::timeout(self.bucket.ttl(), self.bucket.look()).await;
        let mut roster = looked.map_err(|_| "no answer".to_owned())??;
        // What a replica that lags behind does not know yet.
        roster.workers.insert(self.me.clone(), presence);
        for (shard, duty) in self.duties.decide(&roster, seen_at) {
            if let Some(shard) = self.shards.get(&shard) {
                shard.send_modify(|told| *told = Ok(duty));
            }
        }
        Ok(())
    }

    async fn leave(self) {
        let key = worker_key(&self.me);
        let left = self.bucket.write(&key, Write::Delete, Bytes::new(), None, self.bucket.ttl());
        if let Err(problem) = left.await {
            tracing::debug!(problem, "others find out by themselves that this worker has left");
        }
    }
}
