//! API keys in place of a signature.

use http::HeaderMap;
use jiff::Timestamp;
use weft_proto::v1::{ApiKeyScheme, verification::Scheme};

use crate::{Form, Verified, Verify, VerifyError, WebhookScheme};

pub(crate) const FORM: Form = Form { name: "api_key", keys: &[], build: |_| Scheme::ApiKey(ApiKeyScheme {}) };

impl WebhookScheme for ApiKeyScheme {
    fn name(&self) -> &'static str {
        FORM.name
    }

    fn compile(&self) -> Result<Box<dyn Verify>, String> {
        Ok(Box::new(ApiKey))
    }
}

#[derive(Debug)]
struct ApiKey;

impl Verify for ApiKey {
    fn verify(&self, _: &HeaderMap, _: &[u8], _: Timestamp) -> Result<Verified, VerifyError> {
        Err(VerifyError::KeyNeeded)
    }

    fn takes_key(&self) -> bool {
        true
    }
}
