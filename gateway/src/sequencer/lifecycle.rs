//! The life of a shard: opens the receipts, compares them with the log, catches up, runs sessions, and restarts after a
//! [`Fault`].

use std::{path::PathBuf, time::Duration};

use futures_util::{StreamExt as _, stream::FuturesOrdered};
use tokio::{
    task::{JoinError, JoinHandle, spawn_blocking},
    time::{Instant, sleep, timeout},
};
use weft_index::{
    projection::{self, Mark, OpenError, Position, PositionCheck, StorageError, Writer},
    receipts::{Apply, Change, Changes, Horizons, Receipts},
};
use weft_nats::{
    backoff::Backoff,
    reader::OrderedReader,
    streams::{self, EnsureError, Presence, StreamState},
};
use weft_proto::ids::StreamSeq;

use super::{
    overlay::Overlay,
    progress::count_of,
    session::{CaughtUp, Session},
    shard::{Fault, Inbox, Shard},
};
use crate::metrics;

/// Pause between attempts that failed.
const RETRY: Duration = Duration::from_millis(300);
/// Pauses before a session restarts, by the number of sessions that ended early.
const RESTART: Backoff = Backoff::new(Duration::from_millis(5), RETRY);
/// A session that ran this long resets the pause.
const SETTLED: Duration = Duration::from_secs(10);
/// Reads that are decoded at the same time: enough for the cores of a small machine.
const DECODING_MAX: usize = 4;
/// Without a message for so long while the log is known to have more, the server is asked whether there is any.
const QUIET: Duration = Duration::from_millis(250);

/// Opens a shard's receipts on a thread that may block.
pub(super) async fn open(path: PathBuf, stream: String, horizons: Horizons) -> Result<Receipts, OpenError> {
    let folder = path.clone();
    let opened = spawn_blocking(move || Receipts::open(&path, &stream, horizons)).await;
    opened.unwrap_or_else(|error| Err(OpenError::Unusable { path: folder, source: std::io::Error::other(error) }))
}

impl Shard {
    /// Runs until it is drained.
    pub async fn run(self, mut inbox: Inbox, receipts: Receipts) {
        let mut receipts = Some(receipts);
        let mut failures = 0;
        while let Some(opened) = receipts.take() {
            let started_at = Instant::now();
            match self.session(&mut inbox, &opened).await {
                Ok(()) => break,
                Err(fault) => {
                    self.current.send_replace(None);
                    // The next session finds out for itself.
                    self.connection.note_write(&self.stream, None);
                    self.progress.set(self.id, Some(format!("receipts: starting over: {fault}")));
                    if started_at.elapsed() >= SETTLED {
                        failures = 0;
                    }
                    failures += 1;
                    receipts = self.recover(&fault, opened, RESTART.after(failures)).await;
                }
            }
        }
        self.current.send_replace(None);
    }

    async fn session(&self, inbox: &mut Inbox, receipts: &Receipts) -> Result<(), Fault> {
        let started = tokio::select! {
            started = self.start(receipts) => started?,
            () = self.drain.cancelled() => return Ok(()),
        };
        let (writer, caught_up) = started;
        self.current.send_replace(Some(receipts.clone()));
        self.progress.set(self.id, None);
        let session = Session::new(self, inbox, receipts.clone(), &writer, caught_up);
        let worked = session.run().await;
        // Where the writer has failed, that is the reason for everything else.
        writer.close().await?;
        worked
    }

    /// Compares the receipts with the log and reads it to its end. Waits until the log is available.
    async fn start(&self, receipts: &Receipts) -> Result<(Writer<Apply>, CaughtUp), Fault> {
        let started_at = Instant::now();
        let (mut position, state) = self.verified(receipts).await?;
        if position.cursor.next() < state.first {
            if position.cursor > StreamSeq(0) {
                let (shard, cursor, first) = (self.id.0, position.cursor.0, state.first.0);
                tracing::warn!(shard, cursor, first, "messages behind the receipts are gone unread");
            }
            position = Position { cursor: StreamSeq(state.first.0 - 1), mark: None, ..position };
        }
        let (created, from) = (position.created, position.cursor);
        let mut reader = self.reader(from.next(), position.clone());
        let newest = position.mark.map(|mark| (from, mark));
        let writer = {
            let receipts = receipts.clone();
            let started = spawn_blocking(move || receipts.writer(position)).await;
            started.unwrap_or_else(|error| Err(StorageError::Corrupted(error.to_string())))?
        };
        let overlay = self.catch_up(&mut reader, &writer, from, state.last, newest).await?;
        let (events, secs) = (overlay.end().0 - from.0, started_at.elapsed().as_secs_f64());
        tracing::info!(shard = self.id.0, events, secs, "receipts have caught up");
        Ok((writer, CaughtUp { created, reader, overlay, verified_at: started_at }))
    }

    /// The position of the receipts, in a log that is the one they were made of.
    async fn verified(&self, receipts: &Receipts) -> Result<(Position, StreamState), Fault> {
        let view = receipts.clone();
        let view = spawn_blocking(move || view.view().map(|view| view.position().cloned())).await;
        let stored = view.unwrap_or_else(|error| Err(StorageError::Corrupted(error.to_string())))?;
        loop {
            let verified = match &stored {
                Some(position) => projection::verify(&self.connection, &self.stream, position).await,
                None => streams::state(&self.connection, &self.stream).await.map(|state| (state, PositionCheck::Keep)),
            };
            let waits_for = match verified {
                Ok((state, PositionCheck::Keep | PositionCheck::Skip { .. })) => {
                    return Ok((stored.unwrap_or(Position::start(state.created)), state));
                }
                // A leader that lags is not believed: `verify` asks until it has caught up.
                Ok((_, PositionCheck::Rebuild(mismatch))) => return Err(Fault::File(mismatch)),
                Err(EnsureError::Unavailable(reason) | EnsureError::Mismatch(reason)) => reason,
            };
            self.progress.set(self.id, Some(format!("receipts: {waits_for}")));
            sleep(RETRY).await;
        }
    }

    /// Reads the log to `last`, straight into the file, and waits until all of it is there.
    async fn catch_up(
        &self,
        reader: &mut OrderedReader,
        writer: &Writer<Apply>,
        from: StreamSeq,
        last: StreamSeq,
        mut newest: Option<(StreamSeq, Mark)>,
    ) -> Result<Overlay, Fault> {
        let (mut read, mut written) = (from, from);
        // Hashing and decoding take as long as reading: they run in parallel with it, in order.
        let mut decoding: FuturesOrdered<JoinHandle<Vec<Change>>> = FuturesOrdered::new();
        while read < last || !decoding.is_empty() {
            let batch = tokio::select! {
                Some(decoded) = decoding.next() => {
                    let changes = decoded.map_err(|error: JoinError| StorageError::Corrupted(error.to_string()))?;
                    writer.send(Changes { changes, catching_up: true }).await?;
                    continue;
                }
                batch = timeout(QUIET, reader.next()), if read < last && decoding.len() < DECODING_MAX => batch,
            };
            match batch {
                Ok(batch) => {
                    let messages = batch?.messages;
                    let Some(end) = messages.last() else { continue };
                    (read, newest) = (end.seq, Some((end.seq, Mark::of(end))));
                    written = read;
                    let layout = self.layout;
                    decoding.push_back(spawn_blocking(move || {
                        messages.iter().map(|message| Change::of(layout, message)).collect()
                    }));
                    let done = count_of(read.0 - from.0, last.0 - from.0);
                    self.progress.set(self.id, Some(format!("receipts: {done} events")));
                }
                Err(_) => {
                    let presence = streams::presence(&self.connection, &self.stream, read, last).await;
                    if let Ok((_, Presence::Absent)) = presence {
                        read = last;
                    }
                }
            }
        }
        writer.flush().request();
        let mut committed = writer.committed();
        committed.wait_for(|committed| committed.cursor >= written).await.map_err(|_| Fault::Written)?;
        Ok(Overlay::new(written, read, newest))
    }

    /// Reopens the receipts after `fault`, from scratch if they are of another log. `None`: drained meanwhile.
    async fn recover(&self, fault: &Fault, receipts: Receipts, mut pause: Duration) -> Option<Receipts> {
        let shard = self.id.0;
        let rebuild = match fault {
            Fault::File(_) => true,
            Fault::Storage(error) => !matches!(error, StorageError::Io(_) | StorageError::PreviousIo),
            // What was beyond the file is dropped; the file's own position is compared with the log at the next start.
            Fault::Log(_) | Fault::LogMismatch(_) | Fault::Read(_) | Fault::Written => false,
        };
        let cause = if rebuild { "rebuilt" } else { "resumed" };
        ::metrics::counter!(metrics::RECEIPTS_RESTARTED, "cause" => cause).increment(1);
        if rebuild {
            tracing::error!(shard, reason = %fault, "receipts are rebuilt");
        } else {
            tracing::warn!(shard, reason = %fault, "receipts resume from their file");
        }
        drop(receipts);
        let mut removed = !rebuild;
        loop {
            tokio::select! {
                () = sleep(pause) => {}
                () = self.drain.cancelled() => return None,
            }
            pause = RETRY;
            let opened = if removed || projection::remove(&self.path).is_ok() {
                removed = true;
                open(self.path.clone(), self.stream.clone(), self.horizons()).await
            } else {
                Err(OpenError::InUse { path: self.path.clone() })
            };
            match opened {
                Ok(receipts) => return Some(receipts),
                Err(error) => {
                    self.progress.set(self.id, Some(format!("receipts: {error}")));
                    tracing::warn!(shard, %error, "receipts cannot be opened");
                }
            }
        }
    }
}
