//! Slack: `X-Slack-Signature: v0=` and hex of HMAC-SHA256 over `v0:{timestamp}:{body}`, the timestamp from
//! `X-Slack-Request-Timestamp`.

use std::time::Duration;

use http::{HeaderMap, HeaderName};
use jiff::Timestamp;
use weft_nats::pointer;
use weft_proto::v1::SlackScheme;

use super::{Keys, Verified, VerifyError, check_window, lower_hex, required, tolerance, unix_seconds};

const SIGNATURE: HeaderName = HeaderName::from_static("x-slack-signature");
const TIMESTAMP: HeaderName = HeaderName::from_static("x-slack-request-timestamp");

#[derive(Debug)]
pub(super) struct Slack {
    keys: Keys,
    tolerance: Duration,
}

impl Slack {
    pub(super) fn compile(scheme: &SlackScheme) -> Result<Self, String> {
        Ok(Self { keys: Keys::new(&scheme.secrets)?, tolerance: tolerance(scheme.tolerance_ms) })
    }

    pub(super) fn verify(&self, headers: &HeaderMap, body: &[u8], now: Timestamp) -> Result<Verified, VerifyError> {
        let signature = required(headers, &SIGNATURE)?;
        let seconds = required(headers, &TIMESTAMP)?;
        // Digits only, so that the signed text can be cut in one way.
        let timestamp = unix_seconds(&TIMESTAMP, seconds)?;
        let tag = signature.strip_prefix("v0=").and_then(lower_hex).ok_or(VerifyError::Invalid)?;
        let parts = [b"v0:", seconds.as_bytes(), b":", body];
        let secret = self.keys.signer(parts.into_iter(), &[tag]).ok_or(VerifyError::Invalid)?;
        check_window(timestamp, now, self.tolerance)?;
        Ok(Verified::signed("slack", secret, None, Some(timestamp)))
    }
}

/// The challenge of the request by which Slack asks whether an address is its owner's. Such a request is no event, even
/// where it forgets its challenge.
pub(super) fn challenge(body: &[u8]) -> Option<String> {
    if pointer::scalar(body, "/type")? != "url_verification" {
        return None;
    }
    Some(pointer::scalar(body, "/challenge").unwrap_or_default().into_owned())
}
