//! Events that were erased before a reader of EVENTS got to them: what the log still says of them, in their places.
//!
//! A reader of all messages sees a gap where an event was erased. The record of it is in the log before the event leaves it,
//! but anywhere later, so the log is read on to its end for the records. That is done once for many gaps.

use std::{collections::BTreeMap, sync::Arc};

use tokio::{sync::Mutex, task::JoinError};
use tokio_util::task::AbortOnDropHandle;
use weft_nats::{
    event::StoredEvent,
    message::Stored,
    reader::{OrderedReader, ReadError},
};
use weft_proto::ids::StreamSeq;

use crate::log::{ERASED_READ, Log, Read, erased_event};

/// Erased events that are kept, without their payloads: some ten megabytes. Beyond them the log is read again.
const KEPT_MAX: usize = 16_384;

/// Sequences without a message.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Gap {
    first: StreamSeq,
    last: StreamSeq,
}

/// The erased events of a shard, as far as they were looked for. Clones share them.
#[derive(Debug, Clone)]
pub(super) struct Erasures {
    log: Log,
    found: Arc<Mutex<Found>>,
}

/// The records in a part of the log.
#[derive(Debug)]
struct Found {
    /// The part is from here on …
    from: StreamSeq,
    /// … up to here.
    through: StreamSeq,
    /// `events` lacks none up to here.
    complete_to: StreamSeq,
    events: BTreeMap<StreamSeq, Arc<StoredEvent>>,
}

/// The shard's events, with the erased ones in their places.
#[derive(Debug)]
pub(super) struct EventsReader {
    reader: OrderedReader,
    erasures: Erasures,
    /// The last sequence before the next batch.
    cursor: StreamSeq,
    /// Messages with gaps, and the look-up of what was erased in them.
    held: Option<Held>,
}

#[derive(Debug)]
struct Held {
    messages: Vec<Stored>,
    gaps: Vec<Gap>,
    look_up: AbortOnDropHandle<InGaps>,
}

/// Erased events, in order.
#[derive(Debug)]
pub(super) struct InGaps {
    pub events: Vec<Arc<StoredEvent>>,
    /// `events` lacks none up to here.
    pub complete_to: StreamSeq,
}

/// Messages in stream order, and the events that were erased between them.
#[derive(Debug)]
pub(super) struct Arrivals {
    pub messages: Vec<Stored>,
    /// In order.
    pub erased: Vec<Arc<StoredEvent>>,
}

impl Erasures {
    pub fn new(log: Log) -> Self {
        Self { log, found: Arc::new(Mutex::new(Found::new(StreamSeq(0)))) }
    }

    /// The events that were erased where a read after `cursor` up to `through` has found none of `messages`.
    pub async fn of_read(&self, cursor: StreamSeq, messages: &[Stored], through: StreamSeq) -> InGaps {
        self.in_gaps(&gaps(cursor, messages.iter().map(|message| message.seq), through)).await
    }

    async fn in_gaps(&self, gaps: &[Gap]) -> InGaps {
        let Some(first) = gaps.first() else { return InGaps { events: Vec::new(), complete_to: StreamSeq(u64::MAX) } };
        let stream = self.log.layout.events_stream(self.log.shard);
        let mut found = self.found.lock().await;
        if first.first < found.from || first.first > found.complete_to {
            *found = Found::new(first.first);
        }
        // The record is stored before the event is removed.
        let end = self.log.view(&stream).await.state.last;
        while found.through < end {
            let Read { messages, known } = self.log.range(&stream, ">", found.through.next(), end, ERASED_READ).await;
            for (seq, event) in messages.iter().filter_map(|message| erased_event(self.log.layout, message)) {
                found.keep(seq, event, KEPT_MAX);
            }
            found.through = known;
        }
        // More than are kept were erased: the caller asks again for the gaps that are left. Where records came since the last
        // look-up, even the first gap may be one of them.
        let complete_to = found.complete_to;
        let events = gaps.iter().flat_map(|gap| found.events.range(gap.first..=gap.last));
        let events = events.filter(|(seq, _)| **seq <= complete_to).map(|(_, event)| Arc::clone(event)).collect();
        InGaps { events, complete_to }
    }
}

impl Found {
    fn new(from: StreamSeq) -> Self {
        let through = StreamSeq(from.0.saturating_sub(1));
        Self { from, through, complete_to: StreamSeq(u64::MAX), events: BTreeMap::new() }
    }

    /// Keeps an event, or the oldest `max` if there are more.
    fn keep(&mut self, seq: StreamSeq, event: StoredEvent, max: usize) {
        if seq < self.from || seq > self.complete_to {
            return;
        }
        self.events.insert(seq, Arc::new(event));
        if self.events.len() > max
            && let Some((dropped, _)) = self.events.pop_last()
        {
            self.complete_to = StreamSeq(dropped.0.saturating_sub(1));
        }
    }
}

impl EventsReader {
    /// Continues `reader`, which starts after `cursor`.
    pub fn new(reader: OrderedReader, cursor: StreamSeq, erasures: Erasures) -> Self {
        Self { reader, erasures, cursor, held: None }
    }

    /// The next messages, as [`OrderedReader::next`]. Safe to cancel.
    ///
    /// # Errors
    ///
    /// [`JoinError`]: the look-up has panicked. The inner errors are those of the reader.
    pub async fn next(&mut self) -> Result<Result<Arrivals, ReadError>, JoinError> {
        if self.held.is_none() {
            let batch = match self.reader.next().await {
                Ok(batch) => batch,
                Err(error) => return Ok(Err(error)),
            };
            let last = batch.messages.last().map_or(self.cursor, |message| message.seq);
            let gaps = gaps(self.cursor, batch.messages.iter().map(|message| message.seq), last);
            self.cursor = last;
            if gaps.is_empty() {
                return Ok(Ok(Arrivals { messages: batch.messages, erased: Vec::new() }));
            }
            self.held = Some(self.look_up(batch.messages, gaps));
        }
        let InGaps { events: erased, complete_to } = match &mut self.held {
            Some(held) => (&mut held.look_up).await?,
            None => InGaps { events: Vec::new(), complete_to: StreamSeq(u64::MAX) },
        };
        let Some(Held { mut messages, gaps, .. }) = self.held.take() else {
            return Ok(Ok(Arrivals { messages: Vec::new(), erased }));
        };
        let left = gaps_after(gaps, complete_to);
        if !left.is_empty() {
            let later = messages.split_off(messages.partition_point(|message| message.seq <= complete_to));
            self.held = Some(self.look_up(later, left));
        }
        Ok(Ok(Arrivals { messages, erased }))
    }

    fn look_up(&self, messages: Vec<Stored>, gaps: Vec<Gap>) -> Held {
        let (erasures, asked) = (self.erasures.clone(), gaps.clone());
        let look_up = AbortOnDropHandle::new(tokio::spawn(async move { erasures.in_gaps(&asked).await }));
        Held { messages, gaps, look_up }
    }
}

/// The rest of the gaps after `complete_to`.
fn gaps_after(gaps: Vec<Gap>, complete_to: StreamSeq) -> Vec<Gap> {
    let left = gaps.into_iter().filter(|gap| gap.last > complete_to);
    left.map(|gap| Gap { first: gap.first.max(complete_to.next()), ..gap }).collect()
}

/// The sequences after `cursor` up to `through` at which there is no message.
fn gaps(cursor: StreamSeq, messages: impl Iterator<Item = StreamSeq>, through: StreamSeq) -> Vec<Gap> {
    let mut expected = cursor.next();
    let mut gaps = Vec::new();
    for seq in messages.chain([through.next()]) {
        if seq > expected {
            gaps.push(Gap { first: expected, last: StreamSeq(seq.0 - 1) });
        }
        expected = seq.next();
    }
    gaps
}

#[cfg(test)]
mod tests {
    use super::*;

    fn gaps_of(cursor: u64, messages: &[u64], through: u64) -> Vec<(u64, u64)> {
        let gaps = gaps(StreamSeq(cursor), messages.iter().copied().map(StreamSeq), StreamSeq(through));
        gaps.iter().map(|gap| (gap.first.0, gap.last.0)).collect()
    }

    #[test]
    fn a_gap_is_where_a_message_was() {
        assert_eq!(gaps_of(4, &[5, 6, 7], 7), []);
        assert_eq!(gaps_of(4, &[6, 9], 9), [(5, 5), (7, 8)]);
        assert_eq!(gaps_of(4, &[5], 8), [(6, 8)]);
        assert_eq!(gaps_of(4, &[], 6), [(5, 6)]);
        assert_eq!(gaps_of(4, &[], 4), []);
    }

    #[test]
    fn of_too_many_events_the_oldest_are_kept() {
        let mut found = Found::new(StreamSeq(4));
        for seq in [9, 5, 3, 8, 6, 7] {
            let event = weft_testkit::event("w").build();
            let event = StoredEvent { seq: StreamSeq(seq), stored_at: jiff::Timestamp::UNIX_EPOCH, event };
            found.keep(StreamSeq(seq), event, 3);
        }
        assert_eq!(found.events.keys().map(|seq| seq.0).collect::<Vec<_>>(), [5, 6, 7]);
        assert_eq!(found.complete_to, StreamSeq(7), "8 and 9 are to be asked for again");
    }

    #[test]
    fn a_look_up_that_ends_early_continues_where_it_ended() {
        let gap = |first, last| Gap { first: StreamSeq(first), last: StreamSeq(last) };
        let all = vec![gap(5, 9), gap(12, 20)];
        assert_eq!(gaps_after(all.clone(), StreamSeq(u64::MAX)), []);
        assert_eq!(gaps_after(all.clone(), StreamSeq(20)), []);
        assert_eq!(gaps_after(all.clone(), StreamSeq(14)), [gap(15, 20)]);
        assert_eq!(gaps_after(all.clone(), StreamSeq(7)), [gap(8, 9), gap(12, 20)]);
        assert_eq!(gaps_after(all.clone(), StreamSeq(3)), all);
    }
}
