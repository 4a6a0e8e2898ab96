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
use ed25519_dalek::{Signature, SigningKey, VerifyingKey};
use http::{HeaderMap, HeaderName};
use jiff::Timestamp;
use weft_proto::v1::{StandardScheme, verification::Scheme};

use crate::{
    Form, IdLocation, Verified, Verify, VerifyError, WebhookScheme,
    keys::{Key, NO_SECRETS, empty},
    secrets::{BYTES_ENOUGH, BYTES_MIN, PRIVATE_PREFIX, PUBLIC_PREFIX, SHARED_PREFIX, too_short},
    spelling,
    verify::{SIGNATURES_MAX, check_window, required, tolerance, unix_seconds},
};

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

pub(crate) const FORM: Form = Form {
    name: "standard",
    keys: &["secrets", "tolerance"],
    build: |settings| {
        Scheme::Standard(StandardScheme { secrets: settings.secrets, tolerance_ms: settings.tolerance_ms })
    },
};

impl WebhookScheme for StandardScheme {
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
        let mut spelled = spelling::standard(text).peekable();
        spelled.peek().ok_or("is empty")?;
        spelled.try_for_each(check_spelled)
    }

    fn is_short(&self, text: &str) -> bool {
        spelling::standard(text)
            .filter(|secret| !secret.starts_with(PUBLIC_PREFIX))
            .any(|secret| shared_key(secret).is_some_and(|key| key.len() < BYTES_ENOUGH))
    }

    fn delivery_id(&self) -> Option<IdLocation> {
        Some(IdLocation::Signed)
    }

    /// In either family of names. Which one counts is decided by which is signed.
    fn signs_id_in(&self, header: &HeaderName) -> bool {
        [&WEBHOOK.id, &SVIX.id].contains(&header)
    }

    fn compile(&self) -> Result<Box<dyn Verify>, String> {
        Standard::compile(self).map(|standard| Box::new(standard) as Box<dyn Verify>)
    }
}

/// Checks one spelling of a secret: `whsec_…` for `v1`, `whpk_…` for `v1a`.
fn check_spelled(secret: &str) -> Result<(), String> {
    if secret.starts_with(PRIVATE_PREFIX) {
        return Err("is a private key, which only the sender should have; give its public key, whpk_…".into());
    }
    match secret.strip_prefix(PUBLIC_PREFIX) {
        Some(encoded) if public_key(encoded).is_some() => Ok(()),
        Some(_) => Err("is not whpk_ and the base64 of an Ed25519 public key".into()),
        None => match shared_key(secret) {
            Some(key) if key.len() < BYTES_MIN => Err(too_short(key.len())),
            Some(_) => Ok(()),
            None => {
                Err("is not whsec_ and base64; copy it as the sender shows it, or where it is one from Stripe say \
                         scheme = \"stripe\""
                    .into())
            }
        },
    }
}

/// Checks a secret that deliveries are signed with by `v1a`.
///
/// # Errors
///
/// As [`private_key`].
pub fn check_private(secret: &str) -> Result<(), String> {
    private_key(secret).map(drop)
}

/// The key of a secret that deliveries are signed with by `v1a`: `whsk_` and the base64 of an Ed25519 private key of 32
/// bytes, or of 64 bytes, where its public key follows.
///
/// # Errors
///
/// The problem, in words that follow "secret".
pub fn private_key(secret: &str) -> Result<SigningKey, String> {
    let bytes = secret.strip_prefix(PRIVATE_PREFIX).and_then(|encoded| SECRET_BASE64.decode(encoded).ok());
    let key = bytes.and_then(|bytes| match bytes.len() {
        32 => Some(SigningKey::from_bytes(bytes.as_slice().try_into().ok()?)),
        64 => SigningKey::from_keypair_bytes(bytes.as_slice().try_into().ok()?).ok(),
        _ => None,
    });
    key.ok_or_else(|| "is not whsk_ and the base64 of an Ed25519 private key, which signature v1a needs".into())
}

/// The key of a shared secret.
fn shared_key(secret: &str) -> Option<Vec<u8>> {
    SECRET_BASE64.decode(secret.strip_prefix(SHARED_PREFIX).unwrap_or(secret)).ok()
}

#[derive(Debug)]
struct Standard {
    /// With its index among those of the source, of which one may hold several.
    secrets: Vec<(usize, Secret)>,
    tolerance: Duration,
}

/// A verification key.
#[derive(Debug)]
enum Secret {
    Shared(Key),
    Public(VerifyingKey),
}

/// The well-formed signatures of a request.
#[derive(Default)]
struct Signatures {
    v1: Vec<Vec<u8>>,
    v1a: Vec<Signature>,
}

impl Standard {
    fn compile(scheme: &StandardScheme) -> Result<Self, String> {
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
}

impl Verify for Standard {
    fn verify(&self, headers: &HeaderMap, body: &[u8], now: Timestamp) -> Result<Verified, VerifyError> {
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
        Ok(Verified::signed(FORM.name, *secret, Some(id), Some(timestamp)))
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
        let key = shared_key(text).ok_or_else(|| {
            format!("secret {index} is not whsec_ followed by base64; copy it as the sender shows it")
        })?;
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
