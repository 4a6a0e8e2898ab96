//! Requests without a signature.

use http::HeaderMap;
use jiff::Timestamp;
use weft_proto::v1::{NoneScheme, verification::Scheme};

use crate::{Form, Signer, Verified, Verify, VerifyError, WebhookScheme};

pub(crate) const FORM: Form = Form { name: "none", keys: &["allow_unsigned"], build: |_| Scheme::None(NoneScheme {}) };

impl WebhookScheme for NoneScheme {
    fn name(&self) -> &'static str {
        FORM.name
    }

    fn compile(&self) -> Result<Box<dyn Verify>, String> {
        Ok(Box::new(Unsigned))
    }
}

#[derive(Debug)]
struct Unsigned;

impl Verify for Unsigned {
    fn verify(&self, _: &HeaderMap, _: &[u8], _: Timestamp) -> Result<Verified, VerifyError> {
        Ok(Verified { signer: Signer::Unsigned, id: None, timestamp: None })
    }
}
