//! Errors with their causes, for a person.

/// An error and its causes, in one line. A cause that the error has already named is not repeated.
pub fn in_one_line(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        let cause_text = cause.to_string();
        if !text.contains(&cause_text) {
            text.push_str(": ");
            text.push_str(&cause_text);
        }
        source = cause.source();
    }
    text.lines().collect::<Vec<_>>().join(" ")
}
