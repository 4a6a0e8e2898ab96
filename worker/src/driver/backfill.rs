//! Subscriptions that begin behind the shared reader: each reads on its own until it meets it.
//!
//! They meet exactly: a step of an own reader never goes beyond the shared cursor, and the one that reaches it joins in
//! the same turn, before the shared reader goes on. So no event is taken twice and none is passed over.

use std::collections::{HashMap, HashSet};

use weft_nats::{
    connect::Connection,
    direct,
    event::{Entry, StoredEvent},
    message::Stored,
    subject::Layout,
};
use weft_proto::{
    ids::{ShardId, StreamSeq, SubscriptionUid},
    v1,
};

use super::{Context, Driver, DriverError};
use crate::{lane::Input, ledger::RecoveryError};

/// Messages of one step.
const STEP_MESSAGES: usize = 256;
/// Bytes of one step.
const STEP_BYTES: usize = 8 * 1024 * 1024;

#[derive(Debug)]
pub(super) struct Backfills {
    connection: Connection,
    layout: Layout,
    shard: ShardId,
    /// How far each has come.
    cursors: HashMap<SubscriptionUid, StreamSeq>,
    /// Subscriptions that the ledger knows and the catalog has not confirmed yet.
    restored: HashSet<SubscriptionUid>,
    known: HashSet<SubscriptionUid>,
    /// Whose turn it is.
    turn: usize,
}

/// What one of them has read.
#[derive(Debug)]
pub(super) struct Step {
    uid: SubscriptionUid,
    messages: Vec<Stored>,
}

impl Backfills {
    pub fn new(context: &Context, shard: ShardId, restored: &[v1::SubscriptionState]) -> Self {
        let uid_of = |state: &v1::SubscriptionState| SubscriptionUid::from_slice(&state.subscription);
        let open = restored.iter().filter(|state| !state.closed);
        let known: HashSet<_> = open.clone().filter_map(uid_of).collect();
        Self {
            connection: context.connection.clone(),
            layout: context.layout,
            shard,
            cursors: open
                .filter_map(|state| Some((uid_of(state)?, StreamSeq(state.detached?.saturating_sub(1)))))
                .collect(),
            restored: known.clone(),
            known,
            turn: 0,
        }
    }

    /// Whether a subscription reads on its own.
    pub fn has(&self, uid: SubscriptionUid) -> bool {
        self.cursors.contains_key(&uid)
    }

    pub fn is_empty(&self) -> bool {
        self.cursors.is_empty()
    }

    /// Whether the shard has had this subscription before.
    pub fn knows(&self, uid: SubscriptionUid) -> bool {
        self.known.contains(&uid)
    }

    /// Subscriptions of the ledger that the catalog has not named.
    pub fn restored(&self) -> Vec<SubscriptionUid> {
        self.restored.iter().copied().collect()
    }

    /// The catalog has named it.
    pub fn seen(&mut self, uid: SubscriptionUid) {
        self.restored.remove(&uid);
        self.known.insert(uid);
    }

    pub fn forget(&mut self, uid: SubscriptionUid) {
        self.restored.remove(&uid);
        self.cursors.remove(&uid);
    }

    /// A subscription begins behind `after`.
    pub fn begin(&mut self, uid: SubscriptionUid, after: StreamSeq) {
        self.cursors.insert(uid, after);
    }

    /// The next messages of one of them, in turn. None: it has come to the stream's end. Safe to cancel.
    pub async fn next(&mut self) -> Result<Step, DriverError> {
        let mut uids: Vec<_> = self.cursors.keys().copied().collect();
        uids.sort_unstable();
        let Some(uid) = uids.get(self.turn % uids.len().max(1)).copied() else {
            return std::future::pending().await;
        };
        let from = self.cursors.get(&uid).copied().unwrap_or_default().next();
        let stream = self.layout.events_stream(self.shard);
        loop {
            match direct::range(&self.connection, &stream, from, ">", STEP_MESSAGES, STEP_BYTES).await {
                Ok(messages) => {
                    self.turn = self.turn.wrapping_add(1);
                    return Ok(Step { uid, messages });
                }
                Err(direct::DirectError::Unavailable(problem)) => {
                    tracing::debug!(problem, "backfill is tried again");
                    tokio::time::sleep(std::time::Duration::from_millis(200)).await;
                }
                Err(error) => return Err(RecoveryError::from(error).into()),
            }
        }
    }
}

impl Driver {
    pub(super) fn backfilled(&mut self, step: Step) -> Result<(), DriverError> {
        let Step { uid, messages } = step;
        let shared = self.lanes.cursor();
        let mut reached = messages.is_empty();
        for message in messages {
            if message.seq > shared {
                reached = true;
                break;
            }
            let seq = message.seq;
            let event = match Entry::decode(self.context.layout, &message) {
                Entry::Event(event) => {
                    let event = StoredEvent { seq, stored_at: message.stored_at, event: *event };
                    let takes = |compiled: &crate::matching::Compiled| compiled.matcher.takes(&event);
                    self.subscriptions.get(&uid).is_some_and(takes).then(|| std::sync::Arc::new(event))
                }
                Entry::Heads(_) | Entry::Foreign(_) => None,
            };
            self.backfills.cursors.insert(uid, seq);
            self.handle(Input::Backfilled { uid, seq, event })?;
            reached = seq == shared;
        }
        if reached {
            // Nothing lies between its cursor and the shared one.
            self.handle(Input::Backfilled { uid, seq: shared, event: None })?;
            self.backfills.cursors.remove(&uid);
            self.handle(Input::Joined { uid })?;
        }
        Ok(())
    }
}
