//! The inbox of refused requests: kept in stream REJECTED so that an operator sees what a sender sent, mends the cause,
//! and takes it after all.
//!
//! Best effort, and never at the cost of an answer: a refusal goes into a bounded queue or is dropped and counted, at most
//! [`PER_SECOND`](pace::PER_SECOND) a second of each source. Only requests to a source that there is are kept, and only
//! what the sender could do better; what is ours (503), a limit (429) and what nobody could be meant by (404) is only
//! counted. Whoever reads the inbox sees no secret: `redact` says what is taken out.
//!
//! - `entry`: a request as it is kept; `redact`: without secrets; [`pace`]: how many.
//! - [`keeper`]: from the queue into the stream.
//! - [`retry`]: an entry verified again and taken, when an admin asks.

use std::sync::{Mutex, OnceLock, PoisonError};

use http::{StatusCode, request::Parts};
use jiff::Timestamp;
use tokio::{sync::mpsc, time::Instant};
use weft_nats::subject;
use weft_proto::v1;

use crate::{body::Refusal, error::Code, metrics};

mod entry;
pub mod keeper;
pub mod pace;
mod redact;
pub mod retry;

use keeper::Entry;
use pace::Pace;

/// The name under which refused requests to `POST /api/v1/events` are kept. No source can have it.
const EVENTS: &str = "_events";

/// To whom a request was sent.
#[derive(Debug, Clone, Copy)]
pub enum Addressee<'r> {
    /// A webhook of a source.
    Source(&'r v1::Source),
    /// `POST /api/v1/events`, with an API key.
    Events,
}

impl Addressee<'_> {
    fn name(&self) -> &str {
        match self {
            Self::Source(source) => &source.name,
            Self::Events => EVENTS,
        }
    }
}

/// A refused request, as far as it was read.
#[derive(Debug)]
pub struct Refused<'r> {
    /// To whom.
    pub to: Addressee<'r>,
    /// When.
    pub received_at: Timestamp,
    /// Its head.
    pub head: &'r Parts,
    /// How it was answered, and what was read of its body.
    pub refusal: &'r Refusal,
}

/// Where refused requests are handed in. Closed until [`open`](Self::open).
#[derive(Debug, Default)]
pub struct Inbox {
    queue: OnceLock<mpsc::Sender<Entry>>,
    pace: Mutex<Pace>,
}

impl Inbox {
    /// From now on what is kept goes into this queue. Only the first call counts.
    pub fn open(&self, queue: mpsc::Sender<Entry>) {
        if self.queue.set(queue).is_err() {
            tracing::debug!("inbox was opened before");
        }
    }

    /// Keeps a refused request, if it is one to keep and there is room. Never waits.
    pub fn keep(&self, refused: &Refused<'_>) {
        if !is_kept(refused.refusal.problem.code()) {
            return;
        }
        let Some(queue) = self.queue.get() else { return dropped("closed") };
        let source = refused.to.name();
        // Nothing in there can panic half-way through a change.
        let granted = self.pace.lock().unwrap_or_else(PoisonError::into_inner).take(source, Instant::now());
        if !granted {
            return dropped("pace");
        }
        let Ok(place) = queue.try_reserve() else { return dropped("queue") };
        place.send(Entry { subject: subject::rejected(source), content: entry::of(refused) });
    }
}

/// Whether a refusal is the sender's to mend.
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

/// Counts a refused request that was not kept.
fn dropped(reason: &'static str) {
    ::metrics::counter!(metrics::REJECTED_DROPPED, "reason" => reason).increment(1);
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;
    use http::Request;

    use super::*;
    use crate::error::Problem;

    fn keep(inbox: &Inbox, source: &str, code: Code) {
        let (head, ()) = Request::post("/api/v1/webhooks/shop").body(()).unwrap().into_parts();
        let source = v1::Source { name: source.into(), ..v1::Source::default() };
        inbox.keep(&Refused {
            to: Addressee::Source(&source),
            received_at: Timestamp::UNIX_EPOCH,
            head: &head,
            refusal: &Refusal::of_whole(Problem::new(code, "no"), Bytes::from_static(b"{}")),
        });
    }

    /// What is a sender's to mend is kept; a limit's and our own refusals are not.
    #[tokio::test]
    async fn refusals_are_kept_by_their_code() {
        let inbox = Inbox::default();
        let (queue, mut kept) = mpsc::channel(16);
        inbox.open(queue);
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

    /// A full queue and a closed inbox cost an answer nothing: what does not fit is gone.
    #[tokio::test(start_paused = true)]
    async fn what_does_not_fit_is_dropped() {
        let inbox = Inbox::default();
        keep(&inbox, "shop", Code::SignatureInvalid);
        let (queue, mut kept) = mpsc::channel(2);
        inbox.open(queue);
        for source in ["a", "b", "c"] {
            keep(&inbox, source, Code::SignatureInvalid);
        }
        let subjects: Vec<_> = std::iter::from_fn(|| kept.try_recv().ok()).map(|entry| entry.subject).collect();
        assert_eq!(subjects, ["rejected.a", "rejected.b"]);
    }
}
