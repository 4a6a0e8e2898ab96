//! A stream's state as its leader reports it, with the facts that limit what may be concluded from it.
//!
//! On a replicated stream the leader answers from what it has *applied*. That state is always a prefix of the log, but it
//! may be an old one: a server that was cut off believes for some seconds that it still leads, and a new leader may still
//! be applying. A state that reaches a sequence proves what stands up to there; a state that ends before a sequence proves
//! nothing about that sequence, unless it is known to be complete.

use std::{fmt::Display, time::Duration};

use async_nats::jetstream::{
    message::StreamMessage,
    stream::{Info, RawMessageError, RawMessageErrorKind},
};
use jiff::Timestamp;
use weft_proto::ids::StreamSeq;

use super::{EnsureError, StreamState, room::known, state_of};
use crate::{connect::Connection, direct, message::Stored};

/// A leader that heard from a majority of its replicas within this time is not cut off: replicas answer heartbeats once a
/// second.
const CONTACT_MAX: Duration = Duration::from_secs(3);

/// A stream as its leader reports it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LeaderView {
    /// The stream's state, as far as the leader has applied it.
    pub state: StreamState,
    /// The configured number of replicas.
    pub replicas: usize,
    /// Whether the server belongs to a cluster.
    pub clustered: bool,
    /// The name of the server that leads the stream, and answered.
    pub leader: Option<String>,
    /// Whether the leader has been in contact with a majority of the replicas within the last seconds. Always true with
    /// one replica.
    pub quorum: bool,
    /// Messages removed from between the first and the last.
    pub removed: u64,
}

/// Whether a stream holds a message in a range of sequences.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Presence {
    /// It holds at least one.
    Present,
    /// It holds none: any message that stood there has been removed.
    Absent,
    /// The leader's state does not reach the end of the range: nothing is known.
    Unreached,
}

impl LeaderView {
    pub(super) fn of(info: &Info, state: StreamState) -> Self {
        let replicas = info.config.num_replicas.max(1);
        let cluster = info.cluster.as_ref();
        let in_contact = cluster.map_or(0, |cluster| {
            cluster.replicas.iter().filter(|replica| !replica.offline && replica.active <= CONTACT_MAX).count()
        });
        let places = (state.last.0 + 1).saturating_sub(state.first.0);
        Self {
            state,
            replicas,
            clustered: cluster.is_some_and(|cluster| cluster.name.is_some()),
            leader: cluster.and_then(|cluster| cluster.leader.clone()),
            // The leader itself is one of the majority.
            quorum: replicas == 1 || in_contact + 1 > replicas / 2,
            removed: places.saturating_sub(info.state.messages),
        }
    }

    /// Whether the stream holds a message after `after` up to `through`, as far as this view alone proves it. `None`: the
    /// leader must be asked for the messages.
    pub fn presence(&self, after: StreamSeq, through: StreamSeq) -> Option<Presence> {
        let StreamState { first, last, .. } = self.state;
        if after >= through || first > through {
            return Some(if last < through { Presence::Unreached } else { Presence::Absent });
        }
        if last < through {
            return Some(Presence::Unreached);
        }
        // Nothing was removed from the middle: the message at `through` is held.
        (self.removed == 0).then_some(Presence::Present)
    }
}

/// Asks the leader for a stream's state.
///
/// # Errors
///
/// [`EnsureError::Unavailable`]; [`EnsureError::Mismatch`] when there is no such stream.
pub async fn leader_view(connection: &Connection, stream: &str) -> Result<LeaderView, EnsureError> {
    let info = known(connection, stream).await?;
    Ok(LeaderView::of(&info, state_of(stream, &info)?))
}

/// Whether a stream holds a message after `after` up to `through`, with the state that proves it.
///
/// Absence is concluded only from a leader whose applied state reached `through` before it was asked for the messages.
///
/// # Errors
///
/// [`EnsureError::Unavailable`], also when the leader changed in between; [`EnsureError::Mismatch`] when there is no such
/// stream.
pub async fn presence(
    connection: &Connection,
    stream: &str,
    after: StreamSeq,
    through: StreamSeq,
) -> Result<(LeaderView, Presence), EnsureError> {
    let view = leader_view(connection, stream).await?;
    if let Some(presence) = view.presence(after, through) {
        return Ok((view, presence));
    }
    let next = next_held(connection, stream, after.next()).await?;
    let presence = match next {
        Some(seq) if seq <= through => Presence::Present,
        // Messages are applied in order: a store that holds a later one lacks nothing before it.
        Some(_) => Presence::Absent,
        None => {
            let again = leader_view(connection, stream).await?;
            if again.leader != view.leader || again.state.created != view.state.created {
                return Err(EnsureError::Unavailable(format!("the leader of {stream} has changed; ask again")));
            }
            Presence::Absent
        }
    };
    Ok((view, presence))
}

/// The message at `seq` as the leader holds it; `None` when it holds none there. Slower than a direct get, which any
/// replica may answer, also one that lags.
///
/// # Errors
///
/// [`EnsureError::Unavailable`].
pub async fn leader_message(
    connection: &Connection,
    stream: &str,
    seq: StreamSeq,
) -> Result<Option<Stored>, EnsureError> {
    let handle = connection.jetstream().get_stream_no_info(stream).await.map_err(|error| unavailable(&error))?;
    held(handle.get_raw_message(seq.0).await)?.map(stored).transpose()
}

/// The first message on `subject` that the leader holds at `from` or later.
///
/// # Errors
///
/// [`EnsureError::Unavailable`].
pub async fn leader_next(
    connection: &Connection,
    stream: &str,
    subject: &str,
    from: StreamSeq,
) -> Result<Option<Stored>, EnsureError> {
    let handle = connection.jetstream().get_stream_no_info(stream).await.map_err(|error| unavailable(&error))?;
    held(handle.get_first_raw_message_by_subject(subject, from.0).await)?.map(stored).transpose()
}

/// The next messages on `subject` from `from` on, by a direct get; no message only if the leader has none either: the replica
/// that answers may lag.
///
/// # Errors
///
/// [`EnsureError::Unavailable`].
pub async fn next_page(
    connection: &Connection,
    stream: &str,
    subject: &str,
    from: StreamSeq,
    (messages_max, bytes_max): (usize, usize),
) -> Result<Vec<Stored>, EnsureError> {
    let page = direct::range(connection, stream, from, subject, messages_max, bytes_max).await;
    let mut page = page.map_err(|error| unavailable(&error))?;
    if page.is_empty() {
        page.extend(leader_next(connection, stream, subject, from).await?);
    }
    Ok(page)
}

fn stored(message: StreamMessage) -> Result<Stored, EnsureError> {
    let stored_at =
        Timestamp::from_nanosecond(message.time.unix_timestamp_nanos()).map_err(|error| unavailable(&error))?;
    Ok(Stored {
        seq: StreamSeq(message.sequence),
        stored_at,
        subject: message.subject.to_string(),
        headers: message.headers,
        payload: message.payload,
    })
}

/// The sequence of the first message that the leader holds at `from` or later.
async fn next_held(connection: &Connection, stream: &str, from: StreamSeq) -> Result<Option<StreamSeq>, EnsureError> {
    let handle = connection.jetstream().get_stream_no_info(stream).await.map_err(|error| unavailable(&error))?;
    let message = held(handle.get_first_raw_message_by_subject(">", from.0).await)?;
    Ok(message.map(|message| StreamSeq(message.sequence)))
}

fn held(answer: Result<StreamMessage, RawMessageError>) -> Result<Option<StreamMessage>, EnsureError> {
    match answer {
        Ok(message) => Ok(Some(message)),
        Err(error) if error.kind() == RawMessageErrorKind::NoMessageFound => Ok(None),
        Err(error) => Err(unavailable(&error)),
    }
}

fn unavailable(error: &dyn Display) -> EnsureError {
    EnsureError::Unavailable(error.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn view(first: u64, last: u64, removed: u64) -> LeaderView {
        let state = StreamState { created: Timestamp::UNIX_EPOCH, first: StreamSeq(first), last: StreamSeq(last) };
        LeaderView { state, replicas: 3, clustered: true, leader: Some("a".into()), quorum: true, removed }
    }

    #[test]
    fn absence_needs_a_state_that_reaches_the_end_of_the_range() {
        let presence = |view: LeaderView| view.presence(StreamSeq(5), StreamSeq(8));
        assert_eq!(presence(view(1, 7, 0)), Some(Presence::Unreached));
        assert_eq!(presence(view(1, 7, 3)), Some(Presence::Unreached));
        assert_eq!(presence(view(8, 7, 0)), Some(Presence::Unreached), "an empty stream that ends before the range");
        assert_eq!(presence(view(1, 8, 0)), Some(Presence::Present));
        assert_eq!(presence(view(8, 8, 0)), Some(Presence::Present));
        assert_eq!(presence(view(9, 8, 0)), Some(Presence::Absent), "an empty stream");
        assert_eq!(presence(view(9, 12, 0)), Some(Presence::Absent), "dropped from the front");
        assert_eq!(presence(view(1, 9, 1)), None, "a message was removed, perhaps one of these");
    }
}
