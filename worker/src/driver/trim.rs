//! Trims EVENTS before it is full: settled events are dropped, the oldest first, with a warning.
//!
//! Only events that the committed ledger has as settled are dropped, and only before the oldest event of a dead letter without
//! a copy. The sequence number of an idle workflow would be lost with its events, so the newest of each workflow that has no
//! later one is first carried forward as a head, as gateways do with expiring events. A reader ignores a head where it knows
//! a later one, so nothing has to be compared when it is written.

use std::{collections::BTreeMap, time::Duration};

use futures_util::{StreamExt as _, TryStreamExt as _, stream};
use tokio_util::task::AbortOnDropHandle;
use weft_nats::{
    admin_requests::{Requests, room::with_room, trim::drop_through},
    append::{AppendErrorKind, publish},
    conditions::Conditions,
    direct,
    entry::Entry,
    message::{Outgoing, Stored},
    records::{self, MESSAGE_HEADS_MAX},
    streams::{self, Usage},
};
use weft_proto::{
    ids::{StreamSeq, WorkflowId},
    internal,
};

use super::{
    Context,
    dead_letter_copier::{self, Horizon},
};
use crate::{
    ledger::store::Settlement,
    log::{Bounds, Log},
};

/// Time between two checks of the stream's size: less than filling the last tenth of a stream of usual size takes.
const PAUSE: Duration = Duration::from_millis(500);
/// The same while nothing can be dropped: each check reads what is unsettled.
const PAUSE_STUCK: Duration = Duration::from_secs(5);
/// High-water and low-water mark, in percent of the limit: trimming starts at the first and stops at the second. The
/// difference is room for what arrives until the next check.
const USED: (u64, u64) = (90, 80);
/// Messages that are dropped at a time.
const PART: Bounds = Bounds { messages: 1000, bytes: 8 * 1024 * 1024 };
/// Workflows that are looked up at a time.
const LOOKUPS: usize = 16;

/// Why trimming failed.
#[derive(Debug, thiserror::Error)]
enum TrimError {
    #[error(transparent)]
    Stream(#[from] streams::EnsureError),
    #[error(transparent)]
    Read(#[from] direct::DirectError),
    #[error("heads cannot be carried forward: {0}")]
    Heads(AppendErrorKind),
    #[error(transparent)]
    Ledger(#[from] crate::ledger::LedgerError),
}

/// Result of a check.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Room {
    /// There is enough room, or some has been made.
    Enough,
    /// The oldest event is not settled.
    Unsettled,
    /// The oldest event is a dead letter without a copy.
    Copies,
    /// It could not be looked, or nothing dropped.
    Failed,
}

/// Keeps room in a shard's EVENTS.
#[derive(Debug)]
pub(super) struct Trim {
    log: Log,
    admins: Requests,
    settlement: Settlement,
    copies: dead_letter_copier::Shared,
    /// How long the sequence number of an idle workflow is remembered.
    remember: Duration,
    conditions: Conditions,
}

impl Trim {
    /// Trims while the shard is owned.
    pub fn start(
        context: &Context,
        log: Log,
        settlement: Settlement,
        copies: dead_letter_copier::Shared,
    ) -> AbortOnDropHandle<()> {
        let (remember, conditions) = (context.remember, context.conditions.clone());
        let admins = context.pauses.requests();
        let trim = Self { log, admins, settlement, copies, remember, conditions };
        AbortOnDropHandle::new(tokio::spawn(trim.run()))
    }

    async fn run(self) {
        let (mut last, mut reported) = (Room::Enough, Room::Enough);
        loop {
            let before = last;
            match self.check().await {
                Ok(room) => {
                    // Reported only when two checks in a row agree: it may be settled or copied a moment later.
                    if room != reported && (room == last || room == Room::Enough) {
                        self.report(room);
                        reported = room;
                    }
                    last = room;
                }
                Err(error) => {
                    tracing::warn!(shard = %self.log.shard, %error, "log trim postponed");
                    last = Room::Failed;
                    if last == before {
                        let problem = format!("{} is not kept below max_bytes: {error}", self.stream());
                        self.conditions.set(&self.condition(), Some(problem));
                        reported = last;
                    }
                }
            }
            let passes = last == Room::Enough || (last == Room::Failed && before != last);
            tokio::time::sleep(if passes { PAUSE } else { PAUSE_STUCK }).await;
        }
    }

    fn condition(&self) -> String {
        format!("shard {}: room in the log", self.log.shard)
    }

    fn report(&self, room: Room) {
        let (shard, stream) = (self.log.shard, self.stream());
        let problem = match room {
            Room::Enough | Room::Failed => return self.conditions.set(&self.condition(), None),
            Room::Unsettled => {
                "its oldest event is not settled: see which subscriptions are behind, or raise [log] max_bytes"
                    .to_owned()
            }
            Room::Copies => {
                format!("its oldest event is a dead letter without a copy on DLQ: {}", self.copies.problem())
            }
        };
        tracing::error!(
            %shard, stream, problem, "events are nearly at max_bytes and nothing can be dropped; senders are refused at the limit"
        );
        self.conditions.set(&self.condition(), Some(format!("{stream} is nearly at max_bytes, and {problem}")));
    }

    fn stream(&self) -> String {
        self.log.layout.events_stream(self.log.shard)
    }

    /// Makes room if the stream is nearly full.
    async fn check(&self) -> Result<Room, TrimError> {
        let usage = streams::usage(&self.log.connection, &self.stream()).await?;
        let Some(target) = target(usage) else { return Ok(Room::Enough) };
        let settled = self.settlement.settled().await?;
        let Horizon { outcomes, keep_from } = self.copies.horizon();
        if outcomes < settled.outcomes {
            // The file is ahead of the copies for a moment.
            return Ok(Room::Enough);
        }
        let kept = keep_from.map_or(StreamSeq(u64::MAX), |from| StreamSeq(from.0.saturating_sub(1)));
        let through = settled.through.min(kept);
        let (mut left, mut first, mut count) = (usage.bytes.saturating_sub(target), usage.first, 0);
        while left > 0 && first <= through {
            let part = self.log.try_range(&self.stream(), ">", first, through, PART).await?;
            left = left.saturating_sub(part.messages.iter().map(|message| message.stored_size() as u64).sum());
            count += part.messages.len();
            self.carry(&part.messages, part.known).await?;
            drop_through(&self.admins, &self.stream(), part.known).await?;
            first = part.known.next();
        }
        if count > 0 {
            metrics::counter!(crate::metrics::DROPPED_MESSAGES).increment(count as u64);
            tracing::warn!(
                shard = %self.log.shard, from = usage.first.0, through = first.0 - 1, messages = count,
                "settled events were dropped from the log, which was nearly at max_bytes"
            );
        }
        Ok(match () {
            () if count > 0 => Room::Enough,
            () if kept < settled.through => Room::Copies,
            () => Room::Unsettled,
        })
    }

    /// Carries forward the heads that would be lost with `messages`, which end at `through`.
    async fn carry(&self, messages: &[Stored], through: StreamSeq) -> Result<(), TrimError> {
        // Heads are stamped by the server, whose clock `check` has just read.
        let now = self.log.connection.server_clock().now();
        let since = now.checked_sub(self.remember).map_or(i64::MIN, |since| since.as_millisecond());
        let newest = self.newest(messages).into_iter().filter(|(_, head)| head.stored_at_ms >= since);
        let heads: Vec<internal::Head> = stream::iter(newest)
            .map(|(workflow, head)| async move {
                let subject = self.log.layout.event_subject(&workflow);
                let newest = direct::last_by_subject(&self.log.connection, &self.stream(), &subject).await?;
                let has_later = newest.is_some_and(|newest| newest.seq > through);
                Ok::<_, TrimError>((!has_later).then_some(head))
            })
            .buffer_unordered(LOOKUPS)
            .try_filter_map(|head| async move { Ok(head) })
            .try_collect()
            .await?;
        for heads in heads.chunks(MESSAGE_HEADS_MAX) {
            self.append(heads.to_vec()).await?;
        }
        Ok(())
    }

    /// The newest head of each workflow in `messages`.
    fn newest(&self, messages: &[Stored]) -> BTreeMap<WorkflowId, internal::Head> {
        let mut newest: BTreeMap<WorkflowId, internal::Head> = BTreeMap::new();
        for message in messages {
            let heads = match Entry::decode(self.log.layout, message) {
                Entry::Event(event) => vec![internal::Head {
                    workflow_id: event.workflow.as_str().to_owned(),
                    sequence_number: event.sequence_number.0,
                    event_id: event.id.to_vec(),
                    stored_at_ms: message.stored_at.as_millisecond(),
                }],
                Entry::Erased(erasure) => vec![internal::Head {
                    workflow_id: erasure.event.workflow.as_str().to_owned(),
                    sequence_number: erasure.event.sequence_number.0,
                    event_id: erasure.event.id.to_vec(),
                    stored_at_ms: erasure.stored_at.as_millisecond(),
                }],
                Entry::Heads(record) => record.heads,
                Entry::Foreign(_) => vec![],
            };
            for head in heads {
                let Ok(workflow) = WorkflowId::new(head.workflow_id.as_str()) else { continue };
                let known = newest.entry(workflow).or_default();
                if known.sequence_number <= head.sequence_number {
                    *known = head;
                }
            }
        }
        newest
    }

    async fn append(&self, heads: Vec<internal::Head>) -> Result<(), TrimError> {
        let (_, message) = records::heads(self.log.layout.heads_subject(self.log.shard), heads);
        match publish(&self.log.connection, &message).await {
            Err(AppendErrorKind::Full(_)) => self.append_to_full(&message).await,
            stored => stored.map_err(TrimError::Heads),
        }
    }

    /// Trimming needs room itself: an admin raises the limit of a full stream for this append.
    async fn append_to_full(&self, message: &Outgoing) -> Result<(), TrimError> {
        let Log { connection, layout, shard } = &self.log;
        let stored = with_room(&self.admins, *layout, *shard, publish(connection, message)).await?;
        stored.map_err(TrimError::Heads)
    }
}

impl Drop for Trim {
    fn drop(&mut self) {
        self.conditions.set(&self.condition(), None);
    }
}

/// Size that the stream is trimmed to; `None`: there is enough room.
fn target(usage: Usage) -> Option<u64> {
    let max = usage.bytes_max?;
    (usage.bytes >= max / 100 * USED.0).then_some(max / 100 * USED.1)
}
