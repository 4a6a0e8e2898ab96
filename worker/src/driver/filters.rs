//! Widened filters at a take-over: events are matched by the filter that is recorded with the shard's state until everything
//! that an earlier owner may have read is read.

use std::time::Duration;

use tokio::{
    task::{JoinError, JoinSet},
    time::{Instant, sleep},
};
use weft_nats::{position::BehindWatch, streams};
use weft_proto::ids::{StreamSeq, SubscriptionUid};

use super::{Driver, DriverError, aborted};
use crate::{lane::Input, log::Log, matching::CompiledSubscription};

/// Time between two requests for the end of EVENTS.
const END_PAUSE: Duration = Duration::from_secs(1);

/// Subscriptions that events are matched for by an earlier filter than the catalog's.
#[derive(Debug, Default)]
pub(super) struct DeferredFilters {
    uids: Vec<SubscriptionUid>,
    /// Finds the end of EVENTS, after which their filters in the catalog count.
    earlier_end: JoinSet<StreamSeq>,
}

impl DeferredFilters {
    /// Starts to find out how far earlier owners may have read. In a cluster that takes some seconds, so it does not wait
    /// for the first changed filter.
    pub fn find_earlier_end(&mut self, log: Log) {
        self.earlier_end.spawn(certain_end(log));
    }

    /// Waits until it is known how far earlier owners may have read; for ever once it was returned. Cancel safe.
    pub async fn earlier_end(&mut self) -> Result<StreamSeq, JoinError> {
        match self.earlier_end.join_next().await {
            Some(end) => end,
            None => std::future::pending().await,
        }
    }
}

impl Driver {
    /// Matches events for a subscription by its recorded filter while the catalog's is not in force.
    pub(super) fn match_by_filter_in_force(&mut self, uid: SubscriptionUid) {
        if !self.lanes.is_filter_deferred(uid) {
            return;
        }
        let filters = self.lanes.filters(uid);
        let newest = filters.as_ref().and_then(|filters| filters.newest());
        if let (Some(compiled), Some(newest)) = (self.subscriptions.get(&uid).cloned(), newest) {
            let matcher = compiled.matcher.with_filter(newest);
            self.subscriptions.insert(CompiledSubscription { matcher, ..compiled });
            self.deferred_filters.uids.push(uid);
        }
    }

    /// Matches by the filters of the catalog that are in force by now.
    pub(super) fn match_by_newer_filters(&mut self) {
        if self.deferred_filters.uids.is_empty() {
            return;
        }
        let lanes = &self.lanes;
        let in_force: Vec<_> =
            self.deferred_filters.uids.extract_if(.., |uid| !lanes.is_filter_deferred(*uid)).collect();
        for uid in in_force {
            let known = self.subscriptions.get(&uid).map(|known| known.subscription.clone());
            if let Some(compiled) = known.and_then(|subscription| self.compiled(uid, &subscription)) {
                self.subscriptions.insert(compiled);
            }
        }
    }

    /// It is known how far earlier owners may have read.
    pub(super) fn on_earlier_end(&mut self, end: Result<StreamSeq, JoinError>) -> Result<(), DriverError> {
        self.handle(Input::EarlierEnd { through: end.map_err(aborted("read"))? })
    }
}

/// The end of EVENTS, beyond which no earlier owner has read, since they attempt nothing any more. A new leader may report
/// less than there is, so leaders are asked until one is certain.
async fn certain_end(log: Log) -> StreamSeq {
    let stream = log.layout.events_stream(log.shard);
    let (mut watch, mut end) = (BehindWatch::default(), StreamSeq(0));
    loop {
        match streams::leader_view(&log.connection, &stream).await {
            Ok(view) => {
                end = end.max(view.state.last);
                if watch.believes(&view, Instant::now()) {
                    return end;
                }
            }
            Err(error) => tracing::debug!(stream, %error, "reading the end of the stream failed; retrying"),
        }
        sleep(END_PAUSE).await;
    }
}
