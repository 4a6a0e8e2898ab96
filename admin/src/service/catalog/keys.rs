//! New API keys: `weft_<id>_<secret>`. The key is made here, told once, and only its digest is kept.

use jiff::Timestamp;
use sha2::{Digest as _, Sha256};
use tonic::Status;
use weft_nats::options::Secret;
use weft_proto::v1;

use crate::{
    convert,
    error::{Code, refuse},
};

/// Characters of the part that names the key.
const ID_CHARS: usize = 8;
/// Characters of the part that nobody else knows: 190 bits.
const SECRET_CHARS: usize = 32;
const LOWER: &[u8] = b"abcdefghijklmnopqrstuvwxyz0123456789";
const ANY: &[u8] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789";

/// The key that a request asks for, and its text.
///
/// # Errors
///
/// BAD_QUERY: it would expire before it is made.
pub(super) fn make(request: &v1::CreateApiKeyRequest, now: Timestamp) -> Result<(v1::ApiKey, Secret), Status> {
    let id = random(LOWER, ID_CHARS);
    let text = format!("weft_{id}_{}", random(ANY, SECRET_CHARS));
    let key = v1::ApiKey {
        id,
        name: request.name.clone(),
        digest: Sha256::digest(&text).to_vec(),
        scopes: request.scopes.clone(),
        sources: request.sources.clone(),
        workflow_prefixes: request.workflow_prefixes.clone(),
        created_at_ms: now.as_millisecond(),
        expires_at_ms: expiry(request.expires_at.as_ref(), now)?,
    };
    Ok((key, Secret::new(text)))
}

fn expiry(time: Option<&prost_types::Timestamp>, now: Timestamp) -> Result<i64, Status> {
    let Some(time) = time else { return Ok(0) };
    let ms = convert::to_milliseconds(time).filter(|ms| *ms > now.as_millisecond());
    ms.ok_or_else(|| refuse(Code::BadQuery, "expires_at is not a time to come"))
}

fn random(alphabet: &[u8], length: usize) -> String {
    (0..length).map(|_| char::from(alphabet[rand::random_range(0..alphabet.len())])).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_is_of_its_form_and_only_its_digest_is_kept() {
        let request = v1::CreateApiKeyRequest { name: "ci".into(), ..Default::default() };
        let (key, text) = make(&request, Timestamp::UNIX_EPOCH).unwrap();
        let parts: Vec<_> = text.expose().split('_').collect();
        assert_eq!((parts[0], parts[1], parts[2].len()), ("weft", key.id.as_str(), SECRET_CHARS));
        assert_eq!(key.digest, Sha256::digest(text.expose()).to_vec());
        assert!(!format!("{key:?} {text:?}").contains(parts[2]));
        assert_ne!(make(&request, Timestamp::UNIX_EPOCH).unwrap().1, text);
    }

    #[test]
    fn a_key_expires_in_the_future() {
        let at = |seconds| v1::CreateApiKeyRequest {
            expires_at: Some(prost_types::Timestamp { seconds, nanos: 0 }),
            ..Default::default()
        };
        let now = Timestamp::from_second(100).unwrap();
        assert_eq!(make(&at(101), now).unwrap().0.expires_at_ms, 101_000);
        assert!(make(&at(100), now).is_err());
    }
}
