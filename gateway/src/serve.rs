//! HTTP connections: accepted, served as HTTP/1.1 or HTTP/2, drained.

use std::{
    io,
    net::SocketAddr,
    pin::pin,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use axum::{Router, extract::ConnectInfo};
use hyper::body::Incoming;
use hyper_util::{
    rt::{TokioExecutor, TokioIo, TokioTimer},
    server::conn::auto::Builder,
};
use tokio::{
    net::{TcpListener, TcpStream},
    sync::Semaphore,
    time::{sleep, timeout},
};
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use tower::ServiceExt as _;

use crate::metrics;

/// Connections at a time; further ones wait in the system's backlog. Each costs a socket and some tens of KiB.
const CONNECTIONS_MAX: usize = 8192;
/// The most that a request's head may take, in bytes.
const HEAD_BYTES_MAX: usize = 64 * 1024;
/// Requests at a time on one HTTP/2 connection.
const STREAMS_MAX: u32 = 256;
/// How often a silent HTTP/2 connection is asked whether it is alive.
const PING_INTERVAL: Duration = Duration::from_secs(30);
/// How long accepting rests when the system has no more sockets to give.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// How long clients may take.
#[derive(Debug, Clone, Copy)]
struct Patience {
    /// From a connection to its first request. Whoever connects and says nothing holds no place for longer.
    first_head: Duration,
    /// For a later request's head, and so between requests. Above what senders keep an idle connection for, mostly 60 s
    /// or less, so that seldom both ends act at once.
    next_head: Duration,
    /// For the requests in flight once draining has begun: longer than any of them waits for the log.
    drain: Duration,
}

impl Default for Patience {
    fn default() -> Self {
        let (first_head, next_head) = (Duration::from_secs(10), Duration::from_secs(75));
        Self { first_head, next_head, drain: Duration::from_secs(15) }
    }
}

/// Serves until `drain`; then accepts no more, lets the requests in flight end, and returns.
pub async fn serve(listener: TcpListener, router: Router, drain: CancellationToken) {
    serve_with(Patience::default(), listener, router, drain).await;
}

async fn serve_with(patience: Patience, listener: TcpListener, router: Router, drain: CancellationToken) {
    let connections = TaskTracker::new();
    let force = CancellationToken::new();
    let places = Arc::new(Semaphore::new(CONNECTIONS_MAX));
    let builder = Arc::new(builder(patience));
    loop {
        let accepted = tokio::select! {
            accepted = accept(&listener, &places) => accepted,
            () = drain.cancelled() => break,
        };
        let Some((stream, peer, place)) = accepted else { break };
        let (builder, router) = (builder.clone(), router.clone());
        let (drain, force) = (drain.clone(), force.clone());
        // A connection that ends in an error has told its client all there is to tell.
        connections.spawn(async move {
            ::metrics::counter!(metrics::CONNECTIONS_OPENED).increment(1);
            let served = connection(&builder, stream, peer, router, patience.first_head, &drain);
            tokio::select! {
                () = served => {}
                () = force.cancelled() => {}
            }
            ::metrics::counter!(metrics::CONNECTIONS_CLOSED).increment(1);
            drop(place);
        });
    }
    drop(listener);
    connections.close();
    if timeout(patience.drain, connections.wait()).await.is_err() {
        tracing::warn!(connections = connections.len(), "requests in flight did not end in time");
        force.cancel();
        connections.wait().await;
    }
}

fn builder(patience: Patience) -> Builder<TokioExecutor> {
    let mut builder = Builder::new(TokioExecutor::new());
    builder
        .http1()
        .timer(TokioTimer::new())
        .header_read_timeout(patience.next_head)
        .max_buf_size(HEAD_BYTES_MAX)
        .http2()
        .timer(TokioTimer::new())
        .keep_alive_interval(PING_INTERVAL)
        .max_concurrent_streams(STREAMS_MAX);
    builder
}

/// The next connection, once there is a place for it; `None` never comes while the semaphore is open.
async fn accept(
    listener: &TcpListener,
    places: &Arc<Semaphore>,
) -> Option<(TcpStream, SocketAddr, tokio::sync::OwnedSemaphorePermit)> {
    let place = places.clone().acquire_owned().await.ok()?;
    loop {
        match listener.accept().await {
            Ok((stream, peer)) => return Some((stream, peer, place)),
            Err(error) if is_of_one_connection(&error) => {}
            Err(error) => {
                tracing::warn!(%error, "connection cannot be accepted");
                sleep(ACCEPT_PAUSE).await;
            }
        }
    }
}

/// Whether an error of accepting concerns only a connection that is gone.
fn is_of_one_connection(error: &io::Error) -> bool {
    use io::ErrorKind::{ConnectionAborted, ConnectionRefused, ConnectionReset, Interrupted};
    matches!(error.kind(), ConnectionAborted | ConnectionRefused | ConnectionReset | Interrupted)
}

/// Serves one connection to its end.
async fn connection(
    builder: &Builder<TokioExecutor>,
    stream: TcpStream,
    peer: SocketAddr,
    router: Router,
    first_head: Duration,
    drain: &CancellationToken,
) {
    // An answer is one small write; waiting for more would only delay it.
    if let Err(error) = stream.set_nodelay(true) {
        tracing::debug!(%error, "no-delay cannot be set");
    }
    let spoken = Arc::new(AtomicBool::new(false));
    let speaking = spoken.clone();
    let service = hyper::service::service_fn(move |mut request: http::Request<Incoming>| {
        speaking.store(true, Ordering::Relaxed);
        request.extensions_mut().insert(ConnectInfo(peer));
        router.clone().oneshot(request)
    });
    let mut connection = pin!(builder.serve_connection(TokioIo::new(stream), service));
    let mut patience = pin!(sleep(first_head));
    let mut waiting = true;
    let mut draining = false;
    loop {
        tokio::select! {
            ended = connection.as_mut() => {
                if let Err(error) = ended {
                    tracing::debug!(error, "connection ended");
                }
                return;
            }
            () = drain.cancelled(), if !draining => {
                draining = true;
                connection.as_mut().graceful_shutdown();
            }
            () = patience.as_mut(), if waiting => {
                if !spoken.load(Ordering::Relaxed) {
                    tracing::debug!("connection said nothing");
                    return;
                }
                waiting = false;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use axum::routing::get;
    use tokio::{
        io::{AsyncReadExt as _, AsyncWriteExt as _},
        task::JoinHandle,
    };

    use super::*;

    const LONG: Duration = Duration::from_secs(20);
    const SHORT: Duration = Duration::from_millis(50);
    const REQUEST: &[u8] = b"GET / HTTP/1.1\r\nhost: weft\r\n\r\n";

    async fn start(patience: Patience) -> (SocketAddr, CancellationToken, JoinHandle<()>) {
        let router = Router::new().route("/", get(async || "here")).route("/never", get(std::future::pending::<()>));
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let drain = CancellationToken::new();
        (address, drain.clone(), tokio::spawn(serve_with(patience, listener, router, drain)))
    }

    /// What the server sends until it closes the connection.
    async fn rest(socket: &mut TcpStream) -> String {
        let mut bytes = Vec::new();
        let read = timeout(LONG, socket.read_to_end(&mut bytes)).await.expect("the connection is closed");
        assert!(read.is_ok() || bytes.is_empty(), "{read:?}");
        String::from_utf8(bytes).unwrap()
    }

    /// Silence, the beginning of either protocol, and half a head: none holds its place.
    #[tokio::test]
    async fn who_asks_nothing_is_disconnected() {
        let (address, ..) = start(Patience { first_head: SHORT, ..Patience::default() }).await;
        for said in [&b""[..], b"P", b"PRI * HTTP/2.0", &REQUEST[..20]] {
            let mut socket = TcpStream::connect(address).await.unwrap();
            socket.write_all(said).await.unwrap();
            assert_eq!(rest(&mut socket).await, "");
        }
    }

    /// One connection carries many requests, beyond its first patience, and is closed when it has been idle for long.
    #[tokio::test]
    async fn a_connection_is_kept_while_it_is_used() {
        let patience = Patience { first_head: SHORT, next_head: SHORT * 20, ..Patience::default() };
        let (address, ..) = start(patience).await;
        let mut socket = TcpStream::connect(address).await.unwrap();
        let began = tokio::time::Instant::now();
        let mut asked = 0;
        while began.elapsed() < SHORT * 3 {
            socket.write_all(REQUEST).await.unwrap();
            asked += 1;
            let mut answer = Vec::new();
            while !answer.ends_with(b"here") {
                answer.push(socket.read_u8().await.unwrap());
            }
        }
        assert!(asked > 1);
        assert_eq!(rest(&mut socket).await, "");
    }

    /// Who begins in HTTP/2 is answered in it: its first frame is the server's settings.
    #[tokio::test]
    async fn http_2_is_spoken_too() {
        const SETTINGS: [u8; 9] = [0, 0, 0, 4, 0, 0, 0, 0, 0];
        let (address, ..) = start(Patience::default()).await;
        let mut socket = TcpStream::connect(address).await.unwrap();
        socket.write_all(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n").await.unwrap();
        socket.write_all(&SETTINGS).await.unwrap();
        let mut frame = [0; 9];
        timeout(LONG, socket.read_exact(&mut frame)).await.expect("an answer").unwrap();
        assert_eq!(frame[3], SETTINGS[3]);
    }

    /// A request that does not end is given up when draining has lasted long enough; an idle connection at once.
    #[tokio::test]
    async fn draining_ends() {
        let (address, drain, served) = start(Patience { drain: SHORT, ..Patience::default() }).await;
        let mut idle = TcpStream::connect(address).await.unwrap();
        let mut stuck = TcpStream::connect(address).await.unwrap();
        stuck.write_all(b"GET /never HTTP/1.1\r\nhost: weft\r\n\r\n").await.unwrap();
        idle.write_all(REQUEST).await.unwrap();
        let mut first = [0; 1];
        idle.read_exact(&mut first).await.unwrap();
        drain.cancel();
        timeout(LONG, served).await.expect("ends").unwrap();
        assert!(rest(&mut idle).await.ends_with("here"));
        assert_eq!(rest(&mut stuck).await, "");
    }
}
