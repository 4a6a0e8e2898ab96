//! Reads the streams as a client of NATS that knows the contract and the stored messages.

use std::{collections::BTreeMap, time::Duration};

use anyhow::{Context as _, anyhow};
use async_nats::jetstream::{self, Message, consumer::DeliverPolicy, consumer::pull::OrderedConfig};
use futures_util::StreamExt as _;
use prost::Message as _;
use weft_proto::{
    internal::{self, outcome_record::Record, subscription_change},
    v1,
};

use crate::{
    catalog::hex,
    clock::Clock,
    record::{Change, Outcome, OutcomeKind, Stored, SubscriptionChange},
};

/// Longest time without a message.
const SILENCE_MAX: Duration = Duration::from_secs(10);

/// Source of the mesh's own events, and the beginning of their workflows.
const OWN_SOURCE: &str = "weft";
const OWN_WORKFLOWS: &str = "weft:";

/// The contents of the streams read so far.
#[derive(Debug)]
pub struct Collector {
    jetstream: jetstream::Context,
    clock: Clock,
    shards: u32,
    /// Next sequence to read, by stream.
    next: BTreeMap<String, u64>,
    /// Events.
    pub log: Vec<Stored>,
    /// Outcomes.
    pub outcomes: Vec<Outcome>,
    /// Changes of subscriptions.
    pub changes: Vec<SubscriptionChange>,
    /// Copies of dead letters.
    pub copies: BTreeMap<(String, String), u64>,
}

impl Collector {
    /// Connects to any of the servers.
    pub async fn connect(servers: Vec<String>, shards: u32, clock: Clock) -> anyhow::Result<Self> {
        let client = async_nats::ConnectOptions::new().name("chaos-judge").retry_on_initial_connect();
        let client = client.connect(servers).await.map_err(|error| anyhow!("NATS: {error}"))?;
        Ok(Self {
            jetstream: jetstream::new(client),
            clock,
            shards,
            next: BTreeMap::new(),
            log: Vec::new(),
            outcomes: Vec::new(),
            changes: Vec::new(),
            copies: BTreeMap::new(),
        })
    }

    /// Reads what has been appended since the last call.
    pub async fn read(&mut self) -> anyhow::Result<()> {
        for shard in 0..self.shards {
            let name = |stream: &str| if self.shards == 1 { stream.to_owned() } else { format!("{stream}_{shard}") };
            let (events, outcomes) = (name("EVENTS"), name("OUTCOMES"));
            for message in self.stream(&events).await? {
                self.event(shard, &message)?;
            }
            for message in self.stream(&outcomes).await? {
                self.commit(shard, &message)?;
            }
        }
        for message in self.stream("DLQ").await? {
            let tokens: Vec<&str> = message.subject.split('.').collect();
            if let [_, subscription, _, event, ..] = tokens[..] {
                *self.copies.entry((subscription.to_owned(), event.to_owned())).or_default() += 1;
            }
        }
        Ok(())
    }

    /// The new messages of a stream.
    async fn stream(&mut self, name: &str) -> anyhow::Result<Vec<Message>> {
        let mut next = self.next.get(name).copied().unwrap_or(1);
        let mut stream = self.jetstream.get_stream(name).await.map_err(|error| anyhow!("{name}: {error}"))?;
        let state = stream.info().await.map_err(|error| anyhow!("{name}: {error}"))?.state.clone();
        let mut messages = Vec::new();
        if state.messages == 0 || state.last_sequence < next {
            return Ok(messages);
        }
        let config = OrderedConfig {
            deliver_policy: DeliverPolicy::ByStartSequence { start_sequence: next },
            ..Default::default()
        };
        let consumer = stream.create_consumer(config).await.map_err(|error| anyhow!("{name}: {error}"))?;
        let mut incoming = consumer.messages().await.map_err(|error| anyhow!("{name}: {error}"))?;
        while next <= state.last_sequence {
            let message = tokio::time::timeout(SILENCE_MAX, incoming.next()).await;
            let message = message.with_context(|| format!("{name}: silence before {next}"))?;
            let message = message.context("the end of a stream")?.map_err(|error| anyhow!("{name}: {error}"))?;
            let info = message.info().map_err(|error| anyhow!("{name}: {error}"))?;
            // A consumer that was made again may begin at its first message.
            if info.stream_sequence >= next {
                next = info.stream_sequence + 1;
                messages.push(message);
            }
        }
        // Only now: what a failed try has read is read again.
        self.next.insert(name.to_owned(), next);
        Ok(messages)
    }

    fn event(&mut self, shard: u32, message: &Message) -> anyhow::Result<()> {
        let header = |name: &str| {
            message.headers.as_ref().and_then(|headers| headers.get(name)).map(|value| value.as_str().to_owned())
        };
        // Heads that are carried forward are no events.
        if !message.subject.starts_with("events.") {
            return Ok(());
        }
        // The mesh's own events are of no sender, and no subscription of a run names their source.
        if header("ce-source").as_deref() == Some(OWN_SOURCE) {
            return Ok(());
        }
        let required = |name: &str| header(name).with_context(|| format!("{}: no {name}", message.subject));
        let info = message.info().map_err(|error| anyhow!("EVENTS: {error}"))?;
        let millis = u64::try_from(info.published.unix_timestamp_nanos() / 1_000_000).unwrap_or(0);
        self.log.push(Stored {
            shard,
            seq: info.stream_sequence,
            event_id: required("ce-id")?,
            workflow: required("ce-partitionkey")?,
            number: required("ce-sequence")?.parse()?,
            previous: header("ce-previousid"),
            delivery: required("ce-deliveryid")?,
            event_type: required("ce-type")?,
            at: self.clock.at_wall(millis),
        });
        Ok(())
    }

    fn commit(&mut self, shard: u32, message: &Message) -> anyhow::Result<()> {
        let sequence = message.info().map_err(|error| anyhow!("OUTCOMES: {error}"))?.stream_sequence;
        let record = internal::OutcomeRecord::decode(message.payload.clone()).context("a record of OUTCOMES")?;
        let Some(Record::Commit(commit)) = record.record else { return Ok(()) };
        for outcome in commit.outcomes.iter().filter(|outcome| !outcome.workflow_id.starts_with(OWN_WORKFLOWS)) {
            self.outcomes.extend(read_outcome(shard, sequence, commit.epoch, outcome));
        }
        for change in commit.subscriptions {
            let uid = hex(&change.subscription);
            if let Some(change) = change.change.and_then(read_change) {
                self.changes.push(SubscriptionChange { shard, uid, change });
            }
        }
        Ok(())
    }
}

fn read_outcome(shard: u32, commit: u64, epoch: u64, outcome: &internal::Outcome) -> Option<Outcome> {
    let kind = match outcome.kind() {
        internal::OutcomeKind::Delivered => OutcomeKind::Delivered,
        internal::OutcomeKind::DeadLettered => OutcomeKind::DeadLettered,
        internal::OutcomeKind::Discarded => OutcomeKind::Discarded,
        internal::OutcomeKind::Unrouted => OutcomeKind::Unrouted,
        internal::OutcomeKind::Resolved => OutcomeKind::Resolved,
        // Ends no delivery: the dead letter is as before.
        internal::OutcomeKind::Cancelled | internal::OutcomeKind::Unspecified => return None,
    };
    Some(Outcome {
        shard,
        uid: hex(&outcome.subscription),
        seq: outcome.sequence,
        from: outcome.from,
        run: outcome.run,
        kind,
        expired: outcome.reason() == v1::DeadLetterReason::Expired,
        workflow: outcome.workflow_id.clone(),
        operator: outcome.operator.clone(),
        epoch,
        commit,
    })
}

fn read_change(change: subscription_change::Change) -> Option<Change> {
    match change {
        subscription_change::Change::Opened(opened) => {
            Some(Change::Opened { from: opened.from, revision: opened.revision })
        }
        subscription_change::Change::Revised(revised) => {
            Some(Change::Revised { from: revised.from, revision: revised.revision })
        }
        subscription_change::Change::Closed(closed) => {
            Some(Change::Closed { operator: closed.operator, up_to: closed.up_to })
        }
        // The position of its reader, and changes that later versions add.
        _ => None,
    }
}
