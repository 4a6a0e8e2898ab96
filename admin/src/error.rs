//! Refusals of the services: the contract's codes with their canonical gRPC codes. [`rpc`] encodes them.

use tonic::Status;
use weft_catalog::{CatalogError, keys::KeyError};
use weft_index::history::HistoryError;
use weft_nats::{cursor::Cursor, direct::DirectError, scan::ScanError};
use weft_proto::rpc;

pub use weft_proto::rpc::reason;

use crate::as_of;

/// The codes of the contract that these services answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Code {
    /// An invalid field.
    BadQuery,
    /// Neither a cursor of this log nor an event id.
    BadCursor,
    /// Not a workflow id.
    InvalidWorkflow,
    /// No such event.
    UnknownEvent,
    /// No such item.
    NotFound,
    /// No key.
    KeyMissing,
    /// A key that is not known, or has expired.
    KeyInvalid,
    /// A key without the scope that this needs.
    ScopeMissing,
    /// A key without access to this source or workflow.
    OutOfScope,
    /// An invalid source, subscription or key.
    InvalidEntry,
    /// An entry of that name exists.
    AlreadyExists,
    /// It was changed in the meantime.
    Conflict,
    /// A request id that another call has used.
    IdReused,
    /// Events after the cursor are no longer kept.
    CursorExpired,
    /// No NATS server, no stream, no answer in time.
    LogUnavailable,
    /// The history lags.
    Starting,
    /// Too many failed authentications from one network.
    RateLimited,
    /// Too many streams at a time.
    Overloaded,
    /// The process is about to end.
    Draining,
    /// A fault of the admin.
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
            Self::ScopeMissing => "SCOPE_MISSING",
            Self::OutOfScope => "OUT_OF_SCOPE",
            Self::InvalidEntry => "INVALID_ENTRY",
            Self::AlreadyExists => "ALREADY_EXISTS",
            Self::Conflict => "CONFLICT",
            Self::IdReused => "ID_REUSED",
            Self::CursorExpired => "CURSOR_EXPIRED",
            Self::LogUnavailable => "LOG_UNAVAILABLE",
            Self::Starting => "STARTING",
            Self::RateLimited => "RATE_LIMITED",
            Self::Overloaded => "OVERLOADED",
            Self::Draining => "DRAINING",
            Self::Internal => "INTERNAL",
        }
    }

    const fn canonical(self) -> tonic::Code {
        match self {
            Self::BadQuery | Self::BadCursor | Self::InvalidWorkflow | Self::InvalidEntry => {
                tonic::Code::InvalidArgument
            }
            Self::AlreadyExists | Self::IdReused => tonic::Code::AlreadyExists,
            Self::Conflict => tonic::Code::Aborted,
            Self::UnknownEvent | Self::NotFound => tonic::Code::NotFound,
            Self::KeyMissing | Self::KeyInvalid => tonic::Code::Unauthenticated,
            Self::ScopeMissing | Self::OutOfScope => tonic::Code::PermissionDenied,
            Self::CursorExpired => tonic::Code::OutOfRange,
            Self::RateLimited => tonic::Code::ResourceExhausted,
            Self::LogUnavailable | Self::Starting | Self::Overloaded | Self::Draining => tonic::Code::Unavailable,
            Self::Internal => tonic::Code::Internal,
        }
    }
}

/// The status of a code.
pub fn refuse(code: Code, message: impl Into<String>) -> Status {
    rpc::refusal(code.canonical(), code.reason(), message, [])
}

/// Refuses what the history does not know. While it lags, that may only be unread: then the caller is to ask again.
pub fn unknown(code: Code, message: impl Into<String>) -> Status {
    let message = message.into();
    match as_of::lag() {
        None => refuse(code, message),
        Some(lag) => {
            refuse(Code::Starting, format!("{message}; {lag}, and may not have read it yet: try again in a moment"))
        }
    }
}

/// The cursor that was given cannot be followed any more; the status names the oldest one that can.
pub fn expired(oldest: &Cursor) -> Status {
    let message = "events after the cursor are no longer kept, or the event is unknown; continue from oldestCursor";
    let code = Code::CursorExpired;
    rpc::refusal(code.canonical(), code.reason(), message, [("oldestCursor", oldest.to_string())])
}

/// Status of an authorisation error.
pub fn of_key(error: KeyError) -> Status {
    let code = match error {
        KeyError::Missing => Code::KeyMissing,
        KeyError::Unknown | KeyError::Expired => Code::KeyInvalid,
        KeyError::Starting => Code::Starting,
        KeyError::ScopeMissing(_) => Code::ScopeMissing,
        KeyError::Source | KeyError::Workflow | KeyError::Limited => Code::OutOfScope,
    };
    refuse(code, error.to_string())
}

/// Status of an error of the history.
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

/// Status of an error of the catalog.
pub fn of_catalog(error: CatalogError) -> Status {
    let message = error.to_string();
    match error {
        CatalogError::Conflict { .. } => refuse(Code::Conflict, message),
        CatalogError::Invalid { .. } => refuse(Code::InvalidEntry, message),
        CatalogError::Unavailable(_) => refuse(Code::LogUnavailable, message),
    }
}

/// Status of an error of a scan.
pub fn of_scan(error: ScanError) -> Status {
    match error {
        ScanError::Expired { oldest } => expired(&oldest),
        ScanError::Unavailable(_) => refuse(Code::LogUnavailable, error.to_string()),
        ScanError::Reserved { .. } => refuse(Code::Overloaded, error.to_string()),
    }
}

/// Status of an error of a direct get.
pub fn of_direct(error: DirectError) -> Status {
    refuse(Code::LogUnavailable, error.to_string())
}
