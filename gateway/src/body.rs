//! A request's body in memory, within three bounds: its size, the time it may take, and what all bodies together may hold.
//!
//! Anybody may open a connection, so nothing is set aside for what a sender only announces: each piece counts against the
//! budget when it is there.

use std::{sync::Arc, time::Duration};

use axum::body::Body;
use bytes::{Bytes, BytesMut};
use http::{HeaderMap, header};
use http_body_util::BodyExt as _;
use tokio::{
    sync::{OwnedSemaphorePermit, Semaphore},
    time::{Instant, timeout_at},
};

use crate::error::{Code, Problem};

/// The most that all bodies in memory may hold, in bytes: a few hundred of the default size, so that a gateway lives in
/// 1 GiB. At least [`BUDGET_BODIES_MIN`] of the largest size fit whatever that is.
const BUDGET_BYTES: usize = 256 * 1024 * 1024;
/// See [`BUDGET_BYTES`].
const BUDGET_BODIES_MIN: usize = 32;
/// How long what is left of a body that is too large is read and thrown away, so that a sender who writes before it
/// reads gets to see the answer; and at most as many bytes as a body may have.
const DISCARD_TIME: Duration = Duration::from_secs(1);

/// What a body may take.
#[derive(Debug, Clone, Copy)]
pub struct Limits {
    /// Bytes; one that is exactly as large is taken.
    pub bytes_max: usize,
    /// From its first byte to its last.
    pub time: Duration,
}

/// Reads bodies. Cheap to clone; clones share the budget.
#[derive(Debug, Clone)]
pub struct Reader {
    limits: Limits,
    budget: Arc<Semaphore>,
}

/// A body, and its share of the budget for as long as this lives.
#[derive(Debug)]
pub struct Held {
    /// The body.
    pub bytes: Bytes,
    _share: Option<OwnedSemaphorePermit>,
}

/// A refusal, and what had been read of the body by then.
#[derive(Debug)]
pub struct Refusal {
    /// The answer.
    pub problem: Problem,
    /// The beginning of the body, or all of it.
    pub begun: Bytes,
    /// Bytes of all of it as far as they are known: announced, or seen.
    pub size: u64,
}

impl Refusal {
    /// Of a request whose body has not been looked at.
    pub fn of_head(problem: Problem, headers: &HeaderMap) -> Self {
        Self { problem, begun: Bytes::new(), size: announced(headers).unwrap_or_default() }
    }

    /// Of a request whose body has been read to its end.
    pub fn of_whole(problem: Problem, body: Bytes) -> Self {
        Self { problem, size: body.len() as u64, begun: body }
    }
}

impl From<Refusal> for Problem {
    fn from(refusal: Refusal) -> Self {
        refusal.problem
    }
}

impl Reader {
    /// A reader with a budget of its own.
    pub fn new(limits: Limits) -> Self {
        let budget = BUDGET_BYTES.max(limits.bytes_max.saturating_mul(BUDGET_BODIES_MIN)).min(Semaphore::MAX_PERMITS);
        Self { limits, budget: Arc::new(Semaphore::new(budget)) }
    }

    /// The most bytes of one body.
    pub fn bytes_max(&self) -> usize {
        self.limits.bytes_max
    }

    /// Reads a body to its end.
    ///
    /// # Errors
    ///
    /// [`Refusal`], with a problem `body_too_large`, `request_timeout`, `overloaded`, or `malformed_body` when the sender
    /// stops in the middle.
    pub async fn read(&self, headers: &HeaderMap, body: Body) -> Result<Held, Refusal> {
        self.read_within(None, headers, body).await
    }

    /// As [`read`](Self::read), where the sender may be told to stay below what others may send.
    ///
    /// # Errors
    ///
    /// As [`read`](Self::read).
    pub async fn read_within(
        &self,
        bytes_max: Option<usize>,
        headers: &HeaderMap,
        mut body: Body,
    ) -> Result<Held, Refusal> {
        let bytes_max = bytes_max.map_or(self.limits.bytes_max, |own| own.min(self.limits.bytes_max));
        let too_large = || Problem::new(Code::BodyTooLarge, format!("the body is larger than {bytes_max} bytes"));
        let deadline = Instant::now() + self.limits.time;
        let announced = announced(headers);
        let mut gathered = Gathered::default();
        if announced.is_some_and(|length| length > bytes_max as u64) {
            // A sender that waits for our leave has sent nothing yet.
            if !headers.contains_key(header::EXPECT) {
                discard(body, bytes_max).await;
            }
            return Err(gathered.refuse(too_large(), announced));
        }
        let mut share: Option<OwnedSemaphorePermit> = None;
        loop {
            let frame = match timeout_at(deadline, body.frame()).await {
                Ok(Some(Ok(frame))) => frame,
                Ok(None) => return Ok(Held { bytes: gathered.finish(), _share: share }),
                Ok(Some(Err(_))) => {
                    let problem = Problem::new(Code::MalformedBody, "the body ended before its end");
                    return Err(gathered.refuse(problem, announced));
                }
                Err(_) => {
                    let detail = format!("the body did not arrive within {}s; send again", self.limits.time.as_secs());
                    return Err(gathered.refuse(Problem::new(Code::RequestTimeout, detail), announced));
                }
            };
            let Ok(piece) = frame.into_data() else { continue };
            if gathered.len() + piece.len() > bytes_max {
                discard(body, bytes_max).await;
                let seen = gathered.len() + piece.len();
                return Err(gathered.refuse(too_large(), announced.or(Some(seen as u64))));
            }
            let granted = match self.grant(piece.len()) {
                Ok(granted) => granted,
                Err(problem) => return Err(gathered.refuse(problem, announced)),
            };
            match &mut share {
                Some(share) => share.merge(granted),
                None => share = Some(granted),
            }
            gathered.push(piece);
        }
    }

    /// A share of the budget, at once or not at all: a sender that waits would hold what it has sent already.
    fn grant(&self, bytes: usize) -> Result<OwnedSemaphorePermit, Problem> {
        let overloaded = || Problem::new(Code::Overloaded, "too many requests at once; send again");
        let bytes = u32::try_from(bytes).map_err(|_| overloaded())?;
        self.budget.clone().try_acquire_many_owned(bytes).map_err(|_| overloaded())
    }
}

/// Reads and throws away what is left of a body, within [`DISCARD_TIME`] and `left` bytes.
async fn discard(mut body: Body, mut left: usize) {
    let deadline = Instant::now() + DISCARD_TIME;
    while let Ok(Some(Ok(frame))) = timeout_at(deadline, body.frame()).await {
        let Some(rest) = left.checked_sub(frame.data_ref().map_or(0, Bytes::len)) else { return };
        left = rest;
    }
}

/// The size that a request says its body has.
fn announced(headers: &HeaderMap) -> Option<u64> {
    headers.get(header::CONTENT_LENGTH)?.to_str().ok()?.parse().ok()
}

/// The pieces of a body; one that came in one piece is not copied.
#[derive(Default)]
struct Gathered {
    only: Bytes,
    many: BytesMut,
}

impl Gathered {
    fn len(&self) -> usize {
        self.only.len() + self.many.len()
    }

    fn push(&mut self, piece: Bytes) {
        if self.len() == 0 {
            self.only = piece;
            return;
        }
        if self.many.is_empty() {
            self.many.extend_from_slice(&std::mem::take(&mut self.only));
        }
        self.many.extend_from_slice(&piece);
    }

    fn refuse(self, problem: Problem, size: Option<u64>) -> Refusal {
        let seen = self.len() as u64;
        Refusal { problem, begun: self.finish(), size: size.unwrap_or(seen).max(seen) }
    }

    fn finish(self) -> Bytes {
        if self.many.is_empty() { self.only } else { self.many.freeze() }
    }
}

#[cfg(test)]
mod tests {
    use std::convert::Infallible;

    use futures_util::{StreamExt as _, stream};

    use super::*;

    fn reader(bytes_max: usize) -> Reader {
        Reader::new(Limits { bytes_max, time: Duration::from_secs(5) })
    }

    fn pieces(pieces: &[&'static str]) -> Body {
        let pieces: Vec<_> =
            pieces.iter().map(|piece| Ok::<_, Infallible>(Bytes::from_static(piece.as_bytes()))).collect();
        Body::from_stream(stream::iter(pieces))
    }

    #[tokio::test]
    async fn exactly_the_limit_is_taken_and_one_byte_more_is_not() {
        let reader = reader(6);
        for (parts, whole) in [(&["abcdef"][..], "abcdef"), (&["ab", "", "cd", "ef"], "abcdef"), (&[], "")] {
            assert_eq!(reader.read(&HeaderMap::new(), pieces(parts)).await.unwrap().bytes, whole);
        }
        for parts in [&["abcdefg"][..], &["abc", "def", "g"]] {
            let refusal = reader.read(&HeaderMap::new(), pieces(parts)).await.unwrap_err();
            assert_eq!((refusal.problem.code(), refusal.size), (Code::BodyTooLarge, 7));
        }
    }

    /// A source may be held below what the gateway takes, never above it.
    #[tokio::test]
    async fn the_lower_limit_holds() {
        let reader = reader(6);
        for (own, limit) in [(None, 6), (Some(3), 3), (Some(9), 6)] {
            for (length, taken) in [(limit, true), (limit + 1, false)] {
                let body = Body::from("x".repeat(length));
                assert_eq!(reader.read_within(own, &HeaderMap::new(), body).await.is_ok(), taken, "{own:?} {length}");
            }
        }
    }

    /// A length that is too large is refused for what it says, before a sender that asks has sent anything.
    #[tokio::test]
    async fn an_announced_length_is_enough() {
        let headers = [("content-length", "7"), ("expect", "100-continue")]
            .map(|(name, value)| (name.parse().unwrap(), value.parse().unwrap()));
        let problem = reader(6)
            .read(&headers.into_iter().collect(), Body::from_stream(stream::pending::<Result<Bytes, Infallible>>()))
            .await;
        assert_eq!(problem.unwrap_err().problem.code(), Code::BodyTooLarge);
    }

    #[tokio::test(start_paused = true)]
    async fn a_slow_body_times_out() {
        let first = stream::iter([Ok::<_, Infallible>(Bytes::from_static(b"a"))]);
        let body = Body::from_stream(first.chain(stream::pending()));
        let refusal = reader(6).read(&HeaderMap::new(), body).await.unwrap_err();
        assert_eq!((refusal.problem.code(), &refusal.begun[..], refusal.size), (Code::RequestTimeout, &b"a"[..], 1));
    }

    /// Bodies are refused while others hold the whole budget, and taken again when those are gone.
    #[tokio::test]
    async fn the_budget_is_shared_and_given_back() {
        let reader = Reader { budget: Arc::new(Semaphore::new(4)), ..reader(4) };
        let held = reader.clone().read(&HeaderMap::new(), pieces(&["abc"])).await.unwrap();
        let refused = reader.read(&HeaderMap::new(), pieces(&["de"])).await.unwrap_err();
        assert_eq!(refused.problem.code(), Code::Overloaded);
        drop(held);
        assert!(reader.read(&HeaderMap::new(), pieces(&["de"])).await.is_ok());
    }
}
