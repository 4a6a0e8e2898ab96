//! Subjects of users on the mesh's server: what subscriptions may publish to. Pure.
//!
//! `[nats] publish` names them by patterns such as `orders.>`. No pattern may reach a subject that the mesh itself listens
//! on: an event that came back as an event would be delivered again without end.

/// First tokens of the subjects that the mesh uses.
const RESERVED: [&str; 14] = [
    "events",
    "heads",
    "outcomes",
    "checkpoints",
    "commands",
    "dlq",
    "rejected",
    "forward",
    "gateway",
    "room",
    "trim",
    "pause",
    "tail",
    "weft",
];
/// The longest pattern, in bytes.
const PATTERN_BYTES_MAX: usize = 256;

/// Checks the first token of a subject: it must be a literal that neither NATS nor the mesh reserves.
///
/// # Errors
///
/// The problem, in one line.
pub fn check_first_token(token: &str) -> Result<(), String> {
    if token.starts_with(['$', '_']) {
        return Err(format!("begins with {token:?}, which is reserved by NATS"));
    }
    if RESERVED.contains(&token) {
        return Err(format!("begins with {token:?}, which Weft itself uses on its server"));
    }
    check_literal(token)
}

/// Checks a literal token of a subject: letters, digits and `_=@:~-`, as in an encoded workflow id.
///
/// # Errors
///
/// The problem, in one line.
pub fn check_literal(token: &str) -> Result<(), String> {
    let fits = |byte: u8| byte.is_ascii_alphanumeric() || b"_=@:~-".contains(&byte);
    if token.is_empty() {
        return Err("has an empty token".into());
    }
    if !token.bytes().all(fits) {
        return Err(format!("has a token {token:?} with other characters than letters, digits and _=@:~-"));
    }
    Ok(())
}

/// Checks the patterns of `[nats] publish`: `*` is one token, a last `>` one or more, and no subject may match two of them.
///
/// # Errors
///
/// The problem, in one line.
pub fn check_patterns(patterns: &[String]) -> Result<(), String> {
    for pattern in patterns {
        check_pattern(pattern).map_err(|problem| format!("[nats] publish: {pattern:?} {problem}"))?;
    }
    for (index, pattern) in patterns.iter().enumerate() {
        if let Some(other) = patterns.iter().skip(index + 1).find(|other| overlap(pattern, other)) {
            return Err(format!(
                "[nats] publish: {pattern:?} and {other:?} have subjects in common; keep the wider one"
            ));
        }
    }
    Ok(())
}

fn check_pattern(pattern: &str) -> Result<(), String> {
    if pattern.len() > PATTERN_BYTES_MAX {
        return Err(format!("is longer than {PATTERN_BYTES_MAX} bytes"));
    }
    let tokens: Vec<&str> = pattern.split('.').collect();
    let (first, rest) = tokens.split_first().ok_or("is empty")?;
    check_first_token(first)?;
    for (index, token) in rest.iter().enumerate() {
        match *token {
            "*" => {}
            ">" if index + 1 == rest.len() => {}
            token => check_literal(token)?,
        }
    }
    Ok(())
}

/// Whether a subject matches both patterns.
fn overlap(one: &str, other: &str) -> bool {
    let (mut one, mut other) = (one.split('.'), other.split('.'));
    loop {
        match (one.next(), other.next()) {
            (None, None) | (Some(">"), Some(_)) | (Some(_), Some(">")) => return true,
            (Some(a), Some(b)) if a == b || a == "*" || b == "*" => {}
            _ => return false,
        }
    }
}

/// Whether every subject of these tokens matches a pattern; `None`: a token that may be anything.
pub fn covers(pattern: &str, subject: &[Option<&str>]) -> bool {
    let mut tokens = subject.iter();
    for wanted in pattern.split('.') {
        match (wanted, tokens.next()) {
            (">", token) => return token.is_some(),
            ("*", Some(_)) => {}
            (wanted, Some(Some(token))) if wanted == *token => {}
            _ => return false,
        }
    }
    tokens.next().is_none()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn checked(patterns: &[&str]) -> Result<(), String> {
        check_patterns(&patterns.iter().map(|pattern| (*pattern).to_owned()).collect::<Vec<_>>())
    }

    /// Guards: an event does not come back as an event, and NATS' own subjects are out of reach.
    #[test]
    fn patterns_that_reach_subjects_of_the_mesh_or_of_nats_are_refused() {
        for fine in ["orders.>", "orders", "orders.*.paid", "a-b.c_d.*.>"] {
            assert_eq!(checked(&[fine]), Ok(()), "{fine}");
        }
        for reserved in ["events.>", "heads.0", "outcomes.*", "checkpoints.>", "commands.0", "dlq.>", "rejected.>"] {
            assert!(checked(&[reserved]).unwrap_err().contains("Weft itself"), "{reserved}");
        }
        for other in
            ["forward.>", "gateway.retry", "gateway.sample", "room.0", "trim.0", "pause", "tail.>", "weft.API.>"]
        {
            assert!(checked(&[other]).is_err(), "{other}");
        }
        for other in [">", "*.a", "*", "$JS.API.>", "$KV.>", "_INBOX.>", "", "a..b", "a.", "a.>.b", "a b", "a.b*"] {
            assert!(checked(&[other]).is_err(), "{other}");
        }
    }

    #[test]
    fn patterns_with_a_common_subject_are_refused() {
        for (one, other) in [("a.>", "a.b"), ("a.*", "a.b"), ("a.*.c", "a.b.*"), ("a.b", "a.b"), ("a.b.>", "a.*.c")] {
            assert!(checked(&[one, other]).unwrap_err().contains("in common"), "{one} {other}");
        }
        assert_eq!(checked(&["a.b", "a.c", "a.b.c", "b.>"]), Ok(()));
    }

    #[test]
    fn a_pattern_covers_what_every_event_makes_of_a_template() {
        let template = [Some("orders"), None, Some("x")];
        for (pattern, covered) in [
            ("orders.>", true),
            ("orders.*.x", true),
            ("orders.*.*", true),
            ("orders.*", false),
            ("orders.a.x", false),
            ("orders.*.y", false),
            ("orders.*.x.>", false),
            ("other.>", false),
        ] {
            assert_eq!(covers(pattern, &template), covered, "{pattern}");
        }
    }
}
