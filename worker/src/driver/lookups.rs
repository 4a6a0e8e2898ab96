//! Reads for lanes: the next events of a workflow, and the events of redrives.
//!
//! Reads lack no event: the numbers of a workflow say whether events are missing between others. They have been
//! erased, and their records, which come later, describe them; or they are gone, which is recorded.

use std::{collections::BTreeMap, sync::Arc};

use tokio::task::JoinError;
use weft_catalog::{Filters, Match};
use weft_nats::{
    dead_letter::CopyName,
    event::{Event, StoredEvent},
    message::Stored,
};
use weft_proto::ids::{EventId, Run, SequenceNumber, StreamSeq, WorkflowId};

use super::{Driver, DriverError, aborted};
use crate::{
    lane::{Input, LaneKey, Work},
    log::{Bounds, Log, Read},
};

/// Bytes of one read: what a lane may buffer at once.
const READ_BYTES: usize = 4 * 1024 * 1024;
/// Ends of reads that are remembered: some hundred kilobytes. A lane whose end is forgotten reads all of its workflow for
/// records of erased events, if any event of the shard was erased.
const ENDS_MAX: usize = 4096;

/// A read that has ended.
#[derive(Debug)]
pub(super) enum Lookup {
    CaughtUp { lane: LaneKey, read: LaneRead },
    Loaded { work: Work, event: Option<Arc<StoredEvent>> },
}

impl Driver {
    /// Starts a read of a lane's next events.
    pub(super) fn start_catch_up(&mut self, lane: LaneKey, from: StreamSeq, through: StreamSeq, limit: usize) {
        let filters = self.lanes.filters(lane.subscription);
        let log = self.log();
        let after = self.read_ends.before(&lane, from);
        self.lookups.spawn(async move {
            let read = read_lane(&log, &lane, filters.as_deref(), from, through, limit, after).await;
            Lookup::CaughtUp { lane, read }
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
            Lookup::CaughtUp { lane, read: LaneRead { events, through, gone, end } } => {
                self.read_ends.note(&lane, end);
                self.handle(Input::CaughtUp { lane, events, through, gone })
            }
            Lookup::Loaded { work, event } => self.handle(Input::Loaded { work, event }),
        }
    }
}

/// The result of a read of a lane.
#[derive(Debug)]
pub(super) struct LaneRead {
    /// Those that the filters do not ignore, in order, erased ones too.
    events: Vec<Arc<StoredEvent>>,
    /// `events` is complete up to here.
    through: StreamSeq,
    /// Nothing is left of what stood from the first sequence on up to here; 0: nothing has gone.
    gone: StreamSeq,
    end: Option<ReadEnd>,
}

/// Where a read of a lane ended: by its numbers the next read knows whether events are missing at its start.
#[derive(Debug, Clone, Copy)]
pub(super) struct ReadEnd {
    /// The last event of the workflow.
    last: StreamSeq,
    number: SequenceNumber,
    /// There is none after it up to here.
    through: StreamSeq,
}

/// Ends of reads, at most [`ENDS_MAX`].
#[derive(Debug, Default)]
pub(super) struct ReadEnds {
    ends: BTreeMap<LaneKey, ReadEnd>,
}

impl ReadEnds {
    /// The number of the last event before `from`, if it is known.
    fn before(&self, lane: &LaneKey, from: StreamSeq) -> Option<SequenceNumber> {
        let end = self.ends.get(lane)?;
        (end.last < from && from <= end.through.next()).then_some(end.number)
    }

    fn note(&mut self, lane: &LaneKey, end: Option<ReadEnd>) {
        match end {
            Some(end) => self.ends.insert(lane.clone(), end),
            None => self.ends.remove(lane),
        };
        if self.ends.len() > ENDS_MAX {
            self.ends.pop_first();
        }
    }
}

/// The next events of a workflow that the subscription's filters do not ignore, at least one if there is any. `after`: the
/// number of the event before them, if it is known.
async fn read_lane(
    log: &Log,
    lane: &LaneKey,
    filters: Option<&Filters>,
    start: StreamSeq,
    through: StreamSeq,
    limit: usize,
    mut after: Option<SequenceNumber>,
) -> LaneRead {
    let mut from = start;
    loop {
        let part = read_part(log, &lane.workflow, from, through, limit, after).await;
        let last = part.events.last().map(|event| (event.seq, event.event.sequence_number));
        let end = last.map(|(last, number)| ReadEnd { last, number, through: part.known });
        let events = part.events.into_iter().map(Arc::new);
        let taken = |event: &Arc<StoredEvent>| filters.is_none_or(|filters| filters.judge(event) != Match::Ignored);
        let events: Vec<_> = events.filter(taken).collect();
        let gone = part.gone;
        if !events.is_empty() || part.known >= through {
            return LaneRead { events, through: part.known, gone, end };
        }
        if gone > StreamSeq(0) {
            // What follows is read when this is recorded.
            return LaneRead { events, through: gone, gone, end: None };
        }
        after = last.map(|(_, number)| number).or(after);
        from = part.known.next();
    }
}

/// Part of a workflow.
#[derive(Debug)]
struct Part {
    /// In order, erased ones too.
    events: Vec<StoredEvent>,
    /// `events` is complete up to here.
    known: StreamSeq,
    /// As in [`LaneRead`].
    gone: StreamSeq,
}

async fn read_part(
    log: &Log,
    workflow: &WorkflowId,
    from: StreamSeq,
    through: StreamSeq,
    limit: usize,
    after: Option<SequenceNumber>,
) -> Part {
    let (stream, subject) = (log.layout.events_stream(log.shard), log.layout.event_subject(workflow));
    let Read { messages, mut known } =
        log.range(&stream, &subject, from, through, Bounds { messages: limit, bytes: READ_BYTES }).await;
    let events = messages.iter().filter_map(|message| StoredEvent::decode(log.layout, message).ok());
    let mut events: Vec<_> = events.collect();
    if let Some(last) = events.last()
        && known < through
    {
        // Whether an event is missing after it is known by the number of the next one.
        known = last.seq;
    }
    let missing = missing(&events, from, known, after);
    if missing == Some(0) {
        return Part { events, known, gone: StreamSeq(0) };
    }
    // After the read: what was removed before it is removed in this view.
    let view = log.view(&stream).await;
    let first = view.state.first;
    if missing.is_some() || view.removed > 0 || first > from {
        let (erased, complete_to) = log.erased(workflow, from, known, missing).await;
        events.extend(erased);
        known = complete_to;
    }
    whole_part(events, from, known, after, first)
}

/// How many events of a workflow are missing among its `events` of `from..=known`, by their numbers; `None`: that is not
/// known.
fn missing(events: &[StoredEvent], from: StreamSeq, known: StreamSeq, after: Option<SequenceNumber>) -> Option<u64> {
    let (first, last) = (events.first()?, events.last()?);
    let at_start = match after {
        _ if first.seq == from => 0,
        Some(after) => between(after, first),
        None if first.event.sequence_number == SequenceNumber(1) => 0,
        None => return None,
    };
    let inside = events.windows(2).map(|pair| match pair {
        [earlier, later] => between(earlier.event.sequence_number, later),
        _ => 0,
    });
    (last.seq == known).then_some(at_start + inside.sum::<u64>())
}

/// How many events are missing between number `earlier` and an event. A workflow that was forgotten begins again.
fn between(earlier: SequenceNumber, later: &StoredEvent) -> u64 {
    later.event.sequence_number.0.saturating_sub(earlier.0.saturating_add(1))
}

/// A part from its events, in any order, erased ones among them; it ends before the first that is missing all the same.
/// `first` is the first sequence that EVENTS holds.
fn whole_part(
    mut events: Vec<StoredEvent>,
    from: StreamSeq,
    mut known: StreamSeq,
    after: Option<SequenceNumber>,
    first: StreamSeq,
) -> Part {
    events.sort_by_key(|event| event.seq);
    // Read before it was removed, and erased.
    events.dedup_by_key(|event| event.seq);
    events.retain(|event| event.seq <= known);
    let hole = events.windows(2).position(|pair| match pair {
        [earlier, later] => between(earlier.event.sequence_number, later) > 0,
        _ => false,
    });
    if let Some(hole) = hole {
        events.truncate(hole + 1);
    }
    if let Some(last) = events.last()
        && (hole.is_some() || (last.seq < known && known < first))
    {
        known = last.seq;
    }
    let before = events.first().map_or(known, |event| StreamSeq(event.seq.0.saturating_sub(1)));
    let lacks_some = events.first().zip(after).map(|(event, after)| between(after, event) > 0);
    let gone = match lacks_some {
        _ if before < from => StreamSeq(0),
        Some(true) => before,
        Some(false) => StreamSeq(0),
        None => before.min(StreamSeq(first.0.saturating_sub(1))),
    };
    Part { events, known, gone: if gone < from { StreamSeq(0) } else { gone } }
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

#[cfg(test)]
mod tests;
