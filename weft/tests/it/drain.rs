//! SIGTERM under load.

use std::{
    collections::BTreeSet,
    net::SocketAddr,
    time::{Duration, Instant},
};

use rustix::process::Signal;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
    sync::watch,
    task::JoinSet,
};
use weft_nats::{scan, subject::Layout};
use weft_services::{
    mesh::{SOURCE, Wiring},
    receiver::{Answer, Arrival},
    sender::Sender,
};
use weft_testkit::eventually;

use crate::mesh::{Mesh, PATIENCE, post};

/// Senders that post one event after the other, each over a connection that it keeps.
const SENDERS: usize = 8;
/// Requests whose body is half sent when draining begins.
const IN_FLIGHT: usize = 10;
/// Events that are accepted before draining begins.
const ACCEPTED_BEFORE: usize = 100;

/// A request whose head the gateway has read, and what is still to be sent of its body.
struct InFlight {
    socket: TcpStream,
    rest: Vec<u8>,
}

impl InFlight {
    async fn begin(mesh: &Mesh, gateway: SocketAddr, workflow: &str, id: &str) -> Self {
        let body = br#"{"type":"order.changed","data":{}}"#;
        let now = jiff::Timestamp::now().as_second();
        let mut head = format!(
            "POST /api/v1/webhooks/{SOURCE}/{workflow} HTTP/1.1\r\nhost: weft\r\nexpect: 100-continue\r\n\
             content-length: {}\r\n",
            body.len()
        );
        for (name, value) in mesh.wiring.signing().headers(id, now, None, body).unwrap() {
            head.push_str(&format!("{name}: {value}\r\n"));
        }
        let mut socket = TcpStream::connect(gateway).await.unwrap();
        socket.write_all(format!("{head}\r\n").as_bytes()).await.unwrap();
        let mut leave = [0; "HTTP/1.1 100 Continue\r\n\r\n".len()];
        socket.read_exact(&mut leave).await.unwrap();
        let (start, rest) = body.split_at(10);
        socket.write_all(start).await.unwrap();
        Self { socket, rest: rest.to_vec() }
    }

    /// Sends the rest; the whole answer, in lower case, once the gateway has closed the connection.
    async fn finish(mut self) -> String {
        self.socket.write_all(&self.rest).await.unwrap();
        let mut answer = String::new();
        self.socket.read_to_string(&mut answer).await.unwrap();
        answer.to_ascii_lowercase()
    }
}

fn address(mesh: &Mesh) -> SocketAddr {
    mesh.gateway.variable("WEFT_GATEWAY__LISTEN").unwrap().parse().unwrap()
}

/// The deliveries of a sender.
#[derive(Default)]
struct Sent {
    accepted: Vec<String>,
    /// Answered 503 on a busy machine, and not accepted since: it may be in the log or not.
    uncertain: Option<String>,
}

/// Posts until no answer comes.
async fn post_until_cut(sender: Sender, wiring: Wiring, workflow: String, count: watch::Sender<usize>) -> Sent {
    let mut sent = Sent::default();
    loop {
        let id = format!("{workflow}-{}", sent.accepted.len());
        match post(&sender, &wiring, &workflow, &id).await {
            Ok(answer) if answer.receipt().is_some() => {
                sent.uncertain = None;
                sent.accepted.push(id);
                count.send_modify(|count| *count += 1);
            }
            Ok(answer) => {
                assert_eq!(answer.status, 503, "{:?}", answer.detail());
                sent.uncertain = Some(id);
            }
            Err(_) => return sent,
        }
    }
}

/// The deliveries in the log.
async fn stored(mesh: &Mesh) -> BTreeSet<String> {
    let connection = mesh.server.connection("judge").await;
    let (mut ids, mut cursor) = (BTreeSet::new(), None);
    loop {
        let page =
            scan::scan(&connection, Layout::new(1), cursor.as_ref(), &scan::Filter::default(), 1000).await.unwrap();
        ids.extend(page.events.into_iter().filter_map(|stored| stored.event.delivery_id));
        if !page.has_more {
            return ids;
        }
        cursor = Some(page.next);
    }
}

/// A gateway that drains answers every request that it has read. P1, P2: events answered 202 are in the log, and events
/// without an answer are not.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn draining_under_load_answers_everything_that_was_taken() {
    let mut mesh = Mesh::start(|_| Answer::OK).await;
    let gateway = address(&mesh);
    let (counter, mut count) = watch::channel(0);
    let mut senders = JoinSet::new();
    for n in 0..SENDERS {
        senders.spawn(post_until_cut(mesh.sender(), mesh.wiring.clone(), format!("w{n}"), counter.clone()));
    }
    count.wait_for(|count| *count >= ACCEPTED_BEFORE).await.unwrap();
    let mut in_flight = Vec::new();
    for n in 0..IN_FLIGHT {
        in_flight.push(InFlight::begin(&mesh, gateway, "slow", &format!("slow-{n}")).await);
    }
    mesh.gateway.process().signal(Signal::TERM);
    assert!(eventually(PATIENCE, async || TcpStream::connect(gateway).await.is_err()).await, "the port is closed");
    let sent = senders.join_all().await;
    let uncertain: BTreeSet<String> = sent.iter().filter_map(|sent| sent.uncertain.clone()).collect();
    let mut answered: BTreeSet<String> = sent.into_iter().flat_map(|sent| sent.accepted).collect();
    for (n, request) in in_flight.into_iter().enumerate() {
        let answer = request.finish().await;
        assert!(answer.starts_with("http/1.1 202 ") && answer.contains("connection: close"), "{answer}");
        answered.insert(format!("slow-{n}"));
    }
    assert_eq!(mesh.gateway.process().ended().await.unwrap().code(), Some(0));
    let stored = stored(&mesh).await;
    assert_eq!(stored.difference(&uncertain).cloned().collect::<BTreeSet<_>>(), answered);
}

/// A second signal does not wait for slow requests.
#[tokio::test]
async fn a_second_signal_ends_at_once() {
    let mut mesh = Mesh::start(|_| Answer::OK).await;
    let gateway = address(&mesh);
    let _slow = InFlight::begin(&mesh, gateway, "slow", "slow").await;
    mesh.gateway.process().signal(Signal::TERM);
    assert!(eventually(PATIENCE, async || TcpStream::connect(gateway).await.is_err()).await, "it drains");
    mesh.gateway.process().signal(Signal::TERM);
    assert_eq!(mesh.gateway.process().ended().await.unwrap().code(), Some(130));
}

/// An attempt that takes longer than a drain may is left to the next owner, which makes it again. Before, the worker waited
/// for it, was given up after half a minute, and ended with 1.
#[tokio::test(flavor = "multi_thread")]
async fn a_drain_does_not_wait_for_a_slow_receiver() {
    let wiring = Wiring { timeout: "60s".into(), ..Wiring::new() };
    let (begins, mut begun) = watch::channel(false);
    let slow = move |arrival: &Arrival| {
        begins.send_replace(true);
        Answer { status: 200, delay: Duration::from_secs(if arrival.epoch == 1 { 45 } else { 0 }) }
    };
    let mut mesh = Mesh::with(wiring, slow).await;
    mesh.send("slow", "d0").await;
    tokio::time::timeout(PATIENCE, begun.wait_for(|begun| *begun)).await.expect("it is attempted").unwrap();
    let began = Instant::now();
    assert!(mesh.worker.stop().await.unwrap().success());
    assert!(began.elapsed() < Duration::from_secs(40), "{:?}", began.elapsed());
    mesh.worker.restart().await.unwrap();
    let again = |arrivals: &[Arrival]| arrivals.iter().any(|arrival| arrival.epoch > 1 && arrival.status == 200);
    assert!(mesh.receiver.until(PATIENCE, again).await, "the next owner makes it again");
}

/// Roles that get SIGTERM while their nats-server does not answer exit with 0, in time. Their events stay in
/// the log.
#[tokio::test(flavor = "multi_thread")]
async fn roles_end_in_time_while_nats_is_away() {
    let mut mesh = Mesh::start(|_| Answer { status: 200, delay: Duration::from_millis(200) }).await;
    for number in 0..5 {
        mesh.send(&format!("w{number}"), &format!("d{number}")).await;
    }
    mesh.server.pause();
    let began = Instant::now();
    let (gateway, worker, admin) = tokio::join!(mesh.gateway.stop(), mesh.worker.stop(), mesh.admin.stop());
    for (role, ended) in [("gateway", gateway), ("worker", worker), ("admin", admin)] {
        assert_eq!(ended.unwrap().code(), Some(0), "{role}");
    }
    assert!(began.elapsed() < Duration::from_secs(40), "{:?}", began.elapsed());
    mesh.server.resume();
    mesh.gateway.restart().await.unwrap();
    mesh.worker.restart().await.unwrap();
    let events = (0..5).map(|number| (format!("w{number}"), 1)).collect();
    mesh.assert_delivered(&events).await;
}
