//! Who may call: whoever sends the bearer token.

use sha2::{Digest as _, Sha256};
use subtle::ConstantTimeEq as _;
use tonic::{Request, Status, service::Interceptor};
use weft_nats::options::Secret;

use crate::error::{Code, refuse};

/// Checks `authorization: Bearer <token>` in constant time. Of the token it keeps the digest: comparing digests tells
/// nothing of the token's length either.
#[derive(Debug, Clone)]
pub struct BearerToken(Option<[u8; 32]>);

impl BearerToken {
    /// An empty token lets nobody in.
    pub fn new(token: &Secret) -> Self {
        Self(Some(token.expose()).filter(|token| !token.is_empty()).map(|token| Sha256::digest(token).into()))
    }

    fn check(&self, authorization: Option<&[u8]>) -> Result<(), Status> {
        const MISSING: &str = "a token is needed; send it as metadata `authorization: Bearer <token>`";
        let given = authorization.and_then(bearer).ok_or_else(|| refuse(Code::KeyMissing, MISSING))?;
        let digest: [u8; 32] = Sha256::digest(given).into();
        if self.0.is_some_and(|wanted| wanted.ct_eq(&digest).into()) {
            Ok(())
        } else {
            Err(refuse(Code::KeyInvalid, "the token is not valid; the one that counts is [admin] token"))
        }
    }
}

impl Interceptor for BearerToken {
    fn call(&mut self, mut request: Request<()>) -> Result<Request<()>, Status> {
        self.check(request.metadata().get("authorization").map(|value| value.as_encoded_bytes()))?;
        request.extensions_mut().insert(Operator(BOOTSTRAP.to_owned()));
        Ok(request)
    }
}

/// Who calls, as the audit log names him.
#[derive(Debug, Clone)]
struct Operator(String);

/// Whoever has the token of the configuration.
const BOOTSTRAP: &str = "bootstrap";

/// Who makes a call that was let in.
pub fn operator<T>(request: &Request<T>) -> String {
    request.extensions().get::<Operator>().map(|operator| operator.0.clone()).unwrap_or_default()
}

/// The token of a header's value; the scheme's name is case-insensitive.
fn bearer(value: &[u8]) -> Option<&[u8]> {
    let (scheme, token) = value.split_at_checked(7)?;
    (scheme.eq_ignore_ascii_case(b"bearer ") && !token.is_empty()).then_some(token)
}

#[cfg(test)]
mod tests {
    use tonic::Code;

    use super::*;

    #[test]
    fn only_the_token_opens() {
        let token = BearerToken::new(&Secret::new("s3cret"));
        let message = |value: Option<&str>| token.check(value.map(str::as_bytes)).map_err(|status| status.code());
        assert_eq!(message(Some("Bearer s3cret")), Ok(()));
        assert_eq!(message(Some("bearer s3cret")), Ok(()));
        for wrong in
            [None, Some(""), Some("Bearer "), Some("Bearer s3cre"), Some("Bearer s3crett"), Some("Basic s3cret")]
        {
            assert_eq!(message(wrong), Err(Code::Unauthenticated), "{wrong:?}");
        }
        let nobody = BearerToken::new(&Secret::new(""));
        assert!(nobody.check(Some(b"Bearer ")).is_err());
        assert!(nobody.check(Some(b"Bearer x")).is_err());
    }
}
