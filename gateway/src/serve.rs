//! HTTP connections: accepted, served as HTTP/1.1 or HTTP/2, drained.

use std::{
    io,
    pin::pin,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use axum::Router;
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
/// How long a new connection may take to its first request. Whoever connects and says nothing holds no place for longer.
const FIRST_HEAD_TIMEOUT: Duration = Duration::from_secs(10);
/// How long a connection may be idle between requests, and a later request's head may take. Above what senders keep an
/// idle connection for, mostly 60 s or less, so that seldom both ends act at once.
const NEXT_HEAD_TIMEOUT: Duration = Duration::from_secs(75);
/// The most that a request's head may take, in bytes.
const HEAD_BYTES_MAX: usize = 64 * 1024;
/// Requests at a time on one HTTP/2 connection.
const STREAMS_MAX: u32 = 256;
/// How often a silent HTTP/2 connection is asked whether it is alive.
const PING_INTERVAL: Duration = Duration::from_secs(30);
/// How long requests in flight may take to end once draining has begun: longer than any of them waits for the log.
const DRAIN_TIMEOUT: Duration = Duration::from_secs(15);
/// How long accepting rests when the system has no more sockets to give.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// Serves until `drain`; then accepts no more, lets the requests in flight end, and returns.
pub async fn serve(listener: TcpListener, router: Router, drain: CancellationToken) {
    let connections = TaskTracker::new();
    let force = CancellationToken::new();
    let places = Arc::new(Semaphore::new(CONNECTIONS_MAX));
    let builder = Arc::new(builder());
    loop {
        let accepted = tokio::select! {
            accepted = accept(&listener, &places) => accepted,
            () = drain.cancelled() => break,
        };
        let Some((stream, place)) = accepted else { break };
        let (builder, router) = (builder.clone(), router.clone());
        let (drain, force) = (drain.clone(), force.clone());
        // A connection that ends in an error has told its client all there is to tell.
        connections.spawn(async move {
            ::metrics::counter!(metrics::CONNECTIONS_OPENED).increment(1);
            connection(&builder, stream, router, &drain, &force).await;
            ::metrics::counter!(metrics::CONNECTIONS_CLOSED).increment(1);
            drop(place);
        });
    }
    drop(listener);
    connections.close();
    if timeout(DRAIN_TIMEOUT, connections.wait()).await.is_err() {
        tracing::warn!(connections = connections.len(), "requests in flight did not end in time");
        force.cancel();
        connections.wait().await;
    }
}

fn builder() -> Builder<TokioExecutor> {
    let mut builder = Builder::new(TokioExecutor::new());
    builder
        .http1()
        .timer(TokioTimer::new())
        .header_read_timeout(NEXT_HEAD_TIMEOUT)
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
) -> Option<(TcpStream, tokio::sync::OwnedSemaphorePermit)> {
    let place = places.clone().acquire_owned().await.ok()?;
    loop {
        match listener.accept().await {
            Ok((stream, _)) => return Some((stream, place)),
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
    router: Router,
    drain: &CancellationToken,
    force: &CancellationToken,
) {
    // An answer is one small write; waiting for more would only delay it.
    if let Err(error) = stream.set_nodelay(true) {
        tracing::debug!(%error, "no-delay cannot be set");
    }
    let spoken = Arc::new(AtomicBool::new(false));
    let speaking = spoken.clone();
    let service = hyper::service::service_fn(move |request: http::Request<Incoming>| {
        speaking.store(true, Ordering::Relaxed);
        router.clone().oneshot(request)
    });
    let mut connection = pin!(builder.serve_connection(TokioIo::new(stream), service));
    let mut patience = pin!(sleep(FIRST_HEAD_TIMEOUT));
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
            () = force.cancelled() => return,
        }
    }
}
