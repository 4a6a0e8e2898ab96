//! The start of a new subscription, as a sequence in each shard.

use jiff::Timestamp;
use weft_nats::{
    connect::Connection,
    scan::{self, ScanError},
    subject::Layout,
};
use weft_proto::ids::{EventId, ShardId, StreamSeq};

use super::{orphan::Orphan, snapshot::Snapshot};

/// Which events a new subscription takes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Start {
    /// The ones accepted after its creation.
    Now,
    /// All that are kept.
    Beginning,
    /// The ones stored at this time or later.
    At(Timestamp),
    /// The ones behind this event.
    Behind(EventId),
}

/// Knows the log: where an event is stored, and which subscriptions the log knows.
pub trait Locate {
    /// The event's shard and place in EVENTS; `None` when no event of this id is kept.
    ///
    /// # Errors
    ///
    /// [`LocateError`].
    fn locate(&self, id: EventId) -> impl Future<Output = Result<Option<(ShardId, StreamSeq)>, LocateError>> + Send;

    /// The subscription of this name that the log knows, and that the catalog lacks though it was never removed.
    ///
    /// # Errors
    ///
    /// [`LocateError`].
    fn orphan(
        &self,
        name: &str,
        snapshot: &Snapshot,
    ) -> impl Future<Output = Result<Option<Orphan>, LocateError>> + Send;
}

/// Why the location of an event cannot be found.
#[derive(Debug, thiserror::Error)]
pub enum LocateError {
    /// Transient.
    #[error("{0}")]
    Unavailable(String),
    /// Permanent: no retry can find it.
    #[error("{0}")]
    Refused(String),
}

/// Why a start stands for no sequence.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// Transient.
    #[error("{0}")]
    Unavailable(String),
    /// Permanent.
    #[error("{0}")]
    Refused(String),
}

impl From<ScanError> for StartError {
    fn from(error: ScanError) -> Self {
        match error {
            ScanError::Expired { .. } => Self::Refused("start: the event is no longer kept".into()),
            ScanError::Unavailable(problem) => Self::Unavailable(problem),
            ScanError::Reserved { .. } => Self::Unavailable(error.to_string()),
        }
    }
}

impl From<LocateError> for StartError {
    fn from(error: LocateError) -> Self {
        match error {
            LocateError::Unavailable(problem) => Self::Unavailable(problem),
            LocateError::Refused(problem) => Self::Refused(problem),
        }
    }
}

/// The first sequence that a subscription takes, for every shard. On an empty log that is the beginning, regardless of
/// `start`.
pub(super) async fn resolve(
    connection: &Connection,
    layout: Layout,
    start: Start,
    index: &impl Locate,
) -> Result<Vec<u64>, StartError> {
    let behind = match start {
        Start::Behind(id) => {
            let unknown = || StartError::Refused(format!("start: no event {id} is kept"));
            let (shard, seq) = index.locate(id).await?.ok_or_else(unknown)?;
            Some(scan::behind(connection, layout, shard, seq).await?)
        }
        Start::Now => Some(scan::newest(connection, layout).await?),
        Start::Beginning | Start::At(_) => None,
    };
    let mut starts = Vec::new();
    for shard in layout.all() {
        let stream = layout.events_stream(shard);
        starts.push(match (start, &behind) {
            (_, Some(cursor)) => cursor.position(shard).next().0,
            (Start::At(time), None) => scan::before_time(connection, &stream, time).await?.next().0,
            (_, None) => 1,
        });
    }
    Ok(starts)
}
