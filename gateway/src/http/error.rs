//! Every way in which a request can be refused, as `application/problem+json` (RFC 9457) with a stable `code`.
//!
//! One table gives each code its status and title. A `detail` states what the sender can do; it never contains a secret,
//! an expected signature or internal state.

use axum::response::{IntoResponse, Response};
use bytes::Bytes;
use http::{HeaderValue, StatusCode, header};
use serde::{Deserialize, Serialize, Serializer};
use utoipa::ToSchema;
use weft_nats::{cursor::Cursor, scan::ScanError};
use weft_serve::Malformed;

use weft_schemes::VerifyError;

use crate::{identify::IdentifyError, metrics, sequencer::SubmitError};

/// Error code, for machines.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum Code {
    /// The request is not HTTP as it must be.
    BadRequest,
    /// The request line and the headers are too large.
    HeadersTooLarge,
    /// The request needs what this server does not implement, such as a transfer coding.
    NotImplemented,
    /// The body is not what the source takes.
    MalformedBody,
    /// Neither path nor rule names a workflow.
    MissingWorkflow,
    /// The workflow id breaks a rule.
    InvalidWorkflow,
    /// No usable type.
    MissingType,
    /// No usable delivery id.
    MissingDeliveryId,
    /// `since` is neither an event id nor a cursor of this log.
    BadCursor,
    /// A query parameter makes no sense.
    BadQuery,
    /// The request is not signed.
    SignatureMissing,
    /// The signature does not hold.
    SignatureInvalid,
    /// Signed too long ago, or in the future.
    TimestampOutOfWindow,
    /// No API key.
    KeyMissing,
    /// An API key that is not known.
    KeyInvalid,
    /// An API key without the scope that this needs.
    ScopeMissing,
    /// An API key that may not touch this source or workflow, or a source that is not for API keys.
    OutOfScope,
    /// No such source.
    UnknownSource,
    /// No such event.
    UnknownEvent,
    /// No such route.
    NotFound,
    /// The route does not take this method.
    MethodNotAllowed,
    /// The body came too slowly.
    RequestTimeout,
    /// The delivery id was used before with another body.
    IdReused,
    /// The events after the cursor are no longer kept.
    CursorExpired,
    /// The event's payload was erased.
    Erased,
    /// Larger than the gateway takes.
    BodyTooLarge,
    /// A body that the gateway cannot read, such as a compressed one.
    UnsupportedMediaType,
    /// The data is not what the source's schema says.
    SchemaInvalid,
    /// More requests than the limit allows.
    RateLimited,
    /// A fault of ours.
    Internal,
    /// The log does not answer.
    LogUnavailable,
    /// The log is at its limit.
    LogFull,
    /// The gateway has not caught up with the log yet.
    Starting,
    /// More waits than the gateway takes.
    Overloaded,
    /// The gateway is shutting down.
    Draining,
}

impl Code {
    /// Status, code and title.
    const fn row(self) -> (StatusCode, &'static str, &'static str) {
        use StatusCode as S;
        match self {
            Self::BadRequest => (S::BAD_REQUEST, "bad_request", "Bad request"),
            Self::HeadersTooLarge => (S::REQUEST_HEADER_FIELDS_TOO_LARGE, "headers_too_large", "Headers too large"),
            Self::NotImplemented => (S::NOT_IMPLEMENTED, "not_implemented", "Not implemented"),
            Self::MalformedBody => (S::BAD_REQUEST, "malformed_body", "Malformed body"),
            Self::MissingWorkflow => (S::BAD_REQUEST, "missing_workflow", "Missing workflow id"),
            Self::InvalidWorkflow => (S::BAD_REQUEST, "invalid_workflow", "Invalid workflow id"),
            Self::MissingType => (S::BAD_REQUEST, "missing_type", "Missing type"),
            Self::MissingDeliveryId => (S::BAD_REQUEST, "missing_delivery_id", "Missing delivery id"),
            Self::BadCursor => (S::BAD_REQUEST, "bad_cursor", "Bad cursor"),
            Self::BadQuery => (S::BAD_REQUEST, "bad_query", "Bad query"),
            Self::SignatureMissing => (S::UNAUTHORIZED, "signature_missing", "Signature missing"),
            Self::SignatureInvalid => (S::UNAUTHORIZED, "signature_invalid", "Signature invalid"),
            Self::TimestampOutOfWindow => (S::UNAUTHORIZED, "timestamp_out_of_window", "Timestamp out of window"),
            Self::KeyMissing => (S::UNAUTHORIZED, "key_missing", "API key missing"),
            Self::KeyInvalid => (S::UNAUTHORIZED, "key_invalid", "API key invalid"),
            Self::ScopeMissing => (S::FORBIDDEN, "scope_missing", "Scope missing"),
            Self::OutOfScope => (S::FORBIDDEN, "out_of_scope", "Out of scope"),
            Self::UnknownSource => (S::NOT_FOUND, "unknown_source", "Unknown source"),
            Self::UnknownEvent => (S::NOT_FOUND, "unknown_event", "Unknown event"),
            Self::NotFound => (S::NOT_FOUND, "not_found", "Not found"),
            Self::MethodNotAllowed => (S::METHOD_NOT_ALLOWED, "method_not_allowed", "Method not allowed"),
            Self::RequestTimeout => (S::REQUEST_TIMEOUT, "request_timeout", "Request timeout"),
            Self::IdReused => (S::CONFLICT, "id_reused", "Delivery id reused"),
            Self::CursorExpired => (S::GONE, "cursor_expired", "Cursor expired"),
            Self::Erased => (S::GONE, "erased", "Erased"),
            Self::BodyTooLarge => (S::PAYLOAD_TOO_LARGE, "body_too_large", "Body too large"),
            Self::UnsupportedMediaType => {
                (S::UNSUPPORTED_MEDIA_TYPE, "unsupported_media_type", "Unsupported media type")
            }
            Self::SchemaInvalid => (S::UNPROCESSABLE_ENTITY, "schema_invalid", "Schema invalid"),
            Self::RateLimited => (S::TOO_MANY_REQUESTS, "rate_limited", "Rate limited"),
            Self::Internal => (S::INTERNAL_SERVER_ERROR, "internal", "Internal error"),
            Self::LogUnavailable => (S::SERVICE_UNAVAILABLE, "log_unavailable", "Log unavailable"),
            Self::LogFull => (S::SERVICE_UNAVAILABLE, "log_full", "Log full"),
            Self::Starting => (S::SERVICE_UNAVAILABLE, "starting", "Starting"),
            Self::Overloaded => (S::SERVICE_UNAVAILABLE, "overloaded", "Overloaded"),
            Self::Draining => (S::SERVICE_UNAVAILABLE, "draining", "Draining"),
        }
    }

    /// All of them.
    pub const ALL: [Self; 34] = [
        Self::BadRequest,
        Self::HeadersTooLarge,
        Self::NotImplemented,
        Self::MalformedBody,
        Self::MissingWorkflow,
        Self::InvalidWorkflow,
        Self::MissingType,
        Self::MissingDeliveryId,
        Self::BadCursor,
        Self::BadQuery,
        Self::SignatureMissing,
        Self::SignatureInvalid,
        Self::TimestampOutOfWindow,
        Self::KeyMissing,
        Self::KeyInvalid,
        Self::ScopeMissing,
        Self::OutOfScope,
        Self::UnknownSource,
        Self::UnknownEvent,
        Self::NotFound,
        Self::MethodNotAllowed,
        Self::RequestTimeout,
        Self::IdReused,
        Self::CursorExpired,
        Self::BodyTooLarge,
        Self::UnsupportedMediaType,
        Self::SchemaInvalid,
        Self::RateLimited,
        Self::Internal,
        Self::LogUnavailable,
        Self::LogFull,
        Self::Starting,
        Self::Overloaded,
        Self::Draining,
    ];

    /// The HTTP status.
    pub const fn status(self) -> StatusCode {
        self.row().0
    }

    /// As it is written.
    pub const fn as_str(self) -> &'static str {
        self.row().1
    }

    /// Whether a request that is refused with it counts against its address: what the caller did wrong does. That an event
    /// is not there, or was there before, is an answer; and what a limit or our own state refused says nothing of the caller.
    pub const fn counts_against_address(self) -> bool {
        match self {
            Self::BadRequest
            | Self::HeadersTooLarge
            | Self::NotImplemented
            | Self::MalformedBody
            | Self::MissingWorkflow
            | Self::InvalidWorkflow
            | Self::MissingType
            | Self::MissingDeliveryId
            | Self::BadCursor
            | Self::BadQuery
            | Self::SignatureMissing
            | Self::SignatureInvalid
            | Self::TimestampOutOfWindow
            | Self::KeyMissing
            | Self::KeyInvalid
            | Self::ScopeMissing
            | Self::OutOfScope
            | Self::UnknownSource
            | Self::NotFound
            | Self::MethodNotAllowed
            | Self::RequestTimeout
            | Self::BodyTooLarge
            | Self::UnsupportedMediaType
            | Self::SchemaInvalid => true,
            Self::UnknownEvent
            | Self::IdReused
            | Self::CursorExpired
            | Self::Erased
            | Self::RateLimited
            | Self::Internal
            | Self::LogUnavailable
            | Self::LogFull
            | Self::Starting
            | Self::Overloaded
            | Self::Draining => false,
        }
    }

    /// When to try again, in seconds, where a retry may help: soon for transient failures, later for a full log, in which an
    /// operator must make room.
    const fn retry_after_secs(self) -> Option<u32> {
        match self {
            Self::LogUnavailable | Self::Overloaded | Self::Draining => Some(1),
            Self::Starting => Some(2),
            Self::LogFull => Some(30),
            _ => None,
        }
    }
}

/// A refusal on its way to the client.
#[derive(Debug)]
pub struct Problem {
    code: Code,
    detail: String,
    oldest: Option<Cursor>,
    retry_after_secs: Option<u32>,
}

/// The body of a problem.
#[derive(Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
#[schema(as = Problem)]
pub(crate) struct Body<'a> {
    /// `urn:weft:problem:<code>`.
    r#type: String,
    /// The code for people.
    title: &'static str,
    /// The HTTP status.
    status: u16,
    /// The cause and what to do, in one line.
    detail: &'a str,
    /// Error code, for machines.
    code: Code,
    /// With `cursor_expired`: where what is kept begins.
    #[serde(skip_serializing_if = "Option::is_none")]
    oldest_cursor: Option<String>,
}

impl Problem {
    /// A refusal; `detail` says in one line what is wrong and what to do.
    pub fn new(code: Code, detail: impl Into<String>) -> Self {
        Self { code, detail: detail.into(), oldest: None, retry_after_secs: code.retry_after_secs() }
    }

    /// The cursor in front of the oldest event kept, for a client that must start over.
    pub fn expired(oldest: Cursor) -> Self {
        let detail = "unknown event id, or what follows is no longer kept; continue from oldestCursor";
        Self { oldest: Some(oldest), ..Self::new(Code::CursorExpired, detail) }
    }

    /// Of one event of several, by its place among them, from 0.
    pub fn of_event(self, index: usize) -> Self {
        Self { detail: format!("event {index}: {}", self.detail), ..self }
    }

    /// A request over the limit; the next may come after `retry_after_secs`.
    pub fn rate_limited(detail: impl Into<String>, retry_after_secs: u32) -> Self {
        Self { retry_after_secs: Some(retry_after_secs), ..Self::new(Code::RateLimited, detail) }
    }

    /// For machines.
    pub fn code(&self) -> Code {
        self.code
    }

    /// The cause and what to do, in one line.
    pub fn detail(&self) -> &str {
        &self.detail
    }
}

impl Problem {
    /// The body: `application/problem+json`.
    pub fn to_json(&self) -> Vec<u8> {
        // Strings and numbers: there is nothing that could fail.
        serde_json::to_vec(self).unwrap_or_default()
    }
}

impl Serialize for Problem {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let (status, code, title) = self.code.row();
        let body = Body {
            r#type: format!("urn:weft:problem:{code}"),
            title,
            status: status.as_u16(),
            detail: &self.detail,
            code: self.code,
            oldest_cursor: self.oldest.as_ref().map(Cursor::to_string),
        };
        body.serialize(serializer)
    }
}

impl Problem {
    /// The whole answer. It counts as one.
    pub fn into_answer(self) -> http::Response<Bytes> {
        ::metrics::counter!(metrics::REFUSED, "code" => self.code.as_str()).increment(1);
        let (status, body) = (self.code.status(), self.to_json());
        let content_type = HeaderValue::from_static("application/problem+json");
        let mut response = http::Response::new(Bytes::from(body));
        *response.status_mut() = status;
        response.extensions_mut().insert(self.code);
        let headers = response.headers_mut();
        headers.insert(header::CONTENT_TYPE, content_type);
        headers.insert(header::X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
        if let Some(seconds) = self.retry_after_secs {
            headers.insert(header::RETRY_AFTER, seconds.into());
        }
        match self.code {
            Code::KeyMissing | Code::KeyInvalid => {
                headers.insert(header::WWW_AUTHENTICATE, HeaderValue::from_static("Bearer realm=\"weft\""));
            }
            // The rest of the body may still be arriving; the gateway does not process it.
            Code::BodyTooLarge | Code::RequestTimeout => {
                headers.insert(header::CONNECTION, HeaderValue::from_static("close"));
            }
            _ => {}
        }
        response
    }
}

impl IntoResponse for Problem {
    fn into_response(self) -> Response {
        self.into_answer().map(axum::body::Body::from)
    }
}

impl From<Malformed> for Problem {
    fn from(malformed: Malformed) -> Self {
        let code = match malformed {
            Malformed::Unreadable | Malformed::ConflictingLength => Code::BadRequest,
            Malformed::HeadTooLarge => Code::HeadersTooLarge,
            Malformed::UnknownCoding => Code::NotImplemented,
        };
        Self::new(code, malformed.detail())
    }
}

impl From<VerifyError> for Problem {
    fn from(error: VerifyError) -> Self {
        let code = match &error {
            VerifyError::Missing { .. } => Code::SignatureMissing,
            VerifyError::Malformed { .. } | VerifyError::Invalid => Code::SignatureInvalid,
            VerifyError::KeyNeeded => Code::KeyMissing,
            VerifyError::OutOfWindow { .. } => Code::TimestampOutOfWindow,
        };
        Self::new(code, error.to_string())
    }
}

impl From<IdentifyError> for Problem {
    fn from(error: IdentifyError) -> Self {
        let code = match &error {
            IdentifyError::MalformedBody | IdentifyError::FormBody | IdentifyError::TooDeep { .. } => {
                Code::MalformedBody
            }
            IdentifyError::MissingWorkflow { .. } => Code::MissingWorkflow,
            IdentifyError::InvalidWorkflow(_) => Code::InvalidWorkflow,
            IdentifyError::MissingType { .. } => Code::MissingType,
            IdentifyError::MissingDeliveryId { .. } => Code::MissingDeliveryId,
            IdentifyError::HeadersTooLarge => Code::BodyTooLarge,
        };
        Self::new(code, error.to_string())
    }
}

impl From<SubmitError> for Problem {
    fn from(error: SubmitError) -> Self {
        let (code, detail) = match error {
            SubmitError::IdReused => (
                Code::IdReused,
                "the delivery id was accepted before with another workflow, type or body; use a new id",
            ),
            SubmitError::TooLarge => (Code::BodyTooLarge, "body and headers together are larger than the log takes"),
            SubmitError::Overloaded => (Code::Overloaded, "too many events wait; send again with the same delivery id"),
            SubmitError::PredecessorRefused => (
                Code::LogUnavailable,
                "an event before it was not accepted; send all from there on again, with the same delivery ids",
            ),
            SubmitError::Full => (
                Code::LogFull,
                "the log is full: its limit or its disk is reached; send again with the same delivery id",
            ),
            SubmitError::Unavailable => (
                Code::LogUnavailable,
                "the log did not answer; the event may have been accepted: send again with the same delivery id",
            ),
            SubmitError::Starting => (Code::Starting, "the gateway is catching up with the log; send again"),
            SubmitError::Draining => (Code::Draining, "the gateway is shutting down; send again"),
        };
        Self::new(code, detail)
    }
}

impl From<ScanError> for Problem {
    fn from(error: ScanError) -> Self {
        match error {
            ScanError::Expired { oldest } => Self::expired(oldest),
            ScanError::Unavailable(reason) => {
                tracing::debug!(reason, "scan failed");
                Self::new(Code::LogUnavailable, "the log did not answer; ask again")
            }
            ScanError::Reserved { .. } => Self::new(Code::Overloaded, error.to_string()),
        }
    }
}

#[cfg(test)]
mod tests {
    use http_body_util::BodyExt as _;

    use super::*;

    /// The members of RFC 9457 and ours, and when to try again.
    #[tokio::test]
    async fn a_problem_says_what_the_contract_says() {
        let response = Problem::from(SubmitError::Unavailable).into_response();
        assert_eq!(response.status(), 503);
        assert_eq!(response.headers()["content-type"], "application/problem+json");
        assert_eq!(response.headers()["retry-after"], "1");
        let body = response.into_body().collect().await.unwrap().to_bytes();
        let body: serde_json::Value = serde_json::from_slice(&body).unwrap();
        assert_eq!(body["code"], "log_unavailable");
        assert_eq!((body["status"].as_u64(), body["title"].as_str()), (Some(503), Some("Log unavailable")));
        assert_eq!(body["type"], "urn:weft:problem:log_unavailable");
        assert!(body["detail"].as_str().unwrap().contains("same delivery id"));
        assert_eq!(body.get("oldestCursor"), None);
    }

    #[test]
    fn every_503_says_when_to_try_again() {
        for code in [Code::LogUnavailable, Code::LogFull, Code::Starting, Code::Overloaded, Code::Draining] {
            assert_eq!(code.status(), 503);
            assert!(Problem::new(code, "").into_response().headers().contains_key("retry-after"), "{}", code.as_str());
        }
    }
}
