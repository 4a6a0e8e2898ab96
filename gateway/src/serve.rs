//! HTTP connections: accepted, secured, served as HTTP/1.1 or HTTP/2, drained.
//!
//! - `places`: how many connections there may be, in all and from one address.
//! - `connection`: one of them, from its first byte to its last.

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
    time::{sleep, timeout},
};
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use weft_tls::{Acceptor, Listener};

use crate::{
    admission::{Peer, TrustedProxies},
    metrics,
};

mod connection;
mod places;
#[cfg(test)]
mod tests;

use connection::connection;
use places::{Place, Places};

/// The most that a request's head may take, in bytes.
const HEAD_BYTES_MAX: u32 = 64 * 1024;
/// Requests at a time on one HTTP/2 connection.
const STREAMS_MAX: u32 = 256;
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

/// How long clients may take.
#[derive(Debug, Clone, Copy)]
struct Patience {
    /// From a connection to its first request. Whoever connects and says nothing holds no place for longer.
    first_head: Duration,
    /// For a later request's head, and so between requests. Above what senders keep an idle connection for, mostly 60 s
    /// or less, so that seldom both ends act at once.
    next_head: Duration,
    /// For the first request of a connection that was opened just before draining began: it may be on its way already.
    last_head: Duration,
    /// For the requests in flight once draining has begun: longer than any of them waits for the log.
    drain: Duration,
}

impl Default for Patience {
    fn default() -> Self {
        Self {
            first_head: Duration::from_secs(10),
            next_head: Duration::from_secs(75),
            last_head: Duration::from_millis(500),
            drain: Duration::from_secs(15),
        }
    }
}

/// Serves until `drain`; then accepts no more, lets the requests in flight end, and returns. Each request has its [`Peer`]
/// among its extensions. `proxies` may have as many connections as there are places; other addresses only a part.
pub async fn serve(listener: Listener, router: Router, proxies: TrustedProxies, drain: CancellationToken) {
    serve_with(Patience::default(), listener, router, proxies, drain).await;
}

async fn serve_with(
    patience: Patience,
    listener: Listener,
    router: Router,
    proxies: TrustedProxies,
    drain: CancellationToken,
) {
    let Listener { tcp, acceptor, .. } = listener;
    let connections = TaskTracker::new();
    let places = Places::new(proxies);
    let server =
        Server { builder: builder(patience), router, acceptor, patience, drain, force: CancellationToken::new() };
    let server = Arc::new(server);
    loop {
        let accepted = tokio::select! {
            accepted = accept(&tcp, &places) => accepted,
            () = server.drain.cancelled() => break,
        };
        let Some((stream, place)) = accepted else { break };
        connections.spawn(server.clone().serve(stream, place));
    }
    // Who has connected before the end may have sent a request already; closing the port would cut it off.
    while let Some(Some((stream, place))) = accept(&tcp, &places).now_or_never() {
        connections.spawn(server.clone().serve(stream, place));
    }
    drop(tcp);
    connections.close();
    if timeout(patience.drain, connections.wait()).await.is_err() {
        tracing::warn!(connections = connections.len(), "requests in flight did not end in time");
        server.force.cancel();
        connections.wait().await;
    }
}

/// What all connections share.
struct Server {
    builder: Builder<TokioExecutor>,
    router: Router,
    acceptor: Option<Acceptor>,
    patience: Patience,
    /// Finish what is in flight.
    drain: CancellationToken,
    /// Finish nothing any more.
    force: CancellationToken,
}

impl Server {
    /// Serves one connection to its end. One that ends in an error has told its client all there is to tell.
    async fn serve(self: Arc<Self>, stream: TcpStream, place: Place) {
        ::metrics::counter!(metrics::CONNECTIONS_OPENED).increment(1);
        self.force.run_until_cancelled(self.secure_and_serve(stream, Peer(place.address()))).await;
        ::metrics::counter!(metrics::CONNECTIONS_CLOSED).increment(1);
    }

    async fn secure_and_serve(&self, stream: TcpStream, peer: Peer) {
        // An answer is one small write; waiting for more would only delay it.
        if let Err(error) = stream.set_nodelay(true) {
            tracing::debug!(%error, "no-delay cannot be set");
        }
        match &self.acceptor {
            None => connection(self, stream, peer).await,
            Some(acceptor) => match acceptor.accept(stream).await {
                Ok(stream) => connection(self, stream, peer).await,
                Err(error) => tracing::debug!(%error, "handshake failed"),
            },
        }
    }
}

fn builder(patience: Patience) -> Builder<TokioExecutor> {
    let mut builder = Builder::new(TokioExecutor::new());
    builder
        .http1()
        .timer(TokioTimer::new())
        .header_read_timeout(patience.next_head)
        .max_buf_size(HEAD_BYTES_MAX as usize)
        .http2()
        .timer(TokioTimer::new())
        .keep_alive_interval(PING_INTERVAL)
        .keep_alive_timeout(PING_TIMEOUT)
        .max_header_list_size(HEAD_BYTES_MAX)
        .max_pending_accept_reset_streams(RESET_STREAMS_MAX)
        .max_local_error_reset_streams(ERROR_STREAMS_MAX)
        .max_concurrent_streams(STREAMS_MAX);
    builder
}

/// The next connection that has a place; `None` never comes while places are given out at all.
async fn accept(listener: &TcpListener, places: &Places) -> Option<(TcpStream, Place)> {
    let any = places.any().await?;
    loop {
        match listener.accept().await {
            Ok((stream, peer)) => match places.of(canonical(peer)) {
                Some(of_address) => return Some((stream, Place::new(any, of_address))),
                // Closed without a word: an answer would cost more than the refused connection.
                None => ::metrics::counter!(metrics::CONNECTIONS_REFUSED).increment(1),
            },
            Err(error) if is_of_one_connection(&error) => {}
            Err(error) => {
                tracing::warn!(%error, "connection cannot be accepted");
                sleep(ACCEPT_PAUSE).await;
            }
        }
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
