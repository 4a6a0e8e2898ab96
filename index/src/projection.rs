//! Shared parts of all projections: the redb file, its one writing thread, the cursor and its check against the log.
//!
//! A projection is a cache of the log: a file with any fault is rebuilt.
//! Only a folder that cannot be used is an error.
//!
//! - [`open`] opens or creates the file; one that cannot be read or has another format is set aside.
//! - [`Writer`] owns all writing: redb's commits block, so one thread applies waiting changes and commits them together, with
//!   the cursor in the same transaction.
//! - [`Position`] is a cursor with the identity of its stream; [`verify`] compares it.
//!
//! Invariant: the file holds exactly what follows from the messages up to its cursors, each applied once.

mod file;
mod position;
mod writer;

/// Error of redb when a file cannot be read or written.
pub use redb::Error as StorageError;

pub use file::{CACHE_BYTES_DEFAULT, OpenError, open, remove};
pub use position::{position, set_position};
pub use weft_nats::position::{Mark, Mismatch, Position, PositionCheck, check, verify, verify_once};
pub use writer::{CommitInterval, Flush, Projector, Writer, WriterGone};
