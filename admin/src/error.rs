//! What the services refuse, and how: a canonical gRPC code, a line that says what to do, and a `google.rpc.ErrorInfo`
//! whose reason is the contract's code in upper case.

use std::collections::HashMap;

use bytes::Bytes;
use prost::Message;
use tonic::Status;
use weft_index::history::HistoryError;
use weft_nats::{cursor::Cursor, direct::DirectError, scan::ScanError};

/// Who the errors are of.
const DOMAIN: &str = "weft";
/// What names `google.rpc.ErrorInfo` among a status's details.
const ERROR_INFO: &str = "type.googleapis.com/google.rpc.ErrorInfo";

/// The codes of the contract that these services answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Code {
    /// A field that makes no sense.
    BadQuery,
    /// Neither a cursor of this log nor an event id.
    BadCursor,
    /// Not a workflow id.
    InvalidWorkflow,
    /// No such event.
    UnknownEvent,
    /// No such thing.
    NotFound,
    /// No bearer token.
    KeyMissing,
    /// A bearer token that is not the right one.
    KeyInvalid,
    /// What follows the cursor is no longer kept.
    CursorExpired,
    /// No NATS server, no stream, no answer in time.
    LogUnavailable,
    /// The history has not come so far.
    Starting,
    /// Too many streams at a time.
    Overloaded,
    /// The process is about to end.
    Draining,
    /// Ours to mend.
    Internal,
}

impl Code {
    const fn reason(self) -> &'static str {
        match self {
            Self::BadQuery => "BAD_QUERY",
            Self::BadCursor => "BAD_CURSOR",
            Self::InvalidWorkflow => "INVALID_WORKFLOW",
            Self::UnknownEvent => "UNKNOWN_EVENT",
            Self::NotFound => "NOT_FOUND",
            Self::KeyMissing => "KEY_MISSING",
            Self::KeyInvalid => "KEY_INVALID",
            Self::CursorExpired => "CURSOR_EXPIRED",
            Self::LogUnavailable => "LOG_UNAVAILABLE",
            Self::Starting => "STARTING",
            Self::Overloaded => "OVERLOADED",
            Self::Draining => "DRAINING",
            Self::Internal => "INTERNAL",
        }
    }

    const fn canonical(self) -> tonic::Code {
        match self {
            Self::BadQuery | Self::BadCursor | Self::InvalidWorkflow => tonic::Code::InvalidArgument,
            Self::UnknownEvent | Self::NotFound => tonic::Code::NotFound,
            Self::KeyMissing | Self::KeyInvalid => tonic::Code::Unauthenticated,
            Self::CursorExpired => tonic::Code::OutOfRange,
            Self::LogUnavailable | Self::Starting | Self::Overloaded | Self::Draining => tonic::Code::Unavailable,
            Self::Internal => tonic::Code::Internal,
        }
    }
}

/// `google.rpc.Status`, which is what `grpc-status-details-bin` holds.
#[derive(Clone, PartialEq, prost::Message)]
struct RpcStatus {
    #[prost(int32, tag = "1")]
    code: i32,
    #[prost(string, tag = "2")]
    message: String,
    #[prost(message, repeated, tag = "3")]
    details: Vec<prost_types::Any>,
}

/// `google.rpc.ErrorInfo`.
#[derive(Clone, PartialEq, prost::Message)]
struct ErrorInfo {
    #[prost(string, tag = "1")]
    reason: String,
    #[prost(string, tag = "2")]
    domain: String,
    #[prost(map = "string, string", tag = "3")]
    metadata: HashMap<String, String>,
}

/// The status of a code.
pub fn refuse(code: Code, message: impl Into<String>) -> Status {
    with_metadata(code, message.into(), HashMap::new())
}

/// The cursor that was given cannot be followed any more; the status names the oldest one that can.
pub fn expired(oldest: &Cursor) -> Status {
    let message = "what follows the cursor is no longer kept, or the event is unknown; go on from oldestCursor";
    with_metadata(Code::CursorExpired, message.into(), [("oldestCursor".to_owned(), oldest.to_string())].into())
}

/// What a history could not do.
pub fn of_history(error: HistoryError) -> Status {
    match error {
        HistoryError::Building(_) | HistoryError::Behind => refuse(Code::Starting, error.to_string()),
        HistoryError::Log(error) => refuse(Code::LogUnavailable, error.to_string()),
        HistoryError::Database(error) => {
            tracing::error!(%error, "history cannot be read");
            refuse(Code::Internal, "the history cannot be read; see the admin's log")
        }
    }
}

/// What a scan could not do.
pub fn of_scan(error: ScanError) -> Status {
    match error {
        ScanError::Expired { oldest } => expired(&oldest),
        ScanError::Unavailable(_) => refuse(Code::LogUnavailable, error.to_string()),
    }
}

/// What a direct get could not do.
pub fn of_direct(error: DirectError) -> Status {
    refuse(Code::LogUnavailable, error.to_string())
}

/// The reason that a status carries in its `google.rpc.ErrorInfo`: the contract's code in upper case.
pub fn reason(status: &Status) -> Option<String> {
    let details = RpcStatus::decode(status.details()).ok()?.details;
    let info = details.iter().find(|detail| detail.type_url == ERROR_INFO)?;
    Some(ErrorInfo::decode(&info.value[..]).ok()?.reason)
}

fn with_metadata(code: Code, message: String, metadata: HashMap<String, String>) -> Status {
    let info = ErrorInfo { reason: code.reason().into(), domain: DOMAIN.into(), metadata };
    let info = prost_types::Any { type_url: ERROR_INFO.into(), value: info.encode_to_vec() };
    let status = RpcStatus { code: code.canonical() as i32, message: message.clone(), details: vec![info] };
    Status::with_details(code.canonical(), message, Bytes::from(status.encode_to_vec()))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The bytes are those that any client with google.rpc's definitions reads.
    #[test]
    fn a_refusal_carries_its_reason() {
        let status = refuse(Code::UnknownEvent, "no");
        assert_eq!(status.code(), tonic::Code::NotFound);
        let rpc = RpcStatus::decode(status.details()).unwrap();
        assert_eq!((rpc.code, rpc.message.as_str()), (5, "no"));
        let info = ErrorInfo::decode(&rpc.details[0].value[..]).unwrap();
        assert_eq!((info.reason.as_str(), info.domain.as_str()), ("UNKNOWN_EVENT", "weft"));
        assert_eq!(reason(&status).as_deref(), Some("UNKNOWN_EVENT"));
        assert_eq!(reason(&Status::not_found("no")), None);
    }
}
