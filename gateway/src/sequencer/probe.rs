//! Questions to the log that run in parallel with the session: its end and identity, whether a range holds messages,
//! and the message at a sequence.

use std::{future::Future, pin::Pin, time::Duration};

use tokio::time::{Instant, timeout};
use weft_index::projection::{Mark, Position};
use weft_nats::{
    connect::Connection,
    direct,
    message::Stored,
    position::{self, PositionCheck},
    streams::{self, EnsureError, LeaderView, Presence},
};
use weft_proto::ids::StreamSeq;

use super::shard::Shard;

/// Longest wait for an answer: far longer than a leader takes, and short enough that a missing leader is noticed and
/// expired senders are answered before others expire.
const ANSWER_MAX: Duration = Duration::from_secs(2);

/// A question under way.
pub(super) type EndProbe = Pin<Box<dyn Future<Output = ProbeAnswer> + Send>>;

/// The question for the message at a sequence, under way. `None`: no answer.
pub(super) type TimestampProbe = Pin<Box<dyn Future<Output = Option<TimestampAnswer>> + Send>>;

/// The answer.
#[derive(Debug)]
pub(super) enum ProbeAnswer {
    /// The stream as its leader reports it, compared with the position that was known. When it was asked, everything up to
    /// `reached` was known.
    Log { asked_at: Instant, reached: StreamSeq, view: LeaderView, check: PositionCheck },
    /// Whether there is a message after `after` up to `through`, and the state that says so.
    Range { after: StreamSeq, through: StreamSeq, view: LeaderView, presence: Presence },
    /// No answer.
    Unavailable(String),
}

/// The message at a sequence.
#[derive(Debug)]
pub(super) struct TimestampAnswer {
    pub message: Stored,
    /// True if the message known before it is unchanged, as far as the answer says.
    pub follows: bool,
}

/// Where the log ends, which is known up to `reached`, and whether `known` is still a position in it: asked after a pause,
/// and not before the server is there.
pub(super) fn log(shard: &Shard, pause: Duration, known: Position, reached: StreamSeq) -> EndProbe {
    let (connection, stream) = (shard.connection.clone(), shard.stream.clone());
    Box::pin(async move {
        tokio::time::sleep(pause).await;
        // Comes back now and then while there is no server, so that expired submissions are given up.
        if timeout(ANSWER_MAX, connection.connected()).await.is_err() {
            return ProbeAnswer::Unavailable("not connected".into());
        }
        let asked_at = Instant::now();
        match answer(position::verify_once(&connection, &stream, &known)).await {
            Ok((view, check)) => ProbeAnswer::Log { asked_at, reached, view, check },
            Err(reason) => ProbeAnswer::Unavailable(reason),
        }
    })
}

/// Whether there is any message after `after` up to `through`.
pub(super) fn range(shard: &Shard, after: StreamSeq, through: StreamSeq) -> EndProbe {
    let (connection, stream) = (shard.connection.clone(), shard.stream.clone());
    Box::pin(async move {
        match answer(streams::presence(&connection, &stream, after, through)).await {
            Ok((view, presence)) => ProbeAnswer::Range { after, through, view, presence },
            Err(reason) => ProbeAnswer::Unavailable(reason),
        }
    })
}

/// Asks for the message at `seq`, and whether the log still holds `known`, the newest earlier message that was read or
/// confirmed: an append compares sequences only, and would also follow a restored log that has grown to the same
/// length.
pub(super) fn stands_at(shard: &Shard, seq: StreamSeq, known: Option<(StreamSeq, Mark)>) -> TimestampProbe {
    let (connection, stream) = (shard.connection.clone(), shard.stream.clone());
    Box::pin(async move {
        let earlier = async {
            match known.filter(|(before, _)| *before < seq) {
                Some((before, mark)) => at(&connection, &stream, before).await.map(|found| Mark::of(&found) == mark),
                None => None,
            }
        };
        let (message, same) = tokio::join!(at(&connection, &stream, seq), earlier);
        Some(TimestampAnswer { message: message?, follows: same != Some(false) })
    })
}

/// The message at `seq`, as any replica knows it. `None`: it may not have it yet.
async fn at(connection: &Connection, stream: &str, seq: StreamSeq) -> Option<Stored> {
    direct::get(connection, stream, seq).await.ok().flatten()
}

async fn answer<T>(asked: impl Future<Output = Result<T, EnsureError>>) -> Result<T, String> {
    match timeout(ANSWER_MAX, asked).await {
        Ok(answer) => answer.map_err(|error| error.to_string()),
        Err(_) => Err(format!("no answer in {} s", ANSWER_MAX.as_secs())),
    }
}
