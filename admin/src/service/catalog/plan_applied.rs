//! Answers of `Apply`: planned and applied changes.

use weft_catalog::{Snapshot, change::Change};
use weft_proto::{internal, v1};

/// Planned changes.
pub(super) fn planned(snapshot: &Snapshot, changes: &[Change]) -> v1::ApplyResponse {
    let changes = changes.iter().map(|change| v1::AppliedChange {
        kind: change.kind.as_str().to_owned(),
        name: change.name.clone(),
        action: change.action.as_str().to_owned(),
        diff: change.diff(snapshot),
    });
    v1::ApplyResponse { changes: changes.collect() }
}

/// Applied changes.
pub(super) fn done(changes: Vec<internal::CatalogChange>) -> v1::ApplyResponse {
    let changes = changes.into_iter().map(|change| {
        let internal::CatalogChange { kind, name, action, diff, .. } = change;
        v1::AppliedChange { kind, name, action, diff }
    });
    v1::ApplyResponse { changes: changes.collect() }
}
