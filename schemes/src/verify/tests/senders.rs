//! Senders of every scheme, written after the providers' documents and not after the verifiers.

use base64::{Engine as _, engine::general_purpose::STANDARD as BASE64};
use ed25519_dalek::{Signer as _, SigningKey};
use weft_proto::v1::{ShopifyScheme, SlackScheme, StripeScheme};

use super::*;

/// One scheme, as its senders use it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Provider {
    Standard,
    Svix,
    StandardPublic,
    Github,
    Stripe,
    Slack,
    Shopify,
    ShopifyNewer,
    Template,
}

impl Provider {
    pub(super) const ALL: [Self; 9] = [
        Self::Standard,
        Self::Svix,
        Self::StandardPublic,
        Self::Github,
        Self::Stripe,
        Self::Slack,
        Self::Shopify,
        Self::ShopifyNewer,
        Self::Template,
    ];

    /// The name that stands in `ce-verifiedby`.
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Standard | Self::Svix | Self::StandardPublic => "standard",
            Self::Github => "github",
            Self::Stripe => "stripe",
            Self::Slack => "slack",
            Self::Shopify | Self::ShopifyNewer => "shopify",
            Self::Template => "hmac",
        }
    }

    /// Whether its senders sign the time.
    pub(super) fn signs_time(self) -> bool {
        !matches!(self, Self::Github | Self::Shopify | Self::ShopifyNewer)
    }

    /// A secret of the scheme's form; another for each number.
    pub(super) fn secret(self, number: u8) -> String {
        match self {
            Self::Standard | Self::Svix => format!("whsec_{}", BASE64.encode([number; 24])),
            Self::StandardPublic => format!("whsk_{}", BASE64.encode([number; 32])),
            Self::Stripe => format!("whsec_stripe{number}"),
            _ => format!("secret {number}"),
        }
    }

    /// The verifier of a source with these secrets.
    pub(super) fn verifier(self, secrets: &[String]) -> Verifier {
        let secrets = secrets.to_vec();
        verifier(match self {
            Self::Standard | Self::Svix => Configured::Standard(StandardScheme { secrets, tolerance_ms: None }),
            Self::StandardPublic => {
                let secrets = secrets.iter().map(|secret| public(secret)).collect();
                Configured::Standard(StandardScheme { secrets, tolerance_ms: None })
            }
            Self::Github => Configured::Github(GithubScheme { secrets }),
            Self::Stripe => Configured::Stripe(StripeScheme { secrets, tolerance_ms: None }),
            Self::Slack => Configured::Slack(SlackScheme { secrets, tolerance_ms: None }),
            Self::Shopify | Self::ShopifyNewer => Configured::Shopify(ShopifyScheme { secrets }),
            Self::Template => Configured::Hmac(HmacScheme {
                secrets,
                header: "x-signature".into(),
                prefix: "sig ".into(),
                encoding: SignatureEncoding::Base64.into(),
                template: "{timestamp}.{body}.{id}".into(),
                timestamp_header: "x-time".into(),
                id_header: "x-id".into(),
                tolerance_ms: None,
            }),
        })
        .unwrap()
    }

    /// The headers that count, of a request with this body.
    pub(super) fn sign(self, secret: &str, id: &str, time: i64, body: &[u8]) -> HeaderMap {
        let over = |parts: &[&[u8]]| mac(secret.as_bytes(), parts);
        let text = time.to_string();
        let seconds = text.as_bytes();
        match self {
            Self::Standard | Self::Svix => {
                let key = BASE64.decode(secret.strip_prefix("whsec_").unwrap()).unwrap();
                let tag = mac(&key, &[id.as_bytes(), b".", seconds, b".", body]);
                let family = if self == Self::Svix { "svix" } else { "webhook" };
                standard_headers(family, id, &text, &format!("v1,{}", BASE64.encode(tag)))
            }
            Self::StandardPublic => {
                let signed = [id.as_bytes(), b".", seconds, b".", body].concat();
                let signature = private(secret).sign(&signed).to_bytes();
                standard_headers("webhook", id, &text, &format!("v1a,{}", BASE64.encode(signature)))
            }
            Self::Github => headers(&[("X-Hub-Signature-256", &format!("sha256={}", hex::encode(over(&[body]))))]),
            Self::Stripe => {
                let tag = hex::encode(over(&[seconds, b".", body]));
                headers(&[("Stripe-Signature", &format!("t={time},v1={tag}"))])
            }
            Self::Slack => {
                let tag = hex::encode(over(&[b"v0:", seconds, b":", body]));
                headers(&[("X-Slack-Request-Timestamp", &text), ("X-Slack-Signature", &format!("v0={tag}"))])
            }
            Self::Shopify => headers(&[("X-Shopify-Hmac-SHA256", &BASE64.encode(over(&[body])))]),
            Self::ShopifyNewer => headers(&[("Shopify-Hmac-Sha256", &BASE64.encode(over(&[body])))]),
            Self::Template => {
                let tag = BASE64.encode(over(&[seconds, b".", body, b".", id.as_bytes()]));
                headers(&[("X-Signature", &format!("sig {tag}")), ("X-Time", &text), ("X-Id", id)])
            }
        }
    }
}

fn standard_headers(family: &str, id: &str, time: &str, signature: &str) -> HeaderMap {
    headers(&[
        (&format!("{family}-id"), id),
        (&format!("{family}-timestamp"), time),
        (&format!("{family}-signature"), signature),
    ])
}

fn mac(key: &[u8], parts: &[&[u8]]) -> Vec<u8> {
    let mut mac = Hmac::<Sha256>::new_from_slice(key).unwrap();
    mac.update(&parts.concat());
    mac.finalize().into_bytes().to_vec()
}

/// The key of a secret `whsk_…`.
fn private(secret: &str) -> SigningKey {
    let seed = BASE64.decode(secret.strip_prefix("whsk_").unwrap()).unwrap();
    SigningKey::from_bytes(&seed.try_into().unwrap())
}

/// Its public key, as a source has it.
fn public(secret: &str) -> String {
    format!("whpk_{}", BASE64.encode(private(secret).verifying_key().as_bytes()))
}
