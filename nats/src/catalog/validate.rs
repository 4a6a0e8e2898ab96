//! What a source or a subscription must be, wherever it comes from: a file, the API, a test.

use base64::{Engine as _, prelude::BASE64_STANDARD};
use weft_proto::{
    ids::SubscriptionUid,
    v1::{self, BodyKind, Source, Subscription, delivery_id_rule, destination, rule, verification::Scheme},
};

/// The longest name.
const NAME_MAX: usize = 40;

/// Checks a source for what no gateway could work with.
///
/// # Errors
///
/// What is wrong and what would be right, in one line.
pub fn validate_source(source: &Source) -> Result<(), String> {
    check_name(&source.name)?;
    let scheme = source
        .verification
        .as_ref()
        .and_then(|verification| verification.scheme.as_ref())
        .ok_or("verify is missing: say which scheme its requests are signed by")?;
    match scheme {
        Scheme::Standard(standard) => {
            check_secrets(&standard.secrets)?;
            standard.secrets.iter().try_for_each(|secret| check_standard_secret(secret))?;
        }
        Scheme::Github(github) => check_secrets(&github.secrets)?,
        Scheme::Hmac(hmac) => check_hmac(source, hmac)?,
        Scheme::None(_) => check_delivery_id_is_said(source, "none")?,
    }
    for (what, rule) in [("workflow", &source.workflow), ("type", &source.r#type)] {
        if let Some(rule) = rule {
            check_rule(source, what, rule)?;
        }
    }
    check_pointer("data", &source.data_pointer)?;
    if let Some(delivery_id_rule::From::Pointer(pointer)) =
        source.delivery_id.as_ref().and_then(|rule| rule.from.as_ref())
    {
        check_pointer("delivery_id", pointer)?;
        check_json(source, "delivery_id")?;
    }
    for header in &source.keep_headers {
        if header.is_empty() || !header.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-_".contains(&byte)) {
            return Err(format!("keep_headers: {header:?} is not the name of a header"));
        }
    }
    Ok(())
}

/// Checks a subscription for what no worker could work with.
///
/// # Errors
///
/// What is wrong and what would be right, in one line.
pub fn validate_subscription(subscription: &Subscription) -> Result<(), String> {
    check_name(&subscription.name)?;
    if SubscriptionUid::from_slice(&subscription.uid).is_none() {
        return Err("uid is not a UUID".into());
    }
    if subscription.types.is_empty() {
        return Err("types is empty: it would take nothing; say [\"*\"] for everything".into());
    }
    if subscription.timeout_ms == 0 || subscription.concurrency == 0 {
        return Err("timeout and concurrency must not be 0".into());
    }
    if let Some(retry) = &subscription.retry {
        if !(0.0..=1.0).contains(&retry.jitter) {
            return Err(format!("retry: jitter = {} is not within 0 and 1", retry.jitter));
        }
        if !(retry.factor >= 1.0 && retry.factor.is_finite()) {
            return Err(format!("retry: factor = {} is below 1: waits must not shrink", retry.factor));
        }
    }
    match subscription.destination.as_ref().and_then(|destination| destination.kind.as_ref()) {
        Some(destination::Kind::Http(http)) => {
            if !(http.url.starts_with("https://") || http.url.starts_with("http://")) {
                return Err(format!("destination: url {:?} begins with neither https:// nor http://", http.url));
            }
            if http.secrets.is_empty() {
                return Err("destination: secret is missing: receivers verify deliveries by it".into());
            }
            http.secrets.iter().try_for_each(|secret| check_standard_secret(secret))
        }
        None => Err("destination is missing".into()),
    }
}

fn check_name(name: &str) -> Result<(), String> {
    let fits = (1..=NAME_MAX).contains(&name.len())
        && name.bytes().all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-');
    if fits { Ok(()) } else { Err(format!("name {name:?} is not of the form [a-z0-9-]{{1,{NAME_MAX}}}")) }
}

fn check_secrets(secrets: &[String]) -> Result<(), String> {
    if secrets.is_empty() {
        return Err("verify: secrets is empty".into());
    }
    if secrets.iter().any(String::is_empty) {
        return Err("verify: a secret is empty".into());
    }
    Ok(())
}

/// `whsec_` and the base64 of 24 to 64 bytes.
fn check_standard_secret(secret: &str) -> Result<(), String> {
    let text = secret.strip_prefix("whsec_").unwrap_or(secret);
    match BASE64_STANDARD.decode(text) {
        Ok(key) if (24..=64).contains(&key.len()) => Ok(()),
        Ok(key) => Err(format!(
            "secret: the key is {} bytes long, Standard Webhooks asks for 24 to 64; \
             make one with: echo whsec_$(openssl rand -base64 32)",
            key.len()
        )),
        Err(_) => Err("secret: not whsec_ and base64; make one with: echo whsec_$(openssl rand -base64 32)".into()),
    }
}

fn check_hmac(source: &Source, hmac: &v1::HmacScheme) -> Result<(), String> {
    check_secrets(&hmac.secrets)?;
    if hmac.header.is_empty() {
        return Err("verify: scheme hmac needs header, the name of the header with the signature".into());
    }
    if !hmac.template.contains("{body}") {
        return Err(format!("verify: template {:?} does not hold {{body}}", hmac.template));
    }
    if hmac.template.contains("{timestamp}") == hmac.timestamp_header.is_empty() {
        return Err("verify: timestamp_header belongs to a template with {timestamp}, and only to one".into());
    }
    if hmac.template.contains("{id}") && hmac.id_header.is_empty() {
        return Err("verify: a template with {id} needs delivery_id = { header = \"…\" }".into());
    }
    check_delivery_id_is_said(source, "hmac")
}

fn check_delivery_id_is_said(source: &Source, scheme: &str) -> Result<(), String> {
    match source.delivery_id.as_ref().and_then(|rule| rule.from.as_ref()) {
        Some(_) => Ok(()),
        None => Err(format!(
            "scheme {scheme} has no delivery id of its own: say delivery_id = {{ header = \"…\" }}, \
             {{ pointer = \"/…\" }}, \"digest\" or \"none\""
        )),
    }
}

fn check_rule(source: &Source, what: &str, rule: &v1::Rule) -> Result<(), String> {
    match &rule.from {
        Some(rule::From::Pointer(pointer)) => {
            check_pointer(what, pointer)?;
            check_json(source, what)
        }
        Some(rule::From::Header(name) | rule::From::Fixed(name)) if !name.is_empty() => Ok(()),
        _ => Err(format!("{what}: say {{ pointer = \"/…\" }}, {{ header = \"…\" }} or {{ fixed = \"…\" }}")),
    }
}

fn check_pointer(what: &str, pointer: &str) -> Result<(), String> {
    if pointer.is_empty() || pointer.starts_with('/') {
        Ok(())
    } else {
        Err(format!("{what}: pointer {pointer:?} does not begin with /"))
    }
}

fn check_json(source: &Source, what: &str) -> Result<(), String> {
    if source.body() == BodyKind::Any {
        return Err(format!("{what}: a pointer needs body = \"json\""));
    }
    Ok(())
}
