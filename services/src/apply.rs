//! Applies the file's sources and subscriptions to the catalog at the start of `weft up`. Idempotent.
//!
//! `weft_catalog` plans the changes and writes them without overwriting concurrent ones: the
//! admin's `Apply` does the same.

use weft_catalog::{
    Catalog, Desired, Locate, LocateError, Orphan, Snapshot, Stamp,
    change::Action,
    edit::{Call, EditError, Editor},
    plan,
};
use weft_nats::{streams::EnsureError, subject::Layout};
use weft_proto::ids::{EventId, ShardId, StreamSeq};

/// Operator of changes by a file.
const OPERATOR: &str = "weft up";
/// Why.
const REASON: &str = "the configuration at the start";

/// Why the catalog is not what the file says.
#[derive(Debug, thiserror::Error)]
pub enum ApplyError {
    /// Passes: no server, no answer. Try again.
    #[error("{0}")]
    Unavailable(String),
    /// Does not pass.
    #[error("{0}")]
    Refused(String),
}

impl From<EditError> for ApplyError {
    fn from(error: EditError) -> Self {
        match error {
            EditError::Refused(_) | EditError::Start(_) => Self::Refused(error.to_string()),
            EditError::Unavailable(_) | EditError::Unrecorded(_) => Self::Unavailable(error.to_string()),
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

/// How many were written.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Applied {
    /// New ones.
    pub created: usize,
    /// Subscriptions that the log knew and the catalog had lost.
    pub adopted: usize,
    /// Changed ones.
    pub updated: usize,
}

/// Finds subscriptions that the log knows and the catalog has lost.
pub trait FindOrphans: Send + Sync {
    /// The one of this name.
    fn find(&self, name: &str, snapshot: &Snapshot)
    -> impl Future<Output = Result<Option<Orphan>, LocateError>> + Send;
}

/// A new mesh: its log knows no subscriptions.
#[derive(Debug)]
pub struct NoOrphans;

impl FindOrphans for NoOrphans {
    async fn find(&self, _name: &str, _snapshot: &Snapshot) -> Result<Option<Orphan>, LocateError> {
        Ok(None)
    }
}

struct Index<F>(F);

impl<F: FindOrphans> Locate for Index<F> {
    async fn locate(&self, id: EventId) -> Result<Option<(ShardId, StreamSeq)>, LocateError> {
        Err(LocateError::Refused(format!(
            "start = \"{id}\": only a running mesh finds events; create the subscription with weft apply, or use a time"
        )))
    }

    async fn orphan(&self, name: &str, snapshot: &Snapshot) -> Result<Option<Orphan>, LocateError> {
        self.0.find(name, snapshot).await
    }
}

/// Makes the catalog what `desired` says; nothing is removed. `request_id` names the start: tries of one start have the
/// same, so that the record of one that broke off is completed by the next.
///
/// # Errors
///
/// [`ApplyError`]: what was written before it stays.
pub async fn apply(
    catalog: &Catalog,
    layout: Layout,
    desired: &Desired,
    request_id: &str,
) -> Result<Applied, ApplyError> {
    apply_with(catalog, layout, desired, request_id, NoOrphans).await
}

/// As [`apply`], to a log that has been in use: a subscription that the catalog has lost is adopted.
///
/// # Errors
///
/// [`ApplyError`]: what was written before it stays.
pub async fn apply_with(
    catalog: &Catalog,
    layout: Layout,
    desired: &Desired,
    request_id: &str,
    orphans: impl FindOrphans,
) -> Result<Applied, ApplyError> {
    let editor = Editor::new(catalog.clone(), layout, Index(orphans));
    let stamp = Stamp { request_id: request_id.to_owned(), operator: OPERATOR.into(), reason: REASON.into() };
    let call = Call { method: "Apply", name: "", recorded_idle: false };
    let edited = editor.edit(&stamp, call, |snapshot, _| plan(snapshot, desired, false)).await?;
    let count = |action: Action| edited.changes.iter().filter(|change| change.action == action.as_str()).count();
    let (created, adopted) = (count(Action::Created), count(Action::Adopted));
    Ok(Applied { created, adopted, updated: count(Action::Updated) })
}
