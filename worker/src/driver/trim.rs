//! Makes room in EVENTS before it is full: what is settled goes, the oldest first, loudly.
//!
//! Dropped is only what the committed ledger says to be settled and whose dead letters have their copies. With the events
//! of an idle workflow its number would go, so the newest of each workflow that has nothing later is carried forward as a
//! head first, as gateways do with what is about to expire. Whoever reads such a head takes it only where it knows of no
//! later one, so nothing has to be compared when it is written.

use std::{collections::BTreeMap, time::Duration};

use futures_util::{StreamExt as _, TryStreamExt as _, stream};
use tokio::sync::watch;
use tokio_util::task::AbortOnDropHandle;
use weft_nats::{
    append::{AppendErrorKind, publish},
    direct,
    event::Entry,
    message::{Outgoing, Stored},
    records::{self, MESSAGE_HEADS_MAX},
    streams::{self, Usage},
};
use weft_proto::{
    ids::{StreamSeq, WorkflowId},
    v1,
};

use crate::{
    ledger::store::Settlement,
    log::{Bounds, Log},
};

/// How often it is looked how full the stream is: less than it takes to fill the last tenth of one of a sensible size.
const PAUSE: Duration = Duration::from_millis(500);
/// The same while nothing can go: each time reads what is unsettled.
const PAUSE_STUCK: Duration = Duration::from_secs(5);
/// Room is made when so much of the limit is used, until no more than that is, in percent. What lies between is room for
/// what comes before the next look.
const USED: (u64, u64) = (90, 80);
/// What goes at once.
const PART: Bounds = Bounds { messages: 1000, bytes: 8 * 1024 * 1024 };
/// Workflows that are looked up at a time.
const LOOKUPS: usize = 16;
/// What a stream that is full is lent for a message of heads.
const LOAN_BYTES: u64 = 1024 * 1024;

/// Why room cannot be made now.
#[derive(Debug, thiserror::Error)]
enum TrimError {
    #[error(transparent)]
    Stream(#[from] streams::EnsureError),
    #[error(transparent)]
    Read(#[from] direct::DirectError),
    #[error("heads cannot be carried forward: {0}")]
    Heads(AppendErrorKind),
    #[error(transparent)]
    Ledger(#[from] crate::ledger::LedgerError),
}

/// Keeps room in a shard's EVENTS.
#[derive(Debug)]
pub(super) struct Trim {
    log: Log,
    settlement: Settlement,
    /// OUTCOMES sequence up to which every dead letter has its copy.
    copied: watch::Receiver<u64>,
    /// For so long the number of an idle workflow goes on.
    remember: Duration,
}

impl Trim {
    /// For as long as the shard is owned.
    pub fn start(
        log: Log,
        settlement: Settlement,
        copied: watch::Receiver<u64>,
        remember: Duration,
    ) -> AbortOnDropHandle<()> {
        let trim = Self { log, settlement, copied, remember };
        AbortOnDropHandle::new(tokio::spawn(trim.run()))
    }

    async fn run(self) {
        let mut is_stuck = false;
        loop {
            match self.look().await {
                Ok(stuck) => {
                    if stuck && !is_stuck {
                        tracing::error!(
                            shard = %self.log.shard,
                            "events are nearly at max_bytes and nothing of them is settled; senders are refused when they \
                             reach it: see which subscriptions are behind, or raise [log] max_bytes"
                        );
                    }
                    is_stuck = stuck;
                }
                Err(error) => tracing::warn!(shard = %self.log.shard, %error, "room is made in the log later"),
            }
            tokio::time::sleep(if is_stuck { PAUSE_STUCK } else { PAUSE }).await;
        }
    }

    fn stream(&self) -> String {
        self.log.layout.events_stream(self.log.shard)
    }

    /// Makes room where it is needed. Whether more is needed than could be made.
    async fn look(&self) -> Result<bool, TrimError> {
        let usage = streams::usage(&self.log.connection, &self.stream()).await?;
        let Some(target) = target(usage) else { return Ok(false) };
        let settled = self.settlement.settled().await?;
        // A dead letter without its copy needs its event.
        if *self.copied.borrow() < settled.outcomes.0 {
            return Ok(false);
        }
        let (mut left, mut first, mut count) = (usage.bytes.saturating_sub(target), usage.first, 0);
        while left > 0 && first <= settled.through {
            let part = self.log.try_range(&self.stream(), ">", first, settled.through, PART).await?;
            left = left.saturating_sub(part.messages.iter().map(|message| message.stored_size() as u64).sum());
            count += part.messages.len();
            self.carry(&part.messages, part.known).await?;
            streams::drop_through(&self.log.connection, &self.stream(), part.known).await?;
            first = part.known.next();
        }
        if count > 0 {
            metrics::counter!(crate::metrics::DROPPED_MESSAGES).increment(count as u64);
            tracing::warn!(
                shard = %self.log.shard, from = usage.first.0, through = first.0 - 1, messages = count,
                "settled events were dropped from the log, which was nearly at max_bytes"
            );
        }
        Ok(count == 0)
    }

    /// Carries the heads forward that would be lost with `messages`, which end at `through`.
    async fn carry(&self, messages: &[Stored], through: StreamSeq) -> Result<(), TrimError> {
        // `look` has just asked the server, which has stamped the heads.
        let now = self.log.connection.server_clock().now();
        let since = now.checked_sub(self.remember).map_or(i64::MIN, |since| since.as_millisecond());
        let newest = self.newest(messages).into_iter().filter(|(_, head)| head.stored_at_ms >= since);
        let heads: Vec<v1::Head> = stream::iter(newest)
            .map(|(workflow, head)| async move {
                let subject = self.log.layout.event_subject(&workflow);
                let newest = direct::last_by_subject(&self.log.connection, &self.stream(), &subject).await?;
                let has_later = newest.is_some_and(|newest| newest.seq > through);
                Ok::<_, TrimError>((!has_later).then_some(head))
            })
            .buffer_unordered(LOOKUPS)
            .try_filter_map(|head| async move { Ok(head) })
            .try_collect()
            .await?;
        for heads in heads.chunks(MESSAGE_HEADS_MAX) {
            self.append(heads.to_vec()).await?;
        }
        Ok(())
    }

    /// The newest that `messages` say of each workflow.
    fn newest(&self, messages: &[Stored]) -> BTreeMap<WorkflowId, v1::Head> {
        let mut newest: BTreeMap<WorkflowId, v1::Head> = BTreeMap::new();
        for message in messages {
            let heads = match Entry::decode(self.log.layout, message) {
                Entry::Event(event) => vec![v1::Head {
                    workflow_id: event.workflow.as_str().to_owned(),
                    sequence_number: event.sequence_number.0,
                    event_id: event.id.to_vec(),
                    stored_at_ms: message.stored_at.as_millisecond(),
                }],
                Entry::Heads(record) => record.heads,
                Entry::Foreign(_) => vec![],
            };
            for head in heads {
                let Ok(workflow) = WorkflowId::new(head.workflow_id.as_str()) else { continue };
                let known = newest.entry(workflow).or_default();
                if known.sequence_number <= head.sequence_number {
                    *known = head;
                }
            }
        }
        newest
    }

    async fn append(&self, heads: Vec<v1::Head>) -> Result<(), TrimError> {
        let (_, message) = records::heads(self.log.layout.heads_subject(self.log.shard), heads);
        match publish(&self.log.connection, &message).await {
            Err(AppendErrorKind::Full(_)) => self.append_to_full(&message).await,
            stored => stored.map_err(TrimError::Heads),
        }
    }

    /// What makes room needs room itself: a stream that is full already is lent some.
    async fn append_to_full(&self, message: &Outgoing) -> Result<(), TrimError> {
        let (connection, stream) = (&self.log.connection, self.stream());
        let Some(max) = streams::usage(connection, &stream).await?.bytes_max else { return Ok(()) };
        streams::set_bytes_max(connection, &stream, max + LOAN_BYTES).await?;
        let stored = publish(connection, message).await;
        streams::set_bytes_max(connection, &stream, max).await?;
        stored.map_err(TrimError::Heads)
    }
}

/// How much the stream may hold when room has been made; `None`: there is enough.
fn target(usage: Usage) -> Option<u64> {
    let max = usage.bytes_max?;
    (usage.bytes >= max / 100 * USED.0).then_some(max / 100 * USED.1)
}
