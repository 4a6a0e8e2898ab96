//! One change of one entry, decided on a catalog that was read. Pure.
//!
//! A change names the revision that it was decided on, so that no caller overwrites a concurrent change unseen: then
//! the change is refused, and has to be decided again.

use std::fmt;

use weft_proto::{
    ids::SubscriptionUid,
    v1::{ApiKey, CatalogAction, Source, Subscription},
    words::Word as _,
};

use super::{
    defaults::is_ordered,
    diff::diff,
    entry::{Entry, Kind, Value},
    orphan::Orphan,
    snapshot::{Revised, Snapshot},
    start::Start,
};

/// Kind of a change of an entry.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Action {
    /// It is made.
    Created,
    /// A subscription that the log knows and the catalog had lost is made again.
    Adopted,
    /// It says something else.
    Updated,
    /// It is removed.
    Deleted,
    /// A subscription is paused.
    Paused,
    /// A subscription is resumed.
    Resumed,
}

impl Action {
    /// The action in messages.
    pub const fn message(self) -> CatalogAction {
        match self {
            Self::Created => CatalogAction::Created,
            Self::Adopted => CatalogAction::Adopted,
            Self::Updated => CatalogAction::Updated,
            Self::Deleted => CatalogAction::Deleted,
            Self::Paused => CatalogAction::Paused,
            Self::Resumed => CatalogAction::Resumed,
        }
    }

    /// The action's name.
    pub fn as_str(self) -> &'static str {
        self.message().word()
    }
}

/// Why a change is not made.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// Nothing of that name is there.
    #[error("no {} {name:?} is there", .kind.as_str())]
    NotFound {
        /// Of which kind.
        kind: Kind,
        /// Name of the entry.
        name: String,
    },
    /// Something of that name is there already.
    #[error("{} {name:?} already exists; update it, or choose another name", .kind.as_str())]
    Exists {
        /// Of which kind.
        kind: Kind,
        /// Name of the entry.
        name: String,
    },
    /// It is not what the caller has read.
    #[error(
        "{} {name:?} has revision {stored} and not {given}: someone has changed it; read it again, then decide again",
        .kind.as_str()
    )]
    Conflict {
        /// Of which kind.
        kind: Kind,
        /// Name of the entry.
        name: String,
        /// The revision that the caller has read.
        given: u64,
        /// The revision that it has.
        stored: u64,
    },
    /// It breaks a rule.
    #[error("{} {name:?}: {problem}", .kind.as_str())]
    Invalid {
        /// Of which kind.
        kind: Kind,
        /// Name of the entry.
        name: String,
        /// The problem and the fix.
        problem: String,
    },
}

/// A change that has been decided. `Debug` shows nothing of its value: secrets are part of it.
#[derive(Clone, PartialEq)]
pub struct Change {
    /// Of which kind.
    pub kind: Kind,
    /// Of which entry.
    pub name: String,
    /// Kind of the change.
    pub action: Action,
    /// The revision that it was decided on; 0: it must not exist.
    pub expected: u64,
    /// Its new value; `None`: it is removed.
    pub(super) value: Option<Value>,
    /// Where a new subscription begins.
    pub(super) start: Start,
    /// Of a subscription that is removed: its uid.
    pub(super) removed: Option<SubscriptionUid>,
}

impl fmt::Debug for Change {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { kind, name, action, expected, .. } = self;
        write!(f, "Change({} {name} {} on {expected})", kind.as_str(), action.as_str())
    }
}

impl Change {
    fn new<T: Entry>(name: &str, action: Action, expected: u64, value: Option<T>) -> Self {
        let value = value.map(T::into_value);
        Self { kind: T::KIND, name: name.to_owned(), action, expected, value, start: Start::Now, removed: None }
    }

    /// Difference from the catalog that the change was decided on, line by line, without secrets.
    pub fn diff(&self, snapshot: &Snapshot) -> Vec<String> {
        match (&self.value, self.kind) {
            (Some(Value::Source(after)), _) => self.difference(snapshot, Some(after.as_ref())),
            (Some(Value::Subscription(after)), _) => self.difference(snapshot, Some(after.as_ref())),
            (Some(Value::Key(after)), _) => self.difference(snapshot, Some(after.as_ref())),
            (None, Kind::Source) => self.difference::<Source>(snapshot, None),
            (None, Kind::Subscription) => self.difference::<Subscription>(snapshot, None),
            (None, Kind::Key) => self.difference::<ApiKey>(snapshot, None),
        }
    }

    fn difference<T: Entry>(&self, snapshot: &Snapshot, after: Option<&T>) -> Vec<String> {
        diff(T::all(snapshot).get(&self.name).map(|entry| entry.value.as_ref()), after)
    }
}

/// Makes an entry. What only the catalog knows of a subscription is made when it is written.
///
/// # Errors
///
/// [`Refusal::Exists`], [`Refusal::Invalid`].
pub fn create<T: Entry>(snapshot: &Snapshot, value: T) -> Result<Change, Refusal> {
    check(&value)?;
    if T::all(snapshot).contains_key(value.id()) {
        return Err(Refusal::Exists { kind: T::KIND, name: value.id().to_owned() });
    }
    let name = value.id().to_owned();
    Ok(Change::new(&name, Action::Created, 0, Some(value)))
}

/// Makes a subscription that begins at `start`.
///
/// # Errors
///
/// As [`create`].
pub fn create_subscription(snapshot: &Snapshot, value: Subscription, start: Start) -> Result<Change, Refusal> {
    let value = Subscription { uid: Vec::new(), starts: Vec::new(), created_at_ms: 0, paused: false, ..value };
    Ok(Change { start, ..create(snapshot, value)? })
}

/// Makes an orphaned subscription again, with its uid.
///
/// # Errors
///
/// As [`create`].
pub fn adopt_subscription(snapshot: &Snapshot, value: Subscription, orphan: &Orphan) -> Result<Change, Refusal> {
    let value = Subscription { created_at_ms: 0, paused: false, ..adopt(orphan, value)? };
    Ok(Change { action: Action::Adopted, ..create(snapshot, value)? })
}

/// The subscription that an orphan becomes when it is adopted: with its uid and where it began. Without types it has the filter
/// that it had last.
///
/// # Errors
///
/// [`Refusal::Invalid`] where its lanes are of another kind.
pub(super) fn adopt(orphan: &Orphan, mut value: Subscription) -> Result<Subscription, Refusal> {
    if orphan.ordered.is_some_and(|ordered| ordered != is_ordered(&value)) {
        let problem = "ordered is not what it was, and cannot be changed; its backlog is kept in the other way";
        return Err(Refusal::Invalid { kind: Kind::Subscription, name: value.name, problem: problem.to_owned() });
    }
    if value.types.is_empty() {
        value.types.clone_from(&orphan.types);
        value.sources.clone_from(&orphan.sources);
    }
    value.uid = orphan.uid.to_vec();
    value.starts.clone_from(&orphan.starts);
    Ok(value)
}

/// Replaces an entry that has the revision `revision`; 0: any revision. `None` when it is that already. Fields that
/// only the catalog knows are kept, and so are its secrets where none are given.
///
/// # Errors
///
/// [`Refusal::NotFound`], [`Refusal::Conflict`], [`Refusal::Invalid`].
pub fn update<T: Entry>(snapshot: &Snapshot, value: T, revision: u64) -> Result<Option<Change>, Refusal> {
    let stored = find::<T>(snapshot, value.id(), revision)?;
    let value = replacing(value, &stored.value)?;
    let name = value.id().to_owned();
    Ok((value != *stored.value).then(|| Change::new(&name, Action::Updated, stored.revision, Some(value))))
}

/// An entry as it would be stored: in place of the one of its name, or as a new one. For a test before it is.
///
/// # Errors
///
/// [`Refusal::Invalid`].
pub fn draft<T: Entry>(snapshot: &Snapshot, value: T) -> Result<T, Refusal> {
    match find::<T>(snapshot, value.id(), 0) {
        Ok(stored) => replacing(value, &stored.value),
        Err(_) => check(&value).map(|()| value),
    }
}

/// A value with what it keeps of the stored one that it replaces.
fn replacing<T: Entry>(mut value: T, stored: &T) -> Result<T, Refusal> {
    value.keep(stored);
    keep_secrets(&mut value, stored);
    check(&value)?;
    let invalid = |problem| Refusal::Invalid { kind: T::KIND, name: value.id().to_owned(), problem };
    value.check_change(stored).map_err(invalid)?;
    Ok(value)
}

/// A value with the stored secrets of the entry that it is to replace, changed: `added` before them, and without those at the
/// places `removed`.
///
/// # Errors
///
/// [`Refusal::NotFound`], [`Refusal::Conflict`], [`Refusal::Invalid`].
pub fn with_changed_secrets<T: Entry>(
    snapshot: &Snapshot,
    mut value: T,
    revision: u64,
    added: &[String],
    removed: &[u32],
) -> Result<T, Refusal> {
    let stored = find::<T>(snapshot, value.id(), revision)?;
    let invalid = |problem: &str| Refusal::Invalid {
        kind: T::KIND,
        name: stored.value.id().to_owned(),
        problem: format!("secrets_change: {problem}"),
    };
    if revision == 0 && !removed.is_empty() {
        return Err(invalid("a secret is removed by its place, so the revision that was read is needed"));
    }
    let secrets = stored.value.secrets().filter(|_| value.shares_secrets(&stored.value));
    let secrets = secrets.ok_or_else(|| invalid("it has no secrets, or those of another scheme"))?;
    let places: Vec<_> = removed.iter().filter_map(|place| usize::try_from(*place).ok()).collect();
    if places.iter().any(|place| *place >= secrets.len()) {
        return Err(invalid("no secret is stored at that place"));
    }
    let kept = secrets.iter().enumerate().filter(|(place, _)| !places.contains(place)).map(|(_, secret)| secret);
    let changed: Vec<_> = added.iter().chain(kept).cloned().collect();
    if changed.is_empty() {
        return Err(invalid("the last secret cannot be removed; add another first"));
    }
    if let Some(secrets) = value.secrets_mut() {
        *secrets = changed;
    }
    Ok(value)
}

/// Removes an entry that has the revision `revision`; 0: any revision.
///
/// # Errors
///
/// [`Refusal::NotFound`], [`Refusal::Conflict`].
pub fn delete<T: Entry>(snapshot: &Snapshot, name: &str, revision: u64) -> Result<Change, Refusal> {
    let stored = find::<T>(snapshot, name, revision)?;
    Ok(Change { removed: stored.value.uid(), ..Change::new::<T>(name, Action::Deleted, stored.revision, None) })
}

/// Pauses a subscription for a reason, or resumes it. `None` when it is as it should be already.
///
/// # Errors
///
/// [`Refusal::NotFound`].
pub fn pause(snapshot: &Snapshot, name: &str, reason: Option<&str>) -> Result<Option<Change>, Refusal> {
    let stored = find::<Subscription>(snapshot, name, 0)?;
    if stored.value.paused == reason.is_some() {
        return Ok(None);
    }
    let (paused, pause_reason) = (reason.is_some(), reason.unwrap_or_default().to_owned());
    let value = Subscription { paused, pause_reason, ..stored.value.as_ref().clone() };
    let action = if paused { Action::Paused } else { Action::Resumed };
    Ok(Some(Change::new(name, action, stored.revision, Some(value))))
}

pub(super) fn find<'a, T: Entry>(
    snapshot: &'a Snapshot,
    name: &str,
    revision: u64,
) -> Result<&'a Revised<std::sync::Arc<T>>, Refusal> {
    let missing = || Refusal::NotFound { kind: T::KIND, name: name.to_owned() };
    let stored = T::all(snapshot).get(name).ok_or_else(missing)?;
    if revision != 0 && revision != stored.revision {
        let (name, stored) = (name.to_owned(), stored.revision);
        return Err(Refusal::Conflict { kind: T::KIND, name, given: revision, stored });
    }
    Ok(stored)
}

fn check<T: Entry>(value: &T) -> Result<(), Refusal> {
    let invalid = |problem| Refusal::Invalid { kind: T::KIND, name: value.id().to_owned(), problem };
    value.check().map_err(invalid)
}

/// A subscription with the stored secrets where it has none, as an update would store it.
pub fn with_kept_secrets(snapshot: &Snapshot, mut subscription: Subscription) -> Subscription {
    if let Some(stored) = snapshot.subscriptions.get(&subscription.name) {
        keep_secrets(&mut subscription, &stored.value);
    }
    subscription
}

/// Keeps the stored secrets where the new value has none: a caller without the secrets may change everything else.
fn keep_secrets<T: Entry>(value: &mut T, stored: &T) {
    if !value.shares_secrets(stored) {
        return;
    }
    if let (Some(secrets), Some(kept)) = (value.secrets_mut(), stored.secrets())
        && secrets.iter().all(String::is_empty)
    {
        secrets.clone_from(kept);
    }
    let mut kept = stored.single_secrets();
    for (key, secret) in value.single_secrets_mut() {
        if let Some(kept) = kept.remove(&key).filter(|_| secret.is_empty()) {
            *secret = kept;
        }
    }
}
