//! Questions about the log's end, asked beside everything else that a session does.

use std::{future::Future, pin::Pin, time::Duration};

use weft_index::projection::Mark;
use weft_nats::{
    async_nats::jetstream::stream::RawMessageErrorKind,
    connect::Connection,
    direct,
    streams::{self, StreamState},
};
use weft_proto::ids::StreamSeq;

use super::shard::Shard;

/// A question under way.
pub(super) type Probe = Pin<Box<dyn Future<Output = Probed> + Send>>;

/// The question what stands at a sequence, under way. `None`: the log does not say.
pub(super) type Confirm = Pin<Box<dyn Future<Output = Option<(StreamSeq, Mark)>> + Send>>;

/// The answer.
#[derive(Debug)]
pub(super) enum Probed {
    /// The stream as it is now.
    End(StreamState),
    /// There is no message behind `behind` up to `up_to`: they have been deleted.
    Nothing { behind: StreamSeq, up_to: StreamSeq },
    /// There is one.
    Something,
    /// No answer.
    Unavailable(String),
}

/// Where the log ends, asked after a pause, and not before the server is there.
pub(super) fn end(shard: &Shard, pause: Duration) -> Probe {
    let (connection, stream) = (shard.connection.clone(), shard.stream.clone());
    Box::pin(async move {
        tokio::time::sleep(pause).await;
        // Comes back now and then while there is no server, so that expired submissions are given up.
        let connected = tokio::time::timeout(Duration::from_secs(1), connection.connected()).await;
        if connected.is_err() {
            return Probed::Unavailable("not connected".into());
        }
        match streams::state(&connection, &stream).await {
            Ok(state) => Probed::End(state),
            Err(error) => Probed::Unavailable(error.to_string()),
        }
    })
}

/// What stands at `seq`.
pub(super) fn stands_at(shard: &Shard, seq: StreamSeq) -> Confirm {
    let (connection, stream) = (shard.connection.clone(), shard.stream.clone());
    Box::pin(async move {
        // A follower may not have it yet.
        let message = direct::get(&connection, &stream, seq).await.ok().flatten()?;
        Some((message.seq, Mark::of(&message)))
    })
}

/// Whether there is any message behind `behind`, of a log that is known to reach to `up_to`.
pub(super) fn nothing_between(shard: &Shard, behind: StreamSeq, up_to: StreamSeq) -> Probe {
    let (connection, stream) = (shard.connection.clone(), shard.stream.clone());
    Box::pin(async move { ask_between(&connection, &stream, behind, up_to).await })
}

/// As [`nothing_between`]. Asks the stream's leader: what a follower does not have yet would be taken for deleted.
pub(super) async fn ask_between(connection: &Connection, stream: &str, behind: StreamSeq, up_to: StreamSeq) -> Probed {
    let asked = async {
        let stream = connection.jetstream().get_stream_no_info(stream).await.map_err(|error| error.to_string())?;
        match stream.get_first_raw_message_by_subject(">", behind.next().0).await {
            Ok(message) => Ok(message.sequence > up_to.0),
            Err(error) if error.kind() == RawMessageErrorKind::NoMessageFound => Ok(true),
            Err(error) => Err(error.to_string()),
        }
    };
    match asked.await {
        Ok(true) => Probed::Nothing { behind, up_to },
        Ok(false) => Probed::Something,
        Err(reason) => Probed::Unavailable(reason),
    }
}
