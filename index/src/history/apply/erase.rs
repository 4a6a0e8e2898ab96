//! Rows of erased events, and of the calls that erase them.

use redb::ReadableTable as _;
use weft_nats::erasure::Erasure;
use weft_proto::{
    ids::{ShardId, StreamSeq},
    internal,
};

use super::base_request_id;
use crate::history::tables::{EventRow, Tables, UID_MAX, UID_MIN, decode, encode, get, id_key};

impl Tables<'_> {
    /// The payload of an event was erased by the record at `record`. What receivers answered may quote it.
    pub(super) fn apply_erasure(
        &mut self,
        shard: ShardId,
        erasure: Erasure,
        record: StreamSeq,
    ) -> Result<(), redb::Error> {
        let (key, event) = ((shard.0, erasure.seq.0), erasure.event);
        self.erased.insert(key, record.0)?;
        // The event itself may have been removed before it was read, also before the first event that a new history reads.
        if self.events.get(key)?.is_none() {
            let row = EventRow { stored_at_ms: erasure.stored_at.as_millisecond(), ..EventRow::of(&event) };
            self.count_event(shard, erasure.seq.0, &row)?;
            self.changes.event(shard.0, erasure.seq.0, row.terms(), true);
            self.events.insert(key, &encode(&row)[..])?;
        }
        self.event_ids.insert(id_key(event.id.as_bytes(), shard.0, erasure.seq.0), ())?;
        let range = (shard.0, erasure.seq.0, &UID_MIN, 0, 0)..=(shard.0, erasure.seq.0, &UID_MAX, u64::MAX, u32::MAX);
        let mut attempts = Vec::new();
        for row in self.attempts.range(range)? {
            let (key, value) = row?;
            let (shard, seq, uid, run, number) = key.value();
            attempts.push(((shard, seq, *uid, run, number), decode::<internal::Attempt>(value.value())?));
        }
        for ((shard, seq, uid, run, number), attempt) in attempts {
            let attempt = without_answer(attempt);
            self.attempts.insert((shard, seq, &uid, run, number), &encode(&attempt)[..])?;
        }
        Ok(())
    }

    /// A call of `EraseEvents` was recorded, or is finished.
    pub(super) fn apply_erase(
        &mut self,
        shard: ShardId,
        seq: u64,
        request_id: &str,
        done: bool,
    ) -> Result<(), redb::Error> {
        if !done {
            self.erasures.insert((shard.0, seq), ())?;
            return Ok(());
        }
        let mut finished = Vec::new();
        for row in self.erasures.range((shard.0, 0)..=(shard.0, u64::MAX))? {
            let key = row?.0.value();
            let command: Option<internal::Command> = get(&self.commands, key)?;
            let is_of =
                |command: &internal::Command| base_request_id(&command.request_id) == base_request_id(request_id);
            if command.as_ref().is_none_or(is_of) {
                finished.push(key);
            }
        }
        for key in finished {
            self.erasures.remove(key)?;
        }
        Ok(())
    }
}

/// An attempt without what the receiver said.
pub(in crate::history) fn without_answer(attempt: internal::Attempt) -> internal::Attempt {
    internal::Attempt { response: Default::default(), error: String::new(), ..attempt }
}
