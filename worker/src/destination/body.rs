//! A request body that checks the lease before its first byte.
//!
//! Between the start of an attempt and the first byte of its request there may be a lookup, a slow connection, a handshake,
//! and a suspension of the process. So the lease is checked after all waits: a client polls the body when the connection is
//! ready, before it writes anything (HTTP/1.1), or before anything that is an event (HTTP/2, after the headers).

use std::{
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    task::{Context, Poll},
};

use bytes::Bytes;
use http_body::{Body, Frame, SizeHint};

use super::NotSent;
use crate::ownership::LeaseGuard;

/// A body of one chunk.
#[derive(Debug)]
pub(super) struct LeaseGuardedBody {
    bytes: Option<Bytes>,
    lease: LeaseGuard,
    /// Set as soon as there is a connection to write to.
    begun: Arc<AtomicBool>,
}

impl LeaseGuardedBody {
    pub fn new(bytes: Bytes, lease: LeaseGuard, begun: Arc<AtomicBool>) -> Self {
        Self { bytes: Some(bytes), lease, begun }
    }
}

impl Body for LeaseGuardedBody {
    type Data = Bytes;
    type Error = NotSent;

    fn poll_frame(mut self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, NotSent>>> {
        self.begun.store(true, Ordering::Relaxed);
        let Some(bytes) = self.bytes.take() else { return Poll::Ready(None) };
        let frame = if self.lease.may_attempt() { Ok(Frame::data(bytes)) } else { Err(NotSent) };
        Poll::Ready(Some(frame))
    }

    fn is_end_stream(&self) -> bool {
        self.bytes.is_none()
    }

    fn size_hint(&self) -> SizeHint {
        SizeHint::with_exact(self.bytes.as_ref().map_or(0, |bytes| bytes.len() as u64))
    }
}
