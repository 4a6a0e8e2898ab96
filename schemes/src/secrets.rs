//! Forms of the schemes' secrets, and of credentials that are often taken for them.
//!
//! A provider's settings show several credentials, and only one of them signs. With another one the source would
//! refuse every request, so it is refused here, when it is configured. No message contains a secret.

use base64::{Engine as _, prelude::BASE64_STANDARD};
use weft_proto::v1::verification::Scheme;

use crate::{of, spelling};

/// Prefix of a shared secret of Standard Webhooks, and, by coincidence, of Stripe.
pub(crate) const SHARED_PREFIX: &str = "whsec_";
/// Prefix of a public key of Standard Webhooks.
pub(crate) const PUBLIC_PREFIX: &str = "whpk_";
/// Prefix of a private key of Standard Webhooks, which only the sender has.
pub(crate) const PRIVATE_PREFIX: &str = "whsk_";
/// How long the key of a shared secret may be that we or our operators make, as Standard Webhooks says.
const SHARED_BYTES: std::ops::RangeInclusive<usize> = 24..=64;

/// The shortest secret of a sender's, in bytes: a shorter one is guessed, or is no secret at all.
pub(crate) const BYTES_MIN: usize = 8;
/// Below this a sender's secret is worth a warning, in bytes.
pub(crate) const BYTES_ENOUGH: usize = 16;

/// A credential that is known by how it begins.
pub(crate) struct Lookalike {
    pub prefixes: &'static [&'static str],
    pub is: &'static str,
    pub wanted: &'static str,
}

/// Checks the secrets of a source.
///
/// # Errors
///
/// Which one is wrong, and what would be right.
pub fn check_secrets(scheme: &Scheme) -> Result<(), String> {
    let scheme = of(scheme);
    let Some(secrets) = scheme.secrets() else { return Ok(()) };
    if secrets.is_empty() {
        return Err("verify: secrets is empty".into());
    }
    for (index, secret) in secrets.iter().enumerate() {
        scheme.check_secret(secret).map_err(|problem| format!("verify: secret {index} {problem}"))?;
    }
    Ok(())
}

/// The indexes of a source's secrets that are shorter than they should be.
pub fn short_secrets(scheme: &Scheme) -> Vec<usize> {
    let scheme = of(scheme);
    let secrets = scheme.secrets().into_iter().flatten().enumerate();
    secrets.filter(|(_, text)| scheme.is_short(text)).map(|(index, _)| index).collect()
}

/// Whether a secret whose every byte counts is shorter than it should be.
pub(crate) fn is_short_literal(text: &str) -> bool {
    spelling::literal(text).any(|secret| secret.len() < BYTES_ENOUGH)
}

/// Checks a secret whose every byte counts, in each of its spellings.
pub(crate) fn check_literal(text: &str, check: impl Fn(&str) -> Result<(), String>) -> Result<(), String> {
    let mut spelled = spelling::literal(text).peekable();
    spelled.peek().ok_or("is empty")?;
    spelled.try_for_each(|secret| {
        if secret.len() < BYTES_MIN {
            return Err(too_short(secret.len()));
        }
        check(secret)
    })
}

pub(crate) fn too_short(bytes: usize) -> String {
    format!(
        "has {bytes} bytes, so that it could be guessed; copy the sender's whole secret, of {BYTES_MIN} bytes or more"
    )
}

/// Checks a secret that deliveries are signed with: `whsec_` and the base64 of 24 to 64 bytes.
pub fn check_signing(secret: &str) -> Result<(), String> {
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

impl Lookalike {
    pub fn check(&self, secret: &str) -> Result<(), String> {
        not_a_pair(secret)?;
        if self.prefixes.iter().any(|prefix| secret.starts_with(prefix)) {
            return Err(format!("is {}, which signs nothing; give {}", self.is, self.wanted));
        }
        Ok(())
    }
}

/// Keys of a pair mean something to Standard Webhooks only.
pub(crate) fn not_a_pair(secret: &str) -> Result<(), String> {
    if secret.starts_with(PUBLIC_PREFIX) || secret.starts_with(PRIVATE_PREFIX) {
        return Err("is a key of Standard Webhooks; such senders need scheme = \"standard\"".into());
    }
    Ok(())
}
