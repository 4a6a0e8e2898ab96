//! The process's limit of open files.
//!
//! Every connection is a descriptor. Shells and service managers start processes with a soft limit of 1024 for the sake of
//! `select`, which nothing here uses, and a hard limit that is far higher.

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

/// The limit where the system names none.
const UNLIMITED: u64 = 1 << 20;
/// Below this, a warning: the connections of a busy gateway and its worker would not fit.
const ENOUGH: u64 = 8192;

/// Raises the soft limit to the hard one; the limit that then holds. Called once, when a process starts.
pub fn raise() -> u64 {
    let before = getrlimit(Resource::Nofile);
    if before.current != before.maximum {
        let wanted = Rlimit { current: before.maximum, maximum: before.maximum };
        if let Err(error) = setrlimit(Resource::Nofile, wanted) {
            tracing::warn!(%error, "limit of open files cannot be raised");
        }
    }
    let limit = limit();
    if limit < ENOUGH {
        tracing::warn!(
            limit,
            "limit of open files is low, so fewer connections are accepted; raise it (ulimit -Hn, LimitNOFILE=)"
        );
    }
    limit
}

/// The limit that holds now.
pub fn limit() -> u64 {
    getrlimit(Resource::Nofile).current.unwrap_or(UNLIMITED)
}
