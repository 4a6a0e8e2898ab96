//! Checks of sources, subscriptions and keys, wherever they come from: a file, the API, a test.

use weft_expression::Expression;
use weft_nats::event::OWN_SOURCE;
use weft_proto::{
    ids::{SubscriptionUid, WorkflowId},
    v1::{
        self, ApiKey, BodyKind, Scope, Source, Subscription, delivery_id_rule, destination, rule, verification::Scheme,
    },
};

use weft_schema::pointer::is_pointer;

use super::{defaults::is_ordered, delivery_url::DeliveryUrl, keys::KEY_ID_CHARS};

mod grpc;
mod http;
mod nats;
mod postgres;
mod schemas;

pub(crate) use postgres::check_shards;

/// The longest name.
const NAME_MAX: usize = 40;
/// The longest text that people call a key by.
const LABEL_BYTES_MAX: usize = 128;
/// Bytes of a key's digest.
const DIGEST_BYTES: usize = 32;
/// The most entries of a key's lists: each request is compared with all of them.
const LIMITS_MAX: usize = 256;
/// The longest prefix of a workflow: as long as a workflow's id may be.
const PREFIX_BYTES_MAX: usize = 128;
/// The longest name of a header.
const HEADER_BYTES_MAX: usize = 128;
/// The most patterns or sources of a subscription: each event is compared with all of them.
const PATTERNS_MAX: usize = 256;
/// The longest type pattern.
const PATTERN_BYTES_MAX: usize = 256;
/// Events of a batch: two batches of the largest number of small events are a tenth of the memory for events of a worker.
const BATCH_EVENTS_MAX: u32 = 1000;
/// The most waits of a retry schedule.
const SCHEDULE_MAX: usize = 100;
/// The longest wait between two attempts: no log keeps its events for longer.
const WAIT_MS_MAX: u64 = 366 * 24 * 60 * 60 * 1000;
/// The longest tolerance of a signed timestamp: a day.
const TOLERANCE_MS_MAX: u64 = 24 * 60 * 60 * 1000;
/// The longest period of a rate: more would stop it for a day after a burst.
const PERIOD_MS_MAX: u64 = 24 * 60 * 60 * 1000;

/// Checks a source for what no gateway could work with.
///
/// # Errors
///
/// The problem and the fix, in one line.
pub fn validate_source(source: &Source) -> Result<(), String> {
    check_name(&source.name)?;
    if source.name == OWN_SOURCE {
        return Err(format!("name: {OWN_SOURCE} is the source of the mesh's own events; choose another"));
    }
    let scheme = source
        .verification
        .as_ref()
        .and_then(|verification| verification.scheme.as_ref())
        .ok_or("verify is missing: say which scheme its requests are signed by")?;
    weft_schemes::check_secrets(scheme)?;
    check_tolerance(scheme)?;
    match scheme {
        Scheme::Hmac(hmac) => check_hmac(source, hmac)?,
        scheme => {
            let scheme = weft_schemes::of(scheme);
            if scheme.delivery_id().is_none() {
                check_delivery_id_is_said(source, scheme.name())?;
            }
        }
    }
    for (what, rule) in [("workflow", &source.workflow), ("type", &source.r#type)] {
        if let Some(rule) = rule {
            check_rule(source, what, rule)?;
        }
    }
    if let Some(v1::Rule { from: Some(rule::From::Fixed(workflow)) }) = &source.workflow {
        WorkflowId::new(workflow.as_str()).map_err(|problem| format!("workflow: {workflow:?} {problem}"))?;
    }
    check_delivery_id(source)?;
    check_pointer("data", &source.data_pointer)?;
    source.keep_headers.iter().try_for_each(|header| check_header("keep_headers", header))?;
    schemas::check_schemas(source)
}

/// Settings that work and are probably not meant, one line each.
pub fn source_warnings(source: &Source) -> Vec<String> {
    let mut warnings = Vec::new();
    let Some(scheme) = source.verification.as_ref().and_then(|verification| verification.scheme.as_ref()) else {
        return warnings;
    };
    for index in weft_schemes::short_secrets(scheme) {
        warnings.push(format!("verify: secret {index} is shorter than 16 bytes; ask the sender for a longer one"));
    }
    if let (Scheme::Hmac(hmac), Some(v1::DeliveryIdRule { from: Some(delivery_id_rule::From::Header(header)) })) =
        (scheme, &source.delivery_id)
        && !(hmac.template.contains("{id}") && hmac.id_header.eq_ignore_ascii_case(header))
        && source.replay_guard() != v1::ReplayGuard::Body
    {
        warnings.push(format!(
            "delivery_id: header {header} is not signed, so that a captured request can be sent again under another id; \
             put {{id}} into the template, or say replay_guard = \"body\" where no two bodies are the same"
        ));
    }
    warnings
}

/// Checks a subscription for what no worker could work with.
///
/// # Errors
///
/// The problem and the fix, in one line.
pub fn validate_subscription(subscription: &Subscription) -> Result<(), String> {
    check_name(&subscription.name)?;
    if SubscriptionUid::from_slice(&subscription.uid).is_none() {
        return Err("uid is not a UUID".into());
    }
    if subscription.types.is_empty() {
        return Err("types is empty: it would take nothing; say [\"*\"] for everything".into());
    }
    if subscription.types.len() > PATTERNS_MAX || subscription.sources.len() > PATTERNS_MAX {
        return Err(format!("types and sources may have {PATTERNS_MAX} entries each; use patterns with *"));
    }
    if let Some(pattern) = subscription.types.iter().find(|pattern| !(1..=PATTERN_BYTES_MAX).contains(&pattern.len())) {
        return Err(format!("types: {pattern:?} is empty or longer than {PATTERN_BYTES_MAX} bytes"));
    }
    for source in &subscription.sources {
        check_name(source).map_err(|problem| format!("sources: {problem}"))?;
    }
    if subscription.timeout_ms == 0 || subscription.concurrency == 0 {
        return Err("timeout and concurrency must not be 0: nothing could be delivered".into());
    }
    if subscription.timeout_ms > PERIOD_MS_MAX {
        return Err("timeout must be a day or less".into());
    }
    if let Some(rate) = &subscription.rate
        && (rate.count == 0 || !(1..=PERIOD_MS_MAX).contains(&rate.period_ms))
    {
        return Err("rate must be 1 or more in a time of up to a day; leave it out for no limit".into());
    }
    if let Some(retry) = &subscription.retry {
        check_retry(retry)?;
    }
    for (field, text) in [("filter", &subscription.filter), ("transform", &subscription.transform)] {
        if !text.is_empty() {
            Expression::shared(text).map_err(|problem| format!("{field}: {problem}"))?;
        }
    }
    if let Some(batch) = &subscription.batch {
        if !(1..=BATCH_EVENTS_MAX).contains(&batch.max_events) {
            return Err(format!("batch: max_events must be 1 to {BATCH_EVENTS_MAX}"));
        }
        if batch.max_events > 1 && !is_ordered(subscription) {
            return Err("batch: the events of a subscription with ordered = false are delivered one by one".into());
        }
    }
    match subscription.destination.as_ref().and_then(|destination| destination.kind.as_ref()) {
        Some(destination::Kind::Http(http)) => {
            http::check(http, subscription.batch.is_some_and(|batch| batch.max_events > 1))
        }
        Some(destination::Kind::Nats(nats)) => nats::check(nats),
        Some(destination::Kind::Grpc(grpc)) => grpc::check(grpc),
        Some(destination::Kind::Postgres(postgres)) => postgres::check_postgres(postgres),
        Some(destination::Kind::Custom(custom)) => {
            check_name(&custom.name).map_err(|problem| format!("destination: {problem}"))
        }
        None => Err("destination is missing: say where deliveries go".into()),
    }
}

/// Checks an API key for values that no role could work with.
///
/// # Errors
///
/// The problem and the fix, in one line.
pub fn validate_key(key: &ApiKey) -> Result<(), String> {
    let sound =
        key.id.len() == KEY_ID_CHARS && key.id.bytes().all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit());
    if !sound {
        return Err(format!("id {:?} is not of the form [a-z0-9]{{{KEY_ID_CHARS}}}", key.id));
    }
    if key.name.len() > LABEL_BYTES_MAX || key.name.chars().any(char::is_control) {
        return Err(format!("name is longer than {LABEL_BYTES_MAX} bytes, or holds control characters"));
    }
    if key.digest.len() != DIGEST_BYTES {
        return Err("digest is not a SHA-256".into());
    }
    if key.scopes.is_empty() {
        return Err("scopes is empty: the key could do nothing".into());
    }
    if key.scopes.iter().any(|scope| !Scope::try_from(*scope).is_ok_and(|scope| scope != Scope::Unspecified)) {
        return Err("scopes holds something else than ingest, read, operate and admin".into());
    }
    if [key.scopes.len(), key.sources.len(), key.workflow_prefixes.len()].into_iter().any(|len| len > LIMITS_MAX) {
        return Err(format!("scopes, sources and workflow_prefixes may have {LIMITS_MAX} entries each"));
    }
    key.sources.iter().try_for_each(|source| check_name(source)).map_err(|problem| format!("sources: {problem}"))?;
    match key.workflow_prefixes.iter().find(|prefix| !(1..=PREFIX_BYTES_MAX).contains(&prefix.len())) {
        Some(prefix) => Err(format!("workflow_prefixes: {prefix:?} is empty or longer than {PREFIX_BYTES_MAX} bytes")),
        None => Ok(()),
    }
}

fn check_retry(retry: &v1::Retry) -> Result<(), String> {
    if retry.schedule_ms.len() > SCHEDULE_MAX {
        return Err(format!("retry: schedule has {} waits; {SCHEDULE_MAX} are the most", retry.schedule_ms.len()));
    }
    if !(0.0..=1.0).contains(&retry.jitter) {
        return Err(format!("retry: jitter = {} is not within 0 and 1", retry.jitter));
    }
    if retry.schedule_ms.iter().chain([&retry.base_ms, &retry.max_ms]).any(|wait| *wait > WAIT_MS_MAX) {
        return Err("retry: a wait is longer than 366 days; no event is kept for so long".into());
    }
    // An explicit schedule replaces the rest.
    if !retry.schedule_ms.is_empty() {
        return Ok(());
    }
    if !(retry.factor >= 1.0 && retry.factor.is_finite()) {
        return Err(format!("retry: factor = {} is below 1: waits must not shrink", retry.factor));
    }
    if retry.base_ms > retry.max_ms {
        return Err(format!("retry: base = {} ms is above max = {} ms", retry.base_ms, retry.max_ms));
    }
    Ok(())
}

/// The form only: whether the address may be reached is decided where it is resolved.
fn check_url(url: &str) -> Result<(), String> {
    DeliveryUrl::parse(url).map(drop).map_err(|problem| format!("destination: {problem}"))
}

/// A time within which a captured request counts as new must not outlast what is known of the first.
fn check_tolerance(scheme: &Scheme) -> Result<(), String> {
    match weft_schemes::of(scheme).tolerance_ms() {
        Some(tolerance) if tolerance > TOLERANCE_MS_MAX => {
            Err("verify: tolerance is longer than a day; a captured request could be sent again for as long".into())
        }
        _ => Ok(()),
    }
}

fn check_name(name: &str) -> Result<(), String> {
    let fits = (1..=NAME_MAX).contains(&name.len())
        && name.bytes().all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-');
    if fits { Ok(()) } else { Err(format!("name {name:?} is not of the form [a-z0-9-]{{1,{NAME_MAX}}}")) }
}

fn check_hmac(source: &Source, hmac: &v1::HmacScheme) -> Result<(), String> {
    if hmac.header.is_empty() {
        return Err("verify: scheme \"hmac\" needs header, the name of the header with the signature".into());
    }
    check_header("verify: header", &hmac.header)?;
    // Absent means the body alone.
    let template = if hmac.template.is_empty() { "{body}" } else { &hmac.template };
    if !template.contains("{body}") {
        return Err(format!("verify: template {template:?} does not hold {{body}}: the body would not be signed"));
    }
    for (placeholder, key, header) in
        [("{timestamp}", "timestamp_header", &hmac.timestamp_header), ("{id}", "id_header", &hmac.id_header)]
    {
        match (template.contains(placeholder), header.is_empty()) {
            (true, true) => return Err(format!("verify: a template with {placeholder} needs {key}")),
            (false, false) => return Err(format!("verify: {key} belongs to a template with {placeholder}")),
            (true, false) => check_header(key, header)?,
            (false, true) => {}
        }
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

fn check_delivery_id(source: &Source) -> Result<(), String> {
    let Some(rule) = &source.delivery_id else { return Ok(()) };
    match &rule.from {
        Some(delivery_id_rule::From::Pointer(pointer)) => {
            check_pointer("delivery_id", pointer)?;
            check_json(source, "delivery_id")
        }
        Some(delivery_id_rule::From::Header(header)) => check_header("delivery_id", header),
        Some(delivery_id_rule::From::Digest(true) | delivery_id_rule::From::None(true)) => Ok(()),
        _ => Err("delivery_id says nothing; leave it out or give a header, a pointer, \"digest\" or \"none\"".into()),
    }
}

fn check_rule(source: &Source, what: &str, rule: &v1::Rule) -> Result<(), String> {
    match &rule.from {
        Some(rule::From::Pointer(pointer)) => {
            check_pointer(what, pointer)?;
            check_json(source, what)
        }
        Some(rule::From::Header(name)) => check_header(what, name),
        Some(rule::From::Fixed(text)) if !text.is_empty() => Ok(()),
        _ => Err(format!("{what}: say {{ pointer = \"/…\" }}, {{ header = \"…\" }} or {{ fixed = \"…\" }}")),
    }
}

fn check_pointer(what: &str, pointer: &str) -> Result<(), String> {
    if is_pointer(pointer) {
        return Ok(());
    }
    Err(format!("{what}: {pointer:?} is not a JSON pointer; begin with /, write ~0 for ~ and ~1 for a / within a name"))
}

fn check_header(what: &str, name: &str) -> Result<(), String> {
    // The characters of a token (RFC 9110).
    let fits = |byte: u8| byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&byte);
    if (1..=HEADER_BYTES_MAX).contains(&name.len()) && name.bytes().all(fits) {
        return Ok(());
    }
    Err(format!("{what}: {name:?} is not the name of a header"))
}

fn check_json(source: &Source, what: &str) -> Result<(), String> {
    if source.body() == BodyKind::Any {
        return Err(format!("{what}: a pointer needs body = \"json\""));
    }
    Ok(())
}

#[cfg(test)]
mod tests;
