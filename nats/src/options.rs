//! The configuration of the log, and the typed values (durations, sizes, secrets) that every section is written in.

use std::{fmt, path::PathBuf, time::Duration};

use crate::{
    server::{API_PREFIX, Role},
    user_subjects,
};
use serde::{Deserialize, Deserializer, Serialize};

mod file_ref;
mod secret;
pub mod servers;
mod span;

pub use file_ref::FileRef;
pub use secret::{Secret, SecretRef};
pub use span::Span;

/// `[nats]`: where the log is.
#[derive(Clone, Default, Deserialize)]
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
    /// How the connection is secured; empty: as the URL (`tls://`) or the server demands.
    pub tls: NatsTls,
    /// Prefix of the subjects of answers, where this user may subscribe to no other; `_INBOX` when absent.
    pub inbox_prefix: Option<String>,
    /// A folder with a file for each role (`gateway`, `worker`, `admin`) that holds the password of the role's user, as
    /// `weft nats config --passwords` writes it. Every role then connects as its own user.
    pub passwords: Option<PathBuf>,
    /// Prefix of the JetStream API's subjects, where the account imports it under another than `$JS.API`.
    pub api_prefix: Option<String>,
    /// Subjects of this server that subscriptions with a destination of type `nats` may publish to, such as `orders.>`.
    pub publish: Vec<String>,
}

impl NatsOptions {
    /// Checks what no connection shows.
    ///
    /// # Errors
    ///
    /// The key, its value, and what would be right, in one line.
    pub fn validate(&self) -> Result<(), String> {
        user_subjects::check_patterns(&self.publish)
    }

    /// How `role` connects: as its own user where there are `passwords`, else as these options say.
    #[must_use]
    pub fn of_role(&self, role: Role) -> Self {
        let Some(folder) = &self.passwords else { return self.clone() };
        Self {
            user: Some(role.name().to_owned()),
            password: Some(SecretRef::File(folder.join(role.name()))),
            inbox_prefix: Some(role.inbox_prefix().to_owned()),
            api_prefix: Some(API_PREFIX.to_owned()),
            passwords: None,
            ..self.clone()
        }
    }
}

/// Without the users and passwords that stand in the URL.
impl fmt::Debug for NatsOptions {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { url, creds, user, password, nkey, tls, inbox_prefix, passwords, api_prefix, publish } = self;
        f.debug_struct("NatsOptions")
            .field("url", &url.as_deref().map(servers::shown))
            .field("creds", creds)
            .field("user", user)
            .field("password", password)
            .field("nkey", nkey)
            .field("tls", tls)
            .field("inbox_prefix", inbox_prefix)
            .field("passwords", passwords)
            .field("api_prefix", api_prefix)
            .field("publish", publish)
            .finish()
    }
}

/// `tls = { ca = "file:…", cert = "file:…", key = "file:…" }` of `[nats]`. Any of it makes TLS a must.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct NatsTls {
    /// Certificates (PEM) that the server's is trusted by, instead of the system's.
    pub ca: Option<FileRef>,
    /// Our own certificate (PEM), where the server asks for one; with `key`.
    pub cert: Option<FileRef>,
    /// The private key of `cert` (PEM).
    pub key: Option<FileRef>,
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

/// Behaviour when EVENTS is at its `max_bytes`.
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
    /// Behaviour at that limit.
    pub on_full: OnFull,
    /// For how long the same delivery is recognised; below `retention`.
    pub dedup_horizon: Span,
    /// For how long an idle workflow's numbering continues.
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

/// Bytes that the servers must let through above a body of the largest size: headers and our own.
pub const MESSAGE_OVERHEAD_BYTES: u64 = 128 * 1024;

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Result<MaxBytes, serde_json::Error> {
        serde_json::from_value(serde_json::Value::String(text.into()))
    }

    #[test]
    fn max_bytes_is_auto_or_a_size() {
        assert_eq!(parse("auto").unwrap(), MaxBytes::Auto);
        assert_eq!(parse("100MiB").unwrap(), MaxBytes::Bytes(100 << 20));
        assert!(parse("much").is_err());
    }

    #[test]
    fn a_log_that_could_not_work_is_refused_by_the_key_that_is_wrong() {
        LogOptions::default().validate().unwrap();
        let refused = |change: fn(&mut LogOptions), key: &str| {
            let mut options = LogOptions::default();
            change(&mut options);
            let problem = options.validate().unwrap_err();
            assert!(problem.starts_with(&format!("[log] {key} ")), "{problem}");
        };
        refused(|log| log.shards = 0, "shards");
        refused(|log| log.shards = 257, "shards");
        refused(|log| log.replicas = 2, "replicas");
        refused(|log| log.fsync = "never".into(), "fsync");
        refused(|log| log.fsync = "0s".into(), "fsync");
        refused(|log| log.dedup_horizon = log.retention, "dedup_horizon");
        refused(|log| log.dedup_horizon = Span(Duration::from_millis(1)), "dedup_horizon");
        refused(|log| log.remember_workflows = Span::days(1), "remember_workflows");
    }
}
