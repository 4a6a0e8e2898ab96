//! Removing the copy of a dead letter whose event was erased while the copy was being made: the erasure has removed the copies
//! that there were. The worker that has made it asks, and an admin checks that the event is erased.

use async_nats::Message;
use serde::{Deserialize, Serialize};
use weft_proto::ids::StreamSeq;

use super::{AskError, Requests};
use crate::{
    connect::Connection,
    dead_letter::copied_seq,
    erasure::{is_erased, remove},
    event::event_id_of,
    streams::{self, EnsureError},
    subject::{COPY_REQUESTS, DLQ_STREAM, Layout, decode_workflow},
};

#[derive(Debug, Serialize, Deserialize)]
struct Request {
    /// In DLQ.
    sequence: u64,
}

/// Removes a copy from DLQ.
///
/// # Errors
///
/// [`EnsureError`]: it is not removed, or an answer was lost.
pub async fn remove_copy(requests: &Requests, seq: StreamSeq) -> Result<(), EnsureError> {
    let unavailable = |problem: String| EnsureError::Unavailable(problem);
    let payload = serde_json::to_vec(&Request { sequence: seq.0 }).map_err(|error| unavailable(error.to_string()))?;
    match requests.ask(COPY_REQUESTS.to_owned(), payload).await {
        Ok(()) => Ok(()),
        // One user for all roles.
        Err(AskError::NoAdmin) => {
            let removed = remove(&requests.connection, DLQ_STREAM, seq).await;
            removed.map_err(|error| unavailable(format!("no admin runs that could remove from {DLQ_STREAM}: {error}")))
        }
        Err(AskError::Failed(problem)) => Err(unavailable(problem)),
    }
}

/// Carries a worker's request out.
pub(super) async fn carry_out(admin: &Connection, layout: Layout, message: &Message) -> Result<(), String> {
    let Request { sequence } = serde_json::from_slice(&message.payload).map_err(|error| error.to_string())?;
    let seq = StreamSeq(sequence);
    let copy = streams::leader_message(admin, DLQ_STREAM, seq).await.map_err(|error| error.to_string())?;
    let Some(copy) = copy else { return Ok(()) };
    let workflow = copy.subject.split('.').nth(2).and_then(|token| decode_workflow(token).ok());
    let (Some(workflow), Some(event), Some(of)) = (workflow, event_id_of(&copy), copied_seq(&copy.headers)) else {
        return Err(format!("message {seq} of {DLQ_STREAM} is no copy"));
    };
    let erased = is_erased(admin, layout, &workflow, of, event).await.map_err(|error| error.to_string())?;
    if !erased {
        return Err(format!("event {event} is not erased, so its copy is kept"));
    }
    remove(admin, DLQ_STREAM, seq).await.map_err(|error| error.to_string())
}
