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

/// How changes become rows.
pub trait Projector: Send + 'static {
    /// What is applied, such as the messages of one read.
    type Change: Send + 'static;
    /// What is told after each commit, such as the cursor.
    type Committed: Clone + Send + Sync + 'static;

    /// Applies changes in order, with the cursor behind them, as part of `transaction`.
    ///
    /// # Errors
    ///
    /// What redb says: nothing of the transaction is kept, and the writer ends.
    fn apply(
        &mut self,
        transaction: &WriteTransaction,
        changes: Vec<Self::Change>,
    ) -> Result<Self::Committed, redb::Error>;
}

/// How much is gathered into one commit.
#[derive(Debug, Clone, Copy)]
pub struct Pace {
    /// The most changes that wait; who sends more, waits.
    pub queue: usize,
    /// The most changes of one commit: what a crash can make the projection read again.
    pub commit: usize,
    /// From one commit to the next at least, unless so much waits that a commit is full.
    pub interval: Duration,
    /// From one commit that syncs the disk, which the log's own syncs share, to the next that does. Those between are seen at
    /// once; a crash loses them, and the log is read again from the last synced one on. Zero: each is synced.
    pub sync_interval: Duration,
}

/// How often the thread looks whether a commit is full while it gathers one: whoever sends the next change waits so long.
const LOOK: Duration = Duration::from_millis(2);

/// Hands changes to the writing thread.
#[derive(Debug)]
pub struct Writer<P: Projector> {
    sender: mpsc::Sender<P::Change>,
    committed: watch::Receiver<P::Committed>,
    ended: oneshot::Receiver<Result<(), redb::Error>>,
    flush: Flush,
}

/// Asks a writing thread not to wait for the end of its interval. Cheap to clone.
#[derive(Debug, Clone, Default)]
pub struct Flush {
    requested: Arc<AtomicBool>,
}

impl Flush {
    /// What waits, or else the next change, is committed at once.
    pub fn request(&self) {
        self.requested.store(true, Ordering::Release);
    }

    fn is_requested(&self) -> bool {
        self.requested.load(Ordering::Acquire)
    }

    /// Called before the waiting changes are taken, so that a later request is for a later commit.
    fn done(&self) {
        self.requested.store(false, Ordering::Release);
    }
}

/// The writing thread has ended; [`Writer::close`] says why.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the projection is no longer written")]
pub struct WriterGone;

impl<P: Projector> Writer<P> {
    /// Starts the thread under `name`. `committed` is what the file holds now.
    ///
    /// # Errors
    ///
    /// The system gives no thread.
    pub fn start(
        database: Arc<Database>,
        projector: P,
        committed: P::Committed,
        pace: Pace,
        name: String,
    ) -> io::Result<Self> {
        let (sender, receiver) = mpsc::channel(pace.queue.max(1));
        let (told, committed) = watch::channel(committed);
        let (end, ended) = oneshot::channel();
        let flush = Flush::default();
        let requested = flush.clone();
        thread::Builder::new().name(name).spawn(move || {
            let result = write(&database, projector, receiver, &told, &requested, pace);
            // Whoever hears of the end may open the file again.
            drop(database);
            let _ = end.send(result);
        })?;
        Ok(Self { sender, committed, ended, flush })
    }

    /// Hands over a change; waits while as many wait as may.
    ///
    /// # Errors
    ///
    /// [`WriterGone`].
    pub async fn send(&self, change: P::Change) -> Result<(), WriterGone> {
        self.sender.send(change).await.map_err(|_| WriterGone)
    }

    /// Waits for room for one change. Safe to cancel.
    ///
    /// # Errors
    ///
    /// [`WriterGone`].
    pub async fn reserve(&self) -> Result<mpsc::Permit<'_, P::Change>, WriterGone> {
        self.sender.reserve().await.map_err(|_| WriterGone)
    }

    /// What has been committed. The sender's end means that the thread has ended.
    pub fn committed(&self) -> watch::Receiver<P::Committed> {
        self.committed.clone()
    }

    /// Shortens the interval before the next commit, from any task.
    pub fn flush(&self) -> Flush {
        self.flush.clone()
    }

    /// Commits what waits, ends the thread, and says how it ended.
    ///
    /// # Errors
    ///
    /// What redb said, also when that was long ago.
    pub async fn close(self) -> Result<(), redb::Error> {
        drop(self.sender);
        // Without a word the thread has panicked: its transaction is lost, what was committed before is not.
        self.ended.await.unwrap_or_else(|_| Err(redb::Error::Corrupted("the writing thread panicked".into())))
    }
}

fn write<P: Projector>(
    database: &Database,
    mut projector: P,
    mut receiver: mpsc::Receiver<P::Change>,
    told: &watch::Sender<P::Committed>,
    flush: &Flush,
    pace: Pace,
) -> Result<(), redb::Error> {
    let commit_max = pace.commit.clamp(1, pace.queue.max(1));
    let mut next_commit = Instant::now();
    let mut next_sync = next_commit;
    let mut synced = true;
    while let Some(change) = receiver.blocking_recv() {
        while receiver.len() + 1 < commit_max && !receiver.is_closed() && !flush.is_requested() {
            let pause = next_commit.saturating_duration_since(Instant::now());
            if pause.is_zero() {
                break;
            }
            thread::sleep(pause.min(LOOK));
        }
        flush.done();
        let mut changes = Vec::with_capacity((receiver.len() + 1).min(commit_max));
        changes.push(change);
        while changes.len() < commit_max
            && let Ok(change) = receiver.try_recv()
        {
            changes.push(change);
        }
        synced = Instant::now() >= next_sync;
        let transaction = begin(database, synced)?;
        let committed = projector.apply(&transaction, changes)?;
        transaction.commit()?;
        told.send_replace(committed);
        let now = Instant::now();
        next_commit = now + pace.interval;
        if synced {
            next_sync = now + pace.sync_interval;
        }
    }
    if !synced {
        // With it goes what was committed before.
        begin(database, true)?.commit()?;
    }
    Ok(())
}

fn begin(database: &Database, synced: bool) -> Result<WriteTransaction, redb::Error> {
    let mut transaction = database.begin_write()?;
    if synced {
        // After a crash the file opens at once instead of being walked from end to end.
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

    /// Adds numbers up and tells the sum; refuses 1313.
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

    const PACE: Pace = Pace { queue: 8, commit: 4, interval: Duration::from_millis(5), sync_interval: Duration::ZERO };

    fn start(database: &Arc<Database>, pace: Pace) -> Writer<Sum> {
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
        let writer = start(&database, PACE);
        let mut committed = writer.committed();
        for number in 1..=100 {
            writer.send(number).await.unwrap();
        }
        committed.wait_for(|sum| *sum == 5050).await.unwrap();
        assert_eq!(stored(&database), 5050);
        writer.send(1).await.unwrap();
        writer.close().await.unwrap();
        assert_eq!(stored(&database), 5051);
        // The thread has let go of the file.
        drop(database);
        Database::create(&path).unwrap();
    }

    /// What is committed between two syncs is seen at once; a crash loses it, an orderly end does not.
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
        let writer = start(&database, Pace { sync_interval: Duration::from_secs(3600), ..PACE });
        let mut committed = writer.committed();
        for (number, sum) in [(1, 1), (2, 3), (3, 6)] {
            writer.send(number).await.unwrap();
            committed.wait_for(|told| *told == sum).await.unwrap();
            assert_eq!((stored(&database), after_a_crash()), (sum, 1), "only the first is synced");
        }
        writer.close().await.unwrap();
        assert_eq!(after_a_crash(), 6);
    }

    /// Who sends more than waits for a commit is not held up for the rest of the interval.
    #[tokio::test]
    async fn a_full_commit_waits_for_no_interval() {
        let folder = tempfile::tempdir().unwrap();
        let database = Arc::new(Database::create(folder.path().join("sum.redb")).unwrap());
        let writer = start(&database, Pace { queue: 4, interval: Duration::from_secs(3600), ..PACE });
        let mut committed = writer.committed();
        let sending = async {
            writer.send(1).await.unwrap();
            committed.wait_for(|sum| *sum == 1).await.unwrap();
            for round in 1..=10 {
                writer.send(1).await.unwrap();
                // The thread has taken it and gathers already when the others come.
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

    #[tokio::test]
    async fn a_flush_ends_the_interval() {
        let folder = tempfile::tempdir().unwrap();
        let database = Arc::new(Database::create(folder.path().join("sum.redb")).unwrap());
        let writer = start(&database, Pace { interval: Duration::from_secs(3600), ..PACE });
        let mut committed = writer.committed();
        let sending = async {
            for number in 1..=3 {
                writer.send(1).await.unwrap();
                writer.flush().request();
                committed.wait_for(|sum| *sum == number).await.unwrap();
            }
        };
        tokio::time::timeout(Duration::from_secs(30), sending).await.expect("a flush commits at once");
    }

    #[tokio::test]
    async fn a_failed_commit_ends_the_writer_and_says_why() {
        let folder = tempfile::tempdir().unwrap();
        let database = Arc::new(Database::create(folder.path().join("sum.redb")).unwrap());
        let writer = start(&database, PACE);
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
