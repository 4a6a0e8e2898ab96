//! Appends to the streams that only the shard's owner writes, repeated until their result is certain.
//!
//! The result of an append whose ack is lost follows from the record after the expected sequence: if it is this one, it was
//! stored; if it is another owner's, this owner is fenced; if there is none, the append is repeated with the same
//! expectation, so only one copy can be stored.

use std::time::Duration;

use bytes::Bytes;
use weft_nats::{
    append::{AppendErrorKind, Appender},
    backoff::Backoff,
    direct,
    message::Outgoing,
    streams,
};
use weft_proto::ids::StreamSeq;

use crate::log::Log;

/// Pauses between two tries.
const RETRY: Backoff = Backoff::new(Duration::from_millis(50), Duration::from_secs(1));

/// Another owner has written, or the stream is another one by now.
#[derive(Debug)]
pub(crate) struct Fenced;

/// Appends one record to `stream` after `expected`, however long it takes: a shard that cannot commit makes no progress, and
/// loses its lease if that lasts.
pub(crate) async fn append_until_stored(
    log: Log,
    stream: String,
    mut appender: Appender,
    expected: StreamSeq,
    message: Outgoing,
) -> Result<(Appender, StreamSeq), Fenced> {
    let mut failures = 0;
    // A shard is delivered without checkpoints, but not without outcomes.
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
        tracing::warn!(stream, problem, "append failed; retrying");
        note(Some(problem));
        failures += 1;
        tokio::time::sleep(RETRY.after(failures)).await;
        log.connection.connected().await;
    }
}

/// The record after a position.
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
    // A stream that ends before a sequence that was read is another one, or an earlier copy.
    if state.last < expected {
        return Ok(NextRecord::Foreign);
    }
    // None where a replica lags: tried again.
    let next = direct::range(&log.connection, stream, expected.next(), ">", 1, payload.len() * 2 + 4096).await;
    match next.map_err(|error| error.to_string())?.first() {
        Some(message) if message.payload == *payload => Ok(NextRecord::Ours(message.seq)),
        Some(_) => Ok(NextRecord::Foreign),
        None => Ok(NextRecord::Absent),
    }
}
