//! Type patterns: `*` is any run of characters, dots included; nothing else is special.

/// Whether a type pattern takes a type. Takes time at most proportional to the product of the lengths.
pub fn pattern_matches(pattern: &str, text: &str) -> bool {
    let (pattern, text) = (pattern.as_bytes(), text.as_bytes());
    let (mut p, mut t) = (0, 0);
    // The last star, and how much of the text it has taken.
    let mut star: Option<(usize, usize)> = None;
    while t < text.len() {
        if pattern.get(p) == Some(&b'*') {
            star = Some((p, t));
            p += 1;
        } else if pattern.get(p) == Some(&text[t]) {
            p += 1;
            t += 1;
        } else if let Some((at, taken)) = star {
            star = Some((at, taken + 1));
            p = at + 1;
            t = taken + 1;
        } else {
            return false;
        }
    }
    pattern[p..].iter().all(|byte| *byte == b'*')
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_star_matches_any_text() {
        for (pattern, text, expected) in [
            ("*", "", true),
            ("*", "order.paid", true),
            ("order.*", "order.paid.twice", true),
            ("order.*", "order", false),
            ("*.paid", "order.paid", true),
            ("o*d*d", "order.paid", true),
            ("o*x", "order.paid", false),
            ("order.paid", "order.paid", true),
            ("order?paid", "order.paid", false),
            ("", "", true),
            ("", "x", false),
        ] {
            assert_eq!(pattern_matches(pattern, text), expected, "{pattern:?} on {text:?}");
        }
    }

    /// By the definition: the text splits at every star.
    fn slow(pattern: &[u8], text: &[u8]) -> bool {
        match pattern.split_first() {
            None => text.is_empty(),
            Some((b'*', rest)) => (0..=text.len()).any(|at| slow(rest, &text[at..])),
            Some((byte, rest)) => text.split_first().is_some_and(|(first, text)| first == byte && slow(rest, text)),
        }
    }

    proptest! {
        #[test]
        fn agrees_with_the_definition(pattern in "[ab*]{0,8}", text in "[ab]{0,10}") {
            prop_assert_eq!(pattern_matches(&pattern, &text), slow(pattern.as_bytes(), text.as_bytes()));
        }
    }
}
