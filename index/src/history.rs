//! Operators' queries: events, their deliveries and attempts, dead letters, and the progress of commands. A
//! projection of EVENTS, OUTCOMES, COMMANDS and DLQ of all shards.
//!
//! A delivery is keyed by (shard, sequence, subscription uid, run), and each stream writes only facts that no other stream
//! has, so the streams may be read in any order relative to each other. Payloads are not stored: queries read them from
//! EVENTS, or from the copy on DLQ once the event has expired.
//!
//! - [`status`]: statuses of deliveries, events and dead letters; pure.
//! - `tables`: the rows; `apply`: rows from messages; `copy`: the copies on DLQ; `sweep`: removal of expired rows.
//! - `events`, `dead_letters`, `lanes`, `replays`, `requests`: reading.
//! - `follow`: the tasks that keep it up to date; `change`: the writing thread; `bootstrap`: facts that OUTCOMES no
//!   longer holds.
//!
//! Reads see the commits to the file. A caller that must see a certain position waits for it first:
//! [`History::catch_up`], [`History::reach_command`], [`History::reach_commands`].

use std::{
    collections::BTreeSet,
    path::PathBuf,
    sync::{Arc, Mutex, PoisonError, RwLock},
    time::Duration,
};

use jiff::Timestamp;
use redb::{Database, ReadableDatabase as _};
use tokio::{
    sync::watch,
    time::{Instant, timeout, timeout_at},
};
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use weft_catalog::Snapshot;
use weft_nats::{connect::Connection, streams, subject::Layout};
use weft_proto::{
    ids::{EventId, Run, ShardId, StreamSeq, SubscriptionUid, WorkflowId},
    v1,
};

use crate::projection::{self, OpenError};

mod apply;
mod bootstrap;
mod change;
mod copy;
mod dead_letters;
mod events;
mod follow;
mod identity;
mod ids;
mod lanes;
mod lost;
mod names;
mod pauses;
pub mod receivers;
mod replays;
mod requests;
pub mod status;
mod sweep;
mod tables;
#[cfg(test)]
mod tests;

use apply::StreamKind;
use change::Committed;
pub use dead_letters::{DeadLetter, DeadLetterCursor, DeadLetterFilter, DeadLetterPage};
pub use events::{DeliveryHistory, EventHistory};
pub use ids::{DeadLetterId, DeadLetterPlace, EventRef};
pub use lanes::{LaneCursor, LaneFilter, LaneHistory, LanePage};
pub use lost::{Lost, Named};
use names::Subscriptions;
pub use pauses::Pause;
pub use receivers::ReceiverHistory;
pub use replays::{ReplayCursor, ReplayPage};
pub use requests::{CommandItem, Decision, ItemProgress, StoredCommand};
use tables::View;
pub use weft_nats::commands::PART_SEPARATOR;

/// The version of the file; a file of another version is set aside and rebuilt.
const FORMAT: &str = "history 7";
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

/// Lag of a history at the time of a query.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum AsOf {
    /// It had read everything that the log held at the time of the query.
    Current,
    /// It had not, or had read messages that the log does not hold: a stream was restored or lost its tail, or its leader
    /// lags.
    Behind {
        /// Number of messages that only one of the two has.
        messages: u64,
        /// Storage time of the last message read, of the stream that lags most. `None`: no message of
        /// that stream has been read, or more than it holds.
        time: Option<Timestamp>,
    },
}

impl AsOf {
    /// From the ends of streams and the positions up to which they have been read.
    fn of(ends: &[(usize, StreamSeq)], positions: &[StreamSeq], stored_at: &[Option<Timestamp>]) -> Self {
        let left = |index: usize, end: StreamSeq| end.0.saturating_sub(positions.get(index).map_or(0, |read| read.0));
        let lagging: Vec<usize> =
            ends.iter().filter(|(index, end)| left(*index, *end) > 0).map(|(index, _)| *index).collect();
        if lagging.is_empty() {
            return Self::Current;
        }
        // `None` is less than any time.
        let time = lagging.iter().map(|index| stored_at.get(*index).copied().flatten()).min().flatten();
        Self::Behind { messages: ends.iter().map(|(index, end)| left(*index, *end)).sum(), time }
    }
}

#[derive(Debug)]
struct HistoryState {
    connection: Connection,
    layout: Layout,
    options: HistoryOptions,
    catalog: watch::Receiver<Arc<Snapshot>>,
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
            .chain([StreamKind::DeadLetters])
            .collect();
        let positions = watch::Sender::new(vec![StreamSeq(0); sources.len()]);
        let progress = watch::Sender::new(Some("history: not opened yet".to_owned()));
        let database = RwLock::new(None);
        let stored_at = Mutex::new(vec![None; sources.len()]);
        let shared =
            HistoryState { connection, layout, options, catalog, sources, database, positions, stored_at, progress };
        let shared = Arc::new(shared);
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
        let stored_at = shared.stored_at.lock().unwrap_or_else(PoisonError::into_inner);
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

    /// An event with its deliveries, the newest one if its id occurs several times; `None` if no such event is kept.
    ///
    /// # Errors
    ///
    /// [`HistoryError`].
    pub async fn event(&self, event: EventRef) -> Result<Option<EventHistory>, HistoryError> {
        self.read(move |view, subscriptions| {
            match events::places(view, event.event)?.into_iter().rfind(|(_, seq)| event.is_at(*seq)) {
                Some((shard, seq)) => events::event(view, subscriptions, shard, seq),
                None => Ok(None),
            }
        })
        .await
    }

    /// The event at this place with its deliveries; `None` if it is not known.
    ///
    /// # Errors
    ///
    /// [`HistoryError`].
    pub async fn event_at(&self, shard: ShardId, seq: StreamSeq) -> Result<Option<EventHistory>, HistoryError> {
        self.read(move |view, subscriptions| events::event(view, subscriptions, shard, seq)).await
    }

    /// The places in the log of all events of this id, the newest last; also where only a dead letter is kept.
    ///
    /// # Errors
    ///
    /// [`HistoryError`].
    pub async fn places_of(&self, id: EventId) -> Result<Vec<(ShardId, StreamSeq)>, HistoryError> {
        self.read(move |view, _| events::places(view, id)).await
    }

    /// The newest place before `before` of an event with this id in a workflow.
    ///
    /// # Errors
    ///
    /// [`HistoryError`].
    pub async fn place_before(
        &self,
        id: EventId,
        workflow: WorkflowId,
        shard: ShardId,
        before: StreamSeq,
    ) -> Result<Option<StreamSeq>, HistoryError> {
        self.read(move |view, _| events::place_before(view, id, workflow.as_str(), shard, before)).await
    }

    /// The place of an event in the log, or its former place if a dead letter of it is kept.
    ///
    /// # Errors
    ///
    /// [`HistoryError`].
    pub async fn position_of(&self, id: EventId) -> Result<Option<(ShardId, StreamSeq)>, HistoryError> {
        self.read(move |view, _| Ok(events::places(view, id)?.pop())).await
    }

    /// The dead letters that each of these ids names, in the order given: several if an event's id occurs at several
    /// places of the log.
    ///
    /// # Errors
    ///
    /// [`HistoryError`].
    pub async fn find_dead_letters(&self, ids: Vec<DeadLetterId>) -> Result<Vec<Vec<DeadLetter>>, HistoryError> {
        self.read(move |view, subscriptions| ids.iter().map(|id| dead_letters::find(view, subscriptions, id)).collect())
            .await
    }

    /// Dead letters after `after`, the newest first, at most `limit`. A page may be short, even empty, before the end: it ends
    /// after some ten thousand rows, also with a selective filter.
    ///
    /// # Errors
    ///
    /// [`HistoryError`].
    pub async fn dead_letters(
        &self,
        filter: DeadLetterFilter,
        after: Option<DeadLetterCursor>,
        limit: usize,
    ) -> Result<DeadLetterPage, HistoryError> {
        self.read(move |view, subscriptions| dead_letters::page(view, subscriptions, &filter, after, limit)).await
    }

    /// The commands of a request, by shard; empty when the request is unknown.
    ///
    /// # Errors
    ///
    /// [`HistoryError`].
    pub async fn request(&self, request_id: String) -> Result<Vec<StoredCommand>, HistoryError> {
        self.read(move |view, _| requests::request(view, &request_id)).await
    }

    /// Whether the shard's owner has executed a command; [`item_progress`](Self::item_progress) returns the state of its items.
    ///
    /// # Errors
    ///
    /// [`HistoryError`].
    pub async fn is_carried_out(&self, shard: ShardId, command: Run) -> Result<bool, HistoryError> {
        self.read(move |view, _| requests::is_carried_out(view, shard, command)).await
    }

    /// Whether a shard's owner has executed a command to adopt it.
    ///
    /// # Errors
    ///
    /// [`HistoryError`].
    pub async fn is_adopted(&self, shard: ShardId, command: Run) -> Result<bool, HistoryError> {
        self.read(move |view, _| Ok(view.adoptions.get((shard.0, command.0))?.is_some())).await
    }

    /// The effects of an adoption of a shard that keeps events up to `events` and runs of commands up to `commands`;
    /// names at most `limit` of each.
    ///
    /// # Errors
    ///
    /// [`HistoryError`].
    pub async fn lost(
        &self,
        shard: ShardId,
        events: StreamSeq,
        commands: u64,
        limit: usize,
    ) -> Result<Lost, HistoryError> {
        self.read(move |view, subscriptions| lost::lost(view, subscriptions, shard, events, commands, limit)).await
    }

    /// Whether a shard's owner has refused an item of a command.
    ///
    /// # Errors
    ///
    /// [`HistoryError`].
    pub async fn is_refused(&self, item: CommandItem) -> Result<bool, HistoryError> {
        self.read(move |view, _| requests::is_refused(view, &item)).await
    }

    /// Lanes after `after`, by workflow, at most `limit`. A page may be short, even empty, before the end.
    ///
    /// # Errors
    ///
    /// [`HistoryError`].
    pub async fn lanes(
        &self,
        filter: LaneFilter,
        after: Option<LaneCursor>,
        limit: usize,
    ) -> Result<LanePage, HistoryError> {
        let layout = self.shared.layout;
        self.read(move |view, subscriptions| lanes::page(view, subscriptions, layout, &filter, after, limit)).await
    }

    /// The attempt of an event's live run that has ended last.
    ///
    /// # Errors
    ///
    /// [`HistoryError`].
    pub async fn last_attempt(
        &self,
        shard: ShardId,
        seq: StreamSeq,
        uid: SubscriptionUid,
    ) -> Result<Option<v1::Attempt>, HistoryError> {
        self.read(move |view, _| events::last_attempt(view, shard, seq, uid)).await
    }

    /// Receivers that are away or held, as the owners of the shards see them.
    ///
    /// # Errors
    ///
    /// [`HistoryError`].
    pub async fn receivers(&self) -> Result<Vec<ReceiverHistory>, HistoryError> {
        self.read(move |view, _| receivers::all(view)).await
    }

    /// Subscriptions that are paused, by the catalog.
    ///
    /// # Errors
    ///
    /// [`HistoryError`].
    pub async fn paused_subscriptions(&self) -> Result<BTreeSet<SubscriptionUid>, HistoryError> {
        self.read(move |_, subscriptions| {
            let paused = subscriptions.uids().filter(|uid| subscriptions.get(uid).is_some_and(|known| known.paused));
            Ok(paused.map(|uid| SubscriptionUid::from_bytes(*uid)).collect())
        })
        .await
    }

    /// Which of these deliveries an operator has resolved or discarded, in the order given; `run` is not used.
    ///
    /// # Errors
    ///
    /// [`HistoryError`].
    pub async fn decisions(&self, items: Vec<CommandItem>) -> Result<Vec<Option<v1::OutcomeKind>>, HistoryError> {
        self.read(move |view, _| requests::decisions(view, &items)).await
    }

    /// The request ids of replays, the newest first, at most `limit`.
    ///
    /// # Errors
    ///
    /// [`HistoryError`].
    pub async fn replays(&self, after: Option<ReplayCursor>, limit: usize) -> Result<ReplayPage, HistoryError> {
        self.read(move |view, _| replays::page(view, after, limit)).await
    }

    /// As [`open_subscriptions`](Self::open_subscriptions), after all outcomes that the log holds at this moment have been
    /// read.
    ///
    /// # Errors
    ///
    /// [`HistoryError`], also when that takes longer than `patience`.
    pub async fn open_subscriptions_now(
        &self,
        patience: Duration,
    ) -> Result<Vec<(ShardId, v1::SubscriptionState)>, HistoryError> {
        let ends = self.ends(|source| matches!(source, StreamKind::Outcomes(_))).await?;
        let reached = |positions: &Vec<StreamSeq>| ends.iter().all(|(index, end)| positions[*index] >= *end);
        self.wait(patience, reached).await?;
        self.open_subscriptions().await
    }

    /// The subscriptions that the shards' owners have opened and not closed, as far as the history has read.
    ///
    /// # Errors
    ///
    /// [`HistoryError`].
    pub async fn open_subscriptions(&self) -> Result<Vec<(ShardId, v1::SubscriptionState)>, HistoryError> {
        self.read(|view, _| names::open(view)).await
    }

    /// The newest command to a replay.
    ///
    /// # Errors
    ///
    /// [`HistoryError`].
    pub async fn replay_order(&self, replay: String) -> Result<Option<v1::ReplayAction>, HistoryError> {
        self.read(move |view, _| replays::order(view, &replay)).await
    }

    /// Progress of these items of commands, in the order given.
    ///
    /// # Errors
    ///
    /// [`HistoryError`].
    pub async fn item_progress(&self, items: Vec<CommandItem>) -> Result<Vec<ItemProgress>, HistoryError> {
        self.read(move |view, _| requests::progress(view, &items)).await
    }

    /// Runs a query on a thread that may block, on one state of the file.
    async fn read<T: Send + 'static>(
        &self,
        query: impl FnOnce(&View, &Subscriptions) -> Result<T, redb::Error> + Send + 'static,
    ) -> Result<T, HistoryError> {
        let database = self.shared.database.read().unwrap_or_else(PoisonError::into_inner).clone();
        let Some(database) = database else {
            return Err(HistoryError::Building(self.shared.progress.borrow().clone().unwrap_or_default()));
        };
        let subscriptions = Subscriptions::of(&self.shared.catalog.borrow());
        let answer = tokio::task::spawn_blocking(move || {
            let view = View::open(&database.begin_read()?)?;
            query(&view, &subscriptions)
        });
        Ok(answer.await.unwrap_or_else(|error| Err(redb::Error::Corrupted(error.to_string())))?)
    }
}

impl HistoryState {
    fn file(&self) -> PathBuf {
        self.options.folder.join(FILE)
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
        self.stored_at.lock().unwrap_or_else(PoisonError::into_inner).clone_from(&committed.stored_at);
        self.positions.send_replace(committed.positions.clone());
    }

    /// Makes the file available to readers; `None`: not available.
    fn publish(&self, database: Option<Arc<Database>>) {
        *self.database.write().unwrap_or_else(PoisonError::into_inner) = database;
    }
}

#[cfg(test)]
mod as_of_tests {
    use super::*;

    #[test]
    fn the_stream_that_lags_most_says_how_far_an_answer_is() {
        let at = |second| Some(Timestamp::from_second(second).unwrap());
        let ends = [(0, StreamSeq(10)), (2, StreamSeq(5))];
        let positions = [10, 0, 5].map(StreamSeq);
        assert_eq!(AsOf::of(&ends, &positions, &[at(9), None, at(3)]), AsOf::Current);
        let positions = [7, 0, 4].map(StreamSeq);
        let behind = |time| AsOf::Behind { messages: 4, time };
        assert_eq!(AsOf::of(&ends, &positions, &[at(9), None, at(3)]), behind(at(3)));
        assert_eq!(AsOf::of(&ends, &positions, &[at(9), None, None]), behind(None), "nothing of it has been read");
        let positions = [7, 0, 5].map(StreamSeq);
        assert_eq!(AsOf::of(&ends, &positions, &[at(9), None, at(3)]), AsOf::Behind { messages: 3, time: at(9) });
    }
}
