//! A receiver of deliveries: verifies each, answers by a rule, records the answered ones, in that order.
//!
//! A batch is an arrival for each of its events where it is accepted; where it is refused, its first event stands for it.
//! A request whose client disconnects before the answer is seen by the rule, but not recorded.
//! The record is bounded: a run that ends may leave everything in it, a continuous one takes it out.

use std::{collections::HashMap, net::SocketAddr, sync::Arc, time::Duration};

use axum::{
    Router,
    body::Body,
    extract::{DefaultBodyLimit, Request, State},
    http::{HeaderMap, StatusCode},
    response::{IntoResponse, Response},
};
use jiff::Timestamp;
use parking_lot::{Mutex, MutexGuard};
use serde::Serialize;
use serde_json::value::RawValue;
use tokio::{net::TcpListener, sync::watch};
use tokio_util::{sync::CancellationToken, task::AbortOnDropHandle};

/// The largest body taken: the largest event in its envelope.
const BODY_BYTES_MAX: usize = 24 * 1024 * 1024;
/// Maximum number of recorded arrivals, some hundred bytes each; further ones are answered 503.
const ARRIVALS_MAX: usize = 1_000_000;
/// The most workflows whose order is watched; further ones are taken as they come.
const WORKFLOWS_MAX: usize = 1_000_000;
/// Header of a batch: the number of its events.
const BATCH_SIZE: &str = "weft-batch-size";
/// How long answers that are being sent may take when the receiver stops.
const STOP_TIMEOUT: Duration = Duration::from_secs(1);

/// One attempt to deliver, as it arrived.
#[derive(Debug, Clone, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Arrival {
    /// When it arrived.
    pub at: Timestamp,
    /// `webhook-id`; of an event of a batch, out of the body.
    pub event_id: String,
    /// The workflow, out of the body.
    pub workflow_id: String,
    /// `weft-sequence`.
    pub sequence_number: u64,
    /// `weft-previous-event-id`.
    pub previous_event_id: Option<String>,
    /// `weft-lane-previous-event-id`.
    pub lane_previous_event_id: Option<String>,
    /// The event's type, out of the body.
    #[serde(rename = "type")]
    pub event_type: String,
    /// The sender's delivery id, out of the body.
    pub delivery_id: Option<String>,
    /// `weft-attempt`.
    pub attempt: u32,
    /// `weft-replay`.
    pub replay: bool,
    /// `weft-epoch`.
    pub epoch: u64,
    /// `weft-batch-size`: events of the request.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub batch_size: Option<u32>,
    /// Whether the signature holds.
    pub signed: bool,
    /// Whether the lane's chain holds: this event follows the one that was taken before it, as far as this receiver has
    /// seen. `None` for what was taken before.
    pub in_order: Option<bool>,
    /// The status it was answered with.
    pub status: u16,
    /// The kept part of the body.
    #[serde(flatten)]
    pub payload: Payload,
}

/// The part of bodies that a receiver keeps.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, clap::ValueEnum)]
pub enum Keep {
    /// Nothing
    #[default]
    Nothing,
    /// The event's data, as the sender sent it
    Data,
    /// The whole envelope
    Envelope,
}

/// A body, or the data in it.
#[derive(Debug, Clone, Default, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Payload {
    /// JSON, as it was sent.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub data: Option<Box<RawValue>>,
    /// Media type of data that is not JSON.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub data_content_type: Option<String>,
    /// Data that is not JSON.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub data_base64: Option<String>,
    /// The whole body, where all of it is kept.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub envelope: Option<Box<RawValue>>,
}

impl Payload {
    /// The kept part of a body.
    fn of(body: &[u8], keep: Keep) -> Self {
        match keep {
            Keep::Nothing => Self::default(),
            Keep::Envelope => Self { envelope: serde_json::from_slice(body).ok(), ..Self::default() },
            Keep::Data => serde_json::from_slice::<EnvelopeData>(body).unwrap_or_default().into(),
        }
    }
}

/// The data of an envelope, in either form.
#[derive(Debug, Default, serde::Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct EnvelopeData {
    #[serde(deserialize_with = "present")]
    data: Option<Box<RawValue>>,
    data_content_type: Option<String>,
    data_base64: Option<String>,
}

/// A `null` that is there is a value.
fn present<'de, D: serde::Deserializer<'de>>(deserializer: D) -> Result<Option<Box<RawValue>>, D::Error> {
    serde::Deserialize::deserialize(deserializer).map(Some)
}

impl From<EnvelopeData> for Payload {
    fn from(found: EnvelopeData) -> Self {
        let EnvelopeData { data, data_content_type, data_base64 } = found;
        Self { data, data_content_type, data_base64, envelope: None }
    }
}

/// How an arrival is answered.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Answer {
    /// HTTP status.
    pub status: u16,
    /// After this.
    pub delay: Duration,
}

impl Answer {
    /// 200, at once.
    pub const OK: Self = Self::now(200);

    /// A status, at once.
    pub const fn now(status: u16) -> Self {
        Self { status, delay: Duration::ZERO }
    }
}

/// Decides the answer to an arrival whose `status` is not filled in yet.
pub type Rule = dyn Fn(&Arrival) -> Answer + Send + Sync;

/// A receiver that runs until it is stopped or dropped.
#[derive(Debug)]
pub struct Receiver {
    address: SocketAddr,
    shared: Arc<Shared>,
    stop: CancellationToken,
    server: AbortOnDropHandle<()>,
}

struct Shared {
    /// One for each secret.
    verifiers: Vec<standardwebhooks::Webhook>,
    rule: Box<Rule>,
    keep: Keep,
    state: Mutex<Records>,
    arrived: watch::Sender<usize>,
}

#[derive(Debug, Default)]
struct Records {
    arrivals: Vec<Arrival>,
    /// The last accepted event, by workflow.
    taken: HashMap<String, Taken>,
}

#[derive(Debug)]
struct Taken {
    sequence_number: u64,
    event_id: String,
}

impl std::fmt::Debug for Shared {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Shared")
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, Records> {
        self.state.lock()
    }
}

impl Receiver {
    /// Listens at `listen` (port 0: a free one) for deliveries signed with `secret` (`whsec_…`).
    ///
    /// # Errors
    ///
    /// The port is taken, or the secret is not of its form.
    pub async fn start(
        listen: SocketAddr,
        secret: &str,
        rule: impl Fn(&Arrival) -> Answer + Send + Sync + 'static,
    ) -> Result<Self, String> {
        Self::start_with(listen, &[secret.to_owned()], Keep::Nothing, rule).await
    }

    /// As [`start`](Self::start), for deliveries signed with any of these secrets; keeps a part of their bodies.
    ///
    /// # Errors
    ///
    /// As there.
    pub async fn start_with(
        listen: SocketAddr,
        secrets: &[String],
        keep: Keep,
        rule: impl Fn(&Arrival) -> Answer + Send + Sync + 'static,
    ) -> Result<Self, String> {
        let listener = TcpListener::bind(listen).await.map_err(|error| format!("{listen}: {error}"))?;
        let address = listener.local_addr().map_err(|error| error.to_string())?;
        let verifiers = secrets.iter().map(|secret| standardwebhooks::Webhook::new(secret));
        let verifiers = verifiers
            .collect::<Result<_, _>>()
            .map_err(|_| "the secret is not whsec_ and base64; the subscription's is wanted".to_owned())?;
        let shared = Arc::new(Shared {
            verifiers,
            rule: Box::new(rule),
            keep,
            state: Mutex::default(),
            arrived: watch::Sender::new(0),
        });
        let router = Router::new()
            .fallback(receive)
            .layer(DefaultBodyLimit::max(BODY_BYTES_MAX))
            .with_state(Arc::clone(&shared));
        let stop = CancellationToken::new();
        let stopped = stop.clone().cancelled_owned();
        // Ends with this receiver; a fault of one connection is that connection's.
        let server = tokio::spawn(async move {
            let _ = axum::serve(listener, router).with_graceful_shutdown(stopped).await;
        });
        Ok(Self { address, shared, stop, server: AbortOnDropHandle::new(server) })
    }

    /// Takes nothing more, and lets the answers that are under way arrive.
    pub async fn stop(self) {
        self.stop.cancel();
        // Clients that have not read their answer by then are disconnected.
        let _ = tokio::time::timeout(STOP_TIMEOUT, self.server).await;
    }

    /// `http://<address>/`.
    pub fn url(&self) -> String {
        format!("http://{}/", self.address)
    }

    /// Everything that is remembered, in the order of the answers.
    pub fn arrivals(&self) -> Vec<Arrival> {
        self.shared.lock().arrivals.clone()
    }

    /// Everything that is remembered, which is then forgotten. The order of what follows is still judged by it.
    pub fn take_arrivals(&self) -> Vec<Arrival> {
        std::mem::take(&mut self.shared.lock().arrivals)
    }

    /// Grows with every arrival that has been answered.
    pub fn arrived(&self) -> watch::Receiver<usize> {
        self.shared.arrived.subscribe()
    }

    /// Waits until the arrivals are as wanted, at most for `patience`. Whether they are.
    pub async fn until(&self, patience: Duration, mut enough: impl FnMut(&[Arrival]) -> bool) -> bool {
        let mut arrived = self.arrived();
        let waiting = async {
            loop {
                arrived.mark_unchanged();
                if enough(&self.shared.lock().arrivals) {
                    return;
                }
                if arrived.changed().await.is_err() {
                    std::future::pending::<()>().await;
                }
            }
        };
        tokio::time::timeout(patience, waiting).await.is_ok()
    }
}

async fn receive(State(shared): State<Arc<Shared>>, request: Request) -> Response {
    let at = Timestamp::now();
    let (parts, body) = request.into_parts();
    let Ok(body) = axum::body::to_bytes(body, BODY_BYTES_MAX).await else {
        return StatusCode::PAYLOAD_TOO_LARGE.into_response();
    };
    if shared.lock().arrivals.len() >= ARRIVALS_MAX {
        return StatusCode::SERVICE_UNAVAILABLE.into_response();
    }
    let signed = shared.verifiers.iter().any(|verifier| verifier.verify(&body, &parts.headers).is_ok());
    let mut arrivals = read(&parts.headers, &body, at, shared.keep);
    arrivals.iter_mut().for_each(|arrival| arrival.signed = signed);
    let answer = answer(&arrivals, &*shared.rule);
    if !(200..300).contains(&answer.status) {
        arrivals.truncate(1);
    }
    if !answer.delay.is_zero() {
        tokio::time::sleep(answer.delay).await;
    }
    let recorded = arrivals.len();
    for arrival in arrivals {
        shared.lock().add(Arrival { status: answer.status, ..arrival });
    }
    shared.arrived.send_modify(|count| *count += recorded);
    let status = StatusCode::from_u16(answer.status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
    (status, Body::empty()).into_response()
}

/// The answer to a request: the first that refuses one of its events, else that to the last.
fn answer(arrivals: &[Arrival], rule: &Rule) -> Answer {
    let mut answer = Answer::OK;
    for arrival in arrivals {
        answer = rule(arrival);
        if !(200..300).contains(&answer.status) {
            break;
        }
    }
    answer
}

impl Records {
    fn add(&mut self, mut arrival: Arrival) {
        let last = self.taken.get(&arrival.workflow_id);
        // A crash of the worker repeats the end of a lane, which may be more than its last event.
        let again = arrival.replay || last.is_some_and(|last| arrival.sequence_number <= last.sequence_number);
        // Before the first event of a workflow there may have been others, taken before this receiver began.
        let follows = last.is_none_or(|last| arrival.lane_previous_event_id.as_ref() == Some(&last.event_id));
        arrival.in_order = (!again).then_some(follows);
        let watched = last.is_some() || self.taken.len() < WORKFLOWS_MAX;
        if (200..300).contains(&arrival.status) && !again && watched {
            let taken = Taken { sequence_number: arrival.sequence_number, event_id: arrival.event_id.clone() };
            self.taken.insert(arrival.workflow_id.clone(), taken);
        }
        self.arrivals.push(arrival);
    }
}

/// The fields of an envelope that the receiver reads.
#[derive(Debug, Default, serde::Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct Envelope {
    #[serde(rename = "type")]
    event_type: String,
    workflow_id: String,
    delivery_id: Option<String>,
    event_id: String,
    sequence_number: u64,
    previous_event_id: Option<String>,
}

/// The events of a request: one, or those of a batch.
fn read(headers: &HeaderMap, body: &[u8], at: Timestamp, keep: Keep) -> Vec<Arrival> {
    let first = Arrival { payload: Payload::of(body, keep), ..read_one(headers, body, at) };
    let elements = first.batch_size.and_then(|_| serde_json::from_slice::<Vec<Box<RawValue>>>(body).ok());
    let Some(elements) = elements.filter(|elements| !elements.is_empty()) else { return vec![first] };
    let mut lane_previous = first.lane_previous_event_id.clone();
    let mut arrivals = Vec::with_capacity(elements.len());
    for element in elements {
        let body = element.get().as_bytes();
        let envelope: Envelope = serde_json::from_slice(body).unwrap_or_default();
        arrivals.push(Arrival {
            lane_previous_event_id: lane_previous.replace(envelope.event_id.clone()),
            event_id: envelope.event_id,
            workflow_id: envelope.workflow_id,
            sequence_number: envelope.sequence_number,
            previous_event_id: envelope.previous_event_id,
            event_type: envelope.event_type,
            delivery_id: envelope.delivery_id,
            payload: Payload::of(body, keep),
            ..first.clone()
        });
    }
    arrivals
}

fn read_one(headers: &HeaderMap, body: &[u8], at: Timestamp) -> Arrival {
    let text = |name: &str| headers.get(name).and_then(|value| value.to_str().ok()).map(str::to_owned);
    let number = |name: &str| text(name).and_then(|text| text.parse().ok()).unwrap_or(0u64);
    let envelope: Envelope = serde_json::from_slice(body).unwrap_or_default();
    Arrival {
        at,
        event_id: text("webhook-id").unwrap_or_default(),
        workflow_id: envelope.workflow_id,
        sequence_number: number("weft-sequence"),
        previous_event_id: text("weft-previous-event-id"),
        lane_previous_event_id: text("weft-lane-previous-event-id"),
        event_type: envelope.event_type,
        delivery_id: envelope.delivery_id,
        attempt: u32::try_from(number("weft-attempt")).unwrap_or(u32::MAX),
        replay: text("weft-replay").as_deref() == Some("true"),
        epoch: number("weft-epoch"),
        batch_size: text(BATCH_SIZE).and_then(|text| text.parse().ok()),
        signed: false,
        in_order: None,
        status: 0,
        payload: Payload::default(),
    }
}

#[cfg(test)]
mod tests;
