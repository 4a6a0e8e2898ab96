//! How a violation is told: where, and by which rule; never the value, which may be secret.

/// The longest path or message, in bytes: it travels in a header of NATS and in a problem's detail, where neither wants
/// a page.
pub(crate) const TEXT_BYTES_MAX: usize = 256;

/// What stands for the path of the data as a whole, whose pointer is empty.
const WHOLE: &str = "(root)";

/// Where data is not what its schema says, and which rule it breaks. Printed as `<path>: <message>`: one line of at most
/// about 520 bytes without control characters. It names members of the data, and never holds their values.
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

    /// Where: an RFC 6901 pointer into the data, `(root)` for all of it.
    pub fn path(&self) -> &str {
        &self.path
    }

    /// What is wrong there, and by which rule.
    pub fn message(&self) -> &str {
        &self.message
    }
}

/// A text as one line of at most `bytes_max` bytes; what is cut off is shown by `…`.
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
