//! A log that is filled without a gateway, as gateways would have filled it: numbers, predecessors and ids are right.

use anyhow::Context as _;
use bytes::Bytes;
use indicatif::{ProgressBar, ProgressStyle};
use jiff::Timestamp;
use weft_nats::{
    append::{Appender, BATCH_MESSAGES_MAX},
    event::{Event, JSON},
    streams,
};
use weft_proto::ids::{EventId, SequenceNumber, ShardId, StreamSeq, WorkflowId};

use super::append::body;
use weft_services::mesh::{Nats, SOURCE};

/// Content of a filled log: events of `w-0`, `w-1`, … in turn.
#[derive(Debug, Clone, Copy)]
pub struct Preload {
    /// Workflows that the events are spread over.
    pub workflows: u64,
    /// Bytes of each event's body.
    pub payload: usize,
}

impl Preload {
    /// Appends `events` events to an empty log.
    ///
    /// # Errors
    ///
    /// When they cannot be appended.
    pub async fn fill(self, nats: &Nats, events: u64) -> anyhow::Result<()> {
        self.fill_from(nats, 0, events).await
    }

    /// Appends the events from number `first` to below `end` behind those that are there.
    ///
    /// # Errors
    ///
    /// When they cannot be appended.
    pub async fn fill_from(self, nats: &Nats, first: u64, end: u64) -> anyhow::Result<()> {
        let layout = streams::ensure(&nats.connection("admin", "weft-bench-streams").await?, nats.spec()).await?;
        let connection = nats.connection("gateway", "weft-bench-preload").await?;
        let mut last: StreamSeq = streams::state(&connection, &layout.events_stream(ShardId(0))).await?.last;
        let mut appender = Appender::new(connection);
        let style = ProgressStyle::with_template("preload {bar:40} {human_pos}/{human_len} events, {eta}")?;
        let progress = ProgressBar::new(end - first).with_style(style);
        let payload = body(self.payload);
        let mut group = Vec::with_capacity(BATCH_MESSAGES_MAX);
        for number in first..end {
            group.push(self.event(number, &payload)?.encode(layout));
            if group.len() == BATCH_MESSAGES_MAX || number + 1 == end {
                last = appender.append(last, &group).await.context("preload")?;
                progress.inc(group.len() as u64);
                group.clear();
            }
        }
        progress.finish_and_clear();
        Ok(())
    }

    /// The event of a number, from 0.
    ///
    /// # Errors
    ///
    /// None that is to be expected: the workflow's id is one.
    pub fn event(self, number: u64, payload: &Bytes) -> anyhow::Result<Event> {
        let now = Timestamp::now();
        let id = |number: u64| EventId::of_delivery(SOURCE, &format!("preload-{number}"));
        Ok(Event {
            id: id(number),
            sequence_number: SequenceNumber(number / self.workflows + 1),
            workflow: WorkflowId::new(format!("w-{}", number % self.workflows))?,
            previous: number.checked_sub(self.workflows).map(id),
            event_type: "bench.preload".into(),
            source: SOURCE.into(),
            time: now,
            received_at: now,
            delivery_id: Some(format!("preload-{number}")),
            content_type: JSON.into(),
            data_pointer: String::new(),
            verified_by: "standard/0".into(),
            traceparent: None,
            quarantine: None,
            kept_headers: Vec::new(),
            payload: payload.clone(),
        })
    }
}
