//! Message boundaries of an HTTP/1 connection, as far as RFC 9112 section 6 needs them.
//!
//! hyper removes `Content-Length` from a request that has `Transfer-Encoding` as well, so that nothing above it can see the
//! conflict. A proxy that uses the other header would see other requests on the connection than we do (request
//! smuggling), so such a request is refused. This reader follows the same bytes as hyper and records, for each head,
//! whether both were present. It decides nothing else: hyper refuses what this reader cannot follow.

use std::collections::VecDeque;

/// Bytes of a line that are inspected: the name of a header, and a length or a coding.
const LINE_BYTES_MAX: usize = 128;
/// The first line of a connection that speaks HTTP/2 with prior knowledge.
const PREFACE: &[u8] = b"PRI * HTTP/2.0";

/// Follows the requests of one connection.
#[derive(Debug, Default)]
pub struct Framing {
    state: State,
    line: Line,
    head: Head,
    /// One entry for each head that was read: whether its framing is in conflict.
    conflicts: VecDeque<bool>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
enum State {
    /// Before a request line; empty lines are skipped.
    #[default]
    Start,
    /// Within the header lines.
    Headers,
    /// Within a body, with the number of remaining bytes.
    Body(u64),
    /// Before a chunk's size.
    ChunkSize,
    /// Within a chunk, with the line end after it.
    Chunk(u64),
    /// After the last chunk.
    Trailers,
    /// The connection speaks HTTP/2.
    Http2,
    /// Unknown boundaries; no further bytes are followed.
    Lost,
}

/// A line, cut to [`LINE_BYTES_MAX`].
#[derive(Debug, Default)]
struct Line {
    bytes: Vec<u8>,
}

/// The framing headers of a request.
#[derive(Debug, Clone, Copy, Default)]
struct Head {
    length: Option<u64>,
    coded: bool,
    chunked: bool,
}

impl Framing {
    /// Follows what was read from the connection.
    pub fn read(&mut self, mut bytes: &[u8]) {
        while !bytes.is_empty() {
            bytes = match self.state {
                State::Http2 | State::Lost => return,
                State::Body(left) => self.skip(bytes, left, State::Body, State::Start),
                State::Chunk(left) => self.skip(bytes, left, State::Chunk, State::ChunkSize),
                State::Start | State::Headers | State::ChunkSize | State::Trailers => self.line(bytes),
            };
        }
    }

    /// Whether the framing of the next request is in conflict. `None`: no further head was read.
    pub fn pop_conflict(&mut self) -> Option<bool> {
        self.conflicts.pop_front()
    }

    /// Whether the connection speaks HTTP/2, which has different framing.
    pub fn is_http_2(&self) -> bool {
        self.state == State::Http2
    }

    fn skip<'b>(&mut self, bytes: &'b [u8], left: u64, within: fn(u64) -> State, after: State) -> &'b [u8] {
        let here = bytes.len().min(usize::try_from(left).unwrap_or(usize::MAX));
        let left = left - here as u64;
        self.state = if left == 0 { after } else { within(left) };
        &bytes[here..]
    }

    /// Takes bytes up to the end of the line.
    fn line<'b>(&mut self, bytes: &'b [u8]) -> &'b [u8] {
        let end = bytes.iter().position(|byte| *byte == b'\n');
        self.line.push(&bytes[..end.unwrap_or(bytes.len())]);
        let Some(end) = end else { return &[] };
        let line = self.line.take();
        self.state = self.after(line.strip_suffix(b"\r").unwrap_or(&line));
        &bytes[end + 1..]
    }

    fn after(&mut self, line: &[u8]) -> State {
        match self.state {
            State::Start if line.is_empty() => State::Start,
            State::Start if line == PREFACE => State::Http2,
            State::Start => {
                self.head = Head::default();
                State::Headers
            }
            State::Headers if line.is_empty() => self.head_ended(),
            State::Headers => match self.head.take(line) {
                Some(()) => State::Headers,
                None => State::Lost,
            },
            State::ChunkSize => match chunk_size(line) {
                Some(0) => State::Trailers,
                // With the line end.
                Some(size) => size.checked_add(2).map_or(State::Lost, State::Chunk),
                None => State::Lost,
            },
            State::Trailers if line.is_empty() => State::Start,
            State::Trailers => State::Trailers,
            State::Body(_) | State::Chunk(_) | State::Http2 | State::Lost => self.state,
        }
    }

    fn head_ended(&mut self) -> State {
        let Head { length, coded, chunked } = self.head;
        self.conflicts.push_back(coded && length.is_some());
        match (coded, chunked, length) {
            (true, true, None) => State::ChunkSize,
            // Refused, and the connection is closed.
            (true, ..) => State::Lost,
            (false, _, None | Some(0)) => State::Start,
            (false, _, Some(length)) => State::Body(length),
        }
    }
}

impl Head {
    /// Reads a header line; `None` if it is invalid.
    fn take(&mut self, line: &[u8]) -> Option<()> {
        let colon = line.iter().position(|byte| *byte == b':')?;
        let (name, value) = (&line[..colon], line[colon + 1..].trim_ascii());
        if name.eq_ignore_ascii_case(b"content-length") {
            self.length = Some(std::str::from_utf8(value).ok()?.parse().ok()?);
        } else if name.eq_ignore_ascii_case(b"transfer-encoding") {
            self.coded = true;
            let last = value.rsplit(|byte| *byte == b',').next().unwrap_or_default();
            self.chunked = last.trim_ascii().eq_ignore_ascii_case(b"chunked");
        }
        Some(())
    }
}

impl Line {
    fn push(&mut self, bytes: &[u8]) {
        let room = LINE_BYTES_MAX.saturating_sub(self.bytes.len());
        self.bytes.extend_from_slice(&bytes[..bytes.len().min(room)]);
    }

    fn take(&mut self) -> Vec<u8> {
        std::mem::take(&mut self.bytes)
    }
}

/// The size of a chunk; extensions are ignored.
fn chunk_size(line: &[u8]) -> Option<u64> {
    let digits = line.split(|byte| *byte == b';').next().unwrap_or_default().trim_ascii();
    u64::from_str_radix(std::str::from_utf8(digits).ok()?, 16).ok()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const BOTH: &str = "POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\nContent-Length: 4\r\n\r\n";
    const CHUNKED: &str = "POST / HTTP/1.1\r\ntransfer-encoding: chunked\r\n\r\n\
                           1d;x=y\r\nPOST / HTTP/1.1\r\na: b\r\n\r\n----\r\n0\r\nt: u\r\n\r\n";
    const LENGTH: &str = "\r\nPOST / HTTP/1.1\r\nCONTENT-length:  17 \r\n\r\nGET / HTTP/1.1\r\n\r";
    const BARE: &str = "GET / HTTP/1.1\nhost: weft\n\n";

    fn conflicts(bytes: &[u8], cut: usize) -> Vec<bool> {
        let mut framing = Framing::default();
        bytes.chunks(cut.max(1)).for_each(|piece| framing.read(piece));
        framing.conflicts.into()
    }

    #[test]
    fn both_headers_are_detected_after_any_body() {
        let chain = [CHUNKED, LENGTH, BARE, CHUNKED, BOTH].concat();
        for cut in [1, 2, 3, 7, 64, 4096] {
            assert_eq!(conflicts(chain.as_bytes(), cut), [false, false, false, false, true], "{cut}");
        }
    }

    #[test]
    fn the_order_and_the_spelling_do_not_matter() {
        for head in [
            "content-length: 0\r\ntransfer-encoding: chunked",
            "TRANSFER-ENCODING: gzip, chunked\r\nx: y\r\ncontent-length:4",
            "content-length: 4\r\ncontent-length: 4\r\ntransfer-encoding: identity",
        ] {
            assert_eq!(conflicts(format!("POST / HTTP/1.1\r\n{head}\r\n\r\n").as_bytes(), 5), [true], "{head}");
        }
    }

    #[test]
    fn http_2_is_not_followed() {
        let mut framing = Framing::default();
        framing.read(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n");
        assert!(framing.is_http_2());
    }

    proptest! {
        /// Nothing panics, and the same bytes mean the same however they arrive.
        #[test]
        fn any_bytes_are_followed(bytes in prop::collection::vec(any::<u8>(), 0..400), cut in 1usize..50) {
            prop_assert_eq!(conflicts(&bytes, cut), conflicts(&bytes, 4096));
        }

        #[test]
        fn chains_of_requests_are_followed(kinds in prop::collection::vec(0usize..3, 0..12), cut in 1usize..90) {
            let chain: String = kinds.iter().map(|kind| [CHUNKED, LENGTH, BARE][*kind]).collect();
            let mut expected = vec![false; kinds.len()];
            expected.push(true);
            prop_assert_eq!(conflicts([&chain, BOTH].concat().as_bytes(), cut), expected);
        }
    }
}
