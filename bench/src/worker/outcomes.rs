//! The outcomes of all events, from OUTCOMES.

use anyhow::Context as _;
use prost::Message as _;
use serde::Serialize;
use tokio::time::timeout;
use weft_nats::{
    reader::{OrderedReader, ReaderOptions},
    streams,
};
use weft_proto::{
    ids::{ShardId, StreamSeq},
    internal::{OutcomeRecord, outcome_record::Record},
};

use super::PATIENCE;
use weft_services::mesh::Nats;

/// Messages that are taken at once.
const BATCH_MESSAGES: usize = 256;

/// How many final outcomes the events have.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Tally {
    /// Events with exactly one.
    pub once: u64,
    /// Events with none.
    pub never: u64,
    /// Events with several.
    pub repeated: u64,
    /// Messages of OUTCOMES: commits and pieces of checkpoints.
    pub messages: u64,
    /// Their bytes.
    pub bytes: u64,
}

/// Follows OUTCOMES from its beginning.
#[derive(Debug)]
pub struct Outcomes {
    reader: OrderedReader,
    /// By EVENTS sequence, counted up to 255.
    counts: Vec<u8>,
    settled: u64,
    messages: u64,
    bytes: u64,
}

impl Outcomes {
    /// Begins to follow the outcomes of this number of events.
    ///
    /// # Errors
    ///
    /// When the server does not answer.
    pub async fn follow(nats: &Nats, events: u64) -> anyhow::Result<Self> {
        let connection = nats.connection("admin", "weft-bench-outcomes").await?;
        let layout = streams::ensure(&connection, nats.spec()).await?;
        let options = ReaderOptions {
            stream: layout.outcomes_stream(ShardId(0)),
            name: "bench".into(),
            from: StreamSeq(1),
            filter: None,
            batch_messages_max: BATCH_MESSAGES,
            known: None,
            pages: false,
        };
        let reader = OrderedReader::new(connection, options);
        Ok(Self { reader, counts: vec![0; usize::try_from(events)? + 1], settled: 0, messages: 0, bytes: 0 })
    }

    /// Waits until this number of events has an outcome.
    ///
    /// # Errors
    ///
    /// When nothing comes any more.
    pub async fn until(&mut self, events: u64) -> anyhow::Result<()> {
        while self.settled < events {
            let late = || format!("{} events of {events} have an outcome, and no more come", self.settled);
            let batch = timeout(PATIENCE, self.reader.next()).await.with_context(late)??;
            for message in batch.messages {
                self.messages += 1;
                self.bytes += message.payload.len() as u64;
                if let Some(Record::Commit(commit)) = OutcomeRecord::decode(message.payload)?.record {
                    for outcome in &commit.outcomes {
                        self.count(outcome.sequence)?;
                    }
                }
            }
        }
        Ok(())
    }

    fn count(&mut self, seq: u64) -> anyhow::Result<()> {
        let count = self.counts.get_mut(usize::try_from(seq)?).with_context(|| format!("an outcome of {seq}"))?;
        self.settled += u64::from(*count == 0);
        *count = count.saturating_add(1);
        Ok(())
    }

    /// The result so far.
    pub fn tally(&self) -> Tally {
        let of = |wanted: fn(u8) -> bool| self.counts[1..].iter().filter(|count| wanted(**count)).count() as u64;
        let (once, never, repeated) = (of(|count| count == 1), of(|count| count == 0), of(|count| count > 1));
        Tally { once, never, repeated, messages: self.messages, bytes: self.bytes }
    }
}
