//! Whether the gateway is ready, and if not, what it waits for.

use std::{sync::Arc, time::Duration};

use tokio::{sync::watch, time::sleep};
use tokio_util::sync::CancellationToken;
use weft_nats::{changes::set_if_changed, connect::Connection};

use crate::{http::state::Api, rpc::Health};

/// Interval of checks of the connection, which reports no changes.
const LOOK_INTERVAL: Duration = Duration::from_millis(200);

/// Inputs of the readiness.
pub struct Seen {
    /// The gateway's connection.
    pub connection: Connection,
    /// State of the routes.
    pub api: Arc<Api>,
    /// Missing before the log can be used.
    pub progress: watch::Receiver<Option<String>>,
    /// Streams that were removed.
    pub streams: watch::Receiver<Option<String>>,
}

/// Keeps `missing` and the health service up to date until `cancel`; then they say that the gateway is draining.
pub async fn watch(
    Seen { connection, api, mut progress, streams }: Seen,
    missing: watch::Sender<Option<String>>,
    health: Health,
    cancel: CancellationToken,
) {
    let mut ready = false;
    // Before the log was found for the first time its streams are still to be made.
    let mut opened = false;
    loop {
        let waits_for = progress.borrow_and_update().clone();
        opened |= waits_for.is_none();
        let log = streams.borrow().clone().filter(|_| opened).or(waits_for).or_else(|| connection.refused_writes());
        let followed = api.sources.missing().or_else(|| connection.refused_readers());
        let now = first_missing(connection.is_connected(), log, followed);
        if ready != now.is_none() {
            ready = now.is_none();
            health.tell(ready).await;
        }
        set_if_changed(&missing, now);
        tokio::select! {
            () = sleep(LOOK_INTERVAL) => {}
            // Once the reporter has ended only the interval remains.
            Ok(()) = progress.changed() => {}
            () = cancel.cancelled() => {
                missing.send_replace(Some("draining".into()));
                health.tell(false).await;
                return;
            }
        }
    }
}

/// The first missing part, in the order of the start.
fn first_missing(connected: bool, progress: Option<String>, catalog: Option<String>) -> Option<String> {
    if !connected {
        return Some("nats: not connected".into());
    }
    if progress.is_some() {
        return progress;
    }
    catalog
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_missing_is_named_in_order() {
        let catalog = || Some("catalog: not read to its end yet".to_owned());
        let receipts = || Some("receipts: 12,000 of 40,000 events".to_owned());
        assert_eq!(first_missing(false, receipts(), catalog()).as_deref(), Some("nats: not connected"));
        assert_eq!(first_missing(true, receipts(), catalog()), receipts());
        assert!(first_missing(true, None, catalog()).is_some_and(|text| text.starts_with("catalog")));
        assert_eq!(first_missing(true, None, None), None);
    }
}
