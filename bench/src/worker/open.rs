//! An open loop through a whole mesh, and how soon each event arrives: from the moment that the gateway has read it,
//! before it is stored, to the first byte at the receiver. Both are times of one clock.

use std::{collections::HashMap, path::Path, sync::Arc, time::Duration};

use jiff::Timestamp;
use parking_lot::{Mutex, MutexGuard};
use serde::Deserialize;

use super::PATIENCE;
use crate::{
    bare_receiver::{BareReceiver, Request},
    latency::Latencies,
    load::{self, Traffic},
    process_mesh::ProcessMesh,
};
use weft_services::mesh::Wiring;

/// The workflow that a receiver may be sick for.
pub const SICK_WORKFLOW: &str = "w-0";

/// The events to send.
#[derive(Debug, Clone, Copy)]
pub struct Load {
    /// Events a second.
    pub rate: u64,
    /// How long.
    pub time: Duration,
    /// Workflows that they are spread over, at random.
    pub workflows: u64,
    /// The senders' connections.
    pub connections: usize,
    /// Bytes of each body.
    pub payload: usize,
}

/// A mesh, and the receiver of everything.
pub struct Open {
    pub mesh: ProcessMesh,
    wiring: Wiring,
    receiver: BareReceiver,
    arrivals: Arc<Mutex<Arrivals>>,
}

/// The arrivals of a run.
#[derive(Debug, Default)]
struct Arrivals {
    /// Whether [`SICK_WORKFLOW`] is answered 500.
    sick: bool,
    /// Of the other workflows.
    latencies: Latencies,
    /// Events that were taken.
    taken: u64,
}

/// The fields of an envelope, none of which needs an escape.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Envelope<'a> {
    workflow_id: &'a str,
    received_at: Timestamp,
}

/// A run.
#[derive(Debug)]
pub struct Run {
    /// From the gateway's reading to the first byte at the receiver; without [`SICK_WORKFLOW`].
    pub latencies: Latencies,
    /// From when a request was due to the gateway's answer.
    pub accepted: Latencies,
    /// CPU seconds by process.
    pub cpu: Vec<(&'static str, f64)>,
    /// Events in all.
    pub events: u64,
}

impl Open {
    /// Starts the mesh below `folder`. `wiring` says how deliveries are retried.
    pub async fn start(folder: &Path, wiring: Wiring) -> anyhow::Result<Self> {
        let arrivals = Arc::new(Mutex::new(Arrivals::default()));
        let shared = Arc::clone(&arrivals);
        let receiver = BareReceiver::start(move |request| lock(&shared).add(request)).await?;
        let mesh = ProcessMesh::start(folder, &wiring.config(Some(&receiver.url()))).await?;
        Ok(Self { mesh, wiring, receiver, arrivals })
    }

    /// Sends, with one workflow's receiver sick meanwhile or not, and waits until everything has been taken. `name` is new
    /// for each run.
    pub async fn run(&self, name: &str, load: Load, sick: bool) -> anyhow::Result<Run> {
        *lock(&self.arrivals) = Arrivals { sick, ..Arrivals::default() };
        let Load { rate, time, workflows, connections, payload } = load;
        let traffic = Traffic::new(&self.mesh.url, &self.wiring.sender_secret, name, workflows, payload)?;
        let before = self.mesh.cpu()?;
        let outcome = load::open(traffic, connections, rate, (Duration::ZERO, time), 202).await?;
        let after: HashMap<_, _> = self.mesh.cpu()?.into_iter().collect();
        let events = outcome.latencies.count();
        lock(&self.arrivals).sick = false;
        let mut answered = self.receiver.answered();
        while lock(&self.arrivals).taken < events {
            answered += 1;
            self.receiver.until(answered, PATIENCE).await?;
        }
        let latencies = std::mem::take(&mut lock(&self.arrivals).latencies);
        let cpu = before.into_iter().map(|(name, before)| (name, after.get(name).map_or(0.0, |after| after - before)));
        Ok(Run { latencies, accepted: outcome.latencies, cpu: cpu.collect(), events })
    }
}

fn lock(arrivals: &Mutex<Arrivals>) -> MutexGuard<'_, Arrivals> {
    arrivals.lock()
}

impl Arrivals {
    fn add(&mut self, request: Request<'_>) -> u16 {
        let Ok(envelope) = serde_json::from_slice::<Envelope<'_>>(request.body) else { return 400 };
        let of_sick = envelope.workflow_id == SICK_WORKFLOW;
        if of_sick && self.sick {
            return 500;
        }
        self.taken += 1;
        if !of_sick {
            let latency = request.first_byte_at.duration_since(envelope.received_at);
            // A clock that was set back meanwhile counts as no time.
            self.latencies.record(latency.try_into().unwrap_or_default());
        }
        200
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn request(workflow: &str) -> String {
        format!(r#"{{"eventId":"x","workflowId":"{workflow}","receivedAt":"2026-11-21T02:00:00.100Z","data":1}}"#)
    }

    #[test]
    fn only_the_sick_workflow_fails_and_it_never_counts() {
        let mut arrivals = Arrivals { sick: true, ..Arrivals::default() };
        let first_byte_at = "2026-11-21T02:00:00.103Z".parse().unwrap();
        let mut add = |workflow: &str| {
            let body = request(workflow);
            arrivals.add(Request { first_byte_at, body: body.as_bytes() })
        };
        assert_eq!((add(SICK_WORKFLOW), add("w-1")), (500, 200));
        arrivals.sick = false;
        assert_eq!(arrivals.add(Request { first_byte_at, body: request(SICK_WORKFLOW).as_bytes() }), 200);
        assert_eq!((arrivals.taken, arrivals.latencies.count()), (2, 1));
        // The histogram's steps are finer than a millisecond.
        assert_eq!(arrivals.latencies.percentiles().max_ms.round(), 3.0);
    }
}
