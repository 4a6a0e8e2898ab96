//! Who sent this? The signature of a request, checked over its raw body before anything in it is read.
//!
//! A source is compiled once, when its configuration is read; a request is then verified without allocation of more than
//! its signatures. Comparisons take the same time wherever the difference is. Only a timestamp that is signed says
//! anything about freshness, so it is looked at after the signature holds.

use std::{fmt, time::Duration};

use http::{HeaderMap, HeaderName};
use jiff::Timestamp;
use sha2::Sha256;
use weft_proto::v1::{Source, verification::Scheme as Configured};

use ::hmac::{Hmac, KeyInit as _, Mac as _};

mod github;
mod hmac;
mod standard;
#[cfg(test)]
mod tests;

/// The tolerance where the configuration names none: what the reference libraries of Standard Webhooks use.
const TOLERANCE_DEFAULT: Duration = Duration::from_secs(300);

/// How the requests of one source are verified.
#[derive(Debug)]
pub struct Verifier {
    scheme: Scheme,
}

#[derive(Debug)]
enum Scheme {
    Standard(standard::Standard),
    Github(github::Github),
    Hmac(hmac::Template),
    Unsigned,
}

/// A request that is the sender's, and what of it was signed besides the body.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Verified {
    /// The scheme's name.
    pub scheme: &'static str,
    /// Which of the source's secrets signed it; `None` where nothing is signed.
    pub secret: Option<usize>,
    /// The delivery id, where the scheme signs one.
    pub id: Option<String>,
    /// When the sender signed it, where the scheme signs that.
    pub timestamp: Option<Timestamp>,
}

impl Verified {
    /// Scheme and index of the secret, such as `standard/0`; `none` where nothing is signed.
    pub fn by(&self) -> String {
        match self.secret {
            Some(secret) => format!("{}/{secret}", self.scheme),
            None => self.scheme.to_owned(),
        }
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
        let configured = source.verification.as_ref().and_then(|verification| verification.scheme.as_ref());
        let scheme = match configured {
            Some(Configured::Standard(scheme)) => standard::Standard::compile(scheme).map(Scheme::Standard),
            Some(Configured::Github(scheme)) => github::Github::compile(scheme).map(Scheme::Github),
            Some(Configured::Hmac(scheme)) => hmac::Template::compile(scheme).map(Scheme::Hmac),
            Some(Configured::None(_)) => Ok(Scheme::Unsigned),
            Some(Configured::Stripe(_) | Configured::Slack(_) | Configured::Shopify(_) | Configured::ApiKey(_)) => {
                Err("the scheme is not supported by this version".to_owned())
            }
            None => Err("no scheme; name one of standard, github, hmac, none".to_owned()),
        };
        scheme
            .map(|scheme| Self { scheme })
            .map_err(|problem| CompileError { source_name: source.name.clone(), problem })
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
        match &self.scheme {
            Scheme::Standard(scheme) => scheme.verify(headers, body, now),
            Scheme::Github(scheme) => scheme.verify(headers, body),
            Scheme::Hmac(scheme) => scheme.verify(headers, body, now),
            Scheme::Unsigned => Ok(Verified { scheme: "none", secret: None, id: None, timestamp: None }),
        }
    }
}

/// The secrets of a source, as HMAC-SHA256 states that have taken their key already. Newest first.
struct Keys(Vec<Hmac<Sha256>>);

impl fmt::Debug for Keys {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "[{} secrets]", self.0.len())
    }
}

impl Keys {
    /// # Errors
    ///
    /// When there is none, or one that is empty: it would make every signature easy to forge.
    fn new<K: AsRef<[u8]>>(secrets: impl IntoIterator<Item = K>) -> Result<Self, String> {
        let mut keys = Vec::new();
        for (index, secret) in secrets.into_iter().enumerate() {
            let secret = secret.as_ref();
            if secret.is_empty() {
                return Err(format!("secret {index} is empty; give the sender's secret"));
            }
            keys.push(Hmac::new_from_slice(secret).map_err(|_| format!("secret {index} cannot be a key"))?);
        }
        if keys.is_empty() { Err("no secrets; give at least one".into()) } else { Ok(Self(keys)) }
    }

    /// The index of the secret that gives one of `tags` for the parts put together.
    fn signer<'p>(&self, parts: impl Iterator<Item = &'p [u8]> + Clone, tags: &[Vec<u8>]) -> Option<usize> {
        self.0.iter().position(|key| {
            let mut mac = key.clone();
            for part in parts.clone() {
                mac.update(part);
            }
            // Compares in constant time; a tag of another length is no match.
            tags.iter().any(|tag| mac.clone().verify_slice(tag).is_ok())
        })
    }
}

/// The text of a header that must be there.
fn required<'h>(headers: &'h HeaderMap, header: &HeaderName) -> Result<&'h str, VerifyError> {
    let value = headers.get(header).ok_or_else(|| VerifyError::Missing { header: header.clone() })?;
    value.to_str().map_err(|_| VerifyError::Malformed { header: header.clone(), rule: "must be printable ASCII" })
}

/// Unix seconds as a signed header spells them.
fn unix_seconds(header: &HeaderName, text: &str) -> Result<Timestamp, VerifyError> {
    let malformed = || VerifyError::Malformed { header: header.clone(), rule: "must be unix seconds" };
    if text.is_empty() || !text.bytes().all(|byte| byte.is_ascii_digit()) {
        return Err(malformed());
    }
    text.parse().ok().and_then(|seconds| Timestamp::from_second(seconds).ok()).ok_or_else(malformed)
}

/// Whether a signed timestamp is near enough to `now`, in whole seconds as senders count.
fn check_window(signed: Timestamp, now: Timestamp, tolerance: Duration) -> Result<(), VerifyError> {
    let distance = now.as_second() - signed.as_second();
    let by = Duration::from_secs(distance.unsigned_abs());
    if by <= tolerance {
        return Ok(());
    }
    let direction = if distance > 0 { Direction::Behind } else { Direction::Ahead };
    Err(VerifyError::OutOfWindow { signed, by, direction, tolerance })
}

/// A tolerance as configured; 0 stands for the default.
fn tolerance(configured_ms: u64) -> Duration {
    if configured_ms == 0 { TOLERANCE_DEFAULT } else { Duration::from_millis(configured_ms) }
}
