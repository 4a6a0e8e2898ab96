//! Senders of webhooks that repeat as real ones do: without a 2xx within their time-out the same delivery goes to any
//! gateway again, after a growing pause.

use std::{
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering},
    },
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use bytes::Bytes;
use parking_lot::Mutex;
use rand::{RngExt as _, SeedableRng as _, rngs::StdRng};

use crate::{
    clock::Clock,
    judge::SOURCE,
    record::{Answer, Millis, Receipt, Submission},
};

/// A sender's time-out; a gateway has to answer within 5 seconds.
const TIMEOUT: Duration = Duration::from_secs(8);
/// First and longest pause before a repeat.
const PAUSE: std::ops::RangeInclusive<Duration> = Duration::from_millis(50)..=Duration::from_secs(2);
/// Deliveries under way at a time; further ones are not begun. Some seconds of an outage.
const UNDER_WAY_MAX: usize = 3_000;
/// Workflows.
const WORKFLOWS: u64 = 60;
/// Event types.
const TYPES: [&str; 4] = ["order.created", "order.paid", "stock.moved", "mail.sent"];
/// Part of the deliveries that is repeated after a 2xx.
const REPEATED: f64 = 0.05;
/// Part of the deliveries that goes to all gateways at the same moment.
const SIMULTANEOUS: f64 = 0.03;

/// The senders of a run.
pub struct Senders {
    client: reqwest::Client,
    gateways: Vec<SocketAddr>,
    signer: standardwebhooks::Webhook,
    seed: u64,
    clock: Clock,
    next: AtomicU64,
    under_way: AtomicUsize,
    /// Set at the end of the run: no further repeats.
    given_up: AtomicBool,
    submissions: Mutex<Vec<Submission>>,
}

/// A delivery.
#[derive(Debug, Clone)]
struct Delivery {
    id: String,
    workflow: String,
    event_type: &'static str,
    body: Bytes,
}

impl Senders {
    /// Senders that sign with `secret`.
    pub fn new(gateways: Vec<SocketAddr>, secret: &str, seed: u64, clock: Clock) -> anyhow::Result<Arc<Self>> {
        // HTTP/1.1: a separate connection for each request in flight, so one that hangs delays no other.
        let client = reqwest::Client::builder().no_proxy().http1_only().timeout(TIMEOUT).build()?;
        Ok(Arc::new(Self {
            client,
            gateways,
            signer: standardwebhooks::Webhook::new(secret)?,
            seed,
            clock,
            next: AtomicU64::new(0),
            under_way: AtomicUsize::new(0),
            given_up: AtomicBool::new(false),
            submissions: Mutex::default(),
        }))
    }

    /// Begins deliveries at a steady rate until the given time of the run.
    pub async fn send(self: &Arc<Self>, rate: u64, until: Millis) {
        let mut ticks = tokio::time::interval(Duration::from_micros(1_000_000 / rate.max(1)));
        ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        while self.clock.now() < until {
            ticks.tick().await;
            if self.under_way.load(Ordering::Relaxed) < UNDER_WAY_MAX {
                let number = self.next.fetch_add(1, Ordering::Relaxed);
                self.under_way.fetch_add(1, Ordering::Relaxed);
                let senders = Arc::clone(self);
                drop(tokio::spawn(async move {
                    senders.deliver(number).await;
                    senders.under_way.fetch_sub(1, Ordering::Relaxed);
                }));
            }
        }
    }

    /// Waits until every delivery has its 2xx; gives up after `patience`.
    pub async fn finish(&self, patience: Duration) {
        let deadline = tokio::time::Instant::now() + patience;
        while self.under_way.load(Ordering::Relaxed) > 0 {
            if tokio::time::Instant::now() > deadline {
                self.given_up.store(true, Ordering::Relaxed);
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    /// Takes the records out.
    pub fn take(&self) -> Vec<Submission> {
        std::mem::take(&mut *self.submissions.lock())
    }

    /// Number of submissions so far.
    pub fn count(&self) -> usize {
        self.submissions.lock().len()
    }

    async fn deliver(&self, number: u64) {
        let mut rng = StdRng::seed_from_u64(self.seed ^ number.wrapping_mul(0x9E37_79B9_7F4A_7C15));
        let delivery = delivery(self.seed, number, &mut rng);
        let mut accepted = false;
        if rng.random_bool(SIMULTANEOUS) {
            let all = (0..self.gateways.len()).map(|gateway| self.submit(&delivery, gateway));
            accepted = futures_util::future::join_all(all).await.into_iter().any(|accepted| accepted);
        }
        let mut pause = *PAUSE.start();
        while !accepted {
            let gateway = rng.random_range(0..self.gateways.len());
            accepted = self.submit(&delivery, gateway).await;
            if !accepted {
                if self.given_up.load(Ordering::Relaxed) {
                    return;
                }
                tokio::time::sleep(pause.mul_f64(rng.random_range(0.5..1.5))).await;
                pause = (pause * 2).min(*PAUSE.end());
            }
        }
        if rng.random_bool(REPEATED) {
            tokio::time::sleep(Duration::from_millis(rng.random_range(0..3_000))).await;
            self.submit(&delivery, rng.random_range(0..self.gateways.len())).await;
        }
    }

    /// Submits once; whether the answer is a 2xx.
    async fn submit(&self, delivery: &Delivery, gateway: usize) -> bool {
        let sent = self.clock.now();
        let answer = self.request(delivery, gateway).await.unwrap_or_else(|error| {
            let kind = if error.is_timeout() {
                "time-out"
            } else if error.is_connect() {
                "no connection"
            } else {
                "broken"
            };
            Answer::None(kind.to_owned())
        });
        let accepted = answer.receipt().is_some();
        let submission = Submission {
            delivery: delivery.id.clone(),
            workflow: delivery.workflow.clone(),
            event_type: delivery.event_type.to_owned(),
            gateway,
            sent,
            ended: self.clock.now(),
            answer,
        };
        self.submissions.lock().push(submission);
        accepted
    }

    async fn request(&self, delivery: &Delivery, gateway: usize) -> Result<Answer, reqwest::Error> {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs().cast_signed();
        // The secret has been parsed, and nothing else can be wrong with a signature.
        let signature = self.signer.sign(&delivery.id, now, &delivery.body).unwrap_or_default();
        let response = self
            .client
            .post(format!("http://{}/api/v1/webhooks/{SOURCE}", self.gateways[gateway]))
            .header("content-type", "application/json")
            .header("webhook-id", &delivery.id)
            .header("webhook-timestamp", now.to_string())
            .header("webhook-signature", signature)
            .body(delivery.body.clone())
            .send()
            .await?;
        let status = response.status().as_u16();
        Ok(answer(status, &response.bytes().await?))
    }
}

fn answer(status: u16, body: &[u8]) -> Answer {
    let receipt = serde_json::from_slice::<Receipt>(body);
    match (status, receipt) {
        (202, Ok(receipt)) => Answer::Accepted(receipt),
        (200, Ok(receipt)) => Answer::Known(receipt),
        _ => {
            let problem: serde_json::Value = serde_json::from_slice(body).unwrap_or_default();
            Answer::Refused { status, code: problem["code"].as_str().unwrap_or_default().to_owned() }
        }
    }
}

fn delivery(seed: u64, number: u64, rng: &mut StdRng) -> Delivery {
    let workflow = format!("order-{}", rng.random_range(0..WORKFLOWS));
    let event_type = TYPES[rng.random_range(0..TYPES.len())];
    let id = format!("d-{seed}-{number}");
    let padding = if rng.random_bool(0.005) { rng.random_range(20_000..120_000) } else { rng.random_range(10..300) };
    let body = serde_json::json!({
        "type": event_type,
        "data": { "orderId": workflow, "delivery": id, "number": number, "padding": "x".repeat(padding) },
    });
    Delivery { id, workflow, event_type, body: body.to_string().into() }
}
