//! Watches EVENTS for events that will soon be dropped by retention, and for lanes that are late.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use jiff::Timestamp;
use tokio::sync::watch;
use tokio_util::task::AbortOnDropHandle;
use weft_nats::{
    scan::{self, ScanError},
    streams,
};
use weft_proto::ids::{StreamSeq, SubscriptionUid};

use super::{Driver, DriverError, commits::Pruning};
use crate::{
    lane::{Input, LateCount},
    log::Log,
};

/// Requests per retention, so that expiring events are found well before they are dropped, and the bounds of the pause
/// between two: each costs about fifty reads.
const LOOKS: u32 = 100;
const PAUSE: (Duration, Duration) = (Duration::from_millis(250), Duration::from_secs(60));

/// Time that a copy on DLQ may be made after its dead letter.
const COPY_LAG: Duration = Duration::from_secs(24 * 3600);

/// Sequences up to which EVENTS has reached a part of its retention.
#[derive(Debug, Clone, Copy, Default)]
struct LogAge {
    /// Half: lanes with such events are reported as late.
    half: StreamSeq,
    /// Nine tenths: unsettled events up to here expire.
    end: StreamSeq,
    /// The first sequence that is still held.
    first: StreamSeq,
}

/// Follows the age of a shard's EVENTS.
#[derive(Debug)]
pub(super) struct ExpiryWatch {
    age: watch::Receiver<LogAge>,
    /// The count of late lanes under way.
    counting: Option<LateCount>,
    /// Subscriptions that are reported as late.
    reported: BTreeSet<SubscriptionUid>,
    /// Number of late copies of dead letters at the last report.
    copies_reported: usize,
    _task: AbortOnDropHandle<()>,
}

impl ExpiryWatch {
    /// Watches a log that keeps events for `retention`. Zero: for ever.
    pub fn start(log: Log, retention: Duration) -> Self {
        let (sender, age) = watch::channel(LogAge::default());
        // Ends with the shard.
        let task = tokio::spawn(follow(log, retention, sender));
        Self { age, counting: None, reported: BTreeSet::new(), copies_reported: 0, _task: AbortOnDropHandle::new(task) }
    }

    /// Waits until more of the log has aged, or there is more to count. Cancel safe.
    pub async fn changed(&mut self) {
        if self.counting.is_some() {
            return;
        }
        if self.age.changed().await.is_err() {
            std::future::pending().await
        }
    }
}

async fn follow(log: Log, retention: Duration, age: watch::Sender<LogAge>) {
    if retention.is_zero() {
        return std::future::pending().await;
    }
    let pause = (retention / LOOKS).clamp(PAUSE.0, PAUSE.1);
    loop {
        match look(&log, retention).await {
            Ok(found) => {
                age.send_replace(found);
            }
            Err(error) => tracing::debug!(%error, "reading the age of the log failed; retrying"),
        }
        tokio::time::sleep(pause).await;
    }
}

async fn look(log: &Log, retention: Duration) -> Result<LogAge, ScanError> {
    let stream = log.layout.events_stream(log.shard);
    // The server stamps the events, and drops them by the same clock.
    let now = streams::server_time(&log.connection, &stream).await;
    let now = now.map_err(|error| ScanError::Unavailable(error.to_string()))?;
    let before = |age: Duration| now.checked_sub(age).unwrap_or(Timestamp::UNIX_EPOCH);
    let half = scan::before_time(&log.connection, &stream, before(retention / 2)).await?;
    let end = scan::before_time(&log.connection, &stream, before(retention / 10 * 9)).await?;
    let first = log.first(&stream).await;
    Ok(LogAge { half, end, first })
}

impl Driver {
    /// More of the log has aged: expires events that will soon be dropped, and reports late lanes.
    pub(super) fn on_log_aged(&mut self) -> Result<(), DriverError> {
        if let Some(mut count) = self.expiry_watch.counting.take() {
            if self.lanes.count_late(&mut count) {
                self.report_late(&count.lanes);
            } else {
                self.expiry_watch.counting = Some(count);
            }
            return Ok(());
        }
        let LogAge { half, end, first } = *self.expiry_watch.age.borrow_and_update();
        self.commits.prune(Pruning { heads_below: first, dead_before_ms: self.dead_before_ms() });
        self.expiry_watch.counting = Some(LateCount::below(half));
        self.report_late_copies(half);
        if end > StreamSeq(0) { self.handle(Input::Expiring { through: end }) } else { Ok(()) }
    }

    /// Dead letters from before this time cannot be redriven: neither EVENTS nor DLQ holds their payload.
    fn dead_before_ms(&self) -> i64 {
        if self.context.dead_retention.is_zero() {
            return 0;
        }
        let kept = self.context.retention.max(self.context.dead_retention).saturating_add(COPY_LAG);
        // Dead letters are stamped by this clock.
        self.clock.now().checked_sub(kept).map_or(0, |at| at.as_millisecond())
    }

    /// Warns of missing copies whose events have been in the log for half of the retention: when these are dropped, their
    /// payload is lost.
    fn report_late_copies(&mut self, half: StreamSeq) {
        let missing = self.copier.shared().missing_through(half);
        if missing > self.expiry_watch.copies_reported {
            let problem = self.copier.shared().problem();
            tracing::warn!(
                shard = %self.shard, missing, problem,
                "copies of dead letters are missing whose events have been in the log for half of the retention"
            );
        }
        self.expiry_watch.copies_reported = missing;
    }

    fn report_late(&mut self, late: &BTreeMap<SubscriptionUid, usize>) {
        let lanes: usize = late.values().sum();
        metrics::gauge!(crate::metrics::LATE_LANES, "shard" => self.shard.to_string()).set(lanes as f64);
        for (uid, lanes) in late.iter().filter(|(uid, _)| !self.expiry_watch.reported.contains(*uid)) {
            let name = self.subscriptions.get(uid).map(|compiled| compiled.subscription.value.name.as_str());
            tracing::warn!(
                shard = %self.shard, subscription = name.unwrap_or_default(), lanes,
                "events have waited for half of the retention; at nine tenths of it they become dead letters"
            );
        }
        self.expiry_watch.reported = late.keys().copied().collect();
    }
}
