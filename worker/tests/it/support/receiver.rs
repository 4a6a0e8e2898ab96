//! A receiver that records its requests, and the judge of their order.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::SocketAddr,
    sync::{Arc, Mutex},
};

use axum::{
    Router,
    extract::State,
    http::{HeaderMap, StatusCode},
    response::IntoResponse,
};
use bytes::Bytes;
use jiff::Timestamp;
use tokio::{net::TcpListener, sync::watch, task::JoinHandle};

use weft_testkit::{
    PATIENCE,
    order::{self, Attempt},
};

use super::SECRET;

/// A request that was received.
#[derive(Debug, Clone)]
pub struct Request {
    pub at: Timestamp,
    pub id: String,
    pub workflow: String,
    pub sequence: u64,
    pub lane_previous: Option<String>,
    pub attempt: u32,
    pub epoch: u64,
    pub replay: bool,
    pub signed: bool,
    pub body: Bytes,
    pub answered: u16,
}

type Answer = dyn Fn(&Request) -> u16 + Send + Sync;

/// A receiver on loopback that answers by a rule and remembers everything.
pub struct Receiver {
    pub address: SocketAddr,
    pub requests: Arc<Mutex<Vec<Request>>>,
    changed: watch::Receiver<usize>,
    task: JoinHandle<()>,
}

#[derive(Clone)]
struct Shared {
    answer: Arc<Answer>,
    requests: Arc<Mutex<Vec<Request>>>,
    changed: Arc<watch::Sender<usize>>,
}

impl Receiver {
    pub async fn start(answer: impl Fn(&Request) -> u16 + Send + Sync + 'static) -> Self {
        Self::at(TcpListener::bind("127.0.0.1:0").await.unwrap(), answer)
    }

    /// As [`start`](Self::start), at a given address.
    pub fn at(listener: TcpListener, answer: impl Fn(&Request) -> u16 + Send + Sync + 'static) -> Self {
        let address = listener.local_addr().unwrap();
        let requests = Arc::new(Mutex::new(Vec::new()));
        let (sender, changed) = watch::channel(0);
        let shared = Shared { answer: Arc::new(answer), requests: requests.clone(), changed: Arc::new(sender) };
        let router = Router::new().fallback(receive).with_state(shared);
        let task = tokio::spawn(async move { axum::serve(listener, router).await.unwrap() });
        Self { address, requests, changed, task }
    }

    /// Waits until the requests are as wanted.
    pub async fn until(&self, mut enough: impl FnMut(&[Request]) -> bool) -> Vec<Request> {
        let mut changed = self.changed.clone();
        let waited = tokio::time::timeout(PATIENCE, async {
            loop {
                changed.mark_unchanged();
                if enough(&self.requests.lock().unwrap()) {
                    return;
                }
                changed.changed().await.unwrap();
            }
        });
        if waited.await.is_err() {
            panic!("the receiver has only {} requests", self.requests.lock().unwrap().len());
        }
        self.requests.lock().unwrap().clone()
    }

    /// Waits until this number of events was accepted, without repeats; a redrive counts as another event.
    pub async fn until_delivered(&self, count: usize) -> Vec<Request> {
        self.until(|requests| {
            let taken = requests.iter().filter(|request| request.answered == 200);
            taken.map(|request| (&request.id, request.replay)).collect::<BTreeSet<_>>().len() >= count
        })
        .await
    }
}

impl Drop for Receiver {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn receive(State(shared): State<Shared>, headers: HeaderMap, body: Bytes) -> impl IntoResponse {
    let text = |name: &str| headers.get(name).and_then(|value| value.to_str().ok()).map(str::to_owned);
    let number = |name: &str| text(name).and_then(|text| text.parse().ok()).unwrap_or(0);
    let signed = standardwebhooks::Webhook::new(SECRET).unwrap().verify(&body, &headers).is_ok();
    let mut request = Request {
        at: Timestamp::now(),
        id: text("webhook-id").unwrap_or_default(),
        workflow: text("weft-workflow-id").unwrap_or_default(),
        sequence: number("weft-sequence"),
        lane_previous: text("weft-lane-previous-event-id"),
        attempt: number("weft-attempt") as u32,
        epoch: number("weft-epoch"),
        replay: text("weft-replay").as_deref() == Some("true"),
        signed,
        body,
        answered: 0,
    };
    request.answered = (shared.answer)(&request);
    let status = StatusCode::from_u16(request.answered).unwrap();
    shared.requests.lock().unwrap().push(request);
    shared.changed.send_modify(|count| *count += 1);
    (status, "answer")
}

/// P3 at the receiver, for workflows `w0`, `w1`, … with this number of events each.
pub fn assert_in_order(requests: &[Request], workflows: usize, each: u64) {
    assert_order_of(requests, 0, workflows, each);
}

/// As [`assert_in_order`], for workflows from `w<first>` on.
pub fn assert_order_of(requests: &[Request], first: usize, workflows: usize, each: u64) {
    fn attempt(request: &Request) -> Attempt<'_> {
        Attempt {
            workflow: &request.workflow,
            number: request.sequence,
            event_id: &request.id,
            previous: None,
            epoch: request.epoch,
            signed: request.signed,
            replay: request.replay,
            accepted: request.answered == 200,
        }
    }
    let events = (first..first + workflows).map(|workflow| (format!("w{workflow}"), each)).collect();
    order::check(requests.iter().map(attempt), &events).unwrap();
}

/// No attempt was made twice. On a machine that is busy for seconds an answer comes too late, or a lease runs out: what
/// comes again then has another attempt's number, or another owner's epoch.
pub fn assert_once(receiver: &Receiver) {
    let requests = receiver.requests.lock().unwrap();
    let mut seen = BTreeSet::new();
    for Request { id, epoch, attempt, replay, sequence, workflow, .. } in requests.iter() {
        let is_new = seen.insert((id, epoch, attempt, replay));
        assert!(is_new, "{workflow} number {sequence} came twice as attempt {attempt} of epoch {epoch}");
    }
}

/// Every workflow's first successes are 1, 2, 3, …, without the number that became a dead letter.
pub fn assert_in_order_but(requests: &[Request], workflows: usize, each: u64, dead: u64) {
    let mut seen: BTreeMap<&str, Vec<u64>> = BTreeMap::new();
    for request in requests.iter().filter(|request| request.answered == 200 && !request.replay) {
        let numbers = seen.entry(&request.workflow).or_default();
        if !numbers.contains(&request.sequence) {
            numbers.push(request.sequence);
        }
    }
    assert_eq!(seen.len(), workflows);
    for (workflow, numbers) in seen {
        assert_eq!(numbers, (1..=each).filter(|number| *number != dead).collect::<Vec<_>>(), "{workflow}");
    }
}
