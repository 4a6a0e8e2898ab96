//! The tables of the history, and the rows in them.
//!
//! | table | key | holds | written by |
//! |---|---|---|---|
//! | `events` | shard, sequence | an event without its payload | EVENTS |
//! | `event_ids` | shard, segment, event id, sequence | – | EVENTS, OUTCOMES, DLQ |
//! | `postings` | shard, segment, term | the set of events with the term (see `postings`) | EVENTS, OUTCOMES |
//! | `sources` | source | the first of its events that was read | EVENTS |
//! | `deliveries` | shard, sequence, uid, run | outcome, attempts, next attempt | OUTCOMES |
//! | `ranges` | shard, workflow id, uid, last sequence | the first sequence of an outcome of several events | OUTCOMES |
//! | `attempts` | shard, sequence, uid, run, number | `internal::Attempt` | OUTCOMES |
//! | `dead` | shard, sequence, uid | the newest dead letter of a delivery | OUTCOMES, DLQ |
//! | `dead_by_time` | when, shard, sequence, uid | – | with `dead` |
//! | `still_open` | shard, sequence, uid | the checkpoint that lists it | OUTCOMES |
//! | `lanes` | workflow id, uid, sequence of the lane of one event, else 0 | `internal::Lane`: what is unsettled | OUTCOMES |
//! | `receivers` | shard, uid | `internal::ReceiverState` of a receiver that is away or held | OUTCOMES |
//! | `subscriptions` | shard, uid | `internal::SubscriptionState` | OUTCOMES |
//! | `names` | uid | the subscription's name | OUTCOMES, COMMANDS, DLQ |
//! | `commands` | shard, COMMANDS sequence | `internal::Command` | COMMANDS |
//! | `requests` | request id, shard | the COMMANDS sequence that came first | COMMANDS |
//! | `redrives` | shard, sequence, uid, COMMANDS sequence | – | COMMANDS |
//! | `refused` | shard, COMMANDS sequence, sequence, uid | – | OUTCOMES |
//! | `replays` | unix ms, request id | – | COMMANDS |
//! | `replay_orders` | the request id of the replay, or of the cancelled call | unix ms and action of the newest order | COMMANDS |
//! | `pauses` | workflow id, uid, COMMANDS sequence; of a subscription: its name, nil uid, sequence | – | COMMANDS |
//! | `adoptions` | shard, COMMANDS sequence of the order | the last event that was kept, unix ms | OUTCOMES |
//! | `stats_rows` | minute, kind of label, label | counts and histograms | EVENTS, OUTCOMES, REJECTED |
//! | `stat_labels` | kind of label, label | the newest minute with it | EVENTS, OUTCOMES, REJECTED |
//! | `stat_waiting` | shard, sequence | facts to be counted once the event is read | OUTCOMES |
//! | `erased` | shard, sequence | the EVENTS sequence of the record that its payload was erased | EVENTS |
//! | `erasures` | shard, COMMANDS sequence | –: the call is not finished | COMMANDS |
//! | `marks` | name, shard | a number | OUTCOMES, the sweep |
//!
//! Where two streams write the same table, either they write the same (a copy on DLQ contains the fields of its outcome), or
//! the newer run wins: the rows do not depend on which stream is read first.

use prost::Message;
use redb::{ReadTransaction, ReadableTable, Table, TableDefinition, WriteTransaction};
use weft_proto::internal;

use super::{
    bits::SEGMENT_SEQUENCES,
    stats::batch::Batch,
    terms::{Changes, Terms},
};

/// A subscription's uid as part of a key.
pub(super) type Uid = [u8; 16];
/// Below every uid. Also stands for "no subscription" in the outcome of an unrouted event: no uid is nil.
pub(super) const UID_MIN: Uid = [0; 16];
/// Above every uid.
pub(super) const UID_MAX: Uid = [0xff; 16];

type Row = &'static [u8];
type Bytes16 = &'static [u8; 16];
type DeliveryKey = (u32, u64, Bytes16);
type RunKey = (u32, u64, Bytes16, u64);
type IdKey = (u32, u64, Bytes16, u64);

/// Sequence in the key of a workflow's lane; the lane of one event has the event's sequence.
pub(super) const WORKFLOW_LANE: u64 = 0;

/// Position up to which the shard's COMMANDS have been executed.
pub(super) const COMMANDED: &str = "commanded";
/// Position up to which the shard's EVENTS have been matched.
pub(super) const MATCHED: &str = "matched";
/// The epoch of the shard's newest owner.
pub(super) const EPOCH: &str = "epoch";
/// The EVENTS sequence up to which expired rows have been removed.
pub(super) const SWEPT: &str = "swept";
/// The first record of OUTCOMES that was read.
pub(super) const FIRST_READ: &str = "first read";
/// The position of the first complete checkpoint after that.
pub(super) const CHECKPOINT: &str = "checkpoint";
/// When that was stored, in unix milliseconds.
pub(super) const CHECKPOINT_AT: &str = "checkpoint at";

const STAT_LABELS: TableDefinition<(u8, &str), u64> = TableDefinition::new("stat_labels");
const STAT_WAITING: TableDefinition<(u32, u64), Row> = TableDefinition::new("stat_waiting");

macro_rules! tables {
    ($($field:ident, $constant:ident, $name:literal: $key:ty => $value:ty;)*) => {
        $(pub(super) const $constant: TableDefinition<$key, $value> = TableDefinition::new($name);)*

        /// All tables of a write transaction.
        pub(super) struct Tables<'t> {
            $(pub $field: Table<'t, $key, $value>,)*
            /// Changes of the index that [`Tables::flush`] writes.
            pub changes: Changes,
            /// Counts that are not written yet.
            pub stats: Batch,
            pub stat_labels: Table<'t, (u8, &'static str), u64>,
            pub stat_waiting: Table<'t, (u32, u64), Row>,
        }

        impl<'t> Tables<'t> {
            /// Opens all tables, and creates missing ones.
            pub fn open(transaction: &'t WriteTransaction) -> Result<Self, redb::Error> {
                Ok(Self { $($field: transaction.open_table($constant)?,)*
                    changes: Changes::default(),
                    stats: Batch::default(),
                    stat_labels: transaction.open_table(STAT_LABELS)?,
                    stat_waiting: transaction.open_table(STAT_WAITING)?,
                })
            }
        }

        /// All tables at one moment.
        pub(super) struct View {
            $(pub $field: redb::ReadOnlyTable<$key, $value>,)*
        }

        impl View {
            /// The tables must exist.
            pub fn open(transaction: &ReadTransaction) -> Result<Self, redb::Error> {
                Ok(Self { $($field: transaction.open_table($constant)?,)* })
            }
        }
    };
}

tables! {
    events, EVENTS, "events": (u32, u64) => Row;
    event_ids, EVENT_IDS, "event_ids": IdKey => ();
    postings, POSTINGS, "postings": (u32, u64, Row) => Row;
    sources, SOURCES, "sources": &'static str => u64;
    deliveries, DELIVERIES, "deliveries": RunKey => Row;
    adoptions, ADOPTIONS, "adoptions": (u32, u64) => (u64, i64);
    ranges, RANGES, "ranges": (u32, &'static str, Bytes16, u64) => u64;
    attempts, ATTEMPTS, "attempts": (u32, u64, Bytes16, u64, u32) => Row;
    dead, DEAD, "dead": DeliveryKey => Row;
    dead_by_time, DEAD_BY_TIME, "dead_by_time": (i64, u32, u64, Bytes16) => ();
    still_open, STILL_OPEN, "still_open": DeliveryKey => u64;
    lanes, LANES, "lanes": (&'static str, Bytes16, u64) => Row;
    receivers, RECEIVERS, "receivers": (u32, Bytes16) => Row;
    subscriptions, SUBSCRIPTIONS, "subscriptions": (u32, Bytes16) => Row;
    names, NAMES, "names": Bytes16 => &'static str;
    commands, COMMANDS, "commands": (u32, u64) => Row;
    requests, REQUESTS, "requests": (&'static str, u32) => u64;
    redrives, REDRIVES, "redrives": RunKey => ();
    refused, REFUSED, "refused": (u32, u64, u64, Bytes16) => ();
    replays, REPLAYS, "replays": (i64, &'static str) => ();
    replay_orders, REPLAY_ORDERS, "replay_orders": &'static str => (i64, i32);
    pauses, PAUSES, "pauses": (&'static str, Bytes16, u64) => ();
    stats_rows, STATS_ROWS, "stats": (u64, u8, &'static str) => Row;
    erased, ERASED, "erased": (u32, u64) => u64;
    erasures, ERASURES, "erasures": (u32, u64) => ();
    marks, MARKS, "marks": (&'static str, u32) => u64;
}

/// An event without its payload.
#[derive(Clone, PartialEq, prost::Message)]
pub(super) struct EventRow {
    #[prost(bytes = "vec", tag = "1")]
    pub id: Vec<u8>,
    #[prost(string, tag = "2")]
    pub workflow: String,
    #[prost(string, tag = "3")]
    pub event_type: String,
    #[prost(string, tag = "4")]
    pub source: String,
    #[prost(uint64, tag = "5")]
    pub sequence_number: u64,
    /// When the server stored it, in unix milliseconds; 0: not said.
    #[prost(int64, tag = "6")]
    pub stored_at_ms: i64,
    /// When the gateway accepted it, in unix nanoseconds.
    #[prost(sfixed64, tag = "7")]
    pub received_at_ns: i64,
    /// When it happened, in unix nanoseconds; 0: when it was accepted.
    #[prost(sfixed64, tag = "8")]
    pub time_ns: i64,
    /// The sender's id of the delivery; empty: none.
    #[prost(string, tag = "9")]
    pub delivery_id: String,
    /// Id of the event before it in its workflow; empty: it is the first.
    #[prost(bytes = "vec", tag = "10")]
    pub previous: Vec<u8>,
    /// Media type of its payload; empty: JSON.
    #[prost(string, tag = "11")]
    pub content_type: String,
}

impl EventRow {
    /// The terms that it is indexed by.
    pub fn terms(&self) -> Terms<'_> {
        Terms { workflow: &self.workflow, event_type: &self.event_type, source: &self.source }
    }
}

/// A delivery of an event to a subscription in a run.
#[derive(Clone, PartialEq, prost::Message)]
pub(super) struct DeliveryRow {
    /// Once it is settled.
    #[prost(message, optional, tag = "1")]
    pub outcome: Option<internal::Outcome>,
    /// Attempts that have ended.
    #[prost(uint32, tag = "2")]
    pub attempts: u32,
    /// 0: none is to come.
    #[prost(int64, tag = "3")]
    pub next_attempt_at_ms: i64,
    /// Id of the event: another one may have the sequence after EVENTS lost a part. Empty if a record names none.
    #[prost(bytes = "vec", tag = "4")]
    pub event_id: Vec<u8>,
    /// When the server stored the newest commit about it, in unix milliseconds.
    #[prost(int64, tag = "5")]
    pub recorded_at_ms: i64,
}

/// The newest dead letter of an event for a subscription.
#[derive(Clone, PartialEq, prost::Message)]
pub(super) struct DeadRow {
    #[prost(message, optional, tag = "1")]
    pub outcome: Option<internal::Outcome>,
    /// Its outcome was read on OUTCOMES, and so were later records.
    #[prost(bool, tag = "2")]
    pub witnessed: bool,
    /// The event, from its copy on DLQ, which outlives the event.
    #[prost(message, optional, tag = "3")]
    pub event: Option<EventRow>,
    /// Reason why DLQ has no copy with the payload, of the run in `outcome`; empty: it has one, or will have.
    #[prost(string, tag = "4")]
    pub copy_problem: String,
}

/// The key of an event's id.
pub(super) fn id_key(id: &[u8; 16], shard: u32, seq: u64) -> (u32, u64, &[u8; 16], u64) {
    (shard, seq / SEGMENT_SEQUENCES, id, seq)
}

/// A row as bytes.
pub(super) fn encode(row: &impl Message) -> Vec<u8> {
    row.encode_to_vec()
}

/// A row of bytes that this version has written.
pub(super) fn decode<T: Message + Default>(bytes: &[u8]) -> Result<T, redb::Error> {
    T::decode(bytes).map_err(|error| redb::Error::Corrupted(format!("a row of the history: {error}")))
}

/// The row at `key`.
pub(super) fn get<'k, K, T>(table: &impl ReadableTable<K, Row>, key: K::SelfType<'k>) -> Result<Option<T>, redb::Error>
where
    K: redb::Key + 'static,
    T: Message + Default,
{
    table.get(key)?.map(|row| decode(row.value())).transpose()
}
