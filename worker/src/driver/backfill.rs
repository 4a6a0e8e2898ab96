//! Subscriptions that begin behind the shared reader, or have had no room for an event: each reads on its own until it
//! meets it.
//!
//! They meet exactly. An own reader never reads beyond the shared cursor; within one step of it the shared reader waits,
//! and who stands where the shared reader stands joins it before it goes on. So no event is taken twice and none is
//! passed over, and however busy the log is, they meet.

use std::{collections::BTreeSet, ops::Bound, sync::Arc};

use tokio::task::{JoinError, JoinSet};
use weft_nats::{
    catalog::{Filters, Match},
    event::{Entry, StoredEvent},
};
use weft_proto::{
    ids::{StreamSeq, SubscriptionUid},
    v1,
};

use super::{Driver, DriverError};
use crate::{
    lane::Input,
    log::{Bounds, Log, Read},
};

/// What one step reads: a turn's work.
const READ: Bounds = Bounds { messages: 256, bytes: 8 * 1024 * 1024 };

#[derive(Debug)]
pub(super) struct Backfills {
    log: Log,
    /// Who reads on its own. How far each has come, the lanes know.
    own: BTreeSet<SubscriptionUid>,
    /// Whose turn it was last.
    turn: Option<SubscriptionUid>,
    /// At most one reads at a time, as a task: a busy shard goes through many turns while the log answers.
    reading: JoinSet<BackfillProgress>,
    /// Whether the read under way may come to the shared cursor.
    closing: bool,
}

/// What one of them has read.
#[derive(Debug)]
pub(super) struct BackfillProgress {
    uid: SubscriptionUid,
    from: StreamSeq,
    read: Read,
}

impl Backfills {
    pub fn new(log: Log, restored: &[v1::SubscriptionState]) -> Self {
        let uid_of = |state: &v1::SubscriptionState| SubscriptionUid::from_slice(&state.subscription);
        let detached = restored.iter().filter(|state| !state.closed && state.detached.is_some());
        Self { log, own: detached.filter_map(uid_of).collect(), turn: None, reading: JoinSet::new(), closing: false }
    }

    /// Whether a subscription reads on its own.
    pub fn has(&self, uid: SubscriptionUid) -> bool {
        self.own.contains(&uid)
    }

    /// Whether the shared reader must wait for a read under way.
    pub fn is_closing(&self) -> bool {
        self.closing && !self.reading.is_empty()
    }

    /// A subscription begins to read on its own.
    pub fn begin(&mut self, uid: SubscriptionUid) {
        self.own.insert(uid);
    }

    /// Whose turn it is; `None` while one reads.
    fn next_turn(&mut self) -> Option<SubscriptionUid> {
        if !self.reading.is_empty() {
            return None;
        }
        let behind_last = self.turn.map_or(Bound::Unbounded, Bound::Excluded);
        self.turn = self.own.range((behind_last, Bound::Unbounded)).next().or_else(|| self.own.first()).copied();
        self.turn
    }

    /// Reads behind `cursor` for a subscription, at most to the shared cursor.
    fn read(&mut self, uid: SubscriptionUid, cursor: StreamSeq, shared: StreamSeq) {
        self.closing = shared.0 - cursor.0 <= READ.messages as u64;
        let (log, from) = (self.log.clone(), cursor.next());
        self.reading.spawn(async move {
            let stream = log.layout.events_stream(log.shard);
            BackfillProgress { uid, from, read: log.range(&stream, ">", from, shared, READ).await }
        });
    }

    /// The end of the read under way; for ever when there is none. Safe to cancel.
    pub async fn next(&mut self) -> Result<BackfillProgress, JoinError> {
        match self.reading.join_next().await {
            Some(step) => step,
            None => std::future::pending().await,
        }
    }
}

impl Driver {
    /// Lets the next one read on that may, unless one is reading; who has met the shared reader joins it.
    pub(super) fn backfill_next(&mut self) -> Result<(), DriverError> {
        let shared = self.lanes.cursor();
        for _ in 0..self.backfills.own.len() {
            let Some(uid) = self.backfills.next_turn() else { break };
            let Some(cursor) = self.lanes.detached_through(uid) else {
                // It has been closed.
                self.backfills.own.remove(&uid);
                continue;
            };
            if cursor >= shared {
                if !self.lanes.may_join(uid) {
                    continue;
                }
                self.backfills.own.remove(&uid);
                self.handle(Input::Joined { uid })?;
            } else if self.lanes.reads_on(uid) {
                self.backfills.read(uid, cursor, shared);
                break;
            }
        }
        Ok(())
    }

    pub(super) fn on_backfill(&mut self, step: Result<BackfillProgress, JoinError>) -> Result<(), DriverError> {
        let BackfillProgress { uid, from, read } =
            step.map_err(|source| DriverError::Task { what: "a read", source })?;
        // Its subscription may have been deleted meanwhile.
        if self.lanes.detached_through(uid).map(StreamSeq::next) != Some(from) {
            return Ok(());
        }
        let filters = self.lanes.filters(uid);
        for message in read.messages {
            let seq = message.seq;
            let event = match Entry::decode(self.context.layout, &message) {
                Entry::Event(event) => {
                    let event = StoredEvent { seq, stored_at: message.stored_at, event: *event };
                    let takes = |filters: &Arc<Filters>| filters.judge(&event) == Match::Taken;
                    filters.as_ref().is_some_and(takes).then(|| Arc::new(event))
                }
                Entry::Heads(_) | Entry::Foreign(_) => None,
            };
            self.handle(Input::Backfilled { uid, seq, event })?;
            if self.lanes.detached_through(uid).is_some_and(|through| through < seq) {
                // There is no room for this one.
                return Ok(());
            }
        }
        self.handle(Input::Backfilled { uid, seq: read.known, event: None })
    }
}
