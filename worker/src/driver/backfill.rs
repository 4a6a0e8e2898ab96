//! Backfills: the reads of detached subscriptions, until each meets the shared reader.
//!
//! The hand-over is exact: a backfill never reads past the shared reader's cursor; when it is within one batch, the shared
//! reader pauses, and a backfill that has reached the cursor joins before the shared reader continues. So no event is taken
//! twice or missed, and they meet however busy the log is.

use std::{collections::BTreeSet, ops::Bound, sync::Arc};

use tokio::task::{JoinError, JoinSet};
use weft_catalog::{Filters, Match};
use weft_nats::event::StoredEvent;
use weft_proto::{
    ids::{StreamSeq, SubscriptionUid},
    internal,
};

use super::{Driver, DriverError, aborted, erasures::Erasures};
use crate::{
    lane::Input,
    log::{Bounds, Log, Read},
};

/// Bounds of one read: the work of a turn.
const READ: Bounds = Bounds { messages: 256, bytes: 8 * 1024 * 1024 };

/// The detached subscriptions, which take turns to read.
#[derive(Debug)]
pub(super) struct Backfills {
    log: Log,
    erasures: Erasures,
    /// The detached subscriptions. The lanes know their positions.
    detached: BTreeSet<SubscriptionUid>,
    /// The subscription that had the last turn.
    turn: Option<SubscriptionUid>,
    /// The read under way, at most one, as a task: a busy shard has many turns while the log answers.
    reading: JoinSet<BackfillProgress>,
    /// Whether the read under way may reach the shared cursor.
    closing: bool,
}

/// The result of a read.
#[derive(Debug)]
pub(super) struct BackfillProgress {
    uid: SubscriptionUid,
    from: StreamSeq,
    read: Read,
    /// The events that were erased between the messages.
    erased: Vec<Arc<StoredEvent>>,
}

impl Backfills {
    pub fn new(log: Log, erasures: Erasures, restored: &[internal::SubscriptionState]) -> Self {
        let uid_of = |state: &internal::SubscriptionState| SubscriptionUid::from_slice(&state.subscription);
        let detached = restored.iter().filter(|state| !state.closed && state.detached.is_some());
        Self {
            log,
            erasures,
            detached: detached.filter_map(uid_of).collect(),
            turn: None,
            reading: JoinSet::new(),
            closing: false,
        }
    }

    /// Whether a subscription is detached.
    pub fn has(&self, uid: SubscriptionUid) -> bool {
        self.detached.contains(&uid)
    }

    /// Whether the shared reader must wait for the read under way.
    pub fn is_closing(&self) -> bool {
        self.closing && !self.reading.is_empty()
    }

    /// A subscription is detached.
    pub fn begin(&mut self, uid: SubscriptionUid) {
        self.detached.insert(uid);
    }

    /// The subscription whose turn it is; `None` while one reads.
    fn next_turn(&mut self) -> Option<SubscriptionUid> {
        if !self.reading.is_empty() {
            return None;
        }
        let after_last = self.turn.map_or(Bound::Unbounded, Bound::Excluded);
        self.turn =
            self.detached.range((after_last, Bound::Unbounded)).next().or_else(|| self.detached.first()).copied();
        self.turn
    }

    /// Starts a read after `cursor`, up to the shared cursor at most.
    fn read(&mut self, uid: SubscriptionUid, cursor: StreamSeq, shared: StreamSeq) {
        self.closing = shared.0 - cursor.0 <= READ.messages as u64;
        let (log, erasures, from) = (self.log.clone(), self.erasures.clone(), cursor.next());
        self.reading.spawn(async move {
            let stream = log.layout.events_stream(log.shard);
            let mut read = log.range(&stream, ">", from, shared, READ).await;
            let mut found = erasures.of_read(cursor, &read.messages, read.known).await;
            // Later records may have taken the place of those that this read needs.
            while found.complete_to < from {
                found = erasures.of_read(cursor, &read.messages, read.known).await;
            }
            read.known = read.known.min(found.complete_to);
            read.messages.retain(|message| message.seq <= read.known);
            BackfillProgress { uid, from, read, erased: found.events }
        });
    }

    /// Waits until the read under way ends; for ever when there is none. Cancel safe.
    pub async fn next(&mut self) -> Result<BackfillProgress, JoinError> {
        match self.reading.join_next().await {
            Some(progress) => progress,
            None => std::future::pending().await,
        }
    }
}

impl Driver {
    /// Starts the next read, unless one is under way; subscriptions that have met the shared reader join it.
    pub(super) fn backfill_next(&mut self) -> Result<(), DriverError> {
        let shared = self.lanes.cursor();
        for _ in 0..self.backfills.detached.len() {
            let Some(uid) = self.backfills.next_turn() else { break };
            let Some(cursor) = self.lanes.detached_through(uid) else {
                // It was closed.
                self.backfills.detached.remove(&uid);
                continue;
            };
            if cursor >= shared {
                if !self.lanes.may_join(uid) {
                    continue;
                }
                self.backfills.detached.remove(&uid);
                self.handle(Input::Joined { uid })?;
            } else if self.lanes.reads_on(uid) {
                self.backfills.read(uid, cursor, shared);
                break;
            }
        }
        Ok(())
    }

    pub(super) fn on_backfill(&mut self, progress: Result<BackfillProgress, JoinError>) -> Result<(), DriverError> {
        let BackfillProgress { uid, from, read, erased } = progress.map_err(aborted("read"))?;
        // The subscription may have been closed in the meantime.
        if self.lanes.detached_through(uid).map(StreamSeq::next) != Some(from) {
            return Ok(());
        }
        let filters = self.lanes.filters(uid);
        let layout = self.context.layout;
        let read_events = read.messages.iter().map(|message| {
            let event = StoredEvent::decode(layout, message).ok().map(Arc::new);
            (message.seq, event)
        });
        let mut events: Vec<_> = read_events.chain(erased.into_iter().map(|event| (event.seq, Some(event)))).collect();
        events.sort_by_key(|(seq, _)| *seq);
        for (seq, event) in events {
            let takes = |event: &Arc<StoredEvent>| filters.as_ref().is_some_and(|filters| is_taken(filters, event));
            let event = event.filter(takes);
            self.handle(Input::Backfilled { uid, seq, event })?;
            if self.lanes.detached_through(uid).is_some_and(|through| through < seq) {
                // There is no room for this one.
                return Ok(());
            }
        }
        self.handle(Input::Backfilled { uid, seq: read.known, event: None })
    }
}

fn is_taken(filters: &Filters, event: &StoredEvent) -> bool {
    filters.judge(event) == Match::Taken
}
