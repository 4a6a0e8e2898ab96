//! Batches of the shared reader: each event goes to the subscriptions that match it.

use std::sync::Arc;

use weft_nats::{entry::Entry, erasure::Erasure, event::StoredEvent, position::Position, reader::ReadError};
use weft_proto::ids::StreamSeq;

use super::{
    Driver, DriverError,
    erasures::{Arrivals, Erasures, EventsReader},
    reader,
};
use crate::lane::Input;

impl Driver {
    /// Takes a batch of the shared reader. Events that the log has dropped unread are lost: that is reported as an error, and
    /// the shard continues with the oldest event that is kept.
    pub(super) fn on_events(&mut self, batch: Result<Arrivals, ReadError>) -> Result<(), DriverError> {
        match batch {
            Ok(batch) => self.take_events(batch),
            Err(ReadError::Gone { stream, position, first }) => {
                metrics::counter!(crate::metrics::LOST_RANGES).increment(1);
                tracing::error!(
                    shard = %self.shard, stream, from = position.0, through = first.0 - 1,
                    "events were dropped from the log before they were read; raise its retention or max_bytes"
                );
                let through = StreamSeq(first.0 - 1);
                self.commits.events().dropped(through);
                let known = Position { cursor: through, mark: None, ..self.commits.events().committed().clone() };
                let events = reader(&self.context, stream, &format!("events-{}", self.shard), known);
                self.events = EventsReader::new(events, through, Erasures::new(self.log()));
                self.handle(Input::Trimmed { through })
            }
            Err(error) => Err(error.into()),
        }
    }

    fn take_events(&mut self, arrivals: Arrivals) -> Result<(), DriverError> {
        let mut erased = arrivals.erased.into_iter().peekable();
        for message in arrivals.messages {
            while let Some(event) = erased.next_if(|event| event.seq < message.seq) {
                self.match_by_newer_filters();
                self.take_event(event)?;
            }
            self.commits.events().read(&message);
            self.match_by_newer_filters();
            let seq = message.seq;
            let stored_at = message.stored_at;
            match Entry::decode(self.context.layout, &message) {
                Entry::Event(event) => {
                    self.take_event(Arc::new(StoredEvent { seq, stored_at, event: *event }))?;
                }
                Entry::Erased(erasure) => {
                    let Erasure { seq: erased, stored_at, event, .. } = *erasure;
                    let event = Arc::new(StoredEvent { seq: erased, stored_at, event });
                    self.handle(Input::Erased { event })?;
                    self.handle(Input::Skipped { seq })?;
                }
                Entry::Heads(_) => self.handle(Input::Skipped { seq })?,
                Entry::Foreign(problem) => {
                    metrics::counter!(crate::metrics::FOREIGN_MESSAGES).increment(1);
                    tracing::debug!(seq = seq.0, %problem, "ignored a message that is not an event");
                    self.handle(Input::Skipped { seq })?;
                }
            }
        }
        for event in erased {
            self.match_by_newer_filters();
            self.take_event(event)?;
        }
        Ok(())
    }

    fn take_event(&mut self, event: Arc<StoredEvent>) -> Result<(), DriverError> {
        let seq = event.seq;
        let (detached, matching): (Vec<_>, Vec<_>) =
            self.subscriptions.matching(&event).partition(|uid| self.backfills.has(*uid));
        // A detached subscription takes it when its reader gets there, an orphaned one when it is back.
        let later = matching.is_empty() && (!detached.is_empty() || self.lanes.waits_for_owner(&event));
        self.handle(if later { Input::Skipped { seq } } else { Input::Arrived { event, matching } })
    }
}
