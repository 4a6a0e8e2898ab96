//! Removal of what precedes the newest complete checkpoint, which an admin performs.

use std::time::Duration;

use tokio_util::task::AbortOnDropHandle;
use weft_nats::{
    admin_requests::{Requests, trim},
    checkpoints,
    conditions::Conditions,
    streams::EnsureError,
};
use weft_proto::ids::StreamSeq;

use crate::log::Log;

/// Time between two tries.
const PAUSE: Duration = Duration::from_secs(10);

/// Removes old checkpoints of a shard.
#[derive(Debug, Clone)]
pub(in crate::driver) struct Removal {
    pub log: Log,
    pub admins: Requests,
    pub conditions: Conditions,
}

impl Removal {
    /// Removes what precedes the newest checkpoint, repeated until it succeeds.
    pub fn start(&self) -> AbortOnDropHandle<()> {
        let removal = self.clone();
        AbortOnDropHandle::new(tokio::spawn(async move {
            while let Err(error) = removal.remove().await {
                let stream = removal.log.layout.checkpoints_stream(removal.log.shard);
                tracing::warn!(stream, %error, "removing old checkpoints failed; retrying");
                removal.say(Some(format!("{stream} keeps them, and grows by each new one: {error}")));
                tokio::time::sleep(PAUSE).await;
            }
            removal.say(None);
        }))
    }

    /// Removes what precedes the newest complete checkpoint.
    pub async fn remove(&self) -> Result<(), EnsureError> {
        let Log { connection, layout, shard } = &self.log;
        let tail = checkpoints::tail(connection, *layout, *shard).await;
        let tail = tail.map_err(|error| EnsureError::Unavailable(error.to_string()))?;
        let Some(newest) = tail.newest else { return Ok(()) };
        let first_kept = StreamSeq(newest.end.first_chunk);
        if tail.first < first_kept {
            let stream = layout.checkpoints_stream(*shard);
            trim::drop_through(&self.admins, &stream, StreamSeq(first_kept.0 - 1)).await?;
        }
        Ok(())
    }

    /// Shows a condition of the process; `None` clears it.
    pub fn say(&self, problem: Option<String>) {
        self.conditions.set(&format!("shard {}: old checkpoints", self.log.shard), problem);
    }
}
