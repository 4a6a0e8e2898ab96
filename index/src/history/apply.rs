//! Rows from messages of the log.
//!
//! Malformed messages are foreign: they are skipped, and the stream's position advances.

use jiff::Timestamp;
use redb::ReadableTable as _;
use weft_nats::{
    entry::Entry,
    erasure::ERASED_SEQUENCE,
    event::{Event, JSON, event_id_of},
    message::Stored,
    records,
    subject::Layout,
};
use weft_proto::{
    ids::{EventId, ShardId, SubscriptionUid},
    internal::{self, command::Action},
};

use super::{
    dead_letter_copy, pauses,
    tables::{DeadRow, EventRow, SWEPT, Tables, UID_MAX, UID_MIN, Uid, decode, encode, get, id_key},
};

mod adopt;
mod erase;
mod outcomes;

pub(super) use erase::without_answer;

/// Kind of a stream of the log.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum StreamKind {
    Events(ShardId),
    Outcomes(ShardId),
    Commands(ShardId),
    DeadLetters,
    Rejected,
}

impl StreamKind {
    /// The stream's name.
    pub fn stream(self, layout: Layout) -> String {
        match self {
            Self::Events(shard) => layout.events_stream(shard),
            Self::Outcomes(shard) => layout.outcomes_stream(shard),
            Self::Commands(shard) => layout.commands_stream(shard),
            Self::DeadLetters => weft_nats::subject::DLQ_STREAM.into(),
            Self::Rejected => weft_nats::subject::REJECTED_STREAM.into(),
        }
    }

    /// Whether a message's payload is needed for its rows.
    pub fn needs_payload(self) -> bool {
        matches!(self, Self::Outcomes(_) | Self::Commands(_) | Self::Rejected)
    }
}

/// The operator's request id, without the number of the part of a long request.
pub(super) fn base_request_id(request_id: &str) -> &str {
    request_id.split_once(super::PART_SEPARATOR).map_or(request_id, |(base, _)| base)
}

/// The uid of a field of a log record.
pub(super) fn uid_of(bytes: &[u8]) -> Option<Uid> {
    bytes.try_into().ok().filter(|uid| *uid != UID_MIN)
}

impl Tables<'_> {
    /// Applies a message.
    pub fn apply(&mut self, layout: Layout, source: StreamKind, message: &Stored) -> Result<(), redb::Error> {
        match source {
            StreamKind::Events(shard) => self.apply_event(layout, shard, message),
            StreamKind::Outcomes(shard) => self.apply_outcome_record(layout, shard, message),
            StreamKind::Commands(shard) => self.apply_command(shard, message),
            StreamKind::DeadLetters => self.apply_copy(layout, message),
            StreamKind::Rejected => {
                self.count_rejected(message);
                Ok(())
            }
        }
    }

    fn apply_event(&mut self, layout: Layout, shard: ShardId, message: &Stored) -> Result<(), redb::Error> {
        // Head records and foreign messages have no rows.
        let event = match Entry::decode(layout, message) {
            Entry::Event(event) => event,
            Entry::Erased(erasure) => return self.apply_erasure(shard, *erasure, message.seq),
            Entry::Heads(_) | Entry::Foreign(_) => return Ok(()),
        };
        let row = EventRow { stored_at_ms: message.stored_at.as_millisecond(), ..EventRow::of(&event) };
        self.count_event(shard, message.seq.0, &row)?;
        let before = self.events.insert((shard.0, message.seq.0), &encode(&row)[..])?;
        let before = before.map(|row| decode::<EventRow>(row.value())).transpose()?;
        // Another event had the place before EVENTS lost a part.
        if let Some(lost) = before.filter(|before| before.id != row.id) {
            self.changes.event(shard.0, message.seq.0, lost.terms(), false);
        }
        self.changes.event(shard.0, message.seq.0, row.terms(), true);
        self.event_ids.insert(id_key(event.id.as_bytes(), shard.0, message.seq.0), ())?;
        Ok(())
    }

    fn apply_command(&mut self, shard: ShardId, message: &Stored) -> Result<(), redb::Error> {
        let Some(command) = records::decode::<internal::Command>(message) else { return Ok(()) };
        let seq = message.seq.0;
        let request = (command.request_id.as_str(), shard.0);
        // A request acts once: the shard's owner ignores later commands with its id.
        if self.requests.get(request)?.is_some() {
            return Ok(());
        }
        self.requests.insert(request, seq)?;
        self.commands.insert((shard.0, seq), &message.payload[..])?;
        if let Some((of, uid)) = pauses::key(&command) {
            self.pauses.insert((of.as_str(), &uid, seq), ())?;
        }
        match command.action {
            Some(Action::Redrive(redrive)) => {
                for item in &redrive.items {
                    let Some(uid) = uid_of(&item.subscription) else { continue };
                    self.redrives.insert((shard.0, item.sequence, &uid, seq), ())?;
                    self.name(&uid, &item.subscription_name)?;
                }
            }
            Some(Action::Replay(_)) => {
                self.replays.insert((command.at_ms, base_request_id(&command.request_id)), ())?;
            }
            Some(Action::Cancel(cancel)) => {
                let order = (command.at_ms, internal::ReplayAction::Cancel.into());
                self.replay_orders.insert(cancel.operation.as_str(), order)?;
            }
            Some(Action::ReplayOrder(order)) => {
                // Streams of several shards contain it in any order.
                let known = self.replay_orders.get(order.replay.as_str())?.map_or(i64::MIN, |order| order.value().0);
                if command.at_ms >= known {
                    self.replay_orders.insert(order.replay.as_str(), (command.at_ms, order.action))?;
                }
            }
            Some(
                Action::Close(_)
                | Action::Lane(_)
                | Action::Catalog(_)
                | Action::Retry(_)
                | Action::DiscardSubscription(_)
                | Action::Adopt(_),
            )
            | None => {}
            Some(Action::Erase(erase)) => self.apply_erase(shard, seq, &command.request_id, erase.done)?,
        }
        Ok(())
    }

    fn apply_copy(&mut self, layout: Layout, message: &Stored) -> Result<(), redb::Error> {
        let Some(copy) = dead_letter_copy::decode(layout, message) else { return Ok(()) };
        let uid = *copy.subscription.as_bytes();
        self.name(&uid, &copy.subscription_name)?;
        if self.is_void(copy.shard, copy.seq.0, copy.outcome.at_ms)? {
            return Ok(());
        }
        let row =
            DeadRow { outcome: Some(copy.outcome), witnessed: false, event: Some(copy.event), ..DeadRow::default() };
        self.put_dead(copy.shard, copy.seq.0, &uid, row)
    }

    /// Merges two rows of a dead letter: of two runs the newer one is kept, of the same run either.
    pub(super) fn put_dead(&mut self, shard: ShardId, seq: u64, uid: &Uid, new: DeadRow) -> Result<(), redb::Error> {
        let key = (shard.0, seq, uid);
        let old: DeadRow = get(&self.dead, key)?.unwrap_or_default();
        let run = |row: &DeadRow| row.outcome.as_ref().map(|outcome| outcome.run);
        let (old_run, new_run) = (run(&old), run(&new));
        let copy_problem = if new_run > old_run { new.copy_problem } else { old.copy_problem };
        let old_at = old.outcome.as_ref().map(|outcome| outcome.at_ms);
        let newest = if new_run > old_run { new.outcome } else { old.outcome };
        let Some(newest) = newest else { return Ok(()) };
        if old_at != Some(newest.at_ms) {
            if let Some(at) = old_at {
                self.dead_by_time.remove((at, shard.0, seq, uid))?;
            }
            self.dead_by_time.insert((newest.at_ms, shard.0, seq, uid), ())?;
        }
        if let Some(id) = EventId::from_slice(&newest.event_id) {
            self.event_ids.insert(id_key(id.as_bytes(), shard.0, seq), ())?;
        }
        let merged = DeadRow {
            outcome: Some(newest),
            witnessed: old.witnessed || new.witnessed,
            event: old.event.or(new.event),
            copy_problem,
        };
        self.dead.insert(key, &encode(&merged)[..])?;
        Ok(())
    }

    /// Records the state of a dead letter's copy.
    pub(super) fn put_copy_state(&mut self, shard: ShardId, copy: internal::CopyState) -> Result<(), redb::Error> {
        let kind = copy.kind();
        let Some(outcome) = copy.outcome else { return Ok(()) };
        let Some(uid) = uid_of(&outcome.subscription) else { return Ok(()) };
        let key = (shard.0, outcome.sequence, &uid);
        let Some(row): Option<DeadRow> = get(&self.dead, key)? else { return Ok(()) };
        if row.outcome.as_ref().map(|dead| dead.run) != Some(outcome.run) {
            return Ok(());
        }
        let copy_problem = match kind {
            internal::CopyStateKind::Refused => format!("DLQ refuses it: {}", copy.problem),
            internal::CopyStateKind::Lost => "its event has left EVENTS".to_owned(),
            internal::CopyStateKind::Stored | internal::CopyStateKind::Unspecified => String::new(),
        };
        self.dead.insert(key, &encode(&DeadRow { copy_problem, ..row })[..])?;
        Ok(())
    }

    /// Whether rows of this event have expired: a late record of it must not create a row that no sweep
    /// removes. Redrives are of dead letters, which outlive their events.
    pub(super) fn is_swept(&self, shard: ShardId, seq: u64, run: u64) -> Result<bool, redb::Error> {
        let swept = self.marks.get((SWEPT, shard.0))?.is_some_and(|swept| seq <= swept.value());
        Ok(swept && run == 0 && !self.has_dead(shard, seq)?)
    }

    /// Whether a dead letter of this event is kept.
    pub(super) fn has_dead(&self, shard: ShardId, seq: u64) -> Result<bool, redb::Error> {
        let range = (shard.0, seq, &UID_MIN)..=(shard.0, seq, &UID_MAX);
        Ok(self.dead.range(range)?.next().transpose()?.is_some())
    }

    /// Records a subscription's name. Earlier versions gave copies the uid as name if the subscription had been removed from
    /// the catalog.
    pub(super) fn name(&mut self, uid: &Uid, name: &str) -> Result<(), redb::Error> {
        let is_name = !name.is_empty() && name != SubscriptionUid::from_bytes(*uid).to_string();
        if is_name && self.names.get(uid)?.is_none_or(|known| known.value() != name) {
            self.names.insert(uid, name)?;
        }
        Ok(())
    }
}

impl EventRow {
    /// The fields of an event.
    pub(super) fn of(event: &Event) -> Self {
        let nanoseconds = |time: Timestamp| i64::try_from(time.as_nanosecond()).unwrap_or_default();
        let (received_at_ns, time_ns) = (nanoseconds(event.received_at), nanoseconds(event.time));
        Self {
            id: event.id.to_vec(),
            workflow: event.workflow.as_str().to_owned(),
            event_type: event.event_type.clone(),
            source: event.source.clone(),
            sequence_number: event.sequence_number.0,
            stored_at_ms: 0,
            received_at_ns,
            time_ns: if time_ns == received_at_ns { 0 } else { time_ns },
            delivery_id: event.delivery_id.clone().unwrap_or_default(),
            previous: event.previous.map(|id| id.to_vec()).unwrap_or_default(),
            content_type: if event.content_type == JSON { String::new() } else { event.content_type.clone() },
        }
    }
}

/// The part of a message that is kept: the payloads of events are read from the log by queries.
pub(super) fn slim(source: StreamKind, mut message: Stored) -> Stored {
    if !source.needs_payload() && (event_id_of(&message).is_some() || source == StreamKind::DeadLetters)
        // The record of an erased event has its fields there.
        && message.headers.get(ERASED_SEQUENCE).is_none()
    {
        message.payload = bytes::Bytes::new();
    }
    message
}
