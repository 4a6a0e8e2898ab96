//! Faults of a reader's consumer.

use super::ReadError;

/// Why a consumer is given up.
#[derive(Debug)]
pub(super) enum Fault {
    /// Try again after a pause.
    Passing(String),
    /// The stream has as many consumers as it may have.
    Refused(String),
    /// Permanent: returned to the caller.
    Lasting(ReadError),
}
