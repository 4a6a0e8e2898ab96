//! The tasks that keep a history up to date: one reader per stream, one writing thread, the sweep.
//!
//! Any fault ends the round: the file is opened again if it could not be written, or removed and rebuilt
//! if it does not fit the log, and the next round begins. A fault of this cache never ends the process.

use std::{sync::Arc, time::Duration};

use redb::{Database, ReadableTable as _};
use tokio::{
    sync::watch,
    task::JoinSet,
    time::{Instant, sleep},
};
use tokio_util::sync::CancellationToken;
use weft_nats::{
    reader::{OrderedReader, ReadError, ReaderOptions},
    streams::{self, EnsureError},
};
use weft_proto::ids::{ShardId, StreamSeq};

use super::{
    HistoryState, RETRY_PAUSE,
    apply::{StreamKind, slim},
    bootstrap,
    change::{Change, Committed, Projection},
    sweep::Expired,
    tables::{SWEPT, Tables},
};
use crate::projection::{self, CommitInterval, Position, PositionCheck, Writer};

/// Messages of one read, which are one change.
const BATCH_MESSAGES: usize = 500;
/// A short commit interval groups reads, below a delay that a person notices. Commits between two syncs stay in memory: a page
/// is written once a sync for all of them, and after a crash the log is read again from the last sync on.
const COMMIT_INTERVAL: CommitInterval = CommitInterval {
    queue: 32,
    commit: 16,
    interval: Duration::from_millis(50),
    sync_interval: Duration::from_secs(2),
};
/// Interval at which the progress of building is logged.
const PROGRESS_INTERVAL: Duration = Duration::from_secs(10);
/// Minimum number of messages to read for which progress is logged.
const LOGGED_FROM: u64 = 10_000;

/// Reason why a round ends.
#[derive(Debug)]
enum End {
    Cancelled,
    /// The file does not fit the log.
    Rebuild(String),
    /// REJECTED, of which only counts are kept, is another stream or was restored.
    Reopen(String),
    /// The file could not be read or written.
    Failed(redb::Error),
}

impl From<redb::Error> for End {
    fn from(error: redb::Error) -> Self {
        Self::Failed(error)
    }
}

/// Follows the log until `cancel`, in rounds.
pub(super) async fn supervise(shared: Arc<HistoryState>, database: Database, cancel: CancellationToken) {
    let mut opened = Some(database);
    loop {
        let database = match opened.take() {
            Some(database) => database,
            None => match open_again(&shared, &cancel).await {
                Some(database) => database,
                None => return,
            },
        };
        let end = follow(&shared, Arc::new(database), &cancel).await;
        shared.publish(None);
        let remove = match &end {
            End::Cancelled => return,
            End::Rebuild(reason) => {
                tracing::warn!(reason, "history does not fit the log and is rebuilt");
                true
            }
            End::Reopen(reason) => {
                tracing::warn!(reason, "history is opened again");
                false
            }
            End::Failed(error) => {
                tracing::error!(%error, "history cannot be written and is opened again");
                matches!(error, redb::Error::Corrupted(_))
            }
        };
        shared.progress.send_replace(Some("history: is opened again".into()));
        shared.positions.send_modify(|positions| positions.fill(StreamSeq(0)));
        if remove && let Err(error) = projection::remove(&shared.file()) {
            tracing::error!(%error, "history cannot be removed");
        }
        tokio::select! {
            () = sleep(RETRY_PAUSE) => {}
            () = cancel.cancelled() => return,
        }
    }
}

async fn open_again(shared: &HistoryState, cancel: &CancellationToken) -> Option<Database> {
    loop {
        match shared.open().await {
            Ok(database) => return Some(database),
            // The last reader of the old file may still hold it; a full disk may have room again.
            Err(error) => tracing::warn!(%error, "history cannot be opened yet"),
        }
        tokio::select! {
            () = sleep(RETRY_PAUSE) => {}
            () = cancel.cancelled() => return None,
        }
    }
}

/// Start of a round in one stream.
struct Start {
    position: Position,
    /// The stream's end at that time.
    end: StreamSeq,
    /// The start differs from the file's position: the file has none, or the stream has dropped unread messages.
    moved: bool,
}

/// One round.
async fn follow(shared: &Arc<HistoryState>, database: Arc<Database>, cancel: &CancellationToken) -> End {
    let starts = tokio::select! {
        starts = starts(shared, &database) => match starts {
            Ok(starts) => starts,
            Err(end) => return end,
        },
        () = cancel.cancelled() => return End::Cancelled,
    };
    let prepared = {
        let (shared, database) = (Arc::clone(shared), Arc::clone(&database));
        let moved: Vec<_> = starts.iter().map(|start| start.moved.then(|| start.position.clone())).collect();
        tokio::task::spawn_blocking(move || prepare(&shared, &database, &moved)).await
    };
    match prepared {
        Ok(Ok(())) => {}
        Ok(Err(error)) => return End::Failed(error),
        Err(error) => return End::Failed(redb::Error::Corrupted(error.to_string())),
    }
    let positions = starts.iter().map(|start| start.position.clone()).collect();
    let projection = Projection::new(shared.layout, shared.sources.clone(), positions);
    let committed = projection.committed();
    shared.note(&committed);
    shared.publish(Some(Arc::clone(&database)));
    let writer = match Writer::start(database, projection, committed, COMMIT_INTERVAL, "history".into()) {
        Ok(writer) => Arc::new(writer),
        Err(error) => return End::Failed(redb::Error::Io(error)),
    };
    let mut tasks = JoinSet::new();
    for (index, start) in starts.iter().enumerate() {
        tasks.spawn(read(Arc::clone(shared), Arc::clone(&writer), index, start.position.clone()));
    }
    tasks.spawn(sweep(Arc::clone(shared), Arc::clone(&writer)));
    let end = tokio::select! {
        end = tasks.join_next() => end,
        () = tell(shared, writer.committed(), &starts) => None,
        () = cancel.cancelled() => Some(Ok(End::Cancelled)),
    };
    tasks.shutdown().await;
    let closed = match Arc::into_inner(writer) {
        Some(writer) => writer.close().await,
        None => Ok(()),
    };
    match (end, closed) {
        (Some(Ok(End::Cancelled)), _) => End::Cancelled,
        (_, Err(error)) => End::Failed(error),
        (Some(Ok(end)), Ok(())) => end,
        (_, Ok(())) => End::Failed(redb::Error::Corrupted("a task of the history ended".into())),
    }
}

/// The starts, once the log answers.
async fn starts(shared: &HistoryState, database: &Database) -> Result<Vec<Start>, End> {
    let mut starts = Vec::with_capacity(shared.sources.len());
    for source in &shared.sources {
        let stream = source.stream(shared.layout);
        let transaction = redb::ReadableDatabase::begin_read(database).map_err(redb::Error::from)?;
        let mut known = projection::position(&transaction, &stream)?;
        drop(transaction);
        starts.push(loop {
            shared.connection.connected().await;
            match start(shared, &stream, known.clone()).await {
                Ok(Ok(start)) => break start,
                // Counts of refused requests stay as they are.
                Ok(Err(_)) if *source == StreamKind::Rejected => known = None,
                Ok(Err(reason)) => return Err(End::Rebuild(format!("{stream}: {reason}"))),
                Err(error) => {
                    shared.progress.send_replace(Some(format!("history: {error}")));
                    sleep(RETRY_PAUSE).await;
                }
            }
        });
    }
    Ok(starts)
}

/// The start in one stream, or the reason why the file does not fit it.
async fn start(
    shared: &HistoryState,
    stream: &str,
    known: Option<Position>,
) -> Result<Result<Start, projection::Mismatch>, EnsureError> {
    let before = |first: StreamSeq| StreamSeq(first.0.saturating_sub(1));
    let Some(position) = known else {
        let state = streams::state(&shared.connection, stream).await?;
        let position = Position { cursor: before(state.first), ..Position::start(state.created) };
        return Ok(Ok(Start { position, end: state.last, moved: true }));
    };
    let (state, verdict) = projection::verify(&shared.connection, stream, &position).await?;
    Ok(match verdict {
        PositionCheck::Keep => Ok(Start { position, end: state.last, moved: false }),
        PositionCheck::Skip { first } => {
            tracing::warn!(stream, position = position.cursor.0, first = first.0, "history has missed messages");
            let position = Position { cursor: before(first), mark: None, ..position };
            Ok(Start { position, end: state.last, moved: true })
        }
        PositionCheck::Rebuild(mismatch) => Err(mismatch),
    })
}

/// Creates the tables, and writes the positions that the file does not have.
fn prepare(shared: &HistoryState, database: &Database, moved: &[Option<Position>]) -> Result<(), redb::Error> {
    let transaction = database.begin_write()?;
    {
        let mut tables = Tables::open(&transaction)?;
        for (source, position) in shared.sources.iter().zip(moved) {
            let Some(position) = position else { continue };
            // Events that EVENTS has dropped before it is first read get no rows, although OUTCOMES may still have
            // records of them.
            if let StreamKind::Events(shard) = source
                && tables.marks.get((SWEPT, shard.0))?.is_none()
            {
                tables.marks.insert((SWEPT, shard.0), position.cursor.0)?;
            }
        }
    }
    for (source, position) in shared.sources.iter().zip(moved) {
        if let Some(position) = position {
            projection::set_position(&transaction, &source.stream(shared.layout), position)?;
        }
    }
    transaction.commit()?;
    Ok(())
}

/// Reads one stream into the writer.
async fn read(shared: Arc<HistoryState>, writer: Arc<Writer<Projection>>, index: usize, start: Position) -> End {
    let source = shared.sources[index];
    let stream = source.stream(shared.layout);
    if let StreamKind::Outcomes(shard) = source
        && bootstrap::load(&shared, &writer, shard, start.cursor.next()).await.is_err()
    {
        return End::Rebuild("the writer has ended".into());
    }
    let reader = |known: Position| {
        let options = ReaderOptions {
            stream: stream.clone(),
            name: "history".into(),
            from: known.cursor.next(),
            filter: None,
            batch_messages_max: BATCH_MESSAGES,
            known: Some(known),
            // Waiting costs an admin nothing but being behind, which it says.
            pages: false,
        };
        OrderedReader::new(shared.connection.clone(), options)
    };
    let created = start.created;
    let mut next = start.cursor.next();
    let mut messages = reader(start);
    loop {
        let change = match messages.next().await {
            Ok(batch) => {
                let position = next;
                let gap = batch.messages.iter().fold(0, |gap, message| {
                    let gap = gap + message.seq.0.saturating_sub(next.0);
                    next = message.seq.next();
                    gap
                });
                if gap > 0 && has_missed(&shared, source, &stream, position).await {
                    tracing::warn!(stream, messages = gap, "history has missed messages");
                }
                let messages = batch.messages.into_iter().map(|message| slim(source, message)).collect();
                Change::Messages { index, messages }
            }
            Err(ReadError::Gone { position, first, .. }) => {
                tracing::warn!(stream, position = position.0, first = first.0, "history has missed messages");
                let before_first = StreamSeq(first.0.saturating_sub(1));
                messages = reader(Position { cursor: before_first, ..Position::start(created) });
                next = first;
                Change::Skip { index, first }
            }
            Err(other) if source == StreamKind::Rejected => return End::Reopen(other.to_string()),
            Err(other @ (ReadError::Another { .. } | ReadError::Behind { .. })) => {
                return End::Rebuild(other.to_string());
            }
        };
        if writer.send(change).await.is_err() {
            // The writer's error ends the round.
            return End::Rebuild("the writer has ended".into());
        }
    }
}

/// Removes expired rows from time to time.
async fn sweep(shared: Arc<HistoryState>, writer: Arc<Writer<Projection>>) -> End {
    loop {
        sleep(shared.options.sweep_interval).await;
        match expired(&shared).await {
            Ok(expired) => {
                let mut committed = writer.committed();
                loop {
                    let sweeps = committed.borrow_and_update().sweeps;
                    if writer.send(Change::Sweep(expired.clone())).await.is_err() {
                        return End::Rebuild("the writer has ended".into());
                    }
                    match committed.wait_for(|committed| committed.sweeps > sweeps).await {
                        Ok(committed) if committed.more_to_sweep => {}
                        Ok(_) => break,
                        Err(_) => return End::Rebuild("the writer has ended".into()),
                    }
                }
            }
            Err(error) => tracing::debug!(%error, "history cannot be swept now"),
        }
    }
}

async fn expired(shared: &HistoryState) -> Result<Expired, EnsureError> {
    let mut firsts: Vec<(ShardId, StreamSeq, StreamSeq)> = Vec::new();
    for shard in shared.layout.all() {
        let events = streams::state(&shared.connection, &shared.layout.events_stream(shard)).await?;
        let commands = streams::state(&shared.connection, &shared.layout.commands_stream(shard)).await?;
        firsts.push((shard, events.first, commands.first));
    }
    let retention = i64::try_from(shared.options.dead_letter_retention.as_millis()).unwrap_or(i64::MAX);
    // Owners stamp dead letters by the server's clock.
    let now = shared.connection.server_clock().now();
    let dead_before_ms = now.as_millisecond().saturating_sub(retention);
    Ok(Expired { firsts, dead_before_ms })
}

/// Publishes the committed positions, and the progress through the messages present at the start. Ends with the writer.
async fn tell(shared: &HistoryState, mut committed: watch::Receiver<Committed>, starts: &[Start]) {
    let total: u64 = starts.iter().map(|start| start.end.0.saturating_sub(start.position.cursor.0)).sum();
    if total >= LOGGED_FROM {
        tracing::info!(messages = total, "history is being built");
    }
    let mut told = Instant::now();
    let mut building = true;
    loop {
        let now = committed.borrow_and_update().clone();
        if building {
            let positions = &now.positions;
            let left: u64 =
                starts.iter().zip(positions).map(|(start, position)| start.end.0.saturating_sub(position.0)).sum();
            building = left > 0;
            let text = format!("history: {} of {total} messages", total - left.min(total));
            shared.progress.send_replace(building.then_some(text));
            if total >= LOGGED_FROM && (!building || told.elapsed() >= PROGRESS_INTERVAL) {
                tracing::info!(read = total - left.min(total), messages = total, "history progress");
                told = Instant::now();
            }
        }
        shared.note(&now);
        if committed.changed().await.is_err() {
            return;
        }
    }
}

/// Whether retention has dropped what should have been read from `position` on. A gap may as well have been erased: that is
/// removed from the middle of a stream, and its record says so.
async fn has_missed(shared: &HistoryState, source: StreamKind, stream: &str, position: StreamSeq) -> bool {
    match source {
        StreamKind::Outcomes(_) | StreamKind::Commands(_) => true,
        StreamKind::Events(_) | StreamKind::DeadLetters | StreamKind::Rejected => {
            streams::state(&shared.connection, stream).await.is_ok_and(|state| state.first > position)
        }
    }
}
