//! Lanes: which event is attempted when, and what becomes of it. Pure: no I/O, no clock, no async.
//!
//! A *lane* is the events of one workflow for one subscription. Only its head is attempted, so a receiver never gets event
//! n + 1 before event n is settled; lanes do not wait for each other. An unordered subscription has a lane for each event
//! instead.
//!
//! [`Lanes`] is the state machine of a shard; its doc comment describes the protocol. `lanes/` holds its parts by what they
//! decide. The other modules are what it is made of, and know nothing of it: the state of lanes and subscriptions, the
//! schedule with the circuit breaker and the token bucket of each subscription, the pending commits, the memory.

use weft_proto::{ids::StreamSeq, internal};

mod action;
mod attempt_table;
pub mod backoff;
mod catch_up_queue;
mod circuit;
mod input;
#[allow(clippy::module_inception, reason = "the machine's unit is the lane, and so is the module's")]
mod lane;
mod lanes;
mod memory;
mod pending_commits;
mod records;
mod schedule;
mod state;
mod token_bucket;

pub use action::{Action, LanePrevious, PendingCommit};
pub use backoff::RetryPolicy;
pub use circuit::{Cause, Condition};
pub use input::{
    AttemptEnd, AttemptResult, Command, CommandAction, HeadRef, Input, LaneCommand, LaneKey, OnExhausted, RedriveItem,
    ReplayCommand, SubscriptionPolicy, Work,
};
pub use lane::EVENT_OVERHEAD_BYTES;
pub(crate) use lane::{BATCH_BYTES_MAX, interval};
pub use lanes::{Lanes, LateCount};

/// Identifier of an attempt, unique in this process.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct AttemptId(pub u64);

/// Limits of one shard's lanes.
#[derive(Debug, Clone, Copy)]
pub struct Limits {
    /// Attempts in flight, of all subscriptions together.
    pub attempts_max: usize,
    /// Events that one lane buffers; of later ones it keeps positions only.
    pub lane_events_max: usize,
    /// Event lanes of one unordered subscription; of later events only positions are kept.
    pub event_lanes_max: usize,
    /// Lanes of one active subscription; it reads on when some are settled.
    pub lanes_max: usize,
    /// Lanes of one subscription that is paused or whose endpoint has retired; it reads on when it resumes.
    pub still_lanes_max: usize,
    /// Bytes of events that all lanes buffer; above that, only positions are kept.
    pub buffered_bytes_max: usize,
    /// Uncommitted outcomes; above that no attempt starts.
    pub uncommitted_max: usize,
    /// Lanes that read from EVENTS at a time.
    pub catch_ups_max: usize,
    /// Lanes of one active subscription that may wait to read from EVENTS while its reader continues. A lane that has to read
    /// buffers no event that arrives meanwhile, so a reader that outruns many of them leaves every event to be searched
    /// by workflow.
    pub catch_ups_waiting_max: usize,
    /// Bytes of one commit.
    pub commit_bytes_max: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            attempts_max: 512,
            lane_events_max: 64,
            // About 4 MB of positions. Only events that wait for a retry or an operator reach this number.
            event_lanes_max: 10_000,
            // About 300 MB, of workflows that all fail or are blocked. Healthy workflows of the shard wait only beyond that.
            lanes_max: 500_000,
            // As many as an operator looks through, and no more memory than a thousand active lanes.
            still_lanes_max: 1_000,
            buffered_bytes_max: 16 * 1024 * 1024,
            uncommitted_max: 10_000,
            catch_ups_max: 4,
            // On a log with a thousand workflows, searching all events takes ten times as long as reading them in order.
            catch_ups_waiting_max: 64,
            commit_bytes_max: 256 * 1024,
        }
    }
}

/// The ledger's state, from which a new owner starts.
#[derive(Debug, Clone, Default)]
pub struct Restored {
    /// EVENTS is matched up to here.
    pub cursor: StreamSeq,
    /// COMMANDS is carried out up to here.
    pub commands_cursor: u64,
    /// Unsettled lanes.
    pub lanes: Vec<internal::Lane>,
    /// Unsettled redrives and replays.
    pub runs: Vec<internal::PendingRun>,
    /// Subscriptions, with detached and closed ones.
    pub subscriptions: Vec<internal::SubscriptionState>,
    /// As [`Input::EarlierEnd`], if it is known.
    pub earlier_end: Option<StreamSeq>,
}

#[cfg(test)]
mod tests;
