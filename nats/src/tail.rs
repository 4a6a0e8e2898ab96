//! Events behind a cursor and those to come, without a gap: one ordered reader a shard, from its position on. History
//! and live are the same reading, so there is no seam between them.
//!
//! A tail reads only as fast as it is asked: whoever takes slowly holds its own readers back and nothing else. Within a
//! shard, and so within a workflow, the order is the log's; shards come as they are read.

use std::{collections::VecDeque, fmt, pin::Pin};

use futures_util::{
    Stream, StreamExt as _,
    stream::{SelectAll, select_all, unfold},
};
use weft_proto::ids::{ShardId, StreamSeq};

use crate::{
    connect::Connection,
    cursor::Cursor,
    event::{Entry, Event, StoredEvent},
    reader::{Batch, OrderedReader, ReadError, ReaderOptions},
    scan::{self, Filter, ScanError},
    streams,
    subject::Layout,
};

/// Messages of one read: small, since what has been read waits for whoever asks.
const BATCH_MESSAGES: usize = 64;

type Read = (ShardId, Result<Batch, ReadError>);

/// The events behind a cursor and those to come. Dropping it ends its readers.
pub struct Tail {
    connection: Connection,
    layout: Layout,
    filter: Filter,
    /// Behind everything that has been handed on or passed over.
    cursor: Cursor,
    reads: SelectAll<Pin<Box<dyn Stream<Item = Read> + Send>>>,
    /// Read, but not looked at.
    batch: Option<(ShardId, VecDeque<crate::message::Stored>)>,
}

impl fmt::Debug for Tail {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Tail").field("filter", &self.filter).field("cursor", &self.cursor).finish_non_exhaustive()
    }
}

impl Tail {
    /// Starts behind `cursor`.
    ///
    /// # Errors
    ///
    /// [`ScanError`]; `Expired` when what follows the cursor is no longer kept, or the cursor is of another log.
    pub async fn open(
        connection: Connection,
        layout: Layout,
        filter: Filter,
        cursor: Cursor,
    ) -> Result<Self, ScanError> {
        let mut reads = Vec::new();
        for shard in filter.shards(layout) {
            let (stream, position) = (layout.events_stream(shard), cursor.position(shard));
            let state = streams::state(&connection, &stream).await?;
            if position.next() < state.first || position > state.last {
                return Err(ScanError::Expired { oldest: scan::oldest(&connection, layout).await? });
            }
            reads.push(read(&connection, layout, shard, stream, position, &filter));
        }
        Ok(Self { connection, layout, filter, cursor, reads: select_all(reads), batch: None })
    }

    /// Behind everything that has been handed on or passed over.
    pub fn cursor(&self) -> &Cursor {
        &self.cursor
    }

    /// The next event that the filter takes; waits for it. Safe to cancel: nothing is lost when the future is dropped.
    ///
    /// # Errors
    ///
    /// [`ScanError`]; `Expired` when retention has overtaken this tail. It cannot go on then.
    pub async fn next(&mut self) -> Result<Event, ScanError> {
        loop {
            if let Some(event) = self.take() {
                return Ok(event);
            }
            match self.reads.next().await {
                Some((shard, Ok(batch))) if self.follows(shard, &batch) => {
                    self.batch = Some((shard, batch.messages.into()));
                }
                Some((_, Ok(_) | Err(ReadError::Gone { .. } | ReadError::Behind { .. }))) => {
                    return Err(ScanError::Expired { oldest: scan::oldest(&self.connection, self.layout).await? });
                }
                // A reader never ends.
                None => return Err(ScanError::Unavailable("the log is no longer read".into())),
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

    /// The next wanted event of what has been read.
    fn take(&mut self) -> Option<Event> {
        let (shard, messages) = self.batch.as_mut()?;
        while let Some(message) = messages.pop_front() {
            self.cursor.set(*shard, message.seq);
            // Heads and what is not ours only move the cursor.
            if let Entry::Event(event) = Entry::decode(self.layout, &message) {
                let stored = StoredEvent { seq: message.seq, stored_at: message.stored_at, event: *event };
                if self.filter.takes(*shard, &stored) {
                    return Some(stored.event);
                }
            }
        }
        self.batch = None;
        None
    }
}

fn read(
    connection: &Connection,
    layout: Layout,
    shard: ShardId,
    stream: String,
    position: StreamSeq,
    filter: &Filter,
) -> Pin<Box<dyn Stream<Item = Read> + Send>> {
    let options = ReaderOptions {
        stream,
        name: "tail".into(),
        from: position.next(),
        filter: filter.workflow.as_ref().map(|workflow| layout.event_subject(workflow)),
        batch_messages_max: BATCH_MESSAGES,
    };
    let reader = OrderedReader::new(connection.clone(), options);
    unfold(reader, move |mut reader| async move {
        let batch = reader.next().await;
        Some(((shard, batch), reader))
    })
    .boxed()
}
