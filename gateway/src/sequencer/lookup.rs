//! Asks the receipts' file about a group of events, on a thread that may block.

use tokio::task::JoinHandle;
use weft_index::{projection::StorageError, receipts::Receipts};

use super::{decide::Looked, submission::Submission};

/// A group that has been asked about.
pub(super) type Looking = JoinHandle<Result<Vec<Submission>, StorageError>>;

/// Asks, through one view for all. A view that is made now shows at least what has been committed by now.
pub(super) fn look_up(receipts: Receipts, mut group: Vec<Submission>) -> Looking {
    tokio::task::spawn_blocking(move || {
        let view = receipts.view()?;
        for submission in &mut group {
            submission.looked = Looked {
                cursor: view.cursor(),
                accepted: view.receipt(submission.id)?,
                head: view.head(&submission.workflow)?,
            };
        }
        Ok(group)
    })
}
