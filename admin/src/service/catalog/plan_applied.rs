//! Answers of `Apply`: planned and applied changes.

use weft_catalog::{Snapshot, change::Change};
use weft_proto::{internal, v1, words::Word as _};

/// Planned changes.
pub(super) fn planned(snapshot: &Snapshot, changes: &[Change]) -> v1::ApplyResponse {
    let changes = changes.iter().map(|change| v1::AppliedChange {
        kind: kind(change.kind.as_str()).into(),
        name: change.name.clone(),
        action: change.action.message().into(),
        diff: change.diff(snapshot),
    });
    v1::ApplyResponse { changes: changes.collect() }
}

/// Applied changes.
pub(super) fn done(changes: Vec<internal::CatalogChange>) -> v1::ApplyResponse {
    let changes = changes.into_iter().map(|change| {
        let internal::CatalogChange { kind, name, action, diff, .. } = change;
        let action = v1::CatalogAction::from_word(&action).unwrap_or_default().into();
        v1::AppliedChange { kind: self::kind(&kind).into(), name, action, diff }
    });
    v1::ApplyResponse { changes: changes.collect() }
}

/// The kind with this name in records.
fn kind(name: &str) -> v1::CatalogKind {
    match name {
        "source" => v1::CatalogKind::Source,
        "subscription" => v1::CatalogKind::Subscription,
        "key" => v1::CatalogKind::ApiKey,
        _ => v1::CatalogKind::Unspecified,
    }
}
