//! Checkpoints: what they occupy, and take-overs from what a crash or an earlier version left.

use std::path::Path;

use prost::Message as _;
use tokio::time::Instant;
use weft_nats::{
    checkpoints::{self, Checkpoint},
    direct, records, streams,
};
use weft_proto::{
    ids::{ShardId, StreamSeq},
    internal::{self, outcome_record::Record},
};
use weft_testkit::eventually;
use weft_worker::ledger;

use crate::support::{Log, PATIENCE, Receiver, Running, assert_in_order};

const SHARD: ShardId = ShardId(0);
const WORKFLOWS: usize = 4;

/// A log with one subscription and a worker that writes checkpoints often.
struct Shard {
    log: Log,
    receiver: Receiver,
    folder: tempfile::TempDir,
    delivered: usize,
}

impl Shard {
    async fn start() -> Self {
        let log = Log::start().await;
        let receiver = Receiver::start(|_| 200).await;
        log.subscribe("billing", &receiver, 1).await;
        Self { log, receiver, folder: tempfile::tempdir().unwrap(), delivered: 0 }
    }

    fn worker(&self) -> Running {
        Running::start_with(&self.log, self.folder.path(), |worker| worker.checkpoint_every(2))
    }

    fn ledger(&self) -> std::path::PathBuf {
        self.folder.path().join("ledger-0.redb")
    }

    /// Has events delivered until a checkpoint is complete that was taken after the one before.
    async fn until_next_checkpoint(&mut self) -> Checkpoint {
        let tail = checkpoints::tail(&self.log.connection, self.log.layout, SHARD).await.unwrap();
        let before = tail.newest.map_or(0, |newest| newest.end.position);
        let deadline = Instant::now() + PATIENCE;
        while Instant::now() < deadline {
            self.deliver(WORKFLOWS).await;
            let tail = checkpoints::tail(&self.log.connection, self.log.layout, SHARD).await.unwrap();
            if let Some(newest) = tail.newest.filter(|newest| newest.end.position > before) {
                return newest;
            }
        }
        panic!("no checkpoint after {} events", self.delivered);
    }

    async fn deliver(&mut self, events: usize) {
        self.log.events(events, WORKFLOWS).await;
        self.delivered += events;
        self.receiver.until_delivered(self.delivered).await;
    }

    /// A worker without a file begins at the newest checkpoint: nothing is repeated, and the order continues.
    async fn takes_over_from_checkpoint(&mut self, position: u64) {
        std::fs::remove_file(self.ledger()).unwrap();
        self.log.expire_outcomes(position).await;
        let worker = self.worker();
        self.deliver(4 * WORKFLOWS).await;
        worker.stop().await;
        let requests = self.receiver.requests.lock().unwrap().clone();
        assert_in_order(&requests, WORKFLOWS, (self.delivered / WORKFLOWS) as u64);
        assert_eq!(requests.len(), self.delivered, "nothing that was settled came again");
    }

    /// The chunks of a checkpoint.
    async fn chunks(&self, checkpoint: &Checkpoint) -> Vec<internal::CheckpointChunk> {
        let mut reader = checkpoint.chunks(&self.log.connection);
        let mut chunks = Vec::new();
        while let Some(read) = reader.next().await.unwrap() {
            chunks.extend(read);
        }
        chunks
    }

    async fn publish(&self, subject: &str, record: Record) {
        self.log.publish(subject, &internal::OutcomeRecord { record: Some(record) }).await;
    }

    async fn last(&self, stream: &str) -> StreamSeq {
        streams::state(&self.log.connection, stream).await.unwrap().last
    }

    /// Whether CHECKPOINTS holds nothing but the newest complete checkpoint.
    async fn is_purged(&self) -> bool {
        let tail = checkpoints::tail(&self.log.connection, self.log.layout, SHARD).await.unwrap();
        let Some(newest) = tail.newest else { return false };
        let messages = tail.last.0 + 1 - tail.first.0;
        tail.first.0 == newest.end.first_chunk && messages == u64::from(newest.end.chunks) + 1
    }
}

/// However often the state is written, one complete checkpoint is kept.
#[tokio::test(flavor = "multi_thread")]
async fn checkpoints_occupy_one_state_however_many_are_written() {
    let mut shard = Shard::start().await;
    let worker = shard.worker();
    for _ in 0..5 {
        shard.until_next_checkpoint().await;
    }
    assert!(eventually(PATIENCE, async || shard.is_purged().await).await);
    worker.stop().await;
    let outcomes = shard.log.read("OUTCOMES", |_| true).await;
    assert!(outcomes.iter().all(|message| message.subject == "outcomes.0"), "OUTCOMES holds commits only");
}

#[tokio::test(flavor = "multi_thread")]
async fn chunks_without_an_end_are_no_checkpoint_and_the_next_one_removes_them() {
    let mut shard = Shard::start().await;
    let worker = shard.worker();
    shard.until_next_checkpoint().await;
    worker.stop().await;
    let newest = shard.log.checkpoint(|_| true).await;
    // The owner crashed in the middle of the next one.
    let writer_epoch = newest.end.writer_epoch;
    for index in 0..3 {
        let position = shard.last("OUTCOMES").await.0;
        let chunk = internal::CheckpointChunk { position, index, writer_epoch, ..Default::default() };
        shard.publish("checkpoints.0", Record::Chunk(chunk)).await;
    }
    shard.takes_over_from_checkpoint(newest.end.position).await;
    let worker = shard.worker();
    shard.until_next_checkpoint().await;
    assert!(eventually(PATIENCE, async || shard.is_purged().await).await);
    worker.stop().await;
}

/// An owner that stopped before it purged leaves two complete checkpoints: the next owner removes the older one at once.
#[tokio::test(flavor = "multi_thread")]
async fn a_take_over_purges_what_the_owner_before_did_not() {
    let mut shard = Shard::start().await;
    let worker = shard.worker();
    shard.until_next_checkpoint().await;
    worker.stop().await;
    let newest = shard.log.checkpoint(|_| true).await;
    let first_chunk = shard.last("CHECKPOINTS").await.0 + 1;
    for chunk in shard.chunks(&newest).await {
        shard.publish("checkpoints.0", Record::Chunk(chunk)).await;
    }
    shard.publish("checkpoints.0", Record::End(internal::CheckpointEnd { first_chunk, ..newest.end.clone() })).await;
    assert!(!shard.is_purged().await);
    let worker = Running::start(&shard.log, shard.folder.path());
    assert!(eventually(PATIENCE, async || shard.is_purged().await).await);
    worker.stop().await;
    shard.takes_over_from_checkpoint(newest.end.position).await;
}

/// Earlier versions stored checkpoints in OUTCOMES, between the commits, and without epoch and identity.
#[tokio::test(flavor = "multi_thread")]
async fn a_log_of_an_earlier_version_is_taken_over() {
    let mut shard = Shard::start().await;
    let worker = shard.worker();
    shard.until_next_checkpoint().await;
    worker.stop().await;
    let newest = shard.log.checkpoint(|_| true).await;
    let chunks = shard.chunks(&newest).await;
    let first_chunk = shard.last("OUTCOMES").await.0 + 1;
    for chunk in chunks {
        shard.publish("outcomes.0.chunk", Record::Chunk(internal::CheckpointChunk { writer_epoch: 0, ..chunk })).await;
    }
    let (writer_epoch, outcomes_created_ns, position_stored_at_ns) = (0, 0, 0);
    let end = newest.end.clone();
    let end = internal::CheckpointEnd { first_chunk, writer_epoch, outcomes_created_ns, position_stored_at_ns, ..end };
    shard.publish("outcomes.0.checkpoint", Record::End(end)).await;
    let last = shard.last("CHECKPOINTS").await;
    streams::drop_through(&shard.log.connection, "CHECKPOINTS", last).await.unwrap();
    shard.takes_over_from_checkpoint(newest.end.position).await;
    let worker = shard.worker();
    shard.until_next_checkpoint().await;
    worker.stop().await;
    let newest = shard.log.checkpoint(|_| true).await;
    shard.takes_over_from_checkpoint(newest.end.position).await;
}

/// An owner that has lost the shard does not know it yet: it adds nothing to what a later owner writes, and removes
/// nothing of it.
#[tokio::test(flavor = "multi_thread")]
async fn an_owner_writes_no_checkpoint_after_a_later_owner() {
    let mut shard = Shard::start().await;
    let worker = shard.worker();
    let newest = shard.until_next_checkpoint().await;
    let chunk = internal::CheckpointChunk {
        position: newest.end.position,
        writer_epoch: newest.end.writer_epoch + 1,
        ..Default::default()
    };
    shard.publish("checkpoints.0", Record::Chunk(chunk)).await;
    let later = shard.last("CHECKPOINTS").await;
    for _ in 0..20 {
        shard.deliver(WORKFLOWS).await;
    }
    worker.stop().await;
    let messages = direct::range(&shard.log.connection, "CHECKPOINTS", StreamSeq(1), ">", 1000, 1 << 20).await.unwrap();
    let epochs: Vec<u64> = messages.iter().map(writer_epoch).collect();
    assert_eq!(epochs.last(), Some(&(newest.end.writer_epoch + 1)), "nothing follows the later owner's record");
    assert_eq!(shard.last("CHECKPOINTS").await, later);
    assert!(messages.len() as u64 > u64::from(newest.end.chunks) + 1, "nothing of the checkpoint before is purged");
}

fn writer_epoch(message: &weft_nats::message::Stored) -> u64 {
    let record = internal::OutcomeRecord::decode(message.payload.clone()).unwrap();
    match record.record.unwrap() {
        Record::Chunk(chunk) => chunk.writer_epoch,
        Record::End(end) => end.writer_epoch,
        Record::Commit(_) => panic!("a commit in CHECKPOINTS"),
    }
}

/// A checkpoint of another OUTCOMES says nothing about this one: the log is read from its beginning.
#[tokio::test(flavor = "multi_thread")]
async fn a_checkpoint_of_another_log_is_ignored() {
    let mut shard = Shard::start().await;
    let worker = shard.worker();
    shard.until_next_checkpoint().await;
    worker.stop().await;
    let newest = shard.log.checkpoint(|_| true).await;
    let (position, created) = (newest.end.position, newest.end.outcomes_created_ns);
    let foreign = [
        internal::CheckpointEnd { outcomes_created_ns: created + 1, ..newest.end.clone() },
        internal::CheckpointEnd { position_stored_at_ns: newest.end.position_stored_at_ns + 1, ..newest.end.clone() },
        internal::CheckpointEnd { position: position + 1_000_000, ..newest.end.clone() },
    ];
    for end in foreign {
        shard.publish("checkpoints.0", Record::End(internal::CheckpointEnd { writer_epoch: 50, ..end })).await;
        let folder = tempfile::tempdir().unwrap();
        let recovered = recover(&shard.log, folder.path()).await;
        assert_eq!(recovered.positions.outcomes, shard.last("OUTCOMES").await);
        assert_eq!(recovered.positions.cursor, StreamSeq(shard.delivered as u64));
        assert!(recovered.positions.epoch >= 50, "the next epoch is above every epoch in CHECKPOINTS");
    }
}

/// A take-over reads a checkpoint while the owner before completes the next ones and purges the one that is being read.
#[tokio::test(flavor = "multi_thread")]
async fn a_take_over_while_the_owner_before_still_writes_ends_in_a_state_of_the_log() {
    let mut shard = Shard::start().await;
    let worker = shard.worker();
    shard.until_next_checkpoint().await;
    let mut cursor = StreamSeq(0);
    for _ in 0..10 {
        let folder = tempfile::tempdir().unwrap();
        let (recovered, _) = tokio::join!(recover(&shard.log, folder.path()), shard.log.checkpoint(|_| true));
        assert!(recovered.positions.cursor >= cursor);
        cursor = recovered.positions.cursor;
        shard.deliver(2 * WORKFLOWS).await;
    }
    worker.stop().await;
    let newest = shard.log.checkpoint(|_| true).await;
    shard.takes_over_from_checkpoint(newest.end.position).await;
}

async fn recover(log: &Log, folder: &Path) -> ledger::Recovered {
    ledger::recover(&log.connection, log.layout, SHARD, &folder.join("ledger.redb")).await.unwrap()
}

/// Foreign messages are not part of any checkpoint.
#[tokio::test(flavor = "multi_thread")]
async fn foreign_messages_on_the_stream_are_skipped() {
    let mut shard = Shard::start().await;
    let worker = shard.worker();
    shard.until_next_checkpoint().await;
    worker.stop().await;
    let newest = shard.log.checkpoint(|_| true).await;
    let jetstream = shard.log.connection.jetstream();
    jetstream.publish("checkpoints.0", "x".into()).await.unwrap().await.unwrap();
    let headers = records::headers().to_map();
    jetstream.publish_with_headers("checkpoints.0", headers, "\u{1}".into()).await.unwrap().await.unwrap();
    assert_eq!(shard.log.checkpoint(|_| true).await, newest);
    shard.takes_over_from_checkpoint(newest.end.position).await;
}
