//! Fields of an entry, under their names in `weft.toml`: for differences, the audit log and people. Pure.
//!
//! Secrets are counted, never shown. What only the catalog knows (uid, starts, creation) is left out.

use std::time::Duration;

use jiff::Timestamp;
use serde_json::{Value, json};
use weft_nats::options::Span;
use weft_proto::v1::{
    ApiKey, BodyKind, DeliveryIdRule, OnExhausted, OnIdReuse, PostgresColumn, PostgresDestination, Rate, ReplayGuard,
    Rule, SchemaMode, SignatureEncoding, Source, Subscription, delivery_id_rule, destination, rule, schema_rule,
    verification::Scheme,
};

use super::{defaults::is_ordered, keys::scope_name};

mod http;

/// The end of the name of what counts secrets.
const SECRETS: &str = "secrets";

/// The name of a destination's URL.
pub(super) const URL_KEY: &str = "destination.url";
/// Key of the URL of an OAuth2 token endpoint.
pub(super) const TOKEN_URL_KEY: &str = "destination.auth.token_url";

/// One thing that an entry says.
#[derive(Debug, Clone, PartialEq)]
pub struct Field {
    /// Its name, with dots between levels, such as `retry.max_retries`.
    pub key: String,
    /// Its value; of secrets their number.
    pub value: Value,
}

impl Field {
    /// Whether it counts secrets.
    pub fn is_secrets(&self) -> bool {
        self.key.ends_with(SECRETS)
    }
}

/// The fields of a message, in the file's order.
#[derive(Default)]
struct Fields(Vec<Field>);

impl Fields {
    fn put(&mut self, key: impl Into<String>, value: impl Into<Value>) {
        self.0.push(Field { key: key.into(), value: value.into() });
    }

    /// Leaves out what is empty.
    fn put_text(&mut self, key: &str, text: &str) {
        if !text.is_empty() {
            self.put(key, text);
        }
    }

    fn put_list(&mut self, key: &str, list: &[String]) {
        if !list.is_empty() {
            self.put(key, list);
        }
    }
}

pub(super) fn of_source(source: &Source) -> Vec<Field> {
    let mut fields = Fields::default();
    if let Some(scheme) = source.verification.as_ref().and_then(|verification| verification.scheme.as_ref()) {
        of_scheme(&mut fields, scheme);
    }
    if let Some(DeliveryIdRule { from: Some(from) }) = &source.delivery_id {
        match from {
            delivery_id_rule::From::Header(header) => fields.put("delivery_id.header", header.as_str()),
            delivery_id_rule::From::Pointer(pointer) => fields.put("delivery_id.pointer", pointer.as_str()),
            delivery_id_rule::From::Digest(_) => fields.put("delivery_id", "digest"),
            delivery_id_rule::From::None(_) => fields.put("delivery_id", "none"),
        }
    }
    for (name, rule) in [("workflow", &source.workflow), ("type", &source.r#type)] {
        if let Some(Rule { from: Some(from) }) = rule {
            let (kind, text) = match from {
                rule::From::Pointer(pointer) => ("pointer", pointer),
                rule::From::Header(header) => ("header", header),
                rule::From::Fixed(fixed) => ("fixed", fixed),
            };
            fields.put(format!("{name}.{kind}"), text.as_str());
        }
    }
    fields.put_text("data.pointer", &source.data_pointer);
    fields.put("body", if source.body() == BodyKind::Any { "any" } else { "json" });
    fields.put("on_id_reuse", if source.on_id_reuse() == OnIdReuse::Receipt { "receipt" } else { "conflict" });
    match source.replay_guard() {
        ReplayGuard::Body => fields.put("replay_guard", "body"),
        ReplayGuard::Off => fields.put("replay_guard", "off"),
        ReplayGuard::Unspecified => {}
    }
    fields.put_list("keep_headers", &source.keep_headers);
    if source.max_body_bytes != 0 {
        fields.put("max_body_bytes", source.max_body_bytes);
    }
    if source.payload_retention_ms != 0 {
        fields.put("payload_retention", span(source.payload_retention_ms));
    }
    for (index, schema) in source.schemas.iter().enumerate() {
        let mode = match schema.mode() {
            SchemaMode::Warn | SchemaMode::Unspecified => "warn",
            SchemaMode::Reject => "reject",
            SchemaMode::Quarantine => "quarantine",
        };
        let mut rule = json!({ "type": schema.r#type, "mode": mode });
        match &schema.schema {
            Some(schema_rule::Schema::JsonSchema(text)) => rule["json_schema"] = text.as_str().into(),
            Some(schema_rule::Schema::Protobuf(protobuf)) => {
                rule["message"] = protobuf.message.as_str().into();
                rule["descriptor_bytes"] = protobuf.descriptor_set.len().into();
            }
            None => {}
        }
        fields.put(format!("schema.{index}"), rule);
    }
    fields.0
}

fn of_scheme(fields: &mut Fields, scheme: &Scheme) {
    let common = weft_schemes::of(scheme);
    fields.put("verify.scheme", common.name());
    if let Some(secrets) = common.secrets() {
        fields.put("verify.secrets", secrets.len());
    }
    if let Some(tolerance) = common.tolerance_ms() {
        fields.put("verify.tolerance", span(tolerance));
    }
    if let Scheme::Hmac(hmac) = scheme {
        fields.put_text("verify.header", &hmac.header);
        fields.put_text("verify.prefix", &hmac.prefix);
        let base64 = hmac.encoding() == SignatureEncoding::Base64;
        fields.put("verify.encoding", if base64 { "base64" } else { "hex" });
        fields.put_text("verify.template", &hmac.template);
        fields.put_text("verify.timestamp_header", &hmac.timestamp_header);
        fields.put_text("verify.id_header", &hmac.id_header);
    }
}

pub(super) fn of_subscription(subscription: &Subscription) -> Vec<Field> {
    let mut fields = Fields::default();
    fields.put("types", subscription.types.as_slice());
    fields.put_list("sources", &subscription.sources);
    fields.put_text("filter", &subscription.filter);
    fields.put_text("transform", &subscription.transform);
    match subscription.destination.as_ref().and_then(|destination| destination.kind.as_ref()) {
        Some(destination::Kind::Http(destination)) => http::put(&mut fields, destination),
        Some(destination::Kind::Grpc(grpc)) => {
            fields.put("destination.type", "grpc");
            fields.put(URL_KEY, grpc.url.as_str());
            if let Some(tls) = &grpc.tls {
                http::put_tls(&mut fields, tls);
            }
            if let Some(auth) = &grpc.auth {
                http::put_auth(&mut fields, auth);
            }
        }
        Some(destination::Kind::Nats(nats)) => {
            fields.put("destination.type", "nats");
            fields.put("destination.subject", nats.subject.as_str());
            fields.put("destination.stream", nats.stream.as_str());
            fields.put_text(URL_KEY, &nats.url);
            if let Some(tls) = &nats.tls {
                http::put_tls(&mut fields, tls);
            }
        }
        Some(destination::Kind::Postgres(postgres)) => of_postgres(&mut fields, postgres),
        Some(destination::Kind::Custom(custom)) => {
            fields.put("destination.type", "custom");
            fields.put("destination.name", custom.name.as_str());
        }
        None => {}
    }
    fields.put("timeout", span(subscription.timeout_ms));
    fields.put("concurrency", subscription.concurrency);
    if let Some(rate) = &subscription.rate {
        fields.put("rate", rate_text(rate));
    }
    if let Some(retry) = &subscription.retry {
        // An explicit schedule replaces the rest.
        if retry.schedule_ms.is_empty() {
            fields.put("retry.max_retries", retry.max_retries);
            fields.put("retry.base", span(retry.base_ms));
            fields.put("retry.factor", retry.factor);
            fields.put("retry.max", span(retry.max_ms));
            fields.put("retry.jitter", retry.jitter);
        } else {
            fields.put("retry.schedule", retry.schedule_ms.iter().copied().map(span).collect::<Vec<_>>());
        }
    }
    let block = subscription.on_exhausted() == OnExhausted::Block;
    fields.put("on_exhausted", if block { "block" } else { "dead_letter" });
    fields.put("ordered", is_ordered(subscription));
    if let Some(batch) = &subscription.batch {
        fields.put("batch.max_events", batch.max_events);
    }
    fields.put("paused", subscription.paused);
    fields.put_text("pause_reason", &subscription.pause_reason);
    fields.0
}

/// Connection strings are secrets: they are compared apart from the fields.
fn of_postgres(fields: &mut Fields, postgres: &PostgresDestination) {
    fields.put("destination.type", "postgres");
    fields.put("destination.shards", postgres.dsns.len());
    fields.put_text("destination.table", &postgres.table);
    fields.put("destination.create", postgres.create);
    fields.put_text("destination.sql", &postgres.sql);
    for PostgresColumn { field, column } in &postgres.columns {
        fields.put(format!("destination.columns.{field}"), column.as_str());
    }
}

pub(super) fn of_key(key: &ApiKey) -> Vec<Field> {
    let mut fields = Fields::default();
    fields.put_text("name", &key.name);
    fields.put("scopes", key.scopes().map(scope_name).collect::<Vec<_>>());
    fields.put_list("sources", &key.sources);
    fields.put_list("workflow_prefixes", &key.workflow_prefixes);
    if key.expires_at_ms != 0 {
        fields.put("expires_at", time(key.expires_at_ms));
    }
    fields.0
}

fn span(ms: u64) -> String {
    Span(Duration::from_millis(ms)).to_string()
}

/// A rate as the configuration writes it.
pub fn rate_text(rate: &Rate) -> String {
    match rate.period_ms {
        1000 => format!("{}/s", rate.count),
        60_000 => format!("{}/min", rate.count),
        3_600_000 => format!("{}/h", rate.count),
        other => format!("{} per {}", rate.count, span(other)),
    }
}

/// A time that no calendar has is shown as its number.
fn time(ms: i64) -> String {
    Timestamp::from_millisecond(ms).map_or_else(|_| ms.to_string(), |time| time.to_string())
}
