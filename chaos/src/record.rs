//! Records of one run, as the outside sees it. The judge reads these and nothing else.
//!
//! Times are milliseconds since the start of the run by the driver's clock, which no fault steps.

use std::{collections::BTreeMap, fmt};

/// Milliseconds since the start of the run.
pub type Millis = u64;

/// A gateway's receipt for a delivery.
#[derive(Debug, Clone, PartialEq, Eq, serde::Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Receipt {
    /// Event id.
    pub event_id: String,
    /// Number of the event in its workflow.
    pub sequence_number: u64,
    /// Workflow id.
    pub workflow_id: String,
    /// Id of the event before it in the workflow.
    pub previous_event_id: Option<String>,
}

/// The answer to one submission.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Answer {
    /// 202: accepted now.
    Accepted(Receipt),
    /// 200: accepted before.
    Known(Receipt),
    /// Any other status, with the problem's code.
    Refused {
        /// HTTP status.
        status: u16,
        /// Code of the problem document.
        code: String,
    },
    /// No answer within the sender's time-out, or a broken connection.
    None(String),
}

impl Answer {
    /// The receipt of a 2xx.
    pub fn receipt(&self) -> Option<&Receipt> {
        match self {
            Self::Accepted(receipt) | Self::Known(receipt) => Some(receipt),
            Self::Refused { .. } | Self::None(_) => None,
        }
    }
}

impl fmt::Display for Answer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Accepted(receipt) => write!(f, "202 number {}", receipt.sequence_number),
            Self::Known(receipt) => write!(f, "200 number {}", receipt.sequence_number),
            Self::Refused { status, code } => write!(f, "{status} {code}"),
            Self::None(reason) => write!(f, "no answer ({reason})"),
        }
    }
}

/// One request of a sender to a gateway.
#[derive(Debug, Clone)]
pub struct Submission {
    /// Delivery id.
    pub delivery: String,
    /// Workflow id that the body names.
    pub workflow: String,
    /// Event type that the body names.
    pub event_type: String,
    /// Gateway number.
    pub gateway: usize,
    /// When the request was sent.
    pub sent: Millis,
    /// When the answer was complete, or the sender gave up.
    pub ended: Millis,
    /// The answer.
    pub answer: Answer,
}

/// One event on an `EVENTS` stream.
#[derive(Debug, Clone)]
pub struct Stored {
    /// Shard of the stream.
    pub shard: u32,
    /// Stream sequence.
    pub seq: u64,
    /// Event id.
    pub event_id: String,
    /// Workflow id.
    pub workflow: String,
    /// Number in the workflow.
    pub number: u64,
    /// Event id of the predecessor.
    pub previous: Option<String>,
    /// Delivery id.
    pub delivery: String,
    /// Event type.
    pub event_type: String,
    /// When the server stored it.
    pub at: Millis,
}

/// The receiver's answer to an attempt.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Reply {
    /// A status, sent in time.
    Status(u16),
    /// The connection was closed, or held beyond the subscription's time-out.
    None,
}

impl Reply {
    /// Whether the receiver has taken the event.
    pub fn taken(self) -> bool {
        matches!(self, Self::Status(200..=299))
    }
}

/// One attempt to deliver, as the receiver saw it.
#[derive(Debug, Clone)]
pub struct Arrival {
    /// Key of the subscription: its name, and for one that is created again, its generation.
    pub subscription: String,
    /// Event id.
    pub event_id: String,
    /// Workflow id.
    pub workflow: String,
    /// Number in the workflow.
    pub number: u64,
    /// Event id of the predecessor in the workflow.
    pub previous: Option<String>,
    /// The last event of this workflow that the subscription was given before.
    pub lane_previous: Option<String>,
    /// Delivery id in the body's data.
    pub delivery: String,
    /// Attempt number.
    pub attempt: u32,
    /// Epoch of the shard's owner.
    pub epoch: u64,
    /// Whether it is a redrive or replay.
    pub replay: bool,
    /// When it arrived.
    pub at: Millis,
    /// When the reply was decided; the reply leaves right after it.
    pub ended: Millis,
    /// The reply.
    pub reply: Reply,
}

/// Kinds of outcome.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum OutcomeKind {
    /// The receiver has taken it.
    Delivered,
    /// It is a dead letter.
    DeadLettered,
    /// An operator gave it up.
    Discarded,
    /// No subscription matched.
    Unrouted,
    /// An operator declared a dead letter done.
    Resolved,
}

/// One outcome on an `OUTCOMES` stream.
#[derive(Debug, Clone)]
pub struct Outcome {
    /// Shard of the stream.
    pub shard: u32,
    /// Hexadecimal uid of the subscription; empty for [`OutcomeKind::Unrouted`].
    pub uid: String,
    /// `EVENTS` sequence.
    pub seq: u64,
    /// First sequence of a range of events that the log had lost.
    pub from: u64,
    /// 0: the live delivery.
    pub run: u64,
    /// Kind.
    pub kind: OutcomeKind,
    /// Whether it is a dead letter because it was about to leave the log.
    pub expired: bool,
    /// Workflow id.
    pub workflow: String,
    /// Operator of a discard.
    pub operator: String,
    /// Epoch of the commit.
    pub epoch: u64,
    /// `OUTCOMES` sequence of the commit.
    pub commit: u64,
}

/// Numbers of events and of their outcomes.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Counts {
    /// Events stored.
    pub accepted: u64,
    /// Outcomes [`OutcomeKind::Delivered`].
    pub delivered: u64,
    /// Outcomes [`OutcomeKind::DeadLettered`].
    pub dead_lettered: u64,
    /// Outcomes [`OutcomeKind::Discarded`].
    pub discarded: u64,
    /// Outcomes [`OutcomeKind::Resolved`].
    pub resolved: u64,
    /// Outcomes [`OutcomeKind::Unrouted`].
    pub unrouted: u64,
}

/// A change of a subscription that a shard's owner recorded.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Change {
    /// It takes events from this `EVENTS` sequence on.
    Opened {
        /// First sequence.
        from: u64,
        /// Catalog revision.
        revision: u64,
    },
    /// Another catalog revision counts from this `EVENTS` sequence on.
    Revised {
        /// First sequence.
        from: u64,
        /// Catalog revision.
        revision: u64,
    },
    /// It was deleted; everything unsettled up to this sequence is discarded.
    Closed {
        /// Operator of the removal.
        operator: String,
        /// Last sequence.
        up_to: u64,
    },
}

/// A [`Change`] with its place.
#[derive(Debug, Clone)]
pub struct SubscriptionChange {
    /// Shard.
    pub shard: u32,
    /// Hexadecimal uid of the subscription.
    pub uid: String,
    /// The change.
    pub change: Change,
}

/// A subscription as the driver created, changed and deleted it.
#[derive(Debug, Clone)]
pub struct Subscription {
    /// Key, as in [`Arrival::subscription`].
    pub key: String,
    /// Name in the catalog.
    pub name: String,
    /// Hexadecimal uid.
    pub uid: String,
    /// Whether its events wait for each other.
    pub ordered: bool,
    /// Time of the call that created it, and of its answer.
    pub created: (Millis, Millis),
    /// Time of the call that deleted it, and of its answer.
    pub deleted: Option<(Millis, Millis)>,
    /// Type patterns by catalog revision.
    pub types: BTreeMap<u64, Vec<String>>,
    /// Time-out of an attempt.
    pub timeout: Millis,
}

/// Kinds of fault.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, clap::ValueEnum)]
pub enum FaultKind {
    /// SIGKILL, and a start after a pause
    Kill,
    /// SIGSTOP, and SIGCONT after a pause
    Stop,
    /// SIGTERM, and a start after the exit
    Restart,
    /// A network cut
    Cut,
    /// Added latency
    Delay,
    /// A step of a process's wall clock
    Clock,
    /// A change of the catalog
    Catalog,
    /// A full disk
    Disk,
    /// A restored stream
    Restore,
}

impl fmt::Display for FaultKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Kill => "kill",
            Self::Stop => "stop",
            Self::Restart => "restart",
            Self::Cut => "cut",
            Self::Delay => "delay",
            Self::Clock => "clock",
            Self::Catalog => "catalog",
            Self::Disk => "disk",
            Self::Restore => "restore",
        })
    }
}

/// A fault that was injected.
#[derive(Debug, Clone)]
pub struct Fault {
    /// Kind.
    pub kind: FaultKind,
    /// The target and the details, for the report.
    pub what: String,
    /// Start.
    pub from: Millis,
    /// When the driver ended it and the target ran again.
    pub until: Millis,
}

/// A dead letter as the admin lists it.
#[derive(Debug, Clone)]
pub struct DeadLetter {
    /// Subscription name.
    pub subscription: String,
    /// Event id.
    pub event_id: String,
    /// Number in the workflow.
    pub number: u64,
    /// Status.
    pub status: String,
}

/// An event as the admin shows it.
#[derive(Debug, Clone)]
pub struct Shown {
    /// Event id.
    pub event_id: String,
    /// Workflow id.
    pub workflow: String,
    /// Number in the workflow.
    pub number: u64,
    /// Event id of the predecessor.
    pub previous: Option<String>,
    /// Status over all subscriptions.
    pub status: String,
}

/// Something wrong with a process, seen by the driver.
#[derive(Debug, Clone)]
pub struct ProcessFailure {
    /// Process name.
    pub process: String,
    /// When it was seen.
    pub at: Millis,
    /// The observation.
    pub what: String,
}

/// Everything that is known of a run.
#[derive(Debug, Clone, Default)]
pub struct Records {
    /// Requests of the senders.
    pub submissions: Vec<Submission>,
    /// Events in the log, by shard and sequence.
    pub log: Vec<Stored>,
    /// Outcomes, in commit order within a shard.
    pub outcomes: Vec<Outcome>,
    /// Changes of subscriptions, as the owners recorded them.
    pub changes: Vec<SubscriptionChange>,
    /// Subscriptions that the driver made.
    pub subscriptions: Vec<Subscription>,
    /// Attempts, in the order of arrival.
    pub arrivals: Vec<Arrival>,
    /// Faults.
    pub faults: Vec<Fault>,
    /// Dead letters of the admin.
    pub dead_letters: Vec<DeadLetter>,
    /// Names of the subscriptions whose dead letters were redriven at the end.
    pub redriven: Vec<String>,
    /// Copies on `DLQ`: subscription name and event id, with the number of copies.
    pub copies: BTreeMap<(String, String), u64>,
    /// Events of the admin.
    pub shown: Vec<Shown>,
    /// The admin's stats of the senders' source.
    pub stats: Counts,
    /// Failures of processes.
    pub failures: Vec<ProcessFailure>,
}
