//! One append to a stream that only the shard's owner writes, until it is certain what became of it.
//!
//! An append whose answer is lost is found by reading on: the record behind our position is ours, then it was stored;
//! or another owner's, then we are fenced; or there is none, then the same append goes again with the same expectation,
//! so that of two copies only one can be stored.

use std::time::Duration;

use bytes::Bytes;
use weft_nats::{
    append::{AppendErrorKind, Appender},
    direct,
    message::Outgoing,
    streams,
};
use weft_proto::ids::StreamSeq;

use crate::log::Log;

/// The pauses between two tries.
const PAUSE: (Duration, Duration) = (Duration::from_millis(50), Duration::from_secs(1));

/// Another owner has written, or the stream is no longer the one that was read.
#[derive(Debug)]
pub(crate) struct Fenced;

/// Appends one record to `stream` behind `expected`, however long it takes: a shard whose commits cannot be made stands still, and
/// its lease ends it when that lasts.
pub(crate) async fn append_until_stored(
    log: Log,
    stream: String,
    mut appender: Appender,
    expected: StreamSeq,
    message: Outgoing,
) -> Result<(Appender, StreamSeq), Fenced> {
    let mut pause = PAUSE.0;
    // Without checkpoints a shard is delivered all the same.
    let is_essential = stream == log.layout.outcomes_stream(log.shard);
    let note = |problem: Option<String>| {
        if is_essential {
            log.connection.note_write(&stream, problem);
        }
    };
    loop {
        let problem = match appender.append(expected, std::slice::from_ref(&message)).await {
            Ok(seq) => {
                note(None);
                return Ok((appender, seq));
            }
            Err(error) => match error.kind {
                AppendErrorKind::Conflict { .. } | AppendErrorKind::Unknown(_) => {
                    match record_after(&log, &stream, expected, &message.payload).await {
                        Ok(NextRecord::Ours(seq)) => {
                            note(None);
                            return Ok((appender, seq));
                        }
                        Ok(NextRecord::Foreign) => return Err(Fenced),
                        Ok(NextRecord::Absent) => error.kind.to_string(),
                        Err(problem) => problem,
                    }
                }
                AppendErrorKind::Unavailable(_) | AppendErrorKind::Full(_) | AppendErrorKind::Refused(_) => {
                    error.kind.to_string()
                }
            },
        };
        tracing::warn!(stream, problem, "append is retried");
        note(Some(problem));
        tokio::time::sleep(pause).await;
        pause = (pause * 2).min(PAUSE.1);
        log.connection.connected().await;
    }
}

/// What stands behind a position.
enum NextRecord {
    Ours(StreamSeq),
    Foreign,
    Absent,
}

async fn record_after(log: &Log, stream: &str, expected: StreamSeq, payload: &Bytes) -> Result<NextRecord, String> {
    let state = streams::state(&log.connection, stream).await.map_err(|error| error.to_string())?;
    if state.last == expected {
        return Ok(NextRecord::Absent);
    }
    // A stream that ends before what we have read of it is another one, or a copy of an earlier day.
    if state.last < expected {
        return Ok(NextRecord::Foreign);
    }
    // None where a replica lags behind: asked again.
    let next = direct::range(&log.connection, stream, expected.next(), ">", 1, payload.len() * 2 + 4096).await;
    match next.map_err(|error| error.to_string())?.first() {
        Some(message) if message.payload == *payload => Ok(NextRecord::Ours(message.seq)),
        Some(_) => Ok(NextRecord::Foreign),
        None => Ok(NextRecord::Absent),
    }
}
