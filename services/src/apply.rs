//! Puts the file's sources and subscriptions into the catalog at the start of `weft up`, as often as anyone likes.
//!
//! What is to be changed, and how it is written so that nobody is overwritten unseen, is `weft_nats::catalog`'s: the
//! admin's `Apply` does the same.

use weft_nats::{
    catalog::{
        Catalog, Desired, Locate, LocateError, Stamp,
        change::Action,
        edit::{Call, EditError, Editor},
        plan,
    },
    streams::EnsureError,
    subject::Layout,
};
use weft_proto::ids::{EventId, ShardId, StreamSeq};

/// Who changes the catalog when a file does.
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
    /// Changed ones.
    pub updated: usize,
}

/// Events are found by the admin's history, which a mesh that is only starting does not have.
struct NoIndex;

impl Locate for NoIndex {
    async fn locate(&self, id: EventId) -> Result<Option<(ShardId, StreamSeq)>, LocateError> {
        Err(LocateError::Refused(format!(
            "start = \"{id}\": only a running mesh finds events; create the subscription with weft apply, or use a time"
        )))
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
    let editor = Editor::new(catalog.clone(), layout, NoIndex);
    let stamp = Stamp { request_id: request_id.to_owned(), operator: OPERATOR.into(), reason: REASON.into() };
    let call = Call { method: "Apply", name: "", recorded_idle: false };
    let edited = editor.edit(&stamp, call, |snapshot, _| plan(snapshot, desired, false)).await?;
    let count = |action: Action| edited.changes.iter().filter(|change| change.action == action.as_str()).count();
    Ok(Applied { created: count(Action::Created), updated: count(Action::Updated) })
}
