//! Events behind a cursor and those to come, without a gap: one ordered reader a shard, from its position on. History
//! and live are the same reading, so there is no seam between them.
//!
//! The stream is read only as fast as its client takes it: a slow client holds its readers back and nothing else. Within
//! a shard, and so within a workflow, the order is the log's; shards come as they are read.

use std::{collections::VecDeque, pin::Pin};

use futures_util::{
    Stream, StreamExt as _,
    stream::{SelectAll, select_all, unfold},
};
use tokio::sync::OwnedSemaphorePermit;
use tokio_util::sync::CancellationToken;
use tonic::Status;
use weft_nats::{
    connect::Connection,
    cursor::Cursor,
    event::Entry,
    reader::{Batch, OrderedReader, ReadError, ReaderOptions},
    scan::{self, Filter},
    streams,
    subject::Layout,
};
use weft_proto::{
    ids::{ShardId, StreamSeq},
    v1,
};

use super::state::{Log, draining};
use crate::{
    convert,
    error::{Code, expired, of_scan, refuse},
};

/// Messages of one read: small, since what has been read waits for the client.
const BATCH_MESSAGES: usize = 64;

/// What `TailEvents` answers.
pub(super) type Responses = Pin<Box<dyn Stream<Item = Result<v1::TailEventsResponse, Status>> + Send>>;

type Read = (ShardId, Result<Batch, ReadError>);

/// A tail and what it has read but not handed on.
struct Tail {
    connection: Connection,
    layout: Layout,
    filter: Filter,
    /// Behind the last event handed on.
    cursor: Cursor,
    reads: SelectAll<Pin<Box<dyn Stream<Item = Read> + Send>>>,
    ready: VecDeque<v1::TailEventsResponse>,
    draining: CancellationToken,
    _place: OwnedSemaphorePermit,
}

/// Starts a tail behind `cursor`.
///
/// # Errors
///
/// CURSOR_EXPIRED when what follows the cursor is no longer kept; LOG_UNAVAILABLE.
pub(super) async fn open(
    log: &Log,
    filter: Filter,
    cursor: Cursor,
    draining: CancellationToken,
    place: OwnedSemaphorePermit,
) -> Result<Responses, Status> {
    let shards: Vec<ShardId> = match &filter.workflow {
        Some(workflow) => vec![log.layout.shard_of(workflow)],
        None => log.layout.all().collect(),
    };
    let mut reads = Vec::with_capacity(shards.len());
    for shard in shards {
        let (stream, position) = (log.layout.events_stream(shard), cursor.position(shard));
        let state = streams::state(&log.connection, &stream).await;
        let state = state.map_err(|error| refuse(Code::LogUnavailable, error.to_string()))?;
        if position.next() < state.first || position > state.last {
            return Err(expired(&scan::oldest(&log.connection, log.layout).await.map_err(of_scan)?));
        }
        reads.push(read(log, shard, stream, position, &filter));
    }
    let tail = Tail {
        connection: log.connection.clone(),
        layout: log.layout,
        filter,
        cursor,
        reads: select_all(reads),
        ready: VecDeque::new(),
        draining,
        _place: place,
    };
    let responses = unfold(Some(tail), async |tail| {
        let mut tail = tail?;
        match tail.next().await {
            Ok(response) => Some((Ok(response), Some(tail))),
            Err(status) => Some((Err(status), None)),
        }
    });
    Ok(responses.boxed())
}

fn read(
    log: &Log,
    shard: ShardId,
    stream: String,
    position: StreamSeq,
    filter: &Filter,
) -> Pin<Box<dyn Stream<Item = Read> + Send>> {
    let options = ReaderOptions {
        stream,
        name: "tail".into(),
        from: position.next(),
        filter: filter.workflow.as_ref().map(|workflow| log.layout.event_subject(workflow)),
        batch_messages_max: BATCH_MESSAGES,
    };
    let reader = OrderedReader::new(log.connection.clone(), options);
    unfold(reader, move |mut reader| async move {
        let batch = reader.next().await;
        Some(((shard, batch), reader))
    })
    .boxed()
}

impl Tail {
    /// The next event that the filter takes, or why there is none any more.
    async fn next(&mut self) -> Result<v1::TailEventsResponse, Status> {
        loop {
            if let Some(response) = self.ready.pop_front() {
                return Ok(response);
            }
            let read = tokio::select! {
                biased;
                () = self.draining.cancelled() => return Err(draining()),
                read = self.reads.next() => read,
            };
            match read {
                Some((shard, Ok(batch))) if self.follows(shard, &batch) => self.take(shard, batch),
                // Retention has overtaken the client.
                Some((_, Ok(_) | Err(ReadError::Gone { .. } | ReadError::Behind { .. }))) => {
                    return Err(expired(&scan::oldest(&self.connection, self.layout).await.map_err(of_scan)?));
                }
                // A reader never ends.
                None => return Err(refuse(Code::Internal, "the log is no longer read")),
            }
        }
    }

    /// Whether nothing is missing in front of or within a batch. A filtered reading has gaps by its nature.
    fn follows(&self, shard: ShardId, batch: &Batch) -> bool {
        let mut expected = self.cursor.position(shard).next();
        self.filter.workflow.is_some()
            || batch.messages.iter().all(|message| {
                let follows = message.seq == expected;
                expected = message.seq.next();
                follows
            })
    }

    fn take(&mut self, shard: ShardId, batch: Batch) {
        for message in batch.messages {
            self.cursor.set(shard, message.seq);
            // Heads and what is not ours only move the cursor.
            if let Entry::Event(event) = Entry::decode(self.layout, &message)
                && self.filter.takes(&event)
            {
                let cursor = self.cursor.to_string();
                self.ready.push_back(v1::TailEventsResponse { event: Some(convert::event(*event)), cursor });
            }
        }
    }
}
