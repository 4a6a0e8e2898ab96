//! Frames of Server-Sent Events, as <https://html.spec.whatwg.org/multipage/server-sent-events.html> has them.

use bytes::Bytes;
use weft_nats::{cursor::Cursor, envelope, event::Event};

use crate::http::error::Problem;

/// The first frame: how long to wait before connecting again.
pub fn reconnect(millis: u64) -> Bytes {
    format!("retry: {millis}\n\n").into()
}

/// An event: its envelope, and the cursor after it.
pub fn event(cursor: &Cursor, event: &Event) -> Bytes {
    frame(None, cursor, &envelope::to_json(event))
}

/// No event, but the cursor after the messages that were examined: without data it dispatches nothing and moves
/// `Last-Event-ID`.
pub fn heartbeat(cursor: &Cursor) -> Bytes {
    format!("id: {cursor}\n\n").into()
}

/// The last frame: why the stream ends, and the cursor from which to continue.
pub fn problem(cursor: &Cursor, problem: &Problem) -> Bytes {
    frame(Some("problem"), cursor, &problem.to_json())
}

fn frame(name: Option<&str>, cursor: &Cursor, data: &[u8]) -> Bytes {
    let mut out = Vec::with_capacity(data.len() + 128);
    if let Some(name) = name {
        out.extend_from_slice(format!("event: {name}\n").as_bytes());
    }
    out.extend_from_slice(format!("id: {cursor}\n").as_bytes());
    // A line end in the data, which JSON has only between its tokens, begins a new `data` line: clients put them
    // together again with a line feed.
    for line in lines(data) {
        out.extend_from_slice(b"data: ");
        out.extend_from_slice(line);
        out.push(b'\n');
    }
    out.push(b'\n');
    out.into()
}

/// The lines of a text by the line ends of Server-Sent Events: CR LF, LF, CR.
fn lines(text: &[u8]) -> impl Iterator<Item = &[u8]> {
    let mut rest = Some(text);
    std::iter::from_fn(move || {
        let text = rest?;
        let Some(end) = text.iter().position(|byte| matches!(byte, b'\n' | b'\r')) else {
            rest = None;
            return Some(text);
        };
        let behind = if text[end..].starts_with(b"\r\n") { end + 2 } else { end + 1 };
        rest = Some(&text[behind..]);
        Some(&text[..end])
    })
}

#[cfg(test)]
mod tests {
    use weft_nats::subject::Layout;

    use super::*;
    use crate::http::error::Code;

    #[test]
    fn every_line_end_begins_a_data_line() {
        let split = |text: &'static str| {
            lines(text.as_bytes()).map(|line| std::str::from_utf8(line).unwrap().to_owned()).collect::<Vec<_>>()
        };
        assert_eq!(split("a"), ["a"]);
        assert_eq!(split("{\n \"a\":\r\n1\r}"), ["{", " \"a\":", "1", "}"]);
        assert_eq!(split("\n\n"), ["", "", ""]);
        assert_eq!(split(""), [""]);
    }

    #[test]
    fn frames_are_well_formed() {
        let cursor = Cursor::new(Layout::new(1), []);
        assert_eq!(heartbeat(&cursor), format!("id: {cursor}\n\n"));
        assert_eq!(frame(None, &cursor, b"{\n}"), format!("id: {cursor}\ndata: {{\ndata: }}\n\n"));
        let last = problem(&cursor, &Problem::new(Code::Draining, "x"));
        let last = std::str::from_utf8(&last).unwrap();
        assert!(last.starts_with(&format!("event: problem\nid: {cursor}\ndata: {{")), "{last}");
        assert!(last.contains("\"code\":\"draining\"") && last.ends_with("}\n\n"), "{last}");
    }
}
