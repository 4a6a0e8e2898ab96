//! The ledger: what a shard's owner has decided, as its commits on OUTCOMES say.
//!
//! The truth is OUTCOMES. The ledger is the state that follows from it: how far EVENTS is matched, which lanes are
//! unsettled, which redrives are under way, which dead letters are open, what each lane delivered last. Everything up to
//! the cursor that is not listed is settled. A redb file caches that state, so that a restart reads only the commits
//! behind its position; without the file the newest checkpoint takes its place.
//!
//! - [`tables`]: the state in redb; `apply`: how a commit changes it.
//! - [`store`]: the file and the thread that writes it; `overlay`: what has been applied but is not on disk yet.
//! - [`recovery`]: from whatever is there to the state at the end of OUTCOMES.
//! - [`checkpoint`]: the state as records.

mod apply;
pub mod checkpoint;
mod overlay;
pub mod recovery;
pub mod store;
pub mod tables;

pub use recovery::{Recovered, RecoveryError, recover};
pub use store::Ledger;

/// Why the ledger's file cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum LedgerError {
    /// The file or its folder.
    #[error(transparent)]
    File(#[from] weft_index::projection::OpenError),
    /// The system gives no thread.
    #[error("ledger: no thread to write it")]
    Thread(#[source] std::io::Error),
    /// It has been closed.
    #[error("ledger: it is closed")]
    Closed,
    /// Reading or writing the database.
    #[error("ledger: {0}")]
    Database(#[from] redb::Error),
    /// A record in it is not what this version writes.
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
