//! What the log will drop next: events that are about to reach the end of their life in it, settled or not.

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

/// How often the log is asked in the life of an event, so that what is due is found well before its end, and the bounds of
/// the pause: each time costs some fifty reads.
const LOOKS: u32 = 100;
const PAUSE: (Duration, Duration) = (Duration::from_millis(250), Duration::from_secs(60));

/// A copy on DLQ may be made so much later than its dead letter.
const COPY_LAG: Duration = Duration::from_secs(24 * 3600);

/// How far the log has aged: everything up to here has come to that part of its life.
#[derive(Debug, Clone, Copy, Default)]
struct LogAge {
    /// An operator should hear of it.
    half: StreamSeq,
    /// It has to be read now, or never: 90 %.
    end: StreamSeq,
    /// The first that is still there.
    first: StreamSeq,
}

/// Follows a shard's EVENTS as they age.
#[derive(Debug)]
pub(super) struct ExpiryWatch {
    age: watch::Receiver<LogAge>,
    /// Late lanes that are being counted.
    counting: Option<LateCount>,
    /// Subscriptions of which it has been said that they are late.
    reported: BTreeSet<SubscriptionUid>,
    /// Copies of dead letters that were missing when that was last reported.
    copies_reported: usize,
    _task: AbortOnDropHandle<()>,
}

impl ExpiryWatch {
    /// For a log that keeps events for `retention`. Zero: for ever.
    pub fn start(log: Log, retention: Duration) -> Self {
        let (sender, age) = watch::channel(LogAge::default());
        // Ends with the shard.
        let task = tokio::spawn(follow(log, retention, sender));
        Self { age, counting: None, reported: BTreeSet::new(), copies_reported: 0, _task: AbortOnDropHandle::new(task) }
    }

    /// Waits until more of the log has aged, or there is more to count. Safe to cancel.
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
            Err(error) => tracing::debug!(%error, "the age of the log is asked again"),
        }
        tokio::time::sleep(pause).await;
    }
}

async fn look(log: &Log, retention: Duration) -> Result<LogAge, ScanError> {
    let stream = log.layout.events_stream(log.shard);
    // The server has stamped the events, and drops them by its own clock.
    let now = streams::server_time(&log.connection, &stream).await;
    let now = now.map_err(|error| ScanError::Unavailable(error.to_string()))?;
    let before = |age: Duration| now.checked_sub(age).unwrap_or(Timestamp::UNIX_EPOCH);
    let half = scan::before_time(&log.connection, &stream, before(retention / 2)).await?;
    let end = scan::before_time(&log.connection, &stream, before(retention / 10 * 9)).await?;
    let first = log.first(&stream).await;
    Ok(LogAge { half, end, first })
}

impl Driver {
    /// More of the log has aged: what leaves it soon is dealt with, and who is late is named.
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

    /// Dead letters from before this can be redriven no more: neither EVENTS nor DLQ holds their payload.
    fn dead_before_ms(&self) -> i64 {
        if self.context.dead_retention.is_zero() {
            return 0;
        }
        let kept = self.context.retention.max(self.context.dead_retention).saturating_add(COPY_LAG);
        // Dead letters are stamped by this clock.
        self.clock.now().checked_sub(kept).map_or(0, |at| at.as_millisecond())
    }

    /// Warns of copies that are missing of events which have come to half of their life: when the log drops these, their
    /// payload is lost.
    fn report_late_copies(&mut self, half: StreamSeq) {
        let missing = self.copies.shared().missing_through(half);
        if missing > self.expiry_watch.copies_reported {
            let problem = self.copies.shared().problem();
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
