//! What the services refuse: the contract's codes with their canonical gRPC codes. [`rpc`] says how it is written.

use tonic::Status;
use weft_index::history::HistoryError;
use weft_nats::{cursor::Cursor, direct::DirectError, scan::ScanError};
use weft_proto::rpc;

pub use weft_proto::rpc::reason;

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

/// The status of a code.
pub fn refuse(code: Code, message: impl Into<String>) -> Status {
    rpc::refusal(code.canonical(), code.reason(), message, [])
}

/// The cursor that was given cannot be followed any more; the status names the oldest one that can.
pub fn expired(oldest: &Cursor) -> Status {
    let message = "what follows the cursor is no longer kept, or the event is unknown; go on from oldestCursor";
    let code = Code::CursorExpired;
    rpc::refusal(code.canonical(), code.reason(), message, [("oldestCursor", oldest.to_string())])
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
