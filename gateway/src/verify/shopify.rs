//! Shopify: `X-Shopify-Hmac-SHA256` holds base64 of HMAC-SHA256 over the body; its newer events leave the `X-` out.
//!
//! As with GitHub nothing but the body is signed: no timestamp, and ids are Shopify's word only.

use base64::{Engine as _, engine::general_purpose::STANDARD};
use http::{HeaderMap, HeaderName};
use weft_proto::v1::ShopifyScheme;

use super::{Keys, Verified, VerifyError, required};

static SIGNATURE: HeaderName = HeaderName::from_static("x-shopify-hmac-sha256");
static SIGNATURE_NEWER: HeaderName = HeaderName::from_static("shopify-hmac-sha256");

#[derive(Debug)]
pub(super) struct Shopify {
    keys: Keys,
}

impl Shopify {
    pub(super) fn compile(scheme: &ShopifyScheme) -> Result<Self, String> {
        Ok(Self { keys: Keys::new(&scheme.secrets)? })
    }

    pub(super) fn verify(&self, headers: &HeaderMap, body: &[u8]) -> Result<Verified, VerifyError> {
        let newer = headers.contains_key(&SIGNATURE_NEWER) && !headers.contains_key(&SIGNATURE);
        let signature = required(headers, if newer { &SIGNATURE_NEWER } else { &SIGNATURE })?;
        let tag = STANDARD.decode(signature).map_err(|_| VerifyError::Invalid)?;
        let secret = self.keys.signer([body].into_iter(), &[tag]).ok_or(VerifyError::Invalid)?;
        Ok(Verified::signed("shopify", secret, None, None))
    }
}
