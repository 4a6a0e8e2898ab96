//! Slack: `X-Slack-Signature: v0=` and hex of HMAC-SHA256 over `v0:{timestamp}:{body}`, the timestamp from
//! `X-Slack-Request-Timestamp`.

use std::time::Duration;

use http::{HeaderMap, HeaderName};
use jiff::Timestamp;
use weft_proto::v1::{SlackScheme, verification::Scheme};
use weft_schema::pointer;

use crate::{
    Form, IdLocation, Location, Verified, Verify, VerifyError, WebhookScheme,
    keys::{Keys, lower_hex},
    secrets::{Lookalike, check_literal},
    verify::{check_window, required, tolerance, unix_seconds},
};

const SIGNATURE: HeaderName = HeaderName::from_static("x-slack-signature");
const TIMESTAMP: HeaderName = HeaderName::from_static("x-slack-request-timestamp");

pub(crate) const FORM: Form = Form {
    name: "slack",
    keys: &["secrets", "tolerance"],
    build: |settings| Scheme::Slack(SlackScheme { secrets: settings.secrets, tolerance_ms: settings.tolerance_ms }),
};

/// A credential that is often taken for the secret.
const LOOKALIKE: Lookalike = Lookalike {
    prefixes: &["xox", "xapp-", "xwfp-"],
    is: "a token for Slack's API",
    wanted: "the app's signing secret, under Basic Information",
};

impl WebhookScheme for SlackScheme {
    fn name(&self) -> &'static str {
        FORM.name
    }

    fn secrets(&self) -> Option<&Vec<String>> {
        Some(&self.secrets)
    }

    fn secrets_mut(&mut self) -> Option<&mut Vec<String>> {
        Some(&mut self.secrets)
    }

    fn tolerance_ms(&self) -> Option<u64> {
        self.tolerance_ms
    }

    fn check_secret(&self, text: &str) -> Result<(), String> {
        check_literal(text, |secret| LOOKALIKE.check(secret))
    }

    fn delivery_id(&self) -> Option<IdLocation> {
        Some(IdLocation::At(Location::Pointer("/event_id")))
    }

    fn event_type(&self) -> Location {
        Location::Pointer("/event/type")
    }

    fn receipt_on_id_reuse(&self) -> bool {
        true
    }

    fn compile(&self) -> Result<Box<dyn Verify>, String> {
        Ok(Box::new(Slack { keys: Keys::new(&self.secrets)?, tolerance: tolerance(self.tolerance_ms) }))
    }
}

#[derive(Debug)]
struct Slack {
    keys: Keys,
    tolerance: Duration,
}

impl Verify for Slack {
    fn verify(&self, headers: &HeaderMap, body: &[u8], now: Timestamp) -> Result<Verified, VerifyError> {
        let signature = required(headers, &SIGNATURE)?;
        let seconds = required(headers, &TIMESTAMP)?;
        // Digits only, so that the signed text can be cut in one way.
        let timestamp = unix_seconds(&TIMESTAMP, seconds)?;
        let tag = signature.strip_prefix("v0=").and_then(lower_hex).ok_or(VerifyError::Invalid)?;
        let parts = [b"v0:", seconds.as_bytes(), b":", body];
        let secret = self.keys.signer(parts.into_iter(), &[tag]).ok_or(VerifyError::Invalid)?;
        check_window(timestamp, now, self.tolerance)?;
        Ok(Verified::signed(FORM.name, secret, None, Some(timestamp)))
    }

    /// Slack asks whether an address is its owner's. Such a request is no event, even without its challenge.
    fn challenge(&self, body: &[u8]) -> Option<String> {
        if pointer::scalar(body, "/type")? != "url_verification" {
            return None;
        }
        Some(pointer::scalar(body, "/challenge").unwrap_or_default().into_owned())
    }
}
