//! What all projections share: the redb file, its one writing thread, the cursor and its check against the log.
//!
//! A projection is a cache of the log: whatever is odd about its file is answered by building it anew, never by giving
//! up. Only a folder that cannot be used is an error.
//!
//! - [`open`] opens or makes the file; one that cannot be read or has another format is set aside.
//! - [`Writer`] owns all writing: redb's commits block, so one thread applies what waits and commits it at once, with the
//!   cursor in the same transaction.
//! - [`Position`] is a cursor with what tells its stream from another or a restored one; [`verify`] compares.
//!
//! Invariant: the file holds exactly what follows from the messages up to its cursors, each applied once.

mod file;
mod position;
mod writer;

/// What redb says when a file cannot be read or written.
pub use redb::Error as StorageError;

pub use file::{CACHE_BYTES_DEFAULT, OpenError, open, remove};
pub use position::{position, set_position};
pub use weft_nats::position::{Mark, Mismatch, Position, PositionCheck, check, verify, verify_once};
pub use writer::{Flush, Pace, Projector, Writer, WriterGone};
