//! Alerts: the mesh's own events, which report what an operator should know before a customer does.
//!
//! One admin of all raises them. A gateway takes them, so they are ordered, durable and subscribed to like any other; only
//! subscriptions that name source `weft` take them.
//!
//! - `decide`: which alerts are due; pure. `seen`: what that is decided by. `record`: who raises them, and what has been raised.

use std::{sync::Arc, time::Duration};

use tokio::{sync::watch, time::sleep};
use tokio_util::sync::CancellationToken;
use weft_catalog::Snapshot;
use weft_index::history::History;
use weft_nats::{
    conditions::Conditions, connect::Connection, options::OnFull, streams::LogSpec, subject::OWN_EVENTS_SUBJECT,
};

use super::{gateways, stats::observe::Observed};

mod decide;
mod record;
mod seen;

use decide::{Alert, State};
use seen::Watch;

/// Interval of looks.
const INTERVAL: Duration = Duration::from_secs(5);
/// Time-out of a gateway.
const PUBLISH_TIMEOUT: Duration = Duration::from_secs(12);
/// Name of the condition while alerts cannot be published.
const CONDITION: &str = "alerts";

/// Options of the log that alerts depend on.
#[derive(Debug, Clone, Copy)]
pub(super) struct AlertOptions {
    /// How long EVENTS keeps an event. Zero: for ever.
    pub retention: Duration,
    /// Percentage of its limit from which EVENTS is nearly full.
    pub full_from: u64,
}

/// Percentage of its limit from which EVENTS is nearly full, where settled events are dropped from 90 % on: above what
/// the workers keep it at.
const FULL_FROM_DROPPING: u64 = 95;
/// The same where events are refused once it is full.
const FULL_FROM_REFUSING: u64 = 80;

impl AlertOptions {
    /// Of a log.
    pub fn of(spec: &LogSpec) -> Self {
        let full_from = match spec.log.on_full {
            OnFull::DropSettled => FULL_FROM_DROPPING,
            OnFull::Refuse => FULL_FROM_REFUSING,
        };
        Self { retention: spec.log.retention.0, full_from }
    }
}

/// The task that raises alerts.
#[derive(Debug)]
pub(super) struct Alerts {
    pub connection: Connection,
    pub history: History,
    pub catalog: watch::Receiver<Arc<Snapshot>>,
    pub observed: Observed,
    pub options: AlertOptions,
    pub conditions: Conditions,
}

impl Alerts {
    /// Raises alerts until `stop`, while no other admin does.
    pub async fn run(self, stop: CancellationToken) {
        let holder = uuid::Uuid::new_v4().to_string();
        let mut watch = Watch::default();
        let raising = async {
            loop {
                sleep(INTERVAL).await;
                let problem = self.look(&holder, &mut watch).await.err();
                if let Some(problem) = &problem {
                    tracing::debug!(problem, "alerts cannot be raised now");
                }
                self.conditions.set(CONDITION, problem);
            }
        };
        tokio::select! {
            () = raising => {}
            () = stop.cancelled() => {}
        }
    }

    /// Looks once, and publishes what is due.
    async fn look(&self, holder: &str, watch: &mut Watch) -> Result<(), String> {
        let Some(observation) = self.observed.borrow().clone() else { return Ok(()) };
        let catalog = self.catalog.borrow().clone();
        // Without a complete catalog a subscription that has not been read yet would seem to have recovered.
        if !catalog.complete {
            return Ok(());
        }
        let Some(mut held) = record::read(&self.connection, holder).await? else { return Ok(()) };
        let now = self.connection.server_clock().now();
        let seen = watch.seen(&self.history, &observation, &catalog, self.options, now).await?;
        decide::decide(&mut held.state, &seen, now.as_millisecond());
        if !record::write(&self.connection, holder, &mut held).await? || held.state.outbox.is_empty() {
            return Ok(());
        }
        let published = self.publish_all(&mut held.state).await;
        record::write(&self.connection, holder, &mut held).await?;
        published
    }

    /// Publishes alerts in order until one is not taken.
    async fn publish_all(&self, state: &mut State) -> Result<(), String> {
        while let Some(alert) = state.outbox.front() {
            publish(&self.connection, alert).await.map_err(|problem| format!("not published: {problem}"))?;
            state.outbox.pop_front();
        }
        Ok(())
    }
}

/// Publishes an alert by a gateway.
///
/// # Errors
///
/// A transient problem, as text. An alert that is refused for good is logged.
async fn publish(connection: &Connection, alert: &Alert) -> Result<(), String> {
    let payload = serde_json::to_vec(alert).map_err(|error| error.to_string())?;
    let answer = gateways::ask(connection, OWN_EVENTS_SUBJECT, payload, PUBLISH_TIMEOUT).await?;
    if !answer.code.is_empty() {
        tracing::error!(id = alert.id, code = answer.code, detail = answer.detail, "alert is refused");
    }
    Ok(())
}
