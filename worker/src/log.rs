//! Reads of one shard's streams, repeated until the result is certain.
//!
//! A direct get may be answered by a replica that lags, or not at all while the server is unavailable. An event that is absent
//! counts as settled, so absence needs proof: a message is either found, or the stream's state says that it is no longer kept.

use std::time::Duration;

use weft_nats::{
    connect::Connection,
    dead_letter::{self, CopyName},
    direct::{self, DirectError},
    erasure::{self, Erasure},
    event::StoredEvent,
    message::Stored,
    streams::{self, EnsureError, Presence, StreamState},
    subject::Layout,
};
use weft_proto::ids::{EventId, ShardId, StreamSeq, WorkflowId};

/// Pause before a failed read is repeated.
const RETRY_PAUSE: Duration = Duration::from_millis(200);
/// Messages and bytes of one read for records of erased events.
const ERASED_READ: usize = 256;
const ERASED_BYTES: usize = 4 << 20;

/// The streams of one shard. Cheap to clone.
#[derive(Debug, Clone)]
pub(crate) struct Log {
    /// The connection to NATS.
    pub connection: Connection,
    /// The layout of the log.
    pub layout: Layout,
    /// The shard.
    pub shard: ShardId,
}

/// Bounds of one read.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Bounds {
    /// Maximum number of messages.
    pub messages: usize,
    /// Approximate maximum number of bytes.
    pub bytes: usize,
}

/// The result of a read.
#[derive(Debug)]
pub(crate) struct Read {
    /// The messages, in order.
    pub messages: Vec<Stored>,
    /// `messages` is complete up to this sequence.
    pub known: StreamSeq,
}

impl Log {
    /// Reads `subject` (wildcards allowed) in `from..=through`. There must be, or have been, a message of that subject at
    /// `through`, which proves that a result is complete.
    ///
    /// # Errors
    ///
    /// [`DirectError`], also from a replica that lags. Transient.
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
        // Reads are contiguous: a replica that has a later message has all earlier ones.
        let mut whole = !messages.is_empty();
        messages.retain(|message| message.seq <= through);
        let known = match messages.last() {
            Some(last) => last.seq,
            None => {
                whole = whole || self.is_removed(stream, through).await?;
                through
            }
        };
        if whole { Ok(Read { messages, known }) } else { Err(lagging(stream, through)) }
    }

    /// As [`try_range`](Self::try_range), repeated until it succeeds.
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

    /// The message at `seq`, repeated until it succeeds; `None`: it is no longer kept.
    pub async fn get(&self, stream: &str, seq: StreamSeq) -> Option<Stored> {
        until_answered(|| async move {
            match direct::get(&self.connection, stream, seq).await? {
                None if !self.is_removed(stream, seq).await? => Err(lagging(stream, seq)),
                found => Ok(found),
            }
        })
        .await
    }

    /// The copy of a dead letter on the replica that answers, repeated until it succeeds.
    pub async fn copy(&self, name: &CopyName<'_>) -> Option<Stored> {
        until_answered(|| dead_letter::find(&self.connection, name)).await
    }

    /// A copy of the event at `seq` for any subscription, as [`copy`](Self::copy).
    pub async fn any_copy(&self, workflow: &WorkflowId, event: EventId, seq: StreamSeq) -> Option<Stored> {
        until_answered(|| dead_letter::find_any(&self.connection, workflow, event, seq)).await
    }

    /// The first sequence that a stream holds, repeated until it succeeds.
    pub async fn first(&self, stream: &str) -> StreamSeq {
        until_answered(|| self.state(stream)).await.first
    }

    /// The erased events of a workflow in `from..=through`, without their payloads, repeated until it succeeds. Their records
    /// may be anywhere after them.
    pub async fn erased(&self, workflow: &WorkflowId, from: StreamSeq, through: StreamSeq) -> Vec<StoredEvent> {
        let (stream, subject) = (self.layout.events_stream(self.shard), self.layout.event_subject(workflow));
        let (mut position, mut erased) = (from, Vec::new());
        loop {
            let read = until_answered(|| {
                direct::range(&self.connection, &stream, position, &subject, ERASED_READ, ERASED_BYTES)
            });
            let messages = read.await;
            let Some(last) = messages.last() else { break };
            position = last.seq.next();
            let found = messages.iter().filter_map(|message| Erasure::decode(self.layout, message));
            let found = found.filter(|erasure| (from..=through).contains(&erasure.seq));
            erased.extend(found.map(|Erasure { seq, stored_at, event, .. }| StoredEvent { seq, stored_at, event }));
        }
        erased.sort_by_key(|event| event.seq);
        erased.dedup_by_key(|event| event.seq);
        erased
    }

    /// Whether an event has been erased, by the leader of its stream, repeated until it succeeds.
    pub async fn is_erased(&self, workflow: &WorkflowId, seq: StreamSeq, id: EventId) -> bool {
        until_answered(|| async move {
            let erased = erasure::is_erased(&self.connection, self.layout, workflow, seq, id).await;
            erased.map_err(|error| DirectError::Unavailable(error.to_string()))
        })
        .await
    }

    /// Whether a stream no longer holds the message at `seq`: dropped by retention, or erased. Certain, by its leader.
    async fn is_removed(&self, stream: &str, seq: StreamSeq) -> Result<bool, DirectError> {
        if self.state(stream).await?.first > seq {
            return Ok(true);
        }
        let unavailable = |error: EnsureError| DirectError::Unavailable(error.to_string());
        let before = StreamSeq(seq.0.saturating_sub(1));
        let (_, presence) = streams::presence(&self.connection, stream, before, seq).await.map_err(unavailable)?;
        Ok(presence == Presence::Absent)
    }

    async fn state(&self, stream: &str) -> Result<StreamState, DirectError> {
        let unavailable = |error: EnsureError| DirectError::Unavailable(error.to_string());
        streams::state(&self.connection, stream).await.map_err(unavailable)
    }
}

fn lagging(stream: &str, through: StreamSeq) -> DirectError {
    DirectError::Unavailable(format!("a replica of {stream} lags: it has not reached {through}"))
}

/// Repeats a read until it succeeds. Ends with the caller's future, so with its shard.
async fn until_answered<T, F, Fut>(read: F) -> T
where
    F: Fn() -> Fut,
    Fut: Future<Output = Result<T, DirectError>>,
{
    loop {
        match read().await {
            Ok(answer) => return answer,
            Err(error) => {
                tracing::debug!(%error, "read failed; retrying");
                tokio::time::sleep(RETRY_PAUSE).await;
            }
        }
    }
}
