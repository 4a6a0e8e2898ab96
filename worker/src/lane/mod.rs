//! Lanes: which event is attempted when, and what becomes of it. Pure: no I/O, no clock, no async.
//!
//! A *lane* is the events of one workflow for one subscription. Only its head is ever attempted, so a receiver never sees
//! event n + 1 before event n is settled; lanes do not wait for each other.

use jiff::Timestamp;
use rand::rngs::StdRng;
use weft_proto::{ids::StreamSeq, v1};

mod action;
pub mod backoff;
mod input;

pub use action::{Action, Draft, LanePrevious};
pub use backoff::RetryPolicy;
pub use input::{AttemptEnd, Input, LaneKey, OnExhausted, RedriveItem, Rules, Verdict, Work};

/// Names an attempt in this process.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct AttemptId(pub u64);

/// The bounds of one shard's lanes.
#[derive(Debug, Clone, Copy)]
pub struct Limits {
    /// Attempts in flight, of all subscriptions together.
    pub attempts_max: usize,
    /// Events that one lane holds in memory; behind them only positions are kept.
    pub lane_events_max: usize,
    /// Bytes of events that all lanes hold in memory; above that, only positions are kept.
    pub buffered_bytes_max: usize,
    /// Outcomes that are not committed yet; above that no attempt starts.
    pub uncommitted_max: usize,
    /// Lanes that catch up at a time.
    pub catch_ups_max: usize,
    /// Bytes of one commit.
    pub commit_bytes_max: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            attempts_max: 512,
            lane_events_max: 64,
            buffered_bytes_max: 64 * 1024 * 1024,
            uncommitted_max: 10_000,
            catch_ups_max: 4,
            commit_bytes_max: 256 * 1024,
        }
    }
}

/// What a new owner starts from: the ledger's state.
#[derive(Debug, Clone, Default)]
pub struct Restored {
    /// EVENTS has been matched up to here.
    pub cursor: StreamSeq,
    /// COMMANDS has been carried out up to here.
    pub commands_cursor: u64,
    /// Unsettled lanes.
    pub lanes: Vec<v1::Lane>,
    /// Unsettled redrives.
    pub runs: Vec<v1::PendingRun>,
    /// Subscriptions seen, including detached ones.
    pub subscriptions: Vec<v1::SubscriptionState>,
}

/// All lanes of one shard.
#[derive(Debug)]
pub struct Lanes {}

impl Lanes {
    /// Lanes as the ledger left them. Rules follow by [`Input::Subscribed`]; until then their lanes wait.
    pub fn new(limits: Limits, restored: Restored, rng: StdRng) -> Self {
        let _ = (limits, restored, rng);
        todo!()
    }

    /// Takes note of what happened at `now` and adds what must be done to `actions`.
    pub fn handle(&mut self, input: Input, now: Timestamp, actions: &mut Vec<Action>) {
        let _ = (input, now, actions);
        todo!()
    }

    /// When [`Input::TimerFired`] is wanted, if ever.
    pub fn next_deadline(&self) -> Option<Timestamp> {
        todo!()
    }

    /// What has been decided since the last draft, if anything; at most `commit_bytes_max` at a time. The caller commits
    /// drafts in the order in which they are taken, one at a time, and reports each with [`Input::Committed`].
    pub fn take_draft(&mut self) -> Option<Draft> {
        todo!()
    }

    /// Whether [`take_draft`](Self::take_draft) would give something.
    pub fn has_draft(&self) -> bool {
        todo!()
    }

    /// From now on no attempt starts: what is in flight ends and is committed.
    pub fn drain(&mut self) {
        todo!()
    }

    /// Attempts in flight.
    pub fn attempts_in_flight(&self) -> usize {
        todo!()
    }

    /// How far the shared reader's events have been taken.
    pub fn cursor(&self) -> StreamSeq {
        todo!()
    }
}
