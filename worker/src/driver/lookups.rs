//! What lanes want to read: the next events of their workflow, and the copies of dead letters.

use std::{sync::Arc, time::Duration};

use tokio::task::JoinError;
use weft_nats::{
    connect::Connection,
    direct::{self, DirectError},
    event::{Event, StoredEvent},
    subject::{DLQ_STREAM, Layout, dead_letter_subject},
};
use weft_proto::ids::{EventId, Run, ShardId, StreamSeq};

use super::{Driver, DriverError};
use crate::{
    lane::{Input, LaneKey, Work},
    matching::Matcher,
};

/// The pause before a read that failed is tried again.
const RETRY_PAUSE: Duration = Duration::from_millis(200);
/// Bytes of one read: what a lane may bring into memory at once.
const READ_BYTES: usize = 4 * 1024 * 1024;

/// A read that has come to its end.
#[derive(Debug)]
pub(super) enum Lookup {
    CaughtUp { lane: LaneKey, events: Vec<Arc<StoredEvent>>, through: StreamSeq },
    Loaded { work: Work, event: Option<Arc<StoredEvent>> },
}

impl Driver {
    pub(super) fn catch_up(&mut self, lane: LaneKey, from: StreamSeq, through: StreamSeq, limit: usize) {
        let matcher = self.subscriptions.get(&lane.subscription).map(|compiled| compiled.matcher.clone());
        let (connection, layout, shard) = (self.context.connection.clone(), self.context.layout, self.shard);
        self.lookups.spawn(async move {
            let (events, through) =
                until_answered(|| read_lane(&connection, layout, shard, &lane, matcher.as_ref(), from, through, limit))
                    .await;
            Lookup::CaughtUp { lane, events, through }
        });
    }

    pub(super) fn load(&mut self, work: Work, subscription_name: String, event: EventId, dead_run: Run) {
        let connection = self.context.connection.clone();
        let stream = self.context.layout.events_stream(self.shard);
        self.lookups.spawn(async move {
            let subject = dead_letter_subject(&subscription_name, &work.lane.workflow, event, dead_run);
            let event = until_answered(|| read_copy(&connection, &stream, &subject, &work)).await;
            Lookup::Loaded { work, event }
        });
    }

    pub(super) fn looked(&mut self, looked: Result<Lookup, JoinError>) -> Result<(), DriverError> {
        match looked {
            Ok(Lookup::CaughtUp { lane, events, through }) => self.handle(Input::CaughtUp { lane, events, through }),
            Ok(Lookup::Loaded { work, event }) => self.handle(Input::Loaded { work, event }),
            Err(error) => Err(DriverError::Ledger(crate::ledger::LedgerError::Record(format!(
                "a read has failed in the midst of it: {error}"
            )))),
        }
    }
}

/// Repeats a read until the log answers. Ends with its shard.
async fn until_answered<T, F, Fut>(read: F) -> T
where
    F: Fn() -> Fut,
    Fut: Future<Output = Result<T, DirectError>>,
{
    loop {
        match read().await {
            Ok(answer) => return answer,
            Err(error) => {
                tracing::debug!(%error, "read is tried again");
                tokio::time::sleep(RETRY_PAUSE).await;
            }
        }
    }
}

/// The events of a workflow that the subscription takes, and up to where none is missing.
#[allow(clippy::too_many_arguments)]
async fn read_lane(
    connection: &Connection,
    layout: Layout,
    shard: ShardId,
    lane: &LaneKey,
    matcher: Option<&Matcher>,
    from: StreamSeq,
    through: StreamSeq,
    limit: usize,
) -> Result<(Vec<Arc<StoredEvent>>, StreamSeq), DirectError> {
    let subject = layout.event_subject(&lane.workflow);
    let stream = layout.events_stream(shard);
    let messages = direct::range(connection, &stream, from, &subject, limit, READ_BYTES).await?;
    // Fewer than there are is possible, so only what was read is known, except when there is nothing more at all.
    let known = messages.last().map_or(through, |last| last.seq.min(through));
    let events = messages
        .into_iter()
        .filter(|message| message.seq <= through)
        .filter_map(|message| {
            let event = Event::decode(layout, &message).ok()?;
            Some(Arc::new(StoredEvent { seq: message.seq, stored_at: message.stored_at, event }))
        })
        .filter(|event| matcher.is_none_or(|matcher| matcher.takes(event)))
        .collect();
    Ok((events, known))
}

/// The event of a dead letter: its copy on DLQ, or the event itself while EVENTS has it.
async fn read_copy(
    connection: &Connection,
    stream: &str,
    subject: &str,
    work: &Work,
) -> Result<Option<Arc<StoredEvent>>, DirectError> {
    let message = match direct::last_by_subject(connection, DLQ_STREAM, subject).await? {
        Some(copy) => Some(copy),
        None => direct::get(connection, stream, work.seq).await?,
    };
    let Some(message) = message else { return Ok(None) };
    let stored_at = message.stored_at;
    let event = Event::decode_parts(work.lane.workflow.clone(), &message.headers, message.payload).ok();
    Ok(event.map(|event| Arc::new(StoredEvent { seq: work.seq, stored_at, event })))
}
