//! Division of the process's bounds among its shards.

use std::{sync::Arc, time::Duration};

use async_trait::async_trait;
use tokio::sync::{Semaphore, watch};
use tokio_util::sync::CancellationToken;
use weft_nats::{options::LogOptions, streams::LogSpec};
use weft_proto::{
    ids::{ShardId, WorkflowId},
    v1,
};
use weft_worker::{
    destination::{Delivery, DeliveryResult, Destination},
    ownership::{Bucket, Holder, Leases, WorkerId},
};

use crate::support::{Log, PATIENCE, Receiver, Running, spec};

const SHARDS: u32 = 8;
/// Slots of [`Running`]: a subscription alone leaves one in nine.
const CONCURRENCY: usize = 64;

/// Takes what it is given when it is let.
#[derive(Debug)]
struct Hold {
    in_flight: watch::Sender<usize>,
    let_go: Semaphore,
}

#[async_trait]
impl Destination for Hold {
    async fn deliver(&self, deliveries: &[Delivery]) -> DeliveryResult {
        self.in_flight.send_modify(|count| *count += 1);
        let let_go = self.let_go.acquire().await;
        self.in_flight.send_modify(|count| *count -= 1);
        drop(let_go);
        DeliveryResult::all(deliveries.len())
    }
}

/// A worker that owns one of eight shards uses the whole of its concurrency for that one.
#[tokio::test(flavor = "multi_thread")]
async fn the_owner_of_one_of_eight_shards_has_every_slot_for_it() {
    let log_options = LogOptions { shards: SHARDS, ..LogOptions::default() };
    let mut log = Log::of(LogSpec { log: log_options, ..spec() }).await;
    // The other seven are another worker's.
    let bucket = Bucket::new(log.connection.clone(), Duration::from_secs(15));
    let (other, release) = (Leases::new(bucket, Holder::new(WorkerId("other".into()))), CancellationToken::new());
    let mut keepers = Vec::new();
    for shard in 1..SHARDS {
        let lease = other.claim(ShardId(shard), 0).await.unwrap().unwrap();
        let (_, keeping) = lease.keep(release.clone());
        keepers.push(tokio::spawn(keeping));
    }
    let unused = Receiver::start(|_| 200).await;
    let custom = v1::destination::Kind::Custom(v1::CustomDestination { name: "hold".into() });
    let with = |subscription: &mut v1::Subscription| {
        subscription.destination = Some(v1::Destination { kind: Some(custom) });
        subscription.concurrency = 100 * SHARDS;
        subscription.starts = vec![1; SHARDS as usize];
    };
    log.subscribe_with("held", &unused, 1, with).await;
    let of_first = |workflow: &String| log.layout.shard_of(&WorkflowId::new(workflow.as_str()).unwrap()) == ShardId(0);
    let workflows: Vec<String> = (0..).map(|number| format!("w{number}")).filter(of_first).take(100).collect();
    log.events_of(100, &workflows).await;

    let hold = Arc::new(Hold { in_flight: watch::Sender::new(0), let_go: Semaphore::new(0) });
    let mut in_flight = hold.in_flight.subscribe();
    let folder = tempfile::tempdir().unwrap();
    let worker = Running::start_with(&log, folder.path(), |worker| worker.destination("hold", hold.clone()));
    let wanted = CONCURRENCY * 8 / 9;
    let filled = tokio::time::timeout(PATIENCE, in_flight.wait_for(|count| *count >= wanted)).await.is_ok();
    assert!(filled, "{} of {CONCURRENCY} places are used", *hold.in_flight.borrow());
    hold.let_go.add_permits(CONCURRENCY);
    worker.stop().await;
    assert_eq!(*hold.in_flight.borrow(), 0);
    release.cancel();
    for keeper in keepers {
        keeper.await.unwrap();
    }
}
