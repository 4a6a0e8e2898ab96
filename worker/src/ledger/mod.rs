//! The ledger: the state that follows from a shard's commits on OUTCOMES.
//!
//! OUTCOMES is the source of truth. The ledger has the cursor of EVENTS, the unsettled lanes, the pending redrives, the open
//! dead letters, and the event that each lane delivered last. Everything up to the cursor that it does not list is settled.
//! A redb file caches this state, so that a restart reads only the commits after its position; without the file, the newest
//! checkpoint is loaded instead.
//!
//! - [`tables`]: the state in redb; `apply`: how a commit changes it.
//! - [`store`]: the file and the thread that writes it; `overlay`: applied commits that are not on disk yet.
//! - [`recovery`]: from the file or a checkpoint to the state at the end of OUTCOMES.
//! - [`checkpoint`]: the state as records.

mod apply;
pub mod checkpoint;
mod overlay;
pub mod recovery;
pub mod store;
pub mod tables;

pub use recovery::{Recovered, RecoveryError, recover};
pub use store::Ledger;

/// Errors of the ledger's file.
#[derive(Debug, thiserror::Error)]
pub enum LedgerError {
    /// The file or its folder.
    #[error(transparent)]
    File(#[from] weft_index::projection::OpenError),
    /// The system cannot start a thread.
    #[error("ledger: cannot start the thread that writes it")]
    Thread(#[source] std::io::Error),
    /// It is closed.
    #[error("ledger: it is closed")]
    Closed,
    /// Reading or writing the database.
    #[error("ledger: {0}")]
    Database(#[from] redb::Error),
    /// A record cannot be decoded.
    #[error("ledger: a record cannot be read: {0}")]
    Record(String),
}

macro_rules! database_errors {
    ($($error:ty),*) => {
        $(impl From<$error> for LedgerError {
            fn from(error: $error) -> Self {
                Self::Database(error.into())
            }
        })*
    };
}

database_errors!(redb::StorageError, redb::TableError, redb::TransactionError, redb::CommitError, redb::DatabaseError);
