//! Effects of an adoption on the state: records of events after the last common one are void.

use prost::Message as _;
use redb::ReadableTable as _;
use weft_catalog::cut_off;
use weft_proto::internal;

use super::Tables;
use crate::ledger::{
    LedgerError,
    tables::{UID_BYTES, decode, head_seq},
};

impl Tables<'_> {
    /// Removes the records of EVENTS after `events`, and the runs of commands after `commands`.
    ///
    /// A dead letter whose redrive is void stays open. Request ids are kept: a command takes effect once, also where its record
    /// is lost.
    pub(super) fn adopt(&mut self, events: u64, commands: u64) -> Result<(), LedgerError> {
        self.cut_lanes(events)?;
        self.heads.retain(|_, head| head_seq(head).is_none_or(|seq| seq <= events))?;
        self.dead.retain(|key, _| seq_of(key).is_none_or(|seq| seq <= events))?;
        self.copies.retain(|key, _| seq_of(key).is_none_or(|seq| seq <= events))?;
        let mut void = Vec::new();
        for row in self.runs.iter()? {
            let (key, value) = row?;
            let run: internal::PendingRun = decode(value.value())?;
            if run.sequence > events || run.run > commands {
                void.push(key.value().to_vec());
            }
        }
        for key in void {
            self.runs.remove(&key[..])?;
        }
        self.cut_subscriptions(events)
    }

    fn cut_lanes(&mut self, events: u64) -> Result<(), LedgerError> {
        let mut cut = Vec::new();
        for row in self.lanes.iter()? {
            let (key, value) = row?;
            let lane: internal::Lane = decode(value.value())?;
            if lane.last > events {
                cut.push((key.value().to_vec(), lane));
            }
        }
        for (key, lane) in cut {
            self.lanes.remove(&key[..])?;
            if let Some(lane) = cut_lane(lane, events) {
                self.put_lane(&lane)?;
            }
        }
        Ok(())
    }

    /// Starts, filters and ends in the lost part are moved to its first sequence.
    fn cut_subscriptions(&mut self, events: u64) -> Result<(), LedgerError> {
        let states = self.subscriptions.iter()?.map(|row| decode::<internal::SubscriptionState>(row?.1.value()));
        for mut state in states.collect::<Result<Vec<_>, LedgerError>>()? {
            cut_off(&mut state, events);
            self.subscriptions.insert(&state.subscription[..], &state.encode_to_vec()[..])?;
        }
        Ok(())
    }
}

/// The rest of a lane; `None` where its only event is lost.
fn cut_lane(lane: internal::Lane, events: u64) -> Option<internal::Lane> {
    if lane.unordered {
        return None;
    }
    if lane.next <= events {
        return Some(internal::Lane { last: events, ..lane });
    }
    // Its head is lost, and so are the attempts of it.
    Some(internal::Lane {
        next: events + 1,
        last: events,
        attempts: 0,
        uncounted: 0,
        next_attempt_at_ms: 0,
        first_failed_at_ms: 0,
        state: internal::LaneState::Open.into(),
        ..lane
    })
}

fn seq_of(key: &[u8]) -> Option<u64> {
    let seq = key.get(UID_BYTES..)?;
    Some(u64::from_be_bytes(*seq.first_chunk()?))
}
