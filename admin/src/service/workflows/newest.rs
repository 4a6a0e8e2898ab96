//! A workflow's events from the newest back. A stream can only be read forwards by subject; each event names the one before
//! it.

use tonic::Status;
use weft_nats::{direct, event::StoredEvent};
use weft_proto::ids::{StreamSeq, WorkflowId};

use super::{LogState, PAGE_BYTES};
use crate::error::{of_direct, of_history};

/// Some events of a workflow, newest first: those before the place `before`, or from the newest on where that is 0. Behind
/// them the place of the last one, if there are older ones.
pub(super) async fn read(
    log: &LogState,
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

async fn newest(log: &LogState, workflow: &WorkflowId) -> Result<Option<StoredEvent>, Status> {
    let stream = log.layout.events_stream(log.layout.shard_of(workflow));
    let subject = log.layout.event_subject(workflow);
    let message = direct::last_by_subject(&log.connection, &stream, &subject).await.map_err(of_direct)?;
    Ok(message.and_then(|message| StoredEvent::decode(log.layout, &message).ok()))
}

/// The event before another one. It names its predecessor, whose place the history knows; where that leads nowhere, because
/// the history lags or the predecessor was lost, EVENTS is searched.
async fn older(log: &LogState, workflow: &WorkflowId, event: &StoredEvent) -> Result<Option<StoredEvent>, Status> {
    if let Some(previous) = event.event.previous {
        let shard = log.layout.shard_of(workflow);
        let place = log.history.place_before(previous, workflow.clone(), shard, event.seq).await.map_err(of_history)?;
        if let Some(place) = place
            && let Some(found) = at(log, workflow, place).await?
        {
            return Ok(Some(found));
        }
    }
    let mut search = Search::before(event.seq.0);
    while let Some(from) = search.probe() {
        search.answer(first_from(log, workflow, from).await?);
    }
    match search.found {
        Some(place) => at(log, workflow, StreamSeq(place)).await,
        None => Ok(None),
    }
}

/// The search for the last place before another one, by the first place from a probe on. It steps back in doubled steps
/// until there is a place, then bisects the part after it.
struct Search {
    /// From here to the other place there is none.
    high: u64,
    step: u64,
    found: Option<u64>,
}

impl Search {
    fn before(place: u64) -> Self {
        Self { high: place, step: 1, found: None }
    }

    /// Where the next answer is to begin; `None` at the end.
    fn probe(&self) -> Option<u64> {
        match self.found {
            Some(found) => (self.high - found > 1).then_some(found + (self.high - found) / 2),
            None => (self.high > 1).then(|| self.high.saturating_sub(self.step).max(1)),
        }
    }

    /// Takes the first place from the probe on.
    fn answer(&mut self, first: Option<u64>) {
        let Some(probe) = self.probe() else { return };
        match first.filter(|first| *first < self.high) {
            Some(first) => self.found = Some(first),
            None => (self.high, self.step) = (probe, self.step * 2),
        }
    }
}

async fn first_from(log: &LogState, workflow: &WorkflowId, from: u64) -> Result<Option<u64>, Status> {
    let stream = log.layout.events_stream(log.layout.shard_of(workflow));
    let subject = log.layout.event_subject(workflow);
    let messages = direct::range(&log.connection, &stream, StreamSeq(from), &subject, 1, PAGE_BYTES).await;
    Ok(messages.map_err(of_direct)?.first().map(|message| message.seq.0))
}

async fn at(log: &LogState, workflow: &WorkflowId, place: StreamSeq) -> Result<Option<StoredEvent>, Status> {
    let stream = log.layout.events_stream(log.layout.shard_of(workflow));
    let message = direct::get(&log.connection, &stream, place).await.map_err(of_direct)?;
    let stored = message.and_then(|message| StoredEvent::decode(log.layout, &message).ok());
    Ok(stored.filter(|stored| stored.event.workflow == *workflow))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_place_before_another_is_found_in_few_steps() {
        let places: [u64; 7] = [3, 4, 100, 101, 5_000, 900_000, 1_000_000];
        for before in [1, 2, 3, 4, 5, 99, 100, 101, 102, 4_999, 5_001, 899_999, 1_000_000, 1_000_001, 9_000_000] {
            let mut search = Search::before(before);
            let mut steps = 0;
            while let Some(from) = search.probe() {
                steps += 1;
                search.answer(places.into_iter().find(|place| *place >= from));
            }
            assert_eq!(search.found, places.into_iter().rfind(|place| *place < before), "{before}");
            assert!(steps <= 50, "{before}: {steps}");
        }
    }
}
