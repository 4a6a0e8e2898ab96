//! Shopify: `X-Shopify-Hmac-SHA256` holds base64 of HMAC-SHA256 over the body; its newer events leave the `X-` out.
//!
//! As with GitHub nothing but the body is signed: no timestamp, and ids are Shopify's word only.

use base64::{Engine as _, engine::general_purpose::STANDARD};
use http::{HeaderMap, HeaderName};
use jiff::Timestamp;
use weft_proto::v1::{ShopifyScheme, verification::Scheme};

use crate::{
    Form, IdLocation, Location, Verified, Verify, VerifyError, WebhookScheme,
    keys::Keys,
    secrets::{Lookalike, check_literal},
    verify::required,
};

static SIGNATURE: HeaderName = HeaderName::from_static("x-shopify-hmac-sha256");
static SIGNATURE_NEWER: HeaderName = HeaderName::from_static("shopify-hmac-sha256");
/// Shopify names the event, and each delivery of it to a subscription; one event may be delivered more than once. Its newer
/// events omit the `x-`, and name the delivery only.
static ID: [HeaderName; 3] = [
    HeaderName::from_static("x-shopify-event-id"),
    HeaderName::from_static("x-shopify-webhook-id"),
    HeaderName::from_static("shopify-webhook-id"),
];
static TOPIC: [HeaderName; 2] = [HeaderName::from_static("x-shopify-topic"), HeaderName::from_static("shopify-topic")];

pub(crate) const FORM: Form = Form {
    name: "shopify",
    keys: &["secrets"],
    build: |settings| Scheme::Shopify(ShopifyScheme { secrets: settings.secrets }),
};

/// A credential that is often taken for the secret.
const LOOKALIKE: Lookalike = Lookalike {
    prefixes: &["shpat_", "shpca_", "shppa_", "shpua_"],
    is: "an access token for Shopify's API",
    wanted: "the app's client secret, or what the notification settings show",
};

impl WebhookScheme for ShopifyScheme {
    fn name(&self) -> &'static str {
        FORM.name
    }

    fn secrets(&self) -> Option<&Vec<String>> {
        Some(&self.secrets)
    }

    fn secrets_mut(&mut self) -> Option<&mut Vec<String>> {
        Some(&mut self.secrets)
    }

    fn check_secret(&self, text: &str) -> Result<(), String> {
        check_literal(text, |secret| LOOKALIKE.check(secret))
    }

    fn delivery_id(&self) -> Option<IdLocation> {
        Some(IdLocation::At(Location::Header(&ID)))
    }

    fn event_type(&self) -> Location {
        Location::Header(&TOPIC)
    }

    fn replay_guard(&self) -> bool {
        true
    }

    fn receipt_on_id_reuse(&self) -> bool {
        true
    }

    fn compile(&self) -> Result<Box<dyn Verify>, String> {
        Ok(Box::new(Shopify { keys: Keys::new(&self.secrets)? }))
    }
}

#[derive(Debug)]
struct Shopify {
    keys: Keys,
}

impl Verify for Shopify {
    fn verify(&self, headers: &HeaderMap, body: &[u8], _: Timestamp) -> Result<Verified, VerifyError> {
        let newer = headers.contains_key(&SIGNATURE_NEWER) && !headers.contains_key(&SIGNATURE);
        let signature = required(headers, if newer { &SIGNATURE_NEWER } else { &SIGNATURE })?;
        let tag = STANDARD.decode(signature).map_err(|_| VerifyError::Invalid)?;
        let secret = self.keys.signer([body].into_iter(), &[tag]).ok_or(VerifyError::Invalid)?;
        Ok(Verified::signed(FORM.name, secret, None, None))
    }
}
