//! A checkpoint of many idle workflows, stored as their owner would have stored it.

use anyhow::Context as _;
use weft_nats::{append::Appender, records, streams};
use weft_proto::{
    ids::{EventId, ShardId, StreamSeq},
    internal::{self, outcome_record::Record},
};

use weft_services::mesh::Nats;

/// Workflows of one chunk: about the 256 KiB of an owner's.
const CHUNK_WORKFLOWS: u64 = 8000;
const SHARD: ShardId = ShardId(0);

/// Stores the checkpoint of a shard in which each of `workflows` has delivered its last event, next to a commit at its
/// position. Returns the bytes that CHECKPOINTS holds then.
///
/// # Errors
///
/// When it cannot be stored.
pub async fn fill(nats: &Nats, workflows: u64) -> anyhow::Result<u64> {
    let layout = streams::ensure(&nats.connection("admin", "weft-bench-streams").await?, nats.spec()).await?;
    let connection = nats.connection("worker", "weft-bench-checkpoint").await?;
    let mut appender = Appender::new(connection.clone());
    let commit = internal::Commit { epoch: 1, ..Default::default() };
    let record = internal::OutcomeRecord { record: Some(Record::Commit(commit)) };
    let message = records::encode(layout.outcomes_subject(SHARD), &record);
    let position = appender.append(StreamSeq(0), &[message]).await.context("commit")?.0;
    let mut last = StreamSeq(0);
    let mut append = async |record| {
        let record = internal::OutcomeRecord { record: Some(record) };
        last = appender.append(last, &[records::encode(layout.checkpoints_subject(SHARD), &record)]).await?;
        anyhow::Ok(())
    };
    let mut chunks = 0;
    for first in (0..workflows).step_by(usize::try_from(CHUNK_WORKFLOWS)?) {
        let numbers = first..workflows.min(first + CHUNK_WORKFLOWS);
        let ids = numbers.clone().flat_map(|number| EventId::of_delivery("bench", &number.to_string()).to_vec());
        let heads = internal::LaneHeads {
            subscription: vec![7; 16],
            workflow_ids: numbers.clone().map(|number| format!("w-{number:09}")).collect(),
            event_ids: ids.collect(),
            sequences: numbers.map(|number| number + 1).collect(),
        };
        append(Record::Chunk(internal::CheckpointChunk {
            position,
            index: chunks,
            head_columns: vec![heads],
            ..Default::default()
        }))
        .await?;
        chunks += 1;
    }
    let end = internal::CheckpointEnd { position, chunks, first_chunk: 1, epoch: 1, ..Default::default() };
    append(Record::End(end)).await?;
    Ok(streams::usage(&connection, &layout.checkpoints_stream(SHARD)).await?.bytes)
}
