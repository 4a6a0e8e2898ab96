//! Whether the admin is ready, and if not, what it waits for.

use std::time::Duration;

use tokio::{sync::watch, time::sleep};
use tokio_util::sync::CancellationToken;
use tonic_health::{ServingStatus, server::HealthReporter};
use weft_nats::connect::Connection;

/// What `grpc.health.v1` knows: the server as a whole, and each service.
const NAMES: [&str; 4] = ["", "weft.v1.EventService", "weft.v1.DeadLetterService", "weft.v1.RejectedService"];
/// How often the connection is looked at: it tells its state only when asked.
const LOOK_INTERVAL: Duration = Duration::from_millis(200);

/// Nothing is served yet.
pub(super) async fn not_serving(reporter: &HealthReporter) {
    tell(reporter, ServingStatus::NotServing).await;
}

/// Keeps `missing` and the health service up to date until `closing`; then they say that the admin is draining.
pub(super) async fn watch(
    connection: Connection,
    mut progress: watch::Receiver<Option<String>>,
    missing: watch::Sender<Option<String>>,
    reporter: HealthReporter,
    closing: CancellationToken,
) {
    let mut serving = false;
    loop {
        let waits_for = progress.borrow_and_update().clone();
        let now = if connection.is_connected() { waits_for } else { Some("nats: not connected".to_owned()) };
        if serving != now.is_none() {
            serving = now.is_none();
            tell(&reporter, if serving { ServingStatus::Serving } else { ServingStatus::NotServing }).await;
        }
        missing.send_if_modified(|before| {
            let changed = *before != now;
            *before = now;
            changed
        });
        tokio::select! {
            () = sleep(LOOK_INTERVAL) => {}
            // Once nobody reports progress any more only the interval remains.
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
