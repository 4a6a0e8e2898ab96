//! One call on a connection of the shared kind: the transport that the generated client uses.

use std::{
    error::Error,
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU16, Ordering},
    },
    task::{Context, Poll},
};

use bytes::Bytes;
use futures_util::future::BoxFuture;
use http::{Request, Response};
use http_body::{Body, Frame, SizeHint};
use hyper::body::Incoming;
use hyper_util::client::legacy::{
    self,
    connect::{CaptureConnection, capture_connection},
};
use parking_lot::Mutex;
use tower::Service;

use super::super::{NotSent, Stages, clients::Http2Client, connection, failure::Sent};
use crate::ownership::LeaseGuard;

/// The transport of one call.
#[derive(Debug, Clone)]
pub(super) struct Call {
    client: Http2Client<GuardedBody>,
    lease: LeaseGuard,
    progress: Arc<Progress>,
}

/// State of a call, for the judgement of its failure.
#[derive(Debug, Default)]
pub(super) struct Progress {
    captured: Mutex<Option<CaptureConnection>>,
    begun: Arc<AtomicBool>,
    stages: Stages,
    /// Nothing was sent, since the lease had run out.
    is_withheld: Arc<AtomicBool>,
    /// The status of the response's headers; 0: none has come.
    http_status: AtomicU16,
}

impl Call {
    pub fn new(client: Http2Client<GuardedBody>, lease: LeaseGuard, stages: Stages) -> Self {
        Self { client, lease, progress: Arc::new(Progress { stages, ..Progress::default() }) }
    }

    pub fn progress(&self) -> Arc<Progress> {
        Arc::clone(&self.progress)
    }
}

impl Progress {
    /// The request; `None`: none was begun.
    pub fn sent(&self) -> Option<Sent> {
        let captured = self.captured.lock().clone()?;
        Some(Sent { captured, begun: Arc::clone(&self.begun) })
    }

    /// Whether nothing was sent, since the lease had run out. An error of a request's body does not reach its caller.
    pub fn is_withheld(&self) -> bool {
        self.is_withheld.load(Ordering::Relaxed)
    }

    /// The status of the response's headers, where it is another than a gRPC service sends.
    pub fn foreign_status(&self) -> Option<u16> {
        Some(self.http_status.load(Ordering::Relaxed)).filter(|status| !matches!(status, 0 | 200))
    }
}

impl Service<Request<tonic::body::Body>> for Call {
    type Response = Response<Incoming>;
    type Error = legacy::Error;
    type Future = BoxFuture<'static, Result<Self::Response, Self::Error>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Self::Error>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request<tonic::body::Body>) -> Self::Future {
        let (parts, body) = request.into_parts();
        let body = GuardedBody {
            inner: body,
            lease: self.lease.clone(),
            is_checked: false,
            begun: Arc::clone(&self.progress.begun),
            stages: self.progress.stages.clone(),
            is_withheld: Arc::clone(&self.progress.is_withheld),
        };
        let mut request = Request::from_parts(parts, body);
        let captured = capture_connection(&mut request);
        *self.progress.captured.lock() = Some(captured.clone());
        let (answer, progress) = (self.client.request(request), Arc::clone(&self.progress));
        Box::pin(async move {
            let answer = answer.await?;
            progress.stages.answered();
            progress.http_status.store(answer.status().as_u16(), Ordering::Relaxed);
            if let Some(state) = connection::state(&captured) {
                state.answered();
            }
            Ok(answer)
        })
    }
}

/// A request body that checks the lease before its first byte, after all waits.
#[derive(Debug)]
pub(in super::super) struct GuardedBody {
    inner: tonic::body::Body,
    lease: LeaseGuard,
    is_checked: bool,
    /// Set as soon as there is a connection to write to.
    begun: Arc<AtomicBool>,
    stages: Stages,
    is_withheld: Arc<AtomicBool>,
}

impl Body for GuardedBody {
    type Data = Bytes;
    type Error = Box<dyn Error + Send + Sync>;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Self::Error>>> {
        if !self.begun.swap(true, Ordering::Relaxed) {
            self.stages.connected();
        }
        if !self.is_checked && !self.lease.may_attempt() {
            self.is_withheld.store(true, Ordering::Relaxed);
            return Poll::Ready(Some(Err(NotSent.into())));
        }
        self.is_checked = true;
        Pin::new(&mut self.inner).poll_frame(cx).map_err(Into::into)
    }

    fn is_end_stream(&self) -> bool {
        self.inner.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.inner.size_hint()
    }
}
