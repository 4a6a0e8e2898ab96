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
        if !self.lease.may_attempt() {
            return Poll::Ready(Some(Err(NotSent)));
        }
        Poll::Ready((!bytes.is_empty()).then(|| Ok(Frame::data(bytes))))
    }

    fn is_end_stream(&self) -> bool {
        self.bytes.is_none()
    }

    /// Unknown for an empty body, which is then sent in chunks: one of a known length of 0 is never polled, so that the lease
    /// would not be checked, and a request that was written would count as one that was not.
    fn size_hint(&self) -> SizeHint {
        match &self.bytes {
            Some(bytes) if !bytes.is_empty() => SizeHint::with_exact(bytes.len() as u64),
            _ => SizeHint::new(),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::{future::poll_fn, time::Duration};

    use http_body_util::BodyExt as _;

    use super::*;

    /// P3: an event without data is sent only under the lease, too. Of a body with a known length of 0 nothing is asked.
    #[tokio::test]
    async fn an_empty_body_is_asked_for_as_well() {
        let begun = Arc::<AtomicBool>::default();
        let body = |lease| LeaseGuardedBody::new(Bytes::new(), lease, Arc::clone(&begun));
        let allowed = body(LeaseGuard::unlimited());
        assert_eq!((allowed.is_end_stream(), allowed.size_hint().exact()), (false, None));
        assert!(allowed.collect().await.unwrap().to_bytes().is_empty());
        assert!(begun.load(Ordering::Relaxed), "it counts as sent");
        let (_, until) = tokio::sync::watch::channel(Duration::ZERO);
        let mut late = body(LeaseGuard::new(until, tokio_util::sync::CancellationToken::new()));
        let frame = tokio::time::timeout(Duration::from_secs(1), poll_fn(|cx| Pin::new(&mut late).poll_frame(cx)));
        assert!(frame.await.unwrap().unwrap().is_err());
    }
}
