//! Verification of requests: the signature over the raw body, before the body is parsed.
//!
//! A source is compiled once, when its configuration is read; verifying a request allocates only
//! its signatures. Comparisons are in constant time. Only a signed timestamp proves
//! freshness, so it is checked after the signature.

use std::{fmt, time::Duration};

use http::{HeaderMap, HeaderName};
use jiff::Timestamp;
use weft_proto::v1::Source;

use crate::{names, of};

#[cfg(test)]
mod tests;

/// Default tolerance: that of the reference libraries of Standard Webhooks.
pub const TOLERANCE_DEFAULT: Duration = Duration::from_secs(300);
/// Maximum number of checked signatures of one request. A rotation makes two or three; an asymmetric one costs a pass
/// over the body for each key, for any unauthenticated request.
pub(crate) const SIGNATURES_MAX: usize = 8;

/// How the requests of one source are verified.
#[derive(Debug)]
pub struct Verifier(Box<dyn Verify>);

/// A compiled scheme.
pub trait Verify: fmt::Debug + Send + Sync {
    /// Whether a request with these headers and this raw body is the sender's, and fresh.
    ///
    /// # Errors
    ///
    /// [`VerifyError`].
    fn verify(&self, headers: &HeaderMap, body: &[u8], now: Timestamp) -> Result<Verified, VerifyError>;

    /// Whether requests carry an API key instead of a signature: then [`verify`](Self::verify) accepts none of them.
    fn takes_key(&self) -> bool {
        false
    }

    /// The response to a verified request that is not an event but the provider's check of the URL.
    fn challenge(&self, _body: &[u8]) -> Option<String> {
        None
    }
}

/// A verified request, with its signed fields besides the body.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Verified {
    /// The authenticated signer.
    pub signer: Signer,
    /// The delivery id, where the scheme signs one.
    pub id: Option<String>,
    /// When the sender signed it, where the scheme signs that.
    pub timestamp: Option<Timestamp>,
}

/// Signer of a request. Its display form is stored with the event.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Signer {
    /// The holder of this secret of the source: `standard/0`.
    Secret {
        /// The scheme's name.
        scheme: &'static str,
        /// The secret's place among those of the source, newest first.
        index: usize,
    },
    /// The holder of an API key: `api_key/<id>`.
    Key {
        /// The part of the key that names it.
        id: String,
    },
    /// None; the source accepts unsigned requests: `none`.
    Unsigned,
}

impl fmt::Display for Signer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Secret { scheme, index } => write!(f, "{scheme}/{index}"),
            Self::Key { id } => write!(f, "api_key/{id}"),
            Self::Unsigned => f.write_str("none"),
        }
    }
}

impl Verified {
    /// Signed with a secret of the source.
    pub(crate) fn signed(scheme: &'static str, index: usize, id: Option<&str>, timestamp: Option<Timestamp>) -> Self {
        Self { signer: Signer::Secret { scheme, index }, id: id.map(str::to_owned), timestamp }
    }

    /// The signer in the form stored with the event: `standard/0`.
    pub fn by(&self) -> String {
        self.signer.to_string()
    }

    /// Sent by the holder of an API key.
    pub fn of_key(id: impl Into<String>) -> Self {
        Self { signer: Signer::Key { id: id.into() }, id: None, timestamp: None }
    }
}

/// Reason why a request is not accepted as the sender's.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum VerifyError {
    /// A header that the scheme needs is not there.
    #[error("header {header} is missing; the source's requests must be signed")]
    Missing {
        /// Name of the header.
        header: HeaderName,
    },
    /// A signed header does not have the form that the scheme gives it.
    #[error("header {header} {rule}")]
    Malformed {
        /// Name of the header.
        header: HeaderName,
        /// The required form.
        rule: &'static str,
    },
    /// The source takes API keys, which are not looked at here.
    #[error("the source takes an API key instead of a signature; send it as x-api-key or as Authorization: Bearer")]
    KeyNeeded,
    /// No secret of the source gives this signature.
    #[error("the signature does not match the body and the source's secrets; sign the raw body")]
    Invalid,
    /// The signed timestamp is too far from the gateway's clock.
    #[error("the signed timestamp is {}s {direction} the gateway's clock; at most {}s are allowed", by.as_secs(), tolerance.as_secs())]
    OutOfWindow {
        /// When it was signed.
        signed: Timestamp,
        /// How far.
        by: Duration,
        /// To which side.
        direction: Direction,
        /// How far is allowed.
        tolerance: Duration,
    },
}

/// Whether a request must have been signed lately.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Freshness {
    /// As of every request that comes from outside.
    Required,
    /// As of one that was received before and kept.
    Waived,
}

/// The side of the gateway's clock on which a timestamp lies.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Direction {
    /// Signed too long ago.
    Behind,
    /// Signed in the future.
    Ahead,
}

impl fmt::Display for Direction {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Behind => "behind",
            Self::Ahead => "ahead of",
        })
    }
}

/// Why no request of a source could be verified.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("source {source_name}: verify: {problem}")]
pub struct CompileError {
    /// The source.
    pub source_name: String,
    /// The fault and the correct form.
    pub problem: String,
}

impl Verifier {
    /// Reads the secrets and rules of a source.
    ///
    /// # Errors
    ///
    /// [`CompileError`] when they could never verify anything.
    pub fn compile(source: &Source) -> Result<Self, CompileError> {
        let scheme = source.verification.as_ref().and_then(|verification| verification.scheme.as_ref());
        let compiled = match scheme {
            Some(scheme) => of(scheme).compile(),
            None => Err(format!("no scheme; name one of {}", names())),
        };
        compiled.map(Self).map_err(|problem| CompileError { source_name: source.name.clone(), problem })
    }

    /// As [`verify`](Self::verify), however long ago it was signed where that is waived.
    ///
    /// # Errors
    ///
    /// [`VerifyError`].
    pub fn verify_with(
        &self,
        freshness: Freshness,
        headers: &HeaderMap,
        body: &[u8],
        now: Timestamp,
    ) -> Result<Verified, VerifyError> {
        match self.verify(headers, body, now) {
            // The signature has held by then; looked at when it was signed, it is fresh.
            Err(VerifyError::OutOfWindow { signed, .. }) if freshness == Freshness::Waived => {
                self.verify(headers, body, signed)
            }
            verified => verified,
        }
    }

    /// Whether a request with these headers and this raw body is the sender's, and fresh.
    ///
    /// # Errors
    ///
    /// [`VerifyError`].
    pub fn verify(&self, headers: &HeaderMap, body: &[u8], now: Timestamp) -> Result<Verified, VerifyError> {
        self.0.verify(headers, body, now)
    }

    /// Whether its requests carry an API key instead of a signature: then [`verify`](Self::verify) takes none of them.
    pub fn takes_key(&self) -> bool {
        self.0.takes_key()
    }

    /// The response to a verified request that is not an event but the provider's check of the URL.
    pub fn challenge(&self, body: &[u8]) -> Option<String> {
        self.0.challenge(body)
    }
}

/// The text of a header that must be there, and once: of two values, another reader might take the other.
pub(crate) fn required<'h>(headers: &'h HeaderMap, header: &HeaderName) -> Result<&'h str, VerifyError> {
    let malformed = |rule| VerifyError::Malformed { header: header.clone(), rule };
    let mut values = headers.get_all(header).iter();
    let value = values.next().ok_or_else(|| VerifyError::Missing { header: header.clone() })?;
    if values.next().is_some() {
        return Err(malformed("must be there once"));
    }
    value.to_str().map_err(|_| malformed("must be printable ASCII"))
}

/// Unix seconds as a signed header spells them.
pub(crate) fn unix_seconds(header: &HeaderName, text: &str) -> Result<Timestamp, VerifyError> {
    let malformed = || VerifyError::Malformed { header: header.clone(), rule: "must be unix seconds" };
    // One spelling of a time: a leading zero next to a digit of the body could belong to either.
    if text.starts_with('0') || !text.bytes().all(|byte| byte.is_ascii_digit()) {
        return Err(malformed());
    }
    text.parse().ok().and_then(|seconds| Timestamp::from_second(seconds).ok()).ok_or_else(malformed)
}

/// Whether a signed timestamp is near enough to `now`, in whole seconds as senders count.
pub(crate) fn check_window(signed: Timestamp, now: Timestamp, tolerance: Duration) -> Result<(), VerifyError> {
    let distance = now.as_second() - signed.as_second();
    let by = Duration::from_secs(distance.unsigned_abs());
    if by <= tolerance {
        return Ok(());
    }
    let direction = if distance > 0 { Direction::Behind } else { Direction::Ahead };
    Err(VerifyError::OutOfWindow { signed, by, direction, tolerance })
}

/// A tolerance as configured.
pub(crate) fn tolerance(configured_ms: Option<u64>) -> Duration {
    configured_ms.map_or(TOLERANCE_DEFAULT, Duration::from_millis)
}
