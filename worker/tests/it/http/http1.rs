//! Connections of HTTP/1.1 that receivers close, with receivers that read and write bytes.

use std::{
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

use futures_util::future::join_all;
use tokio::{
    io::{AsyncRead, AsyncReadExt as _, AsyncWriteExt as _},
    net::{TcpListener, TcpStream},
    sync::{Barrier, mpsc},
};
use weft_proto::{
    ids::{EventId, SubscriptionUid},
    v1::{self, AttemptClass},
};
use weft_worker::{
    destination::{Delivery, Destinations},
    lane::{AttemptEnd, AttemptResult},
};

use super::{PATIENCE, delivery, destinations, subscription};

pub(super) const OK: &str = "HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok";

/// Destinations of one process, with a receiver at `url`.
pub(super) struct Process {
    destinations: Destinations,
    template: Delivery,
}

impl Process {
    pub fn new(url: &str) -> Self {
        Self::with(destinations(), url)
    }

    pub fn with(destinations: Destinations, url: &str) -> Self {
        Self::with_subscription(destinations, subscription(SubscriptionUid::unique(), url))
    }

    pub fn with_subscription(destinations: Destinations, subscription: v1::Subscription) -> Self {
        let uid = SubscriptionUid::from_slice(&subscription.uid).unwrap();
        let template = Delivery { timeout: PATIENCE, uid, ..delivery() };
        destinations.put(&subscription).unwrap();
        Self { destinations, template }
    }

    pub async fn deliver(&self) -> AttemptEnd {
        self.deliver_within(PATIENCE).await
    }

    pub async fn deliver_within(&self, timeout: Duration) -> AttemptEnd {
        let mut event = (*self.template.event).clone();
        event.event.id = EventId::unique();
        let delivery = Delivery { event: Arc::new(event), timeout, ..self.template.clone() };
        self.destinations.deliver(delivery).await.unwrap()
    }
}

pub(super) fn took(end: &AttemptEnd) -> Duration {
    end.ended_at.duration_since(end.started_at).try_into().unwrap()
}

/// Reads one request; `None`: the client has closed the connection.
pub(super) async fn read_request(connection: &mut (impl AsyncRead + Unpin)) -> Option<Vec<u8>> {
    let mut request = Vec::new();
    let head = loop {
        if connection.read_buf(&mut request).await.unwrap_or(0) == 0 {
            return None;
        }
        if let Some(head) = request.windows(4).position(|window| window == b"\r\n\r\n") {
            break head;
        }
    };
    let text = String::from_utf8_lossy(&request[..head]).to_lowercase();
    let length: usize = text.split("content-length: ").nth(1).unwrap().lines().next().unwrap().parse().unwrap();
    while request.len() < head + 4 + length {
        if connection.read_buf(&mut request).await.unwrap_or(0) == 0 {
            return None;
        }
    }
    Some(request)
}

/// Reads a request up to the end of its head, byte by byte.
pub(super) async fn read_head(connection: &mut (impl AsyncRead + Unpin)) -> Option<String> {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        head.push(connection.read_u8().await.ok()?);
    }
    String::from_utf8(head).ok()
}

/// A receiver that hands each connection, with its number from 1, to a function.
pub(super) async fn receiver<F: Future<Output = ()> + Send + 'static>(
    serve: impl Fn(usize, TcpStream) -> F + Send + 'static,
) -> (String, Arc<AtomicUsize>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}/", listener.local_addr().unwrap());
    let connections = Arc::new(AtomicUsize::new(0));
    let counted = Arc::clone(&connections);
    tokio::spawn(async move {
        loop {
            let (connection, _) = listener.accept().await.unwrap();
            let number = counted.fetch_add(1, Ordering::SeqCst) + 1;
            tokio::spawn(serve(number, connection));
        }
    });
    (url, connections)
}

/// The response of a receiver to a second request on a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Second {
    /// Closes the connection as if it had been idle for too long, having read the request.
    Close,
    /// Resets it.
    Reset,
    /// Sends a part of a response before.
    CloseAfterAByte,
}

async fn answer_once(mut connection: TcpStream, second: Second) {
    if read_request(&mut connection).await.is_none() {
        return;
    }
    connection.write_all(OK.as_bytes()).await.unwrap();
    match second {
        Second::Close => drop(read_request(&mut connection).await),
        // What is not read makes the end of a connection a reset.
        Second::Reset => connection.readable().await.unwrap(),
        Second::CloseAfterAByte => {
            if read_request(&mut connection).await.is_some() {
                connection.write_all(b"H").await.unwrap();
            }
        }
    }
}

#[tokio::test]
async fn a_request_lost_with_an_idle_connection_is_repeated_and_not_counted() {
    for second in [Second::Close, Second::Reset] {
        let (url, connections) = receiver(move |_, connection| answer_once(connection, second)).await;
        let process = Process::new(&url);
        for number in 0..10 {
            let end = process.deliver().await;
            assert_eq!(end.result, AttemptResult::Delivered, "{second:?}, event {number}: {}", end.error);
        }
        let connections = connections.load(Ordering::SeqCst);
        assert!((10..=20).contains(&connections), "{second:?}: each request is answered once: {connections}");
    }
}

/// A response that has begun came from the receiver's code: what ends it counts.
#[tokio::test]
async fn a_connection_that_ends_within_a_response_fails_the_attempt() {
    let (url, connections) = receiver(|_, connection| answer_once(connection, Second::CloseAfterAByte)).await;
    let process = Process::new(&url);
    assert_eq!(process.deliver().await.result, AttemptResult::Delivered);
    let end = process.deliver().await;
    assert_eq!((end.result, end.class), (AttemptResult::Failed, AttemptClass::Protocol), "{}", end.error);
    assert_eq!(connections.load(Ordering::SeqCst), 1);
}

/// Nothing says that the receiver has closed an idle connection where it has closed a new one: the event may be at fault.
#[tokio::test]
async fn a_new_connection_that_ends_without_a_response_fails_the_attempt() {
    let (url, connections) = receiver(|_, mut connection| async move {
        read_request(&mut connection).await;
    })
    .await;
    let process = Process::new(&url);
    for attempts in 1..=3 {
        let end = process.deliver().await;
        assert_eq!((end.result, end.class), (AttemptResult::Failed, AttemptClass::Protocol), "{}", end.error);
        assert_eq!(connections.load(Ordering::SeqCst), attempts, "it is not repeated within the attempt");
    }
}

/// A receiver that fails one event by closing its connections, used or new, takes one repetition and then counts.
#[tokio::test]
async fn repetitions_end() {
    let (url, connections) = receiver(|number, mut connection| async move {
        if number == 1 {
            read_request(&mut connection).await;
            connection.write_all(OK.as_bytes()).await.unwrap();
        }
        read_request(&mut connection).await;
    })
    .await;
    let process = Process::new(&url);
    assert_eq!(process.deliver().await.result, AttemptResult::Delivered);
    assert_eq!(process.deliver().await.result, AttemptResult::Failed);
    assert_eq!(connections.load(Ordering::SeqCst), 2);
}

/// A receiver that restarts closes all its connections; one repetition is enough, however many there were.
#[tokio::test]
async fn many_stale_connections_cost_no_attempt() {
    const MANY: usize = 8;
    let together = Arc::new(Barrier::new(MANY));
    let (url, connections) = receiver(move |number, mut connection| {
        let together = Arc::clone(&together);
        async move {
            read_request(&mut connection).await;
            if number <= MANY {
                together.wait().await;
                connection.write_all(OK.as_bytes()).await.unwrap();
                read_request(&mut connection).await;
            } else {
                connection.write_all(OK.as_bytes()).await.unwrap();
                while read_request(&mut connection).await.is_some() {
                    connection.write_all(OK.as_bytes()).await.unwrap();
                }
            }
        }
    })
    .await;
    let process = Process::new(&url);
    let first = join_all((0..MANY).map(|_| process.deliver())).await;
    assert!(first.iter().all(|end| end.result == AttemptResult::Delivered));
    assert_eq!(connections.load(Ordering::SeqCst), MANY);
    for _ in 0..MANY + 1 {
        let end = process.deliver().await;
        assert_eq!(end.result, AttemptResult::Delivered, "{}", end.error);
    }
}

/// Some servers and proxies say 408 when they close an idle connection, and a request on its way takes it for its response.
#[tokio::test]
async fn a_408_for_an_idle_connection_is_not_the_response_to_a_request() {
    const TIMED_OUT: &str = "HTTP/1.1 408 Request Timeout\r\nconnection: close\r\ncontent-length: 0\r\n\r\n";
    let (url, connections) = receiver(|number, mut connection| async move {
        read_request(&mut connection).await;
        // From the fifth connection on it answers nothing else.
        let first = if number < 5 { OK } else { TIMED_OUT };
        connection.write_all(first.as_bytes()).await.unwrap();
        if read_request(&mut connection).await.is_some() {
            connection.write_all(TIMED_OUT.as_bytes()).await.unwrap();
        }
    })
    .await;
    let process = Process::new(&url);
    for _ in 0..4 {
        let end = process.deliver().await;
        assert_eq!(end.result, AttemptResult::Delivered, "{}", end.error);
    }
    assert_eq!(connections.load(Ordering::SeqCst), 4);
    let end = process.deliver().await;
    assert_eq!((end.result, end.status), (AttemptResult::Failed, 408), "over a new connection it is the response");
}

/// A middlebox that forgets idle connections forgets all of them: one time-out is enough to find out.
#[tokio::test]
async fn frozen_idle_connections_cost_one_time_out() {
    const MANY: usize = 4;
    let together = Arc::new(Barrier::new(MANY));
    let (url, _) = receiver(move |number, mut connection| {
        let together = Arc::clone(&together);
        async move {
            let answer = OK.replace("content", "keep-alive: timeout=60\r\ncontent");
            read_request(&mut connection).await;
            if number <= MANY {
                together.wait().await;
                connection.write_all(answer.as_bytes()).await.unwrap();
                std::future::pending::<()>().await;
            }
            connection.write_all(answer.as_bytes()).await.unwrap();
            while read_request(&mut connection).await.is_some() {
                connection.write_all(answer.as_bytes()).await.unwrap();
            }
        }
    })
    .await;
    let process = Process::new(&url);
    let first = join_all((0..MANY).map(|_| process.deliver())).await;
    assert!(first.iter().all(|end| end.result == AttemptResult::Delivered));
    let end = process.deliver_within(Duration::from_millis(300)).await;
    assert_eq!((end.result, end.class), (AttemptResult::Failed, AttemptClass::Timeout));
    for _ in 0..MANY + 1 {
        let end = process.deliver().await;
        assert_eq!(end.result, AttemptResult::Delivered, "{}", end.error);
    }
}

/// Node.js, Apache and uvicorn close after 5 s, and some say so: an idle connection is closed before that.
#[tokio::test]
async fn idle_connections_are_closed_before_receivers_close_them() {
    const TRIES: usize = 5;
    for (header, at_least, at_most) in [
        ("", 3.5, 5.0),
        ("keep-alive: timeout=5, max=100\r\n", 3.5, 5.0),
        ("Keep-Alive: max=5, Timeout=2\r\n", 0.9, 2.0),
        ("keep-alive: timeout=1\r\n", 0.4, 1.0),
        ("keep-alive: timeout=0\r\n", 0.0, 1.0),
        ("keep-alive: timeout=6\r\n", 4.5, 6.0),
    ] {
        let (idle, mut measured) = mpsc::unbounded_channel();
        let (url, _) = receiver(move |_, mut connection| {
            let idle = idle.clone();
            async move {
                read_request(&mut connection).await;
                let answer = OK.replace("content", &format!("{header}content"));
                connection.write_all(answer.as_bytes()).await.unwrap();
                let since = Instant::now();
                assert!(read_request(&mut connection).await.is_none());
                idle.send(since.elapsed().as_secs_f64()).unwrap();
            }
        })
        .await;
        let process = Process::new(&url);
        // Never early, and late only where the machine was busy at that moment.
        let mut all = Vec::new();
        while all.last().is_none_or(|idle| *idle >= at_most) {
            assert!(all.len() < TRIES, "{header:?}: closed after {all:?} s");
            assert_eq!(process.deliver().await.result, AttemptResult::Delivered);
            let idle = measured.recv().await.unwrap();
            assert!(idle >= at_least, "{header:?}: closed after {idle} s");
            all.push(idle);
        }
    }
}

/// Prints its port, then answers each request with how many there were. Idle connections are kept for its default: 5 s.
const NODE: &str = "let count = 0; const server = require('http').createServer((request, response) => { \
                    request.resume(); request.on('end', () => response.end(String(++count))); }); \
                    server.listen(0, '127.0.0.1', () => console.log(server.address().port));";

/// Guards: a receiver by Node.js, which closes idle connections after 5 s, gets each of the events that come every 5 s by one
/// request. `WEFT_KEEP_ALIVE_SECONDS` lets this run for so long, and needs Node.js; without it, it is one event.
#[tokio::test]
async fn a_receiver_by_node_gets_each_event_once() {
    use tokio::io::{AsyncBufReadExt as _, BufReader};
    let seconds = std::env::var("WEFT_KEEP_ALIVE_SECONDS").ok().map(|text| text.parse::<u64>().expect("a number"));
    let node = tokio::process::Command::new("node")
        .args(["-e", NODE])
        .stdout(std::process::Stdio::piped())
        .kill_on_drop(true)
        .spawn();
    let mut node = match node {
        Ok(node) => node,
        Err(_) if seconds.is_none() => return,
        Err(error) => panic!("Node.js: {error}"),
    };
    let mut lines = BufReader::new(node.stdout.take().unwrap()).lines();
    let port = lines.next_line().await.unwrap().expect("its port");
    let process = Process::new(&format!("http://127.0.0.1:{port}/"));
    let mut ticks = tokio::time::interval(Duration::from_secs(5));
    for number in 1..=seconds.unwrap_or_default() / 5 + 1 {
        ticks.tick().await;
        let end = process.deliver().await;
        assert_eq!(end.result, AttemptResult::Delivered, "event {number}: {}", end.error);
        assert_eq!(end.response, number.to_string(), "requests at event {number}");
    }
}

/// The model of a receiver that keeps idle connections for a short time and says so, called at about that pace.
#[tokio::test]
async fn a_receiver_with_a_short_keep_alive_loses_no_attempt() {
    let (url, _) = receiver(|_, mut connection| async move {
        let answer = OK.replace("content", "keep-alive: timeout=1\r\ncontent");
        loop {
            let request = tokio::time::timeout(Duration::from_secs(1), read_request(&mut connection)).await;
            let Ok(Some(_)) = request else { return };
            connection.write_all(answer.as_bytes()).await.unwrap();
        }
    })
    .await;
    let process = Process::new(&url);
    for pause in [450, 500, 550, 990, 1000, 1010] {
        let end = process.deliver().await;
        assert_eq!(end.result, AttemptResult::Delivered, "{}", end.error);
        tokio::time::sleep(Duration::from_millis(pause)).await;
    }
}
