//! Streams that must not be created, since they existed: a new, empty one would pass for the log.
//!
//! Data in a data folder refers to streams, and so do the streams of the log to each other. A process that finds one of
//! them missing says so and waits until it is restored, or an operator starts it with `--new-log`.

use std::{
    collections::BTreeSet,
    fs, io,
    path::{Path, PathBuf},
};

use futures_util::{StreamExt as _, TryStreamExt as _, stream};

use super::{Authority, CONCURRENCY, EnsureError, LogSpec, ensure_known, info};
use crate::{connect::Connection, subject::Layout};

/// The file in a role's folder that lists the streams which the folder was used with, one a line.
const FILE: &str = "streams";

/// As [`ensure`](super::ensure), for processes whose data lie in these folders: streams that a folder was used with are
/// not created again. The folders remember what exists afterwards.
///
/// # Errors
///
/// [`EnsureError`]; a stream that is missing is [`EnsureError::Unavailable`], since it may be restored.
pub async fn ensure_for(connection: &Connection, spec: &LogSpec, folders: &[PathBuf]) -> Result<Layout, EnsureError> {
    open(connection, spec, folders, Authority::Create).await
}

/// Checks the streams of the log, which an admin creates, for processes whose data lie in these folders. The folders
/// remember what exists afterwards.
///
/// # Errors
///
/// [`EnsureError`]; a stream that is missing is [`EnsureError::Unavailable`]: an admin creates or restores it.
pub async fn check_for(connection: &Connection, spec: &LogSpec, folders: &[PathBuf]) -> Result<Layout, EnsureError> {
    open(connection, spec, folders, Authority::Check).await
}

async fn open(
    connection: &Connection,
    spec: &LogSpec,
    folders: &[PathBuf],
    authority: Authority,
) -> Result<Layout, EnsureError> {
    let mut known = BTreeSet::new();
    for folder in folders {
        known.extend(known_in(folder, Layout::new(spec.log.shards)));
    }
    let layout = ensure_known(connection, spec, &known, authority).await?;
    for folder in folders {
        if let Err(error) = remember(folder, layout) {
            // Without the file the folder's other contents say that it was used.
            tracing::warn!(folder = %folder.display(), %error, "the streams of the log cannot be noted in the data folder");
        }
    }
    Ok(layout)
}

/// The streams without which a log is not the one that it was: those that every version has created.
fn log_streams(layout: Layout) -> impl Iterator<Item = String> {
    layout.all().flat_map(move |shard| {
        [layout.events_stream(shard), layout.outcomes_stream(shard), layout.commands_stream(shard)]
    })
}

fn known_in(folder: &Path, layout: Layout) -> BTreeSet<String> {
    match fs::read_to_string(folder.join(FILE)) {
        Ok(text) => text.lines().map(str::to_owned).collect(),
        // An earlier version leaves no file; its projections are of all streams.
        Err(_) if holds_projections(folder) => log_streams(layout).collect(),
        Err(_) => BTreeSet::new(),
    }
}

fn holds_projections(folder: &Path) -> bool {
    let Ok(entries) = fs::read_dir(folder) else { return false };
    entries.flatten().any(|entry| entry.path().extension().is_some_and(|extension| extension == "redb"))
}

fn remember(folder: &Path, layout: Layout) -> io::Result<()> {
    let text: String = log_streams(layout).map(|name| name + "\n").collect();
    let path = folder.join(FILE);
    if fs::read_to_string(&path).is_ok_and(|known| known == text) {
        return Ok(());
    }
    fs::create_dir_all(folder)?;
    let new = path.with_extension("new");
    fs::write(&new, text)?;
    fs::rename(new, path)
}

/// Refuses to create a stream that is known, or without which the others of the log make no sense.
pub(super) async fn check(
    connection: &Connection,
    layout: Layout,
    known: &BTreeSet<String>,
) -> Result<(), EnsureError> {
    let found: Vec<(String, Option<u64>)> = stream::iter(log_streams(layout))
        .map(async |name| {
            let last = info(connection, &name).await?.map(|info| info.state.last_sequence);
            Ok::<_, EnsureError>((name, last))
        })
        .buffered(CONCURRENCY)
        .try_collect()
        .await?;
    let holds_data = found.iter().find(|(_, last)| last.is_some_and(|last| last > 0)).map(|(name, _)| name);
    for (name, _) in found.iter().filter(|(_, last)| last.is_none()) {
        let reason = match holds_data {
            _ if known.contains(name) => "and the data folder was used with it".to_owned(),
            Some(other) => format!("and {other} holds data of the same log"),
            None => continue,
        };
        return Err(EnsureError::Unavailable(format!(
            "stream {name} does not exist, {reason}: restore it, or start the admin with --new-log to create a new, empty one"
        )));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_folder_remembers_the_streams_that_it_was_used_with() {
        let folder = tempfile::tempdir().unwrap();
        let (one, two) = (Layout::new(1), Layout::new(2));
        assert!(known_in(folder.path(), one).is_empty(), "a fresh folder");
        fs::write(folder.path().join("ledger-0.redb"), "").unwrap();
        let names = |names: &[&str]| names.iter().map(|name| (*name).to_owned()).collect::<BTreeSet<_>>();
        assert_eq!(known_in(folder.path(), one), names(&["EVENTS", "OUTCOMES", "COMMANDS"]));
        remember(folder.path(), two).unwrap();
        assert!(known_in(folder.path(), one).contains("EVENTS_1"), "{:?}", known_in(folder.path(), one));
    }
}
