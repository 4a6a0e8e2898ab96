//! Authentication: an API key in `x-api-key` or as a bearer token. Its rights are decided by
//! `weft_catalog::keys`.

use http::{HeaderMap, header};
use weft_catalog::keys::{Grant, KeyError, Keys, bearer};
use weft_proto::v1::Scope;

use crate::http::error::{Code, Problem};

const API_KEY: &str = "x-api-key";

/// The rights of a request with these headers, whose key must have a scope.
///
/// # Errors
///
/// A [`Problem`] with `key_missing`, `key_invalid`, `scope_missing`, or `starting` while the catalog is not there.
pub fn authorize(keys: &Keys, headers: &HeaderMap, scope: Scope) -> Result<Grant, Problem> {
    Ok(keys.authorize(given(headers), scope)?)
}

/// The key of a request.
fn given(headers: &HeaderMap) -> Option<&[u8]> {
    match headers.get(API_KEY) {
        Some(key) => Some(key.as_bytes()),
        None => bearer(headers.get(header::AUTHORIZATION)?.as_bytes()),
    }
}

impl From<KeyError> for Problem {
    fn from(error: KeyError) -> Self {
        let code = match error {
            KeyError::Missing => {
                let detail = "a key is needed; send it as x-api-key or as Authorization: Bearer";
                return Self::new(Code::KeyMissing, detail);
            }
            KeyError::Unknown | KeyError::Expired => Code::KeyInvalid,
            KeyError::Starting => Code::Starting,
            KeyError::ScopeMissing(_) => Code::ScopeMissing,
            KeyError::Source | KeyError::Workflow | KeyError::Limited => Code::OutOfScope,
        };
        Self::new(code, error.to_string())
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use tokio::sync::watch;
    use weft_catalog::Snapshot;
    use weft_nats::options::Secret;

    use super::*;

    #[test]
    fn a_key_is_taken_from_either_header() {
        let snapshot = Arc::new(Snapshot { complete: true, ..Snapshot::default() });
        let keys = Keys::new(Some(&Secret::new("s3cret")), watch::channel(snapshot).1);
        let check = |headers: &[(&'static str, &str)]| {
            let parse = |(name, value): &(&'static str, &str)| (name.parse().unwrap(), value.parse().unwrap());
            let headers: HeaderMap = headers.iter().map(parse).collect();
            authorize(&keys, &headers, Scope::Read).map(drop).map_err(|problem| problem.code())
        };
        assert_eq!(check(&[("x-api-key", "s3cret")]), Ok(()));
        assert_eq!(check(&[("authorization", "Bearer s3cret")]), Ok(()));
        assert_eq!(check(&[("x-api-key", "s3cret"), ("authorization", "Basic x")]), Ok(()));
        assert_eq!(check(&[("x-api-key", "wrong"), ("authorization", "Bearer s3cret")]), Err(Code::KeyInvalid));
        assert_eq!(check(&[("authorization", "Basic s3cret")]), Err(Code::KeyMissing));
        assert_eq!(check(&[]), Err(Code::KeyMissing));
    }
}
