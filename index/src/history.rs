//! Operators' queries: events, their deliveries and attempts, dead letters, and the progress of commands. A
//! projection of EVENTS, OUTCOMES, COMMANDS, DLQ and REJECTED of all shards.
//!
//! A delivery is keyed by (shard, sequence, subscription uid, run), and each stream writes only facts that no other stream
//! has, so the streams may be read in any order relative to each other. Payloads are not stored: queries read them from
//! EVENTS, or from the copy on DLQ once the event has expired.
//!
//! - [`status`]: statuses of deliveries, events and dead letters; pure.
//! - [`stats`]: counts and durations by minute; backlogs.
//! - `tables`: the rows; `apply`: rows from messages; `dead_letter_copy`: the copies on DLQ; `sweep`: removal of expired rows.
//! - `postings`: the secondary index of events, of the sets in `bits`; `list` and `with_status`: events by filters.
//! - `queries`: reading, by `events`, `dead_letters`, `lanes`, `replays`, `requests`; `as_of`: how far an answer is.
//! - `follow`: the tasks that keep it up to date; `change`: the writing thread; `bootstrap`: facts that OUTCOMES no
//!   longer holds.
//!
//! Reads see the commits to the file. A caller that must see a certain position waits for it first:
//! [`History::catch_up`], [`History::reach_command`], [`History::reach_commands`].

use std::{path::PathBuf, sync::Arc, time::Duration};

use jiff::Timestamp;
use parking_lot::{Mutex, RwLock};
use redb::Database;
use tokio::{
    sync::watch,
    time::{Instant, timeout, timeout_at},
};
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use weft_catalog::Snapshot;
use weft_nats::{connect::Connection, streams, subject::Layout};
use weft_proto::ids::{Run, ShardId, StreamSeq};

use crate::projection::{self, OpenError};

mod adoption_effects;
mod apply;
mod as_of;
mod audit;
mod bits;
mod bootstrap;
mod change;
mod dead_letter_copy;
mod dead_letters;
mod events;
mod follow;
mod identity;
mod ids;
mod lanes;
mod list;
mod names;
mod pauses;
mod postings;
mod queries;
pub mod receivers;
mod replays;
mod requests;
pub mod stats;
pub mod status;
mod sweep;
mod tables;
mod terms;
#[cfg(test)]
mod tests;
mod with_status;

pub use adoption_effects::{Lost, Named};
use apply::StreamKind;
pub use as_of::AsOf;
pub use audit::{AuditCursor, AuditEntry, AuditFilter, AuditPage};
use change::Committed;
pub use dead_letters::{DeadLetter, DeadLetterCursor, DeadLetterFilter, DeadLetterPage};
pub use events::{DeliveryHistory, EventHistory};
pub use ids::{DeadLetterId, DeadLetterPlace, EventRef};
pub use lanes::{LaneCursor, LaneFilter, LaneHistory, LanePage};
pub use list::{EventPage, EventQuery, ListedEvent};
use names::Subscriptions;
pub use pauses::Pause;
pub use receivers::ReceiverHistory;
pub use replays::{ReplayCursor, ReplayPage};
pub use requests::{CommandItem, Decision, ItemProgress, StoredCommand};
pub use weft_nats::commands::PART_SEPARATOR;

/// The version of the file; a file of another version is set aside and rebuilt.
const FORMAT: &str = "history 9";
/// The file's name in its folder.
const FILE: &str = "history.redb";
/// Pages of the file in memory, in bytes: operators look at the newest part, which the writer has just written.
const CACHE_BYTES: usize = 64 * 1024 * 1024;

/// Interval of retries while the log is missing or the file cannot be opened.
const RETRY_PAUSE: Duration = Duration::from_millis(500);

/// Options of a history.
#[derive(Debug, Clone)]
pub struct HistoryOptions {
    /// Holds its file.
    pub folder: PathBuf,
    /// How long dead letters are kept.
    pub dead_letter_retention: Duration,
    /// Interval at which expired rows are removed.
    pub sweep_interval: Duration,
}

/// A history that follows the log. Cheap to clone.
#[derive(Debug, Clone)]
pub struct History {
    shared: Arc<HistoryState>,
}

/// Error of a query of the history.
#[derive(Debug, thiserror::Error)]
pub enum HistoryError {
    /// It is being built.
    #[error("the history is being built: {0}; try again in a moment")]
    Building(String),
    /// It has not reached the requested position in time.
    #[error("the history has fallen behind the log; try again in a moment")]
    Behind,
    /// The end of the log is not known.
    #[error("{0}")]
    Log(#[from] streams::EnsureError),
    /// Its file cannot be read.
    #[error("the history cannot be read: {0}")]
    Database(#[from] redb::Error),
}

#[derive(Debug)]
struct HistoryState {
    connection: Connection,
    layout: Layout,
    options: HistoryOptions,
    catalog: watch::Receiver<Arc<Snapshot>>,
    /// The newest catalog that a query has asked for, and its subscriptions by uid.
    subscriptions: Mutex<(Arc<Snapshot>, Arc<Subscriptions>)>,
    /// The streams that it follows; positions are in this order.
    sources: Vec<StreamKind>,
    /// `None` while it is opened again.
    database: RwLock<Option<Arc<Database>>>,
    /// The committed position of each source.
    positions: watch::Sender<Vec<StreamSeq>>,
    /// Storage time of the last committed message of each source. `None`: nothing has been committed.
    stored_at: Mutex<Vec<Option<Timestamp>>>,
    /// The rest of the messages that the log held at the start.
    progress: watch::Sender<Option<String>>,
}

impl History {
    /// Opens or creates the file and starts to follow the log, on `tasks`, until `cancel`. The streams must exist;
    /// a missing server is waited for.
    ///
    /// # Errors
    ///
    /// [`OpenError`]: the folder cannot be used. A damaged file is rebuilt.
    pub async fn start(
        connection: Connection,
        layout: Layout,
        options: HistoryOptions,
        catalog: watch::Receiver<Arc<Snapshot>>,
        cancel: CancellationToken,
        tasks: &TaskTracker,
    ) -> Result<Self, OpenError> {
        let sources: Vec<StreamKind> = layout
            .all()
            .flat_map(|shard| [StreamKind::Events(shard), StreamKind::Outcomes(shard), StreamKind::Commands(shard)])
            .chain([StreamKind::DeadLetters, StreamKind::Rejected])
            .collect();
        let positions = watch::Sender::new(vec![StreamSeq(0); sources.len()]);
        let progress = watch::Sender::new(Some("history: not opened yet".to_owned()));
        let database = RwLock::new(None);
        let stored_at = Mutex::new(vec![None; sources.len()]);
        let subscriptions = Mutex::new((Arc::default(), Arc::new(Subscriptions::of(&Snapshot::default()))));
        let shared = Arc::new(HistoryState {
            connection,
            layout,
            options,
            catalog,
            subscriptions,
            sources,
            database,
            positions,
            stored_at,
            progress,
        });
        let database = shared.open().await?;
        // Recovers from faults, logs them, and ends with `cancel`.
        tasks.spawn(follow::supervise(Arc::clone(&shared), database, cancel));
        Ok(Self { shared })
    }

    /// Progress through the messages that the log held at the start; `None` once they have been read.
    pub fn progress(&self) -> watch::Receiver<Option<String>> {
        self.shared.progress.subscribe()
    }

    /// Changes with every commit to the file.
    pub fn changes(&self) -> watch::Receiver<Vec<StreamSeq>> {
        self.shared.positions.subscribe()
    }

    /// Waits until all messages that the log of these shards holds at this moment have been read, for at most `patience`, and
    /// returns the lag. Later messages are not waited for, so a busy log starves no caller.
    ///
    /// # Errors
    ///
    /// [`HistoryError::Log`] if the end of the log is not known.
    pub async fn catch_up(&self, shards: &[ShardId], patience: Duration) -> Result<AsOf, HistoryError> {
        let shared = &self.shared;
        let wanted = |source: &StreamKind| match source {
            StreamKind::Events(shard) | StreamKind::Outcomes(shard) | StreamKind::Commands(shard) => {
                shards.contains(shard)
            }
            // The copies on DLQ follow their outcomes and contain no other facts.
            StreamKind::DeadLetters => false,
            // Refused requests are only counted.
            StreamKind::Rejected => false,
        };
        let deadline = Instant::now() + patience;
        let ends = match self.ends_reached(wanted, patience).await? {
            Ok(ends) => ends,
            Err(behind) => return Ok(behind),
        };
        let mut positions = shared.positions.subscribe();
        let reached = |positions: &Vec<StreamSeq>| ends.iter().all(|(index, end)| positions[*index] >= *end);
        if timeout_at(deadline, positions.wait_for(reached)).await.is_ok_and(|reached| reached.is_ok()) {
            return Ok(AsOf::Current);
        }
        let positions = positions.borrow().clone();
        let stored_at = shared.stored_at.lock();
        Ok(AsOf::of(&ends, &positions, &stored_at))
    }

    /// Waits until all commands that the log holds at this moment have been read, so that repeated requests are recognised.
    ///
    /// # Errors
    ///
    /// [`HistoryError`] when that takes longer than `patience`, or the log does not answer.
    pub async fn reach_commands(&self, patience: Duration) -> Result<(), HistoryError> {
        let ends = self.ends(|source| matches!(source, StreamKind::Commands(_))).await?;
        self.wait(patience, |positions| ends.iter().all(|(index, end)| positions[*index] >= *end)).await
    }

    /// The present ends of the streams of these sources, by the source's index.
    async fn ends(&self, wanted: impl Fn(&StreamKind) -> bool) -> Result<Vec<(usize, StreamSeq)>, HistoryError> {
        let shared = &self.shared;
        let sources = shared.sources.iter().enumerate().filter(|(_, source)| wanted(source));
        futures_util::future::try_join_all(sources.map(|(index, source)| async move {
            let state = streams::state(&shared.connection, &source.stream(shared.layout)).await?;
            Ok::<_, HistoryError>((index, state.last))
        }))
        .await
    }

    /// Waits until a command has been read.
    ///
    /// # Errors
    ///
    /// [`HistoryError`] when that takes longer than `patience`.
    pub async fn reach_command(&self, shard: ShardId, command: Run, patience: Duration) -> Result<(), HistoryError> {
        let commands = StreamKind::Commands(shard);
        let Some(index) = self.shared.sources.iter().position(|source| *source == commands) else { return Ok(()) };
        self.wait(patience, |positions| positions[index].0 >= command.0).await
    }

    async fn wait(&self, patience: Duration, reached: impl FnMut(&Vec<StreamSeq>) -> bool) -> Result<(), HistoryError> {
        let mut positions = self.shared.positions.subscribe();
        let in_time = timeout(patience, positions.wait_for(reached)).await.is_ok_and(|reached| reached.is_ok());
        if in_time {
            return Ok(());
        }
        Err(match self.shared.progress.borrow().clone() {
            Some(progress) => HistoryError::Building(progress),
            None => HistoryError::Behind,
        })
    }
}

impl HistoryState {
    fn file(&self) -> PathBuf {
        self.options.folder.join(FILE)
    }

    /// The catalog's subscriptions by uid: made once for each snapshot, not for each query.
    fn subscriptions(&self) -> Arc<Subscriptions> {
        let catalog = Arc::clone(&self.catalog.borrow());
        let mut known = self.subscriptions.lock();
        if !Arc::ptr_eq(&known.0, &catalog) {
            *known = (Arc::clone(&catalog), Arc::new(Subscriptions::of(&catalog)));
        }
        Arc::clone(&known.1)
    }

    async fn open(&self) -> Result<Database, OpenError> {
        let path = self.file();
        let opened = tokio::task::spawn_blocking(move || projection::open(&path, FORMAT, CACHE_BYTES));
        opened.await.unwrap_or_else(|error| {
            Err(OpenError::Unusable { path: self.file(), source: std::io::Error::other(error) })
        })
    }

    /// Records the committed positions of the file.
    fn note(&self, committed: &Committed) {
        self.stored_at.lock().clone_from(&committed.stored_at);
        self.positions.send_replace(committed.positions.clone());
    }

    /// Makes the file available to readers; `None`: not available.
    fn publish(&self, database: Option<Arc<Database>>) {
        *self.database.write() = database;
    }
}
