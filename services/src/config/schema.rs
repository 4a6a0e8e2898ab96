//! Every key of `weft.toml`, in one table: unknown keys, environment variables and keys of later versions are checked against it.
//!
//! The typed options of the crates refuse unknown keys, too, but they know neither the line nor the nearest name, and an
//! environment variable is text that only its key's shape turns into a number or a list.

/// Shape of a key's value.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Shape {
    /// Text: names, addresses, secrets.
    Text,
    /// A text with a number and a unit: `300ms`, `15s`, `5m`, `8d`.
    Duration,
    /// A text with a number and a unit: `64KiB`, `1MiB`.
    Size,
    /// A text: `n/s`, `n/min`, `n/h` or `off`.
    Rate,
    /// A whole number.
    Integer,
    /// A number.
    Float,
    /// `true` or `false`.
    Bool,
    /// A list of texts; commas separate them in an environment variable.
    List,
    /// A text, or a table with these keys.
    TextOrTable(&'static [Key]),
    /// A table with these keys.
    Table(&'static [Key]),
    /// A table with keys that the file chooses.
    Map,
    /// Any number of tables with these keys.
    Tables(&'static [Key]),
}

/// One key and what it holds.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Key {
    /// The key's name.
    pub name: &'static str,
    /// Shape of its value.
    pub shape: Shape,
}

const fn key(name: &'static str, shape: Shape) -> Key {
    Key { name, shape }
}

use Shape::{Bool, Duration, Float, Integer, List, Map, Rate, Size, Table, Tables, Text, TextOrTable};

/// The whole file.
pub const ROOT: &[Key] = &[
    key("data", Text),
    key("nats", Table(NATS)),
    key("log_output", Table(&[key("format", Text), key("access", Bool)])),
    key("traces", Table(&[key("endpoint", Text), key("sample", Float)])),
    key("ops", Table(&[key("listen", Text)])),
    key("log", Table(LOG)),
    key("dead_letters", Table(&[key("retention", Duration)])),
    key("rejected", Table(&[key("max_bytes", Size)])),
    key("gateway", Table(GATEWAY)),
    key("worker", Table(WORKER)),
    key("admin", Table(&[key("listen", Text), key("token", Text), key("tls", Table(TLS))])),
    key("catalog", Table(&[key("master_keys", List)])),
    key("source", Tables(SOURCE)),
    key("subscription", Tables(SUBSCRIPTION)),
];

const NATS: &[Key] = &[
    key("url", Text),
    key("creds", Text),
    key("user", Text),
    key("password", Text),
    key("nkey", Text),
    key("passwords", Text),
    key("inbox_prefix", Text),
    key("api_prefix", Text),
    key("publish", List),
    key("tls", Table(&[key("ca", Text), key("cert", Text), key("key", Text)])),
];

const LOG: &[Key] = &[
    key("shards", Integer),
    key("replicas", Integer),
    key("fsync", Text),
    key("retention", Duration),
    key("max_bytes", Size),
    key("on_full", Text),
    key("dedup_horizon", Duration),
    key("remember_workflows", Duration),
];

const GATEWAY: &[Key] = &[
    key("listen", Text),
    key("max_body", Size),
    key("rate_limit", Table(RATE_LIMIT)),
    key("trusted_proxies", List),
    key("max_depth", Integer),
    key("drain_delay", Duration),
    key("tls", Table(TLS)),
];

const RATE_LIMIT: &[Key] = &[key("per_ip", Rate), key("per_source", Rate), key("per_key", Rate)];

const TLS: &[Key] = &[key("cert", Text), key("key", Text), key("client_ca", Text)];

const WORKER: &[Key] =
    &[key("concurrency", Integer), key("lease", Duration), key("allow_networks", List), key("deny_ports", List)];

const SOURCE: &[Key] = &[
    key("name", Text),
    key("verify", Table(VERIFY)),
    key("delivery_id", TextOrTable(&[key("header", Text), key("pointer", Text)])),
    key("workflow", Table(RULE)),
    key("type", Table(RULE)),
    key("data", Table(&[key("pointer", Text)])),
    key("body", Text),
    key("max_body", Size),
    key("on_id_reuse", Text),
    key("keep_headers", List),
    key("payload_retention", Duration),
    key("replay_guard", Text),
    key("schema", Tables(DATA_SCHEMA)),
];

const DATA_SCHEMA: &[Key] =
    &[key("type", Text), key("json_schema", Text), key("protobuf", Text), key("message", Text), key("mode", Text)];

const VERIFY: &[Key] = &[
    key("scheme", Text),
    key("secrets", List),
    key("tolerance", Duration),
    key("header", Text),
    key("prefix", Text),
    key("encoding", Text),
    key("template", Text),
    key("timestamp_header", Text),
    key("id_header", Text),
    key("allow_unsigned", Bool),
];

const RULE: &[Key] = &[key("pointer", Text), key("header", Text), key("fixed", Text)];

const SUBSCRIPTION: &[Key] = &[
    key("name", Text),
    key("types", List),
    key("sources", List),
    key("destination", Table(DESTINATION)),
    key("batch", Table(&[key("max_events", Integer)])),
    key("timeout", Duration),
    key("concurrency", Integer),
    key("retry", Table(RETRY)),
    key("on_exhausted", Text),
    key("ordered", Bool),
    key("start", Text),
    key("filter", Text),
    key("transform", Text),
    key("rate", Rate),
];

const DESTINATION: &[Key] = &[
    key("type", Text),
    key("name", Text),
    key("url", Text),
    key("secret", Text),
    key("secrets", List),
    key("signature", Text),
    key("format", Text),
    key("headers", Map),
    key("ca", Text),
    key("cert", Text),
    key("key", Text),
    key("proxy", Text),
    key("auth", Table(AUTH)),
    key("success", List),
    key("permanent", List),
    key("retry_after_max", Duration),
    key("subject", Text),
    key("stream", Text),
    key("creds", Text),
    key("shards", List),
    key("table", Text),
    key("create", Bool),
    key("sql", Text),
    key("columns", Table(COLUMNS)),
];

const COLUMNS: &[Key] = &[
    key("position", Text),
    key("event_id", Text),
    key("workflow_id", Text),
    key("sequence_number", Text),
    key("previous_event_id", Text),
    key("type", Text),
    key("source", Text),
    key("time", Text),
    key("received_at", Text),
    key("data", Text),
];

const AUTH: &[Key] = &[
    key("bearer", Text),
    key("basic", Table(&[key("user", Text), key("password", Text)])),
    key("oauth2", Table(OAUTH2)),
];

const OAUTH2: &[Key] =
    &[key("token_url", Text), key("client_id", Text), key("client_secret", Text), key("scopes", List)];

const RETRY: &[Key] = &[
    key("max_retries", Integer),
    key("base", Duration),
    key("factor", Float),
    key("max", Duration),
    key("jitter", Float),
    key("schedule", List),
];

/// The key of that name.
pub fn find(keys: &'static [Key], name: &str) -> Option<&'static Key> {
    keys.iter().find(|key| key.name == name)
}

/// The known name that is nearest to a misspelt one; `None` when none is near.
pub fn nearest(keys: &[Key], name: &str) -> Option<&'static str> {
    /// Below this two names have little more in common than their letters.
    const SIMILARITY_MIN: f64 = 0.5;
    keys.iter()
        .map(|key| (strsim::normalized_damerau_levenshtein(key.name, name), key.name))
        .filter(|(similarity, _)| *similarity >= SIMILARITY_MIN)
        .max_by(|a, b| a.0.total_cmp(&b.0))
        .map(|(_, name)| name)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_misspelt_key_has_a_nearest_one() {
        assert_eq!(nearest(ROOT, "gatway"), Some("gateway"));
        assert_eq!(nearest(GATEWAY, "max_boby"), Some("max_body"));
        assert_eq!(nearest(SUBSCRIPTION, "retires"), Some("retry"));
        assert_eq!(nearest(ROOT, "zzz"), None);
    }
}
