//! The streams and buckets of a log: made by whichever role comes first, checked by everyone else.
//!
//! Number of shards, hash and format version stand in the metadata of `EVENTS`; a process that is configured otherwise
//! is refused, since it would number and order by other rules.

use std::{collections::HashMap, time::Duration};

use async_nats::jetstream::{
    context::{CreateStreamErrorKind, GetStreamErrorKind},
    stream::{Config, DiscardPolicy, RetentionPolicy, StorageType},
};
use jiff::Timestamp;
use weft_proto::ids::{ShardId, StreamSeq};

use crate::{
    connect::Connection,
    options::{DeadLetterOptions, LogOptions, MESSAGE_OVERHEAD_BYTES, MaxBytes, RejectedOptions},
    subject::{CATALOG_BUCKET, DLQ_STREAM, LEASES_BUCKET, Layout, REJECTED_STREAM},
};

/// The version of everything that is stored in the log.
pub const FORMAT_VERSION: u32 = 1;

/// The oldest server whose atomic batches sync once and whose checks are as the append needs them.
const SERVER_MIN: (i64, i64, i64) = (2, 15, 1);
/// The most shards: each is two streams, and a server holds some hundreds of them comfortably.
const SHARDS_MAX: u32 = 256;
/// The largest body, so that a batch still holds one.
const BODY_BYTES_MAX: u64 = 8 * 1024 * 1024;
/// The server's own duplicate window: it is in memory, so it only covers the client's own repeats.
const DUPLICATE_WINDOW_MAX: Duration = Duration::from_secs(120);
/// Readers of one stream: gateways, workers, admins, tails. The server's own limit is a thousand.
const CONSUMERS_MAX: i32 = 900;
/// How long the audit log is kept.
const COMMANDS_RETENTION: Duration = Duration::from_secs(400 * 24 * 60 * 60);

/// Everything that decides what the streams look like.
#[derive(Debug, Clone, Default)]
pub struct LogSpec {
    /// `[log]`.
    pub log: LogOptions,
    /// `[dead_letters]`.
    pub dead_letters: DeadLetterOptions,
    /// `[rejected]`.
    pub rejected: RejectedOptions,
    /// The largest body that a gateway takes, in bytes; `max_msg_size` is this plus
    /// [`MESSAGE_OVERHEAD_BYTES`](crate::options::MESSAGE_OVERHEAD_BYTES).
    pub body_bytes_max: u64,
    /// `max_bytes` of EVENTS, a shard, where `[log] max_bytes` is `auto`; `None`: unlimited.
    pub auto_bytes_max: Option<u64>,
}

impl LogSpec {
    /// The largest message of EVENTS, in bytes.
    pub fn message_bytes_max(&self) -> u64 {
        self.body_bytes_max + MESSAGE_OVERHEAD_BYTES
    }

    /// Checks what no log could be made of.
    ///
    /// # Errors
    ///
    /// Which option, what is wrong, what would be right; one line.
    pub fn validate(&self) -> Result<(), String> {
        let log = &self.log;
        if !(1..=SHARDS_MAX).contains(&log.shards) {
            return Err(format!("[log] shards = {} is not within 1 and {SHARDS_MAX}", log.shards));
        }
        if ![1, 3, 5].contains(&log.replicas) {
            return Err(format!("[log] replicas = {} is none of 1, 3, 5", log.replicas));
        }
        if log.dedup_horizon >= log.retention {
            return Err(format!(
                "[log] dedup_horizon = {} must be below retention = {}: a delivery is recognised by its event",
                log.dedup_horizon, log.retention
            ));
        }
        if log.remember_workflows < log.retention {
            return Err(format!(
                "[log] remember_workflows = {} must not be below retention = {}",
                log.remember_workflows, log.retention
            ));
        }
        if log.fsync != "always" {
            log.fsync.parse::<crate::options::Span>().map_err(|error| format!("[log] fsync: {error}"))?;
        }
        if self.body_bytes_max == 0 || self.body_bytes_max > BODY_BYTES_MAX {
            return Err(format!(
                "[gateway] max_body is {} bytes; it must lie within 1 and {BODY_BYTES_MAX} (8 MiB)",
                self.body_bytes_max
            ));
        }
        Ok(())
    }
}

/// Why the log cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum EnsureError {
    /// Passes: no server, no leader, a time-out. Try again.
    #[error("the log is not there: {0}")]
    Unavailable(String),
    /// Does not pass: the configuration contradicts the log or itself, or the server is too old or refuses the limits.
    #[error("{0}")]
    Mismatch(String),
}

/// A stream as the server tells of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct StreamState {
    /// When the stream was made: another time, another stream.
    pub created: Timestamp,
    /// The first sequence kept; last + 1 in a stream that holds nothing.
    pub first: StreamSeq,
    /// The last sequence given out.
    pub last: StreamSeq,
}

/// Makes what is missing, updates what differs and may, and checks the rest. Any role may call it, at any time, several
/// at once.
///
/// # Errors
///
/// [`EnsureError`].
pub async fn ensure(connection: &Connection, spec: &LogSpec) -> Result<Layout, EnsureError> {
    spec.validate().map_err(EnsureError::Mismatch)?;
    if !connection.is_connected() {
        return Err(EnsureError::Unavailable("not connected".into()));
    }
    check_server(connection, spec)?;
    let layout = Layout::new(spec.log.shards);
    check_shards(connection, layout).await?;
    for shard in layout.all() {
        ensure_stream(connection, events(spec, layout, shard)).await?;
        ensure_stream(connection, outcomes(spec, layout, shard)).await?;
        ensure_stream(connection, commands(spec, layout, shard)).await?;
    }
    ensure_stream(connection, dead_letters(spec)).await?;
    ensure_stream(connection, rejected(spec)).await?;
    ensure_stream(connection, bucket(spec, CATALOG_BUCKET, 5)).await?;
    ensure_stream(connection, bucket(spec, LEASES_BUCKET, 1)).await?;
    Ok(layout)
}

/// Asks for a stream's state.
///
/// # Errors
///
/// [`EnsureError::Unavailable`]; [`EnsureError::Mismatch`] when there is no such stream.
pub async fn state(connection: &Connection, stream: &str) -> Result<StreamState, EnsureError> {
    let info = info(connection, stream)
        .await?
        .ok_or_else(|| EnsureError::Mismatch(format!("there is no stream {stream}: start a gateway, or `weft up`")))?;
    let created = Timestamp::from_nanosecond(info.created.unix_timestamp_nanos())
        .map_err(|error| EnsureError::Unavailable(format!("{stream} was made at no time: {error}")))?;
    let last = StreamSeq(info.state.last_sequence);
    let first = if info.state.messages == 0 { last.next() } else { StreamSeq(info.state.first_sequence) };
    Ok(StreamState { created, first, last })
}

async fn info(
    connection: &Connection,
    stream: &str,
) -> Result<Option<async_nats::jetstream::stream::Info>, EnsureError> {
    if !connection.is_connected() {
        return Err(EnsureError::Unavailable("not connected".into()));
    }
    match connection.jetstream().get_stream(stream).await {
        Ok(stream) => Ok(Some(stream.cached_info().clone())),
        Err(error) => match error.kind() {
            GetStreamErrorKind::JetStream(api) if api.kind().0 == NO_STREAM => Ok(None),
            _ => Err(EnsureError::Unavailable(format!("{stream}: {error}"))),
        },
    }
}

/// The API's code for a stream that is not there.
const NO_STREAM: u64 = 10059;

fn check_server(connection: &Connection, spec: &LogSpec) -> Result<(), EnsureError> {
    let (major, minor, patch) = SERVER_MIN;
    if !connection.client().is_server_compatible(major, minor, patch) {
        return Err(EnsureError::Mismatch(format!(
            "nats-server {} is too old: Weft needs {major}.{minor}.{patch} or newer",
            connection.client().server_info().version
        )));
    }
    let needed = spec.message_bytes_max();
    match connection.max_payload() {
        Some(max_payload) if (max_payload as u64) < needed => Err(EnsureError::Mismatch(format!(
            "the server's max_payload is {max_payload} bytes but [gateway] max_body needs {needed}: \
             raise max_payload, or lower max_body to {} bytes",
            (max_payload as u64).saturating_sub(MESSAGE_OVERHEAD_BYTES)
        ))),
        _ => Ok(()),
    }
}

/// Whether the log that is there has as many shards as the configuration says: a log of one shard has `EVENTS`, any
/// other `EVENTS_0`.
async fn check_shards(connection: &Connection, layout: Layout) -> Result<(), EnsureError> {
    for (stream, one_shard) in [("EVENTS", true), ("EVENTS_0", false)] {
        let Some(info) = info(connection, stream).await? else { continue };
        let shards = info.config.metadata.get("weft-shards").and_then(|text| text.parse::<u32>().ok());
        let shards = shards.unwrap_or(if one_shard { 1 } else { 0 });
        if shards != layout.shards() {
            return Err(EnsureError::Mismatch(format!(
                "the log has {shards} shard(s) but [log] shards = {}: the number is fixed when the log is made; \
                 set it back, or begin a new log",
                layout.shards()
            )));
        }
        let format = info.config.metadata.get("weft-format").map_or("none", String::as_str);
        if format != FORMAT_VERSION.to_string() {
            return Err(EnsureError::Mismatch(format!(
                "the log has format {format} but this program writes {FORMAT_VERSION}: use the matching version"
            )));
        }
    }
    Ok(())
}

/// Makes a stream, or brings the one that is there to the configuration.
async fn ensure_stream(connection: &Connection, wanted: Config) -> Result<(), EnsureError> {
    let name = wanted.name.clone();
    let jetstream = connection.jetstream();
    if let Some(there) = info(connection, &name).await? {
        let there = there.config;
        if is_as_wanted(&there, &wanted) {
            return Ok(());
        }
        if there.storage != wanted.storage || there.retention != wanted.retention {
            return Err(EnsureError::Mismatch(format!("stream {name} is there, but not one of Weft's: remove it")));
        }
        let updated = jetstream.update_stream(&wanted).await;
        return updated.map(drop).map_err(|error| refused(&name, error.kind(), &error));
    }
    match jetstream.create_stream(&wanted).await {
        Ok(_) => Ok(()),
        // Another role was faster: with the same configuration it is the same stream.
        Err(error) => match info(connection, &name).await? {
            Some(there) if is_as_wanted(&there.config, &wanted) => Ok(()),
            _ => Err(refused(&name, error.kind(), &error)),
        },
    }
}

/// Whether the parts that we set are as wanted. The server fills in others.
fn is_as_wanted(there: &Config, wanted: &Config) -> bool {
    there.subjects == wanted.subjects
        && there.max_age == wanted.max_age
        && there.max_bytes == wanted.max_bytes
        && there.max_message_size == wanted.max_message_size
        && there.max_messages_per_subject == wanted.max_messages_per_subject
        && there.discard == wanted.discard
        && there.num_replicas == wanted.num_replicas
        && there.duplicate_window == wanted.duplicate_window
        && there.allow_atomic_publish == wanted.allow_atomic_publish
        && there.allow_direct == wanted.allow_direct
        && there.allow_message_ttl == wanted.allow_message_ttl
        && there.storage == wanted.storage
        && there.retention == wanted.retention
}

fn refused(name: &str, kind: CreateStreamErrorKind, error: &dyn std::fmt::Display) -> EnsureError {
    match kind {
        CreateStreamErrorKind::TimedOut
        | CreateStreamErrorKind::Response
        | CreateStreamErrorKind::JetStreamUnavailable => EnsureError::Unavailable(format!("{name}: {error}")),
        _ => EnsureError::Mismatch(format!("the server does not take stream {name}: {error}")),
    }
}

/// What all streams of a log have in common.
fn stream(spec: &LogSpec, name: String, subjects: Vec<String>, max_age: Duration) -> Config {
    Config {
        name,
        subjects,
        max_age,
        retention: RetentionPolicy::Limits,
        storage: StorageType::File,
        num_replicas: spec.log.replicas,
        discard: DiscardPolicy::New,
        max_bytes: -1,
        max_messages: -1,
        max_messages_per_subject: -1,
        max_message_size: -1,
        max_consumers: CONSUMERS_MAX,
        // Never longer than the messages: the server refuses that.
        duplicate_window: DUPLICATE_WINDOW_MAX.min(max_age),
        allow_direct: true,
        deny_delete: true,
        metadata: HashMap::from([("weft-format".into(), FORMAT_VERSION.to_string())]),
        ..Config::default()
    }
}

fn sharded(mut config: Config, layout: Layout, shard: ShardId) -> Config {
    config.metadata.extend([
        ("weft-shards".to_owned(), layout.shards().to_string()),
        ("weft-shard".to_owned(), shard.to_string()),
        ("weft-hash".to_owned(), "fnv1a32".to_owned()),
    ]);
    config
}

fn events(spec: &LogSpec, layout: Layout, shard: ShardId) -> Config {
    let subjects = vec![layout.event_subjects(shard), layout.heads_subject(shard)];
    let max_bytes = match spec.log.max_bytes {
        MaxBytes::Auto => spec.auto_bytes_max,
        MaxBytes::Bytes(bytes) => Some(bytes),
    };
    let config = Config {
        max_bytes: max_bytes.map_or(-1, |bytes| i64::try_from(bytes).unwrap_or(i64::MAX)),
        max_message_size: i32::try_from(spec.message_bytes_max()).unwrap_or(i32::MAX),
        duplicate_window: DUPLICATE_WINDOW_MAX.min(spec.log.dedup_horizon.0).max(Duration::from_millis(100)),
        allow_atomic_publish: true,
        ..stream(spec, layout.events_stream(shard), subjects, spec.log.retention.0)
    };
    sharded(config, layout, shard)
}

fn outcomes(spec: &LogSpec, layout: Layout, shard: ShardId) -> Config {
    let subjects = vec![layout.outcomes_subject(shard), layout.chunk_subject(shard), layout.checkpoint_subject(shard)];
    let config = Config {
        allow_atomic_publish: true,
        ..stream(spec, layout.outcomes_stream(shard), subjects, spec.log.retention.0)
    };
    sharded(config, layout, shard)
}

fn commands(spec: &LogSpec, layout: Layout, shard: ShardId) -> Config {
    let subjects = vec![layout.commands_subject(shard)];
    sharded(stream(spec, layout.commands_stream(shard), subjects, COMMANDS_RETENTION), layout, shard)
}

fn dead_letters(spec: &LogSpec) -> Config {
    stream(spec, DLQ_STREAM.into(), vec!["dlq.>".into()], spec.dead_letters.retention.0)
}

fn rejected(spec: &LogSpec) -> Config {
    Config {
        discard: DiscardPolicy::Old,
        max_bytes: i64::try_from(spec.rejected.max_bytes.as_u64()).unwrap_or(i64::MAX),
        ..stream(spec, REJECTED_STREAM.into(), vec!["rejected.>".into()], spec.dead_letters.retention.0)
    }
}

/// A key-value bucket, as the client libraries make them, with messages that may have a time to live.
fn bucket(spec: &LogSpec, name: &str, history: i64) -> Config {
    Config {
        max_messages_per_subject: history,
        duplicate_window: DUPLICATE_WINDOW_MAX,
        allow_rollup: true,
        allow_message_ttl: true,
        ..stream(spec, format!("KV_{name}"), vec![format!("$KV.{name}.>")], Duration::ZERO)
    }
}
