//! The present state of the mesh, read every few seconds: backlogs, receivers, streams. Answers and metrics share it.

use std::{
    collections::{BTreeMap, BTreeSet},
    mem,
    sync::Arc,
    time::{Duration, Instant},
};

use jiff::Timestamp;
use tokio::{sync::watch, time::sleep};
use tokio_util::sync::CancellationToken;
use weft_catalog::Snapshot;
use weft_index::history::{
    History, ReceiverHistory,
    stats::{Backlog, Backlogs},
};
use weft_nats::{
    connect::Connection,
    streams::{self, EnsureError, Usage},
    subject::Layout,
};
use weft_proto::{
    ids::{ShardId, StreamSeq, SubscriptionUid},
    internal,
};

use crate::metrics;

/// Interval of observations: a backlog of 100,000 lanes takes a second to read.
const INTERVAL: Duration = Duration::from_secs(5);
/// Open dead letters are counted again after this many times as long as that took: a hundred thousand take about a second.
const COUNT_PAUSE_FACTOR: u32 = 20;
/// The pause after a failed observation.
const RETRY: Duration = Duration::from_millis(500);

/// The mesh at one moment.
#[derive(Debug, Clone)]
pub(crate) struct Observation {
    /// When it was made, by the log server's clock.
    pub at: Timestamp,
    /// The backlogs.
    pub backlogs: Backlogs,
    /// Receivers that are away or held.
    pub receivers: Vec<ReceiverHistory>,
    /// The streams of the log.
    pub streams: Vec<StreamState>,
    /// Subscriptions that are missing from the catalog without a removal.
    pub orphaned: Vec<(ShardId, internal::SubscriptionState)>,
}

/// A stream at one moment.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct StreamState {
    pub name: String,
    /// Of a stream of events.
    pub shard: Option<ShardId>,
    pub usage: Usage,
    pub last: StreamSeq,
}

/// The newest observation; `None` before the first.
pub(in crate::service) type Observed = watch::Receiver<Option<Arc<Observation>>>;

/// The task that observes.
#[derive(Debug, Clone)]
pub(in crate::service) struct Observer {
    pub connection: Connection,
    pub layout: Layout,
    pub history: History,
    pub catalog: watch::Receiver<Arc<Snapshot>>,
}

impl Observer {
    /// Observes until `stop`.
    pub async fn run(self, observed: watch::Sender<Option<Arc<Observation>>>, stop: CancellationToken) {
        let observing = async {
            let mut names = BTreeSet::new();
            let mut open = OpenDeadLetters::default();
            loop {
                let pause = match self.observe().await {
                    Ok(observation) => {
                        let catalog = self.catalog.borrow().clone();
                        let before = mem::replace(&mut names, catalog.subscriptions.keys().cloned().collect());
                        metrics::forget(before.difference(&names));
                        record(&observation, &catalog);
                        open.record(&self.history, &catalog).await;
                        observed.send_replace(Some(Arc::new(observation)));
                        INTERVAL
                    }
                    Err(problem) => {
                        tracing::debug!(problem, "the mesh cannot be observed now");
                        RETRY
                    }
                };
                sleep(pause).await;
            }
        };
        tokio::select! {
            () = observing => {}
            () = stop.cancelled() => {}
        }
    }

    async fn observe(&self) -> Result<Observation, String> {
        let catalog = self.catalog.borrow().clone();
        let at = self.connection.server_clock().now();
        let streams = self.streams().await.map_err(|error| error.to_string())?;
        let history = async {
            let backlogs = self.history.backlogs().await?;
            let receivers = self.history.receivers().await?;
            let orphaned =
                if catalog.complete { self.history.unknown_subscriptions(&catalog).await? } else { Vec::new() };
            Ok::<_, weft_index::history::HistoryError>((backlogs, receivers, orphaned))
        };
        let (backlogs, receivers, orphaned) = history.await.map_err(|error| error.to_string())?;
        Ok(Observation { at, backlogs, receivers, streams, orphaned })
    }

    async fn streams(&self) -> Result<Vec<StreamState>, EnsureError> {
        let layout = self.layout;
        let mut states = Vec::new();
        for (name, shard) in layout.streams() {
            let shard = shard.filter(|shard| name == layout.events_stream(*shard));
            let found = async {
                let usage = streams::usage(&self.connection, &name).await?;
                Ok::<_, EnsureError>((usage, streams::state(&self.connection, &name).await?.last))
            };
            match found.await {
                Ok((usage, last)) => states.push(StreamState { name, shard, usage, last }),
                // The others are shown all the same; `/readyz` names the one that is missing.
                Err(EnsureError::Mismatch(_)) if shard.is_none() => {}
                Err(error) => return Err(error),
            }
        }
        Ok(states)
    }
}

/// The metric of open dead letters, which are counted one by one.
#[derive(Debug, Default)]
struct OpenDeadLetters {
    counted: BTreeMap<SubscriptionUid, u64>,
    /// The history has not changed since.
    at: Vec<StreamSeq>,
    not_before: Option<Instant>,
}

impl OpenDeadLetters {
    /// Counts again if something has changed and the last count was long enough ago, and records the counts for every
    /// subscription of the catalog.
    async fn record(&mut self, history: &History, catalog: &Snapshot) {
        let at = history.changes().borrow().clone();
        if at != self.at && self.not_before.is_none_or(|at| at <= Instant::now()) {
            let started = Instant::now();
            match history.open_dead_letters().await {
                Ok(counted) => (self.counted, self.at) = (counted, at),
                Err(error) => tracing::debug!(%error, "open dead letters cannot be counted now"),
            }
            self.not_before = Some(Instant::now() + started.elapsed() * COUNT_PAUSE_FACTOR);
        }
        for (name, subscription) in &catalog.subscriptions {
            let uid = SubscriptionUid::from_slice(&subscription.value.uid);
            metrics::open_dead_letters(name, uid.and_then(|uid| self.counted.get(&uid)).copied().unwrap_or(0));
        }
    }
}

/// Records an observation in metrics, for every subscription of the catalog.
fn record(observation: &Observation, catalog: &Snapshot) {
    let none = Backlog::default();
    for (name, subscription) in &catalog.subscriptions {
        let uid = SubscriptionUid::from_slice(&subscription.value.uid);
        let backlog = uid.and_then(|uid| observation.backlogs.subscriptions.get(&uid)).unwrap_or(&none);
        metrics::backlog(name, backlog, observation.at);
    }
    for stream in &observation.streams {
        metrics::stream(&stream.name, stream.usage.bytes, stream.usage.bytes_max.unwrap_or(0));
        if let Some(shard) = stream.shard {
            let matched = observation.backlogs.matched.get(&shard).map_or(0, |matched| matched.0);
            metrics::unmatched(shard, stream.last.0.saturating_sub(matched));
        }
    }
}
