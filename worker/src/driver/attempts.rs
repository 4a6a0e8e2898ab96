//! Attempts: started while the lease allows it, and reported when they end.

use std::{sync::Arc, time::Duration};

use tokio::task::JoinError;
use weft_nats::event::StoredEvent;
use weft_proto::ids::Run;

use super::{Driver, DriverError, aborted, trace};
use crate::{
    destination::{Delivery, NotSent, Stages},
    lane::{AttemptEnd, AttemptId, Input, LanePrevious, Work},
};

/// An attempt and its end.
pub(super) type FinishedAttempt = (AttemptId, Result<Vec<AttemptEnd>, NotSent>);

impl Driver {
    pub(super) fn start_attempt(
        &mut self,
        id: AttemptId,
        work: &Work,
        events: Vec<Arc<StoredEvent>>,
        number: u32,
        previous: LanePrevious,
    ) -> Result<(), DriverError> {
        if !self.lease.may_attempt() {
            return Err(DriverError::LeaseLost);
        }
        let uid = work.lane.subscription;
        let mut lane_previous = match previous {
            LanePrevious::Known(event) => Some(event),
            LanePrevious::Unordered => None,
            LanePrevious::AskLedger => self.commits.ledger().head(&work.lane)?,
        };
        let timeout = self
            .subscriptions
            .get(&uid)
            .map_or(DEFAULT_TIMEOUT, |compiled| Duration::from_millis(compiled.subscription.value.timeout_ms));
        let mut deliveries = Vec::with_capacity(events.len());
        for event in events {
            let is_first = deliveries.is_empty();
            let event_id = event.event.id;
            deliveries.push(Delivery {
                event,
                uid,
                run: work.run,
                number: if is_first { number } else { 1 },
                lane_previous: lane_previous.replace(event_id),
                shard: self.shard,
                epoch: self.commits.epoch(),
                timeout,
                clock: self.context.connection.server_clock().clone(),
                lease: self.lease.clone(),
                stages: Stages::default(),
            });
        }
        let destinations = Arc::clone(&self.context.destinations);
        let filters = self.lanes.filters(uid);
        let name = self.subscriptions.get(&uid).map(|compiled| compiled.subscription.value.name.clone());
        let name = name.unwrap_or_default();
        // Reported by `on_attempt_finished`; ends with the shard.
        self.traced.started(&deliveries);
        self.attempts.spawn(async move {
            let ends = destinations.deliver_batch(&deliveries, filters.as_deref()).await;
            if let Ok(ends) = &ends {
                trace::attempted(&deliveries, ends);
            }
            for (delivery, end) in deliveries.iter().zip(ends.iter().flatten()) {
                let received_at = (delivery.run == Run::LIVE).then_some(delivery.event.event.received_at);
                let since = received_at.map(|at| delivery.clock.now().duration_since(at));
                crate::metrics::attempt_ended(&name, end, since);
            }
            (id, ends)
        });
        Ok(())
    }

    /// Reports a finished attempt, and others that have finished by now: a turn for each would cost more than the lanes do.
    pub(super) fn on_attempt_finished(&mut self, first: Result<FinishedAttempt, JoinError>) -> Result<(), DriverError> {
        self.finish_attempt(first)?;
        for _ in 1..TURN_ATTEMPTS {
            let Some(ended) = self.attempts.try_join_next() else { break };
            self.finish_attempt(ended)?;
        }
        Ok(())
    }

    fn finish_attempt(&mut self, ended: Result<FinishedAttempt, JoinError>) -> Result<(), DriverError> {
        // The result of an attempt whose destination panicked is unknown.
        let (attempt, ends) = ended.map_err(aborted("attempt"))?;
        // Also where the lease was renewed in the meantime: the attempt was not made, so it has no end to report.
        let mut ends = ends.map_err(|NotSent| DriverError::LeaseLost)?;
        self.set_lanes_clock(&mut ends);
        self.handle(Input::AttemptFinished { attempt, ends })
    }

    /// Times by the lanes' clock, so that all times in a shard's records are by one clock.
    fn set_lanes_clock(&self, ends: &mut [AttemptEnd]) {
        let ended_at = self.clock.now();
        for end in ends {
            let took = end.ended_at.duration_since(end.started_at);
            end.started_at = ended_at.checked_sub(took).unwrap_or(ended_at);
            end.ended_at = ended_at;
        }
    }
}

/// Finished attempts of one turn: few enough that acks and events do not wait long.
const TURN_ATTEMPTS: usize = 256;
/// Timeout of an attempt of a subscription that has just been removed.
const DEFAULT_TIMEOUT: Duration = Duration::from_secs(15);
