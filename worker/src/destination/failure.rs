//! Requests that ended without a response: whether they are repeated at once, and the kind of the failure.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use http::StatusCode;
use hyper_util::client::legacy::{Error, connect::CaptureConnection};
use rustls::CertificateError;
use weft_proto::v1::AttemptClass;

use super::{
    Failure, FailureKind, NotSent,
    address::RefusedAddress,
    clients::Chain,
    connection::{retire, state},
    resolver::NoAddress,
};

/// A request that was sent.
#[derive(Debug)]
pub(super) struct Sent {
    /// Its connection, once there is one.
    pub captured: CaptureConnection,
    /// Set when writing the event starts.
    pub begun: Arc<AtomicBool>,
}

/// Why a request is repeated at once, within the same attempt.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Lost {
    /// The receiver did not process it: it was not written, its HTTP/2 stream was refused (`REFUSED_STREAM`), or the
    /// receiver stopped accepting streams before it (`GOAWAY`). RFC 9113, sections 6.8 and 8.7.
    Unprocessed,
    /// The connection had served others and ended before the first byte of the response: most likely the receiver closed it
    /// while it was idle. A repeat is safe even if the event was processed, since `webhook-id` is the same (RFC 9110,
    /// section 9.2.2).
    ConnectionClosed,
}

impl Lost {
    /// Label of the metric.
    pub fn label(self) -> &'static str {
        match self {
            Self::Unprocessed => "unprocessed",
            Self::ConnectionClosed => "connection_closed",
        }
    }
}

impl Sent {
    fn has_begun(&self) -> bool {
        self.begun.load(Ordering::Relaxed)
    }

    /// Why the request is repeated; `None`: the attempt failed.
    pub fn lost(&self, error: &Error) -> Option<Lost> {
        let chain = Chain(error);
        if error.is_connect() || chain.find::<NotSent>().is_some() {
            return None;
        }
        let state = state(&self.captured)?;
        if let Some(http2) = chain.find::<h2::Error>() {
            let refused = http2.is_reset() && http2.reason() == Some(h2::Reason::REFUSED_STREAM);
            let going_away = http2.is_go_away() && http2.reason() == Some(h2::Reason::NO_ERROR);
            if http2.is_remote() && (refused || going_away) {
                return Some(Lost::Unprocessed);
            }
            if http2.is_reset() {
                return None;
            }
        }
        if !self.has_begun() {
            return Some(Lost::Unprocessed);
        }
        let by_us = chain.find::<hyper::Error>().is_some_and(|error| error.is_parse() || error.is_user());
        (!by_us && state.may_have_been_closed_before()).then_some(Lost::ConnectionClosed)
    }

    /// Whether a response is that of a receiver that closes an idle connection, so that the request was lost.
    pub fn is_idle_time_out(&self, status: StatusCode) -> bool {
        status == StatusCode::REQUEST_TIMEOUT
            && state(&self.captured).is_some_and(|state| state.may_have_timed_out_idle())
    }

    /// The failure of a request that timed out. Its connection may be frozen and is not reused.
    pub fn timed_out(&self, at: &str, timeout: Duration) -> Failure {
        retire(&self.captured);
        let ms = timeout.as_millis();
        if self.has_begun() {
            Failure::failed(AttemptClass::Timeout, format!("no answer from {at} within {ms} ms"))
        } else {
            Failure::unreachable(AttemptClass::Connect, format!("no connection to {at} within {ms} ms"))
        }
    }

    /// The failure of a request that ended with an error.
    pub fn failed(&self, error: &Error, lost: Option<Lost>, at: &str) -> Failure {
        let chain = Chain(error);
        if let Some(not_sent) = chain.find::<NotSent>() {
            let failure = Failure::failed(AttemptClass::Connect, not_sent.to_string());
            return Failure { kind: FailureKind::NotSent, ..failure };
        }
        if let Some(failure) = no_address(&chain) {
            return failure;
        }
        let cause = chain.innermost();
        if error.is_connect() && !self.has_begun() {
            return no_connection(&chain, at);
        }
        match lost {
            Some(Lost::Unprocessed) => {
                let error = format!("{at} refused the request before processing it: {cause}");
                Failure::unreachable(AttemptClass::Protocol, error)
            }
            Some(Lost::ConnectionClosed) | None => {
                Failure::failed(AttemptClass::Protocol, format!("no valid answer from {at}: {cause}"))
            }
        }
    }
}

/// The failure of a request without an event that ended with an error.
pub(super) fn without_answer(error: &Error, at: &str) -> Failure {
    let chain = Chain(error);
    no_address(&chain).unwrap_or_else(|| no_connection(&chain, at))
}

/// The failure of a host whose name has no address, or none that may be called.
fn no_address(chain: &Chain<'_>) -> Option<Failure> {
    if let Some(refused) = chain.find::<RefusedAddress>() {
        return Some(Failure::held(AttemptClass::RefusedAddress, refused.to_string()));
    }
    let no_address = chain.find::<NoAddress>()?;
    Some(Failure::unreachable(AttemptClass::Dns, no_address.to_string()))
}

fn no_connection(chain: &Chain<'_>, at: &str) -> Failure {
    match chain.find::<rustls::Error>() {
        Some(tls) => Failure::unreachable(AttemptClass::Tls, format!("no TLS with {at}: {}", tls_reason(tls))),
        None => Failure::unreachable(AttemptClass::Connect, format!("no connection to {at}: {}", chain.innermost())),
    }
}

/// The message of a TLS error, with the remedy where there is one on this side.
fn tls_reason(error: &rustls::Error) -> String {
    match error {
        rustls::Error::InvalidCertificate(CertificateError::UnknownIssuer | CertificateError::BadSignature) => {
            "its certificate is signed by an authority that is not trusted here; name the authority as the destination's ca, or \
             add it to the system's trust store or to the file that SSL_CERT_FILE names"
                .into()
        }
        // Only the verifier knows the kind.
        rustls::Error::InvalidCertificate(CertificateError::Other(other))
            if format!("{other:?}").contains("CaUsedAsEndEntity") =>
        {
            "its certificate is that of a certificate authority (such as a self-signed one); a server needs a certificate \
             signed by the authority"
                .into()
        }
        error => error.to_string(),
    }
}
