//! The inbox of refused requests: kept in stream REJECTED so that an operator sees what a sender sent, corrects the cause,
//! and retries the request.
//!
//! Best effort, and never at the cost of an answer: a refusal goes into a bounded queue or is dropped and counted, by its
//! [`rate_limiter`]. Only requests to an existing source or to the route of events are kept, and only refusals with a
//! cause that the sender or the operator can correct; failures of the gateway (503), rate limits (429) and unknown sources
//! (404) are only counted. Readers of the inbox see no secrets: `redact` states what is removed.
//!
//! - `entry`: a request as it is kept; `redact`: without secrets; [`rate_limiter`]: how many.
//! - [`keeper`]: from the queue into the stream.
//! - [`retry`]: an entry verified again and taken, when an admin asks.

use std::sync::{Arc, OnceLock};

use http::{StatusCode, request::Parts};
use jiff::Timestamp;
use parking_lot::Mutex;
use tokio::{
    sync::{mpsc, watch},
    time::Instant,
};
use weft_catalog::Snapshot;
use weft_nats::subject;
use weft_proto::v1;

use crate::{admission::Client, http::body::Refusal, http::error::Code, metrics};

mod entry;
pub mod keeper;
pub mod rate_limiter;
mod redact;
pub mod retry;

use keeper::Entry;
use rate_limiter::{Offer, RateLimiter, Sender};
use redact::Secrets;

/// To whom a request was sent.
#[derive(Debug, Clone, Copy)]
pub enum RequestOrigin<'r> {
    /// A webhook of a source.
    Source(&'r v1::Source),
    /// `POST /api/v1/events`, with an API key.
    Events,
}

impl RequestOrigin<'_> {
    fn name(&self) -> &str {
        match self {
            Self::Source(source) => &source.name,
            Self::Events => subject::REJECTED_EVENTS,
        }
    }
}

/// A refused request, as far as it was read.
#[derive(Debug)]
pub struct Refused<'r> {
    /// To whom.
    pub to: RequestOrigin<'r>,
    /// When.
    pub received_at: Timestamp,
    /// The request line and the headers.
    pub head: &'r Parts,
    /// How it was answered, and what was read of its body.
    pub refusal: &'r Refusal,
}

/// Where refused requests are handed in. Closed until [`open`](Self::open).
#[derive(Debug)]
pub struct Inbox {
    queue: OnceLock<mpsc::Sender<Entry>>,
    rate_limiter: Mutex<RateLimiter>,
    catalog: watch::Receiver<Arc<Snapshot>>,
    /// The secrets of the catalog as it was last needed.
    secrets: Mutex<Option<(Arc<Snapshot>, Arc<Secrets>)>>,
}

impl Inbox {
    /// An inbox that knows the secrets of a catalog's sources.
    pub fn new(catalog: watch::Receiver<Arc<Snapshot>>) -> Self {
        let rate_limiter = Mutex::new(RateLimiter::new(u64::MAX));
        Self { queue: OnceLock::new(), rate_limiter, catalog, secrets: Mutex::default() }
    }

    /// From now on kept requests go into this queue, and from there into a stream of `inbox_bytes`. Only the first call
    /// counts.
    pub fn open(&self, queue: mpsc::Sender<Entry>, inbox_bytes: u64) {
        *self.rate_limiter.lock() = RateLimiter::new(inbox_bytes);
        if self.queue.set(queue).is_err() {
            tracing::debug!("inbox was opened before");
        }
    }

    /// Keeps a refused request, if it is one to keep and there is room. Never waits.
    pub fn keep(&self, refused: &Refused<'_>) {
        let code = refused.refusal.problem.code();
        if !is_kept(code) {
            return;
        }
        let client = refused.head.extensions.get::<Client>();
        if client.is_some_and(Client::is_over_limit) {
            return dropped("limit");
        }
        let Some(queue) = self.queue.get() else { return dropped("closed") };
        let source = refused.to.name();
        // Nothing in there can panic half-way through a change.
        let sender = if is_unauthenticated(code) {
            Sender::Unauthenticated(client.and_then(Client::address))
        } else {
            Sender::Authenticated
        };
        let offer = Offer { source, sender, bytes: entry::bytes(refused) };
        let granted = self.rate_limiter.lock().take(offer, Instant::now());
        if !granted {
            return dropped("pace");
        }
        let Ok(place) = queue.try_reserve() else { return dropped("queue") };
        let Some(secrets) = self.secrets() else { return dropped("secrets") };
        place.send(Entry { subject: subject::rejected(source), content: entry::of(refused, &secrets) });
    }

    /// The secrets that no entry may show; `None` where they cannot be searched for, so that nothing is kept.
    fn secrets(&self) -> Option<Arc<Secrets>> {
        let snapshot = Arc::clone(&self.catalog.borrow());
        let mut known = self.secrets.lock();
        if let Some((of, secrets)) = &*known
            && Arc::ptr_eq(of, &snapshot)
        {
            return Some(Arc::clone(secrets));
        }
        let secrets = Secrets::of(snapshot.sources.values().map(|source| &*source.value));
        let secrets = secrets.inspect_err(|error| tracing::error!(%error, "secrets cannot be searched for")).ok()?;
        let secrets = Arc::new(secrets);
        *known = Some((snapshot, Arc::clone(&secrets)));
        Some(secrets)
    }
}

/// Whether the sender or the operator can correct the cause of a refusal.
fn is_kept(code: Code) -> bool {
    matches!(
        code.status(),
        StatusCode::BAD_REQUEST
            | StatusCode::UNAUTHORIZED
            | StatusCode::FORBIDDEN
            | StatusCode::CONFLICT
            | StatusCode::PAYLOAD_TOO_LARGE
            | StatusCode::UNSUPPORTED_MEDIA_TYPE
            | StatusCode::UNPROCESSABLE_ENTITY
    )
}

/// Whether a request that was refused with this code was not authenticated, or may not have been.
fn is_unauthenticated(code: Code) -> bool {
    matches!(
        code,
        Code::SignatureMissing
            | Code::SignatureInvalid
            | Code::TimestampOutOfWindow
            | Code::KeyMissing
            | Code::KeyInvalid
            | Code::BodyTooLarge
            | Code::UnsupportedMediaType
    )
}

/// Counts a refused request that was not kept.
fn dropped(reason: &'static str) {
    ::metrics::counter!(metrics::REJECTED_DROPPED, "reason" => reason).increment(1);
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use bytes::Bytes;
    use http::Request;
    use weft_catalog::Revised;
    use weft_proto::v1::verification::Scheme;

    use super::*;
    use crate::http::error::Problem;

    fn keep(inbox: &Inbox, source: &str, code: Code) {
        let (head, ()) = Request::post("/api/v1/webhooks/shop").body(()).unwrap().into_parts();
        let source = v1::Source { name: source.into(), ..v1::Source::default() };
        inbox.keep(&Refused {
            to: RequestOrigin::Source(&source),
            received_at: Timestamp::UNIX_EPOCH,
            head: &head,
            refusal: &Refusal::from_request(Problem::new(code, "no"), Bytes::from_static(b"{}")),
        });
    }

    /// Refusals with a correctable cause are kept; rate limits and failures of the gateway are not.
    #[tokio::test]
    async fn refusals_are_kept_by_their_code() {
        let inbox = Inbox::new(watch::channel(Arc::default()).1);
        let (queue, mut kept) = mpsc::channel(16);
        inbox.open(queue, 1 << 20);
        for (code, expected) in [
            (Code::MalformedBody, true),
            (Code::SignatureInvalid, true),
            (Code::OutOfScope, true),
            (Code::IdReused, true),
            (Code::BodyTooLarge, true),
            (Code::UnsupportedMediaType, true),
            (Code::SchemaInvalid, true),
            (Code::UnknownSource, false),
            (Code::RateLimited, false),
            (Code::Internal, false),
            (Code::LogUnavailable, false),
            (Code::Starting, false),
        ] {
            keep(&inbox, "shop", code);
            assert_eq!(kept.try_recv().is_ok(), expected, "{}", code.as_str());
        }
    }

    /// A sender may mistake one source for another, so the secret of any source is taken out.
    #[tokio::test]
    async fn secrets_of_other_sources_are_not_kept() {
        let secret = "c2VjcmV0IG9mIGFub3RoZXI";
        let scheme = Scheme::Shopify(v1::ShopifyScheme { secrets: vec![secret.into()] });
        let verification = Some(v1::Verification { scheme: Some(scheme) });
        let other = v1::Source { name: "other".into(), verification, ..v1::Source::default() };
        let sources = BTreeMap::from([("other".to_owned(), Revised { value: Arc::new(other), revision: 1 })]);
        let snapshot = Snapshot { sources, ..Snapshot::default() };
        let inbox = Inbox::new(watch::channel(Arc::new(snapshot)).1);
        let (queue, mut kept) = mpsc::channel(1);
        inbox.open(queue, 1 << 20);
        let (head, ()) = Request::post(format!("/api/v1/webhooks/shop/{secret}")).body(()).unwrap().into_parts();
        let refusal = Refusal::from_request(Problem::new(Code::SignatureInvalid, "no"), secret.into());
        inbox.keep(&Refused {
            to: RequestOrigin::Events,
            received_at: Timestamp::UNIX_EPOCH,
            head: &head,
            refusal: &refusal,
        });
        let entry = kept.try_recv().unwrap().content;
        assert_eq!((&*entry.path, &entry.body[..]), ("/api/v1/webhooks/shop/[redacted]", &b"[redacted]"[..]));
    }

    /// A full queue and a closed inbox cost an answer nothing: what does not fit is gone.
    #[tokio::test(start_paused = true)]
    async fn what_does_not_fit_is_dropped() {
        let inbox = Inbox::new(watch::channel(Arc::default()).1);
        keep(&inbox, "shop", Code::SignatureInvalid);
        let (queue, mut kept) = mpsc::channel(2);
        inbox.open(queue, 1 << 20);
        for source in ["a", "b", "c"] {
            keep(&inbox, source, Code::SignatureInvalid);
        }
        let subjects: Vec<_> = std::iter::from_fn(|| kept.try_recv().ok()).map(|entry| entry.subject).collect();
        assert_eq!(subjects, ["rejected.a", "rejected.b"]);
    }
}
