//! One connection, from its first byte to its last.

use std::{
    convert::Infallible,
    pin::{Pin, pin},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    task::{Context, Poll},
};

use axum::{Router, body::Body};
use bytes::Bytes;
use http::{Request, Version};
use http_body::{Frame, SizeHint};
use hyper::body::Incoming;
use hyper_util::{
    rt::{TokioExecutor, TokioIo},
    server::conn::auto::Builder,
};
use tokio::{
    io::{AsyncRead, AsyncWrite},
    sync::Notify,
    time::{Instant, sleep},
};
use tokio_util::sync::CancellationToken;
use tower::ServiceExt as _;

use crate::{
    Peer, RequestLimit,
    connection_limit::{ConnectionPermit, InFlight},
    options::{Options, Timeouts},
    request,
    transport::{Transport, Wire},
};

/// How connections are served, after their handshake.
pub(crate) struct Protocol {
    pub builder: Builder<TokioExecutor>,
    pub router: Router,
    pub options: Options,
    pub timeouts: Timeouts,
    /// Finishes the requests in flight and begins no more.
    pub drain: CancellationToken,
}

/// The number of requests that a connection has begun.
#[derive(Debug, Default)]
struct RequestCount {
    count: AtomicU64,
    first: Notify,
}

impl RequestCount {
    fn add(&self) {
        if self.count.fetch_add(1, Ordering::Relaxed) == 0 {
            self.first.notify_one();
        }
    }

    fn count(&self) -> u64 {
        self.count.load(Ordering::Relaxed)
    }
}

/// A request's body, which reports on its drop if it was not read to its end.
struct RequestBody {
    body: Incoming,
    wire: Arc<Wire>,
}

/// A response's body, which keeps its request in flight until it has been sent.
struct ResponseBody {
    body: Body,
    _in_flight: InFlight,
}

/// Serves until the client has disconnected, was silent for too long, or the server drains and its last answer is written.
pub(crate) async fn connection<S>(server: &Protocol, stream: S, permit: ConnectionPermit)
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let begun = Arc::new(RequestCount::default());
    let evicted = permit.evicted();
    let streams = RequestLimit::default();
    // Many clients share a proxy's connection.
    if (server.options.exempt)(permit.address()) {
        streams.trust();
    }
    let wire = Arc::new(Wire::new(permit, server.options.answer.clone(), server.timeouts.linger));
    let service = {
        let (begun, wire) = (begun.clone(), wire.clone());
        let (router, drain) = (server.router.clone(), server.drain.clone());
        hyper::service::service_fn(move |request: Request<Incoming>| {
            begun.add();
            let (in_flight, drain) = (wire.permit().begin_request(), drain.clone());
            let is_http_1 = request.version() < Version::HTTP_2;
            let answering = admit(&wire, &streams, request).map(|request| router.clone().oneshot(request));
            let wire = wire.clone();
            async move {
                let (mut response, malformed) = match answering {
                    Ok(answering) => (answering.await?, false),
                    Err(malformed) => (wire.answer(malformed).map(Body::from), true),
                };
                // HTTP/2 has a separate frame for it.
                if is_http_1 && (malformed || drain.is_cancelled()) {
                    request::close(&mut response);
                }
                Ok::<_, Infallible>(response.map(|body| ResponseBody { body, _in_flight: in_flight }))
            }
        })
    };
    let stream = TokioIo::new(Transport::new(stream, wire.clone()));
    let mut connection = pin!(server.builder.serve_connection(stream, service));
    let timeouts = server.timeouts;
    let mut check = pin!(sleep(timeouts.first_head));
    let mut seen = 0;
    let mut draining = false;
    let mut closing = false;
    loop {
        tokio::select! {
            ended = connection.as_mut() => {
                if let Err(error) = ended {
                    tracing::debug!(error, "connection ended");
                }
                return;
            }
            () = server.drain.cancelled(), if !draining => {
                draining = true;
                check.as_mut().reset(Instant::now() + timeouts.last_head);
            }
            () = begun.first.notified(), if draining && !closing => {}
            () = evicted.cancelled(), if !closing => {
                // A request may have begun in the meantime; it is answered.
                if wire.permit().is_idle() {
                    return;
                }
                closing = true;
                connection.as_mut().graceful_shutdown();
            }
            () = check.as_mut(), if !closing => {
                let count = begun.count();
                if count == 0 {
                    tracing::debug!("connection without a request closed");
                    return;
                }
                // No request since the last check. HTTP/1.1 has a time-out in hyper; an HTTP/2 connection would be kept as long
                // as it answers pings. Requests in flight are finished.
                let idle = count == seen && wire.permit().is_idle();
                seen = count;
                if idle {
                    closing = true;
                    connection.as_mut().graceful_shutdown();
                }
                check.as_mut().reset(Instant::now() + timeouts.next_head);
            }
        }
        if draining && !closing && begun.count() > 0 {
            closing = true;
            connection.as_mut().graceful_shutdown();
        }
    }
}

/// The request for the routes, if it may reach one.
fn admit(
    wire: &Arc<Wire>,
    streams: &RequestLimit,
    request: Request<Incoming>,
) -> Result<Request<Body>, request::Malformed> {
    let conflict = wire.next_conflict();
    if let Err(malformed) = request::check(&request, conflict) {
        wire.leave_unread();
        return Err(malformed);
    }
    let wire = Arc::clone(wire);
    let peer = Peer(wire.permit().address());
    let mut request = request.map(|body| Body::new(RequestBody { body, wire }));
    request.extensions_mut().insert(peer);
    request.extensions_mut().insert(streams.clone());
    Ok(request)
}

impl http_body::Body for RequestBody {
    type Data = Bytes;
    type Error = hyper::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, hyper::Error>>> {
        Pin::new(&mut self.body).poll_frame(context)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

impl Drop for RequestBody {
    fn drop(&mut self) {
        if !http_body::Body::is_end_stream(&self.body) {
            self.wire.leave_unread();
        }
    }
}

impl http_body::Body for ResponseBody {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, axum::Error>>> {
        Pin::new(&mut self.body).poll_frame(context)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}
