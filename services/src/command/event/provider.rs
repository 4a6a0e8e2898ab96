//! Requests as providers send them: the provider's headers and a body of its form.

use jiff::Timestamp;
use sha2::{Digest as _, Sha256};

use crate::sender::{Header, Scheme};

/// A provider of webhooks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum Provider {
    /// GitHub, by default a `push`
    Github,
    /// Stripe, by default a `payment_intent.succeeded`
    Stripe,
    /// Shopify, by default an `orders/create`
    Shopify,
    /// Slack's Events API, by default a `message`
    Slack,
    /// A sender by Standard Webhooks, by default an `invoice.paid`
    Standard,
    /// Svix, which has its own names for the headers of Standard Webhooks
    Svix,
}

impl Provider {
    /// The scheme by which it signs.
    pub const fn scheme(self) -> Scheme {
        match self {
            Self::Github => Scheme::Github,
            Self::Stripe => Scheme::Stripe,
            Self::Shopify => Scheme::Shopify,
            Self::Slack => Scheme::Slack,
            Self::Standard | Self::Svix => Scheme::Standard,
        }
    }

    /// The type of its sample.
    pub const fn type_default(self) -> &'static str {
        match self {
            Self::Github => "push",
            Self::Stripe => "payment_intent.succeeded",
            Self::Shopify => "orders/create",
            Self::Slack => "message",
            Self::Standard | Self::Svix => "invoice.paid",
        }
    }

    /// A new delivery id in its form.
    pub fn new_id(self) -> String {
        let id = uuid::Uuid::now_v7();
        match self {
            Self::Github | Self::Shopify => id.to_string(),
            Self::Stripe => format!("evt_{}", id.simple()),
            Self::Slack => format!("Ev{}", id.simple().to_string().to_ascii_uppercase()),
            Self::Standard | Self::Svix => format!("msg_{}", id.simple()),
        }
    }

    /// A body in its form, where id, type and time are in the body.
    pub fn sample(self, id: &str, event_type: &str, now: Timestamp) -> String {
        let text = match self {
            Self::Github => include_str!("samples/github.json"),
            Self::Stripe => include_str!("samples/stripe.json"),
            Self::Shopify => include_str!("samples/shopify.json"),
            Self::Slack => include_str!("samples/slack.json"),
            Self::Standard | Self::Svix => include_str!("samples/standard.json"),
        };
        // Bodies of different deliveries differ, as those of a provider do.
        let digest = hex::encode(&Sha256::digest(id)[..20]);
        let quoted = |text: &str| serde_json::Value::from(text).to_string();
        text.trim_end()
            .replace("{{digest}}", &digest)
            .replace("{{id}}", &quoted(id))
            .replace("{{type}}", &quoted(event_type))
            .replace("{{time}}", &quoted(&format!("{now:.0}")))
            .replace("{{unix}}", &now.as_second().to_string())
    }

    /// Its headers: those that were signed, under its own names, and those that it sends besides.
    pub fn headers(self, signed: Vec<Header>, id: &str, now: Timestamp) -> Vec<Header> {
        let header = |name: &str, value: &str| (name.to_owned(), value.to_owned());
        let own = match self {
            Self::Github => vec![
                header("User-Agent", "GitHub-Hookshot/044aadd"),
                header("X-GitHub-Hook-ID", "292430182"),
                header("X-GitHub-Hook-Installation-Target-ID", "186853002"),
                header("X-GitHub-Hook-Installation-Target-Type", "repository"),
            ],
            Self::Stripe => vec![header("User-Agent", "Stripe/1.0 (+https://stripe.com/docs/webhooks)")],
            Self::Shopify => vec![
                header("User-Agent", "Shopify-Captain-Hook"),
                header("X-Shopify-Shop-Domain", "acme.myshopify.com"),
                header("X-Shopify-API-Version", "2025-04"),
                // The event, where one of it may be sent by several webhooks.
                header("X-Shopify-Event-Id", id),
                header("X-Shopify-Triggered-At", &now.to_string()),
            ],
            Self::Slack => vec![header("User-Agent", "Slackbot 1.0 (+https://api.slack.com/robots)")],
            Self::Standard => Vec::new(),
            Self::Svix => vec![header("User-Agent", "Svix-Webhooks/1.62.0")],
        };
        let renamed = signed.into_iter().map(|(name, value)| match name.strip_prefix("webhook-") {
            Some(rest) if self == Self::Svix => (format!("svix-{rest}"), value),
            _ => (name, value),
        });
        renamed.chain(own).collect()
    }
}

#[cfg(test)]
mod tests {
    use clap::ValueEnum as _;
    use serde_json::Value;

    use super::*;

    /// Id, type and the workflow that the documented rules name are where the gateway looks for them.
    #[test]
    fn samples_are_json_of_the_providers_form() {
        let now = "2026-11-21T02:00:00.5Z".parse().unwrap();
        for (provider, id, event_type, workflow) in [
            (Provider::Github, None, None, "/repository/full_name"),
            (Provider::Stripe, Some("/id"), Some("/type"), "/data/object/id"),
            (Provider::Shopify, None, None, "/id"),
            (Provider::Slack, Some("/event_id"), Some("/event/type"), "/event/channel"),
            (Provider::Standard, None, Some("/type"), "/data/id"),
            (Provider::Svix, None, Some("/type"), "/data/id"),
        ] {
            let text = provider.sample("the \"id\"", "the type", now);
            assert!(!text.contains("{{"), "{text}");
            assert_ne!(text, provider.sample("another id", "the type", now));
            let body: Value = serde_json::from_str(&text).unwrap();
            let at = |pointer: &str| body.pointer(pointer).and_then(Value::as_str);
            assert_eq!(id.map(at), id.map(|_| Some("the \"id\"")), "{provider:?}");
            assert_eq!(event_type.map(at), event_type.map(|_| Some("the type")), "{provider:?}");
            assert!(body.pointer(workflow).is_some(), "{provider:?}");
        }
        assert_eq!(Provider::value_variants().len(), 6);
    }

    #[test]
    fn svix_has_its_own_names_for_the_headers() {
        let signed = vec![("webhook-id".to_owned(), "msg_1".to_owned())];
        let headers = Provider::Svix.headers(signed.clone(), "msg_1", Timestamp::UNIX_EPOCH);
        assert_eq!(headers[0], ("svix-id".to_owned(), "msg_1".to_owned()));
        assert_eq!(Provider::Standard.headers(signed.clone(), "msg_1", Timestamp::UNIX_EPOCH), signed);
    }
}
