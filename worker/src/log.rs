//! Reads of one shard's streams, repeated until the result is certain.
//!
//! A direct get may be answered by a replica that lags, or not at all while the server is unavailable. An event that is absent
//! counts as settled, so absence needs proof: a message is either found, or the stream's state says that it is no longer kept.

use std::{collections::BTreeMap, time::Duration};

use weft_nats::{
    connect::Connection,
    dead_letter::{self, CopyName},
    direct::{self, DirectError},
    erasure::{self, Erasure},
    event::StoredEvent,
    message::Stored,
    streams::{self, EnsureError, LeaderView, Presence, StreamState},
    subject::Layout,
};
use weft_proto::ids::{EventId, ShardId, StreamSeq, WorkflowId};

/// Pause before a failed read is repeated.
const RETRY_PAUSE: Duration = Duration::from_millis(200);
/// One read for records of erased events.
pub(crate) const ERASED_READ: Bounds = Bounds { messages: 256, bytes: 4 << 20 };
/// Erased events of one result: they have no payload, so about a megabyte.
const ERASED_MAX: usize = 1024;
/// How often an end of a workflow is read again that comes before the records of its erased events: a replica that lags.
const ERASED_TRIES: u32 = 5;

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

    /// The leader's view of a stream, repeated until it succeeds.
    pub async fn view(&self, stream: &str) -> LeaderView {
        until_answered(|| async move { streams::leader_view(&self.connection, stream).await.map_err(unavailable) })
            .await
    }

    /// The erased events of a workflow in `from..=through`, without their payloads and in order, and the sequence up to
    /// which they are complete; repeated until it succeeds. Their records may be anywhere after them. `missing`: the number of
    /// them, if it is known.
    pub async fn erased(
        &self,
        workflow: &WorkflowId,
        from: StreamSeq,
        through: StreamSeq,
        missing: Option<u64>,
    ) -> (Vec<StoredEvent>, StreamSeq) {
        let (stream, subject) = (self.layout.events_stream(self.shard), self.layout.event_subject(workflow));
        let (mut position, mut known, mut tries) = (from, through, 0);
        let mut erased: BTreeMap<StreamSeq, StoredEvent> = BTreeMap::new();
        let Bounds { messages, bytes } = ERASED_READ;
        while missing.is_none_or(|missing| (erased.len() as u64) < missing) {
            let read = || direct::range(&self.connection, &stream, position, &subject, messages, bytes);
            let messages = until_answered(read).await;
            let Some(last) = messages.last() else {
                if missing.is_none() || known < through || tries == ERASED_TRIES {
                    break;
                }
                tries += 1;
                tokio::time::sleep(RETRY_PAUSE).await;
                continue;
            };
            position = last.seq.next();
            for message in &messages {
                if let Some((seq, event)) = erased_event(self.layout, message)
                    && (from..=known).contains(&seq)
                {
                    erased.insert(seq, event);
                }
            }
            while erased.len() > ERASED_MAX {
                erased.pop_last();
                known = erased.last_key_value().map_or(known, |(seq, _)| *seq);
            }
        }
        (erased.into_values().collect(), known)
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
        let before = StreamSeq(seq.0.saturating_sub(1));
        let (_, presence) = streams::presence(&self.connection, stream, before, seq).await.map_err(unavailable)?;
        Ok(presence == Presence::Absent)
    }

    async fn state(&self, stream: &str) -> Result<StreamState, DirectError> {
        streams::state(&self.connection, stream).await.map_err(unavailable)
    }
}

/// The event that a message says was erased, at its sequence and without its payload.
pub(crate) fn erased_event(layout: Layout, message: &Stored) -> Option<(StreamSeq, StoredEvent)> {
    let Erasure { seq, stored_at, event, .. } = Erasure::decode(layout, message)?;
    Some((seq, StoredEvent { seq, stored_at, event }))
}

fn unavailable(error: EnsureError) -> DirectError {
    DirectError::Unavailable(error.to_string())
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
