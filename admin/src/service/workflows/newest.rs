//! A workflow's events from the newest back: each event names the one before it.

use tonic::Status;
use weft_nats::{
    direct,
    event::{Event, StoredEvent},
};
use weft_proto::ids::{StreamSeq, WorkflowId};

use super::{Log, PAGE_BYTES};
use crate::error::{of_direct, of_history};

/// Some events of a workflow, newest first: those before the place `before`, or from the newest on where that is 0. Behind
/// them the place of the last one, if there are older ones.
pub(super) async fn read(
    log: &Log,
    workflow: &WorkflowId,
    before: StreamSeq,
    limit: usize,
) -> Result<(Vec<StoredEvent>, Option<StreamSeq>), Status> {
    let mut next = match before {
        StreamSeq(0) => newest(log, workflow).await?,
        place => match at(log, workflow, place).await? {
            Some(shown) => older(log, workflow, &shown).await?,
            None => None,
        },
    };
    let mut events: Vec<StoredEvent> = Vec::new();
    let mut bytes = 0;
    while let Some(event) = next {
        bytes += event.event.payload.len();
        let full = events.len() == limit || bytes > PAGE_BYTES;
        if let Some(last) = events.last().map(|last| last.seq).filter(|_| full) {
            return Ok((events, Some(last)));
        }
        next = older(log, workflow, &event).await?;
        events.push(event);
    }
    Ok((events, None))
}

async fn newest(log: &Log, workflow: &WorkflowId) -> Result<Option<StoredEvent>, Status> {
    let stream = log.layout.events_stream(log.layout.shard_of(workflow));
    let subject = log.layout.event_subject(workflow);
    let message = direct::last_by_subject(&log.connection, &stream, &subject).await.map_err(of_direct)?;
    Ok(message.and_then(|message| {
        let event = Event::decode(log.layout, &message).ok()?;
        Some(StoredEvent { seq: message.seq, stored_at: message.stored_at, event })
    }))
}

/// The event before another one; `None` where that is the first, or EVENTS no longer holds it.
async fn older(log: &Log, workflow: &WorkflowId, event: &StoredEvent) -> Result<Option<StoredEvent>, Status> {
    let Some(previous) = event.event.previous else { return Ok(None) };
    let shard = log.layout.shard_of(workflow);
    let place = log.history.place_before(previous, workflow.clone(), shard, event.seq).await.map_err(of_history)?;
    match place {
        Some(place) => at(log, workflow, place).await,
        None => Ok(None),
    }
}

async fn at(log: &Log, workflow: &WorkflowId, place: StreamSeq) -> Result<Option<StoredEvent>, Status> {
    let stream = log.layout.events_stream(log.layout.shard_of(workflow));
    let message = direct::get(&log.connection, &stream, place).await.map_err(of_direct)?;
    Ok(message.and_then(|message| {
        let event = Event::decode(log.layout, &message).ok().filter(|event| event.workflow == *workflow)?;
        Some(StoredEvent { seq: message.seq, stored_at: message.stored_at, event })
    }))
}
