//! The catalog at rest: each entry is sealed as a whole with the mesh's master key.
//!
//! A removal is an entry's value as well, the empty one.
//!
//! Entries hold secrets, and the log's files, backups and whoever may read a stream would hold them too. Sealing also
//! says who wrote an entry: one that was not made with the master key is passed over, wherever it came from. The name of
//! the entry is part of what is sealed, so that one cannot be put in another's place.
//!
//! Form of a sealed value: `wft1`, the key's id (4 bytes), a random nonce (12 bytes), ChaCha20-Poly1305 ciphertext and tag.
//! Nonces may be random: a mesh would have to write some hundred million entries before two became likely to be alike.

use std::{fmt, sync::Arc};

use base64::{Engine as _, prelude::BASE64_STANDARD};
use ring::{
    aead::{Aad, CHACHA20_POLY1305, LessSafeKey, NONCE_LEN, Nonce, UnboundKey},
    digest::{SHA256, digest},
    hkdf,
};

use crate::tags::Tags;

/// What every sealed value begins with: the form's version.
const MAGIC: &[u8; 4] = b"wft1";
/// Salt of the keys that are derived: keeps them apart from whatever else the same bytes may be used for.
const DERIVATION: &[u8] = b"weft derived keys 1";
/// Bytes of a key's id.
const ID_BYTES: usize = 4;
/// Bytes of a master key.
const KEY_BYTES: usize = 32;

/// The key that the catalog is sealed with, and that keys for tags are derived from. Cheap to clone; never printed, but for
/// its id.
#[derive(Clone)]
pub struct MasterKey {
    key: Arc<LessSafeKey>,
    /// What other keys are derived from.
    root: Arc<hkdf::Prk>,
    id: [u8; ID_BYTES],
}

/// Why a value cannot be opened.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(super) enum OpenError {
    /// It is sealed with another key.
    #[error("it is sealed with another master key ({id})")]
    OtherKey {
        /// That key's id, in hex.
        id: String,
    },
    /// It was not sealed for this entry, or was changed since.
    #[error("it is not sealed as this entry: it was written by someone without the master key, or is damaged")]
    Forged,
}

impl MasterKey {
    /// The key of a text: base64 of 32 bytes.
    ///
    /// # Errors
    ///
    /// What is wrong, and how to make one. The text is not part of it.
    pub fn parse(text: &str) -> Result<Self, String> {
        let wrong = || "the master key is not base64 of 32 bytes; make one with: openssl rand -base64 32".to_owned();
        let bytes = BASE64_STANDARD.decode(text.trim()).map_err(|_| wrong())?;
        let bytes: [u8; KEY_BYTES] = bytes.try_into().map_err(|_| wrong())?;
        Self::new(&bytes)
    }

    /// A new key, as the text that [`parse`](Self::parse) reads.
    pub fn generate() -> String {
        BASE64_STANDARD.encode(rand::random::<[u8; KEY_BYTES]>())
    }

    fn new(bytes: &[u8; KEY_BYTES]) -> Result<Self, String> {
        let key = UnboundKey::new(&CHACHA20_POLY1305, bytes).map_err(|_| "the master key is no key".to_owned())?;
        let hash = digest(&SHA256, bytes);
        let mut id = [0; ID_BYTES];
        id.copy_from_slice(&hash.as_ref()[..ID_BYTES]);
        let root = hkdf::Salt::new(hkdf::HKDF_SHA256, DERIVATION).extract(bytes);
        Ok(Self { key: Arc::new(LessSafeKey::new(key)), root: Arc::new(root), id })
    }

    /// Tags for what processes of this mesh say to each other for `purpose`, which is part of the protocol.
    pub fn tags(&self, purpose: &str) -> Tags {
        Tags::derive(&self.root, purpose)
    }

    /// What tells this key from others, for people: 8 hex digits.
    pub fn id(&self) -> String {
        hex(&self.id)
    }

    /// Seals the value of an entry.
    pub(super) fn seal(&self, entry: &str, value: &[u8]) -> Vec<u8> {
        let nonce: [u8; NONCE_LEN] = rand::random();
        let mut sealed = Vec::with_capacity(MAGIC.len() + ID_BYTES + NONCE_LEN + value.len() + 16);
        sealed.extend_from_slice(MAGIC);
        sealed.extend_from_slice(&self.id);
        sealed.extend_from_slice(&nonce);
        let mut text = value.to_vec();
        // Fails only beyond 256 GiB; what is written then is opened by nobody.
        let tag = self.key.seal_in_place_separate_tag(
            Nonce::assume_unique_for_key(nonce),
            Aad::from(entry.as_bytes()),
            &mut text,
        );
        if let Ok(tag) = tag {
            sealed.extend_from_slice(&text);
            sealed.extend_from_slice(tag.as_ref());
        }
        sealed
    }

    /// Opens the value of an entry.
    pub(super) fn open(&self, entry: &str, sealed: &[u8]) -> Result<Vec<u8>, OpenError> {
        let rest = sealed.strip_prefix(MAGIC).ok_or(OpenError::Forged)?;
        let (id, rest) = rest.split_at_checked(ID_BYTES).ok_or(OpenError::Forged)?;
        if id != self.id {
            return Err(OpenError::OtherKey { id: hex(id) });
        }
        let (nonce, text) = rest.split_first_chunk::<NONCE_LEN>().ok_or(OpenError::Forged)?;
        let mut text = text.to_vec();
        let nonce = Nonce::assume_unique_for_key(*nonce);
        let opened = self.key.open_in_place(nonce, Aad::from(entry.as_bytes()), &mut text);
        let length = opened.map_err(|_| OpenError::Forged)?.len();
        text.truncate(length);
        Ok(text)
    }
}

impl fmt::Debug for MasterKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "MasterKey({})", self.id())
    }
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key() -> MasterKey {
        MasterKey::parse(&MasterKey::generate()).unwrap()
    }

    #[test]
    fn only_the_key_opens_and_only_the_entry() {
        let ours = key();
        let sealed = ours.seal("source.shop", b"whsec_");
        assert_eq!(ours.open("source.shop", &sealed).unwrap(), b"whsec_");
        assert_eq!(ours.open("source.other", &sealed), Err(OpenError::Forged), "put in another's place");
        let theirs = key();
        assert_eq!(theirs.open("source.shop", &sealed), Err(OpenError::OtherKey { id: ours.id() }));
        assert_ne!(sealed, ours.seal("source.shop", b"whsec_"), "each time another nonce");
    }

    /// Whatever is changed, cut or made up is not opened.
    #[test]
    fn what_is_not_sealed_is_not_opened() {
        let key = key();
        let sealed = key.seal("a", b"value");
        for place in MAGIC.len() + ID_BYTES..sealed.len() {
            let mut changed = sealed.clone();
            changed[place] ^= 1;
            assert_eq!(key.open("a", &changed), Err(OpenError::Forged), "byte {place}");
        }
        for length in 0..sealed.len() {
            assert!(key.open("a", &sealed[..length]).is_err(), "{length} bytes");
        }
        assert_eq!(key.open("a", b"value"), Err(OpenError::Forged));
    }

    #[test]
    fn a_key_is_read_as_it_is_made_and_never_shown() {
        let text = MasterKey::generate();
        let key = MasterKey::parse(&format!("{text}\n")).unwrap();
        assert_eq!(key.id(), MasterKey::parse(&text).unwrap().id());
        assert!(!format!("{key:?}").contains(&text[..8]));
        for wrong in ["", "short", "AAAA", &text[..40]] {
            let problem = MasterKey::parse(wrong).unwrap_err();
            assert!(problem.contains("openssl rand -base64 32"), "{problem}");
        }
    }
}
