//! Who may read: a key in `x-api-key` or as a bearer token.

use http::{HeaderMap, header};
use sha2::{Digest as _, Sha256};
use subtle::ConstantTimeEq as _;
use weft_nats::options::Secret;

use crate::error::{Code, Problem};

const API_KEY: &str = "x-api-key";

/// The key that reading needs, as its digest: comparing digests tells nothing of the key's length either.
#[derive(Debug)]
pub struct ReadKey(Option<[u8; 32]>);

impl ReadKey {
    /// `None`, or an empty key: nobody may read.
    pub fn new(key: Option<&Secret>) -> Self {
        Self(key.filter(|key| !key.expose().is_empty()).map(|key| Sha256::digest(key.expose()).into()))
    }

    /// Whether a request with these headers may read.
    ///
    /// # Errors
    ///
    /// A [`Problem`] with `key_missing` or `key_invalid`.
    pub fn check(&self, headers: &HeaderMap) -> Result<(), Problem> {
        let Some(given) = given(headers) else {
            let detail = "reading needs a key; send it as x-api-key or as Authorization: Bearer";
            return Err(Problem::new(Code::KeyMissing, detail));
        };
        let digest: [u8; 32] = Sha256::digest(given).into();
        if self.0.is_some_and(|wanted| wanted.ct_eq(&digest).into()) {
            return Ok(());
        }
        Err(Problem::new(Code::KeyInvalid, "the key is not known; check that it is of this mesh"))
    }
}

fn given(headers: &HeaderMap) -> Option<&[u8]> {
    if let Some(key) = headers.get(API_KEY) {
        return Some(key.as_bytes());
    }
    let (scheme, key) = headers.get(header::AUTHORIZATION)?.as_bytes().split_at_checked("bearer ".len())?;
    scheme.eq_ignore_ascii_case(b"bearer ").then(|| key.trim_ascii())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(key: &ReadKey, header: Option<(&'static str, &str)>) -> Result<(), Code> {
        let headers = header.into_iter().map(|(name, value)| (name.parse().unwrap(), value.parse().unwrap())).collect();
        key.check(&headers).map_err(|problem| problem.code())
    }

    #[test]
    fn only_the_key_opens_either_way() {
        let key = ReadKey::new(Some(&Secret::new("s3cret")));
        assert_eq!(check(&key, Some(("x-api-key", "s3cret"))), Ok(()));
        assert_eq!(check(&key, Some(("authorization", "Bearer s3cret"))), Ok(()));
        assert_eq!(check(&key, Some(("authorization", "bearer  s3cret"))), Ok(()));
        for wrong in ["", "s3cre", "s3cret1", "S3CRET"] {
            assert_eq!(check(&key, Some(("x-api-key", wrong))), Err(Code::KeyInvalid), "{wrong}");
        }
        for missing in [None, Some(("authorization", "Basic s3cret")), Some(("authorization", "s3cret"))] {
            assert_eq!(check(&key, missing), Err(Code::KeyMissing), "{missing:?}");
        }
    }

    /// A mesh without a token is closed, not open.
    #[test]
    fn without_a_key_nobody_reads() {
        for key in [ReadKey::new(None), ReadKey::new(Some(&Secret::new("")))] {
            assert_eq!(check(&key, Some(("x-api-key", ""))), Err(Code::KeyInvalid));
            assert_eq!(check(&key, None), Err(Code::KeyMissing));
        }
    }
}
