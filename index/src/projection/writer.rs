//! The one thread that writes a projection.

use std::{
    io,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread,
    time::Duration,
};

use redb::{Database, Durability, WriteTransaction};
use tokio::{
    sync::{mpsc, oneshot, watch},
    time::Instant,
};

/// Applies changes to rows.
pub trait Projector: Send + 'static {
    /// A change, such as the messages of one read.
    type Change: Send + 'static;
    /// State published after each commit, such as the cursor.
    type Committed: Clone + Send + Sync + 'static;

    /// Applies changes in order, with the cursor after them, as part of `transaction`.
    ///
    /// # Errors
    ///
    /// The error of redb: the transaction is rolled back, and the writer ends.
    fn apply(
        &mut self,
        transaction: &WriteTransaction,
        changes: Vec<Self::Change>,
    ) -> Result<Self::Committed, redb::Error>;

    /// Weight of a change towards [`CommitInterval::commit`].
    fn weight(_change: &Self::Change) -> usize {
        1
    }

    /// Whether there is upkeep to do.
    fn wants_upkeep(&self) -> bool {
        false
    }

    /// Does a part of the upkeep that can wait until no commit is due, such as merging segments. Takes some
    /// tens of milliseconds.
    ///
    /// # Errors
    ///
    /// The error of redb: the transaction is rolled back, and the writer ends.
    fn upkeep(&mut self, _transaction: &WriteTransaction) -> Result<(), redb::Error> {
        Ok(())
    }
}

/// Size and interval of commits (group commit).
#[derive(Debug, Clone, Copy)]
pub struct CommitInterval {
    /// Maximum number of changes in the queue to the thread.
    pub queue: usize,
    /// The weight of changes that fills a commit: a crash makes the projection read as much again.
    pub commit: usize,
    /// Minimum interval of commits, unless a commit is full.
    pub interval: Duration,
    /// Interval of commits that sync the disk, which the log's syncs share. Commits in between are visible at
    /// once; a crash loses them, and the log is read again from the last synced one on. Zero: each is synced.
    pub sync_interval: Duration,
}

/// Interval at which the thread takes changes from its queue while a commit waits: a sender that finds the queue full waits
/// as long.
const QUEUE_INTERVAL: Duration = Duration::from_millis(2);

/// Sends changes to the writing thread.
#[derive(Debug)]
pub struct Writer<P: Projector> {
    sender: mpsc::Sender<P::Change>,
    committed: watch::Receiver<P::Committed>,
    ended: oneshot::Receiver<Result<(), redb::Error>>,
    flush: Flush,
}

/// Requests an early commit from the writing thread. Cheap to clone.
#[derive(Debug, Clone, Default)]
pub struct Flush {
    requested: Arc<AtomicBool>,
}

impl Flush {
    /// Commits all changes that were sent before at once.
    pub fn request(&self) {
        self.requested.store(true, Ordering::Release);
    }

    fn is_requested(&self) -> bool {
        self.requested.load(Ordering::Acquire)
    }

    /// Ends the request. Called before the waiting changes are taken, so that a later request is for a later commit.
    fn take(&self) -> bool {
        self.requested.swap(false, Ordering::AcqRel)
    }
}

/// The writing thread has ended; [`Writer::close`] says why.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the projection is no longer written")]
pub struct WriterGone;

impl<P: Projector> Writer<P> {
    /// Starts the thread as `name`. `committed` is the present state of the file.
    ///
    /// # Errors
    ///
    /// The system cannot start a thread.
    pub fn start(
        database: Arc<Database>,
        projector: P,
        committed: P::Committed,
        pace: CommitInterval,
        name: String,
    ) -> io::Result<Self> {
        let (sender, receiver) = mpsc::channel(pace.queue.max(1));
        let (told, committed) = watch::channel(committed);
        let (end, ended) = oneshot::channel();
        let flush = Flush::default();
        let requested = flush.clone();
        thread::Builder::new().name(name).spawn(move || {
            let result = write(&database, projector, receiver, &told, &requested, pace);
            // Receivers of the end may open the file again.
            drop(database);
            let _ = end.send(result);
        })?;
        Ok(Self { sender, committed, ended, flush })
    }

    /// Sends a change; waits while the queue is full.
    ///
    /// # Errors
    ///
    /// [`WriterGone`].
    pub async fn send(&self, change: P::Change) -> Result<(), WriterGone> {
        self.sender.send(change).await.map_err(|_| WriterGone)
    }

    /// Reserves room for one change. Cancel safe.
    ///
    /// # Errors
    ///
    /// [`WriterGone`].
    pub async fn reserve(&self) -> Result<mpsc::Permit<'_, P::Change>, WriterGone> {
        self.sender.reserve().await.map_err(|_| WriterGone)
    }

    /// State of the newest commit. A closed channel means that the thread has ended.
    pub fn committed(&self) -> watch::Receiver<P::Committed> {
        self.committed.clone()
    }

    /// Shortens the interval before the next commit, from any task.
    pub fn flush(&self) -> Flush {
        self.flush.clone()
    }

    /// Commits the waiting changes, ends the thread, and returns its result.
    ///
    /// # Errors
    ///
    /// The error of redb that ended the thread, also an earlier one.
    pub async fn close(self) -> Result<(), redb::Error> {
        drop(self.sender);
        // Without a result the thread has panicked: its transaction is lost, earlier commits are not.
        self.ended.await.unwrap_or_else(|_| Err(redb::Error::Corrupted("the writing thread panicked".into())))
    }
}

fn write<P: Projector>(
    database: &Database,
    mut projector: P,
    mut receiver: mpsc::Receiver<P::Change>,
    told: &watch::Sender<P::Committed>,
    flush: &Flush,
    pace: CommitInterval,
) -> Result<(), redb::Error> {
    let mut next_commit = Instant::now();
    let mut next_sync = next_commit;
    let mut synced = true;
    let mut gathered = Gathered::<P>::default();
    let mut rest = Rest::default();
    while gathered.take_first(&mut receiver, projector.wants_upkeep()) {
        while !gathered.is_full(pace) && Instant::now() < next_commit && !flush.is_requested() && !receiver.is_closed()
        {
            if projector.wants_upkeep() && rest.is_over() {
                let started = Instant::now();
                let transaction = begin(database, false)?;
                projector.upkeep(&transaction)?;
                transaction.commit()?;
                synced = false;
                rest.after(started.elapsed());
            } else {
                thread::sleep(next_commit.saturating_duration_since(Instant::now()).min(QUEUE_INTERVAL));
            }
            gathered.take_waiting(&mut receiver, pace);
        }
        let flushed = flush.take();
        gathered.take_waiting(&mut receiver, pace);
        if flushed && !receiver.is_empty() {
            // More was sent than one commit holds.
            flush.request();
        }
        if gathered.changes.is_empty() {
            // Upkeep without a change: its transactions are synced with the next commit.
            next_commit = Instant::now() + pace.interval;
            continue;
        }
        synced = Instant::now() >= next_sync;
        let transaction = begin(database, synced)?;
        let committed = projector.apply(&transaction, gathered.take())?;
        transaction.commit()?;
        told.send_replace(committed);
        let now = Instant::now();
        next_commit = now + pace.interval;
        if synced {
            next_sync = now + pace.sync_interval;
        }
    }
    if !synced {
        // It also syncs the earlier commits.
        begin(database, true)?.commit()?;
    }
    Ok(())
}

/// The changes of the next commit.
struct Gathered<P: Projector> {
    changes: Vec<P::Change>,
    weight: usize,
}

impl<P: Projector> Default for Gathered<P> {
    fn default() -> Self {
        Self { changes: Vec::new(), weight: 0 }
    }
}

impl<P: Projector> Gathered<P> {
    /// Waits for a change, unless there is other work. Returns whether the thread continues.
    fn take_first(&mut self, receiver: &mut mpsc::Receiver<P::Change>, busy: bool) -> bool {
        if !self.changes.is_empty() {
            return true;
        }
        let change = if busy && !receiver.is_closed() {
            match receiver.try_recv() {
                Err(mpsc::error::TryRecvError::Empty) => return true,
                received => received.ok(),
            }
        } else {
            receiver.blocking_recv()
        };
        change.map(|change| self.push(change)).is_some()
    }

    /// Takes the waiting changes, as far as they fit.
    fn take_waiting(&mut self, receiver: &mut mpsc::Receiver<P::Change>, pace: CommitInterval) {
        while !self.is_full(pace)
            && let Ok(change) = receiver.try_recv()
        {
            self.push(change);
        }
    }

    fn push(&mut self, change: P::Change) {
        self.weight = self.weight.saturating_add(P::weight(&change));
        self.changes.push(change);
    }

    fn is_full(&self, pace: CommitInterval) -> bool {
        self.weight >= pace.commit.max(1)
    }

    fn take(&mut self) -> Vec<P::Change> {
        self.weight = 0;
        std::mem::take(&mut self.changes)
    }
}

/// Upkeep pauses for as long as it has worked, so that it takes at most half a processor.
#[derive(Default)]
struct Rest {
    until: Option<Instant>,
}

impl Rest {
    fn is_over(&self) -> bool {
        self.until.is_none_or(|until| Instant::now() >= until)
    }

    fn after(&mut self, worked: Duration) {
        self.until = Some(Instant::now() + worked);
    }
}

fn begin(database: &Database, synced: bool) -> Result<WriteTransaction, redb::Error> {
    let mut transaction = database.begin_write()?;
    if synced {
        // After a crash the file opens at once instead of being scanned.
        transaction.set_quick_repair(true);
    } else {
        transaction.set_durability(Durability::None)?;
    }
    Ok(transaction)
}

#[cfg(test)]
mod tests {
    use redb::{ReadableDatabase as _, ReadableTable as _, TableDefinition};

    use super::*;

    const SUM: TableDefinition<(), u64> = TableDefinition::new("sum");

    /// Adds numbers and publishes the sum; refuses 1313.
    struct Sum;

    impl Projector for Sum {
        type Change = u64;
        type Committed = u64;

        fn apply(&mut self, transaction: &WriteTransaction, changes: Vec<u64>) -> Result<u64, redb::Error> {
            let mut table = transaction.open_table(SUM)?;
            let mut sum = table.get(())?.map_or(0, |sum| sum.value());
            for change in changes {
                if change == 1313 {
                    return Err(redb::Error::Corrupted("1313".into()));
                }
                sum += change;
            }
            table.insert((), sum)?;
            Ok(sum)
        }
    }

    const COMMIT_INTERVAL: CommitInterval =
        CommitInterval { queue: 8, commit: 4, interval: Duration::from_millis(5), sync_interval: Duration::ZERO };

    fn start(database: &Arc<Database>, pace: CommitInterval) -> Writer<Sum> {
        Writer::start(database.clone(), Sum, 0, pace, "sum".into()).unwrap()
    }

    fn stored(database: &Database) -> u64 {
        database.begin_read().unwrap().open_table(SUM).unwrap().get(()).unwrap().unwrap().value()
    }

    #[tokio::test]
    async fn what_was_handed_over_is_committed_and_told() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("sum.redb");
        let database = Arc::new(Database::create(&path).unwrap());
        let writer = start(&database, COMMIT_INTERVAL);
        let mut committed = writer.committed();
        for number in 1..=100 {
            writer.send(number).await.unwrap();
        }
        committed.wait_for(|sum| *sum == 5050).await.unwrap();
        assert_eq!(stored(&database), 5050);
        writer.send(1).await.unwrap();
        writer.close().await.unwrap();
        assert_eq!(stored(&database), 5051);
        // The thread has closed the file.
        drop(database);
        Database::create(&path).unwrap();
    }

    /// Commits between two syncs are visible at once; a crash loses them, an orderly end does not.
    #[tokio::test]
    async fn what_is_not_synced_is_seen_and_kept_by_an_orderly_end() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("sum.redb");
        let after_a_crash = || {
            let copy = folder.path().join("crashed.redb");
            std::fs::copy(&path, &copy).unwrap();
            stored(&Database::create(&copy).unwrap())
        };
        let database = Arc::new(Database::create(&path).unwrap());
        let writer = start(&database, CommitInterval { sync_interval: Duration::from_secs(3600), ..COMMIT_INTERVAL });
        let mut committed = writer.committed();
        for (number, sum) in [(1, 1), (2, 3), (3, 6)] {
            writer.send(number).await.unwrap();
            committed.wait_for(|told| *told == sum).await.unwrap();
            assert_eq!((stored(&database), after_a_crash()), (sum, 1), "only the first is synced");
        }
        writer.close().await.unwrap();
        assert_eq!(after_a_crash(), 6);
    }

    /// A sender with more changes than a commit holds does not wait for the rest of the interval.
    #[tokio::test]
    async fn a_full_commit_waits_for_no_interval() {
        let folder = tempfile::tempdir().unwrap();
        let database = Arc::new(Database::create(folder.path().join("sum.redb")).unwrap());
        let writer =
            start(&database, CommitInterval { queue: 4, interval: Duration::from_secs(3600), ..COMMIT_INTERVAL });
        let mut committed = writer.committed();
        let sending = async {
            writer.send(1).await.unwrap();
            committed.wait_for(|sum| *sum == 1).await.unwrap();
            for round in 1..=10 {
                writer.send(1).await.unwrap();
                // The thread has taken it and waits for more when the others arrive.
                while writer.sender.capacity() < 4 {
                    tokio::task::yield_now().await;
                }
                for _ in 0..3 {
                    writer.send(1).await.unwrap();
                }
                committed.wait_for(|sum| *sum == 1 + 4 * round).await.unwrap();
            }
        };
        tokio::time::timeout(Duration::from_secs(30), sending).await.expect("a full commit is made at once");
    }

    /// A caller that requests a commit does not wait for the interval, for any number of commits.
    #[tokio::test]
    async fn a_flush_commits_what_was_sent() {
        let folder = tempfile::tempdir().unwrap();
        let database = Arc::new(Database::create(folder.path().join("sum.redb")).unwrap());
        let writer =
            start(&database, CommitInterval { queue: 8, interval: Duration::from_secs(3600), ..COMMIT_INTERVAL });
        let mut committed = writer.committed();
        let sending = async {
            for round in 1..=3 {
                for _ in 0..7 {
                    writer.send(1).await.unwrap();
                }
                writer.flush().request();
                committed.wait_for(|sum| *sum == 7 * round).await.unwrap();
            }
        };
        tokio::time::timeout(Duration::from_secs(30), sending).await.expect("a flush waits for no interval");
    }

    #[tokio::test]
    async fn a_failed_commit_ends_the_writer_and_says_why() {
        let folder = tempfile::tempdir().unwrap();
        let database = Arc::new(Database::create(folder.path().join("sum.redb")).unwrap());
        let writer = start(&database, COMMIT_INTERVAL);
        writer.send(5).await.unwrap();
        writer.committed().wait_for(|sum| *sum == 5).await.unwrap();
        let mut committed = writer.committed();
        writer.send(1313).await.unwrap();
        while committed.changed().await.is_ok() {}
        assert!(matches!(writer.send(1).await, Err(WriterGone)));
        assert!(matches!(writer.close().await, Err(redb::Error::Corrupted(_))));
        assert_eq!(stored(&database), 5);
    }
}
