//! Streams of users, on the mesh's server or another one: publishing with an expectation, and reading single messages from
//! the leader.

use std::{fmt, net::SocketAddr, time::Duration};

use async_nats::{
    Client, ConnectOptions, HeaderMap, Request,
    client::RequestErrorKind,
    connection::State,
    jetstream::{self, ErrorCode, message::StreamMessage, stream::LastRawMessageErrorKind},
};
use serde::Deserialize;
use tokio::time::{interval, timeout};
use weft_proto::ids::StreamSeq;

use crate::{
    api_error::ApiError, connect::Connection, error_chain::in_one_line, message::Outgoing, server::APP_API_PREFIX,
};

/// The stream sequence of the last message of a subject, as a publish expects it. The server stores it with the message, so
/// that each message names the one before it on its subject.
pub const EXPECTED_LAST_SUBJECT_SEQUENCE: &str = "Nats-Expected-Last-Subject-Sequence";
/// The stream that must store the message.
pub const EXPECTED_STREAM: &str = "Nats-Expected-Stream";
/// Timeout of connecting to one address.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// Interval of pings to an idle server, and timeout of a read.
const PING_INTERVAL: Duration = Duration::from_secs(3);
const READ_TIMEOUT: Duration = Duration::from_secs(5);
/// Interval of checks whether a connection is still there while an ack is awaited.
const LOST_CHECK_INTERVAL: Duration = Duration::from_millis(100);
/// First characters of the seed of a user's nkey.
const NKEY_SEED_OF_USER: &str = "SU";
/// Messages queued in a client that is disconnected.
const QUEUE: usize = 512;

/// JetStream as one user sees it.
#[derive(Clone, Debug)]
pub struct UserStreams {
    client: Client,
    jetstream: jetstream::Context,
}

/// The server's answer to a publish.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Ack {
    /// Its place in the stream; of a duplicate, that of the first.
    pub seq: StreamSeq,
    /// The stream held a message of this id, and has stored nothing.
    pub duplicate: bool,
}

/// Why a message was not stored, or may not have been.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum PublishError {
    /// The subject has another last message, or one that is being stored.
    Conflict,
    /// No connection, no stream on the subject, no leader, or a server that is busy. Not stored.
    Unavailable(String),
    /// The connection was lost while the ack was awaited: unknown.
    ConnectionLost,
    /// The stream is full, or its disk: not stored.
    Full(String),
    /// The message is larger than the stream or the server allows: never stored.
    TooLarge(String),
    /// Any other refusal: not stored.
    Refused(String),
    /// An ack that cannot be read: unknown.
    Unknown(String),
}

impl fmt::Display for PublishError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Conflict => f.write_str("the subject has another last message"),
            Self::ConnectionLost => f.write_str("connection lost before the ack"),
            Self::Unavailable(problem)
            | Self::Full(problem)
            | Self::TooLarge(problem)
            | Self::Refused(problem)
            | Self::Unknown(problem) => f.write_str(problem),
        }
    }
}

#[derive(Debug, Deserialize)]
struct Answer {
    #[serde(default)]
    seq: u64,
    #[serde(default)]
    duplicate: bool,
    error: Option<ApiError>,
}

impl UserStreams {
    /// Those that the mesh's server shows to the user of this connection.
    pub fn on_own_server(connection: &Connection) -> Self {
        let prefix =
            if connection.has_accounts() { APP_API_PREFIX.to_owned() } else { connection.api_prefix().to_owned() };
        Self::with_prefix(connection.client().clone(), &prefix)
    }

    /// Connects to another server. The addresses are those of its name, checked by the caller, and the only ones that the
    /// client connects to. `credentials` is the text of a NATS credentials file, or the seed of a user's nkey. `tls` is used where
    /// the server asks for TLS, or `tls_required`.
    ///
    /// # Errors
    ///
    /// The problem, in one line.
    pub async fn connect(
        addresses: &[SocketAddr],
        credentials: &str,
        tls: rustls::ClientConfig,
        tls_required: bool,
        name: &str,
    ) -> Result<Self, String> {
        let mut options = ConnectOptions::new()
            .name(name)
            .connection_timeout(CONNECT_TIMEOUT)
            .ping_interval(PING_INTERVAL)
            .request_timeout(Some(READ_TIMEOUT))
            .client_capacity(QUEUE)
            // A server must not lead the client to addresses that were not checked.
            .ignore_discovered_servers();
        options = match credentials.trim() {
            "" => options,
            // A file of a user's nkey, without a JWT.
            seed if seed.starts_with(NKEY_SEED_OF_USER) => options.nkey(seed.to_owned()),
            _ => options.credentials(credentials).map_err(|error| format!("creds: {error}"))?,
        };
        options = options.tls_client_config(tls).require_tls(tls_required);
        let addresses: Vec<String> = addresses.iter().map(|address| format!("nats://{address}")).collect();
        let client = options.connect(addresses.as_slice()).await.map_err(|error| in_one_line(&error))?;
        Ok(Self::with_prefix(client, "$JS.API"))
    }

    fn with_prefix(client: Client, prefix: &str) -> Self {
        let jetstream =
            jetstream::context::ContextBuilder::new().api_prefix(prefix).timeout(READ_TIMEOUT).build(client.clone());
        Self { client, jetstream }
    }

    /// Whether the server is there at this moment.
    pub fn is_connected(&self) -> bool {
        self.client.connection_state() == State::Connected
    }

    /// Publishes a message into `stream`. `last`: the last message of its subject, 0: none; `None`: not compared.
    ///
    /// # Errors
    ///
    /// [`PublishError`]. The caller bounds the wait.
    pub async fn publish(
        &self,
        stream: &str,
        message: &Outgoing,
        last: Option<StreamSeq>,
    ) -> Result<Ack, PublishError> {
        // While it is disconnected the client queues: the message would arrive when no caller waits for it any more.
        if !self.is_connected() {
            return Err(PublishError::Unavailable("not connected".into()));
        }
        let headers: HeaderMap = match &last {
            Some(last) => {
                message.headers.to_wire(&[(EXPECTED_STREAM, &stream), (EXPECTED_LAST_SUBJECT_SEQUENCE, last)])
            }
            None => message.headers.to_wire(&[(EXPECTED_STREAM, &stream)]),
        };
        let request = Request::new().headers(headers).payload(message.payload.clone()).timeout(None);
        let answer = tokio::select! {
            answer = self.client.send_request(message.subject.clone(), request) => answer,
            () = self.lost() => return Err(PublishError::ConnectionLost),
        };
        match answer {
            Ok(answer) => read(&answer.payload),
            Err(error) => Err(match error.kind() {
                RequestErrorKind::NoResponders => {
                    PublishError::Unavailable(format!("no stream listens on {}, or it has no leader", message.subject))
                }
                RequestErrorKind::MaxPayloadExceeded => PublishError::TooLarge(error.to_string()),
                RequestErrorKind::InvalidSubject => PublishError::Refused(error.to_string()),
                _ => PublishError::Unknown(error.to_string()),
            }),
        }
    }

    /// The last message of a subject, from the leader.
    ///
    /// # Errors
    ///
    /// The problem, in one line.
    pub async fn last(&self, stream: &str, subject: &str) -> Result<Option<StreamMessage>, String> {
        let stream = self.stream(stream).await?;
        let read = timeout(READ_TIMEOUT, stream.get_last_raw_message_by_subject(subject)).await;
        match read.map_err(|_| no_answer())? {
            Ok(message) => Ok(Some(message)),
            Err(error) if error.kind() == LastRawMessageErrorKind::NoMessageFound => Ok(None),
            Err(error) if is_no_message(&error.kind()) => Ok(None),
            Err(error) => Err(in_one_line(&error)),
        }
    }

    /// The message at a place of a stream, from the leader.
    ///
    /// # Errors
    ///
    /// The problem, in one line.
    pub async fn get(&self, stream: &str, seq: StreamSeq) -> Result<Option<StreamMessage>, String> {
        let stream = self.stream(stream).await?;
        match timeout(READ_TIMEOUT, stream.get_raw_message(seq.0)).await.map_err(|_| no_answer())? {
            Ok(message) => Ok(Some(message)),
            Err(error) if error.kind() == LastRawMessageErrorKind::NoMessageFound => Ok(None),
            Err(error) if is_no_message(&error.kind()) => Ok(None),
            Err(error) => Err(in_one_line(&error)),
        }
    }

    async fn stream(&self, name: &str) -> Result<jetstream::stream::Stream<()>, String> {
        if !self.is_connected() {
            return Err("not connected".into());
        }
        self.jetstream.get_stream_no_info(name).await.map_err(|error| in_one_line(&error))
    }

    /// Waits until the connection is lost, also when another has taken its place.
    async fn lost(&self) {
        let connects = || self.client.statistics().connects.load(std::sync::atomic::Ordering::Relaxed);
        let before = connects();
        let mut ticks = interval(LOST_CHECK_INTERVAL);
        while self.is_connected() && connects() == before {
            ticks.tick().await;
        }
    }
}

fn is_no_message(kind: &LastRawMessageErrorKind) -> bool {
    matches!(kind, LastRawMessageErrorKind::JetStream(error) if error.error_code() == ErrorCode::NO_MESSAGE_FOUND)
}

fn no_answer() -> String {
    format!("no answer within {} s", READ_TIMEOUT.as_secs())
}

/// The error codes of nats-server 2.15, `server/errors.json`.
fn read(answer: &[u8]) -> Result<Ack, PublishError> {
    let answer: Answer = serde_json::from_slice(answer)
        .map_err(|error| PublishError::Unknown(format!("an ack that cannot be read: {error}")))?;
    let Some(ApiError { code, err_code, description }) = answer.error else {
        return Ok(Ack { seq: StreamSeq(answer.seq), duplicate: answer.duplicate });
    };
    Err(match err_code {
        // Wrong last sequence; the same while a message of the subject is being stored; a duplicate that is being stored.
        10071 | 10164 | 10158 => PublishError::Conflict,
        // The message exceeds `max_msg_size` or `max_payload`.
        10054 | 10097 => PublishError::TooLarge(description),
        // Storing failed: at a limit of the stream, or the disk.
        10077 | 10047 | 10023 => PublishError::Full(description),
        _ if matches!(code, 429 | 503) => PublishError::Unavailable(description),
        _ => PublishError::Refused(format!("{description} ({err_code})")),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn answers_are_told_apart() {
        let of = |code: u16, err_code: u64, text: &str| {
            read(
                format!(r#"{{"error":{{"code":{code},"err_code":{err_code},"description":"{text}"}},"seq":0}}"#)
                    .as_bytes(),
            )
        };
        assert_eq!(read(br#"{"stream":"S","seq":7}"#), Ok(Ack { seq: StreamSeq(7), duplicate: false }));
        assert_eq!(read(br#"{"stream":"S","seq":7,"duplicate":true}"#), Ok(Ack { seq: StreamSeq(7), duplicate: true }));
        for code in [10071, 10164, 10158] {
            assert_eq!(of(400, code, "wrong last sequence: 9"), Err(PublishError::Conflict));
        }
        assert!(matches!(of(400, 10054, "message size exceeds maximum allowed"), Err(PublishError::TooLarge(_))));
        assert!(matches!(of(503, 10077, "maximum messages exceeded"), Err(PublishError::Full(_))));
        assert!(matches!(
            of(503, 10008, "JetStream system temporarily unavailable"),
            Err(PublishError::Unavailable(_))
        ));
        assert!(matches!(of(400, 10060, "expected stream does not match"), Err(PublishError::Refused(_))));
        assert!(matches!(read(b""), Err(PublishError::Unknown(_))));
    }
}
