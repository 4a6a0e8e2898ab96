//! Senders' secrets in the spellings in which they are copied.
//!
//! A provider's settings, a shell and a secret store each put something around a secret: quotes, blanks, a line end, a
//! byte order mark; and some providers show `v1,whsec_…`, several joined by `|`. The sender owns the secret, so all of these
//! spellings are accepted.

/// Byte order mark, which some text editors put before a text.
const BYTE_ORDER_MARK: char = '\u{feff}';
/// Version prefixes of Standard Webhooks before a signature, which some senders also put before a secret.
const VERSIONS: [&str; 2] = ["v1,", "v1a,"];

/// The secrets of Standard Webhooks that one configured text holds: none of them holds a blank, a quote or a `|`.
pub fn standard(text: &str) -> impl Iterator<Item = &str> {
    let secrets = bare(text).split(|separator: char| separator == '|' || separator.is_whitespace()).map(bare);
    let secrets =
        secrets.map(|secret| VERSIONS.iter().find_map(|version| secret.strip_prefix(version)).unwrap_or(secret));
    secrets.map(bare).filter(|secret| !secret.is_empty())
}

/// Candidates for the key in a configured text in which every byte may count: the text without a line end, and, if
/// different, without surrounding blanks and quotes.
pub fn literal(text: &str) -> impl Iterator<Item = &str> {
    let text = text.trim_start_matches(BYTE_ORDER_MARK).trim_end_matches(['\r', '\n']);
    let bare = bare(text);
    [Some(text), Some(bare).filter(|bare| *bare != text)].into_iter().flatten().filter(|text| !is_blank(text))
}

/// Whether a text is nothing but blanks and quotes.
fn is_blank(text: &str) -> bool {
    bare(text).is_empty()
}

/// A text without blanks, a byte order mark and a pair of quotes around it.
fn bare(text: &str) -> &str {
    let mut text = text;
    loop {
        let trimmed = text.trim_matches(|character: char| character.is_whitespace() || character == BYTE_ORDER_MARK);
        let unquoted = ['"', '\'', '`'].iter().find_map(|quote| trimmed.strip_prefix(*quote)?.strip_suffix(*quote));
        match unquoted {
            Some(unquoted) => text = unquoted,
            None => return trimmed,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECRET: &str = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw";

    #[test]
    fn standard_secrets_are_found_in_every_spelling() {
        for text in [
            SECRET.to_owned(),
            format!("v1,{SECRET}"),
            format!(" \"v1,{SECRET}\"\r\n"),
            format!("\u{feff}'{SECRET}'"),
            format!("v1,\"{SECRET}\""),
            format!("\"{SECRET}|\"\n"),
        ] {
            assert_eq!(standard(&text).collect::<Vec<_>>(), [SECRET], "{text:?}");
        }
        assert_eq!(standard(&format!("v1,{SECRET}|v1,whsec_b\n")).collect::<Vec<_>>(), [SECRET, "whsec_b"]);
        assert_eq!(standard("v1a,whpk_x").collect::<Vec<_>>(), ["whpk_x"]);
        for blank in ["", " ", "\n", "\"\"", "v1,", " | ", "\u{feff}"] {
            assert_eq!(standard(blank).count(), 0, "{blank:?}");
        }
    }

    /// A blank may be part of another scheme's secret, or have come with it: both are tried.
    #[test]
    fn literal_secrets_are_tried_as_they_are_and_bare() {
        assert_eq!(literal("It's a Secret").collect::<Vec<_>>(), ["It's a Secret"]);
        assert_eq!(literal("secret\r\n").collect::<Vec<_>>(), ["secret"]);
        assert_eq!(literal("\u{feff}secret\n").collect::<Vec<_>>(), ["secret"]);
        assert_eq!(literal(" 'secret' ").collect::<Vec<_>>(), [" 'secret' ", "secret"]);
        for blank in ["", " ", "\n", " \n", "''", "\" \"", "\u{feff}\n"] {
            assert_eq!(literal(blank).count(), 0, "{blank:?}");
        }
    }
}
