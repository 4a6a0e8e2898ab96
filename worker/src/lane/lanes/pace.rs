//! The rates of replays: each attempt of a replay with a rate takes the next free slot of it, and waits for that as a retry waits.
//!
//! Slots are given out when an attempt could start. One that passes unused, because the subscription was paused or its receiver
//! away, is given up for a later one: a replay does not catch up faster than its rate.

use std::{
    collections::{BTreeMap, HashSet},
    time::Duration,
};

use jiff::{SignedDuration, Timestamp};
use weft_proto::ids::Run;

use super::Lanes;
use crate::lane::{input::LaneKey, lane::Target};

/// How long an event stays in memory for its slot. One that waits longer is read again: a slow replay may have one event of each
/// of many workflows.
const LOADED_MAX: SignedDuration = SignedDuration::from_secs(5);
/// How late an attempt may use its slot.
const SLOT_LATE_MAX: SignedDuration = SignedDuration::from_secs(1);

/// The next free slot of each replay with a rate.
#[derive(Debug, Default)]
pub(super) struct Paces(BTreeMap<Run, Timestamp>);

impl Paces {
    /// Takes the next slot.
    fn take(&mut self, run: Run, interval: Duration, now: Timestamp) -> Timestamp {
        let free = self.0.entry(run).or_insert(now);
        let slot = (*free).max(now);
        *free = slot.checked_add(interval).unwrap_or(Timestamp::MAX);
        slot
    }
}

impl Lanes {
    /// Whether an attempt waits for its slot.
    pub(super) fn waits_for_slot(&mut self, key: &LaneKey, target: Target, now: Timestamp) -> bool {
        let Target::Run(seq, run) = target else { return false };
        let pending = self.state.lanes.get_mut(key).and_then(|lane| lane.runs.get_mut(&(seq, run)));
        let Some((pending, interval)) = pending.and_then(|pending| pending.min_interval.map(|of| (pending, of))) else {
            return false;
        };
        if pending.slot.take().is_some_and(|slot| now.duration_since(slot) <= SLOT_LATE_MAX) {
            return false;
        }
        let slot = self.paces.take(run, interval, now);
        if slot <= now {
            return false;
        }
        pending.slot = Some(slot);
        pending.attempts.not_before = Some(slot);
        if slot.duration_since(now) > LOADED_MAX {
            pending.event = None;
        }
        true
    }

    /// Forgets the replays that have ended.
    pub(super) fn forget_paces(&mut self) {
        if self.paces.0.is_empty() {
            return;
        }
        let running: HashSet<Run> =
            self.state.lanes.values().flat_map(|lane| lane.runs.keys().map(|(_, run)| *run)).collect();
        self.paces.0.retain(|run, _| running.contains(run));
    }
}
