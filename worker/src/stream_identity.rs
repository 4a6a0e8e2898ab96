//! Identity of a shard's streams: whether they are those of its commits.
//!
//! The ledger has settled events by sequence. In another stream, or one that was restored from a copy, the same sequences are
//! other events, which would be skipped for ever. So nothing is attempted or committed before the positions of the newest
//! commit have been compared with EVENTS and COMMANDS.

use std::fmt;

use tokio::time::Instant;
use weft_nats::{
    direct,
    position::{BehindWatch, Mark, Mismatch, Position, PositionCheck, verify_once},
    streams::{self, LeaderView},
};
use weft_proto::{ids::StreamSeq, internal};

use crate::{
    ledger::{RecoveryError, tables::Positions},
    log::Log,
};

/// Positions of a shard that were compared with its streams.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Known {
    pub events: Position,
    pub commands: Position,
}

/// Result of comparing the streams of a shard with the positions of its commits.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Comparison {
    /// They are those of the commits.
    Same(Known),
    /// They are not.
    Differs(Difference),
}

/// The difference between a stream and that of the commits.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Difference {
    stream: String,
    /// The position of the newest commit.
    ledger: Position,
    view: LeaderView,
    /// The message at the cursor now.
    found: Option<Mark>,
    mismatch: Mismatch,
}

impl Difference {
    /// Whether it is certain. The leader of a replicated stream may lag, and then reports an earlier end.
    pub fn is_certain(&self, watch: &mut BehindWatch) -> bool {
        !matches!(self.mismatch, Mismatch::Behind { .. }) || watch.believes(&self.view, Instant::now())
    }
}

/// The difference, with both positions.
impl fmt::Display for Difference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { stream, ledger, view, found, mismatch } = self;
        match mismatch {
            Mismatch::Created { expected, found } => {
                write!(
                    f,
                    "{stream} was created at {found}, and its outcomes are of one that was created at {expected}"
                )?;
            }
            Mismatch::Behind { cursor, last } => {
                write!(f, "{stream} ends at {last} but its outcomes reach to {cursor}")?;
            }
            Mismatch::Message { cursor } => {
                write!(f, "{stream} holds another message at {cursor}, to which its outcomes reach")?;
            }
        }
        write!(f, " (outcomes: {ledger}; stream: made at {}, ends at {}", view.state.created, view.state.last)?;
        found.map_or(Ok(()), |mark| write!(f, ", there {mark}"))?;
        f.write_str(")")
    }
}

/// Compares the positions of the newest commit with the streams.
///
/// # Errors
///
/// [`RecoveryError::Unavailable`]: the log is unavailable. Transient.
pub(crate) async fn compare(log: &Log, positions: &Positions) -> Result<Comparison, RecoveryError> {
    let stream = log.layout.events_stream(log.shard);
    let events = match compare_stream(log, stream, positions.events.as_ref(), positions.cursor).await? {
        Ok(position) => position,
        Err(difference) => return Ok(Comparison::Differs(difference)),
    };
    let stream = log.layout.commands_stream(log.shard);
    let cursor = StreamSeq(positions.commands);
    Ok(match compare_stream(log, stream, positions.commands_at.as_ref(), cursor).await? {
        Ok(commands) => Comparison::Same(Known { events, commands }),
        Err(difference) => Comparison::Differs(difference),
    })
}

/// Compares one position. Where an earlier version wrote the commits, it is unknown and becomes that of the stream.
async fn compare_stream(
    log: &Log,
    stream: String,
    stored: Option<&internal::LogPosition>,
    cursor: StreamSeq,
) -> Result<Result<Position, Difference>, RecoveryError> {
    let ledger = match stored {
        Some(stored) => Position::from(stored),
        None => {
            let created = streams::state(&log.connection, &stream).await?.created;
            Position { created, cursor, mark: at(log, &stream, cursor).await? }
        }
    };
    let (view, check) = verify_once(&log.connection, &stream, &ledger).await?;
    Ok(match check {
        PositionCheck::Keep | PositionCheck::Skip { .. } => Ok(ledger),
        PositionCheck::Rebuild(mismatch) => {
            let found = at(log, &stream, cursor).await?;
            Err(Difference { stream, ledger, view, found, mismatch })
        }
    })
}

/// Whether COMMANDS is the stream of the commits.
///
/// # Errors
///
/// As [`compare`].
pub(crate) async fn commands_are_known(log: &Log, positions: &Positions) -> Result<bool, RecoveryError> {
    let (stream, cursor) = (log.layout.commands_stream(log.shard), StreamSeq(positions.commands));
    Ok(compare_stream(log, stream, positions.commands_at.as_ref(), cursor).await?.is_ok())
}

/// Whether a stream holds a position.
///
/// # Errors
///
/// As [`compare`].
pub(crate) async fn holds(log: &Log, stream: String, position: &internal::LogPosition) -> Result<bool, RecoveryError> {
    Ok(compare_stream(log, stream, Some(position), StreamSeq(position.sequence)).await?.is_ok())
}

/// The message at a sequence, on the replica that answers.
async fn at(log: &Log, stream: &str, seq: StreamSeq) -> Result<Option<Mark>, RecoveryError> {
    if seq == StreamSeq(0) {
        return Ok(None);
    }
    Ok(direct::get(&log.connection, stream, seq).await?.as_ref().map(Mark::of))
}
