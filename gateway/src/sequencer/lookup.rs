//! Asks the receipts' file about a group of events.

use std::{
    panic::{AssertUnwindSafe, catch_unwind},
    sync::Arc,
};

use tokio::task::JoinHandle;
use weft_index::{
    projection::StorageError,
    receipts::{Receipts, View},
};

use super::{decide::Looked, submission::Submission};

/// So many are asked about at once, without a thread that may block: some microseconds each where the pages are in memory,
/// and some milliseconds for all of them where none is.
pub(super) const AT_ONCE_MAX: usize = 16;

/// A group that is being asked about.
pub(super) type Looking = JoinHandle<Result<Vec<Submission>, StorageError>>;

/// What the file says now. Blocks for as long as the disk takes.
pub(super) fn view(receipts: &Receipts) -> Result<Arc<View>, StorageError> {
    caught(|| receipts.view().map(Arc::new))
}

/// Asks on a thread that may block.
pub(super) fn look_up(view: Arc<View>, mut group: Vec<Submission>) -> Looking {
    tokio::task::spawn_blocking(move || {
        look_up_now(&view, &mut group)?;
        Ok(group)
    })
}

/// Asks. Blocks for as long as the disk takes.
pub(super) fn look_up_now(view: &View, group: &mut [Submission]) -> Result<(), StorageError> {
    caught(|| {
        for submission in group {
            submission.looked = Looked {
                cursor: view.cursor(),
                accepted: view.receipt(submission.id)?,
                head: view.head(&submission.workflow)?,
            };
        }
        Ok(())
    })
}

/// redb asserts where it meets damaged pages.
fn caught<T>(ask: impl FnOnce() -> Result<T, StorageError>) -> Result<T, StorageError> {
    catch_unwind(AssertUnwindSafe(ask)).unwrap_or_else(|_| Err(StorageError::Corrupted("a page is damaged".into())))
}
