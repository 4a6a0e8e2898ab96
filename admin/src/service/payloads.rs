//! Payloads of listed events, in the order of the list: a bounded number of bytes is read ahead, and what is left unread costs
//! nothing.

use std::{collections::VecDeque, vec::IntoIter};

use futures_util::future::try_join_all;
use tonic::Status;
use weft_index::history::ListedEvent;
use weft_nats::{direct, event::Event};

use super::state::LogState;
use crate::error::of_direct;

/// Bytes that are read ahead, by the largest payload so far.
const AHEAD_BYTES: usize = 8 * 1024 * 1024;
/// The size of payloads before one has been read: that of a large webhook, so that a first read of the largest ones, 8 MiB,
/// takes 32 MiB.
const FIRST_BYTES: usize = 2 * 1024 * 1024;
/// Maximum number of concurrent direct gets.
const READS_MAX: usize = 32;

/// A listed event with its payload; without an event where EVENTS no longer holds it.
pub(super) type Found = (ListedEvent, Option<Event>);

/// The events of a list, and their payloads as they are read.
pub(super) struct Payloads<'l> {
    log: &'l LogState,
    unread: IntoIter<ListedEvent>,
    read: VecDeque<Found>,
    largest: Option<usize>,
}

impl<'l> Payloads<'l> {
    /// Nothing is read before the first is asked for.
    pub fn of(log: &'l LogState, events: Vec<ListedEvent>) -> Self {
        Self { log, unread: events.into_iter(), read: VecDeque::new(), largest: None }
    }

    /// The next event; `None` at the end.
    ///
    /// # Errors
    ///
    /// LOG_UNAVAILABLE.
    pub async fn next(&mut self) -> Result<Option<Found>, Status> {
        if self.read.is_empty() {
            let events = self.unread.by_ref().take(reads(self.largest));
            let found = try_join_all(events.map(|listed| read(self.log, listed))).await?;
            let sizes = found.iter().map(|(_, event)| event.as_ref().map_or(0, |event| event.payload.len()));
            self.largest = self.largest.max(sizes.max());
            self.read.extend(found);
        }
        Ok(self.read.pop_front())
    }
}

/// Number of payloads to read at a time.
fn reads(largest: Option<usize>) -> usize {
    (AHEAD_BYTES / largest.unwrap_or(FIRST_BYTES).max(1)).clamp(1, READS_MAX)
}

async fn read(log: &LogState, listed: ListedEvent) -> Result<Found, Status> {
    let stream = log.layout.events_stream(listed.shard);
    let message = direct::get(&log.connection, &stream, listed.seq).await.map_err(of_direct)?;
    let event = message.and_then(|message| Event::decode(log.layout, &message).ok());
    let event = event.filter(|event| event.id == listed.id);
    Ok((listed, event))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Memory of a call is bounded by the sizes that it sees, and small payloads are read many at a time.
    #[test]
    fn few_large_payloads_are_read_at_a_time() {
        assert_eq!(reads(None), 4);
        assert_eq!([0, 300, 256 << 10].map(|largest| reads(Some(largest))), [READS_MAX; 3]);
        assert_eq!([1 << 20, 8 << 20, 64 << 20].map(|largest| reads(Some(largest))), [8, 1, 1]);
    }
}
