//! Several gateways on one log as real processes, one of which appends for all.

use std::{
    collections::{BTreeMap, HashMap},
    path::Path,
    sync::Arc,
    time::Instant,
};

use rustix::process::Signal;
use tempfile::TempDir;
use tokio::{sync::watch, task::JoinSet};
use weft_catalog::Catalog;
use weft_nats::{
    connect::Connection,
    direct,
    entry::Entry,
    event::Event,
    options::{LogOptions, Span},
    streams::{self, LogSpec},
    subject::Layout,
};
use weft_proto::ids::{StreamSeq, WorkflowId};
use weft_services::{
    apply::apply,
    config::Config,
    mesh::{RoleProcess, Wiring},
    sender::{Receipt, Sender},
};
use weft_testkit::{MASTER_KEY, TestServer, eventually, master_key};

use crate::mesh::{PATIENCE, program, provide_tls, role, send, sender_to};

/// Gateways that share the load.
const GATEWAYS: usize = 3;
const WORKFLOWS: usize = 50;
/// Deliveries; with those of them that are sent more than once they make [`REQUESTS`].
const DELIVERIES: usize = 7_000;
const REQUESTS: usize = 10_000;
/// Senders at work at a time.
const SENDERS: usize = 48;

/// nats-server and gateways.
struct Mesh {
    server: TestServer,
    connection: Connection,
    gateways: Vec<RoleProcess>,
    wiring: Wiring,
    _folder: TempDir,
}

impl Mesh {
    async fn start() -> Self {
        provide_tls();
        let server = TestServer::start().await;
        let folder = tempfile::tempdir().unwrap();
        let wiring = Wiring::new();
        let connection = prepared(&server, &wiring, LogOptions::default()).await;
        let start = |number| role("gateway", &format!("gateway-{number}"), &server, folder.path());
        let mut gateways: Vec<_> = (0..GATEWAYS).map(start).collect();
        for gateway in &mut gateways {
            gateway.ready().await.unwrap();
        }
        Self { server, connection, gateways, wiring, _folder: folder }
    }

    fn senders(&self) -> Vec<Sender> {
        self.gateways.iter().map(sender_to).collect()
    }
}

/// A log with the source on a server.
async fn prepared(server: &TestServer, wiring: &Wiring, log: LogOptions) -> Connection {
    let connection = server.connection("test").await;
    let spec = LogSpec { log, body_bytes_max: 1 << 20, ..LogSpec::default() };
    let layout = streams::ensure(&connection, &spec).await.unwrap();
    let config = Config::parse(Path::new("weft.toml"), wiring.config(None), [], None).unwrap();
    apply(&Catalog::new(connection.clone(), master_key()), layout, &config.catalog, "prepared").await.unwrap();
    connection
}

fn workflow(delivery: usize) -> String {
    format!("w{}", delivery % WORKFLOWS)
}

/// Which gateways a delivery goes to, at the same instant or one after the other.
enum Plan {
    Together,
    InTurn(usize),
}

/// Of seven deliveries one goes to all gateways at once, one to two of them in turn, and five to one.
fn plan(delivery: usize) -> Plan {
    match delivery % 7 {
        0 => Plan::Together,
        1 => Plan::InTurn(2),
        _ => Plan::InTurn(1),
    }
}

/// Everything on its way, each request repeated until it has its receipt.
struct Load {
    senders: JoinSet<Vec<(usize, Receipt)>>,
    answered: watch::Receiver<usize>,
}

impl Load {
    fn start(mesh: &Mesh) -> Self {
        let (answers, answered) = watch::channel(0);
        let (answers, gateways) = (Arc::new(answers), Arc::new(mesh.senders()));
        let mut senders = JoinSet::new();
        for sender in 0..SENDERS {
            let (answers, gateways, wiring) = (answers.clone(), gateways.clone(), mesh.wiring.clone());
            senders.spawn(async move {
                let mut receipts = Vec::new();
                for delivery in (sender..DELIVERIES).step_by(SENDERS) {
                    let (workflow, id) = (workflow(delivery), format!("d{delivery}"));
                    let post = |gateway: usize| send(&gateways[gateway % GATEWAYS], &wiring, &workflow, &id);
                    let told = match plan(delivery) {
                        Plan::Together => futures_util::future::join_all((0..GATEWAYS).map(post)).await,
                        Plan::InTurn(times) => {
                            let mut told = Vec::new();
                            for time in 0..times {
                                told.push(post(delivery / 7 + time).await);
                            }
                            told
                        }
                    };
                    answers.send_modify(|count| *count += told.len());
                    receipts.extend(told.into_iter().map(|receipt| (delivery, receipt)));
                }
                receipts
            });
        }
        Self { senders, answered }
    }

    async fn until_answered(&mut self, count: usize) {
        self.answered.wait_for(|answered| *answered >= count).await.unwrap();
    }

    /// Every request's receipt, by delivery.
    async fn finish(self) -> HashMap<usize, Vec<Receipt>> {
        let mut receipts: HashMap<usize, Vec<Receipt>> = HashMap::new();
        for (delivery, receipt) in self.senders.join_all().await.into_iter().flatten() {
            receipts.entry(delivery).or_default().push(receipt);
        }
        assert_eq!(receipts.values().map(Vec::len).sum::<usize>(), REQUESTS);
        receipts
    }
}

/// The events of the log, in order.
async fn events(connection: &Connection) -> Vec<Event> {
    let mut events = Vec::new();
    let mut from = StreamSeq(1);
    loop {
        let page = direct::range(connection, "EVENTS", from, ">", 1000, 8 << 20).await.unwrap();
        let Some(last) = page.last() else { return events };
        from = last.seq.next();
        events.extend(page.iter().filter_map(|message| match Entry::decode(Layout::new(1), message) {
            Entry::Event(event) => Some(*event),
            Entry::Heads(_) | Entry::Erased(_) | Entry::Foreign(_) => None,
        }));
    }
}

/// P2, P3: each delivery is in the log once, numbered without a gap and linked in its workflow; every sender's receipt agrees;
/// and at most one of a delivery's senders has a 202. The number of deliveries of which no sender has one: its event was
/// stored by a request that was answered otherwise, or too late.
async fn judge(mesh: &Mesh, receipts: &HashMap<usize, Vec<Receipt>>) -> usize {
    let events = events(&mesh.connection).await;
    assert_eq!(events.len(), DELIVERIES);
    let mut heads: BTreeMap<&str, (u64, String)> = BTreeMap::new();
    let mut stored: HashMap<&str, &Event> = HashMap::new();
    for event in &events {
        let before = heads.insert(event.workflow.as_str(), (event.sequence_number.0, event.id.to_string()));
        let previous = event.previous.map(|id| id.to_string());
        let expected = before.map_or((1, None), |(number, id)| (number + 1, Some(id)));
        assert_eq!((event.sequence_number.0, previous), expected, "{}", event.workflow);
        let delivery = event.delivery_id.as_deref().unwrap();
        assert!(stored.insert(delivery, event).is_none(), "{delivery} stands in the log twice");
    }
    for (delivery, told) in receipts {
        let event = stored[format!("d{delivery}").as_str()];
        for receipt in told {
            let expected = Receipt {
                event_id: event.id.to_string(),
                sequence_number: event.sequence_number.0,
                workflow_id: workflow(*delivery),
                previous_event_id: event.previous.map(|id| id.to_string()),
                duplicate: receipt.duplicate,
            };
            assert_eq!(*receipt, expected);
        }
        let new = told.iter().filter(|receipt| !receipt.duplicate).count();
        assert!(new <= 1, "{new} of the senders of {delivery} got 202");
    }
    receipts.values().filter(|told| told.iter().all(|receipt| receipt.duplicate)).count()
}

/// P2 without faults: 10,000 requests of which 30 % repeat another, at three gateways: one 202 for each delivery, but for a few
/// that a busy machine answers too late.
#[tokio::test(flavor = "multi_thread")]
async fn three_gateways_accept_each_delivery_once() {
    let mesh = Mesh::start().await;
    let receipts = Load::start(&mesh).finish().await;
    let without_first = judge(&mesh, &receipts).await;
    assert!(without_first <= DELIVERIES / 20, "{without_first} of {DELIVERIES} deliveries without a 202");
}

/// P1, P2, P3: the same while nats-server and each of the gateways, and so the one that appends for all, are killed with -9:
/// at most one 202, and the same receipt for all senders.
#[tokio::test(flavor = "multi_thread")]
async fn kills_make_no_delivery_two() {
    let mut mesh = Mesh::start().await;
    let mut load = Load::start(&mesh);
    load.until_answered(1_000).await;
    mesh.gateways[0].restart().await.unwrap();
    load.until_answered(3_000).await;
    mesh.server.kill();
    mesh.server.restart().await;
    for gateway in 1..GATEWAYS {
        load.until_answered(3_000 + 2_000 * gateway).await;
        mesh.gateways[gateway].restart().await.unwrap();
    }
    let receipts = load.finish().await;
    judge(&mesh, &receipts).await;
}

/// Any gateway that is stopped does not delay the others: they wait for it once, for a moment, and then append
/// locally.
#[tokio::test(flavor = "multi_thread")]
async fn a_stopped_gateway_does_not_delay_others() {
    const EACH: u64 = 20;
    let mut mesh = Mesh::start().await;
    let senders = mesh.senders();
    let mut sent = 0;
    for still in 0..GATEWAYS {
        mesh.gateways[still].process().signal(Signal::STOP);
        let began = Instant::now();
        for round in 0..EACH {
            for at in (0..GATEWAYS).filter(|at| *at != still) {
                sent += 1;
                let id = format!("{still}-{round}-{at}");
                let receipt = send(&senders[at], &mesh.wiring, "w", &id).await;
                assert_eq!(receipt.sequence_number, sent);
            }
        }
        // Forty waits of 50 ms would take two seconds, and forty time-outs of a request minutes.
        assert!(began.elapsed() < PATIENCE, "{:?} without gateway {still}", began.elapsed());
        mesh.gateways[still].process().signal(Signal::CONT);
    }
    let events = events(&mesh.connection).await;
    assert_eq!(events.len() as u64, sent, "what lay in its sockets meanwhile is known when it wakes up");
}

/// P3 beyond retention: the events of a workflow have left the log, the receipts have been deleted, and another gateway has
/// never seen them: the next event has the next number and names the last one.
#[tokio::test(flavor = "multi_thread")]
async fn numbers_outlive_events_and_receipts() {
    provide_tls();
    let server = TestServer::start().await;
    let folder = tempfile::tempdir().unwrap();
    let wiring = Wiring::new();
    let log = LogOptions { retention: Span::secs(10), dedup_horizon: Span::secs(5), ..LogOptions::default() };
    let connection = prepared(&server, &wiring, log).await;
    let gateway = |instance: &str| {
        let variables = [
            ("WEFT_NATS__URL", server.url()),
            ("WEFT_MASTER_KEY", MASTER_KEY),
            ("WEFT_LOG__RETENTION", "10s"),
            ("WEFT_LOG__DEDUP_HORIZON", "5s"),
        ];
        let env = variables.map(|(name, value)| (name.to_owned(), value.to_owned())).to_vec();
        RoleProcess::start(&program(), "gateway", &folder.path().join(instance), env).unwrap()
    };
    let mut first = gateway("first");
    first.ready().await.unwrap();
    let mut last = None;
    for number in 1..=3u64 {
        let receipt = send(&sender_to(&first), &wiring, "w", &format!("{number}")).await;
        assert_eq!((receipt.sequence_number, receipt.previous_event_id), (number, last));
        last = Some(receipt.event_id);
    }
    let subject = Layout::new(1).event_subject(&WorkflowId::new("w").unwrap());
    let gone = async || direct::last_by_subject(&connection, "EVENTS", &subject).await.unwrap().is_none();
    assert!(eventually(PATIENCE, gone).await, "retention ends");

    first.kill().await.unwrap();
    let receipts = folder.path().join("first/data/gateway/receipts-0.redb");
    std::fs::remove_file(receipts).unwrap();
    first.restart().await.unwrap();
    first.ready().await.unwrap();
    let mut second = gateway("second");
    second.ready().await.unwrap();
    for (number, at) in [(4, &second), (5, &first)] {
        let receipt = send(&sender_to(at), &wiring, "w", &format!("{number}")).await;
        assert_eq!((receipt.sequence_number, receipt.previous_event_id), (number, last));
        last = Some(receipt.event_id);
    }
    // Beyond the horizon a repeat is a new event.
    let again = send(&sender_to(&second), &wiring, "w", "1").await;
    assert_eq!((again.sequence_number, again.previous_event_id, again.duplicate), (6, last, false));
    assert!(first.stop().await.unwrap().success() && second.stop().await.unwrap().success());
}
