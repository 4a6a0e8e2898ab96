//! Projections of the log in redb files.
//!
//! A projection reads streams in order, applies each message to a redb file in batches, and stores its cursor in the same
//! transaction. Delete the file and it is built again. It also stores the stream's creation time and the event id at its
//! cursor, and compares both with the stream whenever a reader is made: a restored log is detected and logged.
//!
//! - [`projection`]: what all projections share: the file, its one writing thread, the cursor and its check.
//! - [`receipts`]: for gateways: which deliveries are known, and the head of every workflow.
//! - [`history`]: for admins: what an operator asks for.
//!
//! This crate knows nothing of HTTP, of gRPC services, or of what gateways, workers and admins decide. It never writes to
//! the log.

pub mod history;
pub mod projection;
pub mod receipts;
