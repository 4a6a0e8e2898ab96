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
    connection::{Protocol, connection},
    connection_limit::{ConnectionLimit, ConnectionPermit},
    options::{Counters, Options, Timeouts},
    request::{HEAD_BYTES_MAX, HEADER_LIST_BYTES_MAX, HEADERS_MAX},
    request_limit::STREAMS_MAX,
};

/// Streams that a client may have opened and reset before they were processed; a client with more is disconnected.
const RESET_STREAMS_MAX: usize = 20;
/// Streams of one connection that may have been reset because of the client's own errors.
const ERROR_STREAMS_MAX: usize = 256;
/// Interval of pings on a silent HTTP/2 connection.
const PING_INTERVAL: Duration = Duration::from_secs(30);
/// Time-out of a ping.
const PING_TIMEOUT: Duration = Duration::from_secs(20);
/// Pause of accepting when the system has no more sockets.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);
/// Minimum interval of warnings that the system has none.
const ACCEPT_WARNING_INTERVAL: Duration = Duration::from_secs(60);

/// Serves until `drain`; then accepts no more, lets the requests in flight end, and returns. Each request has its
/// [`Peer`](crate::Peer) and its connection's [`RequestLimit`](crate::RequestLimit) among its extensions.
pub async fn serve(listener: Listener, router: Router, options: Options, drain: CancellationToken) {
    serve_with(Timeouts::default(), listener, router, options, drain).await;
}

pub(crate) async fn serve_with(
    timeouts: Timeouts,
    listener: Listener,
    router: Router,
    options: Options,
    drain: CancellationToken,
) {
    let Listener { tcp, acceptor, .. } = listener;
    let connections = TaskTracker::new();
    let mut accepting = Accepting::new(tcp, &options);
    let builder = builder(timeouts, options.streams);
    let protocol = Protocol { builder, router, options, timeouts, drain };
    let server = Arc::new(Server { protocol, acceptor, force: CancellationToken::new() });
    loop {
        let (stream, permit) = tokio::select! {
            accepted = accepting.next() => accepted,
            () = server.protocol.drain.cancelled() => break,
        };
        connections.spawn(server.clone().serve(stream, permit));
    }
    // A client that connected before draining may have sent a request already; closing the port would cut it off.
    while let Some((stream, permit)) = accepting.next().now_or_never() {
        connections.spawn(server.clone().serve(stream, permit));
    }
    drop(accepting);
    connections.close();
    if timeout(timeouts.drain, connections.wait()).await.is_err() {
        tracing::warn!(connections = connections.len(), "requests in flight did not end in time");
        server.force.cancel();
        connections.wait().await;
    }
}

/// State that all connections share.
struct Server {
    protocol: Protocol,
    acceptor: Option<Acceptor>,
    /// Ends connections without finishing their requests.
    force: CancellationToken,
}

impl Server {
    /// Serves one connection to its end. Errors concern its client only.
    async fn serve(self: Arc<Self>, stream: TcpStream, permit: ConnectionPermit) {
        let count = |name: fn(&Counters) -> &'static str| {
            if let Some(counters) = &self.protocol.options.counters {
                metrics::counter!(name(counters)).increment(1);
            }
        };
        count(|counters| counters.opened);
        self.force.run_until_cancelled(self.secure_and_serve(stream, permit)).await;
        count(|counters| counters.closed);
    }

    async fn secure_and_serve(&self, stream: TcpStream, permit: ConnectionPermit) {
        // An answer is one small write; Nagle's algorithm would only delay it.
        if let Err(error) = stream.set_nodelay(true) {
            tracing::debug!(%error, "no-delay cannot be set");
        }
        let Some(acceptor) = &self.acceptor else { return connection(&self.protocol, stream, permit).await };
        let evicted = permit.evicted();
        let secured = tokio::select! {
            secured = acceptor.accept(stream) => secured,
            () = evicted.cancelled() => return,
        };
        match secured {
            Ok(stream) => connection(&self.protocol, stream, permit).await,
            Err(error) => tracing::debug!(%error, "handshake failed"),
        }
    }
}

fn builder(timeouts: Timeouts, streams: u32) -> Builder<TokioExecutor> {
    let mut builder = Builder::new(TokioExecutor::new());
    builder
        .http1()
        .timer(TokioTimer::new())
        .header_read_timeout(timeouts.next_head)
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

/// Accepts connections within the limit.
struct Accepting {
    listener: TcpListener,
    limit: ConnectionLimit,
    port: &'static str,
    exempt: Arc<dyn Fn(IpAddr) -> bool + Send + Sync>,
    refused: Option<&'static str>,
    /// Time of the last warning that the system has no sockets, and the number of failures since.
    warned: Option<Instant>,
    failures: u64,
}

impl Accepting {
    fn new(listener: TcpListener, options: &Options) -> Self {
        Self {
            listener,
            limit: ConnectionLimit::new(options.connections),
            port: options.port,
            exempt: options.exempt.clone(),
            refused: options.counters.map(|counters| counters.refused),
            warned: None,
            failures: 0,
        }
    }

    async fn next(&mut self) -> (TcpStream, ConnectionPermit) {
        loop {
            self.limit.wait_for_capacity().await;
            match self.listener.accept().await {
                Ok((stream, peer)) => {
                    let address = canonical(peer);
                    if let Some(permit) = self.limit.admit(address, (self.exempt)(address)) {
                        return (stream, permit);
                    }
                    // Closed without an answer, which would cost more than the refused connection.
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

/// Whether an error of accepting concerns only a connection that was closed already.
fn is_of_one_connection(error: &io::Error) -> bool {
    use io::ErrorKind::{ConnectionAborted, ConnectionRefused, ConnectionReset, Interrupted};
    matches!(error.kind(), ConnectionAborted | ConnectionRefused | ConnectionReset | Interrupted)
}
