//! The newest complete checkpoint is found and read, regardless of what else CHECKPOINTS holds.

use prost::Message as _;
use weft_nats::{
    checkpoints::{self, ChunkError},
    records, streams,
};
use weft_proto::{
    ids::{ShardId, StreamSeq},
    internal::{self, outcome_record::Record},
};
use weft_testkit::TestLog;

const SHARD: ShardId = ShardId(0);

struct Log {
    log: TestLog,
    last: u64,
}

impl Log {
    async fn start() -> Self {
        Self { log: TestLog::start().await, last: 0 }
    }

    async fn publish(&mut self, record: Record) {
        let payload = internal::OutcomeRecord { record: Some(record) }.encode_to_vec();
        let (jetstream, headers) = (self.log.connection.jetstream(), records::headers().to_map());
        let ack = jetstream.publish_with_headers("checkpoints.0", headers, payload.into()).await.unwrap();
        self.last = ack.await.unwrap().sequence;
    }

    async fn chunks(&mut self, position: u64, count: u32) {
        for index in 0..count {
            let heads = vec![internal::LaneHead { sequence: u64::from(index), ..Default::default() }];
            self.publish(Record::Chunk(internal::CheckpointChunk { position, index, heads, ..Default::default() }))
                .await;
        }
    }

    async fn checkpoint(&mut self, position: u64, chunks: u32) {
        let first_chunk = self.last + 1;
        self.chunks(position, chunks).await;
        self.publish(Record::End(internal::CheckpointEnd { position, chunks, first_chunk, ..Default::default() }))
            .await;
    }

    async fn tail(&self) -> checkpoints::Tail {
        checkpoints::tail(&self.log.connection, self.log.layout, SHARD).await.unwrap()
    }
}

#[tokio::test]
async fn the_newest_complete_checkpoint_is_found_among_remains_and_foreign_messages() {
    let mut log = Log::start().await;
    assert_eq!(log.tail().await.newest, None);
    log.chunks(3, 4).await;
    assert_eq!(log.tail().await.newest, None, "chunks without an end");
    log.checkpoint(7, 2).await;
    log.chunks(8, 3).await;
    log.log.connection.jetstream().publish("checkpoints.0", "foreign".into()).await.unwrap().await.unwrap();
    log.chunks(9, 1).await;
    let tail = log.tail().await;
    assert_eq!((tail.newest.unwrap().end.position, tail.first, tail.last.0), (7, StreamSeq(1), log.last));

    log.checkpoint(10, 1).await;
    assert_eq!(log.tail().await.newest.unwrap().end.position, 10);
    streams::drop_through(&log.log.connection, "CHECKPOINTS", StreamSeq(log.last)).await.unwrap();
    assert_eq!(log.tail().await.newest, None, "an empty stream that has held something");
}

#[tokio::test]
async fn chunks_are_read_in_order_and_a_purged_one_is_noticed() {
    const CHUNKS: u32 = 200;
    let mut log = Log::start().await;
    log.checkpoint(7, CHUNKS).await;
    let newest = log.tail().await.newest.unwrap();
    let mut reader = newest.chunks(&log.log.connection);
    let mut read = Vec::new();
    while let Some(chunks) = reader.next().await.unwrap() {
        read.extend(chunks.into_iter().map(|chunk| chunk.heads[0].sequence));
    }
    assert_eq!(read, (0..u64::from(CHUNKS)).collect::<Vec<_>>());

    // A newer one replaces it while it is read.
    let connection = log.log.connection.clone();
    let mut reader = newest.chunks(&connection);
    assert!(reader.next().await.unwrap().is_some_and(|chunks| chunks.len() < CHUNKS as usize));
    let through = StreamSeq(log.last);
    log.checkpoint(8, 1).await;
    streams::drop_through(&log.log.connection, "CHECKPOINTS", through).await.unwrap();
    let problem = loop {
        match reader.next().await {
            Ok(Some(_)) => {}
            Ok(None) => panic!("the chunks are gone"),
            Err(problem) => break problem,
        }
    };
    assert!(matches!(problem, ChunkError::Incomplete(7)), "{problem:?}");
}
