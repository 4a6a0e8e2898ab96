//! Fill level of a stream, and making room in it.

use std::time::Duration;

use async_nats::jetstream::stream::Config;
use serde_json::json;
use weft_proto::ids::StreamSeq;

use super::{EnsureError, info, refused, request};
use crate::connect::Connection;

/// How full a stream is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Usage {
    /// Bytes that it holds.
    pub bytes: u64,
    /// The most that it may hold; `None`: it has no limit.
    pub bytes_max: Option<u64>,
    /// The first sequence that it holds.
    pub first: StreamSeq,
    /// Age at which it drops a message; zero: never.
    pub age_max: Duration,
}

/// Asks how full a stream is.
///
/// # Errors
///
/// [`EnsureError`].
pub async fn usage(connection: &Connection, stream: &str) -> Result<Usage, EnsureError> {
    let info = known(connection, stream).await?;
    Ok(Usage {
        bytes: info.state.bytes,
        bytes_max: u64::try_from(info.config.max_bytes).ok().filter(|bytes| *bytes > 0),
        first: StreamSeq(info.state.first_sequence),
        age_max: info.config.max_age,
    })
}

/// Removes everything up to a sequence from a stream.
///
/// # Errors
///
/// [`EnsureError`].
pub async fn drop_through(connection: &Connection, stream: &str, through: StreamSeq) -> Result<(), EnsureError> {
    // The server keeps the sequence that it is given.
    let body = json!({ "seq": through.next().0 });
    let purge = format!("STREAM.PURGE.{stream}");
    let answer = connection.jetstream().request(purge, &body).await;
    match answer.map_err(|error| EnsureError::Unavailable(error.to_string()))? {
        async_nats::jetstream::response::Response::Ok::<serde_json::Value>(_) => Ok(()),
        async_nats::jetstream::response::Response::Err { error } => Err(refused(stream, &error)),
    }
}

/// Sets the most that a stream may hold, and nothing else of it.
///
/// # Errors
///
/// [`EnsureError`].
pub async fn set_bytes_max(connection: &Connection, stream: &str, bytes: u64) -> Result<(), EnsureError> {
    let max_bytes = i64::try_from(bytes).unwrap_or(i64::MAX);
    let config = Config { max_bytes, ..known(connection, stream).await?.config };
    request(connection, "UPDATE", stream, &config).await?.map(drop).map_err(|error| refused(stream, &error))
}

pub(super) async fn known(
    connection: &Connection,
    stream: &str,
) -> Result<async_nats::jetstream::stream::Info, EnsureError> {
    let missing = || EnsureError::Mismatch(format!("there is no stream {stream}; it has been removed from the server"));
    info(connection, stream).await?.ok_or_else(missing)
}
