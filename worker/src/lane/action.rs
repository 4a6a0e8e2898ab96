//! What lanes ask for.

use std::sync::Arc;

use weft_nats::event::StoredEvent;
use weft_proto::{
    ids::{EventId, Run, StreamSeq, SubscriptionUid},
    v1,
};

use super::{
    AttemptId,
    circuit::Condition,
    input::{LaneKey, Work},
};

/// The event that a lane delivered last, as far as the machine knows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LanePrevious {
    /// Delivered while the lane has been in memory.
    Known(EventId),
    /// Not since the lane has been in memory: the ledger knows.
    AskLedger,
    /// The lane is of one event, so there is no chain.
    Unordered,
}

/// What the driver must do. Whatever is not only to be said has an answering [`Input`](super::Input).
#[derive(Debug, Clone)]
pub enum Action {
    /// Deliver an event. Answer: [`Input::AttemptFinished`](super::Input::AttemptFinished), always, whatever happens.
    Attempt {
        /// Names this attempt.
        id: AttemptId,
        /// What for.
        work: Work,
        /// The event.
        event: Arc<StoredEvent>,
        /// Number of this attempt in its run, from 1.
        number: u32,
        /// What the lane delivered before.
        previous: LanePrevious,
    },
    /// Read the workflow's subject from `from` on, at most `limit` events that the subscription takes, none above
    /// `through`. Answer: [`Input::CaughtUp`](super::Input::CaughtUp). The driver repeats a read that fails.
    CatchUp {
        /// Which lane.
        lane: LaneKey,
        /// The first sequence wanted.
        from: StreamSeq,
        /// The last sequence wanted.
        through: StreamSeq,
        /// The most events wanted.
        limit: usize,
    },
    /// Fetch the event of a redrive from its copy on DLQ. Answer: [`Input::Loaded`](super::Input::Loaded).
    Load {
        /// Which run.
        work: Work,
        /// The subscription's name when the dead letter was made: part of the copy's subject.
        subscription_name: String,
        /// The event.
        event: EventId,
        /// The run that ended in the dead letter.
        dead_run: Run,
    },
    /// A subscription has no room for an event: from now on it reads EVENTS on its own, behind
    /// [`Lanes::detached_through`](super::Lanes::detached_through), when [`Lanes::reads_on`](super::Lanes::reads_on) says
    /// so, until it meets the shared reader. Answers:
    /// [`Input::Backfilled`](super::Input::Backfilled), [`Input::Joined`](super::Input::Joined).
    Detach {
        /// Which.
        uid: SubscriptionUid,
    },
    /// The receiver wants nothing any more: pause the subscription in the catalog, if it is still what it was. The lanes
    /// stand still until the catalog has another revision of it. Answer: [`Input::Subscribed`](super::Input::Subscribed).
    Pause {
        /// Which.
        uid: SubscriptionUid,
        /// The revision that it must have.
        revision: u64,
        /// Why, for people.
        reason: String,
    },
    /// The receiver of a subscription stands otherwise than before: make it visible.
    Receiver {
        /// Whose.
        uid: SubscriptionUid,
        /// How; `None`: it is called freely.
        condition: Option<Condition>,
    },
    /// Events of a lane are no longer in EVENTS although they are unsettled: say it loudly. They are recorded as expired, and
    /// their lane goes on.
    Lost {
        /// Which lane.
        lane: LaneKey,
        /// First sequence.
        from: StreamSeq,
        /// Last sequence.
        through: StreamSeq,
    },
}

/// What is to be committed next.
#[derive(Debug, Clone)]
pub struct PendingCommit {
    /// Grows by one with each draft: [`Input::CommitStored`](super::Input::CommitStored) names it.
    pub number: u64,
    /// The record; `epoch`, `worker` and `at_ms` are the driver's to fill in.
    pub commit: v1::Commit,
    /// The events that the commit dead-letters: what is copied to DLQ once it is stored.
    pub dead: Vec<Arc<StoredEvent>>,
}
