//! Changes the catalog for a caller: decided on the current catalog, stamped with who and why, recorded on COMMANDS.
//!
//! The order is: write, with the revision that the change was decided on; read again what is stamped with this request;
//! record that. After a crash between write and record the change is in effect, its own headers say who made it, and only its
//! audit record is missing. The same request again finds its stamp, changes nothing more, and completes the record. A record
//! without its change cannot come to be.
//!
//! The caller checks the history for an earlier record of the request. A stamp is found for as long
//! as fewer than five later changes of the same entry have followed it: more than enough for a call that comes again.

use std::{sync::Arc, time::Duration};

use jiff::Timestamp;
use prost::Message as _;
use tokio::time::sleep;
use weft_nats::{
    commands::{self, ITEMS_BYTES_MAX},
    connect::Connection,
    subject::Layout,
};
use weft_proto::{
    ids::{ShardId, SubscriptionUid},
    internal, v1,
};

use super::{
    catalog::{Catalog, CatalogError},
    change::{Action, Change, Refusal, adopt},
    entry::Value,
    snapshot::Snapshot,
    stamp::Stamp,
    start::{Locate, Start, StartError, resolve},
};

/// How often a change that others were faster at is decided again. Only processes that start with the same file collide,
/// and each collision means that one of them is done.
const CONFLICTS_MAX: usize = 32;
/// Between two tries.
const CONFLICT_PAUSE: Duration = Duration::from_millis(50);
/// Where records go: COMMANDS are each shard's own, and a change of the catalog is no shard's.
pub const RECORD_SHARD: ShardId = ShardId(0);

/// Why a requested change of the catalog was not made or not recorded.
#[derive(Debug, thiserror::Error)]
pub enum EditError {
    /// Permanent: what was asked for cannot be.
    #[error(transparent)]
    Refused(#[from] Refusal),
    /// Permanent: a start that stands for no sequence.
    #[error("{0}")]
    Start(String),
    /// Transient: no server, no answer. What was written before stays; the same request again completes it.
    #[error("the catalog cannot be written: {0}")]
    Unavailable(String),
    /// Transient: everything is written, and only the record is missing; the same request again completes it.
    #[error("the change is made, but its record could not be stored: {0}; repeat it with the same request id")]
    Unrecorded(String),
}

impl From<CatalogError> for EditError {
    fn from(error: CatalogError) -> Self {
        Self::Unavailable(error.to_string())
    }
}

impl From<StartError> for EditError {
    fn from(error: StartError) -> Self {
        match error {
            StartError::Unavailable(problem) => Self::Unavailable(problem),
            StartError::Refused(problem) => Self::Start(problem),
        }
    }
}

/// A call, as its record names it.
#[derive(Debug, Clone, Copy)]
pub struct Call<'a> {
    /// Such as `UpdateSource`.
    pub method: &'a str,
    /// The entry that it names; empty where it names no single entry.
    pub name: &'a str,
    /// Whether it is recorded even where nothing was left to change: a call that must act once, and no more, has to be.
    pub recorded_idle: bool,
}

/// Result of a call.
#[derive(Debug)]
pub struct Edited {
    /// The catalog with it.
    pub snapshot: Arc<Snapshot>,
    /// Changes that this request has written, also in calls before that broke off.
    pub changes: Vec<internal::CatalogChange>,
}

/// Changes the catalog of one log.
#[derive(Debug, Clone)]
pub struct Editor<L> {
    catalog: Catalog,
    layout: Layout,
    index: L,
}

impl<L: Locate> Editor<L> {
    /// `index` knows where events are stored.
    pub fn new(catalog: Catalog, layout: Layout, index: L) -> Self {
        Self { catalog, layout, index }
    }

    /// Decides, writes and records. `decide` is given the catalog and what this request has written already, and says what
    /// is still to be changed; it is asked again when someone else was faster.
    ///
    /// # Errors
    ///
    /// [`EditError`].
    pub async fn edit(
        &self,
        stamp: &Stamp,
        call: Call<'_>,
        decide: impl Fn(&Snapshot, &[internal::CatalogChange]) -> Result<Vec<Change>, Refusal>,
    ) -> Result<Edited, EditError> {
        let mut settled = false;
        for _ in 0..CONFLICTS_MAX {
            let (snapshot, changes) = self.catalog.present_with_changes(&stamp.request_id).await?;
            if let Some(missing) = snapshot.missing() {
                return Err(EditError::Unavailable(missing));
            }
            let plan = if settled { Vec::new() } else { decide(&snapshot, &changes)? };
            if plan.is_empty() {
                self.record(stamp, call, &changes).await?;
                return Ok(Edited { snapshot, changes });
            }
            settled = self.write_all(plan, stamp, &snapshot).await?;
            if !settled {
                sleep(CONFLICT_PAUSE).await;
            }
        }
        Err(EditError::Unavailable("too many concurrent catalog updates; retry".into()))
    }

    /// Whether all were taken. One that was not does not keep the others from being written.
    async fn write_all(&self, plan: Vec<Change>, stamp: &Stamp, snapshot: &Snapshot) -> Result<bool, EditError> {
        let mut all = true;
        for change in plan {
            match self.write(change, stamp, snapshot).await {
                Err(WriteError::Catalog(CatalogError::Conflict { .. })) => all = false,
                Err(WriteError::Catalog(error)) => return Err(error.into()),
                Err(WriteError::Start(error)) => return Err(error.into()),
                Err(WriteError::Refused(refusal)) => return Err(refusal.into()),
                Ok(()) => {}
            }
        }
        Ok(all)
    }

    async fn write(&self, change: Change, stamp: &Stamp, snapshot: &Snapshot) -> Result<(), WriteError> {
        let change = match change.value {
            Some(Value::Subscription(value)) if value.uid.is_empty() || change.action == Action::Adopted => {
                let (action, made) = self.make(*value, change.action, change.start, snapshot).await?;
                Change { action, value: Some(Value::Subscription(Box::new(made))), ..change }
            }
            value => Change { value, ..change },
        };
        self.catalog.write(&change, stamp).await?;
        Ok(())
    }

    /// Fills in the fields of a new subscription that only the catalog knows. One that the log knows under this name,
    /// and that was never removed, is adopted: it continues at its position.
    async fn make(
        &self,
        mut value: v1::Subscription,
        mut action: Action,
        start: Start,
        snapshot: &Snapshot,
    ) -> Result<(Action, v1::Subscription), WriteError> {
        if value.uid.is_empty()
            && let Some(orphan) = self.index.orphan(&value.name, snapshot).await.map_err(StartError::from)?
        {
            value = adopt(&orphan, value)?;
            action = Action::Adopted;
        }
        if value.uid.is_empty() {
            value.uid = SubscriptionUid::unique().to_vec();
        }
        if value.starts.is_empty() || value.starts.contains(&0) {
            let resolved = resolve(self.catalog.connection(), self.layout, start, &self.index).await?;
            let known = value.starts.iter().copied().chain(std::iter::repeat(0));
            value.starts = resolved.into_iter().zip(known).map(|(new, old)| if old == 0 { new } else { old }).collect();
        }
        value.created_at_ms = Timestamp::now().as_millisecond();
        Ok((action, value))
    }

    /// Records a call: one command, or several where it has changed much.
    async fn record(
        &self,
        stamp: &Stamp,
        call: Call<'_>,
        changes: &[internal::CatalogChange],
    ) -> Result<(), EditError> {
        if changes.is_empty() && !call.recorded_idle {
            return Ok(());
        }
        for (part, changes) in parts(changes).into_iter().enumerate() {
            let (method, name) = (call.method.to_owned(), call.name.to_owned());
            let edit = internal::CatalogEdit { method, name, changes, test: None };
            record(self.catalog.connection(), self.layout, stamp, part, edit).await?;
        }
        Ok(())
    }
}

/// Appends one record to COMMANDS of [`RECORD_SHARD`]. Returns whether it is new: of two calls with the same request id at the same
/// moment it is that of one.
///
/// # Errors
///
/// [`EditError::Unrecorded`].
pub async fn record(
    connection: &Connection,
    layout: Layout,
    stamp: &Stamp,
    part: usize,
    edit: internal::CatalogEdit,
) -> Result<bool, EditError> {
    let command = internal::Command {
        request_id: commands::part_id(&stamp.request_id, part),
        operator: stamp.operator.clone(),
        reason: stamp.reason.clone(),
        at_ms: connection.server_clock().now().as_millisecond(),
        action: Some(internal::command::Action::Catalog(edit)),
        ..Default::default()
    };
    let appended = commands::append_once(connection, layout, RECORD_SHARD, &command).await;
    appended.map(|appended| appended.is_new).map_err(EditError::Unrecorded)
}

/// Cuts changes so that each part fits a message; at least one part, which may be empty. A change that alone is too large
/// loses the end of its diff.
fn parts(changes: &[internal::CatalogChange]) -> Vec<Vec<internal::CatalogChange>> {
    let mut parts = vec![Vec::new()];
    let mut bytes = 0;
    for change in changes {
        let mut change = change.clone();
        while change.encoded_len() > ITEMS_BYTES_MAX && change.diff.pop().is_some() {}
        // Key and length of the field.
        let size = change.encoded_len() + 6;
        if bytes + size > ITEMS_BYTES_MAX && bytes > 0 {
            parts.push(Vec::new());
            bytes = 0;
        }
        bytes += size;
        if let Some(part) = parts.last_mut() {
            part.push(change);
        }
    }
    parts
}

enum WriteError {
    Catalog(CatalogError),
    Start(StartError),
    Refused(Refusal),
}

impl From<Refusal> for WriteError {
    fn from(refusal: Refusal) -> Self {
        Self::Refused(refusal)
    }
}

impl From<CatalogError> for WriteError {
    fn from(error: CatalogError) -> Self {
        Self::Catalog(error)
    }
}

impl From<StartError> for WriteError {
    fn from(error: StartError) -> Self {
        Self::Start(error)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn change(lines: usize) -> internal::CatalogChange {
        internal::CatalogChange { kind: "source".into(), diff: vec!["x".repeat(400); lines], ..Default::default() }
    }

    /// Every change is in one record, in order; no record is larger than any server takes.
    #[test]
    fn records_fit_and_hold_everything_once() {
        let changes: Vec<_> = (0..500).map(|number| change(number % 7)).collect();
        let parts = parts(&changes);
        assert!(parts.len() > 1);
        assert_eq!(parts.concat(), changes);
        for changes in parts {
            let edit = internal::CatalogEdit { changes, ..Default::default() };
            assert!(edit.encoded_len() <= ITEMS_BYTES_MAX);
        }
    }

    #[test]
    fn a_call_that_changed_nothing_has_one_empty_part() {
        assert_eq!(parts(&[]), [vec![]]);
        let cut = &parts(&[change(1000)])[0][0];
        assert!(cut.encoded_len() <= ITEMS_BYTES_MAX && cut.diff.len() > 100);
    }
}
