//! A refusal as a gRPC status: the same codes as over HTTP.

use tonic::Status;
use weft_proto::rpc;

use crate::{
    http::error::{Code, Problem},
    metrics,
};

impl From<Problem> for Status {
    fn from(problem: Problem) -> Self {
        let code = problem.code();
        ::metrics::counter!(metrics::REFUSED, "code" => code.as_str()).increment(1);
        rpc::refusal(canonical(code), code.as_str(), problem.detail(), [])
    }
}

/// A refusal of tonic's own as one of ours, where the contract has a code for it: a message that is larger than may be
/// decoded.
pub(super) fn of_transport(status: Status) -> Status {
    // tonic has no other OUT_OF_RANGE, and ours have details.
    if status.code() == tonic::Code::OutOfRange && status.details().is_empty() {
        return Problem::new(Code::BodyTooLarge, "the message is larger than the gateway takes").into();
    }
    status
}

/// The canonical code of one of the contract's.
const fn canonical(code: Code) -> tonic::Code {
    match code {
        Code::NotImplemented => tonic::Code::Unimplemented,
        Code::BadRequest
        | Code::HeadersTooLarge
        | Code::MalformedBody
        | Code::MissingWorkflow
        | Code::InvalidWorkflow
        | Code::MissingType
        | Code::MissingDeliveryId
        | Code::BadCursor
        | Code::BadQuery
        | Code::BodyTooLarge
        | Code::UnsupportedMediaType
        | Code::SchemaInvalid => tonic::Code::InvalidArgument,
        Code::SignatureMissing
        | Code::SignatureInvalid
        | Code::TimestampOutOfWindow
        | Code::KeyMissing
        | Code::KeyInvalid => tonic::Code::Unauthenticated,
        Code::ScopeMissing | Code::OutOfScope => tonic::Code::PermissionDenied,
        Code::UnknownSource | Code::UnknownEvent | Code::NotFound | Code::MethodNotAllowed => tonic::Code::NotFound,
        Code::RequestTimeout => tonic::Code::DeadlineExceeded,
        Code::IdReused => tonic::Code::AlreadyExists,
        Code::Erased => tonic::Code::FailedPrecondition,
        Code::CursorExpired => tonic::Code::OutOfRange,
        Code::RateLimited => tonic::Code::ResourceExhausted,
        Code::Internal => tonic::Code::Internal,
        Code::LogUnavailable | Code::LogFull | Code::Starting | Code::Overloaded | Code::Draining => {
            tonic::Code::Unavailable
        }
    }
}
