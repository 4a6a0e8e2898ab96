//! Look-ups of groups of events in the receipts' file.

use std::{
    panic::{AssertUnwindSafe, catch_unwind},
    sync::Arc,
    time::{Duration, Instant},
};

use tokio::task::JoinHandle;
use weft_index::{
    projection::StorageError,
    receipts::{Receipts, View},
};

use super::{decide, submission::Submission};

/// Groups up to this size are always looked up inline: some milliseconds if no page is in memory.
const AT_ONCE_MAX: usize = 16;
/// Larger groups are looked up inline while one event takes less than this: some microseconds with the pages in memory,
/// so a few milliseconds for a group. A blocking thread would take as long to start on a busy machine.
const QUICK: Duration = Duration::from_micros(20);

/// A look-up on a blocking thread.
pub(super) type Looking = JoinHandle<Result<LookedUp, StorageError>>;

/// A finished look-up.
pub(super) struct LookedUp {
    pub group: Vec<Submission>,
    took: Duration,
}

/// Decides where the next group is looked up, by the duration of the last look-up.
#[derive(Debug, Default)]
pub(super) struct LookupSpeed {
    quick: bool,
}

impl LookupSpeed {
    /// True if a group of this size is looked up inline.
    pub fn at_once(&self, submissions: usize) -> bool {
        submissions <= AT_ONCE_MAX || self.quick
    }

    /// Notes the duration of a look-up.
    pub fn took(&mut self, looked: &LookedUp) {
        self.quick = looked.took <= QUICK * u32::try_from(looked.group.len()).unwrap_or(u32::MAX);
    }
}

/// The current view of the file. Blocks on the disk.
pub(super) fn view(receipts: &Receipts) -> Result<Arc<View>, StorageError> {
    caught(|| receipts.view().map(Arc::new))
}

/// Looks a group up on a blocking thread.
pub(super) fn look_up(view: Arc<View>, group: Vec<Submission>) -> Looking {
    tokio::task::spawn_blocking(move || look_up_now(&view, group))
}

/// Looks a group up. Blocks on the disk.
pub(super) fn look_up_now(view: &View, mut group: Vec<Submission>) -> Result<LookedUp, StorageError> {
    let started = Instant::now();
    caught(|| {
        for submission in &mut group {
            submission.looked = decide::Looked {
                cursor: view.cursor(),
                accepted: view.receipt(submission.id)?,
                replayed: submission.replay_key.map(|key| view.replayed(key)).transpose()?.flatten(),
                head: view.head(&submission.workflow)?,
            };
        }
        Ok(())
    })?;
    Ok(LookedUp { group, took: started.elapsed() })
}

/// redb asserts where it meets damaged pages.
fn caught<T>(ask: impl FnOnce() -> Result<T, StorageError>) -> Result<T, StorageError> {
    catch_unwind(AssertUnwindSafe(ask)).unwrap_or_else(|_| Err(StorageError::Corrupted("a page is damaged".into())))
}

#[cfg(test)]
mod tests {
    use tokio::sync::Semaphore;
    use weft_nats::subject::Layout;
    use weft_proto::ids::EventId;

    use super::*;
    use crate::sequencer::submission::{Encoded, test_event};

    fn looked(submissions: u32, took: Duration) -> LookedUp {
        let room = Arc::new(Semaphore::new(submissions as usize));
        let submission = |_| {
            let room = room.clone().try_acquire_owned().unwrap();
            let event = Encoded::new(test_event(EventId::unique(), "a", b"{}"), Layout::new(1));
            event.submission(tokio::time::Instant::now(), room, None).0
        };
        LookedUp { group: (0..submissions).map(submission).collect(), took }
    }

    /// A disk that has to be waited for holds up no thread that others need.
    #[test]
    fn a_large_group_is_asked_about_at_once_while_that_is_quick() {
        let mut speed = LookupSpeed::default();
        assert!(speed.at_once(AT_ONCE_MAX) && !speed.at_once(AT_ONCE_MAX + 1), "nothing is known yet");
        speed.took(&looked(100, QUICK * 100));
        assert!(speed.at_once(1000));
        speed.took(&looked(3, QUICK * 4));
        assert!(speed.at_once(AT_ONCE_MAX) && !speed.at_once(AT_ONCE_MAX + 1));
    }
}
