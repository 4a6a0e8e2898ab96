//! The worker's code that delivers, as the admin asks for it: what checks an address, signs and calls is the same at a
//! save, at a test and at a delivery.

use std::{sync::Arc, time::Duration};

use weft_admin::deliveries::Deliveries;
use weft_nats::{clock::ServerClock, event::StoredEvent};
use weft_proto::{
    ids::{Run, SubscriptionUid},
    v1,
};
use weft_worker::{
    destination::{Delivery, Destinations, InvalidDestination, address::AddressRules, clients::HttpClients},
    ownership::LeaseGuard,
};

/// Delivers as a worker with these rules does.
#[derive(Debug)]
pub struct WorkerDeliveries {
    clients: Arc<HttpClients>,
}

impl WorkerDeliveries {
    /// The rules say which addresses may be called.
    pub fn new(rules: AddressRules) -> Self {
        Self::with_clients(Arc::new(HttpClients::new(rules)))
    }

    /// With the clients of a worker in the same process.
    pub fn with_clients(clients: Arc<HttpClients>) -> Self {
        Self { clients }
    }

    fn destinations(&self) -> Destinations {
        Destinations::with_clients(Arc::clone(&self.clients))
    }
}

#[tonic::async_trait]
impl Deliveries for WorkerDeliveries {
    async fn check(&self, subscription: &v1::Subscription) -> Result<(), String> {
        match self.destinations().make(subscription) {
            Ok(destination) => destination.check().await.map_err(|refused| format!("destination: {refused}")),
            // Only where they are used is known whether certificates can be.
            Err(invalid @ (InvalidDestination::Client(_) | InvalidDestination::Auth(_))) => Err(invalid.to_string()),
            // Whether it makes sense at all is the catalog's to judge.
            Err(_) => Ok(()),
        }
    }

    async fn deliver(&self, subscription: &v1::Subscription, event: StoredEvent) -> Result<v1::Attempt, String> {
        let destinations = self.destinations();
        destinations.put(subscription).map_err(|invalid| invalid.to_string())?;
        let uid = SubscriptionUid::from_slice(&subscription.uid).ok_or(InvalidDestination::Uid);
        let event = Arc::new(event);
        let event_id = event.event.id.to_vec();
        let delivery = Delivery {
            event,
            uid: uid.map_err(|invalid| invalid.to_string())?,
            run: Run::LIVE,
            number: 1,
            lane_previous: None,
            // No owner of a shard makes it.
            epoch: 0,
            timeout: Duration::from_millis(subscription.timeout_ms),
            // Nothing has asked the log's server: the local clock.
            clock: ServerClock::default(),
            lease: LeaseGuard::unlimited(),
        };
        let end = destinations.deliver(delivery).await.map_err(|not_sent| not_sent.to_string())?;
        Ok(v1::Attempt {
            subscription: subscription.uid.clone(),
            number: 1,
            started_at_ms: end.started_at.as_millisecond(),
            ended_at_ms: end.ended_at.as_millisecond(),
            class: end.class.into(),
            status: end.status.into(),
            error: end.error,
            response: end.response.to_vec(),
            event_id,
            ..Default::default()
        })
    }
}
