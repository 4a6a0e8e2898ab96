//! Shared secrets, and the tags that they give.

use std::fmt;

use crate::spelling;
use hmac::{Hmac, KeyInit as _, Mac as _};
use sha2::Sha256;

/// A source without a secret would take nothing.
pub(crate) const NO_SECRETS: &str = "no secrets; give at least one";

/// The secrets of a source, newest first. Each with its index among those of the source, which may have several spellings.
#[derive(Debug)]
pub(crate) struct Keys(Vec<(usize, Key)>);

impl Keys {
    /// # Errors
    ///
    /// When there is none, or one that is empty.
    pub(crate) fn new(secrets: &[String]) -> Result<Self, String> {
        if secrets.is_empty() {
            return Err(NO_SECRETS.into());
        }
        let mut keys = Vec::with_capacity(secrets.len());
        for (index, secret) in secrets.iter().enumerate() {
            let before = keys.len();
            for spelling in spelling::literal(secret) {
                keys.push((index, Key::new(index, spelling.as_bytes())?));
            }
            if keys.len() == before {
                return Err(empty(index));
            }
        }
        Ok(Self(keys))
    }

    /// The index of the secret that gives one of `tags` for the parts put together.
    pub(crate) fn signer<'p>(&self, parts: impl Iterator<Item = &'p [u8]> + Clone, tags: &[Vec<u8>]) -> Option<usize> {
        self.0.iter().find(|(_, key)| key.gives(parts.clone(), tags)).map(|(index, _)| *index)
    }
}

/// A secret, as an HMAC-SHA256 state that has taken its key already.
pub(crate) struct Key(Hmac<Sha256>);

impl fmt::Debug for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(weft_proto::SECRET_MASK)
    }
}

impl Key {
    /// # Errors
    ///
    /// When it is empty: every signature would be easy to forge. `index` is its place among the source's secrets.
    pub(crate) fn new(index: usize, secret: &[u8]) -> Result<Self, String> {
        if secret.is_empty() {
            return Err(empty(index));
        }
        Hmac::new_from_slice(secret).map(Self).map_err(|_| format!("secret {index} cannot be a key"))
    }

    /// Whether it gives one of `tags` for the parts put together.
    pub(crate) fn gives<'p>(&self, parts: impl Iterator<Item = &'p [u8]>, tags: &[Vec<u8>]) -> bool {
        if tags.is_empty() {
            return false;
        }
        let mut mac = self.0.clone();
        parts.for_each(|part| mac.update(part));
        // Compares in constant time; a tag of another length is no match.
        tags.iter().any(|tag| mac.clone().verify_slice(tag).is_ok())
    }
}

/// Error of a blank secret.
pub(crate) fn empty(index: usize) -> String {
    format!("secret {index} is empty; give the sender's secret")
}

/// Bytes as the providers spell them: two lower-case digits each. One spelling only, so that a signature that was
/// changed anywhere is another one.
pub(crate) fn lower_hex(text: &str) -> Option<Vec<u8>> {
    if text.bytes().any(|byte| byte.is_ascii_uppercase()) { None } else { hex::decode(text).ok() }
}
