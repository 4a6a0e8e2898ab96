//! Reads for lanes: the next events of a workflow, and the events of redrives.

use std::sync::Arc;

use tokio::task::JoinError;
use weft_catalog::{Filters, Match};
use weft_nats::{
    dead_letter::CopyName,
    event::{Event, StoredEvent},
    message::Stored,
};
use weft_proto::ids::{EventId, Run, StreamSeq};

use super::{Driver, DriverError, aborted};
use crate::{
    lane::{Input, LaneKey, Work},
    log::{Bounds, Log},
};

/// Bytes of one read: what a lane may buffer at once.
const READ_BYTES: usize = 4 * 1024 * 1024;

/// A read that has ended.
#[derive(Debug)]
pub(super) enum Lookup {
    CaughtUp { lane: LaneKey, events: Vec<Arc<StoredEvent>>, through: StreamSeq, gone: StreamSeq },
    Loaded { work: Work, event: Option<Arc<StoredEvent>> },
}

impl Driver {
    /// Starts a read of a lane's next events.
    pub(super) fn start_catch_up(&mut self, lane: LaneKey, from: StreamSeq, through: StreamSeq, limit: usize) {
        let filters = self.lanes.filters(lane.subscription);
        let log = self.log();
        self.lookups.spawn(async move {
            let (events, through) = read_lane(&log, &lane, filters.as_deref(), from, through, limit).await;
            let end = events.first().map_or(through, |event| StreamSeq(event.seq.0 - 1));
            let gone = gone(&log, from, end).await;
            // Also the first messages of the log may have been erased.
            let (events, gone) = match gone {
                StreamSeq(0) => (events, gone),
                _ => with_erased(&log, &lane, filters.as_deref(), from, gone, events).await,
            };
            Lookup::CaughtUp { lane, events, through, gone }
        });
    }

    /// Starts a read of the event of a run.
    pub(super) fn start_load(&mut self, work: Work, subscription_name: String, event: EventId, dead_run: Run) {
        let log = self.log();
        self.lookups.spawn(async move {
            let name = CopyName {
                subscription: &subscription_name,
                workflow: &work.lane.workflow,
                event,
                seq: work.seq,
                run: dead_run,
            };
            let event = read_dead_letter(&log, &name).await;
            Lookup::Loaded { work, event }
        });
    }

    pub(super) fn on_lookup(&mut self, lookup: Result<Lookup, JoinError>) -> Result<(), DriverError> {
        match lookup.map_err(aborted("read"))? {
            Lookup::CaughtUp { lane, events, through, gone } => {
                self.handle(Input::CaughtUp { lane, events, through, gone })
            }
            Lookup::Loaded { work, event } => self.handle(Input::Loaded { work, event }),
        }
    }
}

/// The next events of a workflow that the subscription's filters do not ignore, at least one if there is any, and the sequence
/// up to which they are complete.
async fn read_lane(
    log: &Log,
    lane: &LaneKey,
    filters: Option<&Filters>,
    start: StreamSeq,
    through: StreamSeq,
    limit: usize,
) -> (Vec<Arc<StoredEvent>>, StreamSeq) {
    let mut from = start;
    let (stream, subject) = (log.layout.events_stream(log.shard), log.layout.event_subject(&lane.workflow));
    loop {
        let read = log.range(&stream, &subject, from, through, Bounds { messages: limit, bytes: READ_BYTES }).await;
        let events: Vec<_> = read
            .messages
            .into_iter()
            .filter_map(|message| StoredEvent::decode(log.layout, &message).ok().map(Arc::new))
            .filter(|event| filters.is_none_or(|filters| filters.judge(event) != Match::Ignored))
            .collect();
        if !events.is_empty() {
            return (events, read.known);
        }
        if read.known >= through {
            // A lane ends with an event: it was erased, unless the log has dropped it.
            let erased = log.erased(&lane.workflow, start, through).await.into_iter().map(Arc::new);
            let taken = |event: &Arc<StoredEvent>| filters.is_none_or(|filters| filters.judge(event) != Match::Ignored);
            return (erased.filter(taken).take(limit).collect(), read.known);
        }
        from = read.known.next();
    }
}

/// The events with the erased ones up to `gone` in front of them, and the last sequence before those.
async fn with_erased(
    log: &Log,
    lane: &LaneKey,
    filters: Option<&Filters>,
    from: StreamSeq,
    gone: StreamSeq,
    events: Vec<Arc<StoredEvent>>,
) -> (Vec<Arc<StoredEvent>>, StreamSeq) {
    let erased = log.erased(&lane.workflow, from, gone).await.into_iter().map(Arc::new);
    let taken = |event: &Arc<StoredEvent>| filters.is_none_or(|filters| filters.judge(event) != Match::Ignored);
    let all: Vec<_> = erased.filter(taken).chain(events).collect();
    let first = all.first().map_or(gone.next(), |event| event.seq);
    let gone = if first <= from { StreamSeq(0) } else { StreamSeq(first.0 - 1).min(gone) };
    (all, gone)
}

/// The last sequence of `from..=end`, in which no event was found, that the log has dropped; 0: it has dropped none.
async fn gone(log: &Log, from: StreamSeq, end: StreamSeq) -> StreamSeq {
    if end < from {
        return StreamSeq(0);
    }
    let first = log.first(&log.layout.events_stream(log.shard)).await;
    if first > from { StreamSeq(first.0 - 1).min(end) } else { StreamSeq(0) }
}

/// The event of a dead letter: from EVENTS while that holds it, else its copy on DLQ.
async fn read_dead_letter(log: &Log, name: &CopyName<'_>) -> Option<Arc<StoredEvent>> {
    let decode = |message: Stored| {
        let event = Event::decode_parts(name.workflow.clone(), &message.headers, &message.payload).ok()?;
        let event = StoredEvent { seq: name.seq, stored_at: message.stored_at, event };
        Some(event).filter(|event| event.event.id == name.event)
    };
    let stored = log.get(&log.layout.events_stream(log.shard), name.seq).await;
    let event = match stored.and_then(decode) {
        Some(event) => event,
        // The copy of any subscription holds the same event: the name of this one may have been unknown when it was made.
        None => match log.copy(name).await.and_then(decode) {
            Some(event) => event,
            None => log.any_copy(name.workflow, name.event, name.seq).await.and_then(decode)?,
        },
    };
    Some(Arc::new(event))
}
