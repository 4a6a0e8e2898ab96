//! Stripe: `Stripe-Signature: t=<unix seconds>,v1=<hex>`, HMAC-SHA256 over `{t}.{body}`.
//!
//! The key is the whole secret as Stripe shows it. It begins with `whsec_` as those of Standard Webhooks do, but nothing
//! is stripped and nothing decoded. During a rotation there are several `v1`; other entries, such as `v0` of test mode,
//! are for others.

use std::time::Duration;

use http::{HeaderMap, HeaderName};
use jiff::Timestamp;
use weft_proto::v1::StripeScheme;

use super::{Keys, SIGNATURES_MAX, Verified, VerifyError, check_window, lower_hex, required, tolerance, unix_seconds};

const SIGNATURE: HeaderName = HeaderName::from_static("stripe-signature");

#[derive(Debug)]
pub(super) struct Stripe {
    keys: Keys,
    tolerance: Duration,
}

impl Stripe {
    pub(super) fn compile(scheme: &StripeScheme) -> Result<Self, String> {
        Ok(Self { keys: Keys::new(&scheme.secrets)?, tolerance: tolerance(scheme.tolerance_ms) })
    }

    pub(super) fn verify(&self, headers: &HeaderMap, body: &[u8], now: Timestamp) -> Result<Verified, VerifyError> {
        let Signatures { seconds, tags } = Signatures::parse(required(headers, &SIGNATURE)?)?;
        // Digits only, so that the signed text can be cut in one way.
        let timestamp = unix_seconds(&SIGNATURE, seconds).map_err(|_| malformed(TIME_RULE))?;
        let parts = [seconds.as_bytes(), b".", body];
        let secret = self.keys.signer(parts.into_iter(), &tags).ok_or(VerifyError::Invalid)?;
        check_window(timestamp, now, self.tolerance)?;
        Ok(Verified::signed("stripe", secret, None, Some(timestamp)))
    }
}

/// What the header must say about the time.
const TIME_RULE: &str = "must have one t=, in unix seconds";

/// The header, taken apart.
struct Signatures<'h> {
    /// `t`, as it was signed.
    seconds: &'h str,
    /// Every `v1` that is hex.
    tags: Vec<Vec<u8>>,
}

impl<'h> Signatures<'h> {
    fn parse(header: &'h str) -> Result<Self, VerifyError> {
        let (mut seconds, mut tags) = (None, Vec::new());
        for entry in header.split(',') {
            match entry.trim().split_once('=') {
                Some(("t", text)) if seconds.replace(text).is_some() => return Err(malformed(TIME_RULE)),
                Some(("v1", text)) => tags.extend(lower_hex(text)),
                _ => {}
            }
        }
        if tags.len() > SIGNATURES_MAX {
            return Err(malformed("has more signatures than a rotation makes"));
        }
        Ok(Self { seconds: seconds.ok_or_else(|| malformed(TIME_RULE))?, tags })
    }
}

fn malformed(rule: &'static str) -> VerifyError {
    VerifyError::Malformed { header: SIGNATURE, rule }
}
