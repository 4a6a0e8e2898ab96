//! `weft apply`: makes a running mesh's catalog what a file says, through its admin.

use std::path::PathBuf;

use serde::Serialize;
use weft_proto::{v1, words::word};

use super::{CommonArgs, ReasonArgs, request_id, wanted, warn_unknown_sources};
use crate::{
    command::{
        admin::AdminClient,
        output::{self, Format},
        prompt::{confirm, is_attended},
    },
    config::FILE_DEFAULT,
    failure::Failure,
};

/// `weft apply`.
#[derive(Debug, clap::Args)]
pub struct ApplyArgs {
    /// The file with [[source]] and [[subscription]]; - for standard input
    #[arg(short, long, value_name = "FILE", default_value = FILE_DEFAULT)]
    file: PathBuf,
    /// Print what would change; change nothing
    #[arg(long)]
    dry_run: bool,
    /// Delete what the file does not name
    #[arg(long)]
    prune: bool,
    /// Do not ask for confirmation before something is deleted
    #[arg(short, long)]
    yes: bool,
    #[command(flatten)]
    reason: ReasonArgs,
    #[command(flatten)]
    common: CommonArgs,
}

/// One change.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Change {
    kind: &'static str,
    name: String,
    action: &'static str,
    diff: Vec<String>,
}

impl From<v1::AppliedChange> for Change {
    fn from(change: v1::AppliedChange) -> Self {
        let v1::AppliedChange { kind, name, action, diff } = change;
        Self { kind: word::<v1::CatalogKind>(kind), name, action: word::<v1::CatalogAction>(action), diff }
    }
}

/// Carries it out.
///
/// # Errors
///
/// [`Failure`], with its exit code.
pub async fn run(args: ApplyArgs) -> Result<(), Failure> {
    let desired = wanted::of_file(&args.file)?;
    let format = args.common.format();
    let admin = args.common.admin.connect().await?;
    let values: Vec<_> = desired.subscriptions.iter().map(|wanted| wanted.value.clone()).collect();
    let sources: Vec<_> = desired.sources.iter().map(|source| source.name.clone()).collect();
    warn_unknown_sources(&admin, &values, &sources).await?;
    let request = v1::ApplyRequest {
        sources: desired.sources,
        subscriptions: desired.subscriptions.into_iter().map(wanted::subscription).collect(),
        prune: args.prune,
        dry_run: args.dry_run,
        reason: args.reason.reason,
        request_id: request_id(),
    };
    if args.prune && !args.dry_run && !args.yes && is_attended() {
        let planned = apply(&admin, v1::ApplyRequest { dry_run: true, ..request.clone() }).await?;
        let removed = names(&planned, "deleted");
        if !removed.is_empty() {
            confirm(false, &format!("delete {}? what is pending there is discarded", removed.join(", ")))?;
        }
    }
    let changes = apply(&admin, request).await?;
    print(format, &changes, args.dry_run)
}

async fn apply(admin: &AdminClient, request: v1::ApplyRequest) -> Result<Vec<Change>, Failure> {
    let answer = admin.catalog().apply(admin.request(request)).await;
    let answer = answer.map_err(|status| admin.failure(&status))?.into_inner();
    Ok(answer.changes.into_iter().map(Change::from).collect())
}

fn names(changes: &[Change], action: &str) -> Vec<String> {
    let changes = changes.iter().filter(|change| change.action == action);
    changes.map(|change| format!("{} {}", change.kind, change.name)).collect()
}

/// People get the differences below each change, and what it came to; programs one object a change.
fn print(format: Format, changes: &[Change], dry_run: bool) -> Result<(), Failure> {
    match format {
        Format::Table => output::text(&human(changes, dry_run)),
        Format::Json => output::one(format, &changes, String::new),
        Format::Jsonl | Format::Yaml => changes.iter().try_for_each(|change| output::next(format, change, String::new)),
    }
}

fn human(changes: &[Change], dry_run: bool) -> String {
    let mut text = String::new();
    for Change { kind, name, action, diff } in changes {
        text.push_str(&format!("{kind} {name}: {action}\n"));
        diff.iter().for_each(|line| text.push_str(&format!("  {line}\n")));
    }
    let count = |action: &str| changes.iter().filter(|change| change.action == action).count();
    let counts = ["created", "updated", "deleted"].map(|action| format!("{} {action}", count(action))).join(", ");
    let would = if dry_run { "would be: " } else { "" };
    match changes.is_empty() {
        true => text.push_str("nothing to do: the catalog is what the file says"),
        false => text.push_str(&format!("{would}{counts}")),
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn people_see_what_differs() {
        let diff = vec!["- timeout = \"15s\"".to_owned(), "+ timeout = \"30s\"".to_owned()];
        let change = Change { kind: "subscription", name: "billing".into(), action: "updated", diff };
        assert_eq!(
            human(&[change], true),
            "subscription billing: updated\n  - timeout = \"15s\"\n  + timeout = \"30s\"\nwould be: 0 created, 1 updated, 0 deleted"
        );
        assert!(human(&[], false).starts_with("nothing to do"));
    }
}
