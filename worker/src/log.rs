//! One shard's streams, read until the answer is certain.
//!
//! A direct get may be answered by a replica that lags behind, and by nobody while the server is away. What a lane or a
//! take-over is told to be absent counts as settled, so absence needs proof: here a message is either found, or the
//! stream's own state says that it is no longer kept.

use std::time::Duration;

use weft_nats::{
    connect::Connection,
    dead_letter::{self, CopyName},
    direct::{self, DirectError},
    message::Stored,
    streams::{self, EnsureError, StreamState},
    subject::Layout,
};
use weft_proto::ids::{EventId, ShardId, StreamSeq, WorkflowId};

/// The pause before a read that failed is tried again.
const RETRY_PAUSE: Duration = Duration::from_millis(200);

/// The streams of one shard. Cheap to clone.
#[derive(Debug, Clone)]
pub(crate) struct Log {
    /// The server.
    pub connection: Connection,
    /// How the log is cut.
    pub layout: Layout,
    /// Which shard.
    pub shard: ShardId,
}

/// How much one read may bring.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Bounds {
    /// Messages, at the most.
    pub messages: usize,
    /// Bytes, about.
    pub bytes: usize,
}

/// A part of a stream.
#[derive(Debug)]
pub(crate) struct Read {
    /// In order.
    pub messages: Vec<Stored>,
    /// Between the sequence asked for and this one, nothing but `messages` is kept.
    pub known: StreamSeq,
}

impl Log {
    /// Reads `subject` (wildcards allowed) in `from..=through`. A message of that subject must once have stood at
    /// `through`: that is what proves an answer whole.
    ///
    /// # Errors
    ///
    /// [`DirectError`], also from a replica that lags behind; it passes.
    pub async fn try_range(
        &self,
        stream: &str,
        subject: &str,
        from: StreamSeq,
        through: StreamSeq,
        bounds: Bounds,
    ) -> Result<Read, DirectError> {
        let mut messages =
            direct::range(&self.connection, stream, from, subject, bounds.messages, bounds.bytes).await?;
        // Who has what comes later lacks nothing before it.
        let mut whole = !messages.is_empty();
        messages.retain(|message| message.seq <= through);
        let known = match messages.last() {
            Some(last) => last.seq,
            None => {
                whole = whole || self.state(stream).await?.first > through;
                through
            }
        };
        if whole { Ok(Read { messages, known }) } else { Err(lagging(stream, through)) }
    }

    /// As [`try_range`](Self::try_range), however long it takes.
    pub async fn range(
        &self,
        stream: &str,
        subject: &str,
        from: StreamSeq,
        through: StreamSeq,
        bounds: Bounds,
    ) -> Read {
        until_answered(|| self.try_range(stream, subject, from, through, bounds)).await
    }

    /// The message that was stored at `seq`, however long it takes; `None` when it is no longer kept.
    pub async fn get(&self, stream: &str, seq: StreamSeq) -> Option<Stored> {
        until_answered(|| async move {
            match direct::get(&self.connection, stream, seq).await? {
                None if self.state(stream).await?.first <= seq => Err(lagging(stream, seq)),
                found => Ok(found),
            }
        })
        .await
    }

    /// The copy of a dead letter, as the replica that is asked knows it, however long it takes.
    pub async fn copy(&self, name: &CopyName<'_>) -> Option<Stored> {
        until_answered(|| dead_letter::find(&self.connection, name)).await
    }

    /// A copy of the event at `seq` for any subscription, as [`copy`](Self::copy).
    pub async fn any_copy(&self, workflow: &WorkflowId, event: EventId, seq: StreamSeq) -> Option<Stored> {
        until_answered(|| dead_letter::find_any(&self.connection, workflow, event, seq)).await
    }

    /// The first sequence that a stream still holds, however long it takes.
    pub async fn first(&self, stream: &str) -> StreamSeq {
        until_answered(|| self.state(stream)).await.first
    }

    async fn state(&self, stream: &str) -> Result<StreamState, DirectError> {
        let unavailable = |error: EnsureError| DirectError::Unavailable(error.to_string());
        streams::state(&self.connection, stream).await.map_err(unavailable)
    }
}

fn lagging(stream: &str, through: StreamSeq) -> DirectError {
    DirectError::Unavailable(format!("a replica of {stream} has not come to {through} yet"))
}

/// Repeats a read until the log answers. Ends with the future that waits for it, so with its shard.
async fn until_answered<T, F, Fut>(read: F) -> T
where
    F: Fn() -> Fut,
    Fut: Future<Output = Result<T, DirectError>>,
{
    loop {
        match read().await {
            Ok(answer) => return answer,
            Err(error) => {
                tracing::debug!(%error, "read is tried again");
                tokio::time::sleep(RETRY_PAUSE).await;
            }
        }
    }
}
