//! Receivers that fail: by workflow for some seconds, at random, and for good for some events. Each attempt is recorded.
//!
//! The path of a request is the key of its subscription.

use std::{
    convert::Infallible,
    net::{IpAddr, SocketAddr},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use anyhow::Context as _;
use bytes::Bytes;
use http::{HeaderMap, Request, Response, StatusCode};
use http_body_util::{BodyExt as _, Empty};
use hyper::{body::Incoming, server::conn::http1, service::service_fn};
use hyper_util::rt::TokioIo;
use parking_lot::Mutex;
use rand::{RngExt as _, SeedableRng as _, rngs::StdRng};
use tokio::{net::TcpListener, task::AbortHandle};

use crate::{
    clock::Clock,
    record::{Arrival, Millis, Reply},
};

/// Time-out of an attempt, as the subscriptions are configured.
pub const ATTEMPT_TIMEOUT: Duration = Duration::from_secs(2);
/// Duration for which a workflow of a subscription behaves the same.
const BEHAVIOUR_PERIOD: Millis = 4_000;
/// One delivery in this number is refused permanently.
const PERMANENT: u64 = 97;
/// One delivery in this number always fails.
const POISON: u64 = 151;

/// The receivers of all subscriptions, on one port.
#[derive(Debug)]
pub struct Receiver {
    /// Where it listens.
    pub address: SocketAddr,
    state: Arc<State>,
    task: AbortHandle,
}

#[derive(Debug)]
struct State {
    clock: Clock,
    seed: u64,
    /// Set when the run heals: only events that fail for good still fail.
    healed: AtomicBool,
    /// Set before the dead letters are redriven: nothing fails any more.
    cured: AtomicBool,
    arrivals: Mutex<Vec<Arrival>>,
}

/// Treatment of an attempt by a receiver.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Behaviour {
    Answer(u16, Duration),
    /// Closes the connection without an answer, after a time.
    Close(Duration),
}

impl Receiver {
    /// Listens on a free port.
    pub async fn start(ip: IpAddr, seed: u64, clock: Clock) -> anyhow::Result<Self> {
        let listener = TcpListener::bind((ip, 0)).await.context("the receiver")?;
        let address = listener.local_addr()?;
        let state = Arc::new(State {
            clock,
            seed,
            healed: AtomicBool::new(false),
            cured: AtomicBool::new(false),
            arrivals: Mutex::default(),
        });
        let served = Arc::clone(&state);
        let task = tokio::spawn(async move {
            loop {
                let Ok((stream, _)) = listener.accept().await else { continue };
                let state = Arc::clone(&served);
                let service = service_fn(move |request| receive(Arc::clone(&state), request));
                drop(tokio::spawn(http1::Builder::new().serve_connection(TokioIo::new(stream), service)));
            }
        });
        Ok(Self { address, state, task: task.abort_handle() })
    }

    /// Ends all failures but those of events that fail for good.
    pub fn heal(&self) {
        self.state.healed.store(true, Ordering::Relaxed);
    }

    /// Ends all failures.
    pub fn cure(&self) {
        self.state.cured.store(true, Ordering::Relaxed);
    }

    /// A copy of the records.
    pub fn arrivals(&self) -> Vec<Arrival> {
        self.state.arrivals.lock().clone()
    }
}

impl Drop for Receiver {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// The error closes the connection without an answer.
async fn receive(state: Arc<State>, request: Request<Incoming>) -> Result<Response<Empty<Bytes>>, Closed> {
    let at = state.clock.now();
    let (parts, body) = request.into_parts();
    let body = body.collect().await.map_err(|_| Closed)?.to_bytes();
    let key = parts.uri.path().trim_matches('/').to_owned();
    let mut arrival = read(&parts.headers, &body, key, at);
    let behaviour = state.behaviour(&arrival);
    // Recorded also when the sender of the request does not wait for the answer: it has arrived.
    let number = state.add(arrival.clone());
    let reply = match behaviour {
        Behaviour::Answer(status, delay) => {
            tokio::time::sleep(delay).await;
            Reply::Status(status)
        }
        Behaviour::Close(delay) => {
            tokio::time::sleep(delay).await;
            Reply::None
        }
    };
    (arrival.ended, arrival.reply) = (state.clock.now(), reply);
    state.replace(number, arrival);
    match reply {
        Reply::Status(status) => {
            let mut response = Response::new(Empty::new());
            *response.status_mut() = StatusCode::from_u16(status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
            Ok(response)
        }
        Reply::None => Err(Closed),
    }
}

#[derive(Debug)]
struct Closed;

impl std::fmt::Display for Closed {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("closed without an answer")
    }
}

impl std::error::Error for Closed {}

impl From<Infallible> for Closed {
    fn from(never: Infallible) -> Self {
        match never {}
    }
}

impl State {
    fn add(&self, arrival: Arrival) -> usize {
        let mut arrivals = self.arrivals.lock();
        arrivals.push(arrival);
        arrivals.len() - 1
    }

    fn replace(&self, number: usize, arrival: Arrival) {
        self.arrivals.lock()[number] = arrival;
    }

    fn behaviour(&self, arrival: &Arrival) -> Behaviour {
        let now = |status| Behaviour::Answer(status, Duration::ZERO);
        if self.cured.load(Ordering::Relaxed) {
            return now(200);
        }
        let number: u64 = arrival.delivery.rsplit('-').next().and_then(|number| number.parse().ok()).unwrap_or(1);
        if number.is_multiple_of(PERMANENT) {
            return now(422);
        }
        if number.is_multiple_of(POISON) {
            return now(500);
        }
        if self.healed.load(Ordering::Relaxed) {
            return now(200);
        }
        let whole = self.dice_of_period(&arrival.subscription, "", arrival.at);
        // One window in twenty the whole receiver is away.
        if whole.random_bool_once(0.05) {
            return now(503);
        }
        random_behaviour(&mut self.dice_of_period(&arrival.subscription, &arrival.workflow, arrival.at).0)
    }

    /// Dice that fall the same way for one workflow during one window.
    fn dice_of_period(&self, subscription: &str, workflow: &str, at: Millis) -> Dice {
        let text = format!("{subscription}/{workflow}/{}", at / BEHAVIOUR_PERIOD);
        let hash = text.bytes().fold(self.seed ^ 0xcbf2_9ce4_8422_2325, |hash, byte| {
            (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3)
        });
        Dice(StdRng::seed_from_u64(hash))
    }
}

struct Dice(StdRng);

impl Dice {
    fn random_bool_once(mut self, probability: f64) -> bool {
        self.0.random_bool(probability)
    }
}

/// Mostly well; now and then one of the ways in which receivers fail.
fn random_behaviour(dice: &mut StdRng) -> Behaviour {
    let chance = rand::random_range(0..100);
    match dice.random_range(0..100) {
        0..2 => Behaviour::Answer(500, Duration::ZERO),
        2..4 => Behaviour::Answer(503, Duration::from_millis(5)),
        4..5 => Behaviour::Answer(404, Duration::ZERO),
        5..7 => Behaviour::Close(ATTEMPT_TIMEOUT * 2),
        7..9 => Behaviour::Close(Duration::ZERO),
        9..14 => Behaviour::Answer(200, Duration::from_millis(rand::random_range(50..600))),
        14..20 if chance < 40 => Behaviour::Answer(500, Duration::ZERO),
        _ if chance < 2 => Behaviour::Answer(502, Duration::ZERO),
        _ => Behaviour::Answer(200, Duration::ZERO),
    }
}

/// The part of an envelope that the judge uses.
#[derive(Debug, Default, serde::Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct Envelope {
    workflow_id: String,
    data: Data,
}

#[derive(Debug, Default, serde::Deserialize)]
#[serde(default)]
struct Data {
    data: DataBody,
}

#[derive(Debug, Default, serde::Deserialize)]
#[serde(default)]
struct DataBody {
    delivery: String,
}

fn read(headers: &HeaderMap, body: &[u8], subscription: String, at: Millis) -> Arrival {
    let text = |name: &str| headers.get(name).and_then(|value| value.to_str().ok()).map(str::to_owned);
    let number = |name: &str| text(name).and_then(|text| text.parse().ok()).unwrap_or(0u64);
    let envelope: Envelope = serde_json::from_slice(body).unwrap_or_default();
    Arrival {
        subscription,
        event_id: text("webhook-id").unwrap_or_default(),
        workflow: envelope.workflow_id,
        number: number("weft-sequence"),
        previous: text("weft-previous-event-id"),
        lane_previous: text("weft-lane-previous-event-id"),
        delivery: envelope.data.data.delivery,
        attempt: u32::try_from(number("weft-attempt")).unwrap_or(u32::MAX),
        epoch: number("weft-epoch"),
        replay: text("weft-replay").as_deref() == Some("true"),
        at,
        ended: at,
        reply: Reply::None,
    }
}
