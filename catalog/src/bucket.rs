//! The bucket: its keys and subjects.

use weft_nats::{
    streams::StreamState,
    subject::{CATALOG_BUCKET, bucket_stream},
};

/// First token of the keys of sources.
pub(super) const SOURCE: &str = "source";
/// First token of the keys of subscriptions.
pub(super) const SUBSCRIPTION: &str = "subscription";
/// First token of the keys of API keys.
pub(super) const KEY: &str = "key";
/// First token of the keys of API keys' last uses.
pub(super) const KEY_USED: &str = "key-used";

/// When a stream was made, in unix nanoseconds.
pub(super) fn created_ns(state: &StreamState) -> i64 {
    i64::try_from(state.created.as_nanosecond()).unwrap_or_default()
}

/// The stream behind the bucket.
pub(super) fn stream() -> String {
    bucket_stream(CATALOG_BUCKET)
}

/// Common prefix of the subjects of all keys.
pub(super) fn prefix() -> String {
    format!("$KV.{CATALOG_BUCKET}.")
}

pub(super) fn subject(key: &str) -> String {
    format!("$KV.{CATALOG_BUCKET}.{key}")
}
