//! HTTP/2 connections that receivers refuse streams on, shut down, or that freeze; with a receiver that reads and writes
//! frames.

use std::{
    collections::BTreeSet,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use futures_util::future::join_all;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{TcpListener, TcpStream},
    sync::Mutex,
};
use tokio_rustls::server::TlsStream;
use weft_proto::v1::AttemptClass;
use weft_testkit::Authority;
use weft_tls::Acceptor;
use weft_worker::{
    destination::{Destinations, clients::HttpClients},
    lane::AttemptResult,
};

use super::{
    LOCAL, PATIENCE,
    http1::{Process, took},
};

const DATA: u8 = 0;
const HEADERS: u8 = 1;
const RST_STREAM: u8 = 3;
const SETTINGS: u8 = 4;
const PING: u8 = 6;
const GOAWAY: u8 = 7;
const ACK: u8 = 1;
const END_STREAM: u8 = 1;
const END_HEADERS: u8 = 4;
const NO_ERROR: u32 = 0;
const INTERNAL_ERROR: u32 = 2;
const REFUSED_STREAM: u32 = 7;
/// `:status: 200` of the static table.
const STATUS_200: &[u8] = &[0x88];

/// The receiver's side of one connection.
struct Http2 {
    number: usize,
    stream: TlsStream<TcpStream>,
}

impl Http2 {
    async fn accept(number: usize, acceptor: &Acceptor, connection: TcpStream) -> Option<Self> {
        let mut stream = acceptor.accept(connection).await.ok()?;
        let mut preface = [0; 24];
        stream.read_exact(&mut preface).await.ok()?;
        let mut accepted = Self { number, stream };
        accepted.write(SETTINGS, 0, 0, &[]).await?;
        Some(accepted)
    }

    async fn write(&mut self, kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Option<()> {
        let mut frame = (payload.len() as u32).to_be_bytes()[1..].to_vec();
        frame.extend([kind, flags]);
        frame.extend(stream.to_be_bytes());
        frame.extend(payload);
        self.stream.write_all(&frame).await.ok()?;
        self.stream.flush().await.ok()
    }

    /// The next stream whose request has come to its end; settings and pings are answered.
    async fn request(&mut self) -> Option<u32> {
        loop {
            let mut head = [0; 9];
            self.stream.read_exact(&mut head).await.ok()?;
            let mut payload = vec![0; u32::from_be_bytes([0, head[0], head[1], head[2]]) as usize];
            self.stream.read_exact(&mut payload).await.ok()?;
            let (kind, flags) = (head[3], head[4]);
            match kind {
                SETTINGS if flags & ACK == 0 => self.write(SETTINGS, ACK, 0, &[]).await?,
                PING if flags & ACK == 0 => self.write(PING, ACK, 0, &payload).await?,
                HEADERS | DATA if flags & END_STREAM != 0 => {
                    return Some(u32::from_be_bytes([head[5], head[6], head[7], head[8]]));
                }
                _ => {}
            }
        }
    }

    async fn answer(&mut self, stream: u32) -> Option<()> {
        self.write(HEADERS, END_HEADERS | END_STREAM, stream, STATUS_200).await
    }

    async fn answer_all(mut self) -> Option<()> {
        loop {
            let stream = self.request().await?;
            self.answer(stream).await?;
        }
    }

    async fn reset(&mut self, stream: u32, code: u32) -> Option<()> {
        self.write(RST_STREAM, 0, stream, &code.to_be_bytes()).await
    }

    async fn go_away(&mut self, last: u32, code: u32) -> Option<()> {
        let payload = [last.to_be_bytes(), code.to_be_bytes()].concat();
        self.write(GOAWAY, 0, 0, &payload).await
    }
}

/// A receiver that hands each connection over which a request comes, with its number from 1, to a function.
async fn receiver<F: Future<Output = Option<()>> + Send + 'static>(
    serve: impl Fn(Http2) -> F + Clone + Send + 'static,
) -> (Process, Arc<AtomicUsize>) {
    let authority = Authority::new();
    let acceptor = Acceptor::open(&authority.options()).unwrap().unwrap();
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("https://{}/", listener.local_addr().unwrap());
    let connections = Arc::new(AtomicUsize::new(0));
    let counted = Arc::clone(&connections);
    tokio::spawn(async move {
        loop {
            let (connection, _) = listener.accept().await.unwrap();
            let (acceptor, serve, counted) = (acceptor.clone(), serve.clone(), Arc::clone(&counted));
            tokio::spawn(async move {
                let accepted = Http2::accept(0, &acceptor, connection).await?;
                let number = counted.fetch_add(1, Ordering::SeqCst) + 1;
                serve(Http2 { number, ..accepted }).await
            });
        }
    });
    (trusting(&authority, &url), connections)
}

pub(super) fn trusting(authority: &Authority, url: &str) -> Process {
    let networks = LOCAL.iter().map(|network| network.parse().unwrap()).collect::<Vec<ipnet::IpNet>>();
    let clients = HttpClients::new(networks).with_tls(authority.client_config());
    Process::with(Destinations::with_clients(Arc::new(clients)), url)
}

/// A reload of a proxy, or its limit of requests per connection.
#[tokio::test]
async fn requests_after_a_goaway_are_repeated_and_not_counted() {
    const MANY: usize = 20;
    let (process, connections) = receiver(|mut http| async move {
        if http.number > 1 {
            return http.answer_all().await;
        }
        let stream = http.request().await?;
        http.answer(stream).await?;
        let mut streams = BTreeSet::new();
        while streams.len() < MANY {
            streams.insert(http.request().await?);
        }
        let streams = Vec::from_iter(streams);
        http.go_away(streams[8], NO_ERROR).await?;
        for stream in &streams[..9] {
            http.answer(*stream).await?;
        }
        http.request().await.map(drop)
    })
    .await;
    assert_eq!(process.deliver().await.result, AttemptResult::Delivered);
    for end in join_all((0..MANY).map(|_| process.deliver())).await {
        assert_eq!((end.result, end.status), (AttemptResult::Delivered, 200), "{}", end.error);
    }
    assert!(connections.load(Ordering::SeqCst) >= 2);
    assert_eq!(process.deliver().await.result, AttemptResult::Delivered);
}

#[tokio::test]
async fn a_refused_stream_is_repeated_and_not_counted() {
    // On the first connection only one request is taken; later ones take all.
    let (process, _) = receiver(|mut http| async move {
        if http.number > 1 {
            return http.answer_all().await;
        }
        let stream = http.request().await?;
        http.answer(stream).await?;
        loop {
            let stream = http.request().await?;
            http.reset(stream, REFUSED_STREAM).await?;
        }
    })
    .await;
    for _ in 0..6 {
        let end = process.deliver().await;
        assert_eq!(end.result, AttemptResult::Delivered, "{}", end.error);
    }
}

/// A receiver that refuses every stream is away, as one that refuses connections: no event is at fault, and nothing loops.
#[tokio::test]
async fn a_receiver_that_refuses_every_stream_is_unreachable() {
    let asked = Arc::new(AtomicUsize::new(0));
    let counted = Arc::clone(&asked);
    let (process, _) = receiver(move |mut http| {
        let counted = Arc::clone(&counted);
        async move {
            loop {
                let stream = http.request().await?;
                counted.fetch_add(1, Ordering::SeqCst);
                http.reset(stream, REFUSED_STREAM).await?;
            }
        }
    })
    .await;
    let end = process.deliver().await;
    assert_eq!((end.result, end.class), (AttemptResult::Unreachable, AttemptClass::Protocol), "{}", end.error);
    assert_eq!(asked.load(Ordering::SeqCst), 3, "once, and two repetitions");
}

/// A stream that was begun and reset is the event's own failure.
#[tokio::test]
async fn a_stream_reset_with_an_error_fails_the_attempt() {
    let asked = Arc::new(AtomicUsize::new(0));
    let counted = Arc::clone(&asked);
    let (process, connections) = receiver(move |mut http| {
        let counted = Arc::clone(&counted);
        async move {
            loop {
                let stream = http.request().await?;
                match counted.fetch_add(1, Ordering::SeqCst) {
                    0 => http.answer(stream).await?,
                    _ => http.reset(stream, INTERNAL_ERROR).await?,
                }
            }
        }
    })
    .await;
    assert_eq!(process.deliver().await.result, AttemptResult::Delivered);
    let end = process.deliver().await;
    assert_eq!((end.result, end.class), (AttemptResult::Failed, AttemptClass::Protocol), "{}", end.error);
    assert_eq!((asked.load(Ordering::SeqCst), connections.load(Ordering::SeqCst)), (2, 1));
}

/// The connection is lost with requests on it that have no response.
#[tokio::test]
async fn requests_on_a_lost_connection_are_repeated_and_not_counted() {
    const MANY: usize = 5;
    let (process, _) = receiver(|mut http| async move {
        if http.number > 1 {
            return http.answer_all().await;
        }
        let stream = http.request().await?;
        http.answer(stream).await?;
        for _ in 0..MANY {
            http.request().await?;
        }
        Some(())
    })
    .await;
    assert_eq!(process.deliver().await.result, AttemptResult::Delivered);
    for end in join_all((0..MANY).map(|_| process.deliver())).await {
        assert_eq!(end.result, AttemptResult::Delivered, "{}", end.error);
    }
}

/// A relay before a receiver whose first connection with a request freezes on demand, as behind a middlebox that has
/// forgotten it: packets are acknowledged, and nothing answers.
struct Freezing {
    process: Process,
    frozen: Arc<Mutex<bool>>,
    taken: Arc<AtomicUsize>,
}

impl Freezing {
    async fn start() -> Self {
        let frozen = Arc::new(Mutex::new(false));
        let taken = Arc::new(AtomicUsize::new(0));
        let (gate, counted) = (Arc::clone(&frozen), Arc::clone(&taken));
        let (process, _) = receiver(move |mut http| {
            let (gate, counted) = (Arc::clone(&gate), Arc::clone(&counted));
            async move {
                counted.fetch_max(http.number, Ordering::SeqCst);
                loop {
                    let stream = http.request().await?;
                    if http.number == 1 && *gate.lock().await {
                        std::future::pending::<()>().await;
                    }
                    http.answer(stream).await?;
                }
            }
        })
        .await;
        Self { process, frozen, taken }
    }
}

#[tokio::test]
async fn a_frozen_connection_is_not_used_again_after_a_time_out() {
    let freezing = Freezing::start().await;
    let process = &freezing.process;
    assert_eq!(process.deliver().await.result, AttemptResult::Delivered);
    *freezing.frozen.lock().await = true;
    let end = process.deliver_within(Duration::from_millis(500)).await;
    assert_eq!((end.result, end.class), (AttemptResult::Failed, AttemptClass::Timeout), "{}", end.error);
    for _ in 0..3 {
        let end = process.deliver().await;
        assert_eq!(end.result, AttemptResult::Delivered, "{}", end.error);
    }
    assert_eq!(freezing.taken.load(Ordering::SeqCst), 2);
}

/// A request with time enough does not even fail: pings find the frozen connection, and it goes over another one.
#[tokio::test]
async fn a_frozen_connection_is_found_by_pings() {
    let freezing = Freezing::start().await;
    let process = &freezing.process;
    assert_eq!(process.deliver().await.result, AttemptResult::Delivered);
    *freezing.frozen.lock().await = true;
    let end = process.deliver_within(PATIENCE).await;
    assert_eq!(end.result, AttemptResult::Delivered, "{}", end.error);
    assert!(took(&end) < Duration::from_secs(15), "within the default time-out: {:?}", took(&end));
}

/// The stream of a response that does not end is given up; its connection serves others.
#[tokio::test]
async fn a_status_settles_although_its_stream_does_not_end() {
    let (process, connections) = receiver(|mut http| async move {
        loop {
            let stream = http.request().await?;
            http.write(HEADERS, END_HEADERS, stream, STATUS_200).await?;
            http.write(DATA, 0, stream, b"sofar").await?;
        }
    })
    .await;
    for _ in 0..5 {
        let end = process.deliver().await;
        assert_eq!((end.result, &end.response[..]), (AttemptResult::Delivered, &b"sofar"[..]), "{}", end.error);
        assert!(took(&end) < Duration::from_secs(10), "took {:?}", took(&end));
    }
    assert_eq!(connections.load(Ordering::SeqCst), 1);
}

/// A slow request on a connection that answers pings is waited for.
#[tokio::test]
async fn a_slow_response_over_a_live_connection_is_waited_for() {
    let (process, connections) = receiver(|mut http| async move {
        loop {
            let stream = http.request().await?;
            // Pings are answered by the next call, which ends with no request.
            let _ = tokio::time::timeout(Duration::from_secs(11), http.request()).await;
            http.answer(stream).await?;
        }
    })
    .await;
    let end = process.deliver().await;
    assert_eq!((end.result, connections.load(Ordering::SeqCst)), (AttemptResult::Delivered, 1), "{}", end.error);
}
