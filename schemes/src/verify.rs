//! Who sent this? The signature of a request, checked over its raw body before anything in it is read.
//!
//! A source is compiled once, when its configuration is read; a request is then verified without allocation of more than
//! its signatures. Comparisons take the same time wherever the difference is. Only a timestamp that is signed says
//! anything about freshness, so it is looked at after the signature holds.

use std::{fmt, time::Duration};

use http::{HeaderMap, HeaderName};
use jiff::Timestamp;
use weft_proto::v1::Source;

use crate::{names, of};

#[cfg(test)]
mod tests;

/// The tolerance where the configuration names none: what the reference libraries of Standard Webhooks use.
const TOLERANCE_DEFAULT: Duration = Duration::from_secs(300);
/// The most signatures of one request that are looked at. A rotation makes two or three; an asymmetric one costs a pass
/// over the body for each key, which anybody may ask for.
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

    /// What a verified request wants to get back, where it is no event but the provider's check of the address.
    fn challenge(&self, _body: &[u8]) -> Option<String> {
        None
    }
}

/// A request that is the sender's, and what of it was signed besides the body.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Verified {
    /// Who stands for it.
    pub signer: Signer,
    /// The delivery id, where the scheme signs one.
    pub id: Option<String>,
    /// When the sender signed it, where the scheme signs that.
    pub timestamp: Option<Timestamp>,
}

/// Who stands for a request. Displayed as it is written beside the event.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Signer {
    /// Whoever has this secret of the source: `standard/0`.
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
    /// Nobody; the source takes what is not signed: `none`.
    Nobody,
}

impl fmt::Display for Signer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Secret { scheme, index } => write!(f, "{scheme}/{index}"),
            Self::Key { id } => write!(f, "api_key/{id}"),
            Self::Nobody => f.write_str("none"),
        }
    }
}

impl Verified {
    /// Signed with a secret of the source.
    pub(crate) fn signed(scheme: &'static str, index: usize, id: Option<&str>, timestamp: Option<Timestamp>) -> Self {
        Self { signer: Signer::Secret { scheme, index }, id: id.map(str::to_owned), timestamp }
    }

    /// Who stands for it, as it is written beside the event: `standard/0`.
    pub fn by(&self) -> String {
        self.signer.to_string()
    }

    /// Sent by who holds an API key.
    pub fn of_key(id: impl Into<String>) -> Self {
        Self { signer: Signer::Key { id: id.into() }, id: None, timestamp: None }
    }
}

/// Why a request is not taken for the sender's.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum VerifyError {
    /// A header that the scheme needs is not there.
    #[error("header {header} is missing; the source's requests must be signed")]
    Missing {
        /// Which.
        header: HeaderName,
    },
    /// A signed header does not have the form that the scheme gives it.
    #[error("header {header} {rule}")]
    Malformed {
        /// Which.
        header: HeaderName,
        /// What it must be.
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
    /// What is wrong and what would be right.
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

    /// What a verified request wants to hear back, where it is no event but the provider's question whether anybody is
    /// there.
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
    // One spelling of a time: beside a digit of the body, a zero in front would be cut off as part of either.
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
