//! Removal of expired rows: those of events with EVENTS, those of commands with COMMANDS, dead letters after their
//! retention. Rows that a dead letter needs stay with it.
//!
//! A sweep removes a bounded number of events, so that no transaction grows with the number of expired rows; it returns
//! whether more are left.

use std::collections::BTreeSet;

use redb::ReadableTable as _;
use weft_nats::subject::Layout;
use weft_proto::{
    ids::{EventId, ShardId, StreamSeq, WorkflowId},
    internal::{self, command::Action},
};

use super::apply::{base_request_id, uid_of};
use super::pauses;
use super::tables::{DeadRow, DeliveryRow, EventRow, SWEPT, Tables, UID_MAX, UID_MIN, Uid, decode, get, id_key};

/// Maximum number of events, dead letters and commands that one sweep removes, each: some ten thousand rows, well under a
/// second of work.
pub(super) const SWEEP_MAX: usize = 2_000;
/// Maximum number of lanes that one sweep reads.
const LANES_MAX: usize = 10_000;

/// Limits of expiry.
#[derive(Debug, Clone)]
pub(super) struct Expired {
    /// The first sequences that the shards' EVENTS and COMMANDS still hold.
    pub firsts: Vec<(ShardId, StreamSeq, StreamSeq)>,
    /// Dead letters from before this have expired, in unix milliseconds.
    pub dead_before_ms: i64,
}

/// Position of the sweep of lanes, which are not ordered by age.
#[derive(Debug, Default)]
pub(super) struct LaneCursor(Option<(String, Uid, u64)>);

impl Tables<'_> {
    /// Removes expired rows. Returns whether more are left.
    pub fn sweep(&mut self, layout: Layout, expired: &Expired, lanes: &mut LaneCursor) -> Result<bool, redb::Error> {
        let mut more = self.sweep_dead(expired.dead_before_ms)?;
        for (shard, events, commands) in &expired.firsts {
            more |= self.sweep_events(*shard, *events)?;
            more |= self.sweep_commands(*shard, *commands)?;
        }
        self.sweep_lanes(layout, expired, lanes)?;
        more |= self.sweep_stats()?;
        Ok(more)
    }

    fn sweep_dead(&mut self, before_ms: i64) -> Result<bool, redb::Error> {
        let range = (i64::MIN, 0, 0, &UID_MIN)..(before_ms, 0, 0, &UID_MIN);
        let mut gone = Vec::new();
        for row in self.dead_by_time.range(range)?.take(SWEEP_MAX) {
            let (key, _) = row?;
            let (at, shard, seq, uid) = key.value();
            gone.push((at, shard, seq, *uid));
        }
        for (at, shard, seq, uid) in &gone {
            self.dead_by_time.remove((*at, *shard, *seq, uid))?;
            self.still_open.remove((*shard, *seq, uid))?;
            let row = self.dead.remove((*shard, *seq, uid))?;
            let row = row.map(|row| decode::<DeadRow>(row.value())).transpose()?;
            let swept = self.marks.get((SWEPT, *shard))?.map_or(0, |swept| swept.value());
            // The event expired earlier and was kept for its dead letter.
            if *seq <= swept && !self.has_dead(ShardId(*shard), *seq)? {
                let id = row.and_then(|row| row.outcome).and_then(|outcome| EventId::from_slice(&outcome.event_id));
                self.events.remove((*shard, *seq))?;
                if let Some(id) = id {
                    self.event_ids.remove(id_key(id.as_bytes(), *shard, *seq))?;
                }
                self.remove_deliveries(*shard, *seq, *seq, &BTreeSet::new())?;
            }
        }
        Ok(gone.len() == SWEEP_MAX)
    }

    fn sweep_events(&mut self, shard: ShardId, first: StreamSeq) -> Result<bool, redb::Error> {
        let swept = self.marks.get((SWEPT, shard.0))?.map_or(0, |swept| swept.value());
        self.sweep_erased(shard, first, swept)?;
        let mut through = first.0.saturating_sub(1);
        // The record of an erased event outlives its message, and what is known of the event stays with it.
        for row in self.erased.range((shard.0, swept + 1)..(shard.0, first.0))? {
            let (key, record) = row?;
            if record.value() >= first.0 {
                through = key.value().1 - 1;
                break;
            }
        }
        if swept >= through {
            return Ok(false);
        }
        let mut gone = Vec::new();
        for row in self.events.range((shard.0, swept + 1)..=(shard.0, through))?.take(SWEEP_MAX) {
            let (key, value) = row?;
            let row: EventRow = decode(value.value())?;
            gone.push((key.value().1, EventId::from_slice(&row.id)));
        }
        let full = gone.len() == SWEEP_MAX;
        if full {
            through = gone.last().map_or(through, |(seq, _)| *seq);
        }
        let kept = self.dead_among(shard, swept + 1, through)?;
        for (seq, id) in gone.into_iter().filter(|(seq, _)| !kept.contains(seq)) {
            self.events.remove((shard.0, seq))?;
            if let Some(id) = id {
                self.event_ids.remove(id_key(id.as_bytes(), shard.0, seq))?;
            }
        }
        self.erased.retain_in((shard.0, swept + 1)..=(shard.0, through), |_, _| false)?;
        self.remove_deliveries(shard.0, swept + 1, through, &kept)?;
        self.marks.insert((SWEPT, shard.0), through)?;
        self.sweep_postings(shard.0, through)?;
        Ok(full)
    }

    /// Removes events up to `swept` whose records of erasure have expired: a new history begins after them, and learns of them
    /// by their records.
    fn sweep_erased(&mut self, shard: ShardId, first: StreamSeq, swept: u64) -> Result<(), redb::Error> {
        let mut gone = Vec::new();
        for row in self.erased.range((shard.0, 0)..=(shard.0, swept))?.take(SWEEP_MAX) {
            let (key, record) = row?;
            if record.value() < first.0 {
                gone.push(key.value().1);
            }
        }
        for seq in gone {
            self.erased.remove((shard.0, seq))?;
            let kept = self.dead_among(shard, seq, seq)?;
            self.remove_deliveries(shard.0, seq, seq, &kept)?;
            let row: Option<EventRow> = if kept.is_empty() { get(&self.events, (shard.0, seq))? } else { None };
            if let Some(row) = row {
                self.events.remove((shard.0, seq))?;
                if let Some(id) = EventId::from_slice(&row.id) {
                    self.event_ids.remove(id_key(id.as_bytes(), shard.0, seq))?;
                }
            }
        }
        Ok(())
    }

    /// The events among these of which a dead letter is kept.
    fn dead_among(&self, shard: ShardId, from: u64, through: u64) -> Result<BTreeSet<u64>, redb::Error> {
        let range = (shard.0, from, &UID_MIN)..=(shard.0, through, &UID_MAX);
        self.dead.range(range)?.map(|row| Ok(row.map(|(key, _)| key.value().1)?)).collect()
    }

    /// Also of events that were dropped before they were read, which have no row.
    fn remove_deliveries(
        &mut self,
        shard: u32,
        from: u64,
        through: u64,
        kept: &BTreeSet<u64>,
    ) -> Result<(), redb::Error> {
        let deliveries = (shard, from, &UID_MIN, 0)..=(shard, through, &UID_MAX, u64::MAX);
        let mut ranges = Vec::new();
        self.deliveries.retain_in(deliveries, |key, value| {
            let keep = kept.contains(&key.1);
            let outcome = if keep { None } else { decode::<DeliveryRow>(value).ok().and_then(|row| row.outcome) };
            ranges
                .extend(outcome.filter(|outcome| outcome.from > 0).map(|outcome| (outcome.workflow_id, *key.2, key.1)));
            keep
        })?;
        for (workflow, uid, through) in ranges {
            self.ranges.remove((shard, workflow.as_str(), &uid, through))?;
        }
        let attempts = (shard, from, &UID_MIN, 0, 0)..=(shard, through, &UID_MAX, u64::MAX, u32::MAX);
        self.attempts.retain_in(attempts, |key, _| kept.contains(&key.1))?;
        Ok(())
    }

    fn sweep_commands(&mut self, shard: ShardId, first: StreamSeq) -> Result<bool, redb::Error> {
        let mut gone = Vec::new();
        for row in self.commands.range((shard.0, 0)..(shard.0, first.0))?.take(SWEEP_MAX) {
            let (key, value) = row?;
            gone.push((key.value().1, decode::<internal::Command>(value.value())?));
        }
        for (seq, command) in &gone {
            self.commands.remove((shard.0, *seq))?;
            self.requests.remove((command.request_id.as_str(), shard.0))?;
            if let Some((of, uid)) = pauses::key(command) {
                self.pauses.remove((of.as_str(), &uid, *seq))?;
            }
            let request_id = base_request_id(&command.request_id);
            let items = match &command.action {
                Some(Action::Redrive(redrive)) => &redrive.items[..],
                Some(Action::Close(close)) => &close.items[..],
                Some(Action::Replay(replay)) => {
                    self.replays.remove((command.at_ms, request_id))?;
                    &replay.items[..]
                }
                Some(Action::Lane(order)) => {
                    if let Some(uid) = uid_of(&order.subscription) {
                        self.refused.remove((shard.0, *seq, order.sequence, &uid))?;
                    }
                    &[]
                }
                Some(Action::DiscardSubscription(discard)) => {
                    if let Some(uid) = uid_of(&discard.subscription) {
                        self.refused.remove((shard.0, *seq, 0, &uid))?;
                    }
                    &[]
                }
                Some(Action::Erase(_)) => {
                    self.erasures.remove((shard.0, *seq))?;
                    &[]
                }
                Some(
                    Action::ReplayOrder(_)
                    | Action::Cancel(_)
                    | Action::Catalog(_)
                    | Action::Retry(_)
                    | Action::Adopt(_),
                )
                | None => &[],
            };
            if !items.is_empty() {
                self.replay_orders.remove(request_id)?;
            }
            for item in items {
                if let Some(uid) = uid_of(&item.subscription) {
                    self.redrives.remove((shard.0, item.sequence, &uid, *seq))?;
                    self.refused.remove((shard.0, *seq, item.sequence, &uid))?;
                }
            }
        }
        Ok(gone.len() == SWEEP_MAX)
    }

    /// Lanes of deleted subscriptions stay as a record of discarded events; they are removed with the last of their events.
    fn sweep_lanes(&mut self, layout: Layout, expired: &Expired, cursor: &mut LaneCursor) -> Result<(), redb::Error> {
        let from = cursor.0.take();
        let from = from.as_ref().map_or(("", &UID_MIN, 0), |(workflow, uid, event)| (workflow.as_str(), uid, *event));
        let mut gone = Vec::new();
        let mut seen = 0;
        for row in self.lanes.range(from..)?.take(LANES_MAX) {
            let (key, value) = row?;
            let lane: internal::Lane = decode(value.value())?;
            let (workflow, uid, event) = key.value();
            seen += 1;
            if seen == LANES_MAX {
                cursor.0 = Some((workflow.to_owned(), *uid, event));
            }
            let Some(shard) = WorkflowId::new(workflow).ok().map(|workflow| layout.shard_of(&workflow)) else {
                continue;
            };
            let expired = expired.firsts.iter().any(|(of, first, _)| *of == shard && lane.last < first.0);
            if expired && self.is_closed(shard, uid)? {
                gone.push((workflow.to_owned(), *uid, event));
            }
        }
        for (workflow, uid, event) in &gone {
            self.lanes.remove((workflow.as_str(), uid, *event))?;
        }
        Ok(())
    }

    fn is_closed(&self, shard: ShardId, uid: &Uid) -> Result<bool, redb::Error> {
        let state: Option<internal::SubscriptionState> = get(&self.subscriptions, (shard.0, uid))?;
        Ok(state.is_some_and(|state| state.closed))
    }
}
