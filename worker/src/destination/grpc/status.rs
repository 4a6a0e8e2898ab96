//! Meaning of a gRPC status for an event.
//!
//! | status | meaning |
//! |---|---|
//! | `OK` | accepted, as many as `taken` says |
//! | `INVALID_ARGUMENT`, `OUT_OF_RANGE`, `UNIMPLEMENTED` | rejected: a dead letter |
//! | any with an `ErrorInfo` whose reason is `GONE` | the endpoint is retired: its subscription pauses |
//! | `UNAVAILABLE` | the service is unavailable |
//! | all others | the attempt failed and is repeated |

use bytes::Bytes;
use tonic::{Code, Status};
use weft_proto::{rpc, v1::AttemptClass};

use super::super::{Failure, FailureKind, RESPONSE_BYTES_MAX, retry_after};

/// The reason of an `ErrorInfo` by which a service accepts no events any more.
const GONE: &str = "GONE";

/// The failure of a call that a service has answered.
pub(super) fn failure(status: &Status) -> Failure {
    let is_gone = rpc::reason(status).as_deref() == Some(GONE);
    let kind = match status.code() {
        _ if is_gone => FailureKind::EndpointRetired,
        Code::InvalidArgument | Code::OutOfRange | Code::Unimplemented => FailureKind::Rejected,
        Code::Unavailable => FailureKind::Unavailable,
        _ => FailureKind::Failed,
    };
    let error = match is_gone {
        true => format!("status {}: the endpoint accepts no more events", name(status.code())),
        false => format!("status {}", name(status.code())),
    };
    Failure {
        kind,
        class: AttemptClass::GrpcStatus,
        status: u16::try_from(i32::from(status.code())).unwrap_or_default(),
        error,
        response: excerpt(status.message()),
        retry_after: rpc::retry_delay(status).map(|delay| delay.min(retry_after::MAX_DEFAULT)),
    }
}

/// The failure of a call that something else than a gRPC service has answered, such as a proxy without a route.
pub(super) fn foreign(http_status: u16) -> Failure {
    let kind = match http_status {
        502..=504 => FailureKind::Unavailable,
        _ => FailureKind::Failed,
    };
    let error = format!("HTTP status {http_status}, which is not the answer of a gRPC service");
    Failure { kind, status: http_status, ..Failure::failed(AttemptClass::HttpStatus, error) }
}

/// The failure after a part of the events was taken: of the next one.
pub(super) fn partial(taken: usize, given: usize) -> Failure {
    Failure::failed(AttemptClass::GrpcStatus, format!("the service took {taken} of {given} events"))
}

fn excerpt(message: &str) -> Bytes {
    Bytes::copy_from_slice(&message.as_bytes()[..message.len().min(RESPONSE_BYTES_MAX)])
}

/// The name of a code, as in the specification.
fn name(code: Code) -> &'static str {
    match code {
        Code::Ok => "OK",
        Code::Cancelled => "CANCELLED",
        Code::Unknown => "UNKNOWN",
        Code::InvalidArgument => "INVALID_ARGUMENT",
        Code::DeadlineExceeded => "DEADLINE_EXCEEDED",
        Code::NotFound => "NOT_FOUND",
        Code::AlreadyExists => "ALREADY_EXISTS",
        Code::PermissionDenied => "PERMISSION_DENIED",
        Code::ResourceExhausted => "RESOURCE_EXHAUSTED",
        Code::FailedPrecondition => "FAILED_PRECONDITION",
        Code::Aborted => "ABORTED",
        Code::OutOfRange => "OUT_OF_RANGE",
        Code::Unimplemented => "UNIMPLEMENTED",
        Code::Internal => "INTERNAL",
        Code::Unavailable => "UNAVAILABLE",
        Code::DataLoss => "DATA_LOSS",
        Code::Unauthenticated => "UNAUTHENTICATED",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Guards: only what the contract names is a dead letter at once.
    #[test]
    fn every_code_has_a_meaning() {
        for code in (1..=16).map(Code::from) {
            let kind = match code {
                Code::InvalidArgument | Code::OutOfRange | Code::Unimplemented => FailureKind::Rejected,
                Code::Unavailable => FailureKind::Unavailable,
                _ => FailureKind::Failed,
            };
            let failure = failure(&Status::new(code, "why"));
            assert_eq!((failure.kind, failure.status), (kind, i32::from(code) as u16), "{code:?}");
            assert_eq!((&failure.response[..], failure.error), (&b"why"[..], format!("status {}", name(code))));
            let gone = rpc::refusal(code, "gone", "moved", []);
            assert_eq!(super::failure(&gone).kind, FailureKind::EndpointRetired, "{code:?}");
        }
        for (status, kind) in [(503, FailureKind::Unavailable), (404, FailureKind::Failed), (400, FailureKind::Failed)]
        {
            assert_eq!(foreign(status).kind, kind, "{status}");
        }
    }
}
