//! Webhook signature schemes: verification of a sender's signature.
//!
//! Schemes differ in what they sign, in the form of their secrets, and in where they name an event's id and type. All of that
//! is in one file per scheme, as an implementation of [`WebhookScheme`] for the scheme's message in `catalog.proto`; the rest of
//! the mesh asks [`of`]. A new scheme is its message, its file, and its lines in this one; ARCHITECTURE.md lists what else names it.
//!
//! Signing, which commands and tests do as senders, is independent of this crate, in `weft sign`, so that tests find errors of
//! either.

use http::HeaderName;
use weft_proto::v1::{SignatureEncoding, verification::Scheme};

mod api_key;
mod github;
mod hmac;
mod keys;
mod secrets;
mod shopify;
mod slack;
pub mod spelling;
mod standard;
mod stripe;
mod unsigned;
mod verify;

pub use self::{
    secrets::{check_secrets, check_signing, short_secrets},
    standard::{check_private, private_key},
    verify::{CompileError, Direction, Freshness, Signer, TOLERANCE_DEFAULT, Verified, Verifier, Verify, VerifyError},
};

/// A webhook scheme.
pub trait WebhookScheme {
    /// The name in configurations, commands and messages.
    fn name(&self) -> &'static str;

    /// The senders' secrets, newest first. `None`: the scheme has none.
    fn secrets(&self) -> Option<&Vec<String>> {
        None
    }

    /// As [`secrets`](Self::secrets).
    fn secrets_mut(&mut self) -> Option<&mut Vec<String>> {
        None
    }

    /// How far a signed timestamp may be from the gateway's clock, in milliseconds. `None`: not configured, or the scheme signs
    /// no timestamp.
    fn tolerance_ms(&self) -> Option<u64> {
        None
    }

    /// Checks the form of a configured secret.
    ///
    /// # Errors
    ///
    /// The kind of text and the required form, to be read after "secret 0". It never quotes the secret.
    fn check_secret(&self, _text: &str) -> Result<(), String> {
        Ok(())
    }

    /// Whether a configured secret is accepted and shorter than it should be.
    fn is_short(&self, text: &str) -> bool {
        secrets::is_short_literal(text)
    }

    /// Where the delivery id is. `None`: the scheme defines none, so the source must.
    fn delivery_id(&self) -> Option<IdLocation> {
        None
    }

    /// Whether the value of this header is the delivery id that the signature covers.
    fn signs_id_in(&self, _header: &HeaderName) -> bool {
        false
    }

    /// The headers with the signature and what it covers, as the source configures them.
    fn signing_headers(&self) -> Vec<&str> {
        Vec::new()
    }

    /// Where the event's type is.
    fn event_type(&self) -> Location {
        Location::Pointer("/type")
    }

    /// Whether the same body under another id is a replay unless the source says otherwise: the id is not signed, and bodies
    /// say what happened and when, so that no two events have the same one.
    fn replay_guard(&self) -> bool {
        false
    }

    /// Whether a known delivery id with another body gets the first receipt unless the source says otherwise: the provider
    /// repeats a delivery with changes that are not the event's, such as the number of the attempt, and takes a 409 for a
    /// failure.
    fn receipt_on_id_reuse(&self) -> bool {
        false
    }

    /// Reads the secrets and rules.
    ///
    /// # Errors
    ///
    /// When they could never verify anything, in one line.
    fn compile(&self) -> Result<Box<dyn Verify>, String>;
}

/// Where a scheme's delivery id is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum IdLocation {
    /// The signature covers it, so that it is [`Verified::id`].
    Signed,
    /// Unsigned, or in the signed body: it identifies repeats, but does not prove that a request is fresh.
    At(Location),
}

/// A place in a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Location {
    /// The first of these headers that is present.
    Header(&'static [HeaderName]),
    /// An RFC 6901 pointer into the body.
    Pointer(&'static str),
}

/// Configuration of a scheme; settings that the scheme does not read are ignored here and refused by the configuration.
#[derive(Debug, Default)]
pub struct Settings {
    /// Secrets, newest first.
    pub secrets: Vec<String>,
    /// Tolerance of signed timestamps, in milliseconds.
    pub tolerance_ms: Option<u64>,
    /// The header with the signature.
    pub header: String,
    /// Text before the signature in its header.
    pub prefix: String,
    /// How the signature is encoded.
    pub encoding: SignatureEncoding,
    /// Signed text, of `{id}`, `{timestamp}` and `{body}`.
    pub template: Option<String>,
    /// The header that `{timestamp}` stands for.
    pub timestamp_header: String,
    /// The header that `{id}` stands for.
    pub id_header: String,
}

/// How a scheme is configured.
#[derive(Debug)]
pub struct Form {
    /// The value of `scheme`.
    pub name: &'static str,
    /// The keys that it reads besides `scheme`.
    pub keys: &'static [&'static str],
    /// Makes the scheme's message.
    pub build: fn(Settings) -> Scheme,
}

/// Every scheme, in the order in which messages list them.
pub const FORMS: [&Form; 8] = [
    &standard::FORM,
    &github::FORM,
    &stripe::FORM,
    &slack::FORM,
    &shopify::FORM,
    &hmac::FORM,
    &api_key::FORM,
    &unsigned::FORM,
];

/// The scheme of a source.
pub fn of(scheme: &Scheme) -> &dyn WebhookScheme {
    match scheme {
        Scheme::Standard(scheme) => scheme,
        Scheme::Github(scheme) => scheme,
        Scheme::Stripe(scheme) => scheme,
        Scheme::Slack(scheme) => scheme,
        Scheme::Shopify(scheme) => scheme,
        Scheme::Hmac(scheme) => scheme,
        Scheme::ApiKey(scheme) => scheme,
        Scheme::None(scheme) => scheme,
    }
}

/// As [`of`].
pub fn of_mut(scheme: &mut Scheme) -> &mut dyn WebhookScheme {
    match scheme {
        Scheme::Standard(scheme) => scheme,
        Scheme::Github(scheme) => scheme,
        Scheme::Stripe(scheme) => scheme,
        Scheme::Slack(scheme) => scheme,
        Scheme::Shopify(scheme) => scheme,
        Scheme::Hmac(scheme) => scheme,
        Scheme::ApiKey(scheme) => scheme,
        Scheme::None(scheme) => scheme,
    }
}

/// The names of all schemes, for messages.
pub fn names() -> String {
    FORMS.map(|form| form.name).join(", ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_form_makes_the_scheme_of_its_name_with_the_keys_that_it_reads() {
        for form in FORMS {
            let mut scheme = (form.build)(Settings {
                secrets: vec!["a secret of sixteen".into()],
                tolerance_ms: Some(1),
                ..Settings::default()
            });
            assert_eq!(of(&scheme).name(), form.name);
            assert_eq!(of(&scheme).secrets().is_some(), form.keys.contains(&"secrets"), "{}", form.name);
            assert_eq!(of(&scheme).tolerance_ms().is_some(), form.keys.contains(&"tolerance"), "{}", form.name);
            assert_eq!(of_mut(&mut scheme).secrets_mut().is_some(), form.keys.contains(&"secrets"), "{}", form.name);
        }
    }
}
