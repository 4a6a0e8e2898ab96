//! The worker's code that delivers, as the admin asks for it: what checks an address, signs and calls is the same at a
//! save, at a test and at a delivery.

use std::{sync::Arc, time::Duration};

use weft_admin::deliveries::{Deliveries, Migration, Sample};
use weft_expression::Expression;
use weft_nats::{clock::ServerClock, envelope, event::StoredEvent};
use weft_proto::{
    ids::{Run, ShardId, SubscriptionUid},
    internal, v1,
};
use weft_worker::{
    destination::{
        Delivery, Destinations, InvalidDestination, PlannedRequest, Stages,
        address::AddressRules,
        clients::HttpClients,
        postgres::{Pools, PostgresDestination},
        transformed,
    },
    ownership::LeaseGuard,
};

use crate::sender::signed_sample;

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
            // Only where they are used is known whether certificates and connection strings can be.
            Err(
                invalid @ (InvalidDestination::Client(_)
                | InvalidDestination::Auth(_)
                | InvalidDestination::Postgres { .. }),
            ) => Err(invalid.to_string()),
            // Whether it makes sense at all is the catalog's to judge.
            Err(_) => Ok(()),
        }
    }

    async fn plan(&self, subscription: &v1::Subscription, event: StoredEvent) -> Result<v1::PlannedDelivery, String> {
        let destination = self.destinations().make(subscription).map_err(|invalid| invalid.to_string())?;
        let mut planned = v1::PlannedDelivery::default();
        if let Err(refused) = destination.check().await {
            planned.refused = refused.to_string();
        }
        let event = match transform(subscription, &event) {
            Ok(transformed) => transformed.unwrap_or(event),
            Err(error) => {
                planned.transform_error = error;
                return Ok(planned);
            }
        };
        planned.data = envelope::data_of(&event.event).unwrap_or_default().to_vec();
        let PlannedRequest { method, target, headers, body } = destination.planned(&[delivery(subscription, event)?]);
        let headers = headers.into_iter().map(|(name, value)| v1::PlannedHeader { name, value }).collect();
        planned.request = Some(v1::PlannedRequest { method, target, headers, body: body.to_vec() });
        Ok(planned)
    }

    async fn deliver(&self, subscription: &v1::Subscription, event: StoredEvent) -> Result<internal::Attempt, String> {
        let destinations = self.destinations();
        destinations.put(subscription).map_err(|invalid| invalid.to_string())?;
        let event_id = event.event.id.to_vec();
        let delivery = delivery(subscription, event)?;
        let end = destinations.deliver(delivery).await.map_err(|not_sent| not_sent.to_string())?;
        Ok(internal::Attempt {
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

    fn sign(&self, source: &v1::Source, sample: &Sample<'_>) -> Result<internal::SignedSample, String> {
        signed_sample(source, sample, jiff::Timestamp::now().as_second())
    }

    async fn migrate(&self, subscription: &v1::Subscription, dry_run: bool) -> Result<Migration, String> {
        let destination = subscription.destination.as_ref().and_then(|destination| destination.kind.as_ref());
        let Some(v1::destination::Kind::Postgres(postgres)) = destination else {
            return Err("only a destination of type postgres has tables".into());
        };
        let postgres = PostgresDestination::new(postgres, &self.clients, &Pools::default())
            .map_err(|invalid| invalid.to_string())?;
        let databases = if dry_run { Vec::new() } else { postgres.migrate().await? };
        Ok(Migration { statements: postgres.migration().to_vec(), databases })
    }
}

/// A delivery outside of the log: no owner of a shard makes it.
fn delivery(subscription: &v1::Subscription, event: StoredEvent) -> Result<Delivery, String> {
    let uid = SubscriptionUid::from_slice(&subscription.uid).ok_or(InvalidDestination::Uid);
    Ok(Delivery {
        event: Arc::new(event),
        uid: uid.map_err(|invalid| invalid.to_string())?,
        run: Run::LIVE,
        number: 1,
        lane_previous: None,
        shard: ShardId(0),
        // No owner of a shard makes it.
        epoch: 0,
        timeout: Duration::from_millis(subscription.timeout_ms),
        // Nothing has asked the log's server: the local clock.
        clock: ServerClock::default(),
        lease: LeaseGuard::unlimited(),
        stages: Stages::default(),
    })
}

/// The event with the data that the subscription's transform makes; `None` without a transform.
fn transform(subscription: &v1::Subscription, event: &StoredEvent) -> Result<Option<StoredEvent>, String> {
    if subscription.transform.is_empty() {
        return Ok(None);
    }
    let transform = Expression::shared(&subscription.transform).map_err(|problem| format!("transform: {problem}"))?;
    transformed(event, &transform).map(Some)
}
