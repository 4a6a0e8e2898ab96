//! The configuration of the log, and the typed values (durations, sizes, secrets) that every section is written in.

use std::{fmt, path::PathBuf, str::FromStr, time::Duration};

use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// A duration as people write it: `300ms`, `15s`, `5m`, `8d`. Units as in the humantime crate (`m` is minutes).
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Span(pub Duration);

impl Span {
    /// `n` seconds.
    pub const fn secs(n: u64) -> Self {
        Self(Duration::from_secs(n))
    }

    /// `n` days.
    pub const fn days(n: u64) -> Self {
        Self::secs(n * 24 * 60 * 60)
    }
}

impl fmt::Display for Span {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // Months and years of humantime are averages; days are what the file was written in.
        let secs = self.0.as_secs();
        if secs > 0 && secs % 86_400 == 0 && self.0.subsec_nanos() == 0 {
            return write!(f, "{}d", secs / 86_400);
        }
        humantime::format_duration(self.0).fmt(f)
    }
}

impl FromStr for Span {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        humantime::parse_duration(text)
            .map(Self)
            .map_err(|error| format!("{text:?} is not a duration such as 300ms, 15s, 5m or 8d: {error}"))
    }
}

impl Serialize for Span {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Span {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(serde::de::Error::custom)
    }
}

/// A text that is never printed: `Debug` shows only that it is there.
#[derive(Clone, PartialEq, Eq, Default)]
pub struct Secret(String);

impl Secret {
    /// Wraps a text.
    pub fn new(text: impl Into<String>) -> Self {
        Self(text.into())
    }

    /// The text itself.
    pub fn expose(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("[secret]")
    }
}

/// Where a secret is found: `env:NAME`, `file:PATH`, or the secret itself.
#[derive(Clone, PartialEq, Eq)]
pub enum SecretRef {
    /// An environment variable.
    Env(String),
    /// A file; a line end at its end is not part of the secret.
    File(PathBuf),
    /// In clear.
    Clear(Secret),
}

impl SecretRef {
    /// Fetches the secret.
    ///
    /// # Errors
    ///
    /// One line for a person: which variable or file, and what is wrong with it.
    pub fn resolve(&self) -> Result<Secret, String> {
        match self {
            Self::Env(name) => match std::env::var(name) {
                Ok(text) if !text.is_empty() => Ok(Secret(text)),
                _ => Err(format!("environment variable {name} is not set; set it or write the secret as file:PATH")),
            },
            Self::File(path) => match std::fs::read_to_string(path) {
                Ok(text) => Ok(Secret(text.trim_end_matches(['\r', '\n']).to_owned())),
                Err(error) => Err(format!("secret file {}: {error}", path.display())),
            },
            Self::Clear(secret) => Ok(secret.clone()),
        }
    }
}

impl fmt::Debug for SecretRef {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Env(name) => write!(f, "env:{name}"),
            Self::File(path) => write!(f, "file:{}", path.display()),
            Self::Clear(secret) => fmt::Debug::fmt(secret, f),
        }
    }
}

impl<'de> Deserialize<'de> for SecretRef {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        Ok(if let Some(name) = text.strip_prefix("env:") {
            Self::Env(name.to_owned())
        } else if let Some(path) = text.strip_prefix("file:") {
            Self::File(path.into())
        } else {
            Self::Clear(Secret(text))
        })
    }
}

/// `[nats]`: where the log is.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct NatsOptions {
    /// `nats://host:port`, several separated by commas. None: `weft up` starts its own server.
    pub url: Option<String>,
    /// A credentials file.
    pub creds: Option<SecretRef>,
    /// User name, with `password`.
    pub user: Option<String>,
    /// Password of `user`.
    pub password: Option<SecretRef>,
    /// Seed of an nkey.
    pub nkey: Option<SecretRef>,
    /// Certificate authority file (PEM) of the server, besides the system's own.
    pub tls_ca: Option<PathBuf>,
    /// What the subjects of answers begin with, where this user may subscribe to no other; `_INBOX` when absent.
    pub inbox_prefix: Option<String>,
}

/// How much EVENTS may hold.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum MaxBytes {
    /// 70 % of the free disk, divided by the number of shards; of a server elsewhere, unlimited.
    #[default]
    Auto,
    /// This many bytes a shard.
    Bytes(u64),
}

impl<'de> Deserialize<'de> for MaxBytes {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        if text == "auto" {
            return Ok(Self::Auto);
        }
        text.parse::<bytesize::ByteSize>()
            .map(|size| Self::Bytes(size.as_u64()))
            .map_err(|error| serde::de::Error::custom(format!("{text:?} is neither \"auto\" nor a size: {error}")))
    }
}

/// What happens when EVENTS is at its `max_bytes`.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum OnFull {
    /// The settled prefix is dropped, loudly; with nothing settled to drop: 503 `log_full`.
    #[default]
    DropSettled,
    /// 503 `log_full`.
    Refuse,
}

/// `[log]`: the shape and the limits of the log.
#[derive(Debug, Clone, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct LogOptions {
    /// The number of shards, 1 to 256; fixed when the log is made.
    pub shards: u32,
    /// Copies of every stream: 1, 3 or 5.
    pub replicas: usize,
    /// `always`, or an interval such as `2m`: the embedded server's `sync_interval`.
    pub fsync: String,
    /// How long EVENTS and OUTCOMES keep a message.
    pub retention: Span,
    /// The most that EVENTS may hold, a shard.
    pub max_bytes: MaxBytes,
    /// What happens then.
    pub on_full: OnFull,
    /// For how long the same delivery is recognised; below `retention`.
    pub dedup_horizon: Span,
    /// For how long an idle workflow's number goes on.
    pub remember_workflows: Span,
}

impl Default for LogOptions {
    fn default() -> Self {
        Self {
            shards: 1,
            replicas: 1,
            fsync: "always".into(),
            retention: Span::days(8),
            max_bytes: MaxBytes::Auto,
            on_full: OnFull::DropSettled,
            dedup_horizon: Span::days(7),
            remember_workflows: Span::days(400),
        }
    }
}

impl LogOptions {
    /// The most shards.
    pub const SHARDS_MAX: u32 = 256;
    /// The shortest horizon: the server's shortest duplicate window.
    pub const HORIZON_MIN: Span = Span(Duration::from_millis(100));

    /// Checks the section for what no log could be made of.
    ///
    /// # Errors
    ///
    /// The key, its value, and what would be right, in one line.
    pub fn validate(&self) -> Result<(), String> {
        if !(1..=Self::SHARDS_MAX).contains(&self.shards) {
            return Err(format!("[log] shards is {}; say 1 to {}", self.shards, Self::SHARDS_MAX));
        }
        if ![1, 3, 5].contains(&self.replicas) {
            return Err(format!("[log] replicas is {}; say 1, 3 or 5", self.replicas));
        }
        if self.fsync != "always" {
            let interval: Span = self
                .fsync
                .parse()
                .map_err(|problem| format!("[log] fsync is neither \"always\" nor an interval: {problem}"))?;
            if interval.0.is_zero() {
                return Err("[log] fsync is zero; say \"always\", or an interval such as 2m".into());
            }
        }
        if self.dedup_horizon >= self.retention {
            return Err(format!(
                "[log] dedup_horizon is {} and retention {}; the horizon must be the shorter, since what is no longer kept \
                 cannot be recognised after a rebuild",
                self.dedup_horizon, self.retention
            ));
        }
        if self.dedup_horizon < Self::HORIZON_MIN {
            return Err(format!("[log] dedup_horizon is {}; say at least {}", self.dedup_horizon, Self::HORIZON_MIN));
        }
        if self.remember_workflows < self.retention {
            return Err(format!(
                "[log] remember_workflows is {} and retention {}; say at least as long, since a workflow is remembered \
                 while its events are kept",
                self.remember_workflows, self.retention
            ));
        }
        Ok(())
    }
}

/// `[dead_letters]`.
#[derive(Debug, Clone, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct DeadLetterOptions {
    /// How long DLQ keeps a copy.
    pub retention: Span,
}

impl Default for DeadLetterOptions {
    fn default() -> Self {
        Self { retention: Span::days(30) }
    }
}

/// `[rejected]`.
#[derive(Debug, Clone, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct RejectedOptions {
    /// The most that REJECTED may hold.
    pub max_bytes: bytesize::ByteSize,
}

impl Default for RejectedOptions {
    fn default() -> Self {
        Self { max_bytes: bytesize::ByteSize::mib(100) }
    }
}

/// What the servers must let through above a body of the largest size: headers and our own.
pub const MESSAGE_OVERHEAD_BYTES: u64 = 128 * 1024;
