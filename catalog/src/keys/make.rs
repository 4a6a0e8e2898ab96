//! New keys: `weft_<id>_<secret>`. The text is shown only once, and only its digest is kept.

use jiff::Timestamp;
use sha2::{Digest as _, Sha256};
use weft_nats::options::Secret;
use weft_proto::v1::ApiKey;

use super::PREFIX;

/// Characters of the part that names the key.
pub const KEY_ID_CHARS: usize = 8;
/// Characters of the secret part: 190 bits.
const SECRET_CHARS: usize = 32;
const ID_ALPHABET: &[u8] = b"abcdefghijklmnopqrstuvwxyz0123456789";
const SECRET_ALPHABET: &[u8] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789";

/// A key with what `wanted` says (name, scopes, limits, expiry) and a new id, digest and creation time; and its text.
pub fn make(wanted: ApiKey, now: Timestamp) -> (ApiKey, Secret) {
    let id = random(ID_ALPHABET, KEY_ID_CHARS);
    let text = format!("{PREFIX}{id}_{}", random(SECRET_ALPHABET, SECRET_CHARS));
    let digest = Sha256::digest(&text).to_vec();
    (ApiKey { id, digest, created_at_ms: now.as_millisecond(), ..wanted }, Secret::new(text))
}

/// Characters of an alphabet, each as likely as any other, from the system's cryptographic generator.
fn random(alphabet: &[u8], length: usize) -> String {
    (0..length).map(|_| char::from(alphabet[rand::random_range(0..alphabet.len())])).collect()
}

#[cfg(test)]
mod tests {
    use weft_proto::v1::Scope;

    use super::*;
    use crate::validate_key;

    #[test]
    fn a_key_is_of_its_form_and_only_its_digest_is_kept() {
        let wanted = ApiKey { name: "ci".into(), scopes: vec![Scope::Read.into()], ..ApiKey::default() };
        let (key, text) = make(wanted.clone(), Timestamp::UNIX_EPOCH);
        let parts: Vec<_> = text.expose().split('_').collect();
        assert_eq!((parts[0], parts[1], parts[2].len()), ("weft", key.id.as_str(), SECRET_CHARS));
        assert!(parts[2].bytes().all(|byte| byte.is_ascii_alphanumeric()));
        assert_eq!(key.digest, Sha256::digest(text.expose()).to_vec());
        assert_eq!((validate_key(&key), key.name.as_str()), (Ok(()), "ci"));
        assert!(!format!("{key:?} {text:?}").contains(parts[2]));
        let (other, other_text) = make(wanted, Timestamp::UNIX_EPOCH);
        assert!(other.id != key.id && other_text != text);
    }
}
