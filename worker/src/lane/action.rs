//! Actions that lanes request.

use std::sync::Arc;

use weft_nats::event::StoredEvent;
use weft_proto::{
    ids::{EventId, Run, StreamSeq, SubscriptionUid},
    internal,
};

use super::{
    AttemptId,
    circuit::Condition,
    input::{LaneKey, Work},
};

/// The event that a lane delivered last.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LanePrevious {
    /// This one, since the lane has been in memory.
    Known(EventId),
    /// None since the lane has been in memory: the ledger knows it.
    AskLedger,
    /// An event lane has none.
    Unordered,
}

/// An action for the driver.
#[derive(Debug, Clone)]
pub enum Action {
    /// Deliver events, in order: one, or a batch. Result: [`Input::AttemptFinished`](super::Input::AttemptFinished), in any
    /// case.
    Attempt {
        /// The attempt's id.
        id: AttemptId,
        /// The delivery of the first event.
        work: Work,
        /// The events, at least one: consecutive ones of the lane.
        events: Vec<Arc<StoredEvent>>,
        /// Number of this attempt of the first event in its run, from 1. It is the first attempt of the others.
        number: u32,
        /// The event that the lane delivered before.
        previous: LanePrevious,
    },
    /// Read a lane's next events from EVENTS; a read that fails is repeated. Result:
    /// [`Input::CaughtUp`](super::Input::CaughtUp).
    CatchUp {
        /// The lane.
        lane: LaneKey,
        /// First sequence wanted.
        from: StreamSeq,
        /// Last sequence wanted.
        through: StreamSeq,
        /// Maximum number of events.
        limit: usize,
    },
    /// Read the event of a redrive or replay. Result: [`Input::Loaded`](super::Input::Loaded).
    Load {
        /// The run.
        work: Work,
        /// The subscription's name when the dead letter was made: part of its copy's subject.
        subscription_name: String,
        /// The event.
        event: EventId,
        /// The run that ended in the dead letter.
        dead_run: Run,
    },
    /// Detach a subscription that has no room for an event: it reads EVENTS with its own reader, after
    /// [`Lanes::detached_through`](super::Lanes::detached_through), while [`Lanes::reads_on`](super::Lanes::reads_on), until
    /// it meets the shared reader. Results: [`Input::Backfilled`](super::Input::Backfilled),
    /// [`Input::Joined`](super::Input::Joined).
    Detach {
        /// The subscription.
        uid: SubscriptionUid,
    },
    /// Pause a subscription, whose endpoint has retired, in the catalog, unless it has another revision by now. Result:
    /// [`Input::Subscribed`](super::Input::Subscribed); until then its lanes stop.
    Pause {
        /// The subscription.
        uid: SubscriptionUid,
        /// The revision that it must have.
        revision: u64,
        /// The reason, for operators.
        reason: String,
    },
    /// Show the condition of a subscription's receiver, which has changed.
    Receiver {
        /// The subscription.
        uid: SubscriptionUid,
        /// The condition; `None`: the circuit is closed.
        condition: Option<Condition>,
    },
    /// Report that EVENTS has dropped unsettled events of a lane. They are recorded as expired, and the lane continues.
    Lost {
        /// The lane.
        lane: LaneKey,
        /// First sequence.
        from: StreamSeq,
        /// Last sequence.
        through: StreamSeq,
    },
}

/// The next commit.
#[derive(Debug, Clone)]
pub struct PendingCommit {
    /// Its number, one higher than the previous one's: [`Input::CommitStored`](super::Input::CommitStored) names it.
    pub number: u64,
    /// The record, without `epoch`, `worker` and `at_ms`, which the driver adds.
    pub commit: internal::Commit,
    /// The events that it dead-letters: they are copied to DLQ once it is stored.
    pub dead: Vec<Arc<StoredEvent>>,
}
