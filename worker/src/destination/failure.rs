//! Requests that ended without a response: whether the request may be repeated at once, and what a failure means.

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

/// One request: the connection that it went to, and how far it got.
#[derive(Debug)]
pub(super) struct Sent {
    /// The connection, as soon as there is one.
    pub captured: CaptureConnection,
    /// Set as soon as the event is written to it.
    pub begun: Arc<AtomicBool>,
}

/// Why a request may be repeated at once, without counting as an attempt.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Lost {
    /// The receiver has not processed it: it was not written, its HTTP/2 stream was refused (`REFUSED_STREAM`), or the
    /// receiver stopped accepting streams before it (`GOAWAY`). RFC 9113, sections 6.8 and 8.7.
    Unprocessed,
    /// The connection had served others and ended before a byte of the response: most likely the receiver closed it while
    /// it was idle. Repeating is safe also if the event was processed, since `webhook-id` stays the same (RFC 9110,
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

    /// Why the request may be repeated; `None`: the error is that of an attempt.
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

    /// Whether a response means that the request was lost with a connection that the receiver closed because it was idle.
    pub fn is_idle_time_out(&self, status: StatusCode) -> bool {
        status == StatusCode::REQUEST_TIMEOUT
            && state(&self.captured).is_some_and(|state| state.may_have_timed_out_idle())
    }

    /// The request is given up; its connection may be frozen and is not used again.
    pub fn timed_out(&self, at: &str, timeout: Duration) -> Failure {
        retire(&self.captured);
        let ms = timeout.as_millis();
        if self.has_begun() {
            Failure::failed(AttemptClass::Timeout, format!("no answer from {at} within {ms} ms"))
        } else {
            Failure::unreachable(AttemptClass::Connect, format!("no connection to {at} within {ms} ms"))
        }
    }

    /// What an error means that ended the request.
    pub fn failed(&self, error: &Error, lost: Option<Lost>, at: &str) -> Failure {
        let chain = Chain(error);
        if let Some(not_sent) = chain.find::<NotSent>() {
            let failure = Failure::failed(AttemptClass::Connect, not_sent.to_string());
            return Failure { kind: FailureKind::NotSent, ..failure };
        }
        if let Some(refused) = chain.find::<RefusedAddress>() {
            return Failure::held(AttemptClass::RefusedAddress, refused.to_string());
        }
        if let Some(no_address) = chain.find::<NoAddress>() {
            return Failure::unreachable(AttemptClass::Dns, no_address.to_string());
        }
        let cause = chain.innermost();
        if error.is_connect() && !self.has_begun() {
            return match chain.find::<rustls::Error>() {
                Some(tls) => Failure::unreachable(AttemptClass::Tls, format!("no TLS with {at}: {}", tls_reason(tls))),
                None => Failure::unreachable(AttemptClass::Connect, format!("no connection to {at}: {cause}")),
            };
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

/// A TLS error in words, with the remedy where it is on this side.
fn tls_reason(error: &rustls::Error) -> String {
    match error {
        rustls::Error::InvalidCertificate(CertificateError::UnknownIssuer | CertificateError::BadSignature) => {
            "its certificate is signed by an authority that is not trusted here; add the authority to the system's trust \
             store or to the file that SSL_CERT_FILE names"
                .into()
        }
        // The kind is known to the verifier only.
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
