//! Stripe: `Stripe-Signature: t=<unix seconds>,v1=<hex>`, HMAC-SHA256 over `{t}.{body}`.
//!
//! The key is the whole secret as Stripe shows it. It begins with `whsec_` as those of Standard Webhooks do, but nothing
//! is stripped and nothing decoded. During a rotation there are several `v1`; other entries, such as `v0` of test mode,
//! are for others.

use std::time::Duration;

use http::{HeaderMap, HeaderName};
use jiff::Timestamp;
use weft_proto::v1::{StripeScheme, verification::Scheme};

use crate::{
    Form, IdLocation, Location, Verified, Verify, VerifyError, WebhookScheme,
    keys::{Keys, lower_hex},
    secrets::{Lookalike, check_literal},
    verify::{SIGNATURES_MAX, check_window, required, tolerance, unix_seconds},
};

const SIGNATURE: HeaderName = HeaderName::from_static("stripe-signature");

pub(crate) const FORM: Form = Form {
    name: "stripe",
    keys: &["secrets", "tolerance"],
    build: |settings| Scheme::Stripe(StripeScheme { secrets: settings.secrets, tolerance_ms: settings.tolerance_ms }),
};

/// A credential that is often taken for the secret.
const LOOKALIKE: Lookalike = Lookalike {
    prefixes: &["sk_", "rk_", "pk_"],
    is: "a key for Stripe's API",
    wanted: "the endpoint's signing secret, whsec_…",
};

impl WebhookScheme for StripeScheme {
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
        Some(IdLocation::At(Location::Pointer("/id")))
    }

    fn receipt_on_id_reuse(&self) -> bool {
        true
    }

    fn compile(&self) -> Result<Box<dyn Verify>, String> {
        Ok(Box::new(Stripe { keys: Keys::new(&self.secrets)?, tolerance: tolerance(self.tolerance_ms) }))
    }
}

#[derive(Debug)]
struct Stripe {
    keys: Keys,
    tolerance: Duration,
}

impl Verify for Stripe {
    fn verify(&self, headers: &HeaderMap, body: &[u8], now: Timestamp) -> Result<Verified, VerifyError> {
        let Signatures { seconds, tags } = Signatures::parse(required(headers, &SIGNATURE)?)?;
        // Digits only, so that the signed text can be cut in one way.
        let timestamp = unix_seconds(&SIGNATURE, seconds).map_err(|_| malformed(TIME_RULE))?;
        let parts = [seconds.as_bytes(), b".", body];
        let secret = self.keys.signer(parts.into_iter(), &tags).ok_or(VerifyError::Invalid)?;
        check_window(timestamp, now, self.tolerance)?;
        Ok(Verified::signed(FORM.name, secret, None, Some(timestamp)))
    }
}

/// Rule for the time in the header.
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
