//! A few messages by sequence or subject, by direct get: no consumer, no acks, one round trip for many.

use std::time::Duration;

use async_nats::{HeaderMap, Message, StatusCode, client::RequestErrorKind};
use futures_util::StreamExt as _;
use serde::Serialize;
use weft_proto::ids::StreamSeq;

use crate::{connect::Connection, message::Stored};

/// How long the server may take for an answer or for the next message of one: a cold block of the store is read in well
/// under a second.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(5);

/// Why a direct get gave no answer.
#[derive(Debug, thiserror::Error)]
pub enum DirectError {
    /// No server, no stream, no answer in time.
    #[error("the log does not answer: {0}")]
    Unavailable(String),
    /// The answer makes no sense.
    #[error("the log answers {0}")]
    Malformed(String),
}

/// A request of `$JS.API.DIRECT.GET.<stream>`.
#[derive(Debug, Default, Serialize)]
struct Query<'a> {
    #[serde(skip_serializing_if = "Option::is_none")]
    seq: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    last_by_subj: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    next_by_subj: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    batch: Option<usize>,
    #[serde(skip_serializing_if = "Option::is_none")]
    max_bytes: Option<usize>,
}

impl Query<'_> {
    fn encode(&self) -> Result<Vec<u8>, DirectError> {
        serde_json::to_vec(self).map_err(|error| DirectError::Malformed(error.to_string()))
    }
}

/// The message at `seq`; `None` when the stream has none there.
///
/// # Errors
///
/// [`DirectError`].
pub async fn get(connection: &Connection, stream: &str, seq: StreamSeq) -> Result<Option<Stored>, DirectError> {
    one(connection, stream, &Query { seq: Some(seq.0), ..Query::default() }).await
}

/// The newest message of a subject (wildcards allowed); `None` when there is none.
///
/// # Errors
///
/// [`DirectError`].
pub async fn last_by_subject(
    connection: &Connection,
    stream: &str,
    subject: &str,
) -> Result<Option<Stored>, DirectError> {
    one(connection, stream, &Query { last_by_subj: Some(subject), ..Query::default() }).await
}

/// Messages of `subject` (wildcards allowed; `>` for all) from `from` on, in order, at most `messages_max` and about
/// `bytes_max` bytes. Fewer than there are is normal; none means that there is none.
///
/// # Errors
///
/// [`DirectError`].
pub async fn range(
    connection: &Connection,
    stream: &str,
    from: StreamSeq,
    subject: &str,
    messages_max: usize,
    bytes_max: usize,
) -> Result<Vec<Stored>, DirectError> {
    check_connected(connection)?;
    let query = Query {
        seq: Some(from.0.max(1)),
        next_by_subj: Some(subject),
        batch: Some(messages_max.max(1)),
        max_bytes: Some(bytes_max.max(1)),
        ..Query::default()
    };
    let client = connection.client();
    let inbox = client.new_inbox();
    let unavailable = |error: &dyn std::fmt::Display| DirectError::Unavailable(error.to_string());
    let mut answers = client.subscribe(inbox.clone()).await.map_err(|error| unavailable(&error))?;
    client
        .publish_with_reply(get_subject(connection, stream), inbox, query.encode()?.into())
        .await
        .map_err(|error| unavailable(&error))?;
    let mut messages = Vec::new();
    // The server sends at most `batch` messages and one closing status.
    for _ in 0..=messages_max.max(1) {
        let answer = tokio::time::timeout(ANSWER_TIMEOUT, answers.next())
            .await
            .map_err(|_| DirectError::Unavailable(format!("no answer in {} s", ANSWER_TIMEOUT.as_secs())))?
            .ok_or_else(|| DirectError::Unavailable("connection closed".into()))?;
        match stored(answer)? {
            Answer::Message(message) => messages.push(*message),
            Answer::End => break,
        }
    }
    Ok(messages)
}

async fn one(connection: &Connection, stream: &str, query: &Query<'_>) -> Result<Option<Stored>, DirectError> {
    check_connected(connection)?;
    let request = async_nats::Request::new().payload(query.encode()?.into()).timeout(Some(ANSWER_TIMEOUT));
    let answer =
        connection.client().send_request(get_subject(connection, stream), request).await.map_err(
            |error| match error.kind() {
                RequestErrorKind::NoResponders => DirectError::Unavailable(format!("no stream {stream}, or no leader")),
                _ => DirectError::Unavailable(error.to_string()),
            },
        )?;
    match stored(answer)? {
        Answer::Message(message) => Ok(Some(*message)),
        Answer::End => Ok(None),
    }
}

fn get_subject(connection: &Connection, stream: &str) -> String {
    connection.api_subject(format_args!("DIRECT.GET.{stream}"))
}

/// While it is disconnected the client would only queue.
fn check_connected(connection: &Connection) -> Result<(), DirectError> {
    if connection.is_connected() { Ok(()) } else { Err(DirectError::Unavailable("not connected".into())) }
}

enum Answer {
    Message(Box<Stored>),
    /// No message there, or the end of a range.
    End,
}

fn stored(answer: Message) -> Result<Answer, DirectError> {
    match answer.status {
        None => {}
        Some(StatusCode::NOT_FOUND) => return Ok(Answer::End),
        Some(status) if status.as_u16() == 204 => return Ok(Answer::End),
        Some(StatusCode::NO_RESPONDERS) => return Err(DirectError::Unavailable("no stream, or no leader".into())),
        Some(status) => {
            let text = answer.description.as_deref().unwrap_or_default();
            return Err(DirectError::Malformed(format!("{status} {text}")));
        }
    }
    let headers = answer.headers.unwrap_or_default();
    let text = |name: &'static str| {
        headers.get(name).map(|value| value.as_str()).ok_or_else(|| DirectError::Malformed(format!("without {name}")))
    };
    let malformed = |name: &str| DirectError::Malformed(format!("with a malformed {name}"));
    let seq = text("Nats-Sequence")?.parse().map_err(|_| malformed("Nats-Sequence"))?;
    let stored_at = text("Nats-Time-Stamp")?.parse().map_err(|_| malformed("Nats-Time-Stamp"))?;
    let subject = text("Nats-Subject")?.to_owned();
    Ok(Answer::Message(Box::new(Stored {
        seq: StreamSeq(seq),
        stored_at,
        subject,
        headers: own_headers(headers),
        payload: answer.payload,
    })))
}

/// The message's own headers, without those of the answer.
fn own_headers(headers: HeaderMap) -> HeaderMap {
    const OF_THE_ANSWER: [&str; 6] =
        ["Nats-Stream", "Nats-Subject", "Nats-Sequence", "Nats-Time-Stamp", "Nats-Num-Pending", "Nats-Last-Sequence"];
    headers
        .iter()
        .filter(|(name, _)| !OF_THE_ANSWER.contains(&AsRef::<str>::as_ref(*name)))
        .flat_map(|(name, values)| values.iter().map(move |value| (name.clone(), value.clone())))
        .collect()
}
