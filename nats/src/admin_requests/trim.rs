//! Dropping a prefix of EVENTS or CHECKPOINTS: a shard's owner asks, and an admin checks that nothing is dropped that is needed.

use async_nats::Message;
use serde::{Deserialize, Serialize};
use weft_proto::{
    ids::{ShardId, StreamSeq},
    internal::{self, outcome_record::Record},
};

use super::{AskError, Requests};
use crate::{
    checkpoints,
    connect::Connection,
    direct, records,
    streams::{self, EnsureError},
    subject::Layout,
};

#[derive(Debug, Serialize, Deserialize)]
struct Request {
    /// The last sequence that goes.
    through: u64,
}

/// Removes everything up to a sequence from a shard's EVENTS or CHECKPOINTS.
///
/// # Errors
///
/// [`EnsureError`]: nothing is removed, or an answer was lost.
pub async fn drop_through(requests: &Requests, stream: &str, through: StreamSeq) -> Result<(), EnsureError> {
    let unavailable = |problem: String| EnsureError::Unavailable(problem);
    let payload =
        serde_json::to_vec(&Request { through: through.0 }).map_err(|error| unavailable(error.to_string()))?;
    match requests.ask(format!("trim.{stream}"), payload).await {
        Ok(()) => Ok(()),
        // One user for all roles.
        Err(AskError::NoAdmin) => {
            let dropped = streams::drop_through(&requests.connection, stream, through).await;
            dropped.map_err(|error| unavailable(format!("no admin runs that could drop from {stream}: {error}")))
        }
        Err(AskError::Failed(problem)) => Err(unavailable(problem)),
    }
}

/// Carries a worker's request out.
pub(super) async fn carry_out(admin: &Connection, layout: Layout, message: &Message) -> Result<(), String> {
    let Request { through } = serde_json::from_slice(&message.payload).map_err(|error| error.to_string())?;
    let through = StreamSeq(through);
    let stream = message.subject.strip_prefix("trim.").unwrap_or_default();
    let needed = if let Some(shard) = layout.all().find(|shard| layout.events_stream(*shard) == stream) {
        unsettled_from(admin, layout, shard).await?
    } else if let Some(shard) = layout.all().find(|shard| layout.checkpoints_stream(*shard) == stream) {
        checkpoint_from(admin, layout, shard).await?
    } else {
        return Err(format!("nothing is dropped from {stream}"));
    };
    if through >= needed {
        return Err(format!("{stream} is needed from {needed} on, so not everything up to {through} can be dropped"));
    }
    streams::drop_through(admin, stream, through).await.map_err(|error| error.to_string())
}

/// The first event that the shard's newest commit leaves unread.
async fn unsettled_from(admin: &Connection, layout: Layout, shard: ShardId) -> Result<StreamSeq, String> {
    let (events, outcomes) = (layout.events_stream(shard), layout.outcomes_stream(shard));
    let newest = direct::last_by_subject(admin, &outcomes, &layout.outcomes_subject(shard)).await;
    let newest = newest.map_err(|error| error.to_string())?;
    let record = newest.as_ref().and_then(records::decode::<internal::OutcomeRecord>);
    let Some(Record::Commit(commit)) = record.and_then(|record| record.record) else {
        return Err(format!("{outcomes} does not end with a commit"));
    };
    let state = streams::state(admin, &events).await.map_err(|error| error.to_string())?;
    let made = |events: internal::LogPosition| i128::from(events.created_ns) == state.created.as_nanosecond();
    if !commit.events.is_none_or(made) {
        return Err(format!("{outcomes} refers to another {events}"));
    }
    Ok(StreamSeq(commit.cursor).next())
}

/// The first message of the newest complete checkpoint.
async fn checkpoint_from(admin: &Connection, layout: Layout, shard: ShardId) -> Result<StreamSeq, String> {
    let tail = checkpoints::tail(admin, layout, shard).await.map_err(|error| error.to_string())?;
    let newest = tail.newest.ok_or("there is no complete checkpoint")?;
    Ok(StreamSeq(newest.end.first_chunk))
}
