//! A few messages by sequence or subject, by direct get: no consumer, no acks, one round trip for many.

use weft_proto::ids::StreamSeq;

use crate::{connect::Connection, message::Stored};

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

/// The message at `seq`; `None` when the stream has none there.
///
/// # Errors
///
/// [`DirectError`].
pub async fn get(connection: &Connection, stream: &str, seq: StreamSeq) -> Result<Option<Stored>, DirectError> {
    let _ = (connection, stream, seq);
    todo!()
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
    let _ = (connection, stream, subject);
    todo!()
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
    let _ = (connection, stream, from, subject, messages_max, bytes_max);
    todo!()
}
