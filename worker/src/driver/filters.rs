//! Filters that became wider while the shard changed its owner: until everything has been read that an earlier owner may have
//! read, events are matched by the recorded filter.

use std::time::Duration;

use tokio::{
    task::JoinError,
    time::{Instant, sleep},
};
use weft_nats::{position::BehindWatch, streams};
use weft_proto::ids::{StreamSeq, SubscriptionUid};

use super::{Driver, DriverError};
use crate::{lane::Input, log::Log, matching::Compiled};

/// Between two questions for the end of EVENTS.
const END_PAUSE: Duration = Duration::from_secs(1);

impl Driver {
    /// Matches events for a subscription by its recorded filter while the catalog's does not count yet.
    pub(super) fn match_by_filter_in_force(&mut self, uid: SubscriptionUid) {
        if !self.lanes.is_filter_deferred(uid) {
            return;
        }
        let filters = self.lanes.filters(uid);
        let newest = filters.as_ref().and_then(|filters| filters.newest());
        if let (Some(compiled), Some(newest)) = (self.subscriptions.get(&uid).cloned(), newest) {
            self.subscriptions.insert(Compiled { matcher: compiled.matcher.with_filter(newest), ..compiled });
            self.deferred.push(uid);
        }
    }

    /// Asks how far earlier owners can have read. In a cluster the answer takes some seconds, so it is not asked for only when
    /// a filter changes.
    pub(super) fn ask_earlier_end(&mut self) {
        self.earlier_end.spawn(certain_end(self.log()));
    }

    /// Matches by the catalog's filters where those count by now.
    pub(super) fn match_by_newer_filters(&mut self) {
        if self.deferred.is_empty() {
            return;
        }
        let lanes = &self.lanes;
        let counting: Vec<_> = self.deferred.extract_if(.., |uid| !lanes.is_filter_deferred(*uid)).collect();
        for uid in counting {
            let known = self.subscriptions.get(&uid).map(|known| known.subscription.clone());
            if let Some(compiled) = known.and_then(|subscription| self.compiled(uid, &subscription)) {
                self.subscriptions.insert(compiled);
            }
        }
    }

    /// It is known how far earlier owners can have read.
    pub(super) fn on_earlier_end(&mut self, end: Result<StreamSeq, JoinError>) -> Result<(), DriverError> {
        let through = end.map_err(|source| DriverError::Task { what: "a read", source })?;
        self.handle(Input::EarlierEnd { through })
    }
}

/// The end of EVENTS, which no earlier owner has read beyond, as none attempts anything any more. A leader that was elected
/// just now may report less than there is, so leaders are asked until they are believed.
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
            Err(error) => tracing::debug!(stream, %error, "the end of the stream is asked for again"),
        }
        sleep(END_PAUSE).await;
    }
}
