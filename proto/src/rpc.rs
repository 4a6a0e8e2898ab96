//! Refusals on the wire: a canonical gRPC code, a line that says what to do, and a `google.rpc.ErrorInfo`
//! whose reason is the contract's code in upper case.

use std::{collections::HashMap, time::Duration};

use prost::Message;
use tonic::{Code, Status};

/// Domain of the errors.
const DOMAIN: &str = "weft";
/// Type URL of `google.rpc.ErrorInfo` in a status's details.
const ERROR_INFO: &str = "type.googleapis.com/google.rpc.ErrorInfo";

/// Response metadata: everything that the log held before this time (RFC 3339) is in the answer. Absent while nothing has
/// been read.
pub const AS_OF: &str = "weft-as-of";
/// Response metadata: how long ago [`AS_OF`] was, in milliseconds.
pub const AS_OF_LAG_MS: &str = "weft-as-of-lag-ms";
/// Response metadata: messages that the log held when the call came, and that are not in the answer.
pub const AS_OF_MESSAGES: &str = "weft-as-of-messages";

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

/// A status with its reason: one of the contract's codes, in either case.
pub fn refusal(
    code: Code,
    reason: &str,
    message: impl Into<String>,
    metadata: impl IntoIterator<Item = (&'static str, String)>,
) -> Status {
    let message = message.into();
    let metadata = metadata.into_iter().map(|(name, value)| (name.to_owned(), value)).collect();
    let info = ErrorInfo { reason: reason.to_ascii_uppercase(), domain: DOMAIN.into(), metadata };
    let info = prost_types::Any { type_url: ERROR_INFO.into(), value: info.encode_to_vec() };
    let status = RpcStatus { code: code as i32, message: message.clone(), details: vec![info] };
    Status::with_details(code, message, status.encode_to_vec().into())
}

/// The reason that a status carries in its `google.rpc.ErrorInfo`: the contract's code in upper case.
pub fn reason(status: &Status) -> Option<String> {
    let details = RpcStatus::decode(status.details()).ok()?.details;
    let info = details.iter().find(|detail| detail.type_url == ERROR_INFO)?;
    Some(ErrorInfo::decode(&info.value[..]).ok()?.reason)
}

/// A status of the gRPC library, which has no details, as one with a reason. Any other status is returned as it is.
pub fn with_reason(status: Status) -> Status {
    if reason(&status).is_some() {
        return status;
    }
    let message = status.message();
    match status.code() {
        // The library has no other OUT_OF_RANGE, and refusals of this crate have details.
        Code::OutOfRange => {
            let message = "the message is larger than this server takes";
            refusal(Code::InvalidArgument, "body_too_large", message, [])
        }
        Code::Unimplemented => refusal(Code::Unimplemented, "not_implemented", "this server has no such method", []),
        Code::Internal if message.contains("decode") => {
            refusal(Code::InvalidArgument, "malformed_body", "the message is not a valid one of this method", [])
        }
        Code::DeadlineExceeded => refusal(Code::DeadlineExceeded, "request_timeout", message, []),
        Code::NotFound => refusal(Code::NotFound, "not_found", message, []),
        Code::InvalidArgument => refusal(Code::InvalidArgument, "bad_query", message, []),
        Code::Unavailable => refusal(Code::Unavailable, "overloaded", message, []),
        code => refusal(code, "internal", message, []),
    }
}

/// Type URL of `google.rpc.RetryInfo` in a status's details.
const RETRY_INFO: &str = "type.googleapis.com/google.rpc.RetryInfo";

/// `google.rpc.RetryInfo`.
#[derive(Clone, PartialEq, prost::Message)]
struct RetryInfo {
    #[prost(message, optional, tag = "1")]
    retry_delay: Option<prost_types::Duration>,
}

/// The wait before a repeat that a status asks for by its `google.rpc.RetryInfo`.
pub fn retry_delay(status: &Status) -> Option<Duration> {
    let details = RpcStatus::decode(status.details()).ok()?.details;
    let info = details.iter().find(|detail| detail.type_url == RETRY_INFO)?;
    Duration::try_from(RetryInfo::decode(&info.value[..]).ok()?.retry_delay?).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The bytes are those that any client with google.rpc's definitions reads.
    #[test]
    fn a_refusal_carries_its_reason() {
        let status = refusal(Code::NotFound, "unknown_event", "no", [("oldestCursor", "c".to_owned())]);
        assert_eq!((status.code(), status.message()), (Code::NotFound, "no"));
        let rpc = RpcStatus::decode(status.details()).unwrap();
        assert_eq!((rpc.code, rpc.message.as_str()), (5, "no"));
        let info = ErrorInfo::decode(&rpc.details[0].value[..]).unwrap();
        assert_eq!((info.reason.as_str(), info.domain.as_str()), ("UNKNOWN_EVENT", "weft"));
        assert_eq!(info.metadata["oldestCursor"], "c");
        assert_eq!(reason(&status).as_deref(), Some("UNKNOWN_EVENT"));
        assert_eq!(reason(&Status::not_found("no")), None);
    }

    /// No refusal is without a reason, also of what the library refuses itself.
    #[test]
    fn statuses_of_the_library_get_a_reason() {
        let large = with_reason(Status::out_of_range("decoded message length too large: found 9 bytes"));
        assert_eq!((large.code(), reason(&large).as_deref()), (Code::InvalidArgument, Some("BODY_TOO_LARGE")));
        let garbled = with_reason(Status::internal("failed to decode Protobuf message: invalid tag"));
        assert_eq!((garbled.code(), reason(&garbled).as_deref()), (Code::InvalidArgument, Some("MALFORMED_BODY")));
        let unknown = with_reason(Status::unimplemented(""));
        assert_eq!((unknown.code(), reason(&unknown).as_deref()), (Code::Unimplemented, Some("NOT_IMPLEMENTED")));
        let ours = refusal(Code::OutOfRange, "cursor_expired", "no", []);
        assert_eq!(reason(&with_reason(ours)).as_deref(), Some("CURSOR_EXPIRED"));
    }

    #[test]
    fn a_status_asks_for_a_wait() {
        let info = RetryInfo { retry_delay: Some(prost_types::Duration { seconds: 7, nanos: 500_000_000 }) };
        let info = prost_types::Any { type_url: RETRY_INFO.into(), value: info.encode_to_vec() };
        let status = RpcStatus { code: 8, message: String::new(), details: vec![info] };
        let status = Status::with_details(Code::ResourceExhausted, "", status.encode_to_vec().into());
        assert_eq!(retry_delay(&status), Some(Duration::from_millis(7500)));
        assert_eq!(retry_delay(&Status::unavailable("no")), None);
    }
}
