//! What lanes are told.

use std::{sync::Arc, time::Duration};

use bytes::Bytes;
use jiff::Timestamp;
use weft_nats::event::StoredEvent;
use weft_proto::{
    ids::{EventId, Run, StreamSeq, SubscriptionUid, WorkflowId},
    v1,
};

use super::{AttemptId, backoff::RetryPolicy};

/// Names a lane: the events of one workflow for one subscription.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct LaneKey {
    /// Whose.
    pub subscription: SubscriptionUid,
    /// Of which workflow.
    pub workflow: WorkflowId,
}

/// One thing to deliver: an event, to a subscription, in a run.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Work {
    /// The lane that it belongs to.
    pub lane: LaneKey,
    /// The event's place in EVENTS.
    pub seq: StreamSeq,
    /// Live, or the command that asked for it.
    pub run: Run,
}

/// What happens when the attempts of an event are used up.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum OnExhausted {
    /// It becomes a dead letter and the lane goes on.
    DeadLetter,
    /// The lane stands still until an operator decides.
    Block,
}

/// What lanes must know of a subscription.
#[derive(Debug, Clone, PartialEq)]
pub struct Rules {
    /// Which subscription.
    pub uid: SubscriptionUid,
    /// Its name, for messages.
    pub name: String,
    /// The catalog's revision.
    pub revision: u64,
    /// It takes events from this sequence on.
    pub start: StreamSeq,
    /// Attempts in flight at the most.
    pub concurrency: usize,
    /// The time between two attempts at the least, but for some that come at once; `None`: no rate.
    pub gap: Option<Duration>,
    /// When a failed attempt is repeated, and how often.
    pub retry: RetryPolicy,
    /// What happens then.
    pub on_exhausted: OnExhausted,
    /// Nothing is attempted.
    pub paused: bool,
}

/// What an attempt's end means for its lane.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// The receiver has it.
    Delivered,
    /// It may go better later.
    Transient,
    /// It never goes better: dead letter at once.
    Permanent,
    /// The receiver wants nothing any more: its subscription pauses, and the event stays where it is.
    Gone,
}

/// How an attempt ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AttemptEnd {
    /// What it means.
    pub verdict: Verdict,
    /// What it was.
    pub class: v1::AttemptClass,
    /// HTTP status; 0: none.
    pub status: u16,
    /// For a person; empty when delivered.
    pub error: String,
    /// First 1 KiB of the response.
    pub response: Bytes,
    /// What the receiver asked for: no attempt before this has passed.
    pub retry_after: Option<Duration>,
    /// When it began.
    pub started_at: Timestamp,
    /// When it ended.
    pub ended_at: Timestamp,
}

/// A redrive of one dead letter.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RedriveItem {
    /// The lane.
    pub lane: LaneKey,
    /// The subscription's name when the dead letter was made.
    pub subscription_name: String,
    /// The event's place in EVENTS.
    pub seq: StreamSeq,
    /// The event.
    pub event: EventId,
    /// The run that ended in the dead letter.
    pub dead_run: Run,
    /// Whether the ledger holds this dead letter as open: else the result is `not_applicable`.
    pub applicable: bool,
}

/// Everything that can happen to lanes.
#[derive(Debug, Clone)]
pub enum Input {
    /// A subscription is there, or its rules have changed. Before any event that it takes.
    Subscribed(Rules),
    /// A subscription has been deleted: what it has pending is discarded.
    Unsubscribed {
        /// Which.
        uid: SubscriptionUid,
        /// Who deleted it; empty where that is not known.
        operator: String,
        /// Why.
        reason: String,
    },
    /// The shared reader came to this event; `takers` are the attached subscriptions that match it. None: unrouted.
    Arrived {
        /// The event.
        event: Arc<StoredEvent>,
        /// Who takes it.
        takers: Vec<SubscriptionUid>,
    },
    /// The shared reader came to a message that is no event.
    Passed {
        /// Its sequence.
        seq: StreamSeq,
    },
    /// The own reader of a detached subscription came to `seq`; `event` is there when the subscription takes it.
    Backfilled {
        /// Which subscription.
        uid: SubscriptionUid,
        /// How far its reader has come.
        seq: StreamSeq,
        /// The event at `seq`, if taken.
        event: Option<Arc<StoredEvent>>,
    },
    /// A detached subscription has met the shared reader: from now on it is among the takers of [`Input::Arrived`].
    Joined {
        /// Which.
        uid: SubscriptionUid,
    },
    /// The attempt that [`Action::Attempt`](super::Action::Attempt) asked for has ended.
    Ended {
        /// Which.
        attempt: AttemptId,
        /// How.
        end: AttemptEnd,
    },
    /// The answer to [`Action::CatchUp`](super::Action::CatchUp): every event of the workflow that the subscription
    /// takes, from the sequence asked for up to `through`, in order.
    CaughtUp {
        /// Which lane.
        lane: LaneKey,
        /// The events.
        events: Vec<Arc<StoredEvent>>,
        /// Nothing up to here is missing in `events`.
        through: StreamSeq,
    },
    /// The answer to [`Action::Load`](super::Action::Load). None: the copy is gone.
    Loaded {
        /// Which run.
        work: Work,
        /// Its event.
        event: Option<Arc<StoredEvent>>,
    },
    /// A redrive came from COMMANDS.
    Redrive {
        /// Its COMMANDS sequence: the run of its items.
        command: Run,
        /// Its request id.
        request_id: String,
        /// What it names.
        items: Vec<RedriveItem>,
    },
    /// A command that changes nothing here: repeated, or not ours. Only moves the COMMANDS position.
    CommandPassed {
        /// Its COMMANDS sequence.
        command: u64,
    },
    /// The draft with this number is stored in OUTCOMES.
    Committed {
        /// Which.
        draft: u64,
    },
    /// The moment that [`Lanes::next_deadline`](super::Lanes::next_deadline) named has come.
    TimerFired,
}
