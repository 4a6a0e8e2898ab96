//! The streams and buckets of a log: made by whichever role comes first, checked by everyone else.
//!
//! Number of shards, hash and format version stand in the metadata of `EVENTS`; a process that is configured otherwise
//! is refused, since it would number and order by other rules.

use jiff::Timestamp;
use weft_proto::ids::StreamSeq;

use crate::{
    connect::Connection,
    options::{DeadLetterOptions, LogOptions, RejectedOptions},
    subject::Layout,
};

/// The version of everything that is stored in the log.
pub const FORMAT_VERSION: u32 = 1;

/// Everything that decides what the streams look like.
#[derive(Debug, Clone, Default)]
pub struct LogSpec {
    /// `[log]`.
    pub log: LogOptions,
    /// `[dead_letters]`.
    pub dead_letters: DeadLetterOptions,
    /// `[rejected]`.
    pub rejected: RejectedOptions,
    /// The largest body that a gateway takes, in bytes; `max_msg_size` is this plus
    /// [`MESSAGE_OVERHEAD_BYTES`](crate::options::MESSAGE_OVERHEAD_BYTES).
    pub body_bytes_max: u64,
    /// `max_bytes` of EVENTS, a shard, where `[log] max_bytes` is `auto`; `None`: unlimited.
    pub auto_bytes_max: Option<u64>,
}

/// Why the log cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum EnsureError {
    /// Passes: no server, no leader, a time-out. Try again.
    #[error("the log is not there: {0}")]
    Unavailable(String),
    /// Does not pass: the configuration contradicts the log or itself, or the server is too old or refuses the limits.
    #[error("{0}")]
    Mismatch(String),
}

/// A stream as the server tells of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct StreamState {
    /// When the stream was made: another time, another stream.
    pub created: Timestamp,
    /// The first sequence kept; last + 1 in a stream that holds nothing.
    pub first: StreamSeq,
    /// The last sequence given out.
    pub last: StreamSeq,
}

/// Makes what is missing, updates what differs and may, and checks the rest. Any role may call it, at any time, several
/// at once.
///
/// # Errors
///
/// [`EnsureError`].
pub async fn ensure(connection: &Connection, spec: &LogSpec) -> Result<Layout, EnsureError> {
    let _ = (connection, spec);
    todo!()
}

/// Asks for a stream's state.
///
/// # Errors
///
/// [`EnsureError::Unavailable`]; [`EnsureError::Mismatch`] when there is no such stream.
pub async fn state(connection: &Connection, stream: &str) -> Result<StreamState, EnsureError> {
    let _ = (connection, stream);
    todo!()
}
