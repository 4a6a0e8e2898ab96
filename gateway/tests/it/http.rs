//! A sender and reader on a bare socket, so that a test can stop in the middle, hang up, or send what no client would.

use std::{collections::BTreeMap, io, net::SocketAddr};

use jiff::Timestamp;
use serde_json::Value;
use standardwebhooks::Webhook;
use tokio::{
    io::{AsyncRead, AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
};

/// The secret of every source in these tests.
pub const SECRET: &str = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw";

/// A request as it goes over the wire.
#[derive(Debug, Clone)]
pub struct Request {
    pub head: String,
    pub body: Vec<u8>,
}

impl Request {
    /// The same with another key.
    pub fn with_key(self, key: &str) -> Self {
        Self { head: self.head.replacen(crate::mesh::READ_TOKEN, key, 1), ..self }
    }
}

/// An answer.
#[derive(Debug)]
pub struct Answer {
    pub status: u16,
    pub headers: BTreeMap<String, String>,
    /// The body; a string where it is not JSON.
    pub json: Value,
}

impl Answer {
    /// A member of the body that is text.
    pub fn text(&self, member: &str) -> &str {
        self.json[member].as_str().unwrap_or_else(|| panic!("{member} in {self:?}"))
    }

    /// The code of a problem.
    pub fn code(&self) -> &str {
        assert_eq!(self.headers["content-type"], "application/problem+json");
        self.text("code")
    }
}

/// A webhook signed by the reference library. `path` is what follows `/api/v1/webhooks/`.
pub fn webhook(path: &str, id: &str, body: &str) -> Request {
    let at = Timestamp::now().as_second();
    let signature = Webhook::new(SECRET).unwrap().sign(id, at, body.as_bytes()).unwrap();
    let at = at.to_string();
    post(path, &[("webhook-id", id), ("webhook-timestamp", &at), ("webhook-signature", &signature)], body)
}

/// A webhook with these headers. `path` is what follows `/api/v1/webhooks/`.
pub fn post(path: &str, headers: &[(&str, &str)], body: &str) -> Request {
    let headers: String = headers.iter().map(|(name, value)| format!("{name}: {value}\r\n")).collect();
    let head = format!(
        "POST /api/v1/webhooks/{path} HTTP/1.1\r\nhost: weft\r\nconnection: close\r\ncontent-length: {}\r\n\
         {headers}\r\n",
        body.len()
    );
    Request { head, body: body.into() }
}

/// A read with the key that the tests' gateways take.
pub fn get(path: &str) -> Request {
    let key = crate::mesh::READ_TOKEN;
    let head = format!("GET {path} HTTP/1.1\r\nhost: weft\r\nconnection: close\r\nauthorization: Bearer {key}\r\n\r\n");
    Request { head, body: Vec::new() }
}

/// Events to `POST /api/v1/events`, with the key that the tests' gateways take.
pub fn events(headers: &[(&str, &str)], body: impl Into<Vec<u8>>) -> Request {
    let (key, body) = (crate::mesh::READ_TOKEN, body.into());
    let headers: String = headers.iter().map(|(name, value)| format!("{name}: {value}\r\n")).collect();
    let head = format!(
        "POST /api/v1/events HTTP/1.1\r\nhost: weft\r\nconnection: close\r\ncontent-length: {}\r\nx-api-key: {key}\r\n\
         {headers}\r\n",
        body.len()
    );
    Request { head, body }
}

/// Sends a request and reads the answer to its end.
pub async fn send(to: SocketAddr, request: &Request) -> io::Result<Answer> {
    let mut socket = TcpStream::connect(to).await?;
    socket.write_all(request.head.as_bytes()).await?;
    socket.write_all(&request.body).await?;
    answer(&mut socket).await
}

/// Reads an answer on a connection that the server closes after it.
pub async fn answer(socket: &mut (impl AsyncRead + Unpin)) -> io::Result<Answer> {
    let mut bytes = Vec::new();
    socket.read_to_end(&mut bytes).await?;
    let text = String::from_utf8(bytes).map_err(io::Error::other)?;
    let (head, body) = text.split_once("\r\n\r\n").ok_or(io::ErrorKind::UnexpectedEof)?;
    let mut lines = head.lines();
    let status =
        lines.next().and_then(|line| line.split(' ').nth(1)?.parse().ok()).ok_or(io::ErrorKind::InvalidData)?;
    let headers = lines
        .filter_map(|line| line.split_once(": "))
        .map(|(name, value)| (name.to_ascii_lowercase(), value.to_owned()))
        .collect();
    let json = serde_json::from_str(body).unwrap_or_else(|_| body.into());
    Ok(Answer { status, headers, json })
}
