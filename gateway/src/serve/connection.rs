//! One connection, from its first byte to its last.

use std::{
    convert::Infallible,
    pin::pin,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
};

use http::{HeaderValue, Version, header};
use hyper::body::Incoming;
use hyper_util::rt::TokioIo;
use tokio::{
    io::{AsyncRead, AsyncWrite},
    sync::Notify,
    time::{Instant, sleep},
};
use tower::ServiceExt as _;

use super::Server;
use crate::admission::Peer;

/// The requests that a connection has begun.
#[derive(Debug, Default)]
struct Begun {
    count: AtomicU64,
    first: Notify,
}

impl Begun {
    fn add(&self) {
        if self.count.fetch_add(1, Ordering::Relaxed) == 0 {
            self.first.notify_one();
        }
    }

    fn count(&self) -> u64 {
        self.count.load(Ordering::Relaxed)
    }
}

/// Serves until the client has gone, has said nothing for too long, or the server drains and its last answer is written.
pub(super) async fn connection<S>(server: &Server, stream: S, peer: Peer)
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let begun = Arc::new(Begun::default());
    let (beginning, router, drain) = (begun.clone(), server.router.clone(), server.drain.clone());
    let service = hyper::service::service_fn(move |mut request: http::Request<Incoming>| {
        beginning.add();
        let speaks_1 = request.version() < Version::HTTP_2;
        request.extensions_mut().insert(peer);
        let (answering, drain) = (router.clone().oneshot(request), drain.clone());
        async move {
            let mut response = answering.await?;
            // HTTP/2 says it in a frame of its own.
            if speaks_1 && drain.is_cancelled() {
                response.headers_mut().insert(header::CONNECTION, HeaderValue::from_static("close"));
            }
            Ok::<_, Infallible>(response)
        }
    });
    let mut connection = pin!(server.builder.serve_connection(TokioIo::new(stream), service));
    let patience = server.patience;
    let mut look = pin!(sleep(patience.first_head));
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
                look.as_mut().reset(Instant::now() + patience.last_head);
            }
            () = begun.first.notified(), if draining && !closing => {}
            () = look.as_mut(), if !closing => {
                let count = begun.count();
                if count == 0 {
                    tracing::debug!("connection said nothing");
                    return;
                }
                // No request since the last look. HTTP/1.1 has its own clock; an HTTP/2 connection would be kept as long as it
                // answers pings. What is still being answered is finished.
                let idle = count == seen;
                seen = count;
                if idle {
                    closing = true;
                    connection.as_mut().graceful_shutdown();
                }
                look.as_mut().reset(Instant::now() + patience.next_head);
            }
        }
        if draining && !closing && begun.count() > 0 {
            closing = true;
            connection.as_mut().graceful_shutdown();
        }
    }
}
