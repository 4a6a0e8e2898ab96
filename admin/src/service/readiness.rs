//! Readiness of the admin, and what it waits for.

use std::{sync::Arc, time::Duration};

use tokio::{sync::watch, time::sleep};
use tokio_util::sync::CancellationToken;
use tonic_health::{ServingStatus, server::HealthReporter};
use weft_catalog::Snapshot;
use weft_nats::{changes::set_if_changed, connect::Connection};

/// Names that `grpc.health.v1` knows: the server as a whole, and each service.
const NAMES: [&str; 5] =
    ["", "weft.v1.EventService", "weft.v1.DeadLetterService", "weft.v1.RejectedService", "weft.v1.CatalogService"];
/// Interval of checks of the connection, which sends no notifications.
const LOOK_INTERVAL: Duration = Duration::from_millis(200);

/// Nothing is served yet.
pub(super) async fn not_serving(reporter: &HealthReporter) {
    tell(reporter, ServingStatus::NotServing).await;
}

/// Inputs of the readiness.
pub(super) struct Seen {
    pub connection: Connection,
    pub catalog: watch::Receiver<Arc<Snapshot>>,
    /// Missing before the log can be used.
    pub progress: watch::Receiver<Option<String>>,
    /// Streams that were removed.
    pub streams: watch::Receiver<Option<String>>,
}

/// Keeps `missing` and the health service up to date until `closing`; then they say that the admin is draining.
pub(super) async fn watch(
    Seen { connection, catalog, mut progress, streams }: Seen,
    missing: watch::Sender<Option<String>>,
    reporter: HealthReporter,
    closing: CancellationToken,
) {
    let mut serving = false;
    // Before the log was found for the first time its streams are still to be made.
    let mut opened = false;
    loop {
        let waits_for = progress.borrow_and_update().clone();
        opened |= waits_for.is_none();
        let waits_for = streams.borrow().clone().filter(|_| opened).or(waits_for);
        let now = match connection.is_connected() {
            true => waits_for.or_else(|| catalog.borrow().missing()).or_else(|| connection.refused_readers()),
            false => Some("nats: not connected".to_owned()),
        };
        if serving != now.is_none() {
            serving = now.is_none();
            tell(&reporter, if serving { ServingStatus::Serving } else { ServingStatus::NotServing }).await;
        }
        set_if_changed(&missing, now);
        tokio::select! {
            () = sleep(LOOK_INTERVAL) => {}
            // Without further progress reports only the interval remains.
            Ok(()) = progress.changed() => {}
            () = closing.cancelled() => {
                missing.send_replace(Some("draining".into()));
                tell(&reporter, ServingStatus::NotServing).await;
                return;
            }
        }
    }
}

async fn tell(reporter: &HealthReporter, status: ServingStatus) {
    for name in NAMES {
        reporter.set_service_status(name, status).await;
    }
}
