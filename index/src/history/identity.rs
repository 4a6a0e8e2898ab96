//! Comparison of the positions read with the log. After a stream was restored or lost its tail, the file is of the
//! earlier one until the reader of that stream compares and the file is rebuilt.

use std::time::Duration;

use redb::ReadableDatabase as _;
use tokio::time::{Instant, sleep};
use weft_proto::ids::{ShardId, StreamSeq};

use super::{AsOf, History, HistoryError, apply::StreamKind};
use crate::projection::{self, PositionCheck};

/// Interval of comparisons.
const PAUSE: Duration = Duration::from_millis(100);

impl History {
    /// Waits until the positions up to which the streams of a shard have been read are positions in these streams as they
    /// are now, with the same messages.
    ///
    /// # Errors
    ///
    /// [`HistoryError::Building`] when they are not within `patience`; [`HistoryError::Log`] when the log does not answer.
    pub async fn verify(&self, shard: ShardId, patience: Duration) -> Result<(), HistoryError> {
        let deadline = Instant::now() + patience;
        loop {
            let Some(problem) = self.mismatch(shard).await? else { return Ok(()) };
            if Instant::now() >= deadline {
                return Err(HistoryError::Building(problem));
            }
            sleep(PAUSE).await;
        }
    }

    /// The first stream of a shard that is not the one that has been read, and the difference.
    async fn mismatch(&self, shard: ShardId) -> Result<Option<String>, HistoryError> {
        let shared = &self.shared;
        for source in [StreamKind::Events(shard), StreamKind::Outcomes(shard), StreamKind::Commands(shard)] {
            let stream = source.stream(shared.layout);
            let database = shared.database.read().clone();
            let Some(database) = database else {
                return Ok(Some(shared.progress.borrow().clone().unwrap_or_default()));
            };
            let name = stream.clone();
            let known = tokio::task::spawn_blocking(move || {
                let transaction = database.begin_read().map_err(redb::Error::from)?;
                projection::position(&transaction, &name)
            });
            let known = known.await.unwrap_or_else(|error| Err(redb::Error::Corrupted(error.to_string())))?;
            let Some(known) = known else { return Ok(Some(format!("history: {stream} has not been read yet"))) };
            let (_, check) = projection::verify_once(&shared.connection, &stream, &known).await?;
            if let PositionCheck::Rebuild(mismatch) = check {
                return Ok(Some(format!("history: {stream}: {mismatch}")));
            }
        }
        Ok(None)
    }

    /// Waits until the streams of these sources reach the positions up to which they have been read, for at most `patience`.
    /// Returns the number of missing messages and the ends.
    ///
    /// A stream that ends earlier lost its tail, or the leader that was asked lags.
    pub(super) async fn ends_reached(
        &self,
        wanted: impl Fn(&StreamKind) -> bool,
        patience: Duration,
    ) -> Result<Result<Vec<(usize, StreamSeq)>, AsOf>, HistoryError> {
        let deadline = Instant::now() + patience;
        loop {
            // Positions before the ends: messages appended in between may have been read in between.
            let read = self.shared.positions.borrow().clone();
            let ends = self.ends(&wanted).await?;
            let lost = ends.iter().map(|(index, end)| read.get(*index).map_or(0, |read| read.0.saturating_sub(end.0)));
            let messages: u64 = lost.sum();
            if messages == 0 {
                return Ok(Ok(ends));
            }
            if Instant::now() >= deadline {
                return Ok(Err(AsOf::Behind { messages, time: None }));
            }
            sleep(PAUSE.min(deadline.duration_since(Instant::now()))).await;
        }
    }
}
