//! Tags on messages between processes of a mesh that do not go through the log: proof that the sender has the mesh's
//! master key.
//!
//! A client that may create consumers can make the server deliver stored messages to subjects that it may not publish to.
//! Such a message has no tag, or not the right one.

use std::sync::Arc;

use ring::{
    hkdf::{KeyType, Prk},
    hmac,
};
use subtle::ConstantTimeEq as _;

/// Bytes of a tag in a header: hex of an HMAC-SHA256.
pub const TAG_TEXT_BYTES: usize = 64;

/// Makes and checks the tags for one purpose. Cheap to clone; never printed.
#[derive(Debug, Clone)]
pub struct Tags {
    /// Its `Debug` says the algorithm only.
    key: hmac::Key,
    /// Keys of other processes' tags, while master keys are exchanged.
    others: Arc<[hmac::Key]>,
}

impl Tags {
    /// Derives the keys for `purpose`: tags made for one purpose mean nothing for another. Tags are made with the key of
    /// `from`; those made with a key of `others` hold, too.
    pub fn derive<'a>(from: &Prk, others: impl IntoIterator<Item = &'a Prk>, purpose: &str) -> Self {
        Self { key: derived(from, purpose), others: others.into_iter().map(|other| derived(other, purpose)).collect() }
    }

    /// The tag of a message to `subject`, as the text of a header.
    pub fn tag(&self, subject: &str, payload: &[u8]) -> String {
        tag_text(&self.key, subject, payload)
    }

    /// Whether `tag` is that of a message to `subject`. Takes the same time wherever it differs.
    pub fn holds(&self, subject: &str, payload: &[u8], tag: &str) -> bool {
        let is_of = |key: &hmac::Key| tag_text(key, subject, payload).as_bytes().ct_eq(tag.as_bytes()).into();
        is_of(&self.key) || self.others.iter().any(is_of)
    }
}

fn derived(from: &Prk, purpose: &str) -> hmac::Key {
    let info = [purpose.as_bytes()];
    let mut key = [0; 32];
    let derived = from.expand(&info, KeyBytes).and_then(|output| output.fill(&mut key));
    // Fails only for lengths beyond 255 hashes.
    derived.expect("32 bytes are one hash");
    hmac::Key::new(hmac::HMAC_SHA256, &key)
}

fn tag_text(key: &hmac::Key, subject: &str, payload: &[u8]) -> String {
    let mut context = hmac::Context::with_key(key);
    // No byte can pass from one to the other.
    context.update(&(subject.len() as u64).to_be_bytes());
    context.update(subject.as_bytes());
    context.update(payload);
    context.sign().as_ref().iter().map(|byte| format!("{byte:02x}")).collect()
}

/// The length of a derived key.
struct KeyBytes;

impl KeyType for KeyBytes {
    fn len(&self) -> usize {
        32
    }
}

#[cfg(test)]
mod tests {
    use ring::hkdf::{HKDF_SHA256, Salt};

    use super::*;

    /// A tag is good for its subject, payload, purpose and key, and for nothing else.
    #[test]
    fn a_tag_proves_one_message() {
        let [ours, theirs] = ["ours", "theirs"].map(|key| Salt::new(HKDF_SHA256, &[]).extract(key.as_bytes()));
        let tags = Tags::derive(&ours, [], "a");
        let tag = tags.tag("to.b", b"x");
        assert_eq!(tag.len(), TAG_TEXT_BYTES);
        assert!(tags.holds("to.b", b"x", &tag) && Tags::derive(&ours, [], "a").holds("to.b", b"x", &tag));
        assert!(!tags.holds("to.c", b"x", &tag) && !tags.holds("to.b", b"y", &tag) && !tags.holds("to.", b"bx", &tag));
        assert!(!tags.holds("to.b", b"x", "") && !tags.holds("to.b", b"x", &tag[..63]));
        assert!(
            !Tags::derive(&ours, [], "b").holds("to.b", b"x", &tag)
                && !Tags::derive(&theirs, [], "a").holds("to.b", b"x", &tag)
        );
        assert!(!format!("{tags:?}").contains(&tag[..8]));
    }
}
