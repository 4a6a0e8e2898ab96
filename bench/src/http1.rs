//! As much of HTTP/1.1 as both ends of a benchmark need: where a message ends.

use anyhow::{Context as _, ensure};

/// The most that a message's head may take.
const HEAD_BYTES_MAX: usize = 16 * 1024;

/// A message whose head is there, and perhaps its body.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Message<'a> {
    /// Such as `HTTP/1.1 200 OK`.
    pub first_line: &'a str,
    /// The lines of its headers.
    pub headers: &'a str,
    /// Where the body begins.
    pub body_at: usize,
    /// Where the message ends.
    pub end: usize,
}

/// The response at the beginning of `bytes`, once its head is complete.
///
/// # Errors
///
/// When it is no message, or does not say how long it is.
pub fn message(bytes: &[u8]) -> anyhow::Result<Option<Message<'_>>> {
    let Some(end) = bytes.windows(4).position(|bytes| bytes == b"\r\n\r\n") else {
        ensure!(bytes.len() <= HEAD_BYTES_MAX, "a head without an end");
        return Ok(None);
    };
    let head = std::str::from_utf8(&bytes[..end])?;
    let (first_line, headers) = head.split_once("\r\n").unwrap_or((head, ""));
    let length = number(headers, "content-length").context("no content-length")?;
    Ok(Some(Message { first_line, headers, body_at: end + 4, end: end + 4 + length }))
}

/// The value of a header that is a number.
pub fn number(headers: &str, name: &str) -> Option<usize> {
    let mut fields = headers.split("\r\n").filter_map(|line| line.split_once(':'));
    let (_, value) = fields.find(|(found, _)| found.eq_ignore_ascii_case(name))?;
    value.trim().parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_message_is_known_once_its_head_is_there() {
        assert_eq!(message(b"HTTP/1.1 202 Accepted\r\ncontent-le").unwrap(), None);
        let answer = b"HTTP/1.1 202 Accepted\r\nContent-Length: 2\r\n\r\n{";
        let headers = "Content-Length: 2";
        let known = Message { first_line: "HTTP/1.1 202 Accepted", headers, body_at: 44, end: 46 };
        assert_eq!(message(answer).unwrap(), Some(known));
        assert!(message(b"HTTP/1.1 202 Accepted\r\n\r\n").is_err(), "no length");
    }
}
