//! Interaction of a command with people, on stderr: confirmation before, a progress bar during its work.

use std::io::{BufRead as _, IsTerminal as _, Write as _};

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

use crate::failure::Failure;

/// Whether there is a person to ask.
pub fn is_attended() -> bool {
    std::io::stdin().is_terminal() && std::io::stderr().is_terminal()
}

/// Asks; anything but yes is no.
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

/// Asks for confirmation, unless it was given by an option. Without a terminal the command counts as confirmed.
///
/// # Errors
///
/// The answer is no.
pub fn confirm(yes: bool, question: &str) -> Result<(), Failure> {
    if yes || !is_attended() || confirmed(question)? {
        return Ok(());
    }
    Err(Failure::Failed("nothing was changed".into()))
}

/// No bar, for a call that only asks.
pub fn no_bar() -> ProgressBar {
    ProgressBar::hidden()
}

/// A bar under a verb such as `redriving`; it shows only on a terminal.
pub fn bar(verb: &str) -> ProgressBar {
    // Without a length it would draw an empty bar before it knows anything.
    let bar = ProgressBar::with_draw_target(Some(0), ProgressDrawTarget::stderr());
    if let Ok(style) = ProgressStyle::with_template(&format!("{verb} {{bar:40}} {{pos}}/{{len}} {{elapsed}}")) {
        bar.set_style(style);
    }
    bar
}
