//! The shared reader of one shard: one consumer, whose messages go into a ring.

use std::{sync::Arc, time::Duration};

use parking_lot::{Mutex, MutexGuard};
use tokio::{sync::watch, time::sleep};
use tokio_util::task::AbortOnDropHandle;
use weft_proto::ids::StreamSeq;

use super::ring::{Ring, RingEntry};
use crate::{
    connect::{Connection, LIVE_READER},
    entry::Entry,
    event::StoredEvent,
    reader::{OrderedReader, ReadError, ReaderOptions},
    streams,
    subject::Layout,
};

/// Messages of one read: tails are notified once for each.
const BATCH_MESSAGES: usize = 64;
/// The pause before the stream is asked again where it ends.
const RETRY_PAUSE: Duration = Duration::from_millis(500);
/// Reads that fail one after the other, a second apart, before the reader starts over at the stream's end: a new leader
/// that has not applied everything yet is no reason to drop what clients are reading.
const READ_FAILURES_MAX: u32 = 10;

/// Reads one shard for as long as it is held.
#[derive(Debug)]
pub(super) struct ShardReader {
    ring: Arc<Mutex<Ring>>,
    _task: AbortOnDropHandle<()>,
}

impl ShardReader {
    /// Starts to read after `end`. `changed` is notified of everything that is read.
    pub fn start(
        connection: Connection,
        layout: Layout,
        stream: String,
        end: StreamSeq,
        bytes_max: usize,
        changed: watch::Sender<()>,
    ) -> Self {
        let ring = Arc::new(Mutex::new(Ring::new(end, bytes_max)));
        let feed = Feed { connection, layout, stream, ring: Arc::clone(&ring), changed };
        // Ends when the last tail of the shard drops its reader.
        Self { ring, _task: AbortOnDropHandle::new(tokio::spawn(feed.run(end))) }
    }

    pub fn ring(&self) -> MutexGuard<'_, Ring> {
        // A panic elsewhere leaves a ring that is whole: `push` and `restart` do not panic.
        self.ring.lock()
    }
}

/// The task that fills a ring.
struct Feed {
    connection: Connection,
    layout: Layout,
    stream: String,
    ring: Arc<Mutex<Ring>>,
    changed: watch::Sender<()>,
}

impl Feed {
    async fn run(self, mut end: StreamSeq) {
        loop {
            let error = self.read(end).await;
            tracing::warn!(stream = self.stream, %error, "shared tail starts over at the end of the stream");
            end = self.stream_end().await;
            let other_log = !matches!(error, ReadError::Gone { .. });
            self.ring().restart(end, other_log);
            self.changed.send_replace(());
        }
    }

    /// Reads after `end` until that is no longer possible; says why.
    async fn read(&self, end: StreamSeq) -> ReadError {
        let options = ReaderOptions {
            stream: self.stream.clone(),
            name: LIVE_READER.into(),
            from: end.next(),
            filter: None,
            batch_messages_max: BATCH_MESSAGES,
            known: None,
            pages: false,
        };
        let mut reader = OrderedReader::new(self.connection.clone(), options);
        let mut failures = 0;
        loop {
            match reader.next().await {
                Ok(batch) => {
                    failures = 0;
                    let entries: Vec<_> = batch.messages.into_iter().map(|message| self.decode(message)).collect();
                    let mut ring = self.ring();
                    entries.into_iter().for_each(|entry| ring.push(entry));
                    drop(ring);
                    self.changed.send_replace(());
                }
                Err(lasting @ (ReadError::Gone { .. } | ReadError::Another { .. })) => return lasting,
                Err(error) => {
                    failures += 1;
                    if failures >= READ_FAILURES_MAX {
                        return error;
                    }
                }
            }
        }
    }

    fn decode(&self, message: crate::message::Stored) -> RingEntry {
        let (seq, stored_at) = (message.seq, message.stored_at);
        let event = match Entry::decode(self.layout, &message) {
            Entry::Event(event) => Some(Arc::new(StoredEvent { seq, stored_at, event: *event })),
            Entry::Erased(erasure) => Some(Arc::new(erasure.into_stored(seq, stored_at))),
            Entry::Heads(_) | Entry::Foreign(_) => None,
        };
        RingEntry { seq, event }
    }

    async fn stream_end(&self) -> StreamSeq {
        loop {
            match streams::state(&self.connection, &self.stream).await {
                Ok(state) => return state.last,
                Err(error) => tracing::debug!(stream = self.stream, %error, "stream state unavailable; retrying"),
            }
            sleep(RETRY_PAUSE).await;
            self.connection.connected().await;
        }
    }

    fn ring(&self) -> MutexGuard<'_, Ring> {
        self.ring.lock()
    }
}
