//! Standard Webhooks 1.0 over `{id}.{timestamp}.{body}`: `v1,` and base64 of HMAC-SHA256, or `v1a,` and base64 of an
//! Ed25519 signature.
//!
//! A source may have secrets of both kinds: `whsec_…` verifies `v1`, the sender's public key `whpk_…` verifies `v1a`.
//! Svix sends the same bytes under `svix-…` names; both families are taken, never a mixture.

use std::time::Duration;

use base64::{
    Engine as _,
    engine::{
        DecodePaddingMode,
        general_purpose::{GeneralPurpose, GeneralPurposeConfig, STANDARD},
    },
};
use ed25519_dalek::{Signature, VerifyingKey};
use http::{HeaderMap, HeaderName};
use jiff::Timestamp;
use weft_nats::catalog::spelling;
use weft_proto::v1::StandardScheme;

use super::{
    Key, NO_SECRETS, SIGNATURES_MAX, Verified, VerifyError, check_window, empty, required, tolerance, unix_seconds,
};

/// What a shared secret in its configured form begins with.
const SECRET_PREFIX: &str = "whsec_";
/// What a public key begins with.
const PUBLIC_PREFIX: &str = "whpk_";
/// What a private key begins with. It is the sender's alone.
const PRIVATE_PREFIX: &str = "whsk_";

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

/// Whether a header holds the delivery id in one of the families. Which of them counts is decided by which is signed.
pub(crate) fn is_id(header: &HeaderName) -> bool {
    [&WEBHOOK.id, &SVIX.id].contains(&header)
}

#[derive(Debug)]
pub(super) struct Standard {
    /// With its index among those of the source, of which one may hold several.
    secrets: Vec<(usize, Secret)>,
    tolerance: Duration,
}

/// What verifies.
#[derive(Debug)]
enum Secret {
    Shared(Key),
    Public(VerifyingKey),
}

/// The signatures of a request that could be somebody's.
#[derive(Default)]
struct Signatures {
    v1: Vec<Vec<u8>>,
    v1a: Vec<Signature>,
}

impl Standard {
    pub(super) fn compile(scheme: &StandardScheme) -> Result<Self, String> {
        if scheme.secrets.is_empty() {
            return Err(NO_SECRETS.into());
        }
        let mut secrets = Vec::with_capacity(scheme.secrets.len());
        for (index, text) in scheme.secrets.iter().enumerate() {
            let before = secrets.len();
            for spelled in spelling::standard(text) {
                secrets.push((index, Secret::compile(index, spelled)?));
            }
            if secrets.len() == before {
                return Err(empty(index));
            }
        }
        Ok(Self { secrets, tolerance: tolerance(scheme.tolerance_ms) })
    }

    pub(super) fn verify(&self, headers: &HeaderMap, body: &[u8], now: Timestamp) -> Result<Verified, VerifyError> {
        let family = if headers.contains_key(&SVIX.signature) && !headers.contains_key(&WEBHOOK.signature) {
            &SVIX
        } else {
            &WEBHOOK
        };
        let signatures = required(headers, &family.signature)?;
        let id = required(headers, &family.id)?;
        let seconds = required(headers, &family.timestamp)?;
        // With a full stop in its id, one signed text could be cut into id, timestamp and body in two ways; the standard
        // forbids it.
        if id.contains('.') {
            let rule = "must not contain a full stop";
            return Err(VerifyError::Malformed { header: family.id.clone(), rule });
        }
        let timestamp = unix_seconds(&family.timestamp, seconds)?;
        let signatures = Signatures::parse(signatures)
            .ok_or_else(|| VerifyError::Malformed { header: family.signature.clone(), rule: Signatures::RULE })?;
        let parts = [id.as_bytes(), b".", seconds.as_bytes(), b".", body];
        let secret = self.secrets.iter().find(|(_, secret)| secret.gave(&parts, &signatures));
        let (secret, _) = secret.ok_or(VerifyError::Invalid)?;
        check_window(timestamp, now, self.tolerance)?;
        Ok(Verified::signed("standard", *secret, Some(id), Some(timestamp)))
    }
}

impl Secret {
    fn compile(index: usize, text: &str) -> Result<Self, String> {
        if text.starts_with(PRIVATE_PREFIX) {
            return Err(format!(
                "secret {index} is a private key, which only the sender should have; give its public key, whpk_…"
            ));
        }
        if let Some(encoded) = text.strip_prefix(PUBLIC_PREFIX) {
            return public_key(encoded)
                .map(Self::Public)
                .ok_or_else(|| format!("secret {index} is not whpk_ followed by base64 of an Ed25519 public key"));
        }
        let key = SECRET_BASE64
            .decode(text.strip_prefix(SECRET_PREFIX).unwrap_or(text))
            .map_err(|_| format!("secret {index} is not whsec_ followed by base64; copy it as the sender shows it"))?;
        Key::new(index, &key).map(Self::Shared)
    }

    /// Whether one of the signatures was made with it.
    fn gave(&self, parts: &[&[u8]], signatures: &Signatures) -> bool {
        match self {
            Self::Shared(key) => key.gives(parts.iter().copied(), &signatures.v1),
            Self::Public(_) if signatures.v1a.is_empty() => false,
            Self::Public(key) => {
                let signed = parts.concat();
                signatures.v1a.iter().any(|signature| key.verify_strict(&signed, signature).is_ok())
            }
        }
    }
}

/// A key under which only its owner's signatures hold: of a few points everything would.
fn public_key(encoded: &str) -> Option<VerifyingKey> {
    let bytes = SECRET_BASE64.decode(encoded).ok()?;
    let key = VerifyingKey::from_bytes(&bytes.try_into().ok()?).ok()?;
    (!key.is_weak()).then_some(key)
}

impl Signatures {
    const RULE: &str = "has more signatures than a rotation makes";

    /// Several during a rotation; other versions are for others. `None`: more than [`SIGNATURES_MAX`].
    fn parse(header: &str) -> Option<Self> {
        let mut signatures = Self::default();
        for (version, encoded) in header.split(' ').filter_map(|signature| signature.split_once(',')) {
            let Ok(bytes) = STANDARD.decode(encoded) else { continue };
            match version {
                "v1" => signatures.v1.push(bytes),
                "v1a" => signatures.v1a.extend(Signature::from_slice(&bytes)),
                _ => {}
            }
        }
        (signatures.v1.len() + signatures.v1a.len() <= SIGNATURES_MAX).then_some(signatures)
    }
}
