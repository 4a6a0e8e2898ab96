//! Text that is safe to print on a terminal: characters that control the terminal, reverse the reading direction or
//! take no space are printed as escapes.
//!
//! Ids, types, errors and payloads come from senders and receivers. Without escapes they could move the cursor, hide a
//! part of a line or make one id look like another. An escape is spelt as JSON spells it, so that JSON keeps its value.

use std::{borrow::Cow, fmt::Write as _};

/// Ranges of invisible characters besides the controls: format characters, separators and fillers.
const INVISIBLE: [(char, char); 19] = [
    ('\u{ad}', '\u{ad}'),
    ('\u{34f}', '\u{34f}'),
    ('\u{61c}', '\u{61c}'),
    ('\u{115f}', '\u{1160}'),
    ('\u{17b4}', '\u{17b5}'),
    ('\u{180b}', '\u{180f}'),
    ('\u{200b}', '\u{200f}'),
    ('\u{2028}', '\u{202e}'),
    ('\u{2060}', '\u{206f}'),
    ('\u{3164}', '\u{3164}'),
    ('\u{feff}', '\u{feff}'),
    ('\u{ffa0}', '\u{ffa0}'),
    ('\u{fff0}', '\u{fffb}'),
    ('\u{110bd}', '\u{110bd}'),
    ('\u{110cd}', '\u{110cd}'),
    ('\u{13430}', '\u{1343f}'),
    ('\u{1bca0}', '\u{1bca3}'),
    ('\u{1d173}', '\u{1d17a}'),
    ('\u{e0000}', '\u{e0fff}'),
];

/// One line: line breaks and tabs are escaped, too.
pub fn line(text: &str) -> Cow<'_, str> {
    escape(text, is_unsafe)
}

/// Text of several lines: line feeds and tabs stay.
pub fn lines(text: &str) -> Cow<'_, str> {
    escape(text, |char| is_unsafe(char) && char != '\n' && char != '\t')
}

/// Log lines, whose colors stay.
pub fn colored(text: &str) -> Cow<'_, str> {
    escape(text, |char| is_unsafe(char) && !matches!(char, '\n' | '\t' | '\u{1b}'))
}

fn is_unsafe(char: char) -> bool {
    char.is_control() || INVISIBLE.iter().any(|(first, last)| (*first..=*last).contains(&char))
}

/// Replaces the characters that `escaped` names by JSON escapes.
pub(super) fn escape(text: &str, escaped: impl Fn(char) -> bool) -> Cow<'_, str> {
    if !text.chars().any(&escaped) {
        return Cow::Borrowed(text);
    }
    let mut out = String::with_capacity(text.len() + 16);
    for char in text.chars() {
        match char {
            _ if !escaped(char) => out.push(char),
            '\n' => out.push_str("\\n"),
            '\r' => out.push_str("\\r"),
            '\t' => out.push_str("\\t"),
            _ => {
                for unit in char.encode_utf16(&mut [0; 2]) {
                    // Writing to a string does not fail.
                    let _ = write!(out, "\\u{unit:04x}");
                }
            }
        }
    }
    Cow::Owned(out)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn characters_that_control_a_terminal_or_hide_are_escaped() {
        for (char, spelt) in [
            ('\u{1b}', r"\u001b"),
            ('\u{7f}', r"\u007f"),
            ('\u{9b}', r"\u009b"),
            ('\u{85}', r"\u0085"),
            ('\u{ad}', r"\u00ad"),
            ('\u{61c}', r"\u061c"),
            ('\u{200b}', r"\u200b"),
            ('\u{200d}', r"\u200d"),
            ('\u{200f}', r"\u200f"),
            ('\u{2028}', r"\u2028"),
            ('\u{202e}', r"\u202e"),
            ('\u{2066}', r"\u2066"),
            ('\u{feff}', r"\ufeff"),
            ('\u{e0041}', r"\udb40\udc41"),
            ('\r', r"\r"),
        ] {
            assert_eq!(line(&format!("a{char}b")), format!("a{spelt}b"));
            assert_eq!(lines(&format!("a{char}b")), format!("a{spelt}b"));
        }
        assert_eq!(line("a\tb\nc"), r"a\tb\nc");
    }

    #[test]
    fn everything_that_is_seen_stays() {
        let text = "order-42 größe 注文 🎉 ا\u{301} a\tb\nc";
        assert!(matches!(lines(text), Cow::Borrowed(same) if same == text));
        assert!(matches!(line("order-42"), Cow::Borrowed("order-42")));
    }
}
