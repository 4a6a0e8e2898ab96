//! The accept loop, and draining.

use std::{
    io,
    net::{IpAddr, SocketAddr},
    sync::Arc,
    time::Duration,
};

use axum::Router;
use futures_util::FutureExt as _;
use hyper_util::{
    rt::{TokioExecutor, TokioTimer},
    server::conn::auto::Builder,
};
use tokio::{
    net::{TcpListener, TcpStream},
    time::{Instant, sleep, timeout},
};
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use weft_tls::{Acceptor, Listener};

use crate::{
    Connections,
    connection::connection,
    places::{Place, Places},
    request::{Answer, HEAD_BYTES_MAX, HEADER_LIST_BYTES_MAX, HEADERS_MAX, plain_text},
    streams::STREAMS_MAX,
    transport::Linger,
};

/// Streams that a client may have opened and reset before we have looked at them; with more, it only makes work.
const RESET_STREAMS_MAX: usize = 20;
/// Streams of one connection that may have been reset because of the client's own errors.
const ERROR_STREAMS_MAX: usize = 256;
/// How often a silent HTTP/2 connection is asked whether it is alive.
const PING_INTERVAL: Duration = Duration::from_secs(30);
/// How long it may take to answer that.
const PING_TIMEOUT: Duration = Duration::from_secs(20);
/// How long accepting rests when the system has no more sockets to give.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);
/// How often the log says that the system has none.
const ACCEPT_WARNING_INTERVAL: Duration = Duration::from_secs(60);

/// How a port is served.
#[derive(Clone)]
pub struct Options {
    /// The port, for the log: `gateway`.
    pub port: &'static str,
    /// Bounds on its connections.
    pub connections: Connections,
    /// Addresses that the bound per network does not hold for, such as trusted proxies.
    pub exempt: Arc<dyn Fn(IpAddr) -> bool + Send + Sync>,
    /// Answers requests that reach no route.
    pub answer: Answer,
    /// Requests at a time on one HTTP/2 connection; at most [`STREAMS_MAX`].
    pub streams: u32,
    /// What is counted, if anything is.
    pub counters: Option<Counters>,
}

/// Names of counters.
#[derive(Debug, Clone, Copy)]
pub struct Counters {
    /// Connections opened.
    pub opened: &'static str,
    /// Connections closed.
    pub closed: &'static str,
    /// Connections closed at once, since their network has too many.
    pub refused: &'static str,
}

/// How long clients may take.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Patience {
    /// From a connection to its first request. Whoever connects and says nothing holds no place for longer.
    pub first_head: Duration,
    /// For a later request's head, and so between requests. Above what senders keep an idle connection for, mostly 60 s
    /// or less, so that seldom both ends act at once.
    pub next_head: Duration,
    /// For the first request of a connection that was opened just before draining began: it may be on its way already.
    pub last_head: Duration,
    /// For what is left of a request that was answered before its end.
    pub linger: Linger,
    /// For the requests in flight once draining has begun: longer than any of them waits for the log.
    pub drain: Duration,
}

impl Default for Patience {
    fn default() -> Self {
        Self {
            first_head: Duration::from_secs(10),
            next_head: Duration::from_secs(75),
            last_head: Duration::from_millis(500),
            linger: Linger { total: Duration::from_secs(30), idle: Duration::from_secs(5) },
            drain: Duration::from_secs(15),
        }
    }
}

impl Options {
    /// A port with these bounds that answers malformed requests in plain text.
    pub fn new(port: &'static str, connections: Connections) -> Self {
        Self {
            port,
            connections,
            exempt: Arc::new(|_| false),
            answer: Arc::new(plain_text),
            streams: STREAMS_MAX,
            counters: None,
        }
    }
}

/// Serves until `drain`; then accepts no more, lets the requests in flight end, and returns. Each request has its
/// [`Peer`](crate::Peer) and its connection's [`Streams`](crate::Streams) among its extensions.
pub async fn serve(listener: Listener, router: Router, options: Options, drain: CancellationToken) {
    serve_with(Patience::default(), listener, router, options, drain).await;
}

pub(crate) async fn serve_with(
    patience: Patience,
    listener: Listener,
    router: Router,
    options: Options,
    drain: CancellationToken,
) {
    let Listener { tcp, acceptor, .. } = listener;
    let connections = TaskTracker::new();
    let mut accepting = Accepting::new(tcp, &options);
    let builder = builder(patience, options.streams);
    let server = Server { builder, router, acceptor, options, patience, drain, force: CancellationToken::new() };
    let server = Arc::new(server);
    loop {
        let (stream, place) = tokio::select! {
            accepted = accepting.next() => accepted,
            () = server.drain.cancelled() => break,
        };
        connections.spawn(server.clone().serve(stream, place));
    }
    // A client that has connected before the end may have sent a request already; closing the port would cut it off.
    while let Some((stream, place)) = accepting.next().now_or_never() {
        connections.spawn(server.clone().serve(stream, place));
    }
    drop(accepting);
    connections.close();
    if timeout(patience.drain, connections.wait()).await.is_err() {
        tracing::warn!(connections = connections.len(), "requests in flight did not end in time");
        server.force.cancel();
        connections.wait().await;
    }
}

/// What all connections share.
pub(crate) struct Server {
    pub builder: Builder<TokioExecutor>,
    pub router: Router,
    acceptor: Option<Acceptor>,
    pub options: Options,
    pub patience: Patience,
    /// Finish what is in flight.
    pub drain: CancellationToken,
    /// Finish nothing any more.
    force: CancellationToken,
}

impl Server {
    /// Serves one connection to its end. One that ends in an error has told its client all there is to tell.
    async fn serve(self: Arc<Self>, stream: TcpStream, place: Place) {
        let count = |name: fn(&Counters) -> &'static str| {
            if let Some(counters) = &self.options.counters {
                metrics::counter!(name(counters)).increment(1);
            }
        };
        count(|counters| counters.opened);
        self.force.run_until_cancelled(self.secure_and_serve(stream, place)).await;
        count(|counters| counters.closed);
    }

    async fn secure_and_serve(&self, stream: TcpStream, place: Place) {
        // An answer is one small write; waiting for more would only delay it.
        if let Err(error) = stream.set_nodelay(true) {
            tracing::debug!(%error, "no-delay cannot be set");
        }
        let Some(acceptor) = &self.acceptor else { return connection(self, stream, place).await };
        let evicted = place.evicted();
        let secured = tokio::select! {
            secured = acceptor.accept(stream) => secured,
            () = evicted.cancelled() => return,
        };
        match secured {
            Ok(stream) => connection(self, stream, place).await,
            Err(error) => tracing::debug!(%error, "handshake failed"),
        }
    }
}

fn builder(patience: Patience, streams: u32) -> Builder<TokioExecutor> {
    let mut builder = Builder::new(TokioExecutor::new());
    builder
        .http1()
        .timer(TokioTimer::new())
        .header_read_timeout(patience.next_head)
        .max_buf_size(HEAD_BYTES_MAX)
        .max_headers(HEADERS_MAX)
        .http2()
        .timer(TokioTimer::new())
        .keep_alive_interval(PING_INTERVAL)
        .keep_alive_timeout(PING_TIMEOUT)
        .max_header_list_size(HEADER_LIST_BYTES_MAX)
        .max_pending_accept_reset_streams(RESET_STREAMS_MAX)
        .max_local_error_reset_streams(ERROR_STREAMS_MAX)
        .max_concurrent_streams(streams.min(STREAMS_MAX));
    builder
}

/// Accepts connections that have a place.
struct Accepting {
    listener: TcpListener,
    places: Places,
    port: &'static str,
    exempt: Arc<dyn Fn(IpAddr) -> bool + Send + Sync>,
    refused: Option<&'static str>,
    /// When the log has last said that the system has no sockets, and how often it had none since.
    warned: Option<Instant>,
    failures: u64,
}

impl Accepting {
    fn new(listener: TcpListener, options: &Options) -> Self {
        Self {
            listener,
            places: Places::new(options.connections),
            port: options.port,
            exempt: options.exempt.clone(),
            refused: options.counters.map(|counters| counters.refused),
            warned: None,
            failures: 0,
        }
    }

    async fn next(&mut self) -> (TcpStream, Place) {
        loop {
            self.places.room().await;
            match self.listener.accept().await {
                Ok((stream, peer)) => {
                    let address = canonical(peer);
                    if let Some(place) = self.places.enter(address, (self.exempt)(address)) {
                        return (stream, place);
                    }
                    // Closed without a word: an answer would cost more than the refused connection.
                    if let Some(name) = self.refused {
                        metrics::counter!(name).increment(1);
                    }
                }
                Err(error) if is_of_one_connection(&error) => {}
                Err(error) => {
                    self.warn(&error);
                    sleep(ACCEPT_PAUSE).await;
                }
            }
        }
    }

    fn warn(&mut self, error: &io::Error) {
        self.failures += 1;
        if self.warned.is_some_and(|warned| warned.elapsed() < ACCEPT_WARNING_INTERVAL) {
            return;
        }
        tracing::warn!(%error, port = self.port, times = self.failures, "connections cannot be accepted");
        self.warned = Some(Instant::now());
        self.failures = 0;
    }
}

fn canonical(peer: SocketAddr) -> IpAddr {
    peer.ip().to_canonical()
}

/// Whether an error of accepting concerns only a connection that is gone.
fn is_of_one_connection(error: &io::Error) -> bool {
    use io::ErrorKind::{ConnectionAborted, ConnectionRefused, ConnectionReset, Interrupted};
    matches!(error.kind(), ConnectionAborted | ConnectionRefused | ConnectionReset | Interrupted)
}
