//! What lanes are told.

use std::{
    hash::{DefaultHasher, Hash as _, Hasher as _},
    sync::Arc,
    time::Duration,
};

use bytes::Bytes;
use jiff::Timestamp;
use weft_nats::{catalog::Author, event::StoredEvent};
use weft_proto::{
    ids::{EventId, Run, StreamSeq, SubscriptionUid, WorkflowId},
    v1,
};

use super::{AttemptId, Limits, backoff::RetryPolicy};

/// Names a lane: the events of one workflow for one subscription, or one event of it where the subscription is not
/// ordered.
///
/// The order keeps the lanes of a subscription together, and in it those of a workflow.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct LaneKey {
    /// Whose.
    pub subscription: SubscriptionUid,
    /// A hash of the workflow's id, before it in the order: a tree of lanes is searched a dozen times for an event, and a
    /// number is compared without a look at another place in memory. Of equal ones the ids decide.
    workflow_hash: u64,
    /// Of which workflow.
    pub workflow: WorkflowId,
    /// The only event of the lane; `None`: it is the workflow's.
    pub event: Option<StreamSeq>,
}

impl LaneKey {
    /// The lane of a workflow.
    pub fn of_workflow(subscription: SubscriptionUid, workflow: WorkflowId) -> Self {
        let mut hasher = DefaultHasher::new();
        workflow.hash(&mut hasher);
        Self { subscription, workflow_hash: hasher.finish(), workflow, event: None }
    }

    /// No lane of the subscription sorts before this.
    pub(super) fn first_of(subscription: SubscriptionUid) -> Option<Self> {
        // Nor is an id shorter than one character, or of a lower one.
        let workflow = WorkflowId::new(" ").ok()?;
        Some(Self { subscription, workflow_hash: 0, workflow, event: None })
    }

    /// The lane of one event of this lane's workflow.
    pub fn of_event(&self, seq: StreamSeq) -> Self {
        Self { event: Some(seq), ..self.clone() }
    }

    /// The lane of its workflow.
    pub fn workflow_lane(&self) -> Self {
        Self { event: None, ..self.clone() }
    }
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
pub struct SubscriptionPolicy {
    /// Which subscription.
    pub uid: SubscriptionUid,
    /// Its name, for messages.
    pub name: String,
    /// The catalog's revision.
    pub revision: u64,
    /// It takes events from this sequence on.
    pub start: StreamSeq,
    /// Type patterns of the events that it takes.
    pub types: Vec<String>,
    /// Sources of the events that it takes; empty: all.
    pub sources: Vec<String>,
    /// Who wrote this revision.
    pub author: Author,
    /// How far the catalog had been read that says so.
    pub catalog: v1::CatalogPosition,
    /// Attempts in flight at the most.
    pub concurrency: usize,
    /// The time between two attempts at the least, but for some that come at once; `None`: no rate.
    pub min_interval: Option<Duration>,
    /// When a failed attempt is repeated, and how often.
    pub retry: RetryPolicy,
    /// What happens then.
    pub on_exhausted: OnExhausted,
    /// Events of a workflow wait for each other. The catalog keeps it as it was when the subscription was created.
    pub ordered: bool,
    /// Nothing is attempted.
    pub paused: bool,
}

/// What an attempt's end means for its lane.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum AttemptResult {
    /// The receiver has it.
    Delivered,
    /// There was no connection: the event was not sent. It is attempted again.
    Unreachable,
    /// The receiver answered that it is unavailable. It is attempted again.
    Unavailable,
    /// It failed, and may succeed later.
    Failed,
    /// The receiver never takes this event: dead letter at once.
    Rejected,
    /// The receiver wants nothing any more: its subscription pauses, and the event stays where it is.
    EndpointRetired,
    /// Our own configuration does not allow the attempt: none was made.
    Held,
}

impl AttemptResult {
    /// Whether another attempt may go better.
    pub fn is_transient(self) -> bool {
        match self {
            Self::Unreachable | Self::Unavailable | Self::Failed | Self::Held => true,
            Self::Delivered | Self::Rejected | Self::EndpointRetired => false,
        }
    }
}

/// How an attempt ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AttemptEnd {
    /// What it means.
    pub result: AttemptResult,
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

/// One event that a command is about: a dead letter, or what is replayed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RedriveItem {
    /// The lane of its workflow.
    pub lane: LaneKey,
    /// The subscription's name when the dead letter was made.
    pub subscription_name: String,
    /// The event's place in EVENTS.
    pub seq: StreamSeq,
    /// The event.
    pub event: EventId,
    /// The run that ended in the dead letter; of what is replayed the live one.
    pub dead_run: Run,
    /// Whether the ledger holds this dead letter as open: else the result is `not_applicable`. For what is replayed the
    /// lanes say themselves whether it is settled.
    pub applicable: bool,
}

/// What has to be a lane's head for a command to apply.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct HeadRef {
    /// Its place in EVENTS.
    pub seq: StreamSeq,
    /// From here to `seq` EVENTS holds nothing else of the lane: a lane that has not read its head yet only knows where
    /// it looks for it.
    pub next: StreamSeq,
}

/// What an operator wants of one lane.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum LaneCommand {
    /// The head is attempted at once; its retry policy begins anew.
    Retry {
        /// What has to be the head.
        head: HeadRef,
    },
    /// The head becomes a dead letter.
    Skip {
        /// What has to be the head.
        head: HeadRef,
        /// Its event.
        event: EventId,
    },
    /// Nothing is attempted until it is resumed.
    Pause,
    /// It goes on.
    Resume,
}

/// What an operator wants of a replay.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ReplayCommand {
    /// None of its runs is attempted until it is resumed.
    Pause,
    /// It goes on.
    Resume,
    /// What has not been delivered is discarded.
    Cancel,
}

/// What a command asks for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum CommandAction {
    /// Dead letters are delivered again.
    Redrive(Vec<RedriveItem>),
    /// Settled events are delivered again.
    Replay(Vec<RedriveItem>),
    /// Dead letters are not to be redriven.
    Close {
        /// Resolved or discarded.
        kind: v1::OutcomeKind,
        /// Which.
        items: Vec<RedriveItem>,
    },
    /// For one lane.
    Lane {
        /// Which: a workflow's. Of a subscription that is not ordered, the head names the event.
        lane: LaneKey,
        /// What of it.
        order: LaneCommand,
    },
    /// A subscription that is orphaned is closed: what it has pending is discarded.
    DiscardSubscription {
        /// Which.
        uid: SubscriptionUid,
    },
    /// For the runs of a replay.
    Runs {
        /// The command that asked for them.
        run: Run,
        /// What of them.
        order: ReplayCommand,
    },
}

/// An operator's wish, from COMMANDS.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Command {
    /// Its COMMANDS sequence: the run of what it has delivered.
    pub command: Run,
    /// Its request id.
    pub request_id: String,
    /// Who.
    pub operator: String,
    /// Why.
    pub reason: String,
    /// What.
    pub order: CommandAction,
}

/// Everything that can happen to lanes.
#[derive(Debug, Clone)]
pub enum Input {
    /// A subscription is there, or its rules have changed. Before any event that it takes.
    Subscribed(SubscriptionPolicy),
    /// A subscription has been deleted: what it has pending is discarded.
    Unsubscribed {
        /// Which.
        uid: SubscriptionUid,
        /// Who deleted it.
        operator: String,
        /// Why.
        reason: String,
        /// How far the catalog had been read that says so.
        catalog: v1::CatalogPosition,
    },
    /// The catalog no longer has a subscription, and does not say that anybody removed it. Its lanes and its place in the
    /// log are kept until it is in the catalog again, or an operator discards it.
    Orphaned {
        /// Which.
        uid: SubscriptionUid,
    },
    /// The shared reader came to this event; `matching` are the attached subscriptions that match it. None: unrouted.
    Arrived {
        /// The event.
        event: Arc<StoredEvent>,
        /// Who takes it.
        matching: Vec<SubscriptionUid>,
    },
    /// The shared reader came to a message that is no event.
    Skipped {
        /// Its sequence.
        seq: StreamSeq,
    },
    /// The shared reader finds that the log has dropped everything up to here before it was read.
    Trimmed {
        /// The last sequence of it.
        through: StreamSeq,
    },
    /// Everything up to here leaves the log soon: what of it is unsettled becomes a dead letter while it can be read.
    Expiring {
        /// The last sequence of it.
        through: StreamSeq,
    },
    /// The own reader of a detached subscription came to `seq`; `event` is there when the subscription takes it. If there
    /// is no room for it, [`Lanes::detached_through`](super::Lanes::detached_through) stays behind it, and it is read
    /// again later.
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
    AttemptFinished {
        /// Which.
        attempt: AttemptId,
        /// How.
        end: AttemptEnd,
    },
    /// The answer to [`Action::CatchUp`](super::Action::CatchUp): every event of the workflow that the subscription's
    /// [`Lanes::filters`](super::Lanes::filters) do not ignore, from the sequence asked for up to `through`, in order.
    CaughtUp {
        /// Which lane.
        lane: LaneKey,
        /// The events.
        events: Vec<Arc<StoredEvent>>,
        /// Nothing up to here is missing in `events`.
        through: StreamSeq,
        /// The log holds nothing any more from the sequence asked for up to here; 0: it may hold all of it.
        gone: StreamSeq,
    },
    /// The answer to [`Action::Load`](super::Action::Load). None: the copy is gone.
    Loaded {
        /// Which run.
        work: Work,
        /// Its event.
        event: Option<Arc<StoredEvent>>,
    },
    /// An operator's wish came from COMMANDS.
    CommandReceived(Command),
    /// A command that changes nothing here: repeated, or not ours. Only moves the COMMANDS position.
    CommandSkipped {
        /// Its COMMANDS sequence.
        command: u64,
    },
    /// No earlier owner has read EVENTS beyond this. Until it is known, a filter that becomes wider does not count: events
    /// that are still to be read may have been read by an earlier owner.
    EarlierEnd {
        /// The last sequence that one may have read.
        through: StreamSeq,
    },
    /// The draft with this number is stored in OUTCOMES.
    CommitStored {
        /// Its number.
        number: u64,
    },
    /// The bounds are others from now on. What is under way or in memory above them ends by itself.
    LimitsChanged(Limits),
    /// The moment that [`Lanes::next_deadline`](super::Lanes::next_deadline) named has come.
    TimerFired,
}
