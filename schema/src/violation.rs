//! A violation: its place and the rule, never the value, which may be secret.

/// Maximum length of path and message, in bytes: they become part of a NATS header and of a problem's detail.
pub(crate) const TEXT_BYTES_MAX: usize = 256;

/// The path of the data as a whole, whose pointer is empty.
const WHOLE: &str = "(root)";

/// A violation of a schema: place and rule. Printed as `<path>: <message>`: one line of at most
/// about 520 bytes without control characters. It names members of the data, and never contains their values.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{path}: {message}")]
pub struct Violation {
    path: String,
    message: String,
}

impl Violation {
    /// At an RFC 6901 pointer into the data.
    pub(crate) fn at(pointer: &str, message: &str) -> Self {
        let path = if pointer.is_empty() { WHOLE } else { pointer };
        Self { path: one_line(path, TEXT_BYTES_MAX), message: one_line(message, TEXT_BYTES_MAX) }
    }

    /// Of the data as a whole.
    pub(crate) fn whole(message: &str) -> Self {
        Self::at("", message)
    }

    /// The place: an RFC 6901 pointer into the data, `(root)` for all of it.
    pub fn path(&self) -> &str {
        &self.path
    }

    /// The fault and the violated rule.
    pub fn message(&self) -> &str {
        &self.message
    }
}

/// A text as one line of at most `bytes_max` bytes; `…` marks a cut.
pub(crate) fn one_line(text: &str, bytes_max: usize) -> String {
    const CUT: &str = "…";
    let mut line = String::with_capacity(text.len().min(bytes_max));
    for char in text.chars() {
        let char = if char.is_control() { ' ' } else { char };
        if line.len() + char.len_utf8() > bytes_max - CUT.len() {
            let rest = text.len() - line.len();
            if rest > CUT.len() || line.len() + rest > bytes_max {
                line.push_str(CUT);
                return line;
            }
        }
        line.push(char);
    }
    line
}
