//! Inputs of the lanes.

use std::{
    hash::{DefaultHasher, Hash as _, Hasher as _},
    sync::Arc,
    time::Duration,
};

use bytes::Bytes;
use jiff::Timestamp;
use weft_catalog::Author;
use weft_nats::event::StoredEvent;
use weft_proto::{
    ids::{EventId, Run, StreamSeq, SubscriptionUid, WorkflowId},
    internal, v1,
};

use super::{AttemptId, Limits, backoff::RetryPolicy};

/// Key of a lane: of the events of one workflow for one subscription, or of a single event of an unordered one.
///
/// Ordered by subscription, then by workflow.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct LaneKey {
    /// The subscription.
    pub subscription: SubscriptionUid,
    /// Hash of the workflow id, compared before it: a tree of lanes is searched a dozen times for an event, and comparing a
    /// number needs no access to other memory.
    workflow_hash: u64,
    /// The workflow.
    pub workflow: WorkflowId,
    /// The only event of an event lane; `None`: the lane of the workflow.
    pub event: Option<StreamSeq>,
}

impl LaneKey {
    /// The lane of a workflow.
    pub fn of_workflow(subscription: SubscriptionUid, workflow: WorkflowId) -> Self {
        let mut hasher = DefaultHasher::new();
        workflow.hash(&mut hasher);
        Self { subscription, workflow_hash: hasher.finish(), workflow, event: None }
    }

    /// A key that no lane of the subscription sorts before.
    pub(super) fn first_of(subscription: SubscriptionUid) -> Option<Self> {
        // The lowest id of one character.
        let workflow = WorkflowId::new(" ").ok()?;
        Some(Self { subscription, workflow_hash: 0, workflow, event: None })
    }

    /// The event lane of one event of this lane's workflow.
    pub fn of_event(&self, seq: StreamSeq) -> Self {
        Self { event: Some(seq), ..self.clone() }
    }

    /// The workflow's lane.
    pub fn workflow_lane(&self) -> Self {
        Self { event: None, ..self.clone() }
    }
}

/// The delivery of an event to a subscription in a run.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Work {
    /// The lane that it belongs to.
    pub lane: LaneKey,
    /// The event's EVENTS sequence.
    pub seq: StreamSeq,
    /// Live, or the command that requested it.
    pub run: Run,
}

/// Policy for an event whose retries are exhausted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum OnExhausted {
    /// It becomes a dead letter, and the lane continues.
    DeadLetter,
    /// The lane is blocked until an operator decides.
    Block,
}

/// A subscription, as its lanes need it.
#[derive(Debug, Clone, PartialEq)]
pub struct SubscriptionPolicy {
    /// The subscription.
    pub uid: SubscriptionUid,
    /// The subscription's name.
    pub name: String,
    /// The catalog's revision.
    pub revision: u64,
    /// First EVENTS sequence that it takes.
    pub start: StreamSeq,
    /// Type patterns of the events that it takes.
    pub types: Vec<String>,
    /// Sources of the events that it takes; empty: all.
    pub sources: Vec<String>,
    /// Expression of the events that it takes; empty: none.
    pub expression: String,
    /// The author of this revision.
    pub author: Author,
    /// The position of the catalog snapshot.
    pub catalog: internal::CatalogPosition,
    /// Maximum number of attempts in flight.
    pub concurrency: usize,
    /// Average time between two attempts at the highest rate; `None`: unlimited.
    pub min_interval: Option<Duration>,
    /// Maximum number of events of one attempt, at least 1.
    pub max_events: usize,
    /// When and how often a failed attempt is retried.
    pub retry: RetryPolicy,
    /// Policy for exhausted events.
    pub on_exhausted: OnExhausted,
    /// Events of a workflow wait for each other. Fixed when the subscription is created.
    pub ordered: bool,
    /// Nothing is attempted.
    pub paused: bool,
}

/// Result of an attempt.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum AttemptResult {
    /// The receiver accepted the event.
    Delivered,
    /// No connection: the event was not sent. Retried.
    Unreachable,
    /// The receiver, or a proxy before it, answered that it is unavailable. Retried.
    Unavailable,
    /// It failed, and may succeed later. Retried.
    Failed,
    /// The receiver rejects this event: a dead letter at once.
    Rejected,
    /// The endpoint accepts no events any more: its subscription pauses, and the event stays unsettled.
    EndpointRetired,
    /// Weft's own configuration does not allow the call: no attempt was made.
    Held,
    /// The filter has no result for the event, so nothing was sent: a dead letter at once.
    FilterFailed,
    /// The transform has no result for the event, so nothing was sent: a dead letter at once.
    TransformFailed,
}

impl AttemptResult {
    /// Whether another attempt may succeed.
    pub fn is_transient(self) -> bool {
        match self {
            Self::Unreachable | Self::Unavailable | Self::Failed | Self::Held => true,
            Self::Delivered | Self::Rejected | Self::EndpointRetired | Self::FilterFailed | Self::TransformFailed => {
                false
            }
        }
    }
}

/// The end of an attempt, for one of its events.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AttemptEnd {
    /// The result, which decides what becomes of the event.
    pub result: AttemptResult,
    /// Its class for the record.
    pub class: v1::AttemptClass,
    /// The receiver's status code, for the record; 0: none.
    pub status: u16,
    /// Of a failure: it is this event's. `false`: it is that of a batch, and which of its events is at fault is not known.
    pub is_attributed: bool,
    /// Error message; empty when delivered.
    pub error: String,
    /// First 1 KiB of the response.
    pub response: Bytes,
    /// Minimum wait before the next attempt, as the receiver asked.
    pub retry_after: Option<Duration>,
    /// When it started.
    pub started_at: Timestamp,
    /// When it ended.
    pub ended_at: Timestamp,
    /// Milliseconds from the start until the connection was ready; `None`: it was not, or that is not known.
    pub connected_ms: Option<u32>,
    /// Milliseconds from the start until the head of the response; `None`: none came, or that is not known.
    pub answered_ms: Option<u32>,
}

/// One event of a command: a dead letter, or a replayed event.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RedriveItem {
    /// The lane of its workflow.
    pub lane: LaneKey,
    /// The subscription's name when the dead letter was made.
    pub subscription_name: String,
    /// The event's EVENTS sequence.
    pub seq: StreamSeq,
    /// The event.
    pub event: EventId,
    /// The run that ended in the dead letter; of a replayed event the live one.
    pub dead_run: Run,
    /// Whether the ledger has this dead letter as open; if not, the result is `not_applicable`. Ignored for a replay, for
    /// which the lanes know whether the event is settled.
    pub applicable: bool,
}

/// The head that a command to a lane applies to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct HeadRef {
    /// Its EVENTS sequence.
    pub seq: StreamSeq,
    /// EVENTS holds no earlier event of the lane from here on: a lane that has not read its head yet knows only where to
    /// look for it.
    pub next: StreamSeq,
}

/// An operator's command to one lane.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LaneCommand {
    /// Attempts the head at once, with all its retries.
    Retry {
        /// The head that it applies to.
        head: HeadRef,
    },
    /// Makes the head a dead letter.
    Skip {
        /// The head that it applies to.
        head: HeadRef,
        /// The id of its event.
        event: EventId,
    },
    /// Stops attempts until it is resumed.
    Pause,
    /// Resumes attempts.
    Resume,
}

/// An operator's command to the runs of a replay.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ReplayCommand {
    /// Stops their attempts until they are resumed.
    Pause,
    /// Resumes their attempts.
    Resume,
    /// Discards the runs that are not settled.
    Cancel,
    /// Ends the runs of a redrive that are not settled: their dead letters stay open. A run that is being attempted ends with
    /// that attempt.
    Reopen,
}

/// The action of a command.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum CommandAction {
    /// Delivers dead letters again.
    Redrive(Vec<RedriveItem>),
    /// Delivers settled events again.
    Replay {
        /// The events, each for a subscription.
        items: Vec<RedriveItem>,
        /// Average time between two of their attempts; `None`: unlimited.
        min_interval: Option<Duration>,
    },
    /// Closes dead letters without a redrive.
    Close {
        /// Resolved or discarded.
        kind: internal::OutcomeKind,
        /// The dead letters.
        items: Vec<RedriveItem>,
    },
    /// A command to one lane.
    Lane {
        /// The lane of a workflow. Of an unordered subscription, the head names the event.
        lane: LaneKey,
        /// The command.
        command: LaneCommand,
    },
    /// Closes an orphaned subscription: its pending events are discarded.
    DiscardSubscription {
        /// The subscription.
        uid: SubscriptionUid,
    },
    /// A command to the runs of a replay.
    Runs {
        /// The replay's command.
        run: Run,
        /// The command.
        command: ReplayCommand,
    },
}

/// An operator's command, from COMMANDS.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Command {
    /// Its COMMANDS sequence, which is the run of the events that it delivers.
    pub run: Run,
    /// Its request id.
    pub request_id: String,
    /// The operator.
    pub operator: String,
    /// The operator's reason.
    pub reason: String,
    /// The requested action.
    pub action: CommandAction,
}

/// An input of the lanes.
#[derive(Debug, Clone)]
pub enum Input {
    /// A subscription was added to the catalog, or has another revision. Precedes the events that it takes.
    Subscribed(SubscriptionPolicy),
    /// An operator has removed a subscription: its pending events are discarded.
    Unsubscribed {
        /// The subscription.
        uid: SubscriptionUid,
        /// The operator.
        operator: String,
        /// The operator's reason.
        reason: String,
        /// The position of the catalog snapshot.
        catalog: internal::CatalogPosition,
    },
    /// The catalog lacks a subscription without a record of its removal. Its lanes and its position in EVENTS are kept until
    /// it is in the catalog again, or an operator discards it.
    Orphaned {
        /// The subscription.
        uid: SubscriptionUid,
    },
    /// The shared reader has read an event.
    Arrived {
        /// The event.
        event: Arc<StoredEvent>,
        /// The attached subscriptions that match it; none: it is unrouted.
        matching: Vec<SubscriptionUid>,
    },
    /// The shared reader has read a message that is not an event, or one that no attached subscription takes now.
    Skipped {
        /// The sequence of the message.
        seq: StreamSeq,
    },
    /// EVENTS has dropped messages before the shared reader has read them.
    Trimmed {
        /// The last sequence that was dropped.
        through: StreamSeq,
    },
    /// EVENTS will soon drop messages: unsettled events up to there become dead letters while they can be read.
    Expiring {
        /// The last sequence that will be dropped.
        through: StreamSeq,
    },
    /// The reader of a detached subscription has read a message. If there is no room for its event,
    /// [`Lanes::detached_through`](super::Lanes::detached_through) stays before it, and it is read again later.
    Backfilled {
        /// The subscription.
        uid: SubscriptionUid,
        /// The sequence that its reader has reached.
        seq: StreamSeq,
        /// The event at `seq`, if the subscription takes it.
        event: Option<Arc<StoredEvent>>,
    },
    /// A detached subscription has met the shared reader: from now on it is among those of [`Input::Arrived`].
    Joined {
        /// The subscription.
        uid: SubscriptionUid,
    },
    /// The attempt of an [`Action::Attempt`](super::Action::Attempt) has ended.
    AttemptFinished {
        /// The attempt.
        attempt: AttemptId,
        /// The ends of its events, in order and at least one: of those that the receiver accepted, and of the next one if it
        /// failed. The others have not been attempted.
        ends: Vec<AttemptEnd>,
    },
    /// The payload of an event was erased: `event` is what is left of it, at its sequence. Its deliveries settle without
    /// another attempt.
    Erased {
        /// The event.
        event: Arc<StoredEvent>,
    },
    /// The result of an [`Action::CatchUp`](super::Action::CatchUp).
    CaughtUp {
        /// The lane.
        lane: LaneKey,
        /// The events of the workflow that the subscription's [`Lanes::filters`](super::Lanes::filters) do not ignore, in
        /// order.
        events: Vec<Arc<StoredEvent>>,
        /// `events` is complete up to here.
        through: StreamSeq,
        /// EVENTS holds nothing any more from the first sequence wanted up to here; 0: it may hold all of it.
        gone: StreamSeq,
    },
    /// The result of an [`Action::Load`](super::Action::Load).
    Loaded {
        /// The run.
        work: Work,
        /// Its event; `None`: its copy is no longer kept.
        event: Option<Arc<StoredEvent>>,
    },
    /// A command was read from COMMANDS.
    CommandReceived(Command),
    /// A command that changes nothing in this shard, such as a repeated one. It only moves the COMMANDS cursor.
    CommandSkipped {
        /// Its COMMANDS sequence.
        command: u64,
    },
    /// No earlier owner has read EVENTS beyond a sequence. Until this is known, no wider filter is in force.
    EarlierEnd {
        /// The last sequence that one may have read.
        through: StreamSeq,
    },
    /// A commit is stored in OUTCOMES.
    CommitStored {
        /// The number of the commit.
        number: u64,
    },
    /// The limits have changed. Attempts in flight and events in memory beyond them are not cut off.
    LimitsChanged(Limits),
    /// The time of [`Lanes::next_deadline`](super::Lanes::next_deadline) has come.
    TimerFired,
}
