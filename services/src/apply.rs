//! Puts the file's sources and subscriptions into the catalog, as often as anyone likes.
//!
//! What is decided is pure: the catalog as it was read and what the file wants give a list of changes. Each change names
//! the revision that it was decided on, so that two processes with one file, or an operator at the same moment, cannot
//! overwrite each other unseen; a conflict is read and decided again. What only the catalog knows of a subscription (uid,
//! starts, creation, pause) is kept. Subscriptions go before sources: no event is accepted before those that want it
//! exist.

use std::time::Duration;

use jiff::Timestamp;
use weft_nats::{
    catalog::{Catalog, CatalogError, Snapshot},
    connect::Connection,
    direct::{self, DirectError},
    streams::{self, EnsureError},
    subject::Layout,
};
use weft_proto::{
    ids::{ShardId, StreamSeq, SubscriptionUid},
    v1::{Source, Subscription},
};

use crate::config::{DesiredCatalog, DesiredSubscription, Start};

/// How often a change that others were faster at is decided again. Only processes that start with the same file collide,
/// and each collision means that one of them is done.
const CONFLICTS_MAX: usize = 32;
/// Between two tries.
const CONFLICT_PAUSE: Duration = Duration::from_millis(50);
/// The most that is read to learn one message's time.
const PROBE_BYTES: usize = 64 * 1024;

/// Why the catalog is not what the file says.
#[derive(Debug, thiserror::Error)]
pub enum ApplyError {
    /// Passes: no server, no answer. Try again.
    #[error("the catalog cannot be written: {0}")]
    Unavailable(String),
    /// Does not pass.
    #[error("{0}")]
    Refused(String),
}

impl From<CatalogError> for ApplyError {
    fn from(error: CatalogError) -> Self {
        match error {
            CatalogError::Invalid { .. } => Self::Refused(error.to_string()),
            CatalogError::Conflict { .. } | CatalogError::Unavailable(_) => Self::Unavailable(error.to_string()),
        }
    }
}

impl From<EnsureError> for ApplyError {
    fn from(error: EnsureError) -> Self {
        match error {
            EnsureError::Unavailable(problem) => Self::Unavailable(problem),
            EnsureError::Mismatch(problem) => Self::Refused(problem),
        }
    }
}

impl From<DirectError> for ApplyError {
    fn from(error: DirectError) -> Self {
        Self::Unavailable(error.to_string())
    }
}

/// How many were written.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Applied {
    /// New ones.
    pub created: usize,
    /// Changed ones.
    pub updated: usize,
}

/// Something to write. `expected` is the revision that it was decided on; 0: there is none yet.
#[derive(Debug, Clone, PartialEq)]
enum Change<'a> {
    Subscription { value: Box<Subscription>, expected: u64 },
    NewSubscription(&'a DesiredSubscription),
    Source { value: &'a Source, expected: u64 },
}

/// Makes the catalog what `desired` says; nothing is removed.
///
/// # Errors
///
/// [`ApplyError`]: what was written before it stays.
pub async fn apply(catalog: &Catalog, layout: Layout, desired: &DesiredCatalog) -> Result<Applied, ApplyError> {
    let mut applied = Applied::default();
    for _ in 0..CONFLICTS_MAX {
        let changes = plan(&catalog.read().await?, desired);
        let mut conflict = false;
        for change in changes {
            match put(layout, catalog, &change).await {
                Ok(true) => applied.created += 1,
                Ok(false) => applied.updated += 1,
                Err(PutError::Conflict) => conflict = true,
                Err(PutError::Failed(error)) => return Err(error),
            }
        }
        if !conflict {
            return Ok(applied);
        }
        tokio::time::sleep(CONFLICT_PAUSE).await;
    }
    Err(ApplyError::Unavailable("others change the same entries all the time".into()))
}

/// What has to be written, subscriptions first.
fn plan<'a>(now: &Snapshot, desired: &'a DesiredCatalog) -> Vec<Change<'a>> {
    let subscriptions = desired.subscriptions.iter().filter_map(|wanted| {
        let Some(stored) = now.subscriptions.get(&wanted.value.name) else {
            return Some(Change::NewSubscription(wanted));
        };
        let value = kept(&stored.value, &wanted.value);
        (value != *stored.value).then(|| Change::Subscription { value: Box::new(value), expected: stored.revision })
    });
    let sources = desired.sources.iter().filter_map(|value| match now.sources.get(&value.name) {
        Some(stored) if *stored.value == *value => None,
        Some(stored) => Some(Change::Source { value, expected: stored.revision }),
        None => Some(Change::Source { value, expected: 0 }),
    });
    subscriptions.chain(sources).collect()
}

/// The wanted subscription with what only the catalog knows of it.
fn kept(stored: &Subscription, wanted: &Subscription) -> Subscription {
    Subscription {
        uid: stored.uid.clone(),
        starts: stored.starts.clone(),
        paused: stored.paused,
        pause_reason: stored.pause_reason.clone(),
        created_at_ms: stored.created_at_ms,
        ..wanted.clone()
    }
}

enum PutError {
    Conflict,
    Failed(ApplyError),
}

impl<E: Into<ApplyError>> From<E> for PutError {
    fn from(error: E) -> Self {
        Self::Failed(error.into())
    }
}

fn conflict_or_failed(error: CatalogError) -> PutError {
    match error {
        CatalogError::Conflict { .. } => PutError::Conflict,
        error => PutError::Failed(error.into()),
    }
}

/// Writes one change; whether it made something new.
async fn put(layout: Layout, catalog: &Catalog, change: &Change<'_>) -> Result<bool, PutError> {
    match change {
        Change::Source { value, expected } => {
            catalog.put_source(value, *expected).await.map_err(conflict_or_failed)?;
            Ok(*expected == 0)
        }
        Change::Subscription { value, expected } => {
            catalog.put_subscription(value, *expected).await.map_err(conflict_or_failed)?;
            Ok(false)
        }
        Change::NewSubscription(wanted) => {
            let value = Subscription {
                uid: SubscriptionUid::unique().to_vec(),
                starts: starts(catalog.connection(), layout, wanted.start).await?,
                created_at_ms: Timestamp::now().as_millisecond(),
                ..wanted.value.clone()
            };
            catalog.put_subscription(&value, 0).await.map_err(conflict_or_failed)?;
            Ok(true)
        }
    }
}

/// The first sequence that a subscription takes, for every shard. On an empty log that is the beginning, whatever
/// `start` says.
async fn starts(connection: &Connection, layout: Layout, start: Start) -> Result<Vec<u64>, ApplyError> {
    let mut starts = Vec::new();
    for shard in layout.all() {
        starts.push(match start {
            Start::Beginning => 1,
            Start::Now => streams::state(connection, &layout.events_stream(shard)).await?.last.next().0,
            Start::At(time) => first_stored_at(connection, layout, shard, time).await?.0,
        });
    }
    Ok(starts)
}

/// The first sequence whose message was stored at `time` or later; the stream's end + 1 when there is none. Sequences
/// and times grow together, so this is a binary search: about 30 requests in a stream of a billion.
async fn first_stored_at(
    connection: &Connection,
    layout: Layout,
    shard: ShardId,
    time: Timestamp,
) -> Result<StreamSeq, ApplyError> {
    let stream = layout.events_stream(shard);
    let state = streams::state(connection, &stream).await?;
    let (mut low, mut high) = (state.first.0.max(1), state.last.next().0);
    while low < high {
        let middle = low + (high - low) / 2;
        // The message there, or the next one where it has been dropped.
        let found = direct::range(connection, &stream, StreamSeq(middle), ">", 1, PROBE_BYTES).await?;
        match found.first() {
            Some(message) if message.stored_at < time => low = message.seq.next().0,
            _ => high = middle,
        }
    }
    Ok(StreamSeq(low))
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use weft_nats::catalog::Revised;

    use super::*;

    fn subscription(name: &str, types: &[&str]) -> Subscription {
        let types = types.iter().map(|text| (*text).to_owned()).collect();
        Subscription { name: name.into(), types, ..Subscription::default() }
    }

    fn desired() -> DesiredCatalog {
        let value = subscription("billing", &["order.*"]);
        DesiredCatalog {
            sources: vec![Source { name: "shop".into(), ..Source::default() }],
            subscriptions: vec![DesiredSubscription { value, start: Start::Now }],
        }
    }

    fn stored() -> Snapshot {
        let mut snapshot = Snapshot { complete: true, ..Snapshot::default() };
        let desired = desired();
        let subscription = Subscription {
            uid: vec![7; 16],
            starts: vec![42],
            paused: true,
            pause_reason: "by hand".into(),
            created_at_ms: 5,
            ..desired.subscriptions[0].value.clone()
        };
        let source = Arc::new(desired.sources[0].clone());
        snapshot.sources.insert("shop".into(), Revised { revision: 3, value: source });
        snapshot.subscriptions.insert("billing".into(), Revised { revision: 4, value: Arc::new(subscription) });
        snapshot
    }

    #[test]
    fn subscriptions_are_made_before_sources() {
        let desired = desired();
        let changes = plan(&Snapshot::default(), &desired);
        assert_eq!(
            changes,
            [
                Change::NewSubscription(&desired.subscriptions[0]),
                Change::Source { value: &desired.sources[0], expected: 0 }
            ]
        );
    }

    #[test]
    fn the_same_file_again_changes_nothing() {
        assert_eq!(plan(&stored(), &desired()), []);
    }

    /// A subscription goes on where it is: uid, starts, creation and pause are the catalog's.
    #[test]
    fn a_change_keeps_what_only_the_catalog_knows() {
        let mut desired = desired();
        desired.subscriptions[0].value.types = vec!["*".into()];
        let changes = plan(&stored(), &desired);
        let [Change::Subscription { value, expected: 4 }] = changes.as_slice() else { panic!("{changes:?}") };
        assert_eq!(value.types, ["*"]);
        assert_eq!((value.uid.len(), value.starts.as_slice(), value.paused), (16, &[42][..], true));
        assert_eq!((value.pause_reason.as_str(), value.created_at_ms), ("by hand", 5));
    }
}
