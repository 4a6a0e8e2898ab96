//! The effective configuration: each key's value, and where it comes from. Secrets are masked.

use std::path::Path;

use serde::Serialize;
use toml::{Table, Value};
use weft_proto::SECRET_MASK;

use super::{
    Config, ConfigError,
    document::Document,
    key_path::KeyPath,
    schema::{self, Key, Shape},
};

/// The value of a key that has none.
const NONE: &str = "none";
/// Where a value comes from that is set nowhere.
const DEFAULT: &str = "default";

/// Values of keys that are set nowhere, outside `[[source]]` and `[[subscription]]`. Keys that are missing here have none.
const DEFAULTS: [(&str, &str); 35] = [
    ("data", "./weft-data"),
    ("nats.inbox_prefix", "_INBOX"),
    ("nats.api_prefix", "$JS.API"),
    ("nats.publish", "[]"),
    ("log_output.format", "text"),
    ("log_output.access", "false"),
    ("traces.sample", "1"),
    ("ops.listen", "127.0.0.1:9101 (weft worker 9102, weft admin 9103)"),
    ("log.shards", "1"),
    ("log.replicas", "1"),
    ("log.fsync", "always"),
    ("log.retention", "8d"),
    ("log.max_bytes", "auto"),
    ("log.on_full", "drop_settled"),
    ("log.dedup_horizon", "7d"),
    ("log.remember_workflows", "400d"),
    ("catalog.master_keys", "[]"),
    ("dead_letters.retention", "30d"),
    ("rejected.max_bytes", "100MiB"),
    ("gateway.listen", "127.0.0.1:8080"),
    ("gateway.max_body", "1MiB"),
    ("gateway.rate_limit.per_ip", "600/min"),
    ("gateway.rate_limit.per_source", "off"),
    ("gateway.rate_limit.per_key", "60000/min"),
    ("gateway.trusted_proxies", "[]"),
    ("gateway.max_depth", "512"),
    ("gateway.drain_delay", "0s"),
    ("worker.concurrency", "512"),
    ("worker.lease", "3s"),
    ("worker.allow_networks", "[]"),
    (
        "worker.deny_ports",
        "[22, 23, 25, 53, 110, 111, 119, 135, 139, 143, 389, 445, 465, 563, 587, 636, 993, 995, 2049, 6000, 6379, 11211]",
    ),
    ("admin.listen", "127.0.0.1:9080"),
    ("admin.token", "made at the first start, in the data folder"),
    ("gateway.tls", NONE),
    ("admin.tls", NONE),
];

/// A key with its value and where that comes from.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Setting {
    /// The key, such as `gateway.listen` or `source[0].name`.
    pub key: String,
    /// Its value; secrets are masked, references to secrets are not.
    pub value: String,
    /// File and line, an environment variable, or `default`.
    pub from: String,
}

impl Config {
    /// The settings of a valid configuration: as [`load`](Self::load) reads it, each key with its value and where that comes
    /// from.
    ///
    /// # Errors
    ///
    /// [`ConfigError`], also of an invalid configuration.
    pub fn settings(file: Option<&Path>) -> Result<Vec<Setting>, ConfigError> {
        let (path, text) = Self::read(file)?;
        Self::settings_of(path, text, Self::variables()?)
    }

    pub(super) fn settings_of(
        path: &Path,
        text: String,
        variables: Vec<(String, String)>,
    ) -> Result<Vec<Setting>, ConfigError> {
        Self::parse(path, text.clone(), variables.clone(), None)?;
        let mut document = Document::parse(path, text)?;
        document.overlay(variables)?;
        let mut settings = Vec::new();
        add_table(&document, schema::ROOT, document.table(), &KeyPath::default(), true, &mut settings);
        Ok(settings)
    }
}

/// Adds the keys of a table in the order of the schema; `all`: also those that are not set.
fn add_table(document: &Document, keys: &[Key], table: &Table, path: &KeyPath, all: bool, settings: &mut Vec<Setting>) {
    let empty = Table::new();
    for key in keys {
        let path = path.key(key.name);
        match (key.shape, table.get(key.name)) {
            (Shape::Table(keys), None) if all => add_table(document, keys, &empty, &path, all, settings),
            (Shape::Table(keys) | Shape::TextOrTable(keys), Some(Value::Table(table))) => {
                add_table(document, keys, table, &path, all, settings);
            }
            (Shape::Tables(keys), Some(Value::Array(tables))) => {
                for (index, table) in tables.iter().enumerate() {
                    let Value::Table(table) = table else { continue };
                    add_table(document, keys, table, &path.index(index), false, settings);
                }
            }
            (Shape::Map, Some(Value::Table(map))) => {
                for name in map.keys() {
                    let path = path.key(name);
                    settings.push(Setting {
                        key: path.to_string(),
                        value: SECRET_MASK.to_owned(),
                        from: document.place(&path),
                    });
                }
            }
            (_, Some(value)) => {
                let value = shown(&path, value);
                settings.push(Setting { key: path.to_string(), value, from: document.place(&path) });
            }
            (Shape::Tables(_) | Shape::Map, None) => {}
            (_, None) if all => {
                let key = path.to_string();
                let value = DEFAULTS.iter().find(|(name, _)| *name == key).map_or(NONE, |(_, value)| value);
                settings.push(Setting { key, value: value.to_owned(), from: DEFAULT.to_owned() });
            }
            (_, None) => {}
        }
    }
}

/// A value for people. Of a secret the reference, never the secret.
fn shown(path: &KeyPath, value: &Value) -> String {
    match value {
        Value::String(text) => shown_text(path, text),
        Value::Array(values) => {
            let values: Vec<_> = values.iter().map(|value| shown(path, value)).collect();
            format!("[{}]", values.join(", "))
        }
        value => value.to_string(),
    }
}

fn shown_text(path: &KeyPath, text: &str) -> String {
    let is_reference = text.starts_with("env:") || text.starts_with("file:");
    // A connection string holds a password.
    let is_secret = path.names_secret() || path.to_string().ends_with("destination.shards");
    match () {
        () if is_reference => text.to_owned(),
        () if is_secret => SECRET_MASK.to_owned(),
        () => without_credentials(text),
    }
}

/// A URL without user and password, and without its query; any other text as it is.
fn without_credentials(text: &str) -> String {
    let one = |text: &str| {
        let Some((scheme, rest)) = text.split_once("://") else { return text.to_owned() };
        let (rest, query) = rest.split_once('?').map_or((rest, ""), |(rest, _)| (rest, "?[secret]"));
        let authority = rest.split('/').next().unwrap_or_default();
        let (mask, rest) = match authority.rfind('@') {
            Some(at) => ("[secret]@", rest.get(at + 1..).unwrap_or_default()),
            None => ("", rest),
        };
        format!("{scheme}://{mask}{rest}{query}")
    };
    if text.contains("://") { text.split(',').map(one).collect::<Vec<_>>().join(",") } else { text.to_owned() }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn settings(text: &str, variables: &[(&str, &str)]) -> Vec<Setting> {
        let variables = variables.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect();
        Config::settings_of(Path::new("weft.toml"), text.to_owned(), variables).unwrap()
    }

    fn find<'a>(settings: &'a [Setting], key: &str) -> (&'a str, &'a str) {
        let found = settings.iter().find(|setting| setting.key == key).unwrap_or_else(|| panic!("{key}"));
        (&found.value, &found.from)
    }

    #[test]
    fn each_value_says_where_it_comes_from() {
        let text = "[gateway]\nlisten = \"127.0.0.1:1\"\nmax_depth = 9\n[log]\nshards = 1\n";
        let settings = settings(text, &[("WEFT_LOG__SHARDS", "4"), ("WEFT_ADMIN__TOKEN", "hush-hush-hush-hush-hush")]);
        assert_eq!(find(&settings, "gateway.listen"), ("127.0.0.1:1", "weft.toml:2"));
        assert_eq!(find(&settings, "gateway.max_depth"), ("9", "weft.toml:3"));
        assert_eq!(find(&settings, "log.shards"), ("4", "WEFT_LOG__SHARDS"));
        assert_eq!(find(&settings, "worker.lease"), ("3s", "default"));
        assert_eq!(find(&settings, "nats.url"), ("none", "default"));
        assert_eq!(find(&settings, "admin.token"), ("[secret]", "WEFT_ADMIN__TOKEN"));
    }

    /// Nothing that is shown holds a secret, wherever a file may have one.
    #[test]
    fn secrets_are_masked_and_their_references_are_not() {
        let text = r#"
[nats]
url = "nats://me:hush@127.0.0.1:4222,nats://me:hush@127.0.0.2:4222"
[[source]]
name = "shop"
verify = { scheme = "standard", secrets = ["env:PATH", "whsec_aHVzaGh1c2hodXNoaHVzaGh1c2hodXNo"] }
[[subscription]]
name = "billing"
destination = { type = "http", url = "https://a.example/hooks?key=hush", secret = "whsec_aHVzaGh1c2hodXNoaHVzaGh1c2hodXNo", headers = { X-Key = "hush" }, auth = { basic = { user = "u", password = "hush" } } }
"#;
        let text = text.replace("[\"env:PATH\", ", "[");
        let settings = settings(&text, &[]);
        assert!(settings.iter().all(|setting| !setting.value.contains("hush") && !setting.value.contains("aHVz")));
        let url = "nats://[secret]@127.0.0.1:4222,nats://[secret]@127.0.0.2:4222";
        assert_eq!(find(&settings, "nats.url"), (url, "weft.toml:3"));
        assert_eq!(find(&settings, "source[0].verify.secrets").0, "[[secret]]");
        assert_eq!(find(&settings, "subscription[0].destination.url").0, "https://a.example/hooks?[secret]");
        assert_eq!(shown_text(&KeyPath::default().key("token"), "env:TOKEN"), "env:TOKEN");
    }

    /// The defaults that are shown are those of the options, and those of the documented table.
    #[test]
    fn defaults_are_those_of_the_options_and_of_the_document() {
        let shown = settings("", &[]);
        let page = include_str!("../../../docs/configuration.md");
        let mut file = Table::new();
        for Setting { key, value, .. } in &shown {
            let (section, name) = key.rsplit_once('.').unwrap_or(("", key));
            // Without them the client decides, by the same values.
            let decided_later = ["admin.token", "ops.listen", "nats.inbox_prefix", "nats.api_prefix"];
            if value == NONE || decided_later.contains(&key.as_str()) {
                continue;
            }
            let documented = page.lines().filter(|line| line.contains(&format!("`{name}`"))).any(|line| {
                let line = line.replace('`', "");
                value.trim_matches(['[', ']']).split(", ").all(|part| line.contains(part))
            }) || page.contains(&format!("{name} = \"{value}\""));
            assert!(documented, "docs/configuration.md has another default for {key} than {value}");
            let value = match value.parse::<i64>() {
                Ok(number) => Value::Integer(number),
                Err(_) if value.starts_with('[') || value == "false" => value.parse().unwrap(),
                Err(_) => Value::String(value.clone()),
            };
            let table = section.split('.').filter(|part| !part.is_empty()).fold(&mut file, |table, part| {
                table.entry(part).or_insert_with(|| Value::Table(Table::new())).as_table_mut().unwrap()
            });
            table.insert(name.to_owned(), value);
        }
        let parse = |text: String| Config::parse(Path::new("weft.toml"), text, [], None).unwrap();
        assert_eq!(format!("{:?}", parse(file.to_string())), format!("{:?}", parse(String::new())));
    }
}
