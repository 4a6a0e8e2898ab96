//! Sequencers on a real log: several at once, with failures of the log, of the server and of the receipts.

use std::{collections::HashMap, path::PathBuf, time::Duration};

use bytes::Bytes;
use jiff::Timestamp;
use tempfile::TempDir;
use tokio::{sync::watch, task::JoinSet};
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use weft_gateway::forwarding;
use weft_gateway::sequencer::{NewEvent, Receipt, Sequencer, SequencerOptions, SubmitError};
use weft_nats::{
    connect::Connection,
    direct,
    entry::Entry,
    event::Event,
    streams::{self, LogSpec},
    subject::Layout,
};
use weft_proto::ids::{EventId, ShardId, StreamSeq, WorkflowId};
use weft_testkit::{TestLog, TestServer};

use crate::mesh::{PATIENCE, spec};

mod alone;
mod chains;
mod cluster;
mod faults;
mod forged;
mod log;
mod preferred;
mod receipts;
mod replays;
mod rollback;

/// A nats-server with a log.
struct Mesh {
    /// `None` where a cluster stands for it.
    server: Option<TestServer>,
    connection: Connection,
    spec: LogSpec,
    layout: Layout,
}

/// A sequencer, as a gateway runs it.
struct Running {
    sequencer: Sequencer,
    connection: Connection,
    missing: watch::Receiver<Option<String>>,
    drain: CancellationToken,
    tasks: TaskTracker,
}

impl Mesh {
    async fn start() -> Self {
        Self::with(spec(1)).await
    }

    async fn with(spec: LogSpec) -> Self {
        let TestLog { server, connection, layout, spec } = TestLog::of(spec).await;
        Self { server: Some(server), connection, spec, layout }
    }

    /// A sequencer that has caught up, with its receipts in `folder`.
    async fn sequencer(&self, folder: &TempDir) -> Running {
        self.sequencer_with(SequencerOptions::new(folder.path().to_owned(), &self.spec, weft_testkit::master_key()))
            .await
    }

    async fn sequencer_with(&self, options: SequencerOptions) -> Running {
        let connection = self.server().connection("sequencer").await;
        self.sequencer_on(connection, options).await
    }

    fn server(&self) -> &TestServer {
        self.server.as_ref().expect("one server")
    }

    async fn sequencer_on(&self, connection: Connection, options: SequencerOptions) -> Running {
        let (told, missing) = watch::channel(None);
        let (drain, tasks) = (CancellationToken::new(), TaskTracker::new());
        let started = forwarding::start(connection.clone(), self.layout, options, told, drain.clone(), &tasks).await;
        let mut running = Running { sequencer: started.unwrap(), connection, missing, drain, tasks };
        running.ready().await;
        running
    }

    /// The events of the log, each id once, numbered without a gap and linked in each workflow.
    async fn events(&self) -> Vec<Event> {
        let mut events = Vec::new();
        let mut from = StreamSeq(1);
        let end = streams::state(&self.connection, "EVENTS").await.unwrap().last;
        let patience = tokio::time::Instant::now() + PATIENCE;
        loop {
            let page = direct::range(&self.connection, "EVENTS", from, ">", 1000, 8 << 20).await.unwrap();
            // In a cluster any replica answers, also one that lags.
            if page.is_empty() && self.server.is_none() && from <= end {
                assert!(tokio::time::Instant::now() < patience, "EVENTS ends at {end}, and is read up to {from}");
                tokio::time::sleep(Duration::from_millis(20)).await;
                continue;
            }
            let Some(last) = page.last() else { break };
            from = last.seq.next();
            events.extend(page.iter().filter_map(|message| match Entry::decode(self.layout, message) {
                Entry::Event(event) => Some(*event),
                Entry::Heads(_) | Entry::Erased(_) | Entry::Foreign(_) => None,
            }));
        }
        let mut ids = HashMap::new();
        let mut heads: HashMap<WorkflowId, (u64, EventId)> = HashMap::new();
        for event in &events {
            assert!(ids.insert(event.id, ()).is_none(), "{} stands in the log twice", event.id);
            let before = heads.insert(event.workflow.clone(), (event.sequence_number.0, event.id));
            let expected = before.map_or((1, None), |(number, id)| (number + 1, Some(id)));
            assert_eq!((event.sequence_number.0, event.previous), expected, "{} behind {before:?}", event.workflow);
        }
        events
    }
}

impl Running {
    async fn ready(&mut self) {
        let ready = tokio::time::timeout(PATIENCE, self.missing.wait_for(Option::is_none)).await;
        assert!(ready.is_ok_and(|ready| ready.is_ok()), "waits for {:?}", *self.missing.borrow());
    }

    /// Submits until there is a receipt, as a sender does.
    async fn insist(&self, event: NewEvent) -> Receipt {
        insist(&self.sequencer, event).await
    }

    /// Drains it and waits until it has let go of its files.
    async fn stop(self) {
        self.drain.cancel();
        self.tasks.close();
        tokio::time::timeout(PATIENCE, self.tasks.wait()).await.expect("drains in time");
    }
}

async fn insist(sequencer: &Sequencer, event: NewEvent) -> Receipt {
    let patience = tokio::time::Instant::now() + PATIENCE;
    loop {
        match sequencer.submit(event.clone()).await {
            Ok(receipt) => return receipt,
            Err(error @ (SubmitError::IdReused | SubmitError::TooLarge)) => panic!("{error}"),
            Err(error) => {
                assert!(tokio::time::Instant::now() < patience, "{error}");
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        }
    }
}

/// Delivery `delivery` for `workflow`.
fn event(workflow: &str, delivery: u64) -> NewEvent {
    let delivery_id = format!("{workflow}-{delivery}");
    NewEvent {
        id: EventId::of_delivery("shop", &delivery_id),
        workflow: WorkflowId::new(workflow).unwrap(),
        event_type: "order.paid".into(),
        source: "shop".into(),
        time: Timestamp::UNIX_EPOCH,
        received_at: Timestamp::UNIX_EPOCH,
        delivery_id: Some(delivery_id),
        content_type: weft_nats::event::JSON.into(),
        data_pointer: String::new(),
        verified_by: "standard/0".into(),
        traceparent: None,
        quarantine: None,
        kept_headers: Vec::new(),
        payload: Bytes::from(format!("{{\"n\":{delivery}}}")),
        receipt_on_id_reuse: false,
        replay_guard: false,
    }
}

fn folder() -> TempDir {
    TempDir::new().unwrap()
}

fn receipts_file(folder: &TempDir) -> PathBuf {
    folder.path().join("receipts-0.redb")
}

/// Failover row "two gateways, same delivery at once": one 202, one 200, with the same receipt.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_gateways_accept_each_delivery_once() {
    let mesh = Mesh::start().await;
    let folders = [folder(), folder()];
    let gateways = [mesh.sequencer(&folders[0]).await, mesh.sequencer(&folders[1]).await];
    let mut senders = JoinSet::new();
    for delivery in 0..60 {
        for gateway in &gateways {
            let sequencer = gateway.sequencer.clone();
            let workflow = ["a", "b", "c"][delivery as usize % 3];
            senders.spawn(async move { sequencer.submit(event(workflow, delivery)).await.unwrap() });
        }
    }
    let mut receipts: HashMap<EventId, Vec<Receipt>> = HashMap::new();
    for receipt in senders.join_all().await {
        receipts.entry(receipt.event_id).or_default().push(receipt);
    }
    assert_eq!((mesh.events().await.len(), receipts.len()), (60, 60));
    for both in receipts.values() {
        assert_eq!(both.iter().filter(|receipt| !receipt.duplicate).count(), 1, "{both:?}");
        let places: Vec<_> = both.iter().map(|receipt| (receipt.sequence_number, receipt.previous)).collect();
        assert_eq!(places[0], places[1]);
    }
}

/// A known id with another body is refused, or answered with the first receipt where its source says so.
#[tokio::test]
async fn an_id_stands_for_one_body() {
    let mesh = Mesh::start().await;
    let folder = folder();
    let gateway = mesh.sequencer(&folder).await;
    let first = gateway.sequencer.submit(event("a", 1)).await.unwrap();
    let mut other = NewEvent { payload: Bytes::from_static(b"{}"), ..event("a", 1) };
    assert_eq!(gateway.sequencer.submit(other.clone()).await, Err(SubmitError::IdReused));
    other.receipt_on_id_reuse = true;
    assert_eq!(gateway.sequencer.submit(other).await, Ok(Receipt { duplicate: true, ..first }));
}

/// The since-cursor: an event that another gateway accepted is found by reading on, and one that no gateway accepted is not.
#[tokio::test]
async fn an_event_of_another_gateway_has_a_position() {
    let mesh = Mesh::start().await;
    let folders = [folder(), folder()];
    let [one, other] = [mesh.sequencer(&folders[0]).await, mesh.sequencer(&folders[1]).await];
    for delivery in 1..=3 {
        let taken = event("a", delivery);
        one.sequencer.submit(taken.clone()).await.unwrap();
        let position = other.sequencer.position_of(taken.id).await.unwrap();
        assert_eq!(position, Some((ShardId(0), StreamSeq(delivery))));
    }
    assert_eq!(other.sequencer.position_of(EventId::unique()).await, Ok(None));
}

/// Draining finishes what waits, and takes nothing more.
#[tokio::test]
async fn a_drain_answers_everyone() {
    let mesh = Mesh::start().await;
    let folder = folder();
    let gateway = mesh.sequencer(&folder).await;
    let submit = |delivery| gateway.sequencer.submit(event("a", delivery));
    let mut all = Box::pin(futures_util::future::join_all((0..200).map(submit)));
    // Polled once: all have been queued.
    assert!(futures_util::FutureExt::now_or_never(&mut all).is_none());
    gateway.drain.cancel();
    assert!(all.await.iter().all(Result::is_ok));
    assert_eq!(submit(200).await, Err(SubmitError::Draining));
    gateway.stop().await;
    assert_eq!(mesh.events().await.len(), 200);
}
