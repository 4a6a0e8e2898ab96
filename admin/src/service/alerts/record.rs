//! The record of alerts: who raises them, and what has been raised. One key of the bucket of leases.
//!
//! An admin writes it with every look, expecting its revision. Another takes over once it has not been written for
//! [`ABANDONED_AFTER`], and continues from the state in it. An admin publishes only what its newest write contains, so two of
//! them that both believe they hold the record publish the same alerts, which gateways recognise as repeats.

use std::time::Duration;

use serde::{Deserialize, Serialize};
use weft_nats::{
    connect::Connection,
    direct,
    leases::{self, Write},
    subject::{LEASES_BUCKET, bucket_stream},
};

use super::decide::State;

const KEY: &str = "alerts";
/// Four looks.
pub(super) const ABANDONED_AFTER: Duration = Duration::from_secs(20);
/// Time-out of a write.
const WRITE_TIMEOUT: Duration = Duration::from_secs(2);

/// The record's value.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(default)]
pub(super) struct Record {
    /// The incarnation of the admin that raises alerts.
    pub holder: String,
    pub state: State,
}

/// The record as this admin may write it.
#[derive(Debug)]
pub(super) struct Held {
    pub state: State,
    revision: u64,
}

/// The record, if this admin raises alerts: no other admin does, or has for long.
pub(super) async fn read(connection: &Connection, holder: &str) -> Result<Option<Held>, String> {
    let stored = direct::last_by_subject(connection, &bucket_stream(LEASES_BUCKET), &subject()).await;
    let Some(stored) = stored.map_err(|error| error.to_string())? else {
        return Ok(Some(Held { state: State::default(), revision: 0 }));
    };
    // A record that cannot be read is of a later version, or damaged: alerts start over.
    let record: Record = serde_json::from_slice(&stored.payload).unwrap_or_default();
    let age = connection.server_clock().now().duration_since(stored.stored_at);
    let is_abandoned = age > jiff::SignedDuration::try_from(ABANDONED_AFTER).unwrap_or_default();
    let is_ours = record.holder == holder || record.holder.is_empty() || is_abandoned;
    Ok(is_ours.then_some(Held { state: record.state, revision: stored.seq.0 }))
}

/// Writes the record. Returns whether this admin still raises alerts.
pub(super) async fn write(connection: &Connection, holder: &str, held: &mut Held) -> Result<bool, String> {
    let record = Record { holder: holder.to_owned(), state: held.state.clone() };
    let value = serde_json::to_vec(&record).map_err(|error| error.to_string())?;
    let put = Write::Put(value.into());
    let written = leases::write(connection, subject(), put, held.revision, None, WRITE_TIMEOUT).await?;
    held.revision = written.unwrap_or_default();
    Ok(written.is_some())
}

fn subject() -> String {
    format!("$KV.{LEASES_BUCKET}.{KEY}")
}
