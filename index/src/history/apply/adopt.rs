//! Adoption: removes everything that OUTCOMES states about events that no longer exist, by the rules of the ledger.

use redb::ReadableTable as _;
use weft_catalog::cut_off;
use weft_nats::subject::Layout;
use weft_proto::{
    ids::{EventId, ShardId, WorkflowId},
    internal,
};

use crate::history::tables::{
    DeadRow, DeliveryRow, EventRow, Tables, UID_MAX, UID_MIN, Uid, decode, encode, get, id_key,
};

impl Tables<'_> {
    /// Applies the adoption of a commit: removes the rows of the events after its cursor, and of unfinished runs of
    /// commands after its position.
    pub(super) fn adopt(
        &mut self,
        layout: Layout,
        shard: ShardId,
        commit: &internal::Commit,
    ) -> Result<(), redb::Error> {
        let (events, commands, shard) = (commit.cursor, commit.commands_cursor, shard.0);
        let command = commit.adopted.as_ref().map_or(0, |adopted| adopted.command);
        self.adoptions.insert((shard, command), (events, commit.at_ms))?;
        let lost = events.saturating_add(1);
        let deliveries = (shard, lost, &UID_MIN, 0)..=(shard, u64::MAX, &UID_MAX, u64::MAX);
        self.deliveries.retain_in(deliveries, |_, _| false)?;
        let attempts = (shard, lost, &UID_MIN, 0, 0)..=(shard, u64::MAX, &UID_MAX, u64::MAX, u32::MAX);
        self.attempts.retain_in(attempts, |_, _| false)?;
        self.still_open.retain_in((shard, lost, &UID_MIN)..=(shard, u64::MAX, &UID_MAX), |_, _| false)?;
        self.refused
            .retain_in((shard, commands.saturating_add(1), 0, &UID_MIN)..(shard + 1, 0, 0, &UID_MIN), |_, _| false)?;
        self.ranges.retain_in((shard, "", &UID_MIN, 0)..(shard + 1, "", &UID_MIN, 0), |(.., seq), _| seq <= events)?;
        let is_void = |row: &[u8]| DeliveryRow::is_pending(row);
        let runs = (shard, 0, &UID_MIN, 0)..(shard, lost, &UID_MIN, 0);
        let mut void = Vec::new();
        self.deliveries.retain_in(runs, |(_, seq, uid, run), row| {
            let stays = run <= commands || !is_void(row);
            if !stays {
                void.push((seq, *uid));
            }
            stays
        })?;
        self.void_postings(shard, lost)?;
        for (seq, uid) in void {
            self.classify(shard, seq, &uid)?;
        }
        self.void_dead_letters(shard, lost)?;
        self.cut_lanes(layout, ShardId(shard), events)?;
        self.cut_subscriptions(shard, events)
    }

    /// Whether an adoption has voided a record of an event that was made at `at_ms`.
    pub(super) fn is_void(&self, shard: ShardId, seq: u64, at_ms: i64) -> Result<bool, redb::Error> {
        for row in self.adoptions.range((shard.0, 0)..=(shard.0, u64::MAX))? {
            let (kept, adopted_at_ms) = row?.1.value();
            if kept < seq && at_ms < adopted_at_ms {
                return Ok(true);
            }
        }
        Ok(false)
    }

    fn void_dead_letters(&mut self, shard: u32, lost: u64) -> Result<(), redb::Error> {
        let mut void: Vec<(u64, Uid, DeadRow)> = Vec::new();
        for row in self.dead.range((shard, lost, &UID_MIN)..=(shard, u64::MAX, &UID_MAX))? {
            let (key, value) = row?;
            let (_, seq, uid) = key.value();
            void.push((seq, *uid, decode(value.value())?));
        }
        for (seq, uid, row) in void {
            self.dead.remove((shard, seq, &uid))?;
            let Some(outcome) = row.outcome else { continue };
            self.dead_by_time.remove((outcome.at_ms, shard, seq, &uid))?;
            let event: Option<EventRow> = get(&self.events, (shard, seq))?;
            let stands = event.is_some_and(|event| event.id == outcome.event_id);
            if let Some(id) = EventId::from_slice(&outcome.event_id).filter(|_| !stands) {
                self.event_ids.remove(id_key(id.as_bytes(), shard, seq))?;
            }
        }
        Ok(())
    }

    fn cut_lanes(&mut self, layout: Layout, shard: ShardId, events: u64) -> Result<(), redb::Error> {
        let mut cut: Vec<(String, Uid, u64, internal::Lane)> = Vec::new();
        for row in self.lanes.iter()? {
            let (key, value) = row?;
            let (workflow, uid, event) = key.value();
            let lane: internal::Lane = decode(value.value())?;
            let is_here = WorkflowId::new(workflow).is_ok_and(|workflow| layout.shard_of(&workflow) == shard);
            if is_here && lane.last > events {
                cut.push((workflow.to_owned(), *uid, event, lane));
            }
        }
        for (workflow, uid, event, lane) in cut {
            let key = (workflow.as_str(), &uid, event);
            self.lanes.remove(key)?;
            if !lane.unordered && (lane.next <= events || lane.paused) {
                let next = lane.next.min(events.saturating_add(1));
                self.lanes.insert(key, &encode(&internal::Lane { next, last: events, ..lane })[..])?;
            }
        }
        Ok(())
    }

    fn cut_subscriptions(&mut self, shard: u32, events: u64) -> Result<(), redb::Error> {
        let mut states: Vec<(Uid, internal::SubscriptionState)> = Vec::new();
        for row in self.subscriptions.range((shard, &UID_MIN)..=(shard, &UID_MAX))? {
            let (key, value) = row?;
            states.push((*key.value().1, decode(value.value())?));
        }
        for (uid, mut state) in states {
            cut_off(&mut state, events);
            self.subscriptions.insert((shard, &uid), &encode(&state)[..])?;
        }
        Ok(())
    }
}

impl DeliveryRow {
    /// Whether the delivery of an encoded row is unsettled.
    fn is_pending(row: &[u8]) -> bool {
        decode::<Self>(row).is_ok_and(|row| row.outcome.is_none())
    }
}
