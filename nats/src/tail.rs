//! Events after a cursor and those to come, without a gap, for any number of clients of one process.
//!
//! A process reads each shard with one consumer, shared by all of its tails, and only while there is a tail. What the
//! shared reader brings goes into a ring of the newest entries. Each tail has a separate position in each shard. While
//! the ring covers the position, the tail takes from the ring; otherwise it reads pages of the log by direct gets, as
//! `since` does, until the ring covers it again. Both are positions in the same stream, so the hand-over can neither
//! skip nor repeat an event, in either direction, and a slow client costs the others nothing: it falls out of the ring
//! and reads the log alone.
//!
//! Within a shard, and so within a workflow, the order is the log's; shards come as they are read.

use std::{
    collections::{HashMap, VecDeque},
    fmt,
    future::Future,
    pin::Pin,
    sync::{Arc, Weak},
    time::Duration,
};

use parking_lot::{Mutex, MutexGuard};
use tokio::{
    sync::{Semaphore, watch},
    time::{Instant, sleep},
};
use weft_proto::ids::{ShardId, StreamSeq};

use crate::{
    connect::Connection,
    cursor::Cursor,
    event::StoredEvent,
    scan::{self, Bounds, Filter, Page, ScanError},
    streams,
    subject::Layout,
};

mod ring;
mod shard;

use ring::Coverage;
use shard::ShardReader;

/// Bytes of payload that the rings of a process hold, all shards together, and the least of one shard.
const RINGS_BYTES: usize = 32 << 20;
const RING_BYTES_MIN: usize = 256 << 10;
/// Bounds of one read of a tail: small, since its events wait in memory until its client asks for them.
const TAKE: Bounds = Bounds { events: 256, bytes: 256 << 10, read_ahead_bytes: 1 << 20 };
/// Entries of one shard that a tail looks at before it turns to the next shard.
const LOOK_ENTRIES: usize = 64;
/// Pages that are read at the same time in a process, so that many clients that read history do not crowd out writers.
const PAGES_AT_A_TIME: usize = 8;
/// How long a page is tried again while the log is unavailable, and the pause in between. After that the client gets an
/// error, and continues from its cursor.
const PAGE_PATIENCE: Duration = Duration::from_secs(60);
const PAGE_PAUSE: Duration = Duration::from_millis(250);
/// How long a stream that ends before a cursor is asked again: a new leader may not have applied everything yet.
const BEHIND_PATIENCE: Duration = Duration::from_secs(2);

/// Opens the tails of a process. Cheap to clone; clones share their readers.
#[derive(Debug, Clone)]
pub struct Tails {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    connection: Connection,
    layout: Layout,
    readers: Mutex<HashMap<ShardId, Weak<ShardReader>>>,
    pages: Semaphore,
    /// Notified of everything that a shared reader has read.
    changed: watch::Sender<()>,
}

impl Tails {
    /// Reads nothing before the first tail is opened.
    pub fn new(connection: Connection, layout: Layout) -> Self {
        let inner = Inner {
            connection,
            layout,
            readers: Mutex::new(HashMap::new()),
            pages: Semaphore::new(PAGES_AT_A_TIME),
            changed: watch::Sender::new(()),
        };
        Self { inner: Arc::new(inner) }
    }

    /// Opens a tail after `cursor`.
    ///
    /// # Errors
    ///
    /// [`ScanError`]: `Expired` when what follows the cursor is no longer kept, or the cursor is of another log; `Reserved`
    /// when a consumer is needed and the stream has few left.
    pub async fn open(&self, filter: Filter, cursor: Cursor) -> Result<Tail, ScanError> {
        let changed = self.inner.changed.subscribe();
        let mut shards = Vec::new();
        for shard in filter.shards(self.inner.layout) {
            let end = self.end_after(shard, cursor.position(shard)).await?;
            let reader = self.reader(shard, end).await?;
            let generation = reader.ring().generation();
            shards.push(TailShard { shard, reader, generation });
        }
        let (tails, filter, ready) = (self.clone(), Arc::new(filter), VecDeque::new());
        let after = cursor.clone();
        Ok(Tail { tails, filter, shards, first: 0, cursor, ready, after, changed, page: None, paged: false })
    }

    /// Where a stream ends, provided that everything after `position` is still kept.
    async fn end_after(&self, shard: ShardId, position: StreamSeq) -> Result<StreamSeq, ScanError> {
        let Inner { connection, layout, .. } = &*self.inner;
        let deadline = Instant::now() + BEHIND_PATIENCE;
        loop {
            let state = streams::state(connection, &layout.events_stream(shard)).await?;
            if scan::continues(position, state) {
                return Ok(state.last);
            }
            if position <= state.last || Instant::now() >= deadline {
                return Err(ScanError::Expired { oldest: scan::oldest(connection, *layout).await? });
            }
            sleep(PAGE_PAUSE).await;
        }
    }

    /// The shared reader of a shard; a new one begins after `end`.
    async fn reader(&self, shard: ShardId, end: StreamSeq) -> Result<Arc<ShardReader>, ScanError> {
        let Inner { connection, layout, changed, .. } = &*self.inner;
        if let Some(reader) = self.readers().get(&shard).and_then(Weak::upgrade) {
            return Ok(reader);
        }
        let stream = layout.events_stream(shard);
        let consumers = streams::consumers(connection, &stream).await?;
        if consumers.count > consumers.limit / 2 {
            let (consumers, limit) = (consumers.count, consumers.limit);
            return Err(ScanError::Reserved { stream, consumers, limit });
        }
        let mut readers = self.readers();
        // Another client may have been faster.
        if let Some(reader) = readers.get(&shard).and_then(Weak::upgrade) {
            return Ok(reader);
        }
        let bytes_max = (RINGS_BYTES / layout.shards().max(1) as usize).max(RING_BYTES_MIN);
        let reader = Arc::new(ShardReader::start(connection.clone(), *layout, stream, end, bytes_max, changed.clone()));
        readers.insert(shard, Arc::downgrade(&reader));
        Ok(reader)
    }

    fn readers(&self) -> MutexGuard<'_, HashMap<ShardId, Weak<ShardReader>>> {
        self.inner.readers.lock()
    }
}

/// One shard of a tail. The shared reader lives as long as any tail holds it.
struct TailShard {
    shard: ShardId,
    reader: Arc<ShardReader>,
    /// The generation of the ring that the tail's position belongs to.
    generation: u64,
}

type PendingPage = Pin<Box<dyn Future<Output = Result<Page, ScanError>> + Send>>;

/// The events after a cursor and those to come.
pub struct Tail {
    tails: Tails,
    filter: Arc<Filter>,
    shards: Vec<TailShard>,
    /// The shard that is looked at first: another one each time, so that a busy shard does not starve the others.
    first: usize,
    /// After everything that has been returned or passed over.
    cursor: Cursor,
    /// Taken from the ring or the log, and not returned yet; bounded by [`TAKE`].
    ready: VecDeque<(ShardId, Arc<StoredEvent>)>,
    /// Where the cursor stands once `ready` is empty.
    after: Cursor,
    changed: watch::Receiver<()>,
    /// The page that is being read: kept here, so that a caller may drop the future of `next`.
    page: Option<PendingPage>,
    /// Whether a page was read since the last look at the rings.
    paged: bool,
}

impl fmt::Debug for Tail {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Tail").field("filter", &self.filter).field("cursor", &self.cursor).finish_non_exhaustive()
    }
}

/// Result of a look at the rings.
enum Look {
    /// Something is ready.
    Taken,
    /// Nothing that the filter takes, and nothing more to look at.
    Nothing,
    /// These shards must be read from the log.
    Evicted(Vec<ShardId>),
    /// A stream is not the one that the cursor belongs to.
    OtherLog,
}

impl Tail {
    /// After everything that has been returned or passed over.
    pub fn cursor(&self) -> &Cursor {
        &self.cursor
    }

    /// The next event that the filter takes; waits for it. Safe to cancel: nothing is lost when the future is dropped.
    ///
    /// # Errors
    ///
    /// [`ScanError`]; `Expired` when retention has overtaken this tail. It cannot continue then.
    pub async fn next(&mut self) -> Result<Arc<StoredEvent>, ScanError> {
        loop {
            if let Some((shard, event)) = self.ready.pop_front() {
                self.cursor.set(shard, event.seq);
                return Ok(event);
            }
            self.cursor.clone_from(&self.after);
            if let Some(page) = &mut self.page {
                let page = page.await;
                self.page = None;
                self.take_page(page?);
                continue;
            }
            // Before the look, so that what comes meanwhile is noticed.
            self.changed.mark_unchanged();
            match self.look() {
                Look::Taken => {}
                Look::Evicted(shards) => self.page = Some(self.read_page(shards)),
                Look::Nothing => {
                    if self.changed.changed().await.is_err() {
                        return Err(ScanError::Unavailable("the log is no longer read".into()));
                    }
                }
                Look::OtherLog => {
                    let Inner { connection, layout, .. } = &*self.tails.inner;
                    return Err(ScanError::Expired { oldest: scan::oldest(connection, *layout).await? });
                }
            }
        }
    }

    /// Takes what the rings hold after the cursor, some of every shard. Where other shards have to be read from the log, the
    /// two take turns.
    fn look(&mut self) -> Look {
        let mut evicted = Vec::new();
        for TailShard { shard, reader, generation } in &self.shards {
            let ring = reader.ring();
            if ring.generation() != *generation {
                return Look::OtherLog;
            }
            if ring.coverage(self.cursor.position(*shard)) == Coverage::Evicted {
                evicted.push(*shard);
            }
        }
        if !evicted.is_empty() && !self.paged {
            self.paged = true;
            return Look::Evicted(evicted);
        }
        self.paged = false;
        if self.take_covered() {
            Look::Taken
        } else if evicted.is_empty() {
            Look::Nothing
        } else {
            Look::Evicted(evicted)
        }
    }

    /// Takes what the rings hold, within [`TAKE`]. Whether anything was looked at.
    fn take_covered(&mut self) -> bool {
        let (mut moved, mut room) = (false, TAKE.bytes);
        let count = self.shards.len();
        self.first = (self.first + 1) % count.max(1);
        for TailShard { shard, reader, .. } in self.shards.iter().cycle().skip(self.first).take(count) {
            let ring = reader.ring();
            let position = self.cursor.position(*shard);
            if ring.coverage(position) != Coverage::Covered {
                continue;
            }
            for entry in ring.after(position).take(LOOK_ENTRIES) {
                if room == 0 || self.ready.len() >= TAKE.events {
                    return moved;
                }
                moved = true;
                self.after.set(*shard, entry.seq);
                if let Some(event) = entry.event.as_ref().filter(|event| self.filter.takes(*shard, event)) {
                    room = room.saturating_sub(entry.bytes());
                    self.ready.push_back((*shard, Arc::clone(event)));
                }
            }
        }
        moved
    }

    fn take_page(&mut self, page: Page) {
        let layout = self.tails.inner.layout;
        self.after = page.next;
        let events = page.events.into_iter().map(|stored| (layout.shard_of(&stored.event.workflow), Arc::new(stored)));
        self.ready.extend(events);
    }

    /// Reads a page of these shards after the cursor.
    fn read_page(&self, shards: Vec<ShardId>) -> PendingPage {
        let (inner, filter, cursor) = (Arc::clone(&self.tails.inner), Arc::clone(&self.filter), self.cursor.clone());
        Box::pin(async move {
            let Inner { connection, layout, .. } = &*inner;
            let deadline = Instant::now() + PAGE_PATIENCE;
            loop {
                let page = {
                    // Closed never: the semaphore lives as long as `inner`.
                    let _permit = inner.pages.acquire().await;
                    scan::read_page(connection, *layout, &cursor, true, &shards, &filter, TAKE).await
                };
                match page {
                    Err(ScanError::Unavailable(problem)) if Instant::now() < deadline => {
                        tracing::debug!(problem, "tail cannot read the log; retrying");
                        sleep(PAGE_PAUSE).await;
                    }
                    page => return page,
                }
            }
        })
    }
}
