//! Readiness of a role with a port, and what it waits for.

use std::{sync::Arc, time::Duration};

use tokio::{sync::watch, time::sleep};
use tokio_util::sync::CancellationToken;
use tonic_health::{
    ServingStatus, pb,
    server::{HealthReporter, health_reporter},
};
use weft_nats::{connect::Connection, watch_value::set_if_changed};

/// Interval of checks of the connection, which reports no changes.
const LOOK_INTERVAL: Duration = Duration::from_millis(200);

/// Health of a port's gRPC services by `grpc.health.v1`. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Health {
    reporter: HealthReporter,
    services: Arc<[String]>,
}

impl Health {
    /// Health of these services and of the server as a whole, not serving yet, and the service that reports it.
    pub async fn new(
        services: impl IntoIterator<Item: Into<String>>,
    ) -> (Self, pb::health_server::HealthServer<impl pb::health_server::Health>) {
        let (reporter, server) = health_reporter();
        let health = Self { reporter, services: services.into_iter().map(Into::into).collect() };
        health.set(false).await;
        (health, server)
    }

    /// Sets the state of the server and of its services.
    async fn set(&self, ready: bool) {
        let status = if ready { ServingStatus::Serving } else { ServingStatus::NotServing };
        for name in std::iter::once("").chain(self.services.iter().map(String::as_str)) {
            self.reporter.set_service_status(name, status).await;
        }
    }
}

/// Inputs of the readiness.
#[derive(Debug)]
pub struct Inputs<C> {
    /// The role's connection.
    pub connection: Connection,
    /// Missing before the log can be used.
    pub progress: watch::Receiver<Option<String>>,
    /// Streams that were removed.
    pub streams: watch::Receiver<Option<String>>,
    /// Missing of the catalog.
    pub catalog: C,
}

/// Keeps `readiness` and the health service up to date until `draining`; then they say that the role is draining.
pub async fn watch(
    mut inputs: Inputs<impl Fn() -> Option<String>>,
    readiness: watch::Sender<Option<String>>,
    health: Health,
    draining: CancellationToken,
) {
    let mut ready = false;
    // Before the log was found for the first time its streams are still to be made.
    let mut opened = false;
    loop {
        let progress = inputs.progress.borrow_and_update().clone();
        opened |= progress.is_none();
        let connection = &inputs.connection;
        let log = inputs.streams.borrow().clone().filter(|_| opened).or(progress);
        let log = log.or_else(|| connection.refused_writes());
        let catalog = (inputs.catalog)().or_else(|| connection.refused_readers());
        let now = first_missing(connection.is_connected(), log, catalog);
        if ready != now.is_none() {
            ready = now.is_none();
            health.set(ready).await;
        }
        set_if_changed(&readiness, now);
        tokio::select! {
            () = sleep(LOOK_INTERVAL) => {}
            // Without further progress reports only the interval remains.
            Ok(()) = inputs.progress.changed() => {}
            () = draining.cancelled() => {
                readiness.send_replace(Some("draining".into()));
                health.set(false).await;
                return;
            }
        }
    }
}

/// The first missing part, in the order of the start.
fn first_missing(connected: bool, log: Option<String>, catalog: Option<String>) -> Option<String> {
    if connected { log.or(catalog) } else { Some("nats: not connected".into()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_missing_part_is_named_in_the_order_of_the_start() {
        let catalog = || Some("catalog: not read to its end yet".to_owned());
        let receipts = || Some("receipts: 12,000 of 40,000 events".to_owned());
        assert_eq!(first_missing(false, receipts(), catalog()).as_deref(), Some("nats: not connected"));
        assert_eq!(first_missing(true, receipts(), catalog()), receipts());
        assert_eq!(first_missing(true, None, catalog()), catalog());
        assert_eq!(first_missing(true, None, None), None);
    }
}
