//! What the secret of each scheme looks like, and what is often taken for it.
//!
//! A provider's settings show several credentials, and only one of them signs. With another one the source would
//! refuse every request, so it is refused here, where somebody can still mend it. No message holds a secret.

use base64::{
    Engine as _,
    engine::{
        DecodePaddingMode,
        general_purpose::{GeneralPurpose, GeneralPurposeConfig},
    },
    prelude::BASE64_STANDARD,
};
use ed25519_dalek::VerifyingKey;
use weft_proto::v1::verification::Scheme;

use crate::catalog::spelling;

/// What a shared secret of Standard Webhooks begins with, and, by coincidence, one of Stripe.
const SHARED_PREFIX: &str = "whsec_";
/// What a public key of Standard Webhooks begins with.
const PUBLIC_PREFIX: &str = "whpk_";
/// What a private key of Standard Webhooks begins with. It is the sender's alone.
const PRIVATE_PREFIX: &str = "whsk_";
/// How long the key of a shared secret may be that we or our operators make, as Standard Webhooks says.
const SHARED_BYTES: std::ops::RangeInclusive<usize> = 24..=64;

/// The shortest secret of a sender's, in bytes: a shorter one is guessed, or is no secret at all.
const SENDER_BYTES_MIN: usize = 8;
/// Below this a sender's secret is worth a warning, in bytes.
const SENDER_BYTES_ENOUGH: usize = 16;

/// Senders' secrets are handed around with and without their padding.
const SENDER_BASE64: GeneralPurpose = GeneralPurpose::new(
    &base64::alphabet::STANDARD,
    GeneralPurposeConfig::new().with_decode_padding_mode(DecodePaddingMode::Indifferent),
);

/// A credential that is known by how it begins.
struct Lookalike {
    prefixes: &'static [&'static str],
    is: &'static str,
    wanted: &'static str,
}

const GITHUB: Lookalike = Lookalike {
    prefixes: &["ghp_", "gho_", "ghu_", "ghs_", "ghr_", "github_pat_"],
    is: "a token for GitHub's API",
    wanted: "the text of Secret in the webhook's settings",
};
const STRIPE: Lookalike = Lookalike {
    prefixes: &["sk_", "rk_", "pk_"],
    is: "a key for Stripe's API",
    wanted: "the endpoint's signing secret, whsec_…",
};
const SLACK: Lookalike = Lookalike {
    prefixes: &["xox", "xapp-", "xwfp-"],
    is: "a token for Slack's API",
    wanted: "the app's signing secret, under Basic Information",
};
const SHOPIFY: Lookalike = Lookalike {
    prefixes: &["shpat_", "shpca_", "shppa_", "shpua_"],
    is: "an access token for Shopify's API",
    wanted: "the app's client secret, or what the notification settings show",
};

/// Checks the secrets of a source.
pub(super) fn check_scheme(scheme: &Scheme) -> Result<(), String> {
    match scheme {
        Scheme::Standard(scheme) => each(&scheme.secrets, |text| {
            let mut spelled = spelling::standard(text).peekable();
            spelled.peek().ok_or("is empty")?;
            spelled.try_for_each(sender_standard)
        }),
        Scheme::Github(scheme) => each(&scheme.secrets, |secret| literal(secret, |secret| GITHUB.check(secret))),
        Scheme::Stripe(scheme) => each(&scheme.secrets, |secret| literal(secret, |secret| STRIPE.check(secret))),
        Scheme::Slack(scheme) => each(&scheme.secrets, |secret| literal(secret, |secret| SLACK.check(secret))),
        Scheme::Shopify(scheme) => each(&scheme.secrets, |secret| literal(secret, |secret| SHOPIFY.check(secret))),
        Scheme::Hmac(scheme) => each(&scheme.secrets, |secret| literal(secret, not_a_pair)),
        Scheme::ApiKey(_) | Scheme::None(_) => Ok(()),
    }
}

/// Secrets of a sender's that are shorter than they should be, by their place.
pub(super) fn short(scheme: &Scheme) -> Vec<usize> {
    let secrets = match scheme {
        Scheme::Standard(scheme) => &scheme.secrets,
        Scheme::Github(scheme) => &scheme.secrets,
        Scheme::Stripe(scheme) => &scheme.secrets,
        Scheme::Slack(scheme) => &scheme.secrets,
        Scheme::Shopify(scheme) => &scheme.secrets,
        Scheme::Hmac(scheme) => &scheme.secrets,
        Scheme::ApiKey(_) | Scheme::None(_) => return Vec::new(),
    };
    let is_short = |text: &str| match scheme {
        Scheme::Standard(_) => spelling::standard(text)
            .filter(|secret| !secret.starts_with(PUBLIC_PREFIX))
            .any(|secret| decoded(secret).is_some_and(|key| key.len() < SENDER_BYTES_ENOUGH)),
        _ => spelling::literal(text).any(|secret| secret.len() < SENDER_BYTES_ENOUGH),
    };
    secrets.iter().enumerate().filter(|(_, text)| is_short(text)).map(|(index, _)| index).collect()
}

/// Checks a secret whose every byte counts, in each of its spellings.
fn literal(text: &str, check: impl Fn(&str) -> Result<(), String>) -> Result<(), String> {
    let mut spelled = spelling::literal(text).peekable();
    spelled.peek().ok_or("is empty")?;
    spelled.try_for_each(|secret| {
        if secret.len() < SENDER_BYTES_MIN {
            return Err(too_short(secret.len()));
        }
        check(secret)
    })
}

fn too_short(bytes: usize) -> String {
    format!(
        "has {bytes} bytes, so that it could be guessed; copy the sender's whole secret, of {SENDER_BYTES_MIN} bytes or more"
    )
}

/// Checks a secret that deliveries are signed with: `whsec_` and the base64 of 24 to 64 bytes.
pub(super) fn check_signing(secret: &str) -> Result<(), String> {
    let making = "make one with: echo whsec_$(openssl rand -base64 32)";
    match BASE64_STANDARD.decode(secret.strip_prefix(SHARED_PREFIX).unwrap_or(secret)) {
        Ok(key) if SHARED_BYTES.contains(&key.len()) => Ok(()),
        Ok(key) => {
            let (least, most) = SHARED_BYTES.into_inner();
            let bytes = key.len();
            Err(format!("has a key of {bytes} bytes, Standard Webhooks asks for {least} to {most}; {making}"))
        }
        Err(_) => Err(format!("is not whsec_ and base64; {making}")),
    }
}

fn each(secrets: &[String], check: impl Fn(&str) -> Result<(), String>) -> Result<(), String> {
    if secrets.is_empty() {
        return Err("verify: secrets is empty".into());
    }
    for (index, secret) in secrets.iter().enumerate() {
        check(secret).map_err(|problem| format!("verify: secret {index} {problem}"))?;
    }
    Ok(())
}

impl Lookalike {
    fn check(&self, secret: &str) -> Result<(), String> {
        not_a_pair(secret)?;
        if self.prefixes.iter().any(|prefix| secret.starts_with(prefix)) {
            return Err(format!("is {}, which signs nothing; give {}", self.is, self.wanted));
        }
        Ok(())
    }
}

/// Keys of a pair mean something to Standard Webhooks only.
fn not_a_pair(secret: &str) -> Result<(), String> {
    if secret.starts_with(PUBLIC_PREFIX) || secret.starts_with(PRIVATE_PREFIX) {
        return Err("is a key of Standard Webhooks; such senders need scheme = \"standard\"".into());
    }
    Ok(())
}

/// `whsec_…` for `v1`, `whpk_…` for `v1a`.
fn sender_standard(secret: &str) -> Result<(), String> {
    if secret.starts_with(PRIVATE_PREFIX) {
        return Err("is a private key, which only the sender should have; give its public key, whpk_…".into());
    }
    match secret.strip_prefix(PUBLIC_PREFIX) {
        Some(encoded) if is_public_key(encoded) => Ok(()),
        Some(_) => Err("is not whpk_ and the base64 of an Ed25519 public key".into()),
        None => match decoded(secret) {
            Some(key) if key.len() < SENDER_BYTES_MIN => Err(too_short(key.len())),
            Some(_) => Ok(()),
            None => {
                Err("is not whsec_ and base64; copy it as the sender shows it, or where it is one from Stripe say \
                         scheme = \"stripe\""
                    .into())
            }
        },
    }
}

/// The key of a sender's shared secret.
fn decoded(secret: &str) -> Option<Vec<u8>> {
    SENDER_BASE64.decode(secret.strip_prefix(SHARED_PREFIX).unwrap_or(secret)).ok()
}

/// A point of the curve under which only the key's owner can sign.
fn is_public_key(encoded: &str) -> bool {
    let bytes = SENDER_BASE64.decode(encoded).ok().and_then(|bytes| bytes.try_into().ok());
    bytes.and_then(|bytes| VerifyingKey::from_bytes(&bytes).ok()).is_some_and(|key| !key.is_weak())
}
