//! Standard Webhooks 1.0, symmetric: `v1,` and base64 of HMAC-SHA256 over `{id}.{timestamp}.{body}`.
//!
//! Svix sends the same bytes under `svix-…` names; both families are taken, never a mixture.

use std::time::Duration;

use base64::{
    Engine as _,
    engine::{
        DecodePaddingMode,
        general_purpose::{GeneralPurpose, GeneralPurposeConfig, STANDARD},
    },
};
use http::{HeaderMap, HeaderName};
use jiff::Timestamp;
use weft_proto::v1::StandardScheme;

use super::{Keys, Verified, VerifyError, check_window, required, tolerance, unix_seconds};

/// What a secret in its configured form begins with.
const SECRET_PREFIX: &str = "whsec_";

/// Secrets are handed around with and without their padding.
const SECRET_BASE64: GeneralPurpose = GeneralPurpose::new(
    &base64::alphabet::STANDARD,
    GeneralPurposeConfig::new().with_decode_padding_mode(DecodePaddingMode::Indifferent),
);

/// The names that one family gives its headers.
struct Family {
    id: HeaderName,
    timestamp: HeaderName,
    signature: HeaderName,
}

static WEBHOOK: Family = Family {
    id: HeaderName::from_static("webhook-id"),
    timestamp: HeaderName::from_static("webhook-timestamp"),
    signature: HeaderName::from_static("webhook-signature"),
};

static SVIX: Family = Family {
    id: HeaderName::from_static("svix-id"),
    timestamp: HeaderName::from_static("svix-timestamp"),
    signature: HeaderName::from_static("svix-signature"),
};

#[derive(Debug)]
pub(super) struct Standard {
    keys: Keys,
    tolerance: Duration,
}

impl Standard {
    pub(super) fn compile(scheme: &StandardScheme) -> Result<Self, String> {
        let mut keys = Vec::new();
        for (index, secret) in scheme.secrets.iter().enumerate() {
            let encoded = secret.strip_prefix(SECRET_PREFIX).unwrap_or(secret);
            let key = SECRET_BASE64.decode(encoded).map_err(|_| {
                format!("secret {index} is not whsec_ followed by base64; copy it as the sender shows it")
            })?;
            keys.push(key);
        }
        Ok(Self { keys: Keys::new(keys)?, tolerance: tolerance(scheme.tolerance_ms) })
    }

    pub(super) fn verify(&self, headers: &HeaderMap, body: &[u8], now: Timestamp) -> Result<Verified, VerifyError> {
        let family = if headers.contains_key(&SVIX.signature) && !headers.contains_key(&WEBHOOK.signature) {
            &SVIX
        } else {
            &WEBHOOK
        };
        let signatures = required(headers, &family.signature)?;
        let id = required(headers, &family.id)?;
        let timestamp = required(headers, &family.timestamp)?;
        // With a full stop in its id, one signed text could be cut into id, timestamp and body in two ways.
        if id.contains('.') {
            let rule = "must not contain a full stop";
            return Err(VerifyError::Malformed { header: family.id.clone(), rule });
        }
        // Several during a rotation; other versions are for others.
        let tags: Vec<Vec<u8>> = signatures
            .split(' ')
            .filter_map(|signature| STANDARD.decode(signature.strip_prefix("v1,")?).ok())
            .collect();
        let parts = [id.as_bytes(), b".", timestamp.as_bytes(), b".", body];
        let secret = self.keys.signer(parts.into_iter(), &tags).ok_or(VerifyError::Invalid)?;
        let timestamp = unix_seconds(&family.timestamp, timestamp)?;
        check_window(timestamp, now, self.tolerance)?;
        Ok(Verified { scheme: "standard", secret: Some(secret), id: Some(id.to_owned()), timestamp: Some(timestamp) })
    }
}
