//! Characters that cannot be seen: with them, two ids that look alike differ, and a terminal shows text in another order.

use weft_proto::ids::{InvalidId, WorkflowId};

/// Format characters (Cf) and line and paragraph separators (Zl, Zp) of Unicode 16. First and last of each range.
const INVISIBLE: [(char, char); 21] = [
    ('\u{ad}', '\u{ad}'),
    ('\u{600}', '\u{605}'),
    ('\u{61c}', '\u{61c}'),
    ('\u{6dd}', '\u{6dd}'),
    ('\u{70f}', '\u{70f}'),
    ('\u{890}', '\u{891}'),
    ('\u{8e2}', '\u{8e2}'),
    ('\u{180e}', '\u{180e}'),
    ('\u{200b}', '\u{200f}'),
    ('\u{2028}', '\u{202e}'),
    ('\u{2060}', '\u{2064}'),
    ('\u{2066}', '\u{206f}'),
    ('\u{feff}', '\u{feff}'),
    ('\u{fff9}', '\u{fffb}'),
    ('\u{110bd}', '\u{110bd}'),
    ('\u{110cd}', '\u{110cd}'),
    ('\u{13430}', '\u{1343f}'),
    ('\u{1bca0}', '\u{1bca3}'),
    ('\u{1d173}', '\u{1d17a}'),
    ('\u{e0001}', '\u{e0001}'),
    ('\u{e0020}', '\u{e007f}'),
];

/// Whether all characters of a text can be seen. Spaces can.
pub(crate) fn is_visible(text: &str) -> bool {
    let hidden = |character: char| {
        character.is_control() || INVISIBLE.iter().any(|(first, last)| (*first..=*last).contains(&character))
    };
    !text.contains(hidden)
}

/// The workflow of a name that a sender chose. The log may hold others, of earlier versions.
///
/// # Errors
///
/// [`InvalidId`].
pub(crate) fn workflow(name: String) -> Result<WorkflowId, InvalidId> {
    let workflow = WorkflowId::new(name)?;
    if is_visible(workflow.as_str()) { Ok(workflow) } else { Err(InvalidId::Invisible) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_cannot_be_seen_is_refused() {
        for text in
            ["a\u{202e}b", "a\u{200b}", "\u{feff}a", "a\u{2028}b", "a\u{ad}b", "a\u{e0041}", "a\u{9b}b", "\u{7f}"]
        {
            assert!(!is_visible(text), "{text:?}");
            assert!(workflow(text.into()).is_err(), "{text:?}");
        }
        for text in ["order-42", "Push Hook", "ordre n\u{b0} 7", "注文", "🧵", "e\u{301}"] {
            assert!(is_visible(text) && workflow(text.into()).is_ok(), "{text:?}");
        }
    }
}
