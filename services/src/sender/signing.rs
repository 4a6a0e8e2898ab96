//! Signing as senders do it, written after the providers' documents. It is independent of the gateway's verifiers, so that tests
//! find errors of either.

use base64::{
    Engine as _,
    prelude::{BASE64_STANDARD, BASE64_STANDARD_NO_PAD},
};
use ed25519_dalek::{Signer as _, SigningKey};
use hmac::{Hmac, KeyInit as _, Mac as _};
use sha2::Sha256;

/// How a sender signs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum Scheme {
    /// Standard Webhooks: `webhook-id`, `webhook-timestamp`, `webhook-signature`
    Standard,
    /// GitHub: `X-Hub-Signature-256`, with `X-GitHub-Delivery` and `X-GitHub-Event`
    Github,
    /// Stripe: `Stripe-Signature`; id and type are in the body
    Stripe,
    /// Slack: `X-Slack-Signature`, `X-Slack-Request-Timestamp`; id and type are in the body
    Slack,
    /// Shopify: `X-Shopify-Hmac-SHA256`, with `X-Shopify-Webhook-Id` and `X-Shopify-Topic`
    Shopify,
    /// HMAC-SHA256 as the options below say; of the body as `sha256=<hex>` in `X-Signature`, the id in `X-Delivery-Id`
    Hmac,
}

impl Scheme {
    /// As `weft.toml` and the command line spell it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Standard => "standard",
            Self::Github => "github",
            Self::Stripe => "stripe",
            Self::Slack => "slack",
            Self::Shopify => "shopify",
            Self::Hmac => "hmac",
        }
    }

    /// Whether its requests name the delivery id in a header, signed or not.
    pub fn id_in_header(self) -> bool {
        !matches!(self, Self::Stripe | Self::Slack)
    }

    /// Whether its requests name the type in a header.
    pub fn type_in_header(self) -> bool {
        matches!(self, Self::Github | Self::Shopify)
    }
}

/// Options of `--scheme hmac`.
#[derive(Debug, Clone, Default, clap::Args)]
#[command(next_help_heading = "With --scheme hmac, as in weft.toml")]
pub struct HmacOptions {
    /// The header with the signature [default: X-Signature]
    #[arg(long, value_name = "HEADER")]
    pub signature_header: Option<String>,
    /// Text before the signature [default: sha256=]
    #[arg(long, value_name = "TEXT")]
    pub prefix: Option<String>,
    /// Encoding of the signature [default: hex]
    #[arg(long, value_enum)]
    pub encoding: Option<Encoding>,
    /// Signed text, of {id}, {timestamp} and {body} [default: {body}]
    #[arg(long, value_name = "TEXT")]
    pub template: Option<String>,
    /// The header that {timestamp} stands for [default: X-Timestamp]
    #[arg(long, value_name = "HEADER")]
    pub timestamp_header: Option<String>,
    /// The header with the delivery id, which {id} stands for [default: X-Delivery-Id]
    #[arg(long, value_name = "HEADER")]
    pub id_header: Option<String>,
}

/// How a signature is spelt.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, clap::ValueEnum)]
pub enum Encoding {
    /// Two lower-case digits a byte
    #[default]
    Hex,
    /// With padding
    Base64,
}

impl Encoding {
    /// As `weft.toml` spells it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Hex => "hex",
            Self::Base64 => "base64",
        }
    }
}

impl HmacOptions {
    /// Checks that there is none.
    ///
    /// # Errors
    ///
    /// Which one `scheme` does not read.
    pub fn check_absent(&self, scheme: Scheme) -> Result<(), String> {
        let given = [
            ("--signature-header", self.signature_header.is_some()),
            ("--prefix", self.prefix.is_some()),
            ("--encoding", self.encoding.is_some()),
            ("--template", self.template.is_some()),
            ("--timestamp-header", self.timestamp_header.is_some()),
            ("--id-header", self.id_header.is_some()),
        ];
        match given.iter().find(|(_, given)| *given) {
            Some((flag, _)) => Err(format!("{flag} is for --scheme hmac; {} does not read it", scheme.name())),
            None => Ok(()),
        }
    }

    /// The header with the signature.
    pub fn signature_header(&self) -> &str {
        self.signature_header.as_deref().unwrap_or("X-Signature")
    }

    /// Text before the signature.
    pub fn prefix(&self) -> &str {
        self.prefix.as_deref().unwrap_or("sha256=")
    }

    /// Template of the signed text.
    pub fn template(&self) -> &str {
        self.template.as_deref().unwrap_or("{body}")
    }

    /// The header that `{timestamp}` stands for, where it is signed.
    pub fn timestamp_header(&self) -> Option<&str> {
        let header = self.timestamp_header.as_deref();
        if self.template().contains("{timestamp}") { Some(header.unwrap_or("X-Timestamp")) } else { header }
    }

    /// The header with the delivery id.
    pub fn id_header(&self) -> &str {
        self.id_header.as_deref().unwrap_or("X-Delivery-Id")
    }

    /// The text that is signed.
    fn text(&self, id: &str, timestamp: &str, body: &[u8]) -> Result<Vec<u8>, String> {
        let template = self.template();
        let unknown = || format!("--template {template:?}: it may hold {{id}}, {{timestamp}} and {{body}}");
        let mut text = Vec::new();
        let mut rest = template;
        while let Some((before, tail)) = rest.split_once('{') {
            let (name, tail) = tail.split_once('}').ok_or_else(unknown)?;
            text.extend_from_slice(before.as_bytes());
            text.extend_from_slice(match name {
                "id" => id.as_bytes(),
                "timestamp" => timestamp.as_bytes(),
                "body" => body,
                _ => return Err(unknown()),
            });
            rest = tail;
        }
        text.extend_from_slice(rest.as_bytes());
        Ok(text)
    }
}

/// Parameters of a signature.
#[derive(Clone)]
pub struct Signing {
    /// By which rules.
    pub scheme: Scheme,
    /// With which secret: `whsec_…` or the private key `whsk_…` for Standard Webhooks, the text itself for the others.
    pub secret: String,
    /// The rules of [`Scheme::Hmac`].
    pub hmac: HmacOptions,
}

impl std::fmt::Debug for Signing {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{:?}", self.scheme)
    }
}

/// Name and value of a header.
pub type Header = (String, String);

impl Signing {
    /// Signs by a scheme's usual rules.
    pub fn new(scheme: Scheme, secret: impl Into<String>) -> Self {
        Self { scheme, secret: secret.into(), hmac: HmacOptions::default() }
    }

    /// Whether the time is signed.
    pub fn signs_time(&self) -> bool {
        match self.scheme {
            Scheme::Standard | Scheme::Stripe | Scheme::Slack => true,
            Scheme::Github | Scheme::Shopify => false,
            Scheme::Hmac => self.hmac.timestamp_header().is_some(),
        }
    }

    /// The headers of a request: `id` is the delivery id and `event_type` the type, for the schemes that name them in
    /// headers; `timestamp` is in unix seconds.
    ///
    /// # Errors
    ///
    /// The secret is not of the scheme's form, or the template is invalid.
    pub fn headers(
        &self,
        id: &str,
        timestamp: i64,
        event_type: Option<&str>,
        body: &[u8],
    ) -> Result<Vec<Header>, String> {
        let key = self.secret.as_bytes();
        let time = timestamp.to_string();
        let seconds = time.as_bytes();
        let header = |name: &str, value: &str| (name.to_owned(), value.to_owned());
        let typed = |name| event_type.map(|event_type| header(name, event_type));
        let carries = |text: &str| http::HeaderValue::from_str(text).is_ok();
        if self.scheme.id_in_header() && !carries(id) {
            return Err(format!("the delivery id {id:?} cannot be in a header: only visible ASCII can"));
        }
        if let Some(event_type) = event_type.filter(|text| self.scheme.type_in_header() && !carries(text)) {
            return Err(format!("the type {event_type:?} cannot be in a header: only visible ASCII can"));
        }
        Ok(match self.scheme {
            Scheme::Standard => {
                let text = [id.as_bytes(), b".", seconds, b".", body].concat();
                let signature = standard(&self.secret, &text)?;
                let names = ["webhook-id", "webhook-timestamp", "webhook-signature"];
                names.into_iter().zip([id, &time, &signature]).map(|(name, value)| header(name, value)).collect()
            }
            Scheme::Github => {
                let signature = format!("sha256={}", hex::encode(hmac_sha256(key, &[body])?));
                let headers = [header("X-Hub-Signature-256", &signature), header("X-GitHub-Delivery", id)];
                headers.into_iter().chain(typed("X-GitHub-Event")).collect()
            }
            Scheme::Stripe => {
                // The secret looks like one of Standard Webhooks, but its text is the key.
                let tag = hex::encode(hmac_sha256(key, &[seconds, b".", body])?);
                vec![header("Stripe-Signature", &format!("t={time},v1={tag}"))]
            }
            Scheme::Slack => {
                let tag = hex::encode(hmac_sha256(key, &[b"v0:", seconds, b":", body])?);
                vec![header("X-Slack-Request-Timestamp", &time), header("X-Slack-Signature", &format!("v0={tag}"))]
            }
            Scheme::Shopify => {
                let signature = BASE64_STANDARD.encode(hmac_sha256(key, &[body])?);
                let headers = [header("X-Shopify-Hmac-SHA256", &signature), header("X-Shopify-Webhook-Id", id)];
                headers.into_iter().chain(typed("X-Shopify-Topic")).collect()
            }
            Scheme::Hmac => {
                let tag = hmac_sha256(key, &[&self.hmac.text(id, &time, body)?])?;
                let tag = match self.hmac.encoding.unwrap_or_default() {
                    Encoding::Hex => hex::encode(tag),
                    Encoding::Base64 => BASE64_STANDARD.encode(tag),
                };
                let signature = format!("{}{tag}", self.hmac.prefix());
                let headers = [header(self.hmac.signature_header(), &signature), header(self.hmac.id_header(), id)];
                headers.into_iter().chain(self.hmac.timestamp_header().map(|name| header(name, &time))).collect()
            }
        })
    }
}

/// `v1,…` with a shared secret, `v1a,…` with a private key.
fn standard(secret: &str, text: &[u8]) -> Result<String, String> {
    // With and without its padding.
    let decode = |encoded: &str| BASE64_STANDARD_NO_PAD.decode(encoded.trim_end_matches('='));
    if let Some(encoded) = secret.strip_prefix("whsk_") {
        let key = decode(encoded).ok().and_then(|bytes| private_key(&bytes));
        let key = key.ok_or("the secret is not whsk_ and the base64 of an Ed25519 private key")?;
        return Ok(format!("v1a,{}", BASE64_STANDARD.encode(key.sign(text).to_bytes())));
    }
    let key = decode(secret.strip_prefix("whsec_").unwrap_or(secret))
        .map_err(|_| "the secret is neither whsec_ nor whsk_ and base64".to_owned())?;
    Ok(format!("v1,{}", BASE64_STANDARD.encode(hmac_sha256(&key, &[text])?)))
}

/// 32 bytes, or those followed by the public key.
fn private_key(bytes: &[u8]) -> Option<SigningKey> {
    match bytes.len() {
        32 => Some(SigningKey::from_bytes(bytes.try_into().ok()?)),
        64 => SigningKey::from_keypair_bytes(bytes.try_into().ok()?).ok(),
        _ => None,
    }
}

fn hmac_sha256(key: &[u8], parts: &[&[u8]]) -> Result<Vec<u8>, String> {
    if key.is_empty() {
        return Err("the secret is empty".to_owned());
    }
    let mut mac = Hmac::<Sha256>::new_from_slice(key).map_err(|_| "the secret is no key".to_owned())?;
    for part in parts {
        mac.update(part);
    }
    Ok(mac.finalize().into_bytes().to_vec())
}

#[cfg(test)]
mod tests;
