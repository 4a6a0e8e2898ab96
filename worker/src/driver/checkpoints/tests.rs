//! Owners that write at the same time, stop at any point, and continue after they have lost the shard.

use rand::{RngExt as _, SeedableRng as _, rngs::StdRng};
use weft_catalog::Catalog;
use weft_nats::{
    checkpoints::Tail,
    conditions::Conditions,
    streams::{self, LogSpec},
};
use weft_proto::ids::ShardId;
use weft_testkit::{TestServer, master_key};

use super::*;

const STEPS: usize = 150;
const SEEDS: u64 = 4;

/// A checkpoint in progress.
struct Progress {
    writer: CheckpointWriter,
    /// Identifies it.
    name: String,
    chunks: u32,
}

struct World {
    log: Log,
    removal: Removal,
    epoch: u64,
    begun: u64,
    running: Vec<Progress>,
    random: StdRng,
}

impl World {
    async fn step(&mut self) {
        match self.random.random_range(0..10) {
            // An owner takes the shard over; those before do not know it.
            0 => self.epoch += 1,
            1 | 2 => self.begin().await,
            3 if !self.running.is_empty() => {
                let index = self.random.random_range(0..self.running.len());
                drop(self.running.swap_remove(index));
            }
            4 => {
                // A take-over removes what precedes the newest complete checkpoint, and so does an owner that has made one.
                self.removal.remove().await.unwrap();
            }
            _ => self.go_on().await,
        }
    }

    async fn begin(&mut self) {
        // Also an owner that has lost the shard.
        let epoch = self.epoch.saturating_sub(self.random.random_range(0..3)).max(1);
        let mut writer = CheckpointWriter::new(self.log.clone(), epoch, 0);
        self.begun += 1;
        match writer.begin().await {
            Ok(()) => self.running.push(Progress { writer, name: self.begun.to_string(), chunks: 0 }),
            Err(CheckpointError::Superseded) => {}
            Err(error) => panic!("{error}"),
        }
    }

    async fn go_on(&mut self) {
        if self.running.is_empty() {
            return;
        }
        let index = self.random.random_range(0..self.running.len());
        let mut progress = self.running.swap_remove(index);
        let ends = progress.chunks > 0 && self.random.random_range(0..3) == 0;
        let stored = if ends {
            let end = internal::CheckpointEnd { chunks: progress.chunks, ..Default::default() };
            progress.writer.end(end).await
        } else {
            let state = internal::SubscriptionState { name: progress.name.clone(), ..Default::default() };
            let index = progress.chunks;
            progress.chunks += 1;
            progress
                .writer
                .chunk(internal::CheckpointChunk { index, subscriptions: vec![state], ..Default::default() })
                .await
        };
        match stored {
            Ok(()) if !ends => self.running.push(progress),
            Ok(()) | Err(CheckpointError::Conflict) => {}
            Err(error) => panic!("{error}"),
        }
    }

    async fn tail(&self) -> Tail {
        checkpoints::tail(&self.log.connection, self.log.layout, self.log.shard).await.unwrap()
    }
}

/// Once there is a complete checkpoint there always is one; all of its chunks are of one owner; none of an earlier owner
/// takes the place of a later one's.
#[tokio::test(flavor = "multi_thread")]
async fn the_newest_checkpoint_is_whole_whatever_owners_do() {
    let server = TestServer::start().await;
    let connection = server.connection("test").await;
    for seed in 0..SEEDS {
        let spec = LogSpec { body_bytes_max: 1 << 20, ..LogSpec::default() };
        let layout = streams::ensure(&connection, &spec).await.unwrap();
        let log = Log { connection: connection.clone(), layout, shard: ShardId(0) };
        let random = StdRng::seed_from_u64(seed);
        let admins = Catalog::new(connection.clone(), master_key()).requests();
        let removal = Removal { log: log.clone(), admins, conditions: Conditions::default() };
        let mut world = World { log, removal, epoch: 1, begun: 0, running: Vec::new(), random };
        let (mut writer_epoch, mut complete) = (0, 0);
        for step in 0..STEPS {
            world.step().await;
            let Some(newest) = world.tail().await.newest else {
                assert_eq!(complete, 0, "seed {seed}, step {step}: the checkpoint is gone");
                continue;
            };
            complete += 1;
            let mut reader = newest.chunks(&connection);
            let mut names = Vec::new();
            while let Some(chunks) = reader.next().await.unwrap() {
                names.extend(chunks.into_iter().map(|chunk| chunk.subscriptions[0].name.clone()));
            }
            assert_eq!(names.len(), newest.end.chunks as usize, "seed {seed}, step {step}");
            assert!(names.iter().all(|name| *name == names[0]), "seed {seed}, step {step}: {names:?}");
            assert!(newest.end.writer_epoch >= writer_epoch, "seed {seed}, step {step}");
            writer_epoch = newest.end.writer_epoch;
        }
        assert!(complete > 0, "seed {seed} completes none");
        connection.jetstream().delete_stream(layout.checkpoints_stream(ShardId(0))).await.unwrap();
    }
}
