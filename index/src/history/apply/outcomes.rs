//! Rows from records of OUTCOMES.
//!
//! The rules for lanes are the ledger's: an outcome of the live run advances its lane past the event; then the lanes that
//! the commit lists are replaced; a lane without unsettled events has no row unless it is paused. Only the lanes of a deleted
//! subscription stay: they record which events were discarded with it.

use redb::ReadableTable as _;
use weft_catalog::apply_change;
use weft_nats::{message::Stored, records, subject::Layout};
use weft_proto::{
    ids::{ShardId, StreamSeq},
    internal::{self, CommandStatus, OutcomeKind, outcome_record::Record, subscription_change::Change},
    v1::ReceiverCondition,
};

use super::uid_of;
use crate::history::{
    change::CheckpointPart,
    tables::{
        CHECKPOINT, CHECKPOINT_AT, COMMANDED, DeadRow, DeliveryRow, EPOCH, FIRST_READ, MATCHED, Tables, UID_MAX,
        UID_MIN, Uid, WORKFLOW_LANE, encode, get,
    },
};

fn lane_key<'a>(lane: &'a internal::Lane, uid: &'a Uid) -> (&'a str, &'a Uid, u64) {
    (lane.workflow_id.as_str(), uid, if lane.unordered { lane.last } else { WORKFLOW_LANE })
}

impl Tables<'_> {
    pub(super) fn apply_outcome_record(
        &mut self,
        layout: Layout,
        shard: ShardId,
        message: &Stored,
    ) -> Result<(), redb::Error> {
        self.mark_first_read(shard, message.seq)?;
        let Some(record) = records::decode::<internal::OutcomeRecord>(message) else { return Ok(()) };
        match record.record {
            Some(Record::Commit(commit)) => {
                self.apply_commit(layout, shard, commit, message.stored_at.as_millisecond())
            }
            Some(Record::Chunk(chunk)) => self.apply_chunk(shard, &chunk),
            Some(Record::End(end)) => self.apply_checkpoint_end(shard, &end, message.stored_at.as_millisecond()),
            None => Ok(()),
        }
    }

    /// Applies a part of a checkpoint before OUTCOMES is read from `from` on.
    pub(in crate::history) fn apply_checkpoint(
        &mut self,
        shard: ShardId,
        from: StreamSeq,
        part: &CheckpointPart,
    ) -> Result<(), redb::Error> {
        self.mark_first_read(shard, from)?;
        match part {
            CheckpointPart::Chunks(chunks) => chunks.iter().try_for_each(|chunk| self.apply_chunk(shard, chunk)),
            CheckpointPart::End(end, at_ms) => self.apply_checkpoint_end(shard, end, *at_ms),
        }
    }

    fn mark_first_read(&mut self, shard: ShardId, seq: StreamSeq) -> Result<(), redb::Error> {
        if self.mark(FIRST_READ, shard)?.is_none() {
            self.marks.insert((FIRST_READ, shard.0), seq.0)?;
        }
        Ok(())
    }

    /// Applies a commit that the server stored at `at_ms`.
    fn apply_commit(
        &mut self,
        layout: Layout,
        shard: ShardId,
        commit: internal::Commit,
        at_ms: i64,
    ) -> Result<(), redb::Error> {
        if commit.adopted.is_some() {
            self.adopt(layout, shard, &commit)?;
        }
        self.apply_receivers(shard, &commit)?;
        for outcome in commit.outcomes {
            self.apply_outcome(shard, outcome, at_ms)?;
        }
        for attempt in commit.attempts {
            self.apply_attempt(shard, attempt, at_ms)?;
        }
        for lane in &commit.lanes {
            self.put_lane(lane)?;
        }
        for run in &commit.runs {
            self.apply_run(shard, run, at_ms)?;
        }
        for result in &commit.results {
            self.apply_result(shard, result)?;
        }
        for copy in commit.copies {
            self.put_copy_state(shard, copy)?;
        }
        for change in &commit.subscriptions {
            self.apply_change(shard, change)?;
        }
        self.marks.insert((MATCHED, shard.0), commit.cursor)?;
        self.marks.insert((COMMANDED, shard.0), commit.commands_cursor)?;
        Ok(())
    }

    fn apply_outcome(&mut self, shard: ShardId, outcome: internal::Outcome, at_ms: i64) -> Result<(), redb::Error> {
        let (seq, run, kind) = (outcome.sequence, outcome.run, outcome.kind());
        let uid = match uid_of(&outcome.subscription) {
            Some(uid) => uid,
            None if kind == OutcomeKind::Unrouted => UID_MIN,
            None => return Ok(()),
        };
        if kind != OutcomeKind::DeadLettered && self.is_swept(shard, seq, run)? {
            return Ok(());
        }
        self.count_outcome(shard, &outcome)?;
        if run == 0 && uid != UID_MIN {
            self.settle_lane(&uid, &outcome)?;
        }
        let key = (shard.0, seq, &uid, run);
        let mut row = self.delivery(key, &outcome.event_id, at_ms)?;
        row.attempts = row.attempts.max(outcome.attempts);
        row.next_attempt_at_ms = 0;
        if kind == OutcomeKind::DeadLettered && outcome.from == 0 {
            let dead = DeadRow { outcome: Some(outcome.clone()), witnessed: true, ..DeadRow::default() };
            self.put_dead(shard, seq, &uid, dead)?;
        }
        if outcome.from > 0 && uid != UID_MIN {
            self.ranges.insert((shard.0, outcome.workflow_id.as_str(), &uid, seq), outcome.from)?;
        }
        row.outcome = Some(outcome);
        self.put_delivery(key, &row)?;
        Ok(())
    }

    fn apply_attempt(&mut self, shard: ShardId, mut attempt: internal::Attempt, at_ms: i64) -> Result<(), redb::Error> {
        let Some(uid) = uid_of(&attempt.subscription) else { return Ok(()) };
        if self.is_swept(shard, attempt.sequence, attempt.run)? {
            return Ok(());
        }
        self.count_attempt(shard, &attempt)?;
        let key = (shard.0, attempt.sequence, &uid, attempt.run);
        let mut row = self.delivery(key, &attempt.event_id, at_ms)?;
        row.attempts = row.attempts.max(attempt.number);
        if row.outcome.is_none() {
            row.next_attempt_at_ms = attempt.next_attempt_at_ms;
        }
        self.put_delivery(key, &row)?;
        let key = (shard.0, attempt.sequence, &uid, attempt.run, attempt.number);
        // The fields of the key and of the event's row are not stored again.
        attempt.subscription.clear();
        attempt.event_id.clear();
        attempt.workflow_id.clear();
        self.attempts.insert(key, &encode(&attempt)[..])?;
        Ok(())
    }

    /// The row of a delivery of this event: the row of another event that had the sequence before is replaced.
    fn delivery(
        &mut self,
        key: (u32, u64, &Uid, u64),
        event_id: &[u8],
        at_ms: i64,
    ) -> Result<DeliveryRow, redb::Error> {
        let mut row: DeliveryRow = get(&self.deliveries, key)?.unwrap_or_default();
        if !event_id.is_empty() && !row.event_id.is_empty() && row.event_id != event_id {
            let (shard, seq, uid, run) = key;
            let attempts = (shard, seq, uid, run, 0)..=(shard, seq, uid, run, u32::MAX);
            self.attempts.retain_in(attempts, |_, _| false)?;
            row = DeliveryRow::default();
        }
        if row.event_id.is_empty() {
            row.event_id = event_id.to_vec();
        }
        row.recorded_at_ms = at_ms;
        Ok(row)
    }

    fn settle_lane(&mut self, uid: &Uid, outcome: &internal::Outcome) -> Result<(), redb::Error> {
        let event = if outcome.unordered { outcome.sequence } else { WORKFLOW_LANE };
        let lane: Option<internal::Lane> = get(&self.lanes, (outcome.workflow_id.as_str(), uid, event))?;
        let Some(lane) = lane else { return Ok(()) };
        self.put_lane(&internal::Lane {
            next: outcome.sequence.saturating_add(1),
            attempts: 0,
            uncounted: 0,
            next_attempt_at_ms: 0,
            first_failed_at_ms: 0,
            state: internal::LaneState::Open.into(),
            ..lane
        })
    }

    fn put_lane(&mut self, lane: &internal::Lane) -> Result<(), redb::Error> {
        let Some(uid) = uid_of(&lane.subscription) else { return Ok(()) };
        let key = lane_key(lane, &uid);
        if lane.next > lane.last && !lane.paused {
            self.lanes.remove(key)?;
        } else {
            self.lanes.insert(key, &encode(lane)[..])?;
        }
        Ok(())
    }

    fn apply_run(&mut self, shard: ShardId, run: &internal::PendingRun, at_ms: i64) -> Result<(), redb::Error> {
        let Some(uid) = uid_of(&run.subscription) else { return Ok(()) };
        self.name(&uid, &run.subscription_name)?;
        let key = (shard.0, run.sequence, &uid, run.run);
        let mut row = self.delivery(key, &run.event_id, at_ms)?;
        row.attempts = row.attempts.max(run.attempts);
        row.next_attempt_at_ms = run.next_attempt_at_ms;
        self.put_delivery(key, &row)?;
        Ok(())
    }

    /// An owner starts with every receiver available, so the states of the previous owner are dropped.
    fn apply_receivers(&mut self, shard: ShardId, commit: &internal::Commit) -> Result<(), redb::Error> {
        if self.mark(EPOCH, shard)? != Some(commit.epoch) {
            self.marks.insert((EPOCH, shard.0), commit.epoch)?;
            self.receivers.retain_in((shard.0, &UID_MIN)..=(shard.0, &UID_MAX), |_, _| false)?;
        }
        for state in &commit.receivers {
            let Some(uid) = uid_of(&state.subscription) else { continue };
            match state.condition() {
                ReceiverCondition::Away | ReceiverCondition::Held => {
                    self.receivers.insert((shard.0, &uid), &encode(state)[..])?;
                }
                ReceiverCondition::Available | ReceiverCondition::Paused | ReceiverCondition::Unspecified => {
                    self.receivers.remove((shard.0, &uid))?;
                }
            }
        }
        Ok(())
    }

    fn apply_result(&mut self, shard: ShardId, result: &internal::CommandResult) -> Result<(), redb::Error> {
        for item in result.items.iter().filter(|item| item.status() == CommandStatus::NotApplicable) {
            if let Some(uid) = uid_of(&item.subscription) {
                self.refused.insert((shard.0, result.command, item.sequence, &uid), ())?;
            }
        }
        Ok(())
    }

    fn apply_change(&mut self, shard: ShardId, change: &internal::SubscriptionChange) -> Result<(), redb::Error> {
        let Some(uid) = uid_of(&change.subscription) else { return Ok(()) };
        let mut state: internal::SubscriptionState = get(&self.subscriptions, (shard.0, &uid))?.unwrap_or_default();
        apply_change(&mut state, change);
        if let Some(Change::Opened(opened)) = &change.change {
            self.name(&uid, &opened.name)?;
        }
        self.subscriptions.insert((shard.0, &uid), &encode(&state)[..])?;
        Ok(())
    }

    /// Applies the parts of a checkpoint that no kept commit may contain: open dead letters, names of
    /// subscriptions, and lanes without later changes. A lane that was settled between the
    /// checkpoint's position and the chunk gets a row by this; its events have outcomes, so none is shown as pending,
    /// and its next commit corrects the row.
    fn apply_chunk(&mut self, shard: ShardId, chunk: &internal::CheckpointChunk) -> Result<(), redb::Error> {
        for state in &chunk.subscriptions {
            let Some(uid) = uid_of(&state.subscription) else { continue };
            self.name(&uid, &state.name)?;
            let key = (shard.0, &uid);
            if self.subscriptions.get(key)?.is_none() {
                self.subscriptions.insert(key, &encode(state)[..])?;
            }
        }
        if self.mark(CHECKPOINT, shard)?.is_some() {
            return Ok(());
        }
        for dead in &chunk.dead_letters {
            if let Some(uid) = uid_of(&dead.subscription) {
                self.still_open.insert((shard.0, dead.sequence, &uid), chunk.position)?;
            }
        }
        for copy in &chunk.copies {
            self.put_copy_state(shard, copy.clone())?;
        }
        for lane in &chunk.lanes {
            let Some(uid) = uid_of(&lane.subscription) else { continue };
            if self.lanes.get(lane_key(lane, &uid))?.is_none() {
                self.put_lane(lane)?;
            }
        }
        Ok(())
    }

    /// From the first checkpoint on whose position is within the part that was read, the state of earlier dead letters is
    /// known: they are open if it lists them.
    fn apply_checkpoint_end(
        &mut self,
        shard: ShardId,
        end: &internal::CheckpointEnd,
        at_ms: i64,
    ) -> Result<(), redb::Error> {
        let covers = self.mark(FIRST_READ, shard)?.is_some_and(|first| end.position.saturating_add(1) >= first);
        if covers && self.mark(CHECKPOINT, shard)?.is_none() {
            self.marks.insert((CHECKPOINT, shard.0), end.position)?;
            self.marks.insert((CHECKPOINT_AT, shard.0), u64::try_from(at_ms).unwrap_or_default())?;
        }
        Ok(())
    }

    fn mark(&self, name: &'static str, shard: ShardId) -> Result<Option<u64>, redb::Error> {
        Ok(self.marks.get((name, shard.0))?.map(|value| value.value()))
    }
}
