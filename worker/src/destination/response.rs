//! Responses: the status is the result of the attempt; of the body an excerpt is read, for a short time.

use std::time::Duration;

use bytes::{Bytes, BytesMut};
use http::{
    HeaderMap, Response, StatusCode,
    header::{DATE, RETRY_AFTER},
};
use http_body_util::BodyExt as _;
use hyper::body::Incoming;
use jiff::Timestamp;
use tokio::time::timeout;
use weft_catalog::statuses::{Meaning, Statuses};
use weft_nats::clock::ServerClock;
use weft_proto::v1::{AttemptClass, HttpDestination};

use super::{Failure, FailureKind, RESPONSE_BYTES_MAX, connection, failure::Sent, retry_after};

/// Timeout of reading a body. A receiver that sends it slowly does not delay its lane.
const BODY_TIMEOUT: Duration = Duration::from_millis(250);
/// Bytes of a body that are read so that its connection can be reused, which is cheaper than a new one.
const BODY_BYTES_MAX: usize = 64 * 1024;

/// Meaning of responses for a destination.
#[derive(Debug)]
pub(super) struct ResponseRules {
    statuses: Statuses,
    retry_after_max: Duration,
}

impl ResponseRules {
    pub fn new(http: &HttpDestination) -> Result<Self, String> {
        let retry_after_max = match http.retry_after_max_ms {
            0 => retry_after::MAX_DEFAULT,
            ms => Duration::from_millis(ms),
        };
        Ok(Self { statuses: Statuses::of(http)?, retry_after_max })
    }
}

/// The result of a response. Its connection is closed unless the body ends within a short time.
pub(super) async fn settle(
    response: Response<Incoming>,
    sent: &Sent,
    clock: &ServerClock,
    rules: &ResponseRules,
) -> Result<(u16, Bytes), Failure> {
    let state = connection::state(&sent.captured);
    if let Some(state) = &state {
        state.answered();
    }
    let (parts, mut body) = response.into_parts();
    let (status, headers) = (parts.status, parts.headers);
    let mut excerpt = BytesMut::new();
    let ended = timeout(BODY_TIMEOUT, read(&mut body, &mut excerpt)).await.unwrap_or(false);
    drop(body);
    if ended && let Some(state) = state {
        state.idle(text(&headers, "keep-alive"));
    }
    let excerpt = excerpt.freeze();
    let meaning = rules.statuses.meaning(status.as_u16());
    if meaning == Meaning::Success {
        return Ok((status.as_u16(), excerpt));
    }
    let retry_after = retry_after(&headers, rules.retry_after_max, || clock.now());
    Err(Failure {
        kind: kind(status, meaning, retry_after.is_some()),
        class: AttemptClass::HttpStatus,
        status: status.as_u16(),
        error: match status {
            _ if status.is_redirection() => format!("status {status}; redirections are not followed"),
            StatusCode::GONE => format!("status {status}: the endpoint accepts no more events"),
            _ => format!("status {status}"),
        },
        response: excerpt,
        retry_after,
    })
}

/// Reads the body. Returns whether it ended; an error is ignored, since the status is known.
async fn read(body: &mut Incoming, excerpt: &mut BytesMut) -> bool {
    let mut length = 0;
    while length < BODY_BYTES_MAX {
        let Some(frame) = body.frame().await else { return true };
        let Ok(frame) = frame else { return false };
        if let Some(data) = frame.data_ref() {
            length += data.len();
            let wanted = RESPONSE_BYTES_MAX.saturating_sub(excerpt.len()).min(data.len());
            excerpt.extend_from_slice(&data[..wanted]);
        }
    }
    false
}

/// The wait that a receiver asks for. A date is by the receiver's clock, if it sends one.
fn retry_after(headers: &HeaderMap, max: Duration, now: impl FnOnce() -> Timestamp) -> Option<Duration> {
    let value = text(headers, RETRY_AFTER.as_str())?;
    let now = text(headers, DATE.as_str()).and_then(retry_after::date).unwrap_or_else(now);
    retry_after::parse(value, now, max)
}

fn text<'a>(headers: &'a HeaderMap, name: &str) -> Option<&'a str> {
    headers.get(name)?.to_str().ok()
}

/// The kind of failure of a status that does not accept the event.
fn kind(status: StatusCode, meaning: Meaning, asks_to_retry: bool) -> FailureKind {
    match (meaning, status) {
        (Meaning::Gone, _) => FailureKind::EndpointRetired,
        // With Retry-After the condition is temporary (RFC 9110, sections 15.5.14 and 15.6.4).
        (Meaning::Permanent, StatusCode::PAYLOAD_TOO_LARGE) if asks_to_retry => FailureKind::Failed,
        (Meaning::Permanent, StatusCode::SERVICE_UNAVAILABLE) if asks_to_retry => FailureKind::Unavailable,
        (Meaning::Permanent, _) => FailureKind::Rejected,
        // The response of a proxy while the receiver is being deployed.
        (_, StatusCode::BAD_GATEWAY | StatusCode::SERVICE_UNAVAILABLE | StatusCode::GATEWAY_TIMEOUT) => {
            FailureKind::Unavailable
        }
        _ => FailureKind::Failed,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Guards: a 413 or 503 with `Retry-After` is never a dead letter, regardless of the destination's lists.
    #[test]
    fn a_wait_that_is_asked_for_makes_a_rejection_temporary() {
        let http = HttpDestination { permanent: vec!["4xx".into(), "503".into()], ..Default::default() };
        let rules = ResponseRules::new(&http).unwrap();
        for (status, asks_to_retry, expected) in [
            (413, false, FailureKind::Rejected),
            (413, true, FailureKind::Failed),
            (503, false, FailureKind::Rejected),
            (503, true, FailureKind::Unavailable),
            (400, true, FailureKind::Rejected),
            (410, true, FailureKind::EndpointRetired),
            (502, false, FailureKind::Unavailable),
            (500, false, FailureKind::Failed),
        ] {
            let meaning = rules.statuses.meaning(status);
            let kind = kind(StatusCode::from_u16(status).unwrap(), meaning, asks_to_retry);
            assert_eq!(kind, expected, "{status} {asks_to_retry}");
        }
    }
}
