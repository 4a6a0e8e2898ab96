//! The end of the process: the exit codes of the contract, and the one line with the cause.

use std::{fmt, process::ExitCode};

use weft_nats::error_chain::in_one_line;

/// Error of a command, by exit code.
#[derive(Debug)]
pub enum Failure {
    /// Exit code 1.
    Failed(String),
    /// Exit code 2: called in a way that makes no sense.
    Usage(String),
    /// Exit code 3: what was named is not there.
    NotFound(String),
    /// Exit code 4: the server cannot be reached, or cannot answer now.
    Unavailable(String),
    /// The exit code of a check whose result is printed already.
    Check(u8),
    /// Exit code 0, without a word: what read the output has gone away, as `head` does when it has enough.
    Closed,
}

impl Failure {
    /// A failure with the whole chain of causes, in one line.
    pub fn of(error: &(dyn std::error::Error + 'static)) -> Self {
        Self::Failed(in_one_line(error))
    }

    /// The exit code.
    pub fn code(&self) -> ExitCode {
        ExitCode::from(match self {
            Self::Closed => 0,
            Self::Check(code) => *code,
            Self::Failed(_) => 1,
            Self::Usage(_) => 2,
            Self::NotFound(_) => 3,
            Self::Unavailable(_) => 4,
        })
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Failed(text) | Self::Usage(text) | Self::NotFound(text) | Self::Unavailable(text) => {
                f.write_str(text)
            }
            Self::Check(code) => write!(f, "the check ends with exit code {code}"),
            Self::Closed => f.write_str("the reader of the output has gone away"),
        }
    }
}

/// For what is only ever a failure, such as a file that cannot be written.
impl From<anyhow::Error> for Failure {
    fn from(error: anyhow::Error) -> Self {
        Self::of(error.as_ref())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_chain_is_one_line_and_repeats_nothing() {
        let inner = std::io::Error::other("disk\nfull");
        let error = anyhow::Error::new(inner).context("weft-data: disk\nfull").context("outer");
        assert_eq!(in_one_line(error.as_ref()), "outer: weft-data: disk full");
    }
}
