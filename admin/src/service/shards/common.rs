//! The last common position of a shard's streams and its outcomes: the newest commit whose position its stream still holds.

use weft_nats::{
    direct::{self, DirectError},
    position::{Mark, Position},
    records,
    streams::{self, EnsureError, StreamState},
};
use weft_proto::{
    ids::{ShardId, StreamSeq},
    internal::{self, outcome_record::Record},
};

use super::super::state::LogState;

/// Bytes of one read of a commit: commits have up to 256 KiB.
const COMMIT_BYTES: usize = 1 << 20;

/// Reason why no position was found.
#[derive(Debug, thiserror::Error)]
pub(super) enum SearchError {
    #[error(transparent)]
    Log(#[from] EnsureError),
    #[error(transparent)]
    Read(#[from] DirectError),
}

/// One of the streams that commits name positions in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Stream {
    Events,
    Commands,
}

impl Stream {
    pub fn name(self, log: &LogState, shard: ShardId) -> String {
        match self {
            Self::Events => log.layout.events_stream(shard),
            Self::Commands => log.layout.commands_stream(shard),
        }
    }

    /// The position that a commit names, and its cursor.
    pub fn of(self, commit: &internal::Commit) -> (Option<&internal::LogPosition>, u64) {
        match self {
            Self::Events => (commit.events.as_ref(), commit.cursor),
            Self::Commands => (commit.commands.as_ref(), commit.commands_cursor),
        }
    }

    /// The position that the shard's owner knows.
    pub fn position(self, commit: &internal::Commit) -> internal::LogPosition {
        let (position, sequence) = self.of(commit);
        position.cloned().unwrap_or_else(|| internal::LogPosition { sequence, ..Default::default() })
    }
}

/// The newest commit of a shard; `None` if there is none.
pub(super) async fn newest_commit(log: &LogState, shard: ShardId) -> Result<Option<internal::Commit>, SearchError> {
    let (stream, subject) = (log.layout.outcomes_stream(shard), log.layout.outcomes_subject(shard));
    let message = direct::last_by_subject(&log.connection, &stream, &subject).await?;
    Ok(message.as_ref().and_then(commit_of))
}

/// The last position that a stream has in common with the commits, as it is in the stream now.
///
/// Searches commits backwards, in steps that double, for one whose position the stream holds, then finds the last one by
/// bisection. Without a common one it is the position before the stream's first message.
pub(super) async fn last_common(log: &LogState, shard: ShardId, stream: Stream) -> Result<Position, SearchError> {
    let state = streams::state(&log.connection, &stream.name(log, shard)).await?;
    let search = Search { log, shard, stream, state };
    let outcomes = streams::state(&log.connection, &log.layout.outcomes_stream(shard)).await?;
    let (first, last) = (outcomes.first.0, outcomes.last.0);
    let (mut step, mut differs) = (1, last.saturating_add(1));
    let mut at = last;
    let mut common = None;
    while at >= first && at > 0 {
        if let Some(position) = search.held_at(at).await? {
            common = Some((at, position));
            break;
        }
        differs = at;
        at = at.saturating_sub(step);
        step *= 2;
        if at < first && differs > first {
            at = first;
        }
    }
    while let Some((holds, _)) = common
        && holds + 1 < differs
    {
        let middle = holds + (differs - holds) / 2;
        match search.held_at(middle).await? {
            Some(position) => common = Some((middle, position)),
            None => differs = middle,
        }
    }
    let cursor = common.map_or(StreamSeq(0), |(_, cursor)| cursor);
    search.position(cursor.max(StreamSeq(state.first.0.saturating_sub(1)))).await
}

/// The position of a cursor in a stream as it is now.
pub(super) async fn position_at(
    log: &LogState,
    shard: ShardId,
    stream: Stream,
    cursor: StreamSeq,
) -> Result<Position, SearchError> {
    let state = streams::state(&log.connection, &stream.name(log, shard)).await?;
    Search { log, shard, stream, state }.position(cursor).await
}

struct Search<'a> {
    log: &'a LogState,
    shard: ShardId,
    stream: Stream,
    state: StreamState,
}

impl Search<'_> {
    /// The cursor of the first commit at or after an OUTCOMES sequence, if the stream holds its position.
    async fn held_at(&self, outcome: u64) -> Result<Option<StreamSeq>, SearchError> {
        let Self { log, shard, stream, .. } = self;
        let (outcomes, subject) = (log.layout.outcomes_stream(*shard), log.layout.outcomes_subject(*shard));
        let read = direct::range(&log.connection, &outcomes, StreamSeq(outcome), &subject, 1, COMMIT_BYTES).await?;
        let Some(commit) = read.first().and_then(commit_of) else { return Ok(None) };
        let (position, cursor) = stream.of(&commit);
        let cursor = StreamSeq(cursor);
        if cursor == StreamSeq(0) {
            return Ok(Some(cursor));
        }
        // Commits of earlier versions have no position and prove nothing.
        let Some(position) = position.map(Position::from) else { return Ok(None) };
        let is_same_stream = position.created == self.state.created;
        let holds = match position.mark {
            Some(mark) if cursor >= self.state.first => self.mark(cursor).await? == Some(mark),
            // The message there is no longer kept, or there was none.
            _ => is_same_stream && cursor <= self.state.last,
        };
        Ok(holds.then_some(cursor))
    }

    async fn position(&self, cursor: StreamSeq) -> Result<Position, SearchError> {
        let mark = if cursor >= self.state.first { self.mark(cursor).await? } else { None };
        Ok(Position { created: self.state.created, cursor, mark })
    }

    async fn mark(&self, seq: StreamSeq) -> Result<Option<Mark>, SearchError> {
        if seq == StreamSeq(0) || seq > self.state.last {
            return Ok(None);
        }
        let stream = self.stream.name(self.log, self.shard);
        let message = streams::leader_message(&self.log.connection, &stream, seq).await?;
        Ok(message.as_ref().map(Mark::of))
    }
}

fn commit_of(message: &weft_nats::message::Stored) -> Option<internal::Commit> {
    match records::decode::<internal::OutcomeRecord>(message)?.record {
        Some(Record::Commit(commit)) => Some(commit),
        _ => None,
    }
}
