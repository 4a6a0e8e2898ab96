//! GitHub: `X-Hub-Signature-256: sha256=` and hex of HMAC-SHA256 over the body.
//!
//! Nothing but the body is signed: there is no timestamp, and the delivery id in `X-GitHub-Delivery` is GitHub's word
//! only: a captured request can be sent again under another id. The replay guard of the source recognises its
//! body for as long as ids are known. The older `X-Hub-Signature` with SHA-1 is
//! not looked at.

use http::{HeaderMap, HeaderName};
use weft_proto::v1::GithubScheme;

use super::{Keys, Verified, VerifyError, lower_hex, required};

const SIGNATURE: HeaderName = HeaderName::from_static("x-hub-signature-256");

#[derive(Debug)]
pub(super) struct Github {
    keys: Keys,
}

impl Github {
    pub(super) fn compile(scheme: &GithubScheme) -> Result<Self, String> {
        Ok(Self { keys: Keys::new(&scheme.secrets)? })
    }

    pub(super) fn verify(&self, headers: &HeaderMap, body: &[u8]) -> Result<Verified, VerifyError> {
        let signature = required(headers, &SIGNATURE)?;
        let tag = signature.strip_prefix("sha256=").and_then(lower_hex).ok_or(VerifyError::Invalid)?;
        let secret = self.keys.signer([body].into_iter(), &[tag]).ok_or(VerifyError::Invalid)?;
        Ok(Verified::signed("github", secret, None, None))
    }
}
