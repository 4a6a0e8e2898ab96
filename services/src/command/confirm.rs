//! Asking before something goes that does not come back.

use std::io::{BufRead as _, IsTerminal as _, Write as _};

use crate::exit::Failure;

/// Whether there is somebody to ask.
pub fn on_terminal() -> bool {
    std::io::stdin().is_terminal() && std::io::stderr().is_terminal()
}

/// Asks on the terminal; whether the answer is yes.
///
/// # Errors
///
/// When the terminal is gone.
pub fn confirmed(question: &str) -> Result<bool, Failure> {
    let failed = |error: std::io::Error| Failure::Failed(format!("terminal: {error}; use --yes"));
    let mut stderr = std::io::stderr().lock();
    write!(stderr, "{question} [y/N] ").and_then(|()| stderr.flush()).map_err(failed)?;
    let mut answer = String::new();
    std::io::stdin().lock().read_line(&mut answer).map_err(failed)?;
    Ok(matches!(answer.trim(), "y" | "Y" | "yes"))
}

/// Refuses to go on unless it was said to, or somebody says so now. Where there is nobody to ask, the command itself is
/// the answer.
///
/// # Errors
///
/// The answer is no.
pub fn confirm(yes: bool, question: &str) -> Result<(), Failure> {
    if yes || !on_terminal() || confirmed(question)? {
        return Ok(());
    }
    Err(Failure::Failed("nothing was changed".into()))
}
