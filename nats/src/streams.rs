//! The streams and buckets of a log: created and changed by admins, awaited and checked by every other role.
//!
//! Number of shards, hash and format version stand in the metadata of `EVENTS`; a process that is configured otherwise
//! is refused, since it would number and order by other rules. The number of shards stands in the bucket of leases,
//! too, which is made before all others: a process that starts at the same moment with another number finds it there
//! and makes nothing.

use std::{collections::BTreeSet, fmt::Display};

use std::time::Duration;

use async_nats::jetstream::{
    ErrorCode,
    context::RequestErrorKind,
    response::Response,
    stream::{Config, Info},
};
use futures_util::{StreamExt as _, TryStreamExt as _, stream};
use jiff::Timestamp;
use weft_proto::ids::StreamSeq;

use crate::{
    clock::boot_time,
    connect::Connection,
    options::{DeadLetterOptions, LogOptions, MESSAGE_OVERHEAD_BYTES, MaxBytes, RejectedOptions, Span},
    server::{VERSION_MIN, Version},
    subject::{Layout, REJECTED_STREAM},
};

mod definition;
mod leader;
mod lost;
mod room;
mod watch;

pub use definition::CATALOG_HISTORY;
use definition::Verdict;
pub use leader::{LeaderView, Presence, leader_message, leader_next, leader_view, next_page, presence};
pub use lost::{check_for, ensure_for};
pub use room::{Usage, drop_through, set_bytes_max, usage};
pub use watch::{Used, watch_streams};

/// The version of everything that is stored in the log.
pub const FORMAT_VERSION: u32 = 2;

/// The largest body that a log may be made for: what one atomic batch may hold.
pub const BODY_BYTES_MAX: u64 = 8 << 20;

/// The server's own limit where a stream has none.
const CONSUMERS_DEFAULT: u64 = 1000;
/// The shortest age that the server takes as a stream's limit is 100 ms.
const DEAD_LETTER_RETENTION_MIN: Span = Span::secs(1);

/// Streams that are checked or made at the same time: enough to hide the round trips of many shards, few enough not to
/// flood a cluster's meta leader.
const CONCURRENCY: usize = 8;

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
    /// [`MESSAGE_OVERHEAD_BYTES`].
    pub body_bytes_max: u64,
    /// `max_bytes` of EVENTS, a shard, where `[log] max_bytes` is `auto`. `None`: unlimited when the stream is made, else
    /// left as it is.
    pub auto_bytes_max: Option<u64>,
    /// Streams may be created although they are known to have existed: an operator has said so.
    pub new_log: bool,
}

impl LogSpec {
    /// The largest message of EVENTS, in bytes.
    pub fn message_bytes_max(&self) -> u64 {
        self.body_bytes_max.saturating_add(MESSAGE_OVERHEAD_BYTES)
    }

    /// Checks for what no log could be made of.
    ///
    /// # Errors
    ///
    /// `[section] key`, what is wrong, and what would be right, in one line.
    pub fn validate(&self) -> Result<(), String> {
        self.log.validate()?;
        // To the server zero is no limit.
        if self.dead_letters.retention < DEAD_LETTER_RETENTION_MIN {
            return Err(format!(
                "[dead_letters] retention is {}; say at least {DEAD_LETTER_RETENTION_MIN}",
                self.dead_letters.retention
            ));
        }
        if self.rejected.max_bytes.as_u64() == 0 {
            return Err("[rejected] max_bytes is 0; say how much of refused requests is kept, such as 100MiB".into());
        }
        if self.log.max_bytes == MaxBytes::Bytes(0) {
            return Err("[log] max_bytes is 0; say how much is kept, such as 10GiB, or \"auto\"".into());
        }
        if !(1..=BODY_BYTES_MAX).contains(&self.body_bytes_max) {
            return Err(format!(
                "[gateway] max_body is {} bytes; say 1 to {BODY_BYTES_MAX} (8 MiB)",
                self.body_bytes_max
            ));
        }
        Ok(())
    }
}

/// Why the log cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum EnsureError {
    /// Transient: no server, no leader, or a timeout. Retry.
    #[error("event log unavailable: {0}")]
    Unavailable(String),
    /// Permanent: the configuration contradicts the log or itself, or the server is too old or refuses the limits.
    #[error("{0}")]
    Mismatch(String),
}

/// A stream's state as the server reports it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct StreamState {
    /// When the stream was made: another time, another stream.
    pub created: Timestamp,
    /// The first sequence kept; last + 1 in a stream that holds nothing.
    pub first: StreamSeq,
    /// The last sequence given out.
    pub last: StreamSeq,
}

/// Rights of a process on the streams of the log.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Authority {
    /// Create and change them, as admins do.
    Create,
    /// Compare them with its configuration, and wait for an admin.
    Check,
}

/// Makes what is missing, updates what differs and may, and checks the rest, with the rights of an admin. Several may call
/// it at once. A stream is not created where others of the log hold data and so say that it existed.
///
/// # Errors
///
/// [`EnsureError`].
pub async fn ensure(connection: &Connection, spec: &LogSpec) -> Result<Layout, EnsureError> {
    ensure_known(connection, spec, &BTreeSet::new(), Authority::Create).await
}

/// As [`ensure`], where streams of these names are known to have existed.
async fn ensure_known(
    connection: &Connection,
    spec: &LogSpec,
    known: &BTreeSet<String>,
    authority: Authority,
) -> Result<Layout, EnsureError> {
    spec.validate().map_err(EnsureError::Mismatch)?;
    check_server(connection, spec)?;
    let layout = Layout::new(spec.log.shards);
    check_shards(connection, layout).await?;
    if !spec.new_log {
        lost::check(connection, layout, known).await?;
    }
    let mut definitions = definition::all(layout, spec).into_iter();
    if let Some(first) = definitions.next() {
        ensure_stream(connection, &first, spec, authority).await?;
    }
    stream::iter(definitions)
        .map(async |definition| ensure_stream(connection, &definition, spec, authority).await)
        .buffer_unordered(CONCURRENCY)
        .try_collect::<()>()
        .await?;
    Ok(layout)
}

/// The time of the server that leads a stream, which is the one that stamps its messages.
///
/// # Errors
///
/// [`EnsureError::Unavailable`]; [`EnsureError::Mismatch`] when there is no such stream.
pub async fn server_time(connection: &Connection, stream: &str) -> Result<Timestamp, EnsureError> {
    state(connection, stream).await?;
    let clock = connection.server_clock().anchored();
    clock
        .map(|clock| clock.now())
        .ok_or_else(|| EnsureError::Unavailable(format!("{stream}: the server reports no time")))
}

/// Asks for a stream's state.
///
/// # Errors
///
/// [`EnsureError::Unavailable`]; [`EnsureError::Mismatch`] when there is no such stream.
pub async fn state(connection: &Connection, stream: &str) -> Result<StreamState, EnsureError> {
    state_of(stream, &room::known(connection, stream).await?)
}

fn state_of(stream: &str, info: &Info) -> Result<StreamState, EnsureError> {
    let created = Timestamp::from_nanosecond(info.created.unix_timestamp_nanos())
        .map_err(|error| EnsureError::Unavailable(format!("{stream} has no sound time of creation: {error}")))?;
    let last = StreamSeq(info.state.last_sequence);
    let first = if info.state.messages == 0 { last.next() } else { StreamSeq(info.state.first_sequence) };
    Ok(StreamState { created, first, last })
}

/// Consumers of a stream.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Consumers {
    /// Consumers that it has.
    pub count: u64,
    /// Consumers that it may have.
    pub limit: u64,
}

/// Asks for a stream's consumers.
///
/// # Errors
///
/// As [`state`].
pub async fn consumers(connection: &Connection, stream: &str) -> Result<Consumers, EnsureError> {
    let info = info(connection, stream).await?.ok_or_else(|| {
        EnsureError::Mismatch(format!("there is no stream {stream}; it has been removed from the server"))
    })?;
    let limit = u64::try_from(info.config.max_consumers).ok().filter(|limit| *limit > 0);
    Ok(Consumers { count: info.state.consumer_count as u64, limit: limit.unwrap_or(CONSUMERS_DEFAULT) })
}

/// Checks the server. A version that cannot be read is let through: a wrapper's, perhaps.
fn check_server(connection: &Connection, spec: &LogSpec) -> Result<(), EnsureError> {
    if !connection.is_connected() {
        return Err(EnsureError::Unavailable("the server does not answer".into()));
    }
    let server = connection.client().server_info();
    if Version::parse(&server.version).is_some_and(|version| version < VERSION_MIN) {
        return Err(EnsureError::Mismatch(format!(
            "nats-server at {} is {}; update it to {VERSION_MIN} or newer",
            server.host, server.version
        )));
    }
    let needed = spec.message_bytes_max();
    if (server.max_payload as u64) < needed {
        return Err(EnsureError::Mismatch(format!(
            "nats-server's max_payload is {}, and bodies of {} bytes need {needed}; raise max_payload there or lower \
             [gateway] max_body",
            server.max_payload, spec.body_bytes_max
        )));
    }
    Ok(())
}

/// Whether there is a log with another number of shards: its streams have other names where one of the numbers is 1.
async fn check_shards(connection: &Connection, layout: Layout) -> Result<(), EnsureError> {
    let other = if layout.shards() == 1 { Layout::new(2) } else { Layout::new(1) };
    let name = definition::first_events_stream(other);
    let Some(info) = info(connection, &name).await? else { return Ok(()) };
    match info.config.metadata.get(definition::SHARDS) {
        Some(theirs) => Err(mismatch(&name, definition::SHARDS, Some(theirs), &layout.shards().to_string())),
        // A foreign stream that happens to have the name; the server says so when subjects overlap.
        None => Ok(()),
    }
}

/// How often and at what distance a stream is looked for whose bytes another creation may have reserved.
const RESERVED_TRIES: u32 = 10;
const RESERVED_PAUSE: Duration = Duration::from_millis(100);

/// Makes one stream, or brings it up to date. A stream that another made meanwhile is compared like any other.
async fn ensure_stream(
    connection: &Connection,
    wanted: &Config,
    spec: &LogSpec,
    authority: Authority,
) -> Result<(), EnsureError> {
    let name = &wanted.name;
    let existing = match info(connection, name).await? {
        Some(info) => info,
        None if authority == Authority::Check => {
            return Err(EnsureError::Unavailable(format!(
                "waiting for the admin to create the streams: {name} does not exist"
            )));
        }
        None => match create(connection, wanted).await? {
            Some(info) => {
                tracing::info!(stream = name, "stream made");
                info
            }
            None => info(connection, name)
                .await?
                .ok_or_else(|| EnsureError::Unavailable(format!("stream {name} comes and goes")))?,
        },
    };
    match definition::compare(&existing.config, existing.state.bytes, wanted, spec) {
        Verdict::Keep => Ok(()),
        Verdict::Update(config) if authority == Authority::Check => {
            let (largest, needed) = (existing.config.max_message_size, config.max_message_size);
            if largest < needed {
                return Err(EnsureError::Unavailable(format!(
                    "waiting for the admin to change stream {name}: its max_msg_size is {largest}, and [gateway] max_body \
                     needs {needed}; configure the admin with the same max_body"
                )));
            }
            Ok(())
        }
        Verdict::Update(config) => {
            request(connection, "UPDATE", name, &config).await?.map_err(|error| refused(name, &error))?;
            tracing::info!(stream = name, "stream updated");
            Ok(())
        }
        Verdict::Mismatch { key, theirs, ours } => Err(mismatch(name, &key, theirs.as_deref(), &ours)),
    }
}

/// Makes a stream; `None` when there is one of that name by now.
async fn create(connection: &Connection, config: &Config) -> Result<Option<Info>, EnsureError> {
    match request(connection, "CREATE", &config.name, config).await? {
        Ok(info) => Ok(Some(info)),
        Err(error) if error.error_code() == ErrorCode::STREAM_NAME_EXIST => Ok(None),
        Err(error) if error.error_code() == ErrorCode::STORAGE_RESOURCES_EXCEEDED => {
            // A creation reserves its `max_bytes` before its stream is there. So this is either too much for the server, or
            // just enough and another role is making the same stream: then it is there in a moment.
            for _ in 0..RESERVED_TRIES {
                tokio::time::sleep(RESERVED_PAUSE).await;
                if info(connection, &config.name).await?.is_some() {
                    return Ok(None);
                }
            }
            Err(refused(&config.name, &error))
        }
        Err(error) => Err(refused(&config.name, &error)),
    }
}

/// The server's information about a stream; `None` when there is none of that name.
async fn info(connection: &Connection, stream: &str) -> Result<Option<Info>, EnsureError> {
    if !connection.is_connected() {
        return Err(EnsureError::Unavailable("the server does not answer".into()));
    }
    match request(connection, "INFO", stream, &()).await? {
        Ok(info) => Ok(Some(info)),
        Err(error) if error.error_code() == ErrorCode::STREAM_NOT_FOUND => Ok(None),
        Err(error) => Err(refused(stream, &error)),
    }
}

/// An answer about a stream with the time at which the server gave it.
#[derive(serde::Deserialize)]
struct Dated<T> {
    #[serde(flatten)]
    answer: T,
    ts: Option<Timestamp>,
}

/// One request of the stream API, within the connection's time-out.
async fn request<T: serde::Serialize>(
    connection: &Connection,
    verb: &str,
    stream: &str,
    body: &T,
) -> Result<Result<Info, async_nats::jetstream::Error>, EnsureError> {
    let asked = boot_time();
    let response = connection.jetstream().request(format!("STREAM.{verb}.{stream}"), body).await;
    match response {
        Ok(Response::Ok(Dated::<Info> { answer, ts })) => {
            if let Some(time) = ts {
                connection.server_clock().observe(time, asked);
            }
            Ok(Ok(answer))
        }
        Ok(Response::Err { error }) => Ok(Err(error)),
        Err(error) => Err(EnsureError::Unavailable(match error.kind() {
            RequestErrorKind::NoResponders => format!(
                "JetStream does not answer about stream {stream}: it is not enabled, has no leader, or this user's account \
                 does not import STREAM.{verb} of its API"
            ),
            RequestErrorKind::TimedOut => format!(
                "no answer about stream {stream}; if that stays so, this user may not ask for it (STREAM.{verb} of JetStream's API)"
            ),
            _ => error.to_string(),
        })),
    }
}

/// Error for a refusal by the server: one of the request itself is permanent, one that comes from the server's state
/// may be transient.
fn refused(stream: &str, error: &async_nats::jetstream::Error) -> EnsureError {
    let permanent = match error.error_code() {
        ErrorCode::CLUSTER_NO_PEERS => false,
        ErrorCode::STORAGE_RESOURCES_EXCEEDED
        | ErrorCode::ACCOUNT_RESOURCES_EXCEEDED
        | ErrorCode::STREAM_REPLICAS_NOT_SUPPORTED
        | ErrorCode::STREAM_INVALID_CONFIG => true,
        _ => error.code() == 400,
    };
    let advice: &dyn Display = match error.error_code() {
        ErrorCode::STORAGE_RESOURCES_EXCEEDED if stream == REJECTED_STREAM => {
            &"; lower [rejected] max_bytes or give the server more storage (max_file_store)"
        }
        ErrorCode::STORAGE_RESOURCES_EXCEEDED => {
            &"; lower [log] max_bytes or give the server more storage (max_file_store)"
        }
        ErrorCode::STREAM_REPLICAS_NOT_SUPPORTED => &"; set [log] replicas = 1 or use a cluster",
        ErrorCode::STREAM_SUBJECT_OVERLAP => &"; remove the stream that takes these subjects or use another account",
        _ => &"",
    };
    let text = format!("nats-server refuses stream {stream}: {error}{advice}");
    if permanent { EnsureError::Mismatch(text) } else { EnsureError::Unavailable(text) }
}

fn mismatch(stream: &str, key: &str, theirs: Option<&str>, ours: &str) -> EnsureError {
    EnsureError::Mismatch(match (key, theirs) {
        (definition::SHARDS, Some(theirs)) => format!(
            "the log was made with {theirs} shards, and this process is configured with {ours}; set [log] shards = {theirs}"
        ),
        (definition::FORMAT, Some(theirs)) => format!(
            "stream {stream} has format {theirs}, and this program writes format {ours}; run the program that fits the log"
        ),
        (_, Some(theirs)) => format!("stream {stream} has {key} = {theirs}, not {ours}; use another server or account"),
        (_, None) => format!("stream {stream} was not made by weft; rename it or use another server or account"),
    })
}
