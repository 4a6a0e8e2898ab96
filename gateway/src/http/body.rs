//! A request's body in memory, within four bounds: its size, the time it may take, the rate at which it must arrive, and
//! the [budget](crate::budget) of all requests.

use std::{sync::Arc, time::Duration};

use axum::body::Body;
use bytes::{Bytes, BytesMut};
use http::{HeaderMap, Version, header, request::Parts};
use http_body_util::BodyExt as _;
use tokio::time::{Instant, timeout_at};

use crate::{
    admission::Client,
    budget::{Budget, Full, Share},
    http::error::{Code, Problem},
};

/// The most that all bodies in memory may hold, in bytes: a few hundred of the default size, so that a gateway lives in
/// 1 GiB. At least [`BUDGET_BODIES_MIN`] bodies of the largest size fit, for any configured size.
const BUDGET_BYTES: usize = 256 * 1024 * 1024;
/// See [`BUDGET_BYTES`].
const BUDGET_BODIES_MIN: usize = 32;
/// The rate at which a body must arrive, in bytes a second: far below what any sender's network carries, and enough that a
/// body of the default size cannot hold its memory for longer than its time.
const RATE_MIN: u32 = 16 * 1024;
/// How far a body may lag that rate: as long as a connection needs to recover from a few lost packets.
const RATE_LEAD: Duration = Duration::from_secs(5);
/// How long what is left of a body that is too large is read and thrown away over HTTP/2, whose clients often take the
/// reset of a stream for a failure even after its answer; and at most as many bytes as a body may have. An HTTP/1
/// connection lingers after the answer instead.
const DISCARD_TIME: Duration = Duration::from_secs(1);

/// Limits of a body.
#[derive(Debug, Clone, Copy)]
pub struct Limits {
    /// Bytes; one that is exactly as large is taken.
    pub bytes_max: usize,
    /// From its first byte to its last.
    pub time: Duration,
    /// Levels of JSON.
    pub depth_max: usize,
}

/// Reads bodies. Cheap to clone; clones share the budget.
#[derive(Debug, Clone)]
pub struct Reader {
    limits: Limits,
    budget: Budget,
}

/// A body, which counts against the budget for as long as this lives.
#[derive(Debug)]
pub struct Held {
    /// The body.
    pub bytes: Bytes,
    _counted: Counted,
}

/// A body's part of its request's share.
#[derive(Debug)]
struct Counted {
    share: Arc<Share>,
    bytes: usize,
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
    pub fn from_headers(problem: Problem, headers: &HeaderMap) -> Self {
        Self { problem, begun: Bytes::new(), size: announced(headers).unwrap_or_default() }
    }

    /// Of a request whose body has been read to its end.
    pub fn from_request(problem: Problem, body: Bytes) -> Self {
        Self { problem, size: body.len() as u64, begun: body }
    }
}

impl From<Refusal> for Problem {
    fn from(refusal: Refusal) -> Self {
        refusal.problem
    }
}

impl Reader {
    /// A reader with a separate budget.
    pub fn new(limits: Limits) -> Self {
        let budget = BUDGET_BYTES.max(limits.bytes_max.saturating_mul(BUDGET_BODIES_MIN));
        Self { limits, budget: Budget::new(budget, limits.bytes_max) }
    }

    /// The most bytes of one body.
    pub fn bytes_max(&self) -> usize {
        self.limits.bytes_max
    }

    /// The most levels of a body's JSON.
    pub fn depth_max(&self) -> usize {
        self.limits.depth_max
    }

    /// Memory limit of all requests.
    pub fn budget(&self) -> &Budget {
        &self.budget
    }

    /// Reads the body of a request to its end. `bytes_max`: the size limit of this sender, if it is lower than
    /// that of the gateway.
    ///
    /// # Errors
    ///
    /// [`Refusal`], with a problem `body_too_large`, `request_timeout`, `overloaded`, or `malformed_body` when the sender
    /// stops in the middle.
    pub async fn read(&self, head: &Parts, body: Body, bytes_max: Option<usize>) -> Result<Held, Refusal> {
        let bytes_max = bytes_max.map_or(self.limits.bytes_max, |own| own.min(self.limits.bytes_max));
        let too_large = || Problem::new(Code::BodyTooLarge, format!("the body is larger than {bytes_max} bytes"));
        let announced = announced(&head.headers);
        let mut arriving = Arriving::new(self.limits, self.share(head).map_err(|full| full.of(announced))?, body);
        if announced.is_some_and(|length| length > bytes_max as u64) {
            // A sender that waits for our leave has sent nothing yet.
            if head.version >= Version::HTTP_2 && !head.headers.contains_key(header::EXPECT) {
                discard(arriving.body, bytes_max).await;
            }
            return Err(Gathered::default().refuse(too_large(), announced));
        }
        let mut gathered = Gathered::default();
        loop {
            let piece = match arriving.next().await {
                Ok(Some(piece)) => piece,
                Ok(None) => return Ok(Held { bytes: gathered.finish(), _counted: arriving.finish() }),
                Err(problem) => return Err(gathered.refuse(problem, announced)),
            };
            let seen = gathered.len() + piece.len();
            if seen > bytes_max {
                if head.version >= Version::HTTP_2 {
                    discard(arriving.body, bytes_max).await;
                }
                return Err(gathered.refuse(too_large(), announced.or(Some(seen as u64))));
            }
            if let Err(problem) = arriving.count(piece.len()) {
                return Err(gathered.refuse(problem, announced));
            }
            gathered.push(piece);
        }
    }

    /// The share that the request got on admission, or a new one.
    fn share(&self, head: &Parts) -> Result<Arc<Share>, Refused> {
        if let Some(share) = head.extensions.get::<Client>().and_then(Client::share) {
            return Ok(share);
        }
        self.budget.open(None, false, 0).map(Arc::new).map_err(|full| Refused(overloaded(full)))
    }
}

/// A refusal before anything was read.
struct Refused(Problem);

impl Refused {
    fn of(self, size: Option<u64>) -> Refusal {
        Gathered::default().refuse(self.0, size)
    }
}

fn overloaded(full: Full) -> Problem {
    Problem::new(Code::Overloaded, full.to_string())
}

/// A body on its way.
struct Arriving {
    body: Body,
    limits: Limits,
    counted: Counted,
    /// When all of it must be there.
    deadline: Instant,
    /// Until when what is there is enough by the least rate.
    paid: Instant,
}

impl Arriving {
    fn new(limits: Limits, share: Arc<Share>, body: Body) -> Self {
        let now = Instant::now();
        share.begin_body();
        let counted = Counted { share, bytes: 0 };
        Self { body, limits, counted, deadline: now + limits.time, paid: now + RATE_LEAD }
    }

    /// The next piece; `None` at the end.
    async fn next(&mut self) -> Result<Option<Bytes>, Problem> {
        let evicted = self.counted.share.evicted().clone();
        loop {
            let frame = tokio::select! {
                frame = timeout_at(self.deadline.min(self.paid), self.body.frame()) => frame,
                () = evicted.cancelled() => {
                    let detail = "the body arrived too slowly while others waited; send again";
                    return Err(Problem::new(Code::RequestTimeout, detail));
                }
            };
            match frame {
                Ok(Some(Ok(frame))) => {
                    if let Ok(piece) = frame.into_data() {
                        return Ok(Some(piece));
                    }
                }
                Ok(None) => return Ok(None),
                Ok(Some(Err(_))) => return Err(Problem::new(Code::MalformedBody, "the body ended before its end")),
                Err(_) => return Err(self.timed_out()),
            }
        }
    }

    /// A piece was taken.
    fn count(&mut self, bytes: usize) -> Result<(), Problem> {
        self.counted.share.grow(bytes).map_err(overloaded)?;
        self.counted.bytes += bytes;
        let worth = Duration::from_secs_f64(bytes as f64 / f64::from(RATE_MIN));
        self.paid = (self.paid + worth).min(Instant::now() + RATE_LEAD);
        Ok(())
    }

    fn timed_out(&self) -> Problem {
        let detail = if Instant::now() >= self.deadline {
            format!("the body did not arrive within {}s; send again", self.limits.time.as_secs())
        } else {
            format!("the body arrived more slowly than {RATE_MIN} bytes a second; send again")
        };
        Problem::new(Code::RequestTimeout, detail)
    }

    fn finish(self) -> Counted {
        self.counted.share.end_body();
        self.counted
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        self.share.end_body();
        self.share.shrink(self.bytes);
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
        Reader::new(Limits { bytes_max, time: Duration::from_secs(5), depth_max: 512 })
    }

    fn head(headers: &[(&str, &str)]) -> Parts {
        let request =
            headers.iter().fold(http::Request::post("/"), |request, (name, value)| request.header(*name, *value));
        request.body(()).unwrap().into_parts().0
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
            assert_eq!(reader.read(&head(&[]), pieces(parts), None).await.unwrap().bytes, whole);
        }
        for parts in [&["abcdefg"][..], &["abc", "def", "g"]] {
            let refusal = reader.read(&head(&[]), pieces(parts), None).await.unwrap_err();
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
                assert_eq!(reader.read(&head(&[]), body, own).await.is_ok(), taken, "{own:?} {length}");
            }
        }
    }

    /// A length that is too large is refused for what it says, before a sender that asks has sent anything.
    #[tokio::test]
    async fn an_announced_length_is_enough() {
        let head = head(&[("content-length", "7"), ("expect", "100-continue")]);
        let never = Body::from_stream(stream::pending::<Result<Bytes, Infallible>>());
        let problem = reader(6).read(&head, never, None).await;
        assert_eq!(problem.unwrap_err().problem.code(), Code::BodyTooLarge);
    }

    #[tokio::test(start_paused = true)]
    async fn a_slow_body_times_out() {
        let first = stream::iter([Ok::<_, Infallible>(Bytes::from_static(b"a"))]);
        let body = Body::from_stream(first.chain(stream::pending()));
        let refusal = reader(6).read(&head(&[]), body, None).await.unwrap_err();
        assert_eq!((refusal.problem.code(), &refusal.begun[..], refusal.size), (Code::RequestTimeout, &b"a"[..], 1));
    }

    /// A body below the minimum rate is refused long before its time limit; one at the minimum rate is accepted.
    #[tokio::test(start_paused = true)]
    async fn a_body_must_arrive_at_the_least_rate() {
        let reader = Reader::new(Limits { bytes_max: 1 << 20, time: Duration::from_secs(600), depth_max: 512 });
        let rate = RATE_MIN as usize;
        let trickle = |bytes: usize| {
            Body::from_stream(stream::unfold(0, move |sent| async move {
                tokio::time::sleep(Duration::from_secs(1)).await;
                (sent < 60).then(|| (Ok::<_, Infallible>(Bytes::from(vec![b' '; bytes])), sent + 1))
            }))
        };
        assert_eq!(reader.read(&head(&[]), trickle(rate), None).await.unwrap().bytes.len(), 60 * rate);
        let began = Instant::now();
        let refusal = reader.read(&head(&[]), trickle(rate / 16), None).await.unwrap_err();
        assert_eq!(refusal.problem.code(), Code::RequestTimeout);
        assert!(began.elapsed() < RATE_LEAD * 2, "{:?}", began.elapsed());
        let began = Instant::now();
        let most = Bytes::from(vec![b' '; 900_000]);
        let stuck = stream::iter([Ok::<_, Infallible>(most)]).chain(stream::pending());
        assert!(reader.read(&head(&[]), Body::from_stream(stuck), None).await.is_err());
        assert!(began.elapsed() <= RATE_LEAD, "what came early buys no time: {:?}", began.elapsed());
    }

    /// Bodies are refused while others hold the whole budget, and taken again when those are gone.
    #[tokio::test]
    async fn the_budget_is_shared_and_given_back() {
        let reader = Reader { budget: Budget::new(4, 4), ..reader(4) };
        let held = reader.clone().read(&head(&[]), pieces(&["abc"]), None).await.unwrap();
        let refused = reader.read(&head(&[]), pieces(&["de"]), None).await.unwrap_err();
        assert_eq!(refused.problem.code(), Code::Overloaded);
        drop(held);
        assert!(reader.read(&head(&[]), pieces(&["de"]), None).await.is_ok());
    }
}
