//! Lanes: which event is attempted when, and what becomes of it. Pure: no I/O, no clock, no async.
//!
//! A *lane* is the events of one workflow for one subscription. Only its head is ever attempted, so a receiver never sees
//! event n + 1 before event n is settled; lanes do not wait for each other. A subscription that is not ordered has a lane
//! for each event instead (`unordered`).

use weft_proto::{ids::StreamSeq, v1};

mod action;
pub mod backoff;
mod catch_up;
mod catch_up_queue;
mod circuit;
mod commands;
mod detached;
mod event_lanes;
mod expiry;
mod flaw;
mod input;
#[allow(clippy::module_inception, reason = "the machine's unit is the lane, and so is the module's")]
mod lane;
mod lanes;
mod memory;
mod pending_commits;
mod schedule;
mod settle;
mod state;
mod subscriptions;
mod token_bucket;

pub use action::{Action, LanePrevious, PendingCommit};
pub use backoff::RetryPolicy;
pub use circuit::{Cause, Condition};
pub use expiry::LateCount;
pub use input::{
    AttemptEnd, AttemptResult, Command, CommandAction, HeadRef, Input, LaneCommand, LaneKey, OnExhausted, RedriveItem,
    ReplayCommand, SubscriptionPolicy, Work,
};
pub use lane::EVENT_OVERHEAD_BYTES;
pub use lanes::Lanes;

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
    /// Lanes of single events of one subscription that is not ordered; behind them only positions are kept.
    pub event_lanes_max: usize,
    /// Lanes of one subscription that delivers; behind them it reads on when some have come to their end.
    pub lanes_max: usize,
    /// Lanes of one subscription that is paused or whose receiver is gone; behind them it reads on when it goes on.
    pub still_lanes_max: usize,
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
            // Some 4 MB of positions. Only events that wait, for a retry or an operator, come to so many.
            event_lanes_max: 10_000,
            // Some 300 MB, of workflows that all fail or are blocked. The shard's healthy workflows do not wait before that.
            lanes_max: 500_000,
            // What an operator looks through, and no more memory than a thousand lanes that deliver.
            still_lanes_max: 1_000,
            buffered_bytes_max: 16 * 1024 * 1024,
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
    /// As [`Input::EarlierEnd`], if it is known.
    pub earlier_end: Option<StreamSeq>,
}

#[cfg(test)]
mod tests;
